#include "netvsp/toeplitz.h"

namespace vmbusd::netvsp {

ToeplitzBytes unfold_toeplitz_key(const std::array<std::uint8_t, kRssKeySize>& key, std::size_t index) {
  static_assert(kToeplitzInputMax - 1 + 5 <= kRssKeySize);
  std::uint64_t bits = 0;  // of the key from the byte's first bit on
  for (std::size_t i = 0; i < 5; ++i) bits = bits << 8 | key[index + i];
  ToeplitzBytes bytes{};
  for (std::uint32_t value = 1; value < bytes.size(); ++value) {
    // Each bit that is set adds the 32 bits of the key that begin at its place; the last bit stands at 7.
    std::uint32_t last_set = 0;
    while ((value >> last_set & 1) == 0) ++last_set;
    bytes[value] = bytes[value & (value - 1)] ^ static_cast<std::uint32_t>(bits >> (1 + last_set));
  }
  return bytes;
}

}  // namespace vmbusd::netvsp
