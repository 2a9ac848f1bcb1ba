#include "ringbuffer/incoming_ring.h"

#include <algorithm>

namespace vmbusd::ring {

Result<void> IncomingRing::attach() {
  // acquire: what the producer wrote before it opened the channel, or before we were restarted.
  const std::uint32_t write_index = shared(&ControlPage::write_index).load(std::memory_order_acquire);
  const std::uint32_t read_index = shared(&ControlPage::read_index).load(std::memory_order_relaxed);
  if (!valid_index(write_index, size()) || !valid_index(read_index, size())) {
    return fail(Errc::kRingCorrupt, "ring indices are outside the ring or misaligned");
  }
  set_read_position(read_index);
  released_position_ = read_index;
  write_position_ = write_index;
  mask();
  return {};
}

// For a packet that ends at the ring's end or beyond, or lies in segmented memory, or is malformed.
Result<const Packet*> IncomingRing::next_in_pieces() {
  const std::uint32_t position = read_position();
  const std::array<std::uint64_t, 2> words = {memory_.load_word(position),
                                              memory_.load_word(position + kPacketAlign)};
  VMBUSD_CHECK(accept(words, ring_distance(position, write_position_, size()),
                      memory_.view(position, packet_end(words[0]))));
  packet_.position = position;
  set_read_position(ring_advance(position, packet_end(words[0]), size()));
  return &packet_;
}

bool IncomingRing::wakes_producer(std::uint32_t old_position, std::uint32_t pending) const {
  // Some producers ask for ring_size - 1, which never comes free. [openvmm: vmbus_ring, pending_send_size]
  const std::uint32_t wanted = std::min(pending, size() - 1) & ~(kPacketAlign - 1);
  // seq_cst (an acquire would do): behind the load of pending_send_size, so that this is the write_index that
  // the producer had when it asked, or a later one.
  const std::uint32_t write_index = shared(&ControlPage::write_index).load(std::memory_order_seq_cst);
  // Without a trustworthy index a signal too many is the safe answer; next() reports the index.
  if (!valid_index(write_index, size())) return true;
  // Always where the ring is empty: nothing more will be read, so no later release could make up for a
  // producer that evaluates the threshold in another way.
  if (write_index == released_position_) return true;
  const std::uint32_t old_free = ring_free(ring_distance(old_position, write_index, size()), size());
  const std::uint32_t new_free = ring_free(ring_distance(released_position_, write_index, size()), size());
  return old_free < wanted && new_free >= wanted;
}

bool IncomingRing::unmask() {
  VMBUSD_ASSERT(released_position_ == read_position());
  // seq_cst exchange, a full barrier between the store of interrupt_mask and the load of write_index. Its
  // partner is the producer's store of write_index, full barrier, load of interrupt_mask
  // (hv_signal_on_write; OutgoingRing::commit): one of both sees the other's store. For a producer that saw
  // the mask clear all the time, release()'s barrier does the same with read_index.
  shared(&ControlPage::interrupt_mask).exchange(0, std::memory_order_seq_cst);
  const std::uint32_t write_index = shared(&ControlPage::write_index).load(std::memory_order_seq_cst);
  if (write_index == released_position_) return true;
  mask();  // packets, or a corrupt index that next() reports
  return false;
}

Result<std::uint32_t> IncomingRing::readable() {
  // seq_cst: an acquire as in next(), which reads the packets without loading the index again; and behind
  // release()'s full barrier for a consumer that leaves the mask clear and looks once more before it sleeps.
  const std::uint32_t write_index = shared(&ControlPage::write_index).load(std::memory_order_seq_cst);
  if (!valid_index(write_index, size())) {
    return fail(Errc::kRingCorrupt, "write_index is outside the ring or misaligned");
  }
  write_position_ = write_index;
  run_end_ = at_;  // next() measures it anew
  return ring_distance(read_position(), write_index, size());
}

}  // namespace vmbusd::ring
