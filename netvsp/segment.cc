#include "netvsp/segment.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace vmbusd::netvsp {

TcpSegmenter::TcpSegmenter(std::span<const std::byte> head, const FrameLayout& layout,
                           std::uint32_t frame_size, std::uint32_t payload_max)
    : layout_(layout), frame_size_(frame_size), payload_max_(payload_max) {
  VMBUSD_ASSERT(layout.protocol == kProtocolTcp && layout.payload_offset <= head.size() &&
                layout.payload_offset <= head_.size() && layout.payload_offset <= frame_size &&
                payload_max != 0);
  std::memcpy(head_.data(), head.data(), layout.payload_offset);
  const std::uint32_t payload = frame_size - layout.payload_offset;
  count_ = std::max(1u, (payload + payload_max - 1) / payload_max);
}

TcpSegmenter::Segment TcpSegmenter::segment(std::uint32_t index) const {
  const std::uint32_t offset = layout_.payload_offset + index * payload_max_;
  return {offset, std::min(payload_max_, frame_size_ - offset)};
}

void TcpSegmenter::write_header(std::uint32_t index, const ChecksumSum& payload_sum,
                                std::span<std::byte> out) const {
  VMBUSD_ASSERT(out.size() >= header_size() && index < count_);
  out = out.first(header_size());
  std::memcpy(out.data(), head_.data(), out.size());
  const std::uint32_t payload_size = segment(index).payload_size;
  const std::uint32_t ip_size = layout_.payload_offset - layout_.ip_offset + payload_size;
  if (layout_.ip_version == 4) {
    store_be16(out, layout_.ip_offset + kIpv4TotalLength, static_cast<std::uint16_t>(ip_size));
    const std::uint16_t id = load_be16(head_, layout_.ip_offset + kIpv4Identification);
    store_be16(out, layout_.ip_offset + kIpv4Identification, static_cast<std::uint16_t>(id + index));
    write_ipv4_checksum(out, layout_);
  } else {
    store_be16(out, layout_.ip_offset + kIpv6PayloadLength,
               static_cast<std::uint16_t>(ip_size - kIpv6HeaderSize));
  }

  const std::uint32_t tcp = layout_.transport_offset;
  BigEndian32 sequence;
  std::memcpy(&sequence, head_.data() + tcp + kTcpSequence, sizeof sequence);
  sequence = sequence + index * payload_max_;
  std::memcpy(out.data() + tcp + kTcpSequence, &sequence, sizeof sequence);
  auto flags = static_cast<std::uint8_t>(out[tcp + kTcpFlags]);
  if (index != 0) flags &= static_cast<std::uint8_t>(~kTcpCwr);
  if (index + 1 != count_) flags &= static_cast<std::uint8_t>(~(kTcpFin | kTcpPush));
  out[tcp + kTcpFlags] = static_cast<std::byte>(flags);

  const std::uint32_t header_size_tcp = layout_.payload_offset - tcp;
  store_word(out, tcp + kTcpChecksum, 0);
  ChecksumSum sum = pseudo_header_sum(out, layout_, header_size_tcp + payload_size);
  sum.add(out.subspan(tcp, header_size_tcp));
  sum.add_word(payload_sum.fold());
  store_word(out, tcp + kTcpChecksum, sum.checksum());
}

}  // namespace vmbusd::netvsp
