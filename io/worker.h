// The I/O worker: one thread, one io_uring, timers, messages from other threads, and the poll-then-sleep loop
// that all channels of the worker share.
#pragma once

#include <liburing.h>

#include <atomic>
#include <boost/intrusive/list.hpp>
#include <boost/intrusive/set_hook.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>

#include "base/fd.h"
#include "base/result.h"

namespace vmbusd::io {

namespace bi = boost::intrusive;
using Clock = std::chrono::steady_clock;

// The user_data of one SQE; must outlive its (last) CQE.
class IoOp {
 public:
  // Worker thread. `result` as io_uring gives it (negative errno); `cqe_flags` tells IORING_CQE_F_MORE. May
  // take SQEs, but nothing is submitted before the turn's end.
  virtual void complete(std::int32_t result, std::uint32_t cqe_flags) noexcept = 0;

 protected:
  ~IoOp() = default;
};

// A source of work that the worker polls while it is active. A channel is one: it becomes active by its
// doorbell or a completion, and goes to sleep by itself when polling finds nothing for a while. What sleeps
// costs the worker nothing.
class Pollable {
 public:
  using ListHook = bi::list_member_hook<bi::link_mode<bi::safe_link>>;

  // Does a bounded piece of work. True where it did some, or has more to do now. May activate and deactivate
  // any Pollable, itself too, but must not destroy itself.
  [[nodiscard]] virtual bool poll() noexcept = 0;
  // Polling found nothing for the poll time. Asks the peer for wake-ups (unmask, full barrier, look again):
  // true where nothing has come meanwhile; it is not active any more then.
  [[nodiscard]] virtual bool prepare_sleep() noexcept = 0;
  // Became active: wake-ups are not needed (mask).
  virtual void woken() noexcept = 0;

  ListHook poll_hook;           // the worker's: list of active ones
  Clock::time_point last_work;  // the worker's: when it was activated or poll() last found work

 protected:
  ~Pollable() = default;
};

// A piece of work for a worker, made by another thread. Owned by whoever posts it; must stay until run() was
// called.
class Task {
 public:
  virtual void run() noexcept = 0;  // worker thread

  Task* next = nullptr;  // the worker's

 protected:
  ~Task() = default;
};

// A one-shot timer of one worker. Worker thread only.
class Timer {
 public:
  using Hook = bi::set_member_hook<bi::link_mode<bi::safe_link>>;

  virtual void expired() noexcept = 0;

  Hook timer_hook;
  Clock::time_point due;
  bool operator<(const Timer& other) const { return due < other.due; }

 protected:
  ~Timer() = default;
};

struct WorkerOptions {
  std::string name;             // of the thread, at most 15 characters are shown
  std::uint32_t entries = 256;  // SQEs; the completion queue has 4 times as many
  // How long to poll at most after the last work before sleeping; 0: never. The worker polls for less, down
  // to not at all, while polling finds nothing.
  std::chrono::microseconds poll_time_max{50};
  bool polled_ring = false;  // has one
};

class PolledRing;

// Counters; written by the worker, read by anyone.
struct WorkerStats {
  std::atomic<std::uint64_t> turns{0};
  std::atomic<std::uint64_t> sleeps{0};
  std::atomic<std::uint64_t> submits{0};  // io_uring_enter calls, those of sleeps included
  std::atomic<std::uint64_t> sqes{0};
};

// Life cycle: create(), start() (makes the thread) or run() on the caller's thread, then stop(). All SQEs go
// through sqe(): they are submitted once per turn.
//
//   turn: run posted tasks -> expired timers -> reap CQEs -> poll every active Pollable -> submit
//   a Pollable idle for its poll time: prepare_sleep(), and it is not active any more
//   nothing active: submit and wait for a CQE, a posted task or the next timer
class Worker {
 public:
  // Errors say what the operator can do: see explain_setup_error().
  [[nodiscard]] static Result<std::unique_ptr<Worker>> create(const WorkerOptions& options);
  ~Worker();  // stopped before
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void start();
  // Before start(): it has one CPU with those that it serves, see TurnTaking.
  void take_turns();
  // Runs the loop on the calling thread until stop(). Once.
  void run();
  // Any thread. Ends the loop after the current turn; start()'s thread is joined (unless called on it). Every
  // operation in flight must have completed: owners stop theirs first. What was posted before runs before the
  // loop ends; what is posted later, when the worker is destroyed, by the destroying thread.
  void stop();
  [[nodiscard]] bool on_worker_thread() const;

