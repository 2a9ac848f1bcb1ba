#include "netvsp/receiver.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"
#include "base/probes.h"
#include "netvsp/segment.h"

namespace vmbusd::netvsp {

namespace {

// What is copied of each frame, by one move: addresses, tag and type.
constexpr std::uint32_t kShortHead = 64;
constexpr std::uint64_t kBroadcast = 0xffff'ffff'ffff;

// A SEND_RNDIS_PACKET of ours: no send section.
struct DataMessage {
  NvspSendRndisPacket packet;
  std::array<std::byte, kNvspMessageSize - sizeof(NvspSendRndisPacket)> padding;
};
static_assert(sizeof(DataMessage) == kNvspMessageSize);
constexpr DataMessage kDataMessage = {{NvspType::kSendRndisPacket, NvspChannelType::kData, kNoSendSection, 0},
                                      {}};
constexpr DataMessage kControlMessage = {
    {NvspType::kSendRndisPacket, NvspChannelType::kControl, kNoSendSection, 0}, {}};

// Bytes [offset, offset + size) of a filled buffer's frame area, piece by piece.
template <typename Function>
void for_pieces(const ReceiveBuffer& buffer, std::uint32_t offset, std::uint32_t size, Function&& function) {
  for (std::uint32_t i = 1; i <= buffer.piece_count && size != 0; ++i) {
    const auto length = static_cast<std::uint32_t>(buffer.pieces[i].iov_len);
    if (offset >= length) {
      offset -= length;
      continue;
    }
    const std::uint32_t part = std::min(size, length - offset);
    function(std::span(static_cast<std::byte*>(buffer.pieces[i].iov_base) + offset, part));
    offset = 0;
    size -= part;
  }
}

}  // namespace

bool Receiver::large_frames(const ReceiveLayout& layout, std::uint32_t count) {
  const std::uint32_t room = layout.sub_allocation_size - kReceiveFrameOffset - kReceiveTail;
  const std::uint32_t slots = (kLargeFrameMax + room - 1) / room;
  // Two in flight at least, and as much again with the guest.
  return count >= 4 * slots + kControlReserve + kSegmentReserve;
}

Result<void> Receiver::open(BufferMap map, const ReceiveLayout& layout, std::uint32_t first,
                            std::uint32_t count, std::uint16_t set_id, bool large, const Records& records) {
  VMBUSD_ASSERT(!is_open_ && lent_ == 0);
  VMBUSD_ASSERT(std::uint64_t{first + count} * layout.sub_allocation_size <= map.size());
  layout_ = layout;
  first_ = first;
  count_ = count;
  const std::uint32_t room = layout.sub_allocation_size - kReceiveFrameOffset - kReceiveTail;
  slots_wanted_ = large ? (kLargeFrameMax + room - 1) / room : 1;

  VMBUSD_CHECK(take_map(std::move(map)));

  reserve_ = std::min(kControlReserve + (large ? kSegmentReserve : 0), count / 4);
  with_guest_ = records.records.first(count);
  publications_ = records.publications;
  given_back_.clear();
  given_back_.reserve(devices::Channel::kServiceBudget);
  VMBUSD_CHECK(find_free(records.taken_up));
  extension_.header = {set_id, 0, 0, 0};
  batched_ = 0;

  // At most half of the share is armed, so that the other half can be with the guest.
  buffer_count_ = std::clamp(count / (2 * slots_wanted_), 1u, kBuffersMax);
  buffers_ = std::make_unique<ReceiveBuffer[]>(buffer_count_);
  if (large) staging_ = std::make_unique<std::byte[]>(kLargeFrameMax);
  is_open_ = true;
  for (std::uint32_t i = 0; i < buffer_count_; ++i) settle(buffers_[i]);
  return {};
}

// All that the guest does not have.
Result<void> Receiver::find_free(bool taken_up) {
  std::vector<bool> taken(count_);
  for (std::uint32_t first = 0; first < count_; ++first) {
    ReceiveRecord& record = with_guest_[first];
    if (!taken_up || !record.with_guest(*publications_)) {
      record.count = 0;
      continue;
    }
    record.given_back = ReceiveRecord::kNever;  // it will be read again
    std::uint32_t slot = first;
    for (std::uint32_t left = record.count; left != 0; --left) {
      if (slot >= count_ || taken[slot]) return fail(Errc::kProtocol, "a received packet that cannot be");
      taken[slot] = true;
      slot = with_guest_[slot].next - first_;
    }
  }
  free_.clear();
  free_.reserve(count_);
  for (std::uint32_t slot = count_; slot > 0; --slot) {
    if (!taken[slot - 1]) free_.push_back(first_ + slot - 1);
  }
  return {};
}

Result<void> Receiver::rebind(BufferMap map) {
  VMBUSD_ASSERT(is_open_ && lent_ == 0);
  VMBUSD_CHECK(take_map(std::move(map)));
  for (std::uint32_t i = 0; i < buffer_count_; ++i) rebuild_pieces(buffers_[i]);
  return {};
}

Result<void> Receiver::take_map(BufferMap map) {
  map_ = std::move(map);
  const std::uint32_t size = layout_.sub_allocation_size;
  // A guest may lend its buffer in pieces of a few bytes; a page may be split in two where ranges do not
  // begin at one.
  single_ = true;
  const std::uint32_t pieces_max = size / 4096 + (size % 4096 != 0 ? 1 : 0) + 1;
  VMBUSD_ASSERT(pieces_max * slots_wanted_ <= kReceivePiecesMax);
  for (std::uint32_t slot = first_; slot < first_ + count_; ++slot) {
    std::uint32_t pieces = 0;
    const std::uint64_t begin = std::uint64_t{slot} * size;
    for (std::uint64_t at = begin; at < begin + size; ++pieces)
      at += map_.piece(at, begin + size - at).size();
    if (pieces > pieces_max) return fail(Errc::kBadGpadl, "receive buffer is made of too many pieces");
    single_ &= pieces == 1;
  }
  hosts_.clear();
  if (single_) {
    hosts_.reserve(count_);
    for (std::uint32_t slot = first_; slot < first_ + count_; ++slot) {
      hosts_.push_back(map_.piece(std::uint64_t{slot} * size, size).data());
    }
  }
  return {};
}

bool Receiver::all_here() const {
  return std::all_of(with_guest_.begin(), with_guest_.end(),
                     [](const ReceiveRecord& record) { return record.count == 0; });
}

void Receiver::close() {
  VMBUSD_ASSERT(lent_ == 0);
  is_open_ = false;
  ready_.clear();
  incomplete_.clear();
  filled_.clear();
  buffers_.reset();
  staging_.reset();
  map_ = BufferMap();
  for (ReceiveRecord& record : with_guest_) record.count = 0;
  given_back_.clear();
  count_ = 0;
  batched_ = 0;
}

// Slots of buffers.

void Receiver::add_slot(ReceiveBuffer& buffer, std::uint32_t slot) {
  buffer.slots[buffer.slot_count++] = slot;
  std::uint64_t at = std::uint64_t{slot} * layout_.sub_allocation_size + kReceiveFrameOffset;
  std::uint32_t left = layout_.sub_allocation_size - kReceiveFrameOffset - kReceiveTail;
  buffer.room += left;
  while (left != 0) {
    const std::span<std::byte> piece = map_.piece(at, left);
    buffer.pieces[++buffer.piece_count] = {piece.data(), piece.size()};
    at += piece.size();
    left -= static_cast<std::uint32_t>(piece.size());
  }
}

void Receiver::rebuild_pieces(ReceiveBuffer& buffer) {
  const std::uint32_t slots = buffer.slot_count;
  buffer.slot_count = 0;
  buffer.piece_count = 0;
  buffer.room = 0;
  for (std::uint32_t i = 0; i < slots; ++i) add_slot(buffer, buffer.slots[i]);
}

// Takes the first `used` slots out: others have them now. The order of the rest is free.
void Receiver::drop_slots(ReceiveBuffer& buffer, std::uint32_t used) {
  if (!single_) {
    std::copy(buffer.slots.begin() + used, buffer.slots.begin() + buffer.slot_count, buffer.slots.begin());
    buffer.slot_count -= used;
    rebuild_pieces(buffer);
    return;
  }
  const std::uint32_t room = layout_.sub_allocation_size - kReceiveFrameOffset - kReceiveTail;
  for (std::uint32_t i = used; i > 0; --i) {
    const std::uint32_t last = --buffer.slot_count;
    buffer.slots[i - 1] = buffer.slots[last];
    buffer.pieces[i] = buffer.pieces[last + 1];
  }
  buffer.piece_count = buffer.slot_count;
  buffer.room -= used * room;
}

void Receiver::refill(ReceiveBuffer& buffer) {
  while (buffer.slot_count < slots_wanted_ && free_.size() > reserve_) {
    add_slot(buffer, free_.back());
    free_.pop_back();
  }
}

// Puts an unlinked buffer into the list where it belongs.
void Receiver::settle(ReceiveBuffer& buffer) {
  refill(buffer);
  (buffer.slot_count == slots_wanted_ ? ready_ : incomplete_).push_back(buffer);
}

void Receiver::replenish() {
  while (!incomplete_.empty() && free_.size() > reserve_) {
    ReceiveBuffer& buffer = incomplete_.front();
    refill(buffer);
    if (buffer.slot_count < slots_wanted_) return;
    incomplete_.pop_front();
    ready_.push_back(buffer);
  }
}

ReceiveBuffer* Receiver::take_buffer() {
  if (ready_.empty()) return nullptr;
  ReceiveBuffer& buffer = ready_.front();
  ready_.pop_front();
  ++lent_;
  return &buffer;
}

void Receiver::received(ReceiveBuffer& buffer, std::uint32_t frame_size) {
  VMBUSD_ASSERT(lent_ != 0);
  --lent_;
  VMBUSD_PROBE(net_received, &buffer, frame_size);
  buffer.frame_size = frame_size;
  filled_.push_back(buffer);
}

void Receiver::returned(ReceiveBuffer& buffer) {
  VMBUSD_ASSERT(lent_ != 0);
  --lent_;
  ready_.push_front(buffer);
}

// Packets.

void Receiver::completed(std::uint64_t transaction_id) {
  // The packet's first sub-allocation names it. DPDK takes the id for an index below their number. [dpdk:
  // hn_rx_buf_init]
  const std::uint64_t index = transaction_id - first_;
  if (index >= count_) return;
  ReceiveRecord& record = with_guest_[index];
  if (record.count == 0 || record.given_back != ReceiveRecord::kNever) return;
  record.given_back = publications_->releases + 1;
  given_back_.push_back(static_cast<std::uint32_t>(transaction_id));
}

void Receiver::published() {
  for (const std::uint32_t first : given_back_) {
    std::uint32_t left = std::exchange(with_guest_[first - first_].count, 0);
    for (std::uint32_t slot = first; left != 0; --left) {
      free_.push_back(slot);
      slot = with_guest_[slot - first_].next;
    }
  }
  given_back_.clear();
}

[[gnu::always_inline]] inline void Receiver::batch(std::uint32_t slot, std::uint32_t message_length) {
  extension_.ranges[batched_] = {message_length, slot * layout_.sub_allocation_size};
  if (batched_ == 0) {
    batch_first_ = slot;
  } else {
    with_guest_[batch_last_ - first_].next = slot;
  }
  batch_last_ = slot;
  ++batched_;
}

Result<bool> Receiver::flush(ring::OutgoingRing& ring, NvspChannelType type) {
  if (batched_ == 0) return true;
  VMBUSD_PROBE(net_flush, this, batched_);
  extension_.header.range_count = batched_;
  ring::PacketToWrite packet;
  packet.type = ring::PacketType::kTransferPages;
  packet.completion_requested = true;
  packet.transaction_id = batch_first_;
  packet.extension = std::span(reinterpret_cast<const std::byte*>(&extension_),
                               sizeof extension_.header + batched_ * sizeof(ring::TransferPageRange));
  packet.payload = std::as_bytes(
      std::span<const DataMessage, 1>(type == NvspChannelType::kData ? &kDataMessage : &kControlMessage, 1));
  VMBUSD_TRY(bool written, ring.write(packet));
  if (!written) {
    const std::uint32_t size =
        ring::OutgoingRing::packet_size(packet.extension.size(), packet.payload.size());
    VMBUSD_TRY(const bool waiting, ring.arm_space(size));
    if (waiting) return false;
    VMBUSD_TRY(written, ring.write(packet));
    if (!written) return false;
  }
  with_guest_[batch_first_ - first_].lend(publications_->commits + 1, batched_);
  batched_ = 0;
  ++counters_.rx_transfer_packets;
  return true;
}

Result<bool> Receiver::deliver_control(ring::OutgoingRing& ring, std::span<const std::byte> message) {
  if (!is_open_ || free_.empty()) return false;
  VMBUSD_ASSERT(message.size() <= layout_.sub_allocation_size - kReceiveTail);
  VMBUSD_TRY(const bool flushed, flush(ring));
  if (!flushed) return false;
  const std::uint32_t slot = free_.back();
  write(slot, 0, message);
  batch(slot, static_cast<std::uint32_t>(message.size()));
  VMBUSD_TRY(const bool written, flush(ring, NvspChannelType::kControl));
  if (written) {
    free_.pop_back();
  } else {
    batched_ = 0;  // nothing of it is kept; the caller tries again
  }
  return written;
}

Result<bool> Receiver::deliver(ring::OutgoingRing& ring, const Wants& wants) {
  const std::uint32_t frame_max =
      std::min(frame_size_max(wants.mtu), layout_.sub_allocation_size - kReceiveFrameOffset - kReceiveTail);
  while (!filled_.empty()) {
    if (batched_ == kRangesMax) {
      VMBUSD_TRY(const bool flushed, flush(ring));
      if (!flushed) return false;
    }
    ReceiveBuffer& buffer = filled_.front();
    VMBUSD_PROBE(net_deliver, &buffer);
    if (deliver_plain(buffer, wants, frame_max)) {
      filled_.pop_front();
      ready_.push_back(buffer);
      continue;
    }
    VMBUSD_TRY(const bool done, deliver_one(ring, buffer, wants));
    if (!done) return false;
    filled_.pop_front();
    settle(buffer);
  }
  return flush(ring);
}

// Frames.

void Receiver::write(std::uint32_t slot, std::uint32_t offset, std::span<const std::byte> bytes) {
  std::uint64_t at = std::uint64_t{slot} * layout_.sub_allocation_size + offset;
  while (!bytes.empty()) {
    const std::span<std::byte> to = map_.piece(at, bytes.size());
    std::memcpy(to.data(), bytes.data(), to.size());
    at += to.size();
    bytes = bytes.subspan(to.size());
  }
}

void Receiver::write_head(std::uint32_t slot, const ReceiveHead& head) {
  const std::uint64_t at = std::uint64_t{slot} * layout_.sub_allocation_size;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(&head), head.size());
  const std::span<std::byte> to = map_.piece(at, kReceiveFrameOffset);
  if (to.size() == kReceiveFrameOffset) {
    // All of the room is ours, so a copy of known size does; what is behind the infos is private to us no
    // more than the gap itself, so it goes out as zeros.
    std::memcpy(to.data(), bytes.data(), sizeof(RndisPacket));
    for (std::uint32_t i = 0; i < head.packet.ppi_length; i += sizeof(Ppi)) {
      std::memcpy(to.data() + sizeof(RndisPacket) + i, bytes.data() + sizeof(RndisPacket) + i, sizeof(Ppi));
    }
    return;
  }
  write(slot, 0, bytes);
}

