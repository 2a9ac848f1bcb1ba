// An open VMBus channel on its I/O worker: two rings, a doorbell, an interrupt, and the handler that speaks
// the device's protocol over them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/cache_line.h"
#include "base/log.h"
#include "base/result.h"
#include "devices/monitor_slot.h"
#include "devices/recovery_area.h"
#include "devices/status.h"
#include "io/worker.h"
#include "partition/partition.h"
#include "ringbuffer/incoming_ring.h"
#include "ringbuffer/outgoing_ring.h"
#include "vmbus/server.h"

namespace vmbusd::devices {

class Channel;

// The device's protocol on one channel. Made on the control thread by Device::open(), then called on the
// channel's worker only, and destroyed after stop() when no operation is in flight.
class ChannelHandler {
 public:
  virtual ~ChannelHandler() = default;

  // Once, before all else. `channel` outlives the handler.
  virtual void start(Channel& channel) = 0;
  // Reads up to `budget` packets from channel.incoming() and writes what is to be answered to
  // channel.outgoing(). The caller releases, commits and signals once for all of it. True where it did
  // something or has more to do now (a packet left for want of budget or of an SQE), so that it is called
  // again soon. An error stops the channel for good. Called on every doorbell, so also when the guest made
  // room in the outgoing ring.
  [[nodiscard]] virtual Result<bool> service(std::uint32_t budget) = 0;
  // The channel closes: cancel what is in flight. No service() follows; completions that still come in must
  // not touch the rings or guest memory (see Channel::stopping()).
  virtual void stop() = 0;
  // The channel is taken up from a worker process that died, by a start() just before: does what that process
  // had not done, as the region() tells it. The region is not trusted. An error: it cannot be taken up.
  [[nodiscard]] virtual Result<void> recover() {
    return fail(Errc::kUnsupported, "a device that cannot be taken up");
  }
  // What was written to the outgoing ring before is the guest's now.
  virtual void published() {}
  // Behind that, while there is a change (Channel::begin_change()): has the region() tell of it. False: it is
  // not over yet.
  [[nodiscard]] virtual bool record_change() { return true; }
  // Guest memory is about to change: bring operations in flight to an end soon (they complete as usual). For
  // handlers that keep operations armed without a request of the guest's, such as reads from a TAP.
  virtual void pause() {}
  virtual void resume() {}
  // The guest takes back a GPADL that the handler got from DeviceHost::find_gpadl(): call `done` once nothing
  // touches its pages, perhaps at once.
  virtual void release_gpadl(std::uint32_t gpadl, std::function<void()> done) {
    (void)gpadl;
    done();
  }
};

// How often read_index and write_index were published. What is read from the incoming ring or written to the
// outgoing one now is the guest's business when the count is one more.
struct PublicationCounts {
  std::uint64_t releases;
  std::uint64_t commits;
};

// Counters of one channel; written by its worker, read by anyone.
struct ChannelStats {
  std::atomic<std::uint64_t> doorbells{0};
  std::atomic<std::uint64_t> interrupts{0};        // eventfd writes
  std::atomic<std::uint64_t> interrupts_saved{0};  // the flag was set already
};

// Life cycle, all on the worker: start() -> [pause() -> resume()]* -> stop(). Created and destroyed on the
// control thread, outside that span.
class alignas(kCacheLineBytes) Channel final : public io::Pollable, private ring::OutgoingRing::Publisher {
 public:
  struct Config {
    std::string name;  // for logs: "guest1/scsi0" or "guest1/nic0.3"
    std::uint32_t relid = 0;
    std::uint32_t sub_channel_index = 0;
    std::uint32_t target_vp = 0;  // checked, or vmbus::kNoInterruptVp
    std::uint32_t event_flag = 0;
    // First half of the guest's interrupt page, for VMBus versions before 2.4, else nullptr;
    // guest-controlled.
    std::uint32_t* interrupt_page = nullptr;
    std::optional<MonitorSlot> monitor = std::nullopt;  // of a monitored channel
    RecoveryArea* recovery = nullptr;                   // where its region is, if anywhere
    bool recovered = false;  // taken up where a worker process left it; its region tells where that was
    std::vector<std::shared_ptr<const vmbus::Gpadl>> gpadls{};  // then: those of the channel
  };

  // Packets that one service() may take before the worker turns to others.
  static constexpr std::uint32_t kServiceBudget = 64;

  Channel(Config config, partition::Partition& partition, io::Worker& worker, ring::RingMemory incoming,
          ring::RingMemory outgoing, std::unique_ptr<ChannelHandler> handler, UniqueFd doorbell,
          std::shared_ptr<RecoveryRegion> region);
  ~Channel();

  // Takes up the rings; an error (indices out of range) leaves the channel as it was.
  [[nodiscard]] Result<void> start();
  // Stops for good; `stopped` is called on the worker when nothing is in flight and nothing will touch the
  // rings.
  void stop(std::function<void()> stopped);
  // Stops reading the ring and waits for operations in flight; `paused` is called on the worker then.
  void pause(std::function<void()> paused);
  void resume();
  // `idle` is called on the worker when nothing is in flight, and nothing will be again where stopping().
  void when_idle(std::function<void()> idle);
  // Interrupts go to another VP; an event that the old one may have missed is raised anew.
  void retarget(std::uint32_t vp);

