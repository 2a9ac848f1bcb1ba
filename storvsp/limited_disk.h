// A disk that does only so much in a second, whoever asks.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>

#include "storvsp/disk.h"

namespace vmbusd::storvsp {

struct DiskLimits {
  std::uint32_t operations = 0;  // a second, of any kind; 0: any number
  std::uint64_t bytes = 0;       // a second, read and written; 0: any number
  // What was not used meanwhile may be made up for: as much as these milliseconds allow, at once.
  std::uint32_t burst_ms = 100;

  [[nodiscard]] bool any() const { return operations != 0 || bytes != 0; }
  friend bool operator==(const DiskLimits&, const DiskLimits&) = default;
};

// Hands out the times at which things of a cost may begin, so that they follow each other at one pace. The
// generic cell rate algorithm: one number, so that threads share it without a lock. Any thread.
class Pace {
 public:
  using Clock = io::Clock;

  explicit Pace(Clock::duration burst) : burst_(burst.count()) {}

  // Begins anew, while nobody takes.
  void reset(Clock::duration burst) {
    burst_ = burst.count();
    next_.store(0, std::memory_order_relaxed);
  }

  // When what takes `cost` of the pace's time may begin; at once where that is not after `now`.
  Clock::time_point take(Clock::time_point now, Clock::duration cost) {
    const Clock::rep earliest = now.time_since_epoch().count() - burst_;
    Clock::rep next = next_.load(std::memory_order_relaxed);
    Clock::rep begin = 0;
    do {
      begin = next > earliest ? next : earliest;
      // Relaxed: the number stands for itself.
    } while (!next_.compare_exchange_weak(next, begin + cost.count(), std::memory_order_relaxed));
    return Clock::time_point(Clock::duration(begin));
  }

 private:
  Clock::rep burst_;
  std::atomic<Clock::rep> next_{0};
};

// Lets operations through to another disk in the order of their coming, as the limits allow, over all queues
// together. What waits can be aborted.
class LimitedDisk final : public Disk {
 public:
  LimitedDisk(std::shared_ptr<Disk> disk, const DiskLimits& limits);

  [[nodiscard]] const DiskGeometry& geometry() const override { return disk_->geometry(); }
  [[nodiscard]] std::unique_ptr<DiskQueue> open_queue(io::Worker& worker) override;
  // The same for a queue of the other disk's that is in use already.
  [[nodiscard]] std::unique_ptr<DiskQueue> limit(std::unique_ptr<DiskQueue> queue, io::Worker& worker);
  void grow(std::uint64_t size_bytes) override { disk_->grow(size_bytes); }
  // Control thread, all workers being parked; then each queue's limits_changed().
  void set_limits(const DiskLimits& limits);

  // When that operation may begin. Any thread.
  [[nodiscard]] io::Clock::time_point begin_of(const DiskIo& io, io::Clock::time_point now);

 private:
  std::shared_ptr<Disk> disk_;
  DiskLimits limits_;
  Pace operations_;
  Pace bytes_;
};

}  // namespace vmbusd::storvsp
