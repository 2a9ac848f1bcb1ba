// The consumer's end of a ring. On the host: guest to host. (In guest/, which plays the driver, the other way
// round.)
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "base/assert.h"
#include "base/result.h"
#include "ringbuffer/protocol.h"
#include "ringbuffer/ring_memory.h"

namespace vmbusd::ring {

// One packet: a private copy of its descriptor, checked, and what follows from it. The bytes still lie in the
// ring, where the guest can change them: copy them out once with IncomingRing::read_payload.
struct Packet : PacketDescriptor {
  std::uint32_t extension_size;  // bytes between descriptor and payload; at least 8 where the type has one
  std::uint32_t payload_size;    // rounded up to 8 by the sender: protocols carry their own lengths
  // guest-controlled; behind the extension. nullptr where descriptor to payload are not one run of host
  // memory.
  const std::byte* payload;
  std::uint32_t position;  // ring offset of the descriptor, where `payload` is nullptr

  [[nodiscard]] bool completion_requested() const { return flags != 0; }
};

// One thread at a time. The host's read position is private; the shared read_index is written only.
//
//   while (packet = next()) { read_payload(*packet, ...); }   any number of packets
//   if (release()) signal the guest                           once a batch: hands the room back
//   if (!unmask()) go on reading                              before sleeping
class IncomingRing {
 public:
  explicit IncomingRing(RingMemory memory) : memory_(std::move(memory)) { set_read_position(0); }

  // Takes up the ring where its indices stand, at channel open; masked afterwards. Errc::kRingCorrupt where
  // an index is out of range or misaligned.
  [[nodiscard]] Result<void> attach();

  // The next packet, as this object keeps it until next() is called again; nullptr where there is none.
  // Errors (Errc::kRingCorrupt, kBadPacket) are final: stop the channel.
  [[nodiscard]] Result<const Packet*> next();
  // Copies payload or extension bytes of a packet that next() gave since the last release(). `offset` +
  // out.size() must be inside it: the caller has checked the packet's sizes.
  void read_payload(const Packet& packet, std::uint32_t offset, std::span<std::byte> out) const;
  void read_extension(const Packet& packet, std::uint32_t offset, std::span<std::byte> out) const;
  // One word of the extension, loaded once; `offset` is a multiple of 8 below extension_size.
  [[nodiscard]] std::uint64_t extension_word(const Packet& packet, std::uint32_t offset) const;

  // Publishes what was read so far. True where the producer waits for room that there is now: signal it.
  // Nothing to publish: false, and no shared access.
  [[nodiscard]] bool release();

  // Consumer polls: the producer need not signal.
  void mask();
  // Consumer is going to sleep: the producer is to signal. False where packets are there (masked again then):
  // those that come meanwhile, and those that the consumer leaves for later, which nobody will signal. Call
  // release() before.
  [[nodiscard]] bool unmask();

  // Bytes that wait to be read, as of now (one shared read). Errors as next().
  [[nodiscard]] Result<std::uint32_t> readable();

  [[nodiscard]] std::uint32_t size() const { return memory_.size(); }
  [[nodiscard]] RingView look() const { return memory_.look(); }
  [[nodiscard]] std::uint32_t read_position() const { return static_cast<std::uint32_t>(at_ - begin()); }

 private:
  [[nodiscard]] std::atomic_ref<std::uint32_t> shared(std::uint32_t ControlPage::*field) const {
    return std::atomic_ref<std::uint32_t>(memory_.control()->*field);
  }
  // Describes a packet in packet_ if its descriptor, of which `words` are a private copy, is in order; `at`
  // is where it stands, nullptr where that is not one run.
  [[nodiscard]] Result<void> accept(std::array<std::uint64_t, 2> words, std::size_t available,
                                    const std::byte* at);
  [[nodiscard]] Result<const Packet*> next_in_pieces();
  [[nodiscard]] std::uintptr_t begin() const { return reinterpret_cast<std::uintptr_t>(memory_.linear(0)); }
  // Nothing is known of what stands there.
  void set_read_position(std::uint32_t position) { at_ = run_end_ = begin() + position; }
  // Whether handing back the room from `old_position` on satisfies a producer that waits for `pending` bytes.
  [[nodiscard]] bool wakes_producer(std::uint32_t old_position, std::uint32_t pending) const;

