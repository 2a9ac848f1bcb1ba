// The Internet checksum (RFC 1071), in pieces.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace vmbusd::netvsp {

// Sums bytes as 16-bit words in the order in which they stand in memory. The sum is independent of byte
// order (RFC 1071, 2B), so what fold() gives is stored into a header as it is.
class ChecksumSum {
 public:
  ChecksumSum() = default;
  explicit ChecksumSum(std::uint16_t start) : sum_(start) {}

  // The next bytes of the summed area; odd lengths are fine.
  void add(std::span<const std::byte> bytes) {
    const std::uint16_t part = fold_words(bytes);
    // Behind an odd number of bytes the next ones change places in their words.
    add_word(odd_ ? static_cast<std::uint16_t>(part << 8 | part >> 8) : part);
    odd_ ^= bytes.size() % 2 != 0;
  }
  // A word as it stands in memory.
  void add_word(std::uint16_t word) { sum_ += word; }
  // A number in host order.
  void add_number(std::uint16_t number) { add_word(static_cast<std::uint16_t>(number << 8 | number >> 8)); }

  // The sum itself: what NEEDS_CSUM expects in the checksum field before it is completed.
  [[nodiscard]] std::uint16_t fold() const { return fold_64(sum_); }
  // Its complement: what a checksum field holds.
  [[nodiscard]] std::uint16_t checksum() const { return static_cast<std::uint16_t>(~fold()); }

 private:
  [[nodiscard]] static std::uint16_t fold_64(std::uint64_t sum) {
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    std::uint32_t half = static_cast<std::uint32_t>(sum);
    half = (half & 0xffff) + (half >> 16);
    half = (half & 0xffff) + (half >> 16);
    return static_cast<std::uint16_t>(half);
  }
  [[nodiscard]] static std::uint16_t fold_words(std::span<const std::byte> bytes) {
    const std::byte* at = bytes.data();
    std::size_t left = bytes.size();
    // 32-bit words into 64-bit sums cannot overflow below 2^32 words, and the compiler vectorizes it.
    std::uint64_t sums[4] = {};
    while (left >= 32) {
      for (std::size_t i = 0; i < 4; ++i) {
        std::uint64_t word;
        std::memcpy(&word, at + i * 8, sizeof word);
        sums[i] += (word & 0xffffffff) + (word >> 32);
      }
      at += 32;
      left -= 32;
    }
    std::uint64_t sum = sums[0] + sums[1] + sums[2] + sums[3];
    for (; left >= 4; at += 4, left -= 4) {
      std::uint32_t word;
      std::memcpy(&word, at, sizeof word);
      sum += word;
    }
    std::uint32_t last = 0;
    if (left != 0) std::memcpy(&last, at, left);
    return fold_64(sum + last);
  }

  std::uint64_t sum_ = 0;  // of at most 2^48 words
  bool odd_ = false;
};

}  // namespace vmbusd::netvsp