// Copies the frame's first bytes to head_: kFrameHeadMax or all, at least kShortHead bytes of the buffer.
// Returns how many are the frame's.
std::uint32_t Receiver::copy_head(const ReceiveBuffer& buffer, std::uint32_t size) {
  std::uint32_t copied = 0;
  for_pieces(buffer, 0, std::min(size, kFrameHeadMax), [this, &copied](std::span<std::byte> piece) {
    ring::copy_from_shared(head_.data() + copied, piece.data(), piece.size());
    copied += static_cast<std::uint32_t>(piece.size());
  });
  return copied;
}

bool Receiver::wanted(std::uint64_t destination, std::uint32_t size, const Wants& wants) {
  if ((destination & 1) == 0) [[likely]] {
    if ((wants.filter & kFilterDirected) != 0 && destination == wants.mac) return true;
    return (wants.filter & kFilterPromiscuous) != 0;
  }
  const bool broadcast = destination == kBroadcast;
  const std::uint32_t any = broadcast ? kFilterBroadcast : kFilterMulticast | kFilterAllMulticast;
  if ((wants.filter & (any | kFilterPromiscuous)) == 0) return false;
  ++(broadcast ? counters_.rx_broadcast_packets : counters_.rx_multicast_packets);
  (broadcast ? counters_.rx_broadcast_bytes : counters_.rx_multicast_bytes) += size;
  return true;
}

