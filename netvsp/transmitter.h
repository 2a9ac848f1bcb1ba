// Guest to network on one channel: from packets of the ring to frames of the back end, and completions back.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"
#include "netvsp/backend.h"
#include "netvsp/buffer_map.h"
#include "netvsp/counters.h"
#include "netvsp/net_record.h"
#include "netvsp/nvsp_session.h"
#include "partition/guest_memory.h"
#include "ringbuffer/gpa_direct.h"
#include "ringbuffer/incoming_ring.h"
#include "ringbuffer/outgoing_ring.h"

namespace vmbusd::netvsp {

// A packet of the ring whose completion is owed. Pool: Transmitter.
struct TransmitPacket {
  ListHook hook;
  TransmitRecord* record = nullptr;  // its transaction id, for another worker process too
  std::uint32_t frames = 0;          // with the queue
  bool wants_completion = false;
  bool unpacked = false;  // all its frames were handed over
  NvspStatus status = NvspStatus::kSuccess;
};

// The bytes that a SEND_RNDIS_PACKET announces: part of a send section, then GPA ranges. Pieces of guest
// memory.
class AnnouncedBytes {
 public:
  // RNDIS bytes of one packet: 16 large sends.
  static constexpr std::uint64_t kBytesMax = 1u << 20;
  static constexpr std::uint32_t kRangesMax = 1024;  // more than any driver sends
  static constexpr std::uint32_t kPiecesMax = 512;

  // Errc::kBadMessage where the section, a range or a page is not there.
  [[nodiscard]] Result<void> gather(const ring::IncomingRing& ring, const ring::Packet& packet,
                                    const NvspSendRndisPacket& rndis, const BufferMap* send_buffer,
                                    const partition::GuestMemory& memory);

  void clear() { left_ = 0; }
  [[nodiscard]] std::uint64_t left() const { return left_; }
  // Copies bytes [offset, offset + out.size()) from the current position on; they must be there.
  void copy(std::uint64_t offset, std::span<std::byte> out) const;
  // Writes the pieces of [offset, offset + size) to `out`; returns how many, or 0 where they are too many.
  [[nodiscard]] std::uint32_t pieces(std::uint64_t offset, std::uint64_t size, std::span<iovec> out) const;
  void advance(std::uint64_t size);

 private:
  std::array<iovec, kPiecesMax> pieces_;  // guest-controlled memory
  std::uint32_t count_ = 0;
  std::uint32_t first_ = 0;  // piece where the current position is
  std::uint64_t skip_ = 0;   // in it
  std::uint64_t left_ = 0;   // bytes from the current position on
  std::array<ring::GpaSegment, kPiecesMax> segments_;
};

// On the channel's worker.
class Transmitter {
 public:
  struct Settings {
    std::uint32_t mtu = 1500;
    bool check_source = false;
    std::uint64_t mac = 0;  // MacAddress::value()
  };
  // What stays the same while a turn reads the ring.
  struct Turn {
    BackendQueue& queue;
    ring::OutgoingRing& completions;
    Settings settings;
  };
  enum class Progress : std::uint8_t {
    kDone,     // the packet is unpacked
    kRetry,    // go on next turn
    kFull,     // go on when a frame comes back from the queue
    kBlocked,  // go on when the queue's medium is ready
  };

  explicit Transmitter(QueueCounters& counters);

  // Once, before all else. `records` and `publications` are the channel's and outlive this. `taken_up`: they
  // are another worker process's; what it owed is owed now, the frames themselves are lost.
  void start(std::span<TransmitRecord, kTransmitPackets> records,
             const devices::PublicationCounts& publications, bool taken_up);
  // What was written to the ring before is the guest's now. Between two turns.
  void published() { free_packets_.splice(free_packets_.begin(), answered_); }

