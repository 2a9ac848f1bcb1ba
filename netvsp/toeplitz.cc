#include "netvsp/toeplitz.h"

#include <cstring>

#include "base/assert.h"

namespace vmbusd::netvsp {

ToeplitzHash::ToeplitzHash(const std::array<std::uint8_t, kRssKeySize>& key) {
  const auto key_bit = [&key](std::size_t bit) { return (key[bit / 8] >> (7 - bit % 8)) & 1u; };
  for (std::size_t byte = 0; byte < kInputMax; ++byte) {
    for (std::size_t bit = 0; bit < 8; ++bit) {
      std::uint32_t window = 0;
      for (std::size_t i = 0; i < 32; ++i) window = window << 1 | key_bit(byte * 8 + bit + i);
      windows_[byte][bit] = window;
    }
  }
}

std::uint32_t ToeplitzHash::hash(std::span<const std::byte> input) const {
  VMBUSD_ASSERT(input.size() <= kInputMax);
  std::uint32_t result = 0;
  for (std::size_t byte = 0; byte < input.size(); ++byte) {
    const auto value = static_cast<unsigned>(input[byte]);
    for (std::size_t bit = 0; bit < 8; ++bit) {
      // All ones where the bit (first bit first) is set, without a branch.
      const std::uint32_t mask = 0u - ((value >> (7 - bit)) & 1u);
      result ^= windows_[byte][bit] & mask;
    }
  }
  return result;
}

std::optional<std::uint32_t> ToeplitzHash::hash_frame(std::span<const std::byte> head,
                                                      const FrameLayout& layout,
                                                      std::uint32_t hash_info) const {
  if (layout.ip_version == 0) return std::nullopt;
  const bool ipv4 = layout.ip_version == 4;
  const std::uint32_t with_ports = ipv4 ? kHashTcpIpv4 : kHashTcpIpv6 | kHashTcpIpv6Ex;
  const std::uint32_t with_addresses = ipv4 ? kHashIpv4 : kHashIpv6 | kHashIpv6Ex;
  std::array<std::byte, kInputMax> input;
  const std::size_t addresses = ipv4 ? kIpv4AddressesSize : kIpv6AddressesSize;
  std::memcpy(input.data(), head.data() + layout.ip_offset + (ipv4 ? kIpv4Addresses : kIpv6Addresses),
              addresses);
  if (layout.protocol == kProtocolTcp && (hash_info & with_ports) != 0) {
    std::memcpy(input.data() + addresses, head.data() + layout.transport_offset, 4);
    return hash(std::span(input).first(addresses + 4));
  }
  if ((hash_info & with_addresses) != 0) return hash(std::span(input).first(addresses));
  return std::nullopt;
}

}  // namespace vmbusd::netvsp