void Receiver::count_received(const Frame& frame) {
  ++counters_.rx_packets;
  counters_.rx_bytes += frame.size;
}

// Takes the tag behind the addresses out of the private head. The buffer stays as it is until
// place_addresses(), for delivery may have to be tried again.
void Receiver::strip_tag(Frame& frame) {
  frame.tagged = true;
  frame.tci = load_be16(frame.head, kEtherType + 2);
  std::memmove(frame.head.data() + kVlanTagSize, frame.head.data(), kEtherType);
  frame.head = frame.head.subspan(kVlanTagSize);
  frame.offset += kVlanTagSize;
  frame.size -= kVlanTagSize;
  const std::uint16_t start = frame.header.checksum_start;
  frame.header.checksum_start = static_cast<std::uint16_t>(start < kVlanTagSize ? 0 : start - kVlanTagSize);
}

// Moves the addresses to where the frame begins without its tag.
void Receiver::place_addresses(const Frame& frame) {
  if (frame.tagged) write(frame.buffer->slots[0], frame.offset, frame.head.first(kEtherType));
}

// Stores the checksum that the plan asks for. The guest may change the payload under our feet: then it gets
// what it made.
void Receiver::complete_sum(const Frame& frame) {
  const ReceivePlan& plan = frame.plan;
  const std::uint32_t skip = frame.offset - kReceiveFrameOffset;
  const std::uint32_t field = plan.checksum_start + plan.checksum_offset;
  const auto store = [&](std::uint16_t word) {
    std::span<const std::byte> bytes = wire_bytes(word);
    for_pieces(*frame.buffer, skip + field, sizeof word, [&bytes](std::span<std::byte> piece) {
      std::memcpy(piece.data(), bytes.data(), piece.size());
      bytes = bytes.subspan(piece.size());
    });
  };
  if (plan.field_before) store(*plan.field_before);
  ChecksumSum sum;
  for_pieces(*frame.buffer, skip + plan.checksum_start, frame.size - plan.checksum_start,
             [&sum](std::span<std::byte> piece) { sum.add(piece); });
  // Zero would mean "no checksum" in UDP; its other form means the same sum everywhere.
  const std::uint16_t checksum = sum.checksum();
  store(checksum == 0 ? std::uint16_t{0xffff} : checksum);
}

