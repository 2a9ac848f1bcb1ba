// Where a NIC's frames go and come from. A back end has a queue per channel; each is served by its channel's
// worker through io_uring.
#pragma once

#include <sys/uio.h>

#include <array>
#include <boost/intrusive/list.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "io/worker.h"
#include "netvsp/frame.h"
#include "netvsp/rndis_packet.h"
#include "netvsp/virtio_net.h"

namespace vmbusd::netvsp {

namespace bi = boost::intrusive;
using ListHook = bi::list_member_hook<bi::link_mode<bi::safe_link>>;

class BackendQueue;
class TapSteering;
struct TransmitPacket;

// Pieces of guest memory behind the private head of a frame: 34 MDLs (kMdlChainLengthMax) of a 64 KiB large
// send, each of which may cross a page.
inline constexpr std::uint32_t kTransmitSegmentsMax = 64;

// A frame on its way out. Pool: Transmitter. One list or one queue has it.
struct TransmitFrame final : public io::IoOp {
  void complete(std::int32_t result, std::uint32_t cqe_flags) noexcept override;

  ListHook hook;
  BackendQueue* queue = nullptr;     // that has it in flight
  TransmitPacket* packet = nullptr;  // that it came in
  VirtioNetHeader header{};          // what is still to be done to it
  std::uint32_t head_offset = 0;     // in `bytes`, where the frame begins; there is kHeadRoom before it
  std::uint32_t head_size = 0;
  std::uint32_t frame_size = 0;     // head and segments
  std::uint32_t segment_count = 0;  // of `segments` from 1 on
  // [0] is the queue's, for the head with what it puts before. The others are guest memory.
  std::array<iovec, 1 + kTransmitSegmentsMax> segments;
  // Private copy of the message's head, then of the frame's.
  std::array<std::byte, kMessageHeadMax + kFrameHeadMax> bytes;

  [[nodiscard]] std::span<std::byte> head() { return std::span(bytes).subspan(head_offset, head_size); }
  [[nodiscard]] std::span<const iovec> rest() const { return std::span(segments).subspan(1, segment_count); }
};
// A frame begins behind its RNDIS header at least, and a VLAN tag may have been put before it.
inline constexpr std::uint32_t kHeadRoom = sizeof(RndisPacket) - kVlanTagSize;
static_assert(kHeadRoom >= sizeof(VirtioNetHeader) && kHeadRoom >= sizeof(std::uint32_t));

// Sub-allocations that a buffer for 64 KiB frames needs: their room is at least 2048 - 112 - 36 bytes.
inline constexpr std::uint32_t kLargeFrameMax = 65535 + kEthernetHeaderSize + 2 * kVlanTagSize;
inline constexpr std::uint32_t kReceiveSlotsMax = 35;
static_assert(kReceiveSlotsMax * (2048 - kReceiveFrameOffset - kReceiveTail) >= kLargeFrameMax);
// Each may lie in two pieces of host memory; larger ones have more pieces but are fewer.
inline constexpr std::uint32_t kReceivePiecesMax = 2 * kReceiveSlotsMax;

// Room in guest memory for a frame on its way in. Pool: Receiver. One list or one queue has it.
struct ReceiveBuffer final : public io::IoOp {
  void complete(std::int32_t result, std::uint32_t cqe_flags) noexcept override;

  ListHook hook;
  BackendQueue* queue = nullptr;  // that has it in flight
  VirtioNetHeader header{};       // of the frame, from the back end
  std::uint32_t frame_size = 0;
  std::uint32_t room = 0;  // bytes for the frame
  std::uint32_t slot_count = 0;
  std::uint32_t piece_count = 0;                      // of `pieces` from 1 on
  std::array<std::uint32_t, kReceiveSlotsMax> slots;  // sub-allocations, in frame order
  // [0] is the queue's, for the header. The others are guest memory.
  std::array<iovec, 1 + kReceivePiecesMax> pieces;

  // Copies a whole frame of at most `room` bytes in.
  void fill(std::span<const std::byte> frame);
};

// Who uses a queue: a channel. All calls on the worker.
class QueueUser {
 public:
  // An empty buffer; nullptr where there is none: BackendQueue::receive() is called again when there is.
  [[nodiscard]] virtual ReceiveBuffer* take_buffer() = 0;
  // Gives a buffer back: with a frame of `frame_size` bytes and its header, or unused.
  virtual void received(ReceiveBuffer& buffer, std::uint32_t frame_size) = 0;
  virtual void returned(ReceiveBuffer& buffer) = 0;
  // Gives back a frame that transmit() took; false: it was lost.
  virtual void transmitted(TransmitFrame& frame, bool sent) = 0;
  // There is room again after transmit() was Sent::kBlocked.
  virtual void transmit_ready() = 0;
  // Brackets each operation of io_uring's; see devices::Channel::begin_op().
  virtual void begin_op() = 0;
  virtual void end_op() = 0;
  // The medium is gone for good: nothing is sent or received until there is another descriptor.
  virtual void link_lost(const Error& reason) = 0;

 protected:
  ~QueueUser() = default;
};

// Outlives the channels that use it. On the user's worker between attach() and the end of detach(), else
// unused; only replace() may be called from elsewhere.
class BackendQueue {
 public:
  enum class Sent : std::uint8_t {
    kDone,     // the frame's memory is free
    kTaken,    // QueueUser::transmitted() follows
    kRetry,    // the submission queue is full: offer it again next turn
    kBlocked,  // the medium takes no more: QueueUser::transmit_ready() follows
    kLost,     // the link is down; the frame's memory is free
  };

  virtual ~BackendQueue() = default;
  // `user` stays until detach() and everything in flight has ended.
  virtual void attach(QueueUser& user, io::Worker& worker) = 0;
  // Cancels what is in flight. What does not come back at once does so soon.
  virtual void detach() = 0;
  // Ends what touches guest memory, as detach(), and begins nothing new until resume().
  virtual void pause() = 0;
  virtual void resume() = 0;
  // Whether received TCP packets may have up to 64 KiB (Backend::large_receive). Before the first receive().
  virtual void set_large_receive(bool) {}
  [[nodiscard]] virtual Sent transmit(TransmitFrame& frame) = 0;
  // After the last transmit() of a turn.
  virtual void flush() {}
  // Once a turn while the user wants frames: fills at most `budget` buffers now, or begins to. True where it
  // has more to do at once.
  [[nodiscard]] virtual bool receive(std::uint32_t budget) = 0;
  // Completions of the operations that are a frame or a buffer.
  virtual void transmit_completed(TransmitFrame& frame, std::int32_t result) = 0;
  virtual void receive_completed(ReceiveBuffer& buffer, std::int32_t result) = 0;
  // Another descriptor; any thread. Taken up by refresh() on the worker, or at attach().
  virtual void replace(UniqueFd fd) = 0;
  virtual void refresh() = 0;
};

// A back end as the NIC holds it.
struct Backend {
  std::uint32_t offloads = 0;  // k* bits that it can do or does in software
  bool large_receive = false;  // gives TCP packets of up to 64 KiB, if asked to
  bool link_up = true;
  std::vector<std::unique_ptr<BackendQueue>> queues;
  std::shared_ptr<TapSteering> steering;  // TAPs: by which the guest's RSS parameters hold; else nullptr
};

}  // namespace vmbusd::netvsp
