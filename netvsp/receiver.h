// Network to guest on one channel: sub-allocations of the receive buffer, frames into them, transfer-page
// packets.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "netvsp/backend.h"
#include "netvsp/buffer_map.h"
#include "netvsp/counters.h"
#include "netvsp/net_record.h"
#include "netvsp/nvsp_session.h"
#include "netvsp/offload.h"
#include "ringbuffer/outgoing_ring.h"

namespace vmbusd::netvsp {

// A sub-allocation is always in one place:
//
//   free --> slot of an empty buffer --> (queue fills it) --> slot of a filled buffer
//    ^                                                              | deliver()
//    +- published() <- given back <- completed() <- with the guest, in a packet
//
// What was given back stays as it is until the guest can see that we have read so: another worker process
// would read it again.
//
// A control message takes a free one for itself. What the guest never gives back is missing, so a guest can
// starve itself only. Each channel has a share of its own: no lock. On the channel's worker.
class Receiver {
 public:
  // What the guest takes, as of now.
  struct Wants {
    std::uint32_t filter = 0;  // kFilter*
    std::uint64_t mac = 0;     // MacAddress::value()
    std::uint32_t offloads = 0;
    std::uint32_t mtu = 1500;
    bool vlan = false;
  };

  explicit Receiver(QueueCounters& counters) : counters_(counters) {}

  // Where it is recorded what the guest has, for another worker process too. Outlives the receiver.
  struct Records {
    std::span<ReceiveRecord> records;  // at least `count`
    const devices::PublicationCounts* publications = nullptr;
    bool taken_up = false;  // they are another worker process's: the guest has what they say
  };

  // Takes up sub-allocations first..first + count - 1 of the buffer. `large`: the back end gives TCP packets
  // of up to 64 KiB; see large_frames(). Errc::kBadGpadl where the buffer lies in crumbs, kProtocol where the
  // records cannot be.
  [[nodiscard]] Result<void> open(BufferMap map, const ReceiveLayout& layout, std::uint32_t first,
                                  std::uint32_t count, std::uint16_t set_id, bool large,
                                  const Records& records);
  // Guest memory has changed: the same buffer at other host addresses. idle() only.
  [[nodiscard]] Result<void> rebind(BufferMap map);
  // Gives it up: what is delivered stays with the guest. idle() only.
  void close();
  [[nodiscard]] bool is_open() const { return is_open_; }
  // No buffer is with a queue.
  [[nodiscard]] bool idle() const { return lent_ == 0; }
  // The guest has given back every packet. Looks at all of the share: not for each turn.
  [[nodiscard]] bool all_here() const;
  // Whether the share is large enough to keep some buffers for 64 KiB armed.
  [[nodiscard]] static bool large_frames(const ReceiveLayout& layout, std::uint32_t count);

  // For QueueUser.
  [[nodiscard]] ReceiveBuffer* take_buffer();
  void received(ReceiveBuffer& buffer, std::uint32_t frame_size);
  void returned(ReceiveBuffer& buffer);
  // Nothing to fill and nothing being filled: the guest has it all, or does not take what is filled.
  [[nodiscard]] bool starved() const { return ready_.empty() && lent_ == 0; }

  // Writes packets for what was received. False where the ring has no room for more now (it is armed).
  [[nodiscard]] Result<bool> deliver(ring::OutgoingRing& ring, const Wants& wants);
  // Writes a control message, of at most the sub-allocation's size. False where it cannot be sent now.
  [[nodiscard]] Result<bool> deliver_control(ring::OutgoingRing& ring, std::span<const std::byte> message);
  // The guest completed the packet. An id that is not outstanding is ignored.
  void completed(std::uint64_t transaction_id);
  // What was read and written before is published now. Between two turns.
  void published();
  // Gives completed sub-allocations to buffers that lack some.
  void replenish();

 private:
  using BufferList = bi::list<ReceiveBuffer, bi::member_hook<ReceiveBuffer, ListHook, &ReceiveBuffer::hook>,
                              bi::constant_time_size<false>>;
  static constexpr std::uint32_t kBuffersMax = 32;
  // Ranges of one packet: enough that its cost is spread, few enough that the guest gives them back soon.
  static constexpr std::uint32_t kRangesMax = 64;
  // So that a flood of data cannot keep a control message out.
  static constexpr std::uint32_t kControlReserve = 16;
  // For segments of a large packet, beside those that it frees itself.
  static constexpr std::uint32_t kSegmentReserve = 160;