ReceiveHead Receiver::head_of(const Frame& frame, std::uint32_t fragment_size, bool first) {
  ReceiveHead head = make_receive_head(first ? frame.offset : kReceiveFrameOffset, fragment_size);
  if (!first) return head;
  if (frame.plan.checksum_info != 0) head.add(PpiType::kChecksum, frame.plan.checksum_info);
  if (frame.tagged) head.add(PpiType::k8021q, vlan_info_from_tci(frame.tci));
  return head;
}

// All of deliver_one() for what most frames are: complete, in one piece, nothing to be told of it, and a
// sub-allocation there to take its place. False where it is something else; nothing has happened then.
[[gnu::always_inline]] inline bool Receiver::deliver_plain(ReceiveBuffer& buffer, const Wants& wants,
                                                           std::uint32_t frame_max) {
  const std::uint32_t size = buffer.frame_size;
  if (buffer.header.flags != 0 || buffer.header.gso_type != kVirtioGsoNone || !single_ || size > frame_max ||
      size < kEthernetHeaderSize || free_.size() <= reserve_) {
    return false;
  }
  std::byte* const frame = static_cast<std::byte*>(buffer.pieces[1].iov_base);
  std::uint64_t destination;
  std::uint16_t type;
  ring::copy_from_shared(reinterpret_cast<std::byte*>(&destination), frame, sizeof destination);
  ring::copy_from_shared(reinterpret_cast<std::byte*>(&type), frame + kEtherType, sizeof type);
  constexpr std::uint16_t kVlanAsStored = (kEtherTypeVlan & 0xff) << 8 | kEtherTypeVlan >> 8;
  destination &= kBroadcast;
  if ((wants.vlan && type == kVlanAsStored) || destination != wants.mac ||
      (wants.filter & kFilterDirected) == 0) {
    return false;
  }
  const std::uint32_t slot = buffer.slots[0];
  const ReceiveHead head = make_receive_head(kReceiveFrameOffset, size);
  std::memcpy(frame - kReceiveFrameOffset, &head.packet, sizeof head.packet);
  batch(slot, head.packet.header.message_length);
  const std::uint32_t next = free_.back();
  free_.pop_back();
  buffer.slots[0] = next;
  buffer.pieces[1].iov_base = hosts_[next - first_] + kReceiveFrameOffset;
  ++counters_.rx_packets;
  counters_.rx_bytes += size;
  return true;
}

