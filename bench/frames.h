// Ethernet frames that benchmarks send.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "netvsp/frame.h"
#include "netvsp/mac_address.h"
#include "netvsp/rndis_packet.h"

namespace vmbusd::bench {

inline constexpr std::uint32_t kTcpHeaders = netvsp::kEthernetHeaderSize + 20 + 20;

// IEEE 802's type for local experiments. `bytes`: the frame's size, at least 14.
inline std::vector<std::byte> plain_frame(const netvsp::MacAddress& to, std::size_t bytes) {
  std::vector<std::byte> frame(bytes, std::byte{0x5a});
  std::memcpy(frame.data(), to.bytes.data(), to.bytes.size());
  const netvsp::MacAddress from{{0x02, 0, 0, 0, 0, 0x0b}};
  std::memcpy(frame.data() + netvsp::kMacSource, from.bytes.data(), from.bytes.size());
  netvsp::store_be16(frame, netvsp::kEtherType, 0x88b5);
  return frame;
}

// TCP over IPv4 with `payload` bytes, its lengths and sums left at zero as in a large send.
inline std::vector<std::byte> tcp_frame(const netvsp::MacAddress& to, std::size_t payload) {
  std::vector<std::byte> frame = plain_frame(to, kTcpHeaders + payload);
  netvsp::store_be16(frame, netvsp::kEtherType, netvsp::kEtherTypeIpv4);
  constexpr std::uint8_t kHeaders[] = {
      0x45, 0,    0,    0,    0, 0, 0x40, 0, 64, 6, 0, 0, 10,   0,    0, 1, 10, 0, 0, 2,   // IPv4
      0x13, 0x88, 0x13, 0x89, 0, 0, 0,    1, 0,  0, 0, 1, 0x50, 0x10, 1, 0, 0,  0, 0, 0};  // TCP
  std::memcpy(frame.data() + netvsp::kEthernetHeaderSize, kHeaders, sizeof kHeaders);
  return frame;
}

}  // namespace vmbusd::bench
