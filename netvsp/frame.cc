#include "netvsp/frame.h"

namespace vmbusd::netvsp {

namespace {

constexpr std::uint32_t kIpv4HeaderMin = 20;
constexpr std::uint32_t kTcpHeaderMin = 20;
constexpr std::uint32_t kUdpHeaderSize = 8;
constexpr std::uint32_t kTagsMax = 2;              // 802.1ad
constexpr std::uint32_t kExtensionHeadersMax = 8;  // a bound, more than any real packet has

// IPv6 next-header values of extension headers that may stand before the transport header. [RFC 8200: 4]
constexpr std::uint8_t kHopByHop = 0;
constexpr std::uint8_t kRouting = 43;
constexpr std::uint8_t kFragment = 44;
constexpr std::uint8_t kDestinationOptions = 60;

std::uint8_t byte_at(std::span<const std::byte> bytes, std::size_t offset) {
  return static_cast<std::uint8_t>(bytes[offset]);
}

void parse_transport(std::span<const std::byte> head, std::uint32_t offset, std::uint8_t protocol,
                     FrameLayout& layout) {
  std::uint32_t header_size = kUdpHeaderSize;
  if (protocol == kProtocolTcp) {
    if (offset + kTcpHeaderMin > head.size()) return;
    header_size = (byte_at(head, offset + 12) >> 4) * 4u;
    if (header_size < kTcpHeaderMin) return;
  } else if (protocol != kProtocolUdp) {
    return;
  }
  const std::uint32_t payload = offset + header_size;
  if (payload > head.size()) return;
  layout.protocol = protocol;
  layout.transport_offset = static_cast<std::uint16_t>(offset);
  layout.payload_offset = static_cast<std::uint16_t>(payload);
}

void parse_ipv4(std::span<const std::byte> head, std::uint32_t offset, FrameLayout& layout) {
  if (offset + kIpv4HeaderMin > head.size() || byte_at(head, offset) >> 4 != 4) return;
  const std::uint32_t header_size = (byte_at(head, offset) & 0xf) * 4u;
  if (header_size < kIpv4HeaderMin || offset + header_size > head.size()) return;
  layout.ip_version = 4;
  layout.ip_offset = static_cast<std::uint16_t>(offset);
  layout.ip_end = offset + load_be16(head, offset + kIpv4TotalLength);
  const bool fragment = (load_be16(head, offset + 6) & 0x3fff) != 0;  // more fragments, or an offset
  if (!fragment) parse_transport(head, offset + header_size, byte_at(head, offset + 9), layout);
}

void parse_ipv6(std::span<const std::byte> head, std::uint32_t offset, FrameLayout& layout) {
  if (offset + kIpv6HeaderSize > head.size() || byte_at(head, offset) >> 4 != 6) return;
  layout.ip_version = 6;
  layout.ip_offset = static_cast<std::uint16_t>(offset);
  layout.ip_end = offset + kIpv6HeaderSize + load_be16(head, offset + kIpv6PayloadLength);
  std::uint8_t next = byte_at(head, offset + 6);
  std::uint32_t at = offset + kIpv6HeaderSize;
  for (std::uint32_t i = 0; i < kExtensionHeadersMax; ++i) {
    if (next != kHopByHop && next != kRouting && next != kDestinationOptions) {
      if (next != kFragment) parse_transport(head, at, next, layout);
      return;
    }
    if (at + 8 > head.size()) return;
    // With segments left the final destination stands in the routing header, and the pseudo-header has that.
    if (next == kRouting && byte_at(head, at + 3) != 0) return;
    next = byte_at(head, at);
    at += (byte_at(head, at + 1) + 1u) * 8;
  }
}

}  // namespace

FrameLayout parse_frame(std::span<const std::byte> head) {
  FrameLayout layout;
  std::uint32_t type_offset = kEtherType;
  for (std::uint32_t tags = 0;; ++tags) {
    if (type_offset + 2 > head.size()) return layout;
    const std::uint16_t type = load_be16(head, type_offset);
    if (type == kEtherTypeIpv4) {
      parse_ipv4(head, type_offset + 2, layout);
      return layout;
    }
    if (type == kEtherTypeIpv6) {
      parse_ipv6(head, type_offset + 2, layout);
      return layout;
    }
    if ((type != kEtherTypeVlan && type != kEtherTypeServiceVlan) || tags == kTagsMax) return layout;
    type_offset += kVlanTagSize;
  }
}

ChecksumSum pseudo_header_sum(std::span<const std::byte> head, const FrameLayout& layout,
                              std::uint32_t transport_size) {
  ChecksumSum sum;
  if (layout.ip_version == 4) {
    sum.add(head.subspan(layout.ip_offset + kIpv4Addresses, kIpv4AddressesSize));
  } else {
    sum.add(head.subspan(layout.ip_offset + kIpv6Addresses, kIpv6AddressesSize));
  }
  sum.add_number(layout.protocol);
  sum.add_number(static_cast<std::uint16_t>(transport_size >> 16));
  sum.add_number(static_cast<std::uint16_t>(transport_size & 0xffff));
  return sum;
}

namespace {
std::span<const std::byte> ipv4_header(std::span<const std::byte> head, const FrameLayout& layout) {
  return head.subspan(layout.ip_offset, (byte_at(head, layout.ip_offset) & 0xf) * 4u);
}
}  // namespace

void write_ipv4_checksum(std::span<std::byte> head, const FrameLayout& layout) {
  store_word(head, layout.ip_offset + kIpv4Checksum, 0);
  ChecksumSum sum;
  sum.add(ipv4_header(head, layout));
  store_word(head, layout.ip_offset + kIpv4Checksum, sum.checksum());
}

bool ipv4_checksum_good(std::span<const std::byte> head, const FrameLayout& layout) {
  ChecksumSum sum;
  sum.add(ipv4_header(head, layout));
  return sum.checksum() == 0;
}

}  // namespace vmbusd::netvsp
