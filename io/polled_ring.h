// A second io_uring of a worker, for devices that have queues without interrupts (NVMe's poll_queues).
#pragma once

#include <liburing.h>

#include <chrono>
#include <cstdint>
#include <memory>

#include "base/result.h"
#include "io/worker.h"

namespace vmbusd::io {

// Its completions come only while somebody looks for them (IORING_SETUP_IOPOLL), so it is polled with the
// worker's other sources while it has operations in flight, once a turn. After the worker's poll time without
// a completion it looks again by a timer, at growing intervals, so that a slow device costs no processor.
// Costs nothing while nothing is in flight. Worker thread, but for making and destroying.
class PolledRing final : private Pollable, private Timer {
 public:
  // `worker` outlives it; nothing is in flight when it is destroyed.
  [[nodiscard]] static Result<std::unique_ptr<PolledRing>> create(Worker& worker, std::uint32_t entries);
  ~PolledRing();
  PolledRing(const PolledRing&) = delete;
  PolledRing& operator=(const PolledRing&) = delete;

  // As Worker::sqe(), for reads and writes of files that were opened with O_DIRECT; all else completes with
  // EACCES. They cannot be cancelled. EOPNOTSUPP: the file, or the device below it, cannot be polled.
  [[nodiscard]] io_uring_sqe* sqe(IoOp& op);

 private:
  explicit PolledRing(Worker& worker) : worker_(worker) {}
  [[nodiscard]] Result<void> set_up(std::uint32_t entries);

  // Pollable
  [[nodiscard]] bool poll() noexcept override;
  [[nodiscard]] bool prepare_sleep() noexcept override;
  void woken() noexcept override {}
  // Timer
  void expired() noexcept override { worker_.activate(*this); }

  Worker& worker_;
  io_uring ring_{};
  bool made_ = false;
  std::uint32_t in_flight_ = 0;  // entries taken, submitted or not, that have not completed
  std::chrono::microseconds interval_{0};
};

}  // namespace vmbusd::io
