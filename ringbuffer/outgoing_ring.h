// The producer's end of a ring. On the host: host to guest. (In guest/, which plays the driver, the other way
// round.)
#pragma once

#include <cstdint>
#include <span>

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
//   if (*commit()) signal the guest                       once a batch
class OutgoingRing {
 public:
  explicit OutgoingRing(RingMemory memory) : memory_(std::move(memory)) {}

  // Takes up the ring where its indices stand, at channel open, and declares pending_send_size support.
  // Errc::kRingCorrupt where an index is out of range or misaligned.
  [[nodiscard]] Result<void> attach();

  // Ring bytes that a packet takes, trailer included.
  [[nodiscard]] static constexpr std::uint32_t packet_size(std::size_t extension_size,
                                                           std::size_t payload_size) {
    const std::size_t payload = (payload_size + kPacketAlign - 1) / kPacketAlign * kPacketAlign;
    return static_cast<std::uint32_t>(sizeof(PacketDescriptor) + extension_size + payload + kTrailerSize);
  }

  // Places a packet behind those written before; the guest sees it after commit(). False where it does not
  // fit now. Errc::kRingCorrupt: the guest's read_index is out of range. A packet larger than the ring can
  // ever hold is our bug.
  [[nodiscard]] Result<bool> write(const PacketToWrite& packet);
  // Publishes what was written. True where the guest must be signalled. Nothing written: false, no shared
  // access.
  [[nodiscard]] Result<bool> commit();

  // No room: asks the guest to signal once `bytes` (at least packet_size of what waits) are free. False where
  // the room has come meanwhile: go on writing. Call clear_space() when writing goes on.
  [[nodiscard]] Result<bool> arm_space(std::uint32_t bytes);
  void clear_space();
  [[nodiscard]] bool space_armed() const { return space_armed_; }

  // Room for packets now, in bytes (one shared read). Errors as write().
  [[nodiscard]] Result<std::uint32_t> writable();

  [[nodiscard]] std::uint32_t size() const { return memory_.size(); }
  [[nodiscard]] std::uint32_t write_position() const { return write_position_; }
  [[nodiscard]] std::uint64_t packets() const { return packets_; }

 private:
  [[nodiscard]] Result<std::uint32_t> load_read_index();

  RingMemory memory_;
  std::uint32_t write_position_ = 0;      // next packet
  std::uint32_t published_position_ = 0;  // shared write_index as we wrote it last
  std::uint32_t read_position_ = 0;       // shared read_index as seen and checked last
  bool space_armed_ = false;
  std::uint64_t packets_ = 0;
};

}  // namespace vmbusd::ring
