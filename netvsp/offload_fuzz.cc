// Frames with any infos out, with any virtio_net_hdr in: plans stay inside the frame, sums come out right,
// segments are the whole.
//
// Input: flags u8, three u32 of infos, virtio_net_hdr, then the frame
#include <algorithm>
#include <vector>

#include "base/assert.h"
#include "netvsp/offload.h"
#include "netvsp/segment.h"
#include "tests/netvsp/fuzz_input.h"

namespace vmbusd::netvsp {
namespace {

constexpr std::uint32_t kMtu = 1500;

// By the book, a byte at a time.
std::uint32_t plain_sum(std::span<const std::byte> bytes) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    sum += static_cast<std::uint32_t>(bytes[i]) << (i % 2 == 0 ? 8 : 0);
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return sum;
}

void check_layout(const FrameLayout& layout, std::size_t head_size) {
  if (layout.ip_version == 0) return;
  VMBUSD_ASSERT(layout.ip_offset < head_size);
  if (layout.protocol == 0) return;
  VMBUSD_ASSERT(layout.ip_offset < layout.transport_offset);
  VMBUSD_ASSERT(layout.transport_offset < layout.payload_offset && layout.payload_offset <= head_size);
}

// Whether the transport checksum of the frame, whose parse is `layout`, is right.
bool transport_good(std::span<const std::byte> frame, const FrameLayout& layout, std::size_t end) {
  const auto size = static_cast<std::uint32_t>(end - layout.transport_offset);
  const std::uint16_t pseudo = pseudo_header_sum(frame, layout, size).fold();
  std::uint32_t sum = plain_sum(frame.subspan(layout.transport_offset, size));
  sum += (pseudo & 0xffu) << 8 | pseudo >> 8;
  return (sum & 0xffff) + (sum >> 16) == 0xffff;
}

void segment(std::vector<std::byte>& frame, const FrameLayout& layout, std::uint32_t payload_max) {
  const auto head = std::span(frame).first(std::min<std::size_t>(frame.size(), kFrameHeadMax));
  const TcpSegmenter segmenter(head, layout, static_cast<std::uint32_t>(frame.size()), payload_max);
  std::size_t next = layout.payload_offset;
  for (std::uint32_t i = 0; i < segmenter.count(); ++i) {
    const TcpSegmenter::Segment part = segmenter.segment(i);
    VMBUSD_ASSERT(part.payload_offset == next && part.payload_size <= payload_max);
    next += part.payload_size;
    const auto payload = std::span(frame).subspan(part.payload_offset, part.payload_size);
    ChecksumSum sum;
    sum.add(payload);
    std::vector<std::byte> made(segmenter.header_size());
    segmenter.write_header(i, sum, made);
    made.insert(made.end(), payload.begin(), payload.end());
    VMBUSD_ASSERT(transport_good(made, layout, made.size()));
    VMBUSD_ASSERT(layout.ip_version == 6 || ipv4_checksum_good(made, layout));
  }
  VMBUSD_ASSERT(next == frame.size());
}

void transmit(std::vector<std::byte> frame, const TransmitInfo& info) {
  const auto size = static_cast<std::uint32_t>(frame.size());
  const auto head = std::span(frame).first(std::min(size, kFrameHeadMax));
  const Result<TransmitPlan> plan = plan_transmit(head, size, info, kMtu);
  if (!plan) return;
  VMBUSD_ASSERT(plan->frame_size <= size);
  frame.resize(plan->frame_size);
  const VirtioNetHeader& header = plan->header;
  if (header.flags == 0) return;
  VMBUSD_ASSERT(header.flags == kVirtioNeedsChecksum);
  const FrameLayout layout =
      parse_frame(std::span(frame).first(std::min<std::size_t>(frame.size(), kFrameHeadMax)));
  VMBUSD_ASSERT(layout.protocol != 0 && layout.transport_offset == header.checksum_start);
  if (header.gso_type != kVirtioGsoNone) {
    VMBUSD_ASSERT(header.gso_size != 0 && header.header_length == layout.payload_offset);
    segment(frame, layout, header.gso_size);
  }
  complete_checksum(header, frame, {});
  VMBUSD_ASSERT(transport_good(frame, layout, frame.size()));
}

void receive(std::vector<std::byte>& frame, const VirtioNetHeader& header, std::uint32_t offloads) {
  const auto size = static_cast<std::uint32_t>(frame.size());
  const auto head = std::span(frame).first(std::min(size, kFrameHeadMax));
  const ReceivePlan plan = plan_receive(header, head, size, offloads);
  if (plan.action == ReceiveAction::kDrop) return;
  if (plan.complete) VMBUSD_ASSERT(plan.checksum_start + plan.checksum_offset + 2u <= size);
  if (plan.action == ReceiveAction::kDeliver) return;
  check_layout(plan.layout, head.size());
  VMBUSD_ASSERT(plan.layout.protocol == kProtocolTcp && header.gso_size != 0);
  segment(frame, plan.layout, header.gso_size);
}

}  // namespace
}  // namespace vmbusd::netvsp

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmbusd::netvsp;
  FuzzInput input(data, size);
  const auto flags = input.take<std::uint8_t>();
  TransmitInfo info;
  info.has_checksum = (flags & 1) != 0;
  info.has_large_send = (flags & 2) != 0;
  info.checksum = input.take<std::uint32_t>();
  info.large_send = input.take<std::uint32_t>();
  const auto offloads = input.take<std::uint32_t>();
  const auto header = input.take<VirtioNetHeader>();
  std::vector<std::byte> frame = input.rest();
  if (frame.size() < kEthernetHeaderSize || frame.size() > 70000) return 0;
  check_layout(parse_frame(std::span(frame).first(std::min<std::size_t>(frame.size(), kFrameHeadMax))),
               std::min<std::size_t>(frame.size(), kFrameHeadMax));
  transmit(frame, info);
  receive(frame, header, offloads);
  return 0;
}
