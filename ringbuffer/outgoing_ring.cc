#include "ringbuffer/outgoing_ring.h"

#include <algorithm>
#include <array>

namespace vmbusd::ring {

Result<void> OutgoingRing::attach() {
  const std::uint32_t write_index = shared(&ControlPage::write_index).load(std::memory_order_relaxed);
  if (!valid_index(write_index, size())) {
    return fail(Errc::kRingCorrupt, "write_index is outside the ring or misaligned");
  }
  VMBUSD_CHECK(load_read_index());
  write_position_ = write_index;
  published_position_ = write_index;
  linear_room_ = 0;
  signal_due_ = false;
  clear_space();
  // Linux's reader never signals room in a ring without this. [linux: hv_pkt_iter_close] Relaxed: the
  // channel's open message orders it.
  shared(&ControlPage::feature_bits).store(kFeaturePendingSendSize, std::memory_order_relaxed);
  return {};
}

Result<void> OutgoingRing::take_written(std::uint32_t position) {
  if (!valid_index(position, size()) || ring_distance(write_position_, position, size()) > free_bytes()) {
    return fail(Errc::kRingCorrupt, "what is said to be written is more than there is room");
  }
  write_position_ = position;
  return {};
}

Result<std::uint32_t> OutgoingRing::load_read_index() {
  // seq_cst: an acquire that pairs with the consumer's store of read_index when it is done with the bytes
  // (hv_pkt_iter_close; IncomingRing::release), and the second half of the full barrier in arm_space().
  const std::uint32_t read_index = shared(&ControlPage::read_index).load(std::memory_order_seq_cst);
  if (!valid_index(read_index, size())) {
    return fail(Errc::kRingCorrupt, "read_index is outside the ring or misaligned");
  }
  read_position_ = read_index;
  return read_index;
}

// For a packet that the known linear room does not hold: looks for more room, then for pieces of it.
Result<bool> OutgoingRing::write_in_pieces(PacketToWrite packet) {
  const std::uint32_t needed =
      packet_size(packet.extension.size(), packet.payload.size() + packet.payload_tail.size());
  const PacketDescriptor descriptor = describe(packet, needed - kTrailerSize);
  if (needed > free_bytes()) {
    if (needed > size() - kPacketAlign) return fail(Errc::kLimit, "packet is larger than the ring");
    VMBUSD_CHECK(load_read_index());
    if (needed > free_bytes()) return false;
  }
  if (std::byte* const at = memory_.view(write_position_, needed)) {
    place_linear(at, descriptor, packet, write_position_);
  } else {
    place_in_pieces(descriptor, packet);
  }
  write_position_ = ring_advance(write_position_, needed, size());
  const std::uint32_t free_end = ring_advance(write_position_, free_bytes(), size());
  linear_room_ = memory_.is_linear() ? ring_run(write_position_, free_end, size()) : 0;
  return true;
}

void OutgoingRing::place_in_pieces(const PacketDescriptor& descriptor, const PacketToWrite& packet) {
  std::uint32_t at = write_position_;
  const auto place = [&](std::span<const std::byte> bytes) {
    if (bytes.empty()) return;
    memory_.copy_in(at, bytes);
    at = ring_advance(at, static_cast<std::uint32_t>(bytes.size()), size());
  };
  constexpr std::array<std::byte, kPacketAlign> kZeros{};
  const std::size_t payload_size = packet.payload.size() + packet.payload_tail.size();
  const std::uint64_t trailer = std::uint64_t{write_position_} << 32;
  place(wire_bytes(descriptor));
  place(packet.extension);
  place(packet.payload);
  place(packet.payload_tail);
  place(std::span(kZeros).first((kPacketAlign - payload_size % kPacketAlign) % kPacketAlign));
  place(wire_bytes(trailer));
}

Result<bool> OutgoingRing::arm_space(std::uint32_t bytes) {
  const std::uint32_t most = size() - kPacketAlign;
  VMBUSD_ASSERT(bytes <= most);
  // The guest compares its room by the shared write_index: with packets that it cannot see it would find the
  // room there already and never signal.
  if (publisher_ != nullptr) publisher_->before_publishing();
  VMBUSD_TRY(const bool due, commit());
  signal_due_ = due;
  if (publisher_ != nullptr) publisher_->published();
  // A quarter of the ring at least, so that a full ring does not cost a signal a packet. [openvmm:
  // vmbus_async/src/queue.rs]
  const std::uint32_t wanted =
      std::min(std::max(bytes, size() / 4) + kPacketAlign - 1, most) & ~(kPacketAlign - 1);
  // seq_cst exchange, a full barrier between the store of pending_send_size and the load of read_index. Its
  // partner is the consumer's store of read_index, full barrier, load of pending_send_size
  // (hv_pkt_iter_close; IncomingRing::release): it sees the request, or we see its room.
  shared(&ControlPage::pending_send_size).exchange(wanted, std::memory_order_seq_cst);
  space_armed_ = true;
  VMBUSD_CHECK(load_read_index());
  if (free_bytes() < bytes) return true;
  clear_space();
  return false;
}

void OutgoingRing::clear_space() {
  // Relaxed: a reader that still sees the request signals once too often.
  shared(&ControlPage::pending_send_size).store(0, std::memory_order_relaxed);
  space_armed_ = false;
}

Result<std::uint32_t> OutgoingRing::writable() {
  VMBUSD_CHECK(load_read_index());
  return free_bytes();
}

}  // namespace vmbusd::ring
