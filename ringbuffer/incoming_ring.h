// The consumer's end of a ring. On the host: guest to host. (In guest/, which plays the driver, the other way
// round.)
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <span>
#include <utility>

#include "base/assert.h"
#include "base/result.h"
#include "ringbuffer/protocol.h"
#include "ringbuffer/ring_memory.h"

namespace vmbusd::ring {

// One packet, as its descriptor (a private copy, checked) describes it. The bytes still lie in the ring,
// where the guest can change them: copy them out once with IncomingRing::read_payload.
struct Packet {
  PacketType type;
  bool completion_requested;
  std::uint64_t transaction_id;
  std::uint32_t position;        // ring offset of the descriptor
  std::uint32_t extension_size;  // bytes between descriptor and payload; at least 8 where the type has one
  std::uint32_t payload_size;    // rounded up to 8 by the sender: protocols carry their own lengths
  const std::byte* payload;      // guest-controlled; nullptr where it is not one run of host memory
};

// One thread at a time. The host's read position is private; the shared read_index is written only.
//
//   while (packet = next()) { read_payload(*packet, ...); }   any number of packets
//   if (release()) signal the guest                           once a batch: hands the room back
//   if (!unmask()) go on reading                              before sleeping
class IncomingRing {
 public:
  explicit IncomingRing(RingMemory memory) : memory_(std::move(memory)) {}

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
  [[nodiscard]] std::uint32_t read_position() const { return read_position_; }

 private:
  [[nodiscard]] std::atomic_ref<std::uint32_t> shared(std::uint32_t ControlPage::*field) const {
    return std::atomic_ref<std::uint32_t>(memory_.control()->*field);
  }
  [[nodiscard]] Result<const Packet*> accept(std::array<std::uint64_t, 2> words, std::uint32_t available,
                                             const std::byte* linear);
  [[nodiscard]] Result<const Packet*> next_in_pieces();
  // Whether handing back the room from `old_position` on satisfies a producer that waits for `pending` bytes.
  [[nodiscard]] bool wakes_producer(std::uint32_t old_position, std::uint32_t pending) const;

  RingMemory memory_;
  std::uint32_t read_position_ = 0;      // next packet
  std::uint32_t released_position_ = 0;  // shared read_index as we wrote it last
  std::uint32_t write_position_ = 0;     // shared write_index as seen and checked last
  std::uint32_t linear_bytes_ = 0;       // ring_run() between both; 0: unknown, or segmented
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
  if (linear_bytes_ < kSmallestPacket) {
    if (read_position_ == write_position_) {
      // acquire: pairs with the producer's store of write_index behind the packets that it covers
      // (hv_ringbuffer_write; OutgoingRing::commit).
      const std::uint32_t write_index = shared(&ControlPage::write_index).load(std::memory_order_acquire);
      if (write_index == read_position_) return nullptr;
      if (!valid_index(write_index, size())) [[unlikely]] {
        return fail(Errc::kRingCorrupt, "write_index is outside the ring or misaligned");
      }
      write_position_ = write_index;
    }
    linear_bytes_ = memory_.is_linear() ? ring_run(read_position_, write_position_, size()) : 0;
    if (linear_bytes_ < kSmallestPacket) [[unlikely]] {
      return next_in_pieces();
    }
  }
  const std::byte* const at = memory_.linear(read_position_);
  const std::array<std::uint64_t, 2> words = {load_shared_word(at), load_shared_word(at + kPacketAlign)};
  const std::uint32_t end = packet_end(words[0]);
  // For a packet shorter than its descriptor this wraps, so that it is too long as well.
  const std::uint32_t payload_size = end - kSmallestPacket;
  if (payload_size > linear_bytes_ - kSmallestPacket) [[unlikely]] {
    return next_in_pieces();
  }
  // accept() for what most packets are: type, payload offset and flags are in order by one compare.
  if ((words[0] & ~kPlainInbandFree) == kPlainInband) [[likely]] {
    packet_ = {
        .type = static_cast<PacketType>(words[0] & 0xffff),
        .completion_requested = (words[0] >> 48) != 0,
        .transaction_id = words[1],
        .position = read_position_,
        .extension_size = 0,
        .payload_size = payload_size,
        .payload = at + sizeof(PacketDescriptor),
    };
    read_position_ += end;
    linear_bytes_ -= end;
    return &packet_;
  }
  return accept(words, linear_bytes_, at);
}

// Takes the packet at read_position_, if its descriptor is in order. `words` are a private copy of it.
[[gnu::always_inline]] inline Result<const Packet*> IncomingRing::accept(std::array<std::uint64_t, 2> words,
                                                                         std::uint32_t available,
                                                                         const std::byte* linear) {
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
  packet_ = {
      .type = seen.type,
      .completion_requested = seen.flags != 0,
      .transaction_id = seen.transaction_id,
      .position = read_position_,
      .extension_size = payload_offset - static_cast<std::uint32_t>(sizeof seen),
      .payload_size = length - payload_offset,
      .payload = linear == nullptr ? nullptr : linear + payload_offset,
  };
  read_position_ += length + kTrailerSize;
  linear_bytes_ = available - length - kTrailerSize;
  return &packet_;
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
  const std::uint32_t skip = static_cast<std::uint32_t>(sizeof(PacketDescriptor)) + offset;
  memory_.copy_out(packet.position + skip, out);
}

inline std::uint64_t IncomingRing::extension_word(const Packet& packet, std::uint32_t offset) const {
  VMBUSD_ASSERT(offset < packet.extension_size && offset % kPacketAlign == 0);
  const std::uint32_t skip = static_cast<std::uint32_t>(sizeof(PacketDescriptor)) + offset;
  return memory_.load_word(packet.position + skip);
}

inline bool IncomingRing::release() {
  if (released_position_ == read_position_) return false;
  const std::uint32_t old_position = std::exchange(released_position_, read_position_);
  // seq_cst exchange, twice needed. As a release: all reads of packet bytes are done before the producer may
  // overwrite them (its acquire of read_index). As a full barrier: before the load of pending_send_size
  // below, whose partner is a producer that stores pending_send_size, fences and loads read_index
  // (hv_pkt_iter_close's counterpart in the sender; OutgoingRing::arm_space); and before the load of
  // write_index in unmask().
  shared(&ControlPage::read_index).exchange(read_position_, std::memory_order_seq_cst);
  const std::uint32_t pending = shared(&ControlPage::pending_send_size).load(std::memory_order_seq_cst);
  return pending != 0 && wakes_producer(old_position, pending);
}

inline void IncomingRing::mask() {
  // Relaxed: a hint; a signal that comes nevertheless is harmless.
  shared(&ControlPage::interrupt_mask).store(1, std::memory_order_relaxed);
}

}  // namespace vmbusd::ring
