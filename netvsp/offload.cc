#include "netvsp/offload.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace vmbusd::netvsp {

namespace {

constexpr std::uint32_t kIpLengthMax = 65535;
// The least payload per segment: a TCP that leaves less makes more headers than data. [linux:
// TCP_MIN_GSO_SIZE]
constexpr std::uint32_t kMssMin = 8;

Result<TransmitPlan> plan_large_send(std::span<std::byte> head, std::uint32_t frame_size,
                                     const TransmitInfo& info, std::uint32_t mtu) {
  const FrameLayout layout = parse_frame(head);
  const bool ipv6 = (info.large_send & kLargeSendIpv6) != 0;
  if ((info.large_send & kLargeSendV2) == 0 || layout.protocol != kProtocolTcp ||
      layout.ip_version != (ipv6 ? 6 : 4)) {
    return fail(Errc::kBadMessage, "large send is no TCP packet of its IP version, or of version 1");
  }
  const std::uint32_t ip_size = frame_size - layout.ip_offset;
  // IPv6 does not count its header; 40 bytes less do no harm.
  if (ip_size > kIpLengthMax) return fail(Errc::kBadMessage, "large send is too long");
  const std::uint32_t mss = info.large_send & kLargeSendMssMask;
  const std::uint32_t headers = layout.payload_offset - layout.ip_offset;
  if (mss < kMssMin || mss + headers > mtu) return fail(Errc::kBadMessage, "large send has a bad MSS");

  if (layout.ip_version == 4) {
    store_be16(head, layout.ip_offset + kIpv4TotalLength, static_cast<std::uint16_t>(ip_size));
    write_ipv4_checksum(head, layout);
  } else {
    store_be16(head, layout.ip_offset + kIpv6PayloadLength,
               static_cast<std::uint16_t>(ip_size - kIpv6HeaderSize));
  }
  const std::uint32_t transport_size = frame_size - layout.transport_offset;
  store_word(head, layout.transport_offset + kTcpChecksum,
             pseudo_header_sum(head, layout, transport_size).fold());

  TransmitPlan plan{{}, frame_size};
  plan.header.flags = kVirtioNeedsChecksum;
  plan.header.checksum_start = layout.transport_offset;
  plan.header.checksum_offset = kTcpChecksum;
  if (frame_size - layout.payload_offset > mss) {
    plan.header.gso_type = ipv6 ? kVirtioGsoTcpIpv6 : kVirtioGsoTcpIpv4;
    if ((static_cast<std::uint8_t>(head[layout.transport_offset + kTcpFlags]) & kTcpCwr) != 0) {
      plan.header.gso_type |= kVirtioGsoEcn;
    }
    plan.header.gso_size = static_cast<std::uint16_t>(mss);
    plan.header.header_length = layout.payload_offset;
  }
  return plan;
}

Result<TransmitPlan> plan_checksums(std::span<std::byte> head, std::uint32_t frame_size,
                                    const TransmitInfo& info) {
  TransmitPlan plan{{}, frame_size};
  const bool tcp = (info.checksum & kTxChecksumTcp) != 0;
  const bool udp = (info.checksum & kTxChecksumUdp) != 0;
  const bool ip_header = (info.checksum & kTxChecksumIpHeader) != 0;
  if (!tcp && !udp && !ip_header) return plan;
  const FrameLayout layout = parse_frame(head);
  if (ip_header && layout.ip_version == 4) write_ipv4_checksum(head, layout);
  if (!tcp && !udp) return plan;
  if (layout.protocol != (tcp ? kProtocolTcp : kProtocolUdp)) {
    return fail(Errc::kBadMessage, "checksum is wanted of a frame that has none");
  }
  if (layout.ip_end > frame_size || layout.ip_end < layout.payload_offset) {
    return fail(Errc::kBadMessage, "IP packet is longer than its frame, or shorter than its headers");
  }
  const std::uint16_t offset = checksum_offset_of(layout.protocol);
  store_word(head, layout.transport_offset + offset,
             pseudo_header_sum(head, layout, layout.ip_end - layout.transport_offset).fold());
  plan.header.flags = kVirtioNeedsChecksum;
  plan.header.checksum_start = layout.transport_offset;
  plan.header.checksum_offset = offset;
  plan.frame_size = layout.ip_end;  // whoever completes the sum takes everything up to the end
  return plan;
}

}  // namespace