// False where it is to be tried again when the ring has room. Else the buffer's used slots are gone.
Result<bool> Receiver::deliver_one(ring::OutgoingRing& ring, ReceiveBuffer& buffer, const Wants& wants) {
  Frame frame{&buffer, buffer.header, kReceiveFrameOffset, buffer.frame_size, false, 0, {}, {}};
  if (frame.size < kEthernetHeaderSize || frame.size > buffer.room) [[unlikely]] {
    ++counters_.rx_dropped;  // cut short by the read where it is longer
    return true;
  }
  const bool plain = buffer.header.flags == 0 && buffer.header.gso_type == kVirtioGsoNone;
  if (plain && buffer.pieces[1].iov_len >= kShortHead) [[likely]] {
    ring::copy_from_shared(head_.data(), static_cast<const std::byte*>(buffer.pieces[1].iov_base),
                           kShortHead);
    frame.head = std::span(head_).first(std::min(frame.size, kShortHead));
  } else {
    frame.head = std::span(head_).first(copy_head(buffer, frame.size));
  }
  std::uint64_t destination;
  std::memcpy(&destination, head_.data(), sizeof destination);
  if (!wanted(destination & kBroadcast, frame.size, wants)) {
    ++counters_.rx_filtered;
    return true;
  }
  if (wants.vlan && load_be16(frame.head, kEtherType) == kEtherTypeVlan &&
      frame.head.size() >= kEthernetHeaderSize + kVlanTagSize) {
    strip_tag(frame);
  }
  if (!plain) {
    frame.plan = plan_receive(frame.header, frame.head, frame.size, wants.offloads);
    if (frame.plan.action == ReceiveAction::kDrop) {
      ++counters_.rx_dropped;
      return true;
    }
    if (frame.plan.action == ReceiveAction::kSegment) return deliver_segments(ring, frame, wants);
  }
  if (frame.plan.action == ReceiveAction::kDeliver && frame.size > frame_size_max(wants.mtu)) {
    ++counters_.rx_dropped;
    return true;
  }
  const std::uint32_t end = frame.offset - kReceiveFrameOffset + frame.size;
  const std::uint32_t slot_room = layout_.sub_allocation_size - kReceiveFrameOffset - kReceiveTail;
  const std::uint32_t slots = (end + slot_room - 1) / slot_room;
  if (slots == 1) {
    deliver_whole(frame);
    return true;
  }
  if (frame.plan.action == ReceiveAction::kDeliver) {
    ++counters_.rx_dropped;
    return true;
  }
  return deliver_fragments(ring, frame, slots);
}