  // Whether begin() may be called: nothing is half unpacked, and there is a packet to be had.
  [[nodiscard]] bool can_begin() const { return current_ == nullptr && !free_packets_.empty(); }
  // Packets become free when the turn is over.
  [[nodiscard]] bool has_answered() const { return !answered_.empty(); }
  // Takes on a data packet of the ring.
  [[nodiscard]] Result<void> begin(const ring::IncomingRing& ring, const ring::Packet& packet,
                                   const NvspSendRndisPacket& rndis, const BufferMap* send_buffer,
                                   const partition::GuestMemory& memory);
  [[nodiscard]] bool unpacking() const { return current_ != nullptr; }
  // All of begin(), unpack() and complete() in one go for what most packets are: one message in one piece of
  // a send section. False where it is something else; nothing has happened then. can_begin() only.
  [[nodiscard]] bool send_alone(const ring::Packet& packet, const NvspSendRndisPacket& rndis,
                                const BufferMap& send_buffer, const Turn& turn);
  // Hands the current packet's frames to the queue. `lossy`: drop what the medium does not take.
  [[nodiscard]] Progress unpack(const Turn& turn, bool lossy);
  // The current packet's memory goes away: what was not handed over is lost.
  void abandon();

  // A frame came back from the queue.
  void transmitted(TransmitFrame& frame, bool sent);
  [[nodiscard]] std::uint32_t in_flight() const { return in_flight_; }
  // Writes the completions that are owed. False where the ring has no room for more now (it is armed).
  [[nodiscard]] Result<bool> complete(ring::OutgoingRing& ring);

 private:
  using FrameList = bi::list<TransmitFrame, bi::member_hook<TransmitFrame, ListHook, &TransmitFrame::hook>,
                             bi::constant_time_size<false>>;
  using PacketList =
      bi::list<TransmitPacket, bi::member_hook<TransmitPacket, ListHook, &TransmitPacket::hook>,
               bi::constant_time_size<false>>;
  // What one turn may have in flight: two service budgets.
  static constexpr std::uint32_t kFrames = 128;
  // Messages of one packet; 8 are told to the guest.
  static constexpr std::uint32_t kMessagesMax = 64;

  enum class Prepared : std::uint8_t { kFrame, kSkip, kMalformed };
  [[nodiscard]] Prepared prepare(TransmitFrame& frame, const Settings& settings);
  [[nodiscard]] bool fill_frame(TransmitFrame& frame, const TransmitMessage& message, std::uint32_t copied);
  [[nodiscard]] bool finish_head(TransmitFrame& frame, const TransmitInfo& info, const Settings& settings);
  [[nodiscard]] bool source_allowed(const TransmitFrame& frame, const Settings& settings) const;
  [[nodiscard]] Progress hand_over(BackendQueue& queue, bool lossy);
  TransmitPacket& take_packet(const ring::Packet& packet);
  [[nodiscard]] static bool leave_rest(TransmitFrame& frame, std::span<std::byte> message,
                                       std::uint32_t copied);
  [[nodiscard]] bool prepare_alone(TransmitFrame& frame, std::span<std::byte> piece, std::uint32_t copied,
                                   const Settings& settings);
  [[nodiscard]] bool prepare_long(TransmitFrame& frame, std::span<std::byte> piece, const Settings& settings);
  void count_sent(const TransmitFrame& frame, bool sent);
  [[nodiscard]] Result<bool> write_completion(ring::OutgoingRing& ring, std::uint64_t transaction_id,
                                              NvspStatus status);
  void finish_current();
  void retire(TransmitPacket& packet);

  QueueCounters& counters_;
  std::unique_ptr<TransmitFrame[]> frames_;
  std::unique_ptr<TransmitPacket[]> packets_;
  FrameList free_frames_;
  TransmitFrame* spare_ = nullptr;  // of send_alone(), out of the list; nullptr: take one
  PacketList free_packets_;
  PacketList finished_;  // completions owed
  PacketList answered_;  // completions that the guest cannot see yet: the records are kept till then
  const devices::PublicationCounts* publications_ = nullptr;
  TransmitPacket* current_ = nullptr;
  TransmitFrame* waiting_ = nullptr;  // the current packet's next frame, prepared
  std::uint32_t messages_ = 0;        // of the current packet, so far
  std::uint32_t in_flight_ = 0;
  AnnouncedBytes bytes_;
};

}  // namespace vmbusd::netvsp