Result<TransmitPlan> plan_transmit(std::span<std::byte> head, std::uint32_t frame_size,
                                   const TransmitInfo& info, std::uint32_t mtu) {
  if (info.has_large_send) return plan_large_send(head, frame_size, info, mtu);
  if (frame_size > frame_size_max(mtu)) return fail(Errc::kBadMessage, "frame is longer than the MTU allows");
  if (info.has_checksum) return plan_checksums(head, frame_size, info);
  return TransmitPlan{{}, frame_size};
}

void insert_vlan_tag(std::byte* frame, std::uint16_t tci) {
  std::byte* const begin = frame - kVlanTagSize;
  std::memmove(begin, frame, kEtherType);
  store_be16(std::span(begin, kEtherType + 4), kEtherType, kEtherTypeVlan);
  store_be16(std::span(begin, kEtherType + 4), kEtherType + 2, tci);
}

void complete_checksum(const VirtioNetHeader& header, std::span<std::byte> head,
                       std::span<const iovec> rest) {
  VMBUSD_ASSERT(std::size_t{header.checksum_start} + header.checksum_offset + 2 <= head.size());
  ChecksumSum sum;
  sum.add(head.subspan(header.checksum_start));
  for (const iovec& part : rest) sum.add({static_cast<const std::byte*>(part.iov_base), part.iov_len});
  // A UDP sum of zero means "none", so it is sent as its other form; for TCP both are right. [RFC 768]
  const std::uint16_t checksum = sum.checksum();
  store_word(head, std::size_t{header.checksum_start} + header.checksum_offset,
             checksum == 0 ? std::uint16_t{0xffff} : checksum);
}

ReceivePlan plan_receive(const VirtioNetHeader& header, std::span<const std::byte> head,
                         std::uint32_t frame_size, std::uint32_t offloads) {
  ReceivePlan plan;
  const bool needs_checksum = (header.flags & kVirtioNeedsChecksum) != 0;
  const std::uint8_t gso = header.gso_type & static_cast<std::uint8_t>(~kVirtioGsoEcn);
  if (header.flags == 0 && gso == kVirtioGsoNone) return plan;

  const FrameLayout layout = parse_frame(head);
  if (gso != kVirtioGsoNone) {
    const bool ipv4 = gso == kVirtioGsoTcpIpv4 && layout.ip_version == 4;
    const bool ipv6 = gso == kVirtioGsoTcpIpv6 && layout.ip_version == 6;
    if ((!ipv4 && !ipv6) || layout.protocol != kProtocolTcp || header.gso_size == 0 ||
        layout.payload_offset > frame_size) {
      plan.action = ReceiveAction::kDrop;
      return plan;
    }
    // The guest goes by the length in the IP header, which segments get anew.
    const bool coalesced = (offloads & (ipv4 ? kRscIpv4 : kRscIpv6)) != 0 && layout.ip_end == frame_size;
    plan.action = coalesced ? ReceiveAction::kCoalesced : ReceiveAction::kSegment;
    plan.layout = layout;
    // Where the sum was checked already, the coalesced frame's own sum is nobody's: make one.
    plan.field_before = pseudo_header_sum(head, layout, frame_size - layout.transport_offset).fold();
  }
  if (needs_checksum || plan.field_before.has_value()) {
    plan.complete = true;
    plan.checksum_start = plan.field_before ? layout.transport_offset : header.checksum_start;
    plan.checksum_offset = plan.field_before ? std::uint16_t{kTcpChecksum} : header.checksum_offset;
    if (std::uint32_t{plan.checksum_start} + plan.checksum_offset + 2 > frame_size) {
      plan.action = ReceiveAction::kDrop;
      return plan;
    }
  }
  // The guest may trust the sums that are good now. A partial sum elsewhere than in our transport header (a
  // tunnel's inner one) says nothing about the outer one.
  if (layout.protocol != 0 && (!plan.complete || plan.checksum_start == layout.transport_offset)) {
    const bool tcp = layout.protocol == kProtocolTcp;
    const std::uint32_t bit = layout.ip_version == 4 ? (tcp ? kRxTcpIpv4Checksum : kRxUdpIpv4Checksum)
                                                     : (tcp ? kRxTcpIpv6Checksum : kRxUdpIpv6Checksum);
    if ((offloads & bit) != 0) plan.checksum_info |= tcp ? kRxChecksumTcpSucceeded : kRxChecksumUdpSucceeded;
  }
  if (layout.ip_version == 4 && (offloads & kRxIpv4Checksum) != 0) {
    plan.checksum_info |= ipv4_checksum_good(head, layout) ? kRxChecksumIpSucceeded : kRxChecksumIpFailed;
  }
  return plan;
}

}  // namespace vmbusd::netvsp
