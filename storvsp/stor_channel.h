// VSTOR over one channel of a storage controller: SRBs in, completions out.
#pragma once

#include <array>
#include <atomic>
#include <boost/intrusive/list.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/cache_line.h"
#include "devices/channel.h"
#include "ringbuffer/gpa_direct.h"
#include "storvsp/channel_set.h"
#include "storvsp/disk.h"
#include "storvsp/lazy_memory.h"
#include "storvsp/limited_disk.h"
#include "storvsp/scsi_job.h"
#include "storvsp/scsi_target.h"
#include "storvsp/stor_record.h"
#include "storvsp/vstor.h"
#include "storvsp/vstor_session.h"

namespace vmbusd::storvsp {

// What the channels of a controller share; made before the first opens, destroyed after the last closed. LUNs
// come and go while all workers are parked.
struct ControllerState {
  struct Lun {
    std::shared_ptr<Disk> disk;  // nullptr: no such LUN; channels that have a queue of it hold it too
    std::unique_ptr<LogicalUnit> unit;
    MediumRecord medium{};           // but for its size, which is the unit's
    LimitedDisk* limited = nullptr;  // `disk`, where it is one
    bool leaving = false;            // no channel takes it up any more
    [[nodiscard]] bool served() const { return disk != nullptr && !leaving; }
    [[nodiscard]] MediumRecord medium_served() const {
      return served() ? MediumRecord{medium.device, medium.inode, unit->geometry().size_bytes}
                      : MediumRecord{};
    }
  };

  VstorLimits limits;
  std::array<Lun, kLunSlots> luns;
  // Bit n: LUN n is another disk now, or none, than where the last worker process left it. Set by the
  // primary's recover(), before sub-channels open.
  std::uint64_t replaced_luns = 0;
  // The version that the primary channel's guest agreed on, once it has ended its initialisation; else 0.
  // Stored by the primary's worker, loaded by the control thread when a sub-channel opens.
  std::atomic<std::uint16_t> ready_version{0};
  ChannelSet channels;
  // The primary channel's, which all channels write. Set by its worker before sub-channels open; the next
  // primary's comes when all have closed.
  std::shared_ptr<devices::RecoveryRegion> region;
  // Bit n: LUN n was being reset when another worker process died. Set by the primary's worker as `region`
  // is.
  std::uint64_t resets_left = 0;
  StorRecord& record() const {
    return *reinterpret_cast<StorRecord*>(region->bytes().subspan(devices::Channel::kRecordBytes).data());
  }
  std::span<LunRecord, kLunSlots> lun_records() const { return record().luns; }
};

class StorChannel;

// A command that takes several operations, and its turn. Pool: StorChannel::jobs_.
struct StorJob {
  ScsiJob scsi;
  ScsiResult result;
  bool exclusive = false;
  bool begun = false;        // false: it waits for other commands to end
  bool in_submit = false;    // the queue was just given its operation ...
  std::optional<int> error;  // ... and ended it at once, with this outcome
  StorJob* next_free = nullptr;
};

// One packet of the guest's, until its completion stands in the ring. Pool: StorChannel::requests_.
class StorRequest final : public DiskRequest {
 public:
  using Hook = bi::list_member_hook<bi::link_mode<bi::safe_link>>;

  void disk_done(int error) noexcept override;

  StorChannel* channel = nullptr;
  Hook hook;  // in exactly one of: free, outstanding, held, waiting for ring space, resets, answered
  StorSlot* slot = nullptr;  // its packet, and what the guest may ask for of another worker process
  StorJob* job = nullptr;    // of an outstanding command that has one
  std::uint32_t bytes = 0;   // that it moves, against StorChannel::kBytesInHandMax
  bool aborted = false;      // by a reset
  bool abort_due = false;    // the disk is not asked yet to abort it

  // Host memory of the guest's buffer. Most buffers are a few pieces; longer lists go to `long_vectors`,
  // whose pages cost memory only from then on.
  static constexpr std::size_t kShortVectors = 8;
  std::array<iovec, kShortVectors> short_vectors;
  std::span<iovec> long_vectors;
};

// The path of a request, all on the channel's worker:
//
//   service(): free -> read from the ring -> LogicalUnit -> answered at once
//                                                        -> outstanding, in a DiskQueue -> disk_done()
//                                                        -> outstanding, with a job: the same, several times
//                                                        -> held, until there is a job or an exclusive one
//                                                        ends
//   answer: into the outgoing ring, or waiting for space there -> answered -> published() -> free
//
// The pool bounds what the guest makes us hold: without a free request the ring is not read. Nothing is
// allocated, and no lock taken, after start().
class alignas(kCacheLineBytes) StorChannel final : public devices::ChannelHandler {
 public:
  using OfferSubChannels = std::function<void(std::uint32_t count)>;

  // The primary channel. `state` outlives it. `offer_sub_channels` may be called on the worker.
  StorChannel(ControllerState& state, OfferSubChannels offer_sub_channels);
  // A sub-channel of a guest that agreed on `version`.
  StorChannel(ControllerState& state, std::uint16_t version);
  ~StorChannel() override;

  void start(devices::Channel& channel) override;
  [[nodiscard]] Result<bool> service(std::uint32_t budget) override;
  [[nodiscard]] Result<void> recover() override;
  void published() override;
  void stop() override;

  // Changes of the controller's LUNs at run time, on the channel's worker.
  // Serves it from here on.
  void add_lun(std::uint8_t lun);
  // Serves it no more, and arrives when nothing of it is under way.
  void stop_lun(std::uint8_t lun, const std::shared_ptr<Barrier>& barrier);
  // Then, when all channels have: lets go of its disk.
  void drop_lun(std::uint8_t lun);
  // ControllerState::Lun::limited is there now, or has other limits.
  void limit_lun(std::uint8_t lun);
  // The primary channel has its guest look which LUNs there are, and how they are.
  void tell_guest_of_luns();