  RingMemory memory_;
  // Host addresses of the next packet and of the end of what is known to be written from there on as one run,
  // at most ring_run(). In segmented memory, which has no runs, both are the next packet's ring offset.
  std::uintptr_t at_ = 0;
  std::uintptr_t run_end_ = 0;
  std::uint32_t released_position_ = 0;  // shared read_index as we wrote it last
  std::uint32_t write_position_ = 0;     // shared write_index as seen and checked last
  Packet packet_{};                      // that next() gave
};

// Below: what runs for every packet or batch. Inlined always, so that results stay in registers.

// The first word of an in-band packet's descriptor without extension, and which of its bits may be anything
// there: the length, and that a completion is requested.
inline constexpr std::uint64_t kPlainInband =
    static_cast<std::uint64_t>(PacketType::kInband) | std::uint64_t{sizeof(PacketDescriptor) / 8} << 16;
inline constexpr std::uint64_t kPlainInbandFree =
    std::uint64_t{0xffff} << 32 | std::uint64_t{kFlagCompletionRequested} << 48;

inline constexpr std::uint32_t kSmallestPacket = sizeof(PacketDescriptor) + kTrailerSize;

// Bytes from a packet's begin to the next one's, by the first word of its descriptor: length8, and the
// trailer.
inline constexpr std::uint32_t packet_end(std::uint64_t descriptor_word) {
  return (static_cast<std::uint32_t>(descriptor_word >> 29) & kMaxPacketSize) + kTrailerSize;
}

[[gnu::always_inline]] inline Result<const Packet*> IncomingRing::next() {
  if (at_ == run_end_) {
    const std::uint32_t position = read_position();
    if (position == write_position_) {
      // acquire: pairs with the producer's store of write_index behind the packets that it covers
      // (hv_ringbuffer_write; OutgoingRing::commit).
      const std::uint32_t write_index = shared(&ControlPage::write_index).load(std::memory_order_acquire);
      if (write_index == position) return nullptr;
      if (!valid_index(write_index, size())) [[unlikely]] {
        return fail(Errc::kRingCorrupt, "write_index is outside the ring or misaligned");
      }
      write_position_ = write_index;
    }
    // As ring_run(), which is not 0 where the producer has not come around.
    if (position < write_position_ && memory_.is_linear()) [[likely]] {
      run_end_ = at_ + (write_position_ - position);
    } else {
      if (!memory_.is_linear() || position + kPacketAlign == size()) return next_in_pieces();
      run_end_ = at_ + ring_run(position, write_position_, size());
    }
  }
  const auto* const at = reinterpret_cast<const std::byte*>(at_);
  const std::uint64_t word = load_shared_word(at);
  // For a packet shorter than its descriptor this wraps, at 32 bits, so that it is too long as well.
  const std::uint32_t payload_size = packet_end(word) - kSmallestPacket;
  const std::uintptr_t end = at_ + kSmallestPacket + payload_size;
  if (end > run_end_) [[unlikely]] {
    return next_in_pieces();
  }
  const std::array<std::uint64_t, 2> words = {word, load_shared_word(at + kPacketAlign)};
  // accept() for what most packets are: type, payload offset and flags are in order by one compare.
  if ((word & ~kPlainInbandFree) == kPlainInband) [[likely]] {
    std::memcpy(static_cast<PacketDescriptor*>(&packet_), words.data(), sizeof words);
    packet_.extension_size = 0;
    packet_.payload_size = payload_size;
    packet_.payload = at + sizeof(PacketDescriptor);
  } else {
    VMBUSD_CHECK(accept(words, run_end_ - at_, at));
  }
  at_ = end;
  return &packet_;
}

[[gnu::always_inline]] inline Result<void> IncomingRing::accept(std::array<std::uint64_t, 2> words,
                                                                std::size_t available, const std::byte* at) {
  const auto seen = std::bit_cast<PacketDescriptor>(words);
  const std::uint32_t length = packet_end(words[0]) - kTrailerSize;
  if (length + kTrailerSize > available) [[unlikely]] {
    return fail(Errc::kBadPacket, "packet is longer than what was written");
  }
  const bool extended = seen.type == PacketType::kGpaDirect || seen.type == PacketType::kTransferPages;
  if (!extended && seen.type != PacketType::kInband && seen.type != PacketType::kCompletion) [[unlikely]] {
    return fail(Errc::kBadPacket, "packet type is unknown");
  }
  const std::uint32_t payload_offset = std::uint32_t{seen.data_offset8} * 8;
  if (payload_offset < sizeof seen + (extended ? kPacketAlign : 0)) [[unlikely]] {
    return fail(Errc::kBadPacket, "payload starts inside the packet's header");
  }
  if (payload_offset > length) [[unlikely]] {
    return fail(Errc::kBadPacket, "payload starts outside the packet");
  }
  if ((seen.flags & ~kFlagCompletionRequested) != 0) [[unlikely]] {
    return fail(Errc::kBadPacket, "packet has unknown flags");
  }
  static_cast<PacketDescriptor&>(packet_) = seen;
  packet_.extension_size = payload_offset - static_cast<std::uint32_t>(sizeof seen);
  packet_.payload_size = length - payload_offset;
  packet_.payload = at == nullptr ? nullptr : at + payload_offset;
  return {};
}

[[gnu::always_inline]] inline void IncomingRing::read_payload(const Packet& packet, std::uint32_t offset,
                                                              std::span<std::byte> out) const {
  VMBUSD_ASSERT(offset + out.size() <= packet.payload_size);
  if (packet.payload != nullptr) [[likely]] {
    copy_from_shared(out.data(), packet.payload + offset, out.size());
  } else {
    const std::uint32_t skip =
        static_cast<std::uint32_t>(sizeof(PacketDescriptor)) + packet.extension_size + offset;
    memory_.copy_out(packet.position + skip, out);
  }
}

inline void IncomingRing::read_extension(const Packet& packet, std::uint32_t offset,
                                         std::span<std::byte> out) const {
  VMBUSD_ASSERT(offset + out.size() <= packet.extension_size);
  if (packet.payload != nullptr) [[likely]] {
    return copy_from_shared(out.data(), packet.payload - packet.extension_size + offset, out.size());
  }
  const std::uint32_t skip = static_cast<std::uint32_t>(sizeof(PacketDescriptor)) + offset;
  memory_.copy_out(packet.position + skip, out);
}

inline std::uint64_t IncomingRing::extension_word(const Packet& packet, std::uint32_t offset) const {
  VMBUSD_ASSERT(offset < packet.extension_size && offset % kPacketAlign == 0);
  if (packet.payload != nullptr) [[likely]] {
    return load_shared_word(packet.payload - packet.extension_size + offset);
  }
  const std::uint32_t skip = static_cast<std::uint32_t>(sizeof(PacketDescriptor)) + offset;
  return memory_.load_word(packet.position + skip);
}

inline bool IncomingRing::release() {
  const std::uint32_t position = read_position();
  if (released_position_ == position) return false;
  const std::uint32_t old_position = std::exchange(released_position_, position);
  // seq_cst exchange, twice needed. As a release: all reads of packet bytes are done before the producer may
  // overwrite them (its acquire of read_index). As a full barrier: before the load of pending_send_size
  // below, whose partner is a producer that stores pending_send_size, fences and loads read_index
  // (hv_pkt_iter_close's counterpart in the sender; OutgoingRing::arm_space); and before the load of
  // write_index in unmask().
  shared(&ControlPage::read_index).exchange(position, std::memory_order_seq_cst);
  const std::uint32_t pending = shared(&ControlPage::pending_send_size).load(std::memory_order_seq_cst);
  return pending != 0 && wakes_producer(old_position, pending);
}

inline void IncomingRing::mask() {
  // Relaxed: a hint; a signal that comes nevertheless is harmless.
  shared(&ControlPage::interrupt_mask).store(1, std::memory_order_relaxed);
}

}  // namespace vmbusd::ring
