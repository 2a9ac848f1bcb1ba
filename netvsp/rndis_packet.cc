#include "netvsp/rndis_packet.h"

#include <cstring>

namespace vmbusd::netvsp {

namespace {

Result<TransmitInfo> parse_infos(std::span<const std::byte> bytes) {
  TransmitInfo info;
  while (!bytes.empty()) {
    PpiHeader header;
    if (!read_wire(bytes, header)) return fail(Errc::kBadMessage, "per-packet info is cut short");
    if (header.size < sizeof header || header.size > bytes.size() || header.size % 4 != 0) {
      return fail(Errc::kBadMessage, "per-packet info has a bad size");
    }
    std::uint32_t* value = nullptr;
    bool* has = nullptr;
    switch (header.type) {
      case PpiType::kChecksum:
        value = &info.checksum;
        has = &info.has_checksum;
        break;
      case PpiType::kLargeSend:
        value = &info.large_send;
        has = &info.has_large_send;
        break;
      case PpiType::k8021q:
        value = &info.vlan;
        has = &info.has_vlan;
        break;
      default:  // hash values and what we do not know: no business of ours
        break;
    }
    if (value != nullptr) {
      if (header.data_offset > header.size || header.size - header.data_offset < sizeof *value) {
        return fail(Errc::kBadMessage, "per-packet info has no data");
      }
      std::memcpy(value, bytes.data() + header.data_offset, sizeof *value);
      *has = true;
    }
    bytes = bytes.subspan(header.size);
  }
  return info;
}

}  // namespace

Result<TransmitMessage> parse_transmit_message(std::span<const std::byte> head, std::uint64_t available) {
  RndisPacket packet;
  if (!read_wire(head, packet)) return fail(Errc::kBadMessage, "RNDIS message is cut short");
  if (packet.header.type != RndisType::kPacket) return fail(Errc::kBadMessage, "RNDIS message is no packet");
  const std::uint64_t length = packet.header.message_length;
  if (length < sizeof packet || length > available) {
    return fail(Errc::kBadMessage, "RNDIS message has a bad length");
  }
  // All sums below are of 32-bit values in 64 bits.
  const std::uint64_t frame_offset = std::uint64_t{packet.data_offset} + kRndisOffsetBase;
  if (frame_offset < sizeof packet || frame_offset + packet.data_length > length ||
      packet.data_length < kEthernetHeaderSize) {
    return fail(Errc::kBadMessage, "RNDIS message's frame is outside it or too short");
  }
  TransmitMessage message{packet.header.message_length, static_cast<std::uint32_t>(frame_offset),
                          packet.data_length, TransmitInfo{}};
  if (packet.ppi_length != 0) {
    const std::uint64_t begin = std::uint64_t{packet.ppi_offset} + kRndisOffsetBase;
    const std::uint64_t end = begin + packet.ppi_length;
    if (begin < sizeof packet || end > length || end > head.size()) {
      return fail(Errc::kBadMessage, "per-packet infos are outside the message's head");
    }
    VMBUSD_TRY(message.info, parse_infos(head.subspan(begin, packet.ppi_length)));
  }
  return message;
}

}  // namespace vmbusd::netvsp
