// RNDIS data messages: reading the guest's, laying out ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "base/result.h"
#include "netvsp/rndis.h"

namespace vmbusd::netvsp {

inline constexpr std::uint32_t kEthernetHeaderSize = 14;

// The per-packet infos of a transmitted message that we act on; others are ignored.
struct TransmitInfo {
  bool has_checksum = false;
  bool has_large_send = false;
  bool has_vlan = false;
  std::uint32_t checksum = 0;    // kTxChecksum*
  std::uint32_t large_send = 0;  // kLargeSend*
  std::uint32_t vlan = 0;        // vlan_info_from_tci()

  [[nodiscard]] bool any() const { return (has_checksum | has_large_send | has_vlan) != 0; }
};

struct TransmitMessage {
  std::uint32_t message_length;
  std::uint32_t frame_offset;  // from the message's start
  std::uint32_t frame_size;    // at least kEthernetHeaderSize
  TransmitInfo info;
};

// Bytes of a message that must be at hand for parse_transmit_message(), unless it is shorter: the header and
// all infos. Drivers need less than half of it.
inline constexpr std::uint32_t kMessageHeadMax = 256;

namespace detail {

[[nodiscard, gnu::always_inline]] inline Result<TransmitInfo> parse_infos(std::span<const std::byte> bytes) {
  TransmitInfo info;
  while (!bytes.empty()) {
    PpiHeader header;
    if (!read_wire(bytes, header)) [[unlikely]]
      return fail(Errc::kBadMessage, "per-packet info is cut short");
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

}  // namespace detail

// Parses a PACKET message. `head`: private copy of its first bytes; `available`: how many bytes there are in
// all, other messages behind included. Errc::kBadMessage where a length or offset lies, or infos lie outside
// `head`. Inlined always: it runs for every packet.
[[nodiscard, gnu::always_inline]] inline Result<TransmitMessage> parse_transmit_message(
    std::span<const std::byte> head, std::uint64_t available) {
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
  Result<TransmitMessage> message(TransmitMessage{
      packet.header.message_length, static_cast<std::uint32_t>(frame_offset), packet.data_length, {}});
  if (packet.ppi_length != 0) {
    const std::uint64_t begin = std::uint64_t{packet.ppi_offset} + kRndisOffsetBase;
    const std::uint64_t end = begin + packet.ppi_length;
    if (begin < sizeof packet || end > length || end > head.size()) {
      return fail(Errc::kBadMessage, "per-packet infos are outside the message's head");
    }
    VMBUSD_TRY(message->info, detail::parse_infos(head.subspan(begin, packet.ppi_length)));
  }
  return message;
}

// How a sub-allocation of the receive buffer is used. The frame is read straight into it, before we know
// which infos it will have, so it always begins behind room for all of them:
//
//   0           44                 112                              size - 36
//   | RndisPacket | Ppi x 0..4 | gap | frame or fragment of it        | unused |
//
// The infos that are there stand right behind the header. [linux: rndis_filter_receive_data; dpdk:
// hn_rndis_rx_data: both take the data where data_offset says]
inline constexpr std::uint32_t kReceiveFrameOffset = 112;
inline constexpr std::uint32_t kReceiveInfosMax = 4;
static_assert(sizeof(RndisPacket) + kReceiveInfosMax * sizeof(Ppi) <= kReceiveFrameOffset);
// New Windows guests keep the end of each sub-allocation for themselves. [reference: netvsp 2.3]
inline constexpr std::uint32_t kReceiveTail = 36;

// The head of a received message under construction.
struct ReceiveHead {
  RndisPacket packet;
  Ppi infos[kReceiveInfosMax];

  void add(PpiType type, std::uint32_t data) {
    packet.ppi_offset = sizeof(RndisPacket) - kRndisOffsetBase;
    infos[packet.ppi_length / sizeof(Ppi)] = {{sizeof(Ppi), type, sizeof(PpiHeader)}, data};
    packet.ppi_length += sizeof(Ppi);
  }
  // Bytes of it that are to be written.
  [[nodiscard]] std::uint32_t size() const {
    return static_cast<std::uint32_t>(sizeof packet) + packet.ppi_length;
  }
};
static_assert(offsetof(ReceiveHead, infos) == sizeof(RndisPacket));

// A head without infos for a frame (or fragment) of `frame_size` bytes that stands at `frame_offset`. The
// infos' offset stays 0 until there is one: with another Linux complains of their length for each packet.
// [linux: drivers/net/hyperv/rndis_filter.c, rndis_get_ppi]
[[nodiscard]] inline ReceiveHead make_receive_head(std::uint32_t frame_offset, std::uint32_t frame_size) {
  ReceiveHead head;  // infos are written as they are added
  head.packet = {};
  head.packet.header = {RndisType::kPacket, frame_offset + frame_size};
  head.packet.data_offset = frame_offset - kRndisOffsetBase;
  head.packet.data_length = frame_size;
  return head;
}

}  // namespace vmbusd::netvsp
