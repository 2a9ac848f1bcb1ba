// What has happened to partitions, for clients that follow it.
#pragma once

#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace vmbusd::daemon {

enum class EventKind : std::uint8_t {
  kPartitionAdded,
  kPartitionRemoved,
  kVmmAttached,
  kVmmDetached,
  kVmmRefused,  // another is attached
  kWorkerServing,
  kWorkerDied,
  kGuestTakenUp,  // by the worker that follows one that died, or was upgraded
  kChannelOpened,
  kChannelClosed,
  kBackendLost,
  kBackendRestored,
  kLinkSwitched,  // by the operator
  kDeviceAdded,   // at run time; a disk is a device "scsi0/5" here and below
  kDeviceRemoved,
  kDeviceResized,
  kLimitReached,
  kEventsDropped,  // one partition's, for there were too many in a second
};

inline constexpr std::array<std::string_view, 18> kEventNames = {
    "partition-added", "partition-removed", "vmm-attached",   "vmm-detached",   "vmm-refused",
    "worker-serving",  "worker-died",       "guest-taken-up", "channel-opened", "channel-closed",
    "backend-lost",    "backend-restored",  "link-switched",  "device-added",   "device-removed",
    "device-resized",  "limit-reached",     "events-dropped"};

struct Event {
  std::uint64_t number = 0;  // from 1, one after another
  std::chrono::system_clock::time_point time;
  EventKind kind{};
  std::string partition;  // empty: vmbusd as a whole
  std::string device;     // by its own name; empty: none
  std::string text;       // what else there is to say, such as the number of a process; may be empty
};

// Keeps the latest kEventsMax, whoever has read them or not: a client says which it has seen, and is told how
// many it was too slow for. Supervisor's thread.
class EventLog {
 public:
  static constexpr std::size_t kEventsMax = 1024;
  // Each holds one of the control socket's connections; others must still get through.
  static constexpr std::size_t kWaitersMax = 8;
  static constexpr std::chrono::milliseconds kWaitTime{30'000};

  struct Page {
    std::vector<Event> events;  // in order
    std::uint64_t last = 0;     // the latest event's number; 0: there has been none
    std::uint64_t missed = 0;   // that were asked for and are not kept any more
  };

  explicit EventLog(boost::asio::io_context& context, std::chrono::milliseconds wait_time = kWaitTime)
      : context_(context), wait_time_(wait_time) {}
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;

  void add(EventKind kind, std::string partition, std::string device, std::string text);

  // Those after the event of this number; 0, and a number that is yet to come, such as one of a vmbusd that
  // ran before: all.
  [[nodiscard]] Page after(std::uint64_t number) const;
  // Calls `done` with them as soon as there is one, which may be at once, or with none after the wait time.
  // False, and no call, where kWaitersMax wait already.
  [[nodiscard]] bool wait_for(std::uint64_t number, std::function<void(const Page&)> done);

 private:
  struct Waiter {
    std::uint64_t number;
    std::function<void(const Page&)> done;
    boost::asio::steady_timer timer;
  };

  void answer_all();

  boost::asio::io_context& context_;
  const std::chrono::milliseconds wait_time_;
  std::deque<Event> events_;
  std::uint64_t last_ = 0;
  std::map<std::uint64_t, Waiter> waiters_;  // by a number of its own each
  std::uint64_t waiter_id_ = 0;
  bool answering_ = false;  // soon
};

}  // namespace vmbusd::daemon
