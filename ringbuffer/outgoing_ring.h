// The producer's end of a ring. On the host: host to guest. (In guest/, which plays the driver, the other way
// round.)
#pragma once

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

// A packet to write. The spans are copied in order: extension (a multiple of 8 bytes), then payload head and
// tail, zero-padded to 8.
struct PacketToWrite {
  PacketType type = PacketType::kInband;
  bool completion_requested = false;
  std::uint64_t transaction_id = 0;
  std::span<const std::byte> extension{};
  std::span<const std::byte> payload{};
  std::span<const std::byte> payload_tail{};
};

// One thread at a time. The host's write position is private; the shared write_index is written only.
//
//   if (!*write(packet)) { arm_space(...); come back on the guest's doorbell }
//   if (*commit()) signal the guest                       once a batch, after the last arm_space() too
class OutgoingRing {
 public:
  // Who has to know when packets are published in the middle of a batch, by arm_space().
  class Publisher {
   public:
    virtual void before_publishing() = 0;
    virtual void published() = 0;

   protected:
    ~Publisher() = default;
  };

  // `publisher`: outlives the ring; nullptr: nobody.
  explicit OutgoingRing(RingMemory memory, Publisher* publisher = nullptr)
      : memory_(std::move(memory)), publisher_(publisher) {}

  // Takes up the ring where its indices stand, at channel open, and declares pending_send_size support.
  // Errc::kRingCorrupt where an index is out of range or misaligned.
  [[nodiscard]] Result<void> attach();
  // Right after attach(): what stands between write_index and `position` was written by another producer that
  // came to its end before it published that. The next commit() does. Errc::kRingCorrupt: that cannot be.
  [[nodiscard]] Result<void> take_written(std::uint32_t position);

  // Ring bytes that a packet takes, trailer included.
  [[nodiscard]] static constexpr std::uint32_t packet_size(std::size_t extension_size,
                                                           std::size_t payload_size) {
    const std::size_t payload = (payload_size + kPacketAlign - 1) / kPacketAlign * kPacketAlign;
    return static_cast<std::uint32_t>(sizeof(PacketDescriptor) + extension_size + payload + kTrailerSize);
  }

  // Places a packet behind those written before; the guest sees it after commit(). False where it does not
  // fit now. Errc::kRingCorrupt: the guest's read_index is out of range. Errc::kLimit: larger than an empty
  // ring holds; the guest chose that size, so a device checks it when the channel opens.
  [[nodiscard]] Result<bool> write(const PacketToWrite& packet);
  // Publishes what was written. True where the guest must be signalled. Nothing written: false, and no shared
  // access.
  [[nodiscard]] Result<bool> commit();

  // No room: asks the guest to signal once `bytes` (at least packet_size of what waits, at most size() - 8)
  // are free. False where the room has come meanwhile: go on writing. Call clear_space() when writing goes
  // on. Publishes what was written before, because the guest judges its room by what it can see; the next
  // commit() still says whether to signal for that.
  [[nodiscard]] Result<bool> arm_space(std::uint32_t bytes);
  void clear_space();
  [[nodiscard]] bool space_armed() const { return space_armed_; }

  // Room for packets now, in bytes (one shared read). Errors as write().
  [[nodiscard]] Result<std::uint32_t> writable();

  [[nodiscard]] std::uint32_t size() const { return memory_.size(); }
  [[nodiscard]] RingView look() const { return memory_.look(); }
  [[nodiscard]] std::uint32_t write_position() const { return write_position_; }

 private:
  [[nodiscard]] std::atomic_ref<std::uint32_t> shared(std::uint32_t ControlPage::*field) const {
    return std::atomic_ref<std::uint32_t>(memory_.control()->*field);
  }
  [[nodiscard]] Result<std::uint32_t> load_read_index();
  // By value: a packet whose address is passed on could not stay in registers on the common path either.
  [[nodiscard]] Result<bool> write_in_pieces(PacketToWrite packet);
  [[nodiscard]] std::uint32_t free_bytes() const {
    return ring_free(ring_distance(read_position_, write_position_, size()), size());
  }
  // `length`: of the packet without its trailer.
  [[nodiscard]] static PacketDescriptor describe(const PacketToWrite& packet, std::size_t length);
  static void place_linear(std::byte* at, const PacketDescriptor& descriptor, const PacketToWrite& packet,
                           std::uint32_t position);
  void place_in_pieces(const PacketDescriptor& descriptor, const PacketToWrite& packet);

