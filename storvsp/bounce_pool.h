// Aligned buffers for what a back end cannot read or write in place.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "storvsp/lazy_memory.h"

namespace vmbusd::storvsp {

// Page-aligned buffers of one size, which cost memory from their first use on. One thread.
class BouncePool {
 public:
  // Enough to keep a disk busy with a guest that aligns badly, few enough to bound what it can pin.
  static constexpr std::size_t kBuffers = 4;

  static constexpr std::size_t kBuffersMax = 32;

  // Once, before take(). Of `count` buffers, at least 1 and at most kBuffersMax are made. Errc::kOs where the
  // kernel refuses.
  [[nodiscard]] Result<void> reserve(std::uint32_t buffer_bytes, std::size_t count = kBuffers);
  // nullptr where all are taken.
  [[nodiscard]] std::byte* take() { return free_count_ == 0 ? nullptr : free_[--free_count_]; }
  void give_back(std::byte* buffer) { free_[free_count_++] = buffer; }

 private:
  LazyMemory memory_;
  std::array<std::byte*, kBuffersMax> free_{};
  std::size_t free_count_ = 0;
};

}  // namespace vmbusd::storvsp