void Receiver::deliver_whole(Frame& frame) {
  place_addresses(frame);
  if (frame.plan.complete) complete_sum(frame);
  const std::uint32_t slot = frame.buffer->slots[0];
  const ReceiveHead head = head_of(frame, frame.size, true);
  write_head(slot, head);
  batch(slot, head.packet.header.message_length);
  drop_slots(*frame.buffer, 1);
  count_received(frame);
}

// Receive coalescing on the wire: one packet whose ranges are the fragments of one frame. [linux:
// rndis_get_ppi(IEEE 802.1Q..PKTINFO_ID) and rsc_add_data in rndis_filter.c]
Result<bool> Receiver::deliver_fragments(ring::OutgoingRing& ring, Frame& frame, std::uint32_t fragments) {
  static_assert(kReceiveSlotsMax <= kRangesMax);
  VMBUSD_TRY(const bool flushed, flush(ring));
  if (!flushed) return false;
  const std::uint32_t size = ring::OutgoingRing::packet_size(
      sizeof extension_.header + fragments * sizeof(ring::TransferPageRange), kNvspMessageSize);
  VMBUSD_TRY(const std::uint32_t writable, ring.writable());
  if (writable < size) {
    VMBUSD_TRY(const bool waiting, ring.arm_space(size));
    if (waiting) return false;
  }
  place_addresses(frame);
  if (frame.plan.complete) complete_sum(frame);
  const std::uint32_t slot_room = layout_.sub_allocation_size - kReceiveFrameOffset - kReceiveTail;
  std::uint32_t left = frame.size;
  ++fragment_id_;
  for (std::uint32_t i = 0; i < fragments; ++i) {
    const std::uint32_t room = i == 0 ? slot_room - (frame.offset - kReceiveFrameOffset) : slot_room;
    const std::uint32_t part = std::min(left, room);
    left -= part;
    ReceiveHead head = head_of(frame, part, i == 0);
    std::uint32_t id = kPacketIdVersion | kPacketIdSubAllocation | std::uint32_t{fragment_id_} << 16;
    if (i == 0) id |= kPacketIdFirst;
    if (i + 1 == fragments) id |= kPacketIdLast;
    head.add(PpiType::kPacketId, id);
    const std::uint32_t slot = frame.buffer->slots[i];
    write_head(slot, head);
    batch(slot, head.packet.header.message_length);
  }
  drop_slots(*frame.buffer, fragments);
  count_received(frame);
  return flush(ring);
}