  RingMemory memory_;
  Publisher* publisher_;
  std::uint32_t write_position_ = 0;      // next packet
  std::uint32_t published_position_ = 0;  // shared write_index as we wrote it last
  std::uint32_t read_position_ = 0;       // shared read_index as seen and checked last
  std::uint32_t linear_room_ = 0;  // free bytes from write_position_ on, as ring_run(), or less; 0: segmented
  bool space_armed_ = false;
  bool signal_due_ = false;  // arm_space() published packets into an empty ring: commit() is to say so
};

// Below: what runs for every packet or batch. write() is inlined always: what the caller knows of a packet
// (type, no extension, a struct as the payload) is then decided and copied by the compiler.

[[gnu::always_inline]] inline PacketDescriptor OutgoingRing::describe(const PacketToWrite& packet,
                                                                      std::size_t length) {
  return {
      .type = packet.type,
      .data_offset8 = static_cast<std::uint16_t>((sizeof(PacketDescriptor) + packet.extension.size()) / 8),
      .length8 = static_cast<std::uint16_t>(length / 8),
      .flags = packet.completion_requested ? kFlagCompletionRequested : std::uint16_t{0},
      .transaction_id = packet.transaction_id,
  };
}

[[gnu::always_inline]] inline Result<bool> OutgoingRing::write(const PacketToWrite& packet) {
  VMBUSD_ASSERT(packet.extension.size() % kPacketAlign == 0);
  const std::size_t content =
      packet.extension.size() +
      (packet.payload.size() + packet.payload_tail.size() + kPacketAlign - 1) / kPacketAlign * kPacketAlign;
  const std::size_t length = sizeof(PacketDescriptor) + content;
  const std::size_t needed = length + kTrailerSize;
  if (length > kMaxPacketSize) [[unlikely]] {
    return fail(Errc::kLimit, "packet is larger than a descriptor can say");
  }
  if (needed > linear_room_) [[unlikely]] {
    return write_in_pieces(packet);
  }
  place_linear(memory_.linear(write_position_), describe(packet, length), packet, write_position_);
  write_position_ += static_cast<std::uint32_t>(needed);
  linear_room_ -= static_cast<std::uint32_t>(needed);
  return true;
}

[[gnu::always_inline]] inline void OutgoingRing::place_linear(std::byte* at,
                                                              const PacketDescriptor& descriptor,
                                                              const PacketToWrite& packet,
                                                              std::uint32_t position) {
  std::memcpy(at, &descriptor, sizeof descriptor);
  at += sizeof descriptor;
  if (!packet.extension.empty()) {
    std::memcpy(at, packet.extension.data(), packet.extension.size());
    at += packet.extension.size();
  }
  if (const std::size_t size = packet.payload.size() + packet.payload_tail.size(); size != 0) {
    std::byte* const end = at + (size + kPacketAlign - 1) / kPacketAlign * kPacketAlign;
    // The padding: the last word is zeroed whole, then overwritten as far as the payload goes.
    if (size % kPacketAlign != 0) std::memset(end - kPacketAlign, 0, kPacketAlign);
    if (!packet.payload.empty()) std::memcpy(at, packet.payload.data(), packet.payload.size());
    if (!packet.payload_tail.empty()) {
      std::memcpy(at + packet.payload.size(), packet.payload_tail.data(), packet.payload_tail.size());
    }
    at = end;
  }
  // Readers skip the trailer; it tells a debugger where the packet began. [linux: hv_ringbuffer_write]
  const std::uint64_t trailer = std::uint64_t{position} << 32;
  std::memcpy(at, &trailer, sizeof trailer);
}

inline Result<bool> OutgoingRing::commit() {
  const bool due = std::exchange(signal_due_, false);
  if (published_position_ == write_position_) return due;
  const std::uint32_t before = std::exchange(published_position_, write_position_);
  // seq_cst exchange, twice needed. As a release: the packets stand in the ring before the index that covers
  // them (its partner is the consumer's acquire of write_index: hv_get_bytes_to_read; IncomingRing::next).
  // As a full barrier: before the loads of interrupt_mask and read_index below, whose partner is a consumer
  // that clears interrupt_mask, or stores read_index, fences and loads write_index before it sleeps
  // (hv_end_read, hv_pkt_iter_close; IncomingRing::unmask).
  shared(&ControlPage::write_index).exchange(write_position_, std::memory_order_seq_cst);
  if (shared(&ControlPage::interrupt_mask).load(std::memory_order_seq_cst) != 0) return due;
  // After the mask: a consumer that cleared it had stored its read_index before. seq_cst as in
  // load_read_index().
  const std::uint32_t read_index = shared(&ControlPage::read_index).load(std::memory_order_seq_cst);
  if (read_index == before) return true;
  if (!valid_index(read_index, size())) [[unlikely]] {
    return fail(Errc::kRingCorrupt, "read_index is outside the ring or misaligned");
  }
  return due;
}

}  // namespace vmbusd::ring