 private:
  friend class StorRequest;
  using List = bi::list<StorRequest, bi::member_hook<StorRequest, StorRequest::Hook, &StorRequest::hook>,
                        bi::constant_time_size<false>>;

  [[nodiscard]] Result<void> allocate();
  void receive(const ring::Packet& packet);
  void execute(StorRequest& request, const ring::Packet& packet);
  void execute(StorRequest& request, DataDirection direction, bool mapped);
  [[nodiscard]] Result<void> redo(StorRequest& request);
  void run(StorRequest& request, DataDirection direction);
  void run_job(StorRequest& request, const ScsiCommand& command, ScsiNext next);
  void hold(StorRequest& request);
  void retry_held();
  void drain(std::uint8_t lun, const StorRequest* except, const std::shared_ptr<Barrier>& barrier);
  void begin(StorRequest& request);
  void advance(StorRequest& request, ScsiNext next);
  [[nodiscard]] ScsiNext continue_job(StorRequest& request, int error);
  void job_disk_done(StorRequest& request, int error);
  void end_job(StorRequest& request, bool aborted);
  [[nodiscard]] bool map_buffer(StorRequest& request, const ring::Packet& packet, std::uint32_t length,
                                bool writable);
  [[nodiscard]] bool map_segments(StorRequest& request, std::span<const ring::GpaSegment> segments,
                                  std::uint32_t length, bool writable);
  [[nodiscard]] std::span<ring::GpaSegment> segments_of(const StorRequest& request, std::uint32_t count);
  void record_lun(std::uint8_t lun);
  void count_reset(std::uint64_t luns, bool begins);
  void reset(StorRequest& request);
  void finish_reset(StorRequest& request, std::uint64_t luns);
  void abort(std::uint64_t luns, const std::shared_ptr<Barrier>& barrier);
  void finish_drains();
  void leave_when_idle();
  void disk_done(StorRequest& request, int error);
  void fail(StorRequest& request, int error);
  void log_failure(const StorRequest& request, int error);
  void answer(StorRequest& request);
  // False: the outgoing ring is full, and the guest will signal when it is not.
  [[nodiscard]] Result<bool> write_waiting();
  [[nodiscard]] Result<bool> write_answer(const StorRequest& request);
  [[nodiscard]] Result<bool> write_notice();
  // Something is to go into the outgoing ring that had no room.
  [[nodiscard]] bool waits() const { return !answers_.empty() || notice_waits_; }
  [[nodiscard]] Result<void> recover_luns();
  void open_queue(std::uint8_t lun);
  void release(StorRequest& request) {
    request.slot->mark(StorSlot::kFree);
    bytes_in_hand_ -= request.bytes;
    free_.push_front(request);
  }
  void answered(StorRequest& request) {
    request.slot->mark(channel_->publications().commits + 1);
    bytes_in_hand_ -= request.bytes;
    answered_.push_front(request);
  }
  void leave_outstanding(StorRequest& request) {
    request.abort_due = false;
    outstanding_.erase(outstanding_.iterator_to(request));
  }
  // No more is taken out of the ring before something is answered.
  [[nodiscard]] bool full() const { return free_.empty() || bytes_in_hand_ >= kBytesInHandMax; }

  ControllerState& state_;
  OfferSubChannels offer_sub_channels_;
  bool primary_;
  VstorSession session_;
  devices::Channel* channel_ = nullptr;
  std::optional<Error> broken_;  // found outside service(), which reports it

  std::array<std::shared_ptr<Disk>, kLunSlots> disks_;
  std::array<std::unique_ptr<DiskQueue>, kLunSlots> queues_;  // of disks_
  std::uint64_t luns_ = 0;                                    // bit n: LUN n is there
  bool notice_waits_ = false;                                 // tell_guest_of_luns() ...
  bool notice_written_ = false;                               // ... has not been published
  std::uint32_t notices_told_ = 0;                            // StorRecord::notices_due, as it was then
  LazyMemory vector_memory_;
  std::unique_ptr<StorRequest[]> requests_;
  std::size_t count_ = 0;         // of requests
  StorRecord* record_ = nullptr;  // at the begin of the channel's region
  ring::GpaSegment* long_segments_ = nullptr;
  std::vector<ring::GpaSegment> segments_;  // scratch of map_buffer()
  // Jobs are rare and slow: a few at a time, the others wait.
  static constexpr std::size_t kJobs = 4;
  LazyMemory job_memory_;
  std::array<StorJob, kJobs> jobs_;
  StorJob* free_job_ = nullptr;
  std::uint64_t next_sequence_ = 0;

  // Of the host's disk, for which other guests wait too. More than it needs to be busy: 64 of the largest
  // transfers that Linux makes.
  static constexpr std::uint64_t kBytesInHandMax = 64u << 20;
  std::uint64_t bytes_in_hand_ = 0;  // that requests move which are not free

  List free_;
  List outstanding_;  // in order of arrival
  List held_;         // in order of arrival
  List answers_;      // that wait for ring space
  List answered_;     // whose answers the guest cannot see yet: the slots are kept till then
  List resets_;       // that wait for all channels to be done with the requests before them

  // Arrives at a barrier when the outstanding requests of some LUNs that came before have ended.
  struct Drain {
    std::uint64_t luns;
    std::uint64_t sequence;
    const StorRequest* except;
    std::shared_ptr<Barrier> barrier;
  };
  std::vector<Drain> drains_;
};

}  // namespace vmbusd::storvsp
