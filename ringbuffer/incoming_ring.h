// The consumer's end of a ring. On the host: guest to host. (In guest/, which plays the driver, the other way
// round.)
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "base/result.h"
#include "ringbuffer/protocol.h"
#include "ringbuffer/ring_memory.h"

namespace vmbusd::ring {

// One packet, as its descriptor (a private copy, checked) describes it. The bytes still lie in the ring,
// where the guest can change them: copy them out once with IncomingRing::read.
struct Packet {
  PacketType type;
  bool completion_requested;
  std::uint64_t transaction_id;
  std::uint32_t position;        // ring offset of the descriptor
  std::uint32_t extension_size;  // bytes between descriptor and payload
  std::uint32_t payload_size;    // rounded up to 8 by the sender: protocols carry their own lengths
};

// One thread at a time. The host's read position is private; the shared read_index is written only.
//
//   while (packet = next()) { read(*packet, ...); }      any number of packets
//   if (release()) signal the guest                      once a batch: hands the room back
//   if (!unmask()) go on reading                         before sleeping
class IncomingRing {
 public:
  explicit IncomingRing(RingMemory memory) : memory_(std::move(memory)) {}

  // Takes up the ring where its indices stand, at channel open; masked afterwards. Errc::kRingCorrupt where
  // an index is out of range or misaligned.
  [[nodiscard]] Result<void> attach();

  // The next packet; empty where there is none. Errors (Errc::kRingCorrupt, kBadPacket) are final: stop the
  // channel.
  [[nodiscard]] Result<std::optional<Packet>> next();
  // Copies payload or extension bytes of the packet that next() gave last. `offset` + out.size() must be
  // inside it.
  void read_payload(const Packet& packet, std::uint32_t offset, std::span<std::byte> out) const;
  void read_extension(const Packet& packet, std::uint32_t offset, std::span<std::byte> out) const;

  // Publishes what was read so far. True where the producer waits for room that there is now: signal it.
  // Nothing to publish: false, and no shared access.
  [[nodiscard]] bool release();

  // Consumer polls: the producer need not signal.
  void mask();
  // Consumer is going to sleep: the producer is to signal. False where packets have come meanwhile (masked
  // again then).
  [[nodiscard]] bool unmask();

  // Bytes that wait to be read, as of now (one shared read). Errors as next().
  [[nodiscard]] Result<std::uint32_t> readable();

  [[nodiscard]] std::uint32_t size() const { return memory_.size(); }
  [[nodiscard]] std::uint32_t read_position() const { return read_position_; }
  [[nodiscard]] std::uint64_t packets() const { return packets_; }

 private:
  RingMemory memory_;
  std::uint32_t read_position_ = 0;      // next packet
  std::uint32_t released_position_ = 0;  // shared read_index as we wrote it last
  std::uint32_t write_position_ = 0;     // shared write_index as seen and checked last
  std::uint64_t packets_ = 0;
};

}  // namespace vmbusd::ring