  // The frame of a filled buffer as it will be delivered.
  struct Frame {
    ReceiveBuffer* buffer;
    VirtioNetHeader header;
    std::uint32_t offset;  // of the frame in the first sub-allocation
    std::uint32_t size;
    bool tagged = false;  // the tag was taken out
    std::uint16_t tci = 0;
    ReceivePlan plan;
    std::span<std::byte> head;  // private copy
  };

  [[nodiscard]] Result<void> take_map(BufferMap map);
  [[nodiscard]] Result<void> find_free(bool taken_up);
  void add_slot(ReceiveBuffer& buffer, std::uint32_t slot);
  void rebuild_pieces(ReceiveBuffer& buffer);
  void refill(ReceiveBuffer& buffer);
  void drop_slots(ReceiveBuffer& buffer, std::uint32_t used);
  void settle(ReceiveBuffer& buffer);

  [[nodiscard]] std::uint32_t copy_head(const ReceiveBuffer& buffer, std::uint32_t size);
  [[nodiscard]] bool wanted(std::uint64_t destination, std::uint32_t size, const Wants& wants);
  static void strip_tag(Frame& frame);
  void place_addresses(const Frame& frame);
  static void complete_sum(const Frame& frame);
  [[nodiscard]] static ReceiveHead head_of(const Frame& frame, std::uint32_t fragment_size, bool first);
  void write(std::uint32_t slot, std::uint32_t offset, std::span<const std::byte> bytes);
  void write_head(std::uint32_t slot, const ReceiveHead& head);

  [[nodiscard]] bool deliver_plain(ReceiveBuffer& buffer, const Wants& wants, std::uint32_t frame_max);
  [[nodiscard]] Result<bool> deliver_one(ring::OutgoingRing& ring, ReceiveBuffer& buffer, const Wants& wants);
  void deliver_whole(Frame& frame);
  [[nodiscard]] Result<bool> deliver_fragments(ring::OutgoingRing& ring, Frame& frame,
                                               std::uint32_t fragments);
  [[nodiscard]] Result<bool> deliver_segments(ring::OutgoingRing& ring, Frame& frame, const Wants& wants);
  void count_received(const Frame& frame);

  void batch(std::uint32_t slot, std::uint32_t message_length);
  [[nodiscard]] Result<bool> flush(ring::OutgoingRing& ring, NvspChannelType type = NvspChannelType::kData);

  QueueCounters& counters_;
  bool is_open_ = false;
  BufferMap map_;
  ReceiveLayout layout_;
  std::uint32_t first_ = 0;
  std::uint32_t count_ = 0;
  std::uint32_t slots_wanted_ = 1;  // of each buffer
  std::uint32_t reserve_ = 0;       // free ones that buffers do not take
  bool single_ = true;              // each sub-allocation is one piece of host memory
  std::vector<std::byte*> hosts_;   // where it is, by sub-allocation from first_ on; single_ only
  std::uint32_t lent_ = 0;          // buffers with a queue
  std::vector<std::uint32_t> free_;
  std::span<ReceiveRecord> with_guest_;  // by sub-allocation, from first_ on
  const devices::PublicationCounts* publications_ = nullptr;
  std::vector<std::uint32_t> given_back_;  // firsts of packets
  std::uint32_t buffer_count_ = 0;
  std::unique_ptr<ReceiveBuffer[]> buffers_;
  BufferList ready_;
  BufferList incomplete_;
  BufferList filled_;
  std::unique_ptr<std::byte[]> staging_;  // kLargeFrameMax: a packet that is being cut up
  std::uint16_t fragment_id_ = 0;
  alignas(16) std::array<std::byte, kFrameHeadMax> head_;

  // The packet under construction.
  struct {
    ring::TransferPageHeader header;
    std::array<ring::TransferPageRange, kRangesMax> ranges;
  } extension_{};
  std::uint32_t batched_ = 0;
  std::uint32_t batch_first_ = 0;
  std::uint32_t batch_last_ = 0;
};

}  // namespace vmbusd::netvsp
