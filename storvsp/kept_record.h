// A few bytes in a file that outlast everything but the file.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/fd.h"

namespace vmbusd::storvsp {

// One record, in two slots of the file that are written in turn: whenever the host fails, one of them is
// whole. One thread at a time.
class KeptRecord {
 public:
  static constexpr std::size_t kBytesMax = 256;

  // Whether a file may be made to hold a record: it is empty, or holds one. Any other must not be written to.
  [[nodiscard]] static bool fits(int fd);

  // Without a file: keeps nothing.
  KeptRecord() = default;
  // Reads what `fd` holds. A file that is empty, damaged or something else's holds nothing.
  explicit KeptRecord(UniqueFd fd);

  // What was found, or put there last.
  [[nodiscard]] std::span<const std::byte> bytes() const { return std::span(bytes_).first(size_); }
  // Durable when it returns 0, else a positive errno, and then what was there before is there still or, where
  // the host fails now, either. At most kBytesMax.
  [[nodiscard]] int replace(std::span<const std::byte> bytes) noexcept;

 private:
  UniqueFd fd_;
  std::uint64_t sequence_ = 0;  // of the slot that counts; 0: none does
  std::array<std::byte, kBytesMax> bytes_{};
  std::size_t size_ = 0;
};

}  // namespace vmbusd::storvsp
