// What stands in an Ethernet frame: its layers' places and the fields that offloads touch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "base/wire.h"
#include "netvsp/checksum.h"

namespace vmbusd::netvsp {

inline constexpr std::uint16_t kEtherTypeIpv4 = 0x0800;
inline constexpr std::uint16_t kEtherTypeIpv6 = 0x86dd;
inline constexpr std::uint16_t kEtherTypeVlan = 0x8100;
inline constexpr std::uint16_t kEtherTypeServiceVlan = 0x88a8;
inline constexpr std::uint32_t kVlanTagSize = 4;

inline constexpr std::uint8_t kProtocolTcp = 6;
inline constexpr std::uint8_t kProtocolUdp = 17;

// Field offsets. [RFC 791, 8200, 9293, 768]
inline constexpr std::uint32_t kMacDestination = 0;
inline constexpr std::uint32_t kMacSource = 6;
inline constexpr std::uint32_t kEtherType = 12;
inline constexpr std::uint32_t kIpv4TotalLength = 2;
inline constexpr std::uint32_t kIpv4Identification = 4;
inline constexpr std::uint32_t kIpv4Checksum = 10;
inline constexpr std::uint32_t kIpv4Addresses = 12;
inline constexpr std::uint32_t kIpv4AddressesSize = 8;
inline constexpr std::uint32_t kIpv6PayloadLength = 4;
inline constexpr std::uint32_t kIpv6Addresses = 8;
inline constexpr std::uint32_t kIpv6AddressesSize = 32;
inline constexpr std::uint32_t kIpv6HeaderSize = 40;
inline constexpr std::uint32_t kTcpSequence = 4;
inline constexpr std::uint32_t kTcpFlags = 13;
inline constexpr std::uint32_t kTcpChecksum = 16;
inline constexpr std::uint32_t kUdpChecksum = 6;
inline constexpr std::uint8_t kTcpFin = 0x01;
inline constexpr std::uint8_t kTcpPush = 0x08;
inline constexpr std::uint8_t kTcpCwr = 0x80;

// Bytes of a frame that hold all headers which we look for: two VLAN tags, IP with options or some
// extension headers, TCP with options.
inline constexpr std::uint32_t kFrameHeadMax = 192;

[[nodiscard]] inline std::uint16_t load_be16(std::span<const std::byte> bytes, std::size_t offset) {
  return static_cast<std::uint16_t>(static_cast<unsigned>(bytes[offset]) << 8 |
                                    static_cast<unsigned>(bytes[offset + 1]));
}
inline void store_be16(std::span<std::byte> bytes, std::size_t offset, std::uint16_t value) {
  bytes[offset] = static_cast<std::byte>(value >> 8);
  bytes[offset + 1] = static_cast<std::byte>(value & 0xff);
}
// A checksum word, as it stands in memory.
inline void store_word(std::span<std::byte> bytes, std::size_t offset, std::uint16_t word) {
  std::memcpy(bytes.data() + offset, &word, sizeof word);
}

// Where the layers begin; all inside the bytes that were parsed.
struct FrameLayout {
  std::uint8_t ip_version = 0;  // 4, 6, or 0: no IP header that we can read, and nothing below is set
  std::uint8_t protocol = 0;    // kProtocolTcp, kProtocolUdp, or 0: another, a fragment, or cut short
  std::uint16_t ip_offset = 0;
  std::uint16_t transport_offset = 0;  // where protocol != 0
  std::uint16_t payload_offset = 0;    // behind the TCP or UDP header, where protocol != 0
  std::uint32_t ip_end = 0;  // where the IP packet ends by its own length field, from the frame's start
};

// `head`: private copy of the frame's first bytes, kFrameHeadMax or all.
[[nodiscard]] FrameLayout parse_frame(std::span<const std::byte> head);

// The sum over the pseudo-header of `layout`'s addresses and protocol, and `transport_size` (TCP or UDP
// header and payload).
[[nodiscard]] ChecksumSum pseudo_header_sum(std::span<const std::byte> head, const FrameLayout& layout,
                                            std::uint32_t transport_size);
// Offset of the transport checksum from the transport header. `protocol` is TCP or UDP.
[[nodiscard]] constexpr std::uint16_t checksum_offset_of(std::uint8_t protocol) {
  return protocol == kProtocolTcp ? kTcpChecksum : kUdpChecksum;
}

// IPv4 only: the header's checksum anew, and whether it is right.
void write_ipv4_checksum(std::span<std::byte> head, const FrameLayout& layout);
[[nodiscard]] bool ipv4_checksum_good(std::span<const std::byte> head, const FrameLayout& layout);

}  // namespace vmbusd::netvsp
