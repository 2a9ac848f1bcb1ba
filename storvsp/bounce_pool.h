// Aligned buffers for what O_DIRECT cannot read or write in place.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "storvsp/lazy_memory.h"

namespace vmbusd::storvsp {

// kBuffers page-aligned buffers of one size, which cost memory from their first use on. One thread.
class BouncePool {
 public:
  // Enough to keep a disk busy with a guest that aligns badly, few enough to bound what it can pin.
  static constexpr std::size_t kBuffers = 4;

  // Once, before take(). Errc::kOs where the kernel refuses.
  [[nodiscard]] Result<void> reserve(std::uint32_t buffer_bytes);
  // nullptr where all are taken.
  [[nodiscard]] std::byte* take() { return free_count_ == 0 ? nullptr : free_[--free_count_]; }
  void give_back(std::byte* buffer) { free_[free_count_++] = buffer; }

 private:
  LazyMemory memory_;
  std::array<std::byte*, kBuffers> free_{};
  std::size_t free_count_ = 0;
};

}  // namespace vmbusd::storvsp
