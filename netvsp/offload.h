// Offloads of one frame: from the guest's per-packet infos to virtio_net_hdr and back. Works on private
// copies of headers; payload is only summed or copied.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/result.h"
#include "netvsp/frame.h"
#include "netvsp/nic_state.h"
#include "netvsp/rndis_packet.h"
#include "netvsp/virtio_net.h"

namespace vmbusd::netvsp {

// Guest to network.

// Frames longer than the MTU allows only as large sends. A tag may stand in the frame beside.
[[nodiscard]] constexpr std::uint32_t frame_size_max(std::uint32_t mtu) {
  return mtu + kEthernetHeaderSize + kVlanTagSize;
}

struct TransmitPlan {
  VirtioNetHeader header;
  std::uint32_t frame_size;  // to send: without link-layer padding where the checksum is to be completed
};

// Makes the frame right for a back end that takes virtio_net_hdr: fixes lengths and checksum fields of a
// large send, and gives the transport checksum's field the pseudo-header sum, whatever the guest left there.
// `head`: private copy of the frame's first bytes, min(frame_size, kFrameHeadMax) at least; is changed.
// Errc::kBadMessage where the frame is not what the infos say, or too long.
[[nodiscard]] Result<TransmitPlan> plan_transmit(std::span<std::byte> head, std::uint32_t frame_size,
                                                 const TransmitInfo& info, std::uint32_t mtu);

// Inserts a tag behind the addresses: `frame` must have kVlanTagSize bytes of room before it, where the frame
// begins afterwards.
void insert_vlan_tag(std::byte* frame, std::uint16_t tci);

// Does what a back end without virtio_net_hdr cannot: completes the checksum that `header` asks for. `head`
// and then `rest` are the frame, of frame_size bytes; `rest` may be guest memory, so the result is right only
// if the guest leaves it alone.
void complete_checksum(const VirtioNetHeader& header, std::span<std::byte> head, std::span<const iovec> rest);

// Network to guest.

enum class ReceiveAction : std::uint8_t {
  kDeliver,    // as it is, with the infos
  kCoalesced,  // a large TCP packet: as fragments (RSC) where the guest takes it
  kSegment,    // a large TCP packet that must be cut up
  kDrop,       // a header that the back end should not have made
};

struct ReceivePlan {
  ReceiveAction action = ReceiveAction::kDeliver;
  std::uint32_t checksum_info = 0;  // kRxChecksum*; 0: no info, the guest checks for itself
  // A checksum to complete before the frame is delivered: over [start, frame_size), stored at start + offset.
  bool complete = false;
  std::uint16_t checksum_start = 0;
  std::uint16_t checksum_offset = 0;
  // Where set, the field is to hold this sum before (the back end left something else there).
  std::optional<std::uint16_t> field_before;
  FrameLayout layout;  // where action is kCoalesced or kSegment
};

// `head`: private copy of the frame's first bytes, min(frame_size, kFrameHeadMax) at least. `offloads`: k*
// bits that the guest has on. Every TCP or UDP frame whose checksum is not complete is told so by `complete`,
// with the guest's offloads on or off: some guests switch checking back on without telling [linux:
// netvsc_set_features], so no frame may have a wrong sum in it.
[[nodiscard]] ReceivePlan plan_receive(const VirtioNetHeader& header, std::span<const std::byte> head,
                                       std::uint32_t frame_size, std::uint32_t offloads);

}  // namespace vmbusd::netvsp