  // Any thread. Lock-free. Wakes the worker where it sleeps.
  void post(Task& task);
  // Any thread; allocates: for control paths.
  void post(std::function<void()> function);

  // Below: worker thread only (or before start()).

  // The next free SQE with its user_data set to `op`, zeroed; nullptr where the queue is full: keep the
  // request, it is back-pressure, and try again on the next poll() (return true from it so that there is
  // one).
  [[nodiscard]] io_uring_sqe* sqe(IoOp& op);
  // nullptr where there is none: see WorkerOptions.
  [[nodiscard]] PolledRing* polled_ring();
  // Queues a write of 1 to an eventfd, which should be non-blocking (else the kernel hands each write to a
  // thread of its own); falls back to write(2) where the queue is full. Never lost.
  void signal(int eventfd);
  // Polled from this turn on until it goes to sleep; calls woken() where it was not active. Active already:
  // its poll time starts anew.
  void activate(Pollable& pollable);
  // Not polled any more, prepare_sleep() is not called. Not active: nothing.
  void deactivate(Pollable& pollable);
  void arm(Timer& timer, Clock::time_point due);  // armed already: moved
  void disarm(Timer& timer);                      // not armed: nothing
  // Time of this turn's start (before the first turn: of creation); cheap.
  [[nodiscard]] Clock::time_point now() const { return now_; }
  [[nodiscard]] const WorkerStats& stats() const { return stats_; }

 private:
  explicit Worker(const WorkerOptions& options);
  struct Impl;
  friend void park_all(std::span<Worker* const> workers, const std::function<void()>& change);

  std::unique_ptr<Impl> impl_;
  Clock::time_point now_{};
  WorkerStats stats_;
};

// Watches a descriptor for readability with a multishot poll; for an eventfd the counter is never read (each
// write gives a completion), so a doorbell costs no system call of its own. Neither moved nor destroyed while
// active. Worker thread only.
class FdWatch final : public IoOp {
 public:
  using Callback = std::function<void()>;

  // `callback` runs whenever `fd` became readable, had an error or was hung up, also now and then for
  // nothing: it is told of changes, so it takes all there is or comes back by itself. A watch that the kernel
  // ends is armed again.
  void start(Worker& worker, int fd, Callback callback);
  // Cancels; `done` runs once no completion can come any more, perhaps before this returns. Not active then,
  // and may be destroyed. Once for each start().
  void stop(std::function<void()> done);
  [[nodiscard]] bool active() const { return worker_ != nullptr; }

  void complete(std::int32_t result, std::uint32_t cqe_flags) noexcept override;

 private:
  // The cancel request of stop().
  class CancelOp final : public IoOp {
   public:
    explicit CancelOp(FdWatch& watch) : watch_(watch) {}
    void complete(std::int32_t result, std::uint32_t cqe_flags) noexcept override;

   private:
    FdWatch& watch_;
  };
  // Arms or cancels once the submission queue has room, or the kernel has memory, again.
  class RetryTimer final : public Timer {
   public:
    explicit RetryTimer(FdWatch& watch) : watch_(watch) {}
    void expired() noexcept override;

   private:
    FdWatch& watch_;
  };

  void arm();
  void cancel();
  void finish_if_quiet();

  Worker* worker_ = nullptr;
  int fd_ = -1;
  bool armed_ = false;        // the kernel holds the poll request
  bool cancelling_ = false;   // the kernel holds the cancel request
  bool in_callback_ = false;  // whose frame must not lose what it stands on
  Callback callback_;
  std::function<void()> stopped_;  // set from stop() on
  CancelOp cancel_{*this};
  RetryTimer retry_{*this};
};

// Runs `change` on the calling thread while every worker is parked between two turns, with nothing of it left
// in its submission queue: descriptors named there may be closed and memory unmapped that no operation in
// flight uses. The workers run until this returns; the caller is none of them.
void park_all(std::span<Worker* const> workers, const std::function<void()>& change);

// One sentence for the operator on why io_uring cannot be had, from Worker::create's error.
[[nodiscard]] std::string explain_setup_error(const Error& error);

}  // namespace vmbusd::io