  // For handlers, on the worker.
  [[nodiscard]] ring::IncomingRing& incoming() { return incoming_; }
  [[nodiscard]] ring::OutgoingRing& outgoing() { return outgoing_; }
  [[nodiscard]] const partition::GuestMemory& memory() const { return partition_.memory(); }
  [[nodiscard]] std::uint32_t vp_count() const { return partition_.vp_count(); }
  [[nodiscard]] io::Worker& worker() { return worker_; }
  [[nodiscard]] ChannelHandler& handler() { return *handler_; }
  [[nodiscard]] LogScope& log() { return log_; }
  [[nodiscard]] std::uint32_t relid() const { return config_.relid; }
  [[nodiscard]] std::uint32_t sub_channel_index() const { return config_.sub_channel_index; }
  // An operation into guest memory (or that will answer into the ring) begins. Each is ended by end_op(),
  // which also has the rings looked after this turn: write the answer before it.
  void begin_op() { ++in_flight_; }
  void end_op();
  [[nodiscard]] std::uint32_t in_flight() const { return in_flight_; }
  // The channel is closing or broken: no ring access any more.
  [[nodiscard]] bool stopping() const { return state_ != State::kRunning && state_ != State::kPaused; }
  // From service(): packets are left in the ring for want of requests or of room for answers, so there is
  // nothing to do before an end_op() or the guest's signal for room. Without it the worker would go on
  // polling a ring that is not empty.
  void stall() { stalled_ = true; }
  // Has service() called in this turn or the next: there is something to do that no doorbell announces.
  void activate() { worker_.activate(*this); }

  // For handlers that can be taken up by another worker process. Memory that it will have; zeroed when the
  // channel is new.
  static constexpr std::size_t kRecordBytes = 64;  // of it that are the channel's own
  [[nodiscard]] std::span<std::byte> region() const { return region_->bytes().subspan(kRecordBytes); }
  // For what others may look at when the channel is gone.
  [[nodiscard]] std::shared_ptr<RecoveryRegion> shared_region() const { return region_; }
  [[nodiscard]] bool recovered() const { return config_.recovered; }
  [[nodiscard]] const PublicationCounts& publications() const { return record_.counts; }
  // From the guest of a channel that is taken up; nullptr where it has lent none of that id.
  [[nodiscard]] std::shared_ptr<const vmbus::Gpadl> recovered_gpadl(std::uint32_t id) const;
  // What the region says is behind what the guest is told, until a turn has ended whose record_change() is
  // true. A process that dies in between cannot be followed.
  void begin_change();

  [[nodiscard]] IoCounters& io_counters() { return io_counters_; }

  // On the worker.
  [[nodiscard]] ChannelStatus status() const;

  [[nodiscard]] const ChannelStats& stats() const { return stats_; }
  [[nodiscard]] int doorbell() const { return doorbell_.get(); }

  bool poll() noexcept override;
  bool prepare_sleep() noexcept override;
  void woken() noexcept override;

 private:
  enum class State : std::uint8_t { kNew, kRunning, kPaused, kBroken, kStopping, kStopped };

  // An outgoing ring that stays full is looked at now and then: some guests never signal room [reference:
  // ring 5.1].
  class SpaceTimer final : public io::Timer {
   public:
    explicit SpaceTimer(Channel& channel) : channel_(channel) {}
    void expired() noexcept override { channel_.activate(); }

   private:
    Channel& channel_;
  };

  // A monitored channel that sleeps looks at its bit now and then; one that is polled need not.
  class MonitorTimer final : public io::Timer {
   public:
    explicit MonitorTimer(Channel& channel) : channel_(channel) {}
    void expired() noexcept override { channel_.look_at_monitor(); }

   private:
    Channel& channel_;
  };

  // The begin of the region. Written by the channel's worker, read by the one that comes after its death, so
  // that the order in the program is all that matters. A turn is published in these steps:
  //
  //   next_read_index, next_write_index here
  //   read_index in guest memory    releases, then read_index here
  //   write_index in guest memory   commits, then write_index here
  //
  // So an index that differs from the guest's is a publication that was not counted; and where read_index is
  // what it was to be and write_index is not, all the packets up to there are written and are to be
  // published.
  struct Record {
    PublicationCounts counts;
    std::uint32_t read_index;   // of the incoming ring
    std::uint32_t write_index;  // of the outgoing ring
    std::uint32_t next_read_index;
    std::uint32_t next_write_index;
  };
  static_assert(sizeof(Record) <= kRecordBytes);

  // ring::OutgoingRing::Publisher
  void before_publishing() override;
  void published() override;

  [[nodiscard]] Result<void> take_up_record();
  [[nodiscard]] bool release_incoming();
  void count_commit();
  void end_change();
  void signal_regardless();
  void look_at_monitor();
  void rest();                    // off the worker's list, without a timer
  void fail(const Error& error);  // the guest broke the ring or the protocol: stop serving, keep the guest
  void signal_guest();
  void settle();  // tells who waits for "nothing in flight"

  Config config_;
  partition::Partition& partition_;
  io::Worker& worker_;
  ring::IncomingRing incoming_;
  ring::OutgoingRing outgoing_;
  std::unique_ptr<ChannelHandler> handler_;
  State state_ = State::kNew;
  std::uint32_t in_flight_ = 0;
  bool stalled_ = false;
  UniqueFd doorbell_;  // eventfd that the guest's HvSignalEvent writes
  io::FdWatch doorbell_watch_;
  SpaceTimer space_timer_{*this};
  MonitorTimer monitor_timer_{*this};
  std::function<void()> stopped_;
  std::vector<std::function<void()>> waiting_idle_;
  LogScope log_;
  ChannelStats stats_;
  IoCounters io_counters_;
  std::shared_ptr<RecoveryRegion> region_;
  Record& record_;
  bool room_wanted_ = false;  // the guest is to be signalled for room that arm_space() published
  bool changing_ = false;
};

}  // namespace vmbusd::devices