// Cuts the packet up into frames of sub-allocations of their own.
Result<bool> Receiver::deliver_segments(ring::OutgoingRing& ring, Frame& frame, const Wants& wants) {
  const FrameLayout& layout = frame.plan.layout;
  const std::uint32_t headers = layout.payload_offset - layout.ip_offset;
  if (headers >= wants.mtu || staging_ == nullptr) {
    ++counters_.rx_dropped;
    return true;
  }
  const std::uint32_t payload_max = std::min<std::uint32_t>(frame.header.gso_size, wants.mtu - headers);
  const TcpSegmenter segmenter(frame.head, layout, frame.size, payload_max);
  const std::uint32_t slot_room = layout_.sub_allocation_size - kReceiveFrameOffset - kReceiveTail;
  const std::uint32_t end = frame.offset - kReceiveFrameOffset + frame.size;
  const std::uint32_t own = std::min((end + slot_room - 1) / slot_room, frame.buffer->slot_count);
  // All or nothing, in ring and sub-allocations.
  const std::uint32_t packets = segmenter.count() / kRangesMax + 2;
  const std::uint64_t ring_bytes =
      std::uint64_t{packets} * ring::OutgoingRing::packet_size(sizeof extension_, kNvspMessageSize);
  if (segmenter.count() > free_.size() + own || ring_bytes > ring.size() / 2) {
    ++counters_.rx_dropped;
    return true;
  }
  VMBUSD_TRY(const std::uint32_t writable, ring.writable());
  if (writable < ring_bytes) {
    VMBUSD_TRY(const bool waiting, ring.arm_space(static_cast<std::uint32_t>(ring_bytes)));
    if (waiting) return false;
  }

  std::uint32_t staged = 0;
  for_pieces(*frame.buffer, frame.offset - kReceiveFrameOffset, frame.size,
             [this, &staged](std::span<std::byte> piece) {
               ring::copy_from_shared(staging_.get() + staged, piece.data(), piece.size());
               staged += static_cast<std::uint32_t>(piece.size());
             });
  for (std::uint32_t i = 0; i < own; ++i) free_.push_back(frame.buffer->slots[i]);
  drop_slots(*frame.buffer, own);

  frame.offset = kReceiveFrameOffset;
  std::array<std::byte, kFrameHeadMax> header;
  for (std::uint32_t i = 0; i < segmenter.count(); ++i) {
    if (batched_ == kRangesMax) {
      VMBUSD_TRY(const bool flushed, flush(ring));
      VMBUSD_ASSERT(flushed);  // the room was there
    }
    const TcpSegmenter::Segment segment = segmenter.segment(i);
    const std::span<const std::byte> payload(staging_.get() + segment.payload_offset, segment.payload_size);
    ChecksumSum sum;
    sum.add(payload);
    segmenter.write_header(i, sum, header);
    const std::uint32_t slot = free_.back();
    free_.pop_back();
    write(slot, kReceiveFrameOffset, std::span(header).first(segmenter.header_size()));
    write(slot, kReceiveFrameOffset + segmenter.header_size(), payload);
    const ReceiveHead head = head_of(frame, segmenter.header_size() + segment.payload_size, true);
    write_head(slot, head);
    batch(slot, head.packet.header.message_length);
  }
  count_received(frame);
  return true;
}

}  // namespace vmbusd::netvsp
