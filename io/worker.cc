#include "io/worker.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/intrusive/set.hpp>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/thread_role.h"
#include "io/poll_time.h"
#include "io/polled_ring.h"
#include "io/ring_setup.h"
#include "io/turn_taking.h"

namespace vmbusd::io {

namespace {

// What one turn may take from each source before the others have theirs.
constexpr unsigned kMaxCompletionsPerTurn = 256;
constexpr unsigned kMaxTimersPerTurn = 64;

constexpr std::uint32_t kCompletionsPerEntry = 4;  // multishot polls complete many times for one SQE

// After an error of the kernel's that may pass, such as want of memory.
constexpr std::chrono::milliseconds kRetryInterval{10};

constexpr std::uint64_t kOne = 1;  // what is written to an eventfd

struct RequiredOpcode {
  int opcode;
  const char* missing;
};
// The oldest kernel that passes is 5.13, where polls became multishot; the tests run on 6.1 and later.
constexpr RequiredOpcode kRequiredOpcodes[] = {
    {IORING_OP_READV, "io_uring lacks IORING_OP_READV (Linux 5.1)"},
    {IORING_OP_WRITEV, "io_uring lacks IORING_OP_WRITEV (Linux 5.1)"},
    {IORING_OP_FSYNC, "io_uring lacks IORING_OP_FSYNC (Linux 5.1)"},
    {IORING_OP_POLL_ADD, "io_uring lacks IORING_OP_POLL_ADD (Linux 5.1)"},
    {IORING_OP_ASYNC_CANCEL, "io_uring lacks IORING_OP_ASYNC_CANCEL (Linux 5.5)"},
    {IORING_OP_READ, "io_uring lacks IORING_OP_READ (Linux 5.6)"},
    {IORING_OP_WRITE, "io_uring lacks IORING_OP_WRITE (Linux 5.6)"},
};
constexpr std::uint8_t kAllowedOpcodes[] = {
    IORING_OP_READV,     IORING_OP_WRITEV, IORING_OP_READ, IORING_OP_WRITE,    IORING_OP_FSYNC,
    IORING_OP_FALLOCATE, IORING_OP_SEND,   IORING_OP_RECV, IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL,
};
constexpr std::uint8_t kAllowedEntryFlags = IOSQE_CQE_SKIP_SUCCESS | IOSQE_IO_HARDLINK | IOSQE_ASYNC;
struct RequiredFeature {
  std::uint32_t feature;
  const char* missing;
};
constexpr RequiredFeature kRequiredFeatures[] = {
    {IORING_FEAT_NODROP, "io_uring drops completions (Linux 5.5 keeps them)"},
    {IORING_FEAT_EXT_ARG, "io_uring cannot wait with a timeout (Linux 5.11 can)"},
    // Tells nothing of polls, but came with them.
    {IORING_FEAT_RSRC_TAGS, "io_uring lacks multishot polls (Linux 5.13)"},
};

// Best first. All leave the ring disabled, because the thread that enables it becomes its single issuer
// (Linux 6.1), and that is to be the worker's.
constexpr std::array<unsigned, 3> kSetupFlags = {
    // Linux 6.1: completions are run where the worker asks for them, never by interrupting it.
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    // Linux 5.19: completions do not interrupt the worker in user space.
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    0,
};

void count(std::atomic<std::uint64_t>& counter) {
  // One writer: no locked instruction needed.
  counter.store(counter.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

class FunctionTask final : public Task {
 public:
  explicit FunctionTask(std::function<void()> function) : function_(std::move(function)) {}
  void run() noexcept override {
    const std::unique_ptr<FunctionTask> self(this);
    function_();
  }

 private:
  std::function<void()> function_;
};

// The write of Worker::signal(). It fails where the descriptor is no eventfd, which was checked when it was
// handed over, or with EAGAIN where the counter is full: then the reader has been told.
class SignalOp final : public IoOp {
 public:
  void complete(std::int32_t, std::uint32_t) noexcept override {}
};

}  // namespace

struct Worker::Impl {
  // Tells that the kernel holds no poll of the wake-up eventfd any more.
  class WakeOp final : public IoOp {
   public:
    explicit WakeOp(Impl& impl) : impl_(impl) {}
    void complete(std::int32_t, std::uint32_t cqe_flags) noexcept override {
      if ((cqe_flags & IORING_CQE_F_MORE) == 0) impl_.wake_armed = false;
    }

   private:
    Impl& impl_;
  };

  using PollList = bi::list<Pollable, bi::member_hook<Pollable, Pollable::ListHook, &Pollable::poll_hook>>;
  using TimerSet = bi::multiset<Timer, bi::member_hook<Timer, Timer::Hook, &Timer::timer_hook>>;

  Impl(Worker& owner, const WorkerOptions& worker_options) : worker(owner), options(worker_options) {}
  ~Impl() {
    // A task may have run to its end, and let the owner end the worker, while its poster still wakes it.
    while (posters.load(std::memory_order_acquire) != 0) std::this_thread::yield();
    if (ring_made) io_uring_queue_exit(&ring);
  }

  Result<void> set_up();
  Result<void> check_abilities();
  void turn();
  bool run_posted();
  bool expire_timers();
  bool reap();
  bool poll_active();
  void take_turns();
  void submit();
  void sleep();
  bool arm_wake();
  void wake();
  void push(Task& task);

  Worker& worker;
  const WorkerOptions options;
  io_uring ring{};
  bool ring_made = false;
  bool can_skip_completion = false;  // IOSQE_CQE_SKIP_SUCCESS, Linux 5.17
  SignalOp signal_op;

  std::unique_ptr<PolledRing> polled_ring;  // where WorkerOptions have it

  PollList active;
  TimerSet timers;
  PollTime poll_time{options.poll_time_max};
  bool takes_turns = false;
  TurnTaking turn_taking;
  std::uint64_t sqes_before = 0;  // until the last sleep

  // Newest first. See wake() for how it and `sleeping` keep wake-ups from getting lost.
  std::atomic<Task*> posted{nullptr};
  std::atomic<bool> sleeping{false};
  std::atomic<bool> stopping{false};
  std::atomic<std::uint32_t> posters{0};  // threads inside of push()
  UniqueFd wake_fd;                       // never read: each write completes the poll anew
  WakeOp wake_op{*this};
  bool wake_armed = false;

  std::atomic<std::thread::id> thread_id{};
  std::thread thread;
};

Result<void> Worker::Impl::set_up() {
  wake_fd = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_fd) return fail_os(errno, "cannot make an eventfd");
  int error = 0;
  for (const unsigned flags : kSetupFlags) {
    io_uring_params params{};
    params.flags = flags | IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE;
    params.cq_entries = options.entries * kCompletionsPerEntry;
    error = -io_uring_queue_init_params(options.entries, &ring, &params);
    if (error == 0) break;
    if (error != EINVAL) return fail_os(error, "cannot create io_uring");
  }
  if (error != 0) return fail_os(error, "cannot create io_uring");
  ring_made = true;
  VMBUSD_CHECK(check_abilities());
  VMBUSD_CHECK(restrict_ring(ring, kAllowedOpcodes, kAllowedEntryFlags));
  if (options.polled_ring) {
    VMBUSD_TRY(polled_ring, PolledRing::create(worker, options.entries));
  }
  return {};
}

Result<void> Worker::Impl::check_abilities() {
  for (const RequiredFeature& required : kRequiredFeatures) {
    if ((ring.features & required.feature) == 0) return fail(Errc::kUnsupported, required.missing);
  }
  const std::unique_ptr<io_uring_probe, decltype(&io_uring_free_probe)> probe(io_uring_get_probe_ring(&ring),
                                                                              &io_uring_free_probe);
  if (!probe) return fail(Errc::kUnsupported, "io_uring cannot be asked for its opcodes (Linux 5.6)");
  for (const RequiredOpcode& required : kRequiredOpcodes) {
    if (io_uring_opcode_supported(probe.get(), required.opcode) == 0) {
      return fail(Errc::kUnsupported, required.missing);
    }
  }
  can_skip_completion = (ring.features & IORING_FEAT_CQE_SKIP) != 0;
  return {};
}

void Worker::Impl::turn() {
  worker.now_ = Clock::now();
  count(worker.stats_.turns);
  run_posted();
  expire_timers();
  const bool reaped = reap();
  const bool polled = poll_active();
  if (active.empty()) {
    sleep();
    return;
  }
  submit();
  // Leaves the core's other thread, or the hypervisor, some room while we look at memory again and again.
  if (!reaped && !polled) __builtin_ia32_pause();
}

bool Worker::Impl::run_posted() {
  if (posted.load(std::memory_order_relaxed) == nullptr) return false;
  // acquire: pairs with push()'s release, so that the task is seen as its poster made it.
  Task* newest = posted.exchange(nullptr, std::memory_order_acquire);
  // In the order of posting. What these post runs in the next turn, so a turn is bounded.
  Task* oldest = nullptr;
  while (newest != nullptr) {
    Task* const next = newest->next;
    newest->next = oldest;
    oldest = newest;
    newest = next;
  }
  while (oldest != nullptr) {
    Task* const next = oldest->next;  // run() may free it, or post it anew
    oldest->next = nullptr;
    oldest->run();
    oldest = next;
  }
  return true;
}

bool Worker::Impl::expire_timers() {
  unsigned expired = 0;
  while (!timers.empty() && timers.begin()->due <= worker.now_ && expired < kMaxTimersPerTurn) {
    Timer& timer = *timers.begin();
    timers.erase(timers.begin());
    timer.expired();
    ++expired;
  }
  return expired != 0;
}

bool Worker::Impl::reap() {
  // Not io_uring_peek_batch_cqe(): it enters the kernel where completions wait there, which submit() does
  // together with handing over what is queued.
  unsigned reaped = 0;
  unsigned head = 0;
  io_uring_cqe* cqe = nullptr;
  io_uring_for_each_cqe(&ring, head, cqe) {
    if (reaped == kMaxCompletionsPerTurn) break;
    ++reaped;
    static_cast<IoOp*>(io_uring_cqe_get_data(cqe))->complete(cqe->res, cqe->flags);
  }
  io_uring_cq_advance(&ring, reaped);
  return reaped != 0;
}

bool Worker::Impl::poll_active() {
  bool worked = false;
  // Those that are there now, once each; one that is deactivated meanwhile lets another be polled twice.
  for (std::size_t left = active.size(); left > 0 && !active.empty(); --left) {
    Pollable& pollable = active.front();
    active.pop_front();
    active.push_back(pollable);
    if (pollable.poll()) {
      pollable.last_work = worker.now_;
      worked = true;
      continue;
    }
    if (!pollable.poll_hook.is_linked() || worker.now_ - pollable.last_work < poll_time.now()) continue;
    const bool asleep = pollable.prepare_sleep();
    if (!pollable.poll_hook.is_linked()) continue;
    if (asleep) {
      active.erase(active.iterator_to(pollable));
    } else {
      pollable.last_work = worker.now_;
      worked = true;
    }
  }
  return worked;
}

// Hands over what is queued and has the kernel post what has completed, by one call or none.
void Worker::Impl::submit() {
  const bool queued = io_uring_sq_ready(&ring) != 0;
  // The kernel raises a flag for completions that wait for us to enter it: those of DEFER_TASKRUN and
  // COOP_TASKRUN, and those that found the completion queue full.
  const bool waiting =
      (IO_URING_READ_ONCE(*ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
  if (!queued && !waiting) return;
  count(worker.stats_.submits);
  const int result = queued ? io_uring_submit_and_get_events(&ring) : io_uring_get_events(&ring);
  // SQEs that the kernel did not take stay queued for the next turn.
  VMBUSD_ASSERT(result >= 0 || may_pass(-result));
}

// A batch thread preempts no other when it is woken. [sched(7), SCHED_BATCH] A kernel that refuses leaves it
// as it was.
void Worker::Impl::take_turns() {
  const sched_param none{};
  ::pthread_setschedparam(::pthread_self(), turn_taking.lets_others_go_on() ? SCHED_BATCH : SCHED_OTHER,
                          &none);
}

void Worker::Impl::sleep() {
  const bool wakeable = wake_armed || arm_wake();
  // seq_cst: see wake().
  sleeping.store(true, std::memory_order_seq_cst);
  bool work = posted.load(std::memory_order_seq_cst) != nullptr || stopping.load(std::memory_order_seq_cst);
  work |= !wakeable || io_uring_cq_ready(&ring) != 0;
  __kernel_timespec timeout{};
  const bool timed = !timers.empty();
  if (timed) {
    // The turn took time, so now_ is too old.
    const auto wait =
        std::chrono::duration_cast<std::chrono::nanoseconds>(timers.begin()->due - Clock::now());
    constexpr std::int64_t kNanosecondsPerSecond = 1'000'000'000;
    work |= wait.count() <= 0;
    timeout.tv_sec = wait.count() / kNanosecondsPerSecond;
    timeout.tv_nsec = wait.count() % kNanosecondsPerSecond;
  }
  if (work) {
    sleeping.store(false, std::memory_order_relaxed);
    submit();
    return;
  }
  if (takes_turns) {
    const std::uint64_t sqes = worker.stats_.sqes.load(std::memory_order_relaxed);
    if (turn_taking.sleeps(static_cast<std::uint32_t>(sqes - std::exchange(sqes_before, sqes)))) take_turns();
  }
  count(worker.stats_.submits);
  count(worker.stats_.sleeps);
  io_uring_cqe* first = nullptr;
  const int result = io_uring_submit_and_wait_timeout(&ring, &first, 1, timed ? &timeout : nullptr, nullptr);
  // A poster that still sees us asleep writes the eventfd once too often; no harm.
  sleeping.store(false, std::memory_order_relaxed);
  VMBUSD_ASSERT(result >= 0 || may_pass(-result));
}

bool Worker::Impl::arm_wake() {
  io_uring_sqe* const sqe = worker.sqe(wake_op);
  if (sqe == nullptr) return false;
  io_uring_prep_poll_multishot(sqe, wake_fd.get(), POLLIN);
  wake_armed = true;
  return true;
}

// Called after something was published for the worker: a posted task, or the wish to stop.
//
// No wake-up is lost. The worker stores sleeping = true and then loads what was published; we stored what we
// publish and then load `sleeping`. All four are seq_cst, so they have one order that all threads agree on,
// and in it either our store comes before the worker's load, and the worker does not sleep, or the worker's
// store comes before our load, and we find it asleep. Of those who find it asleep the one whose exchange
// yields true writes; the others may leave it to that one, because its write comes after the worker's store
// and so ends that sleep: an eventfd written before the poll request is submitted completes it as one
// written after does, for its counter is never read.
void Worker::Impl::wake() {
  if (!sleeping.load(std::memory_order_seq_cst)) return;
  if (!sleeping.exchange(false, std::memory_order_seq_cst)) return;
  // EAGAIN: the counter is full after 2^64 writes. Nothing else can fail.
  static_cast<void>(::write(wake_fd.get(), &kOne, sizeof kOne) == sizeof kOne);
}

void Worker::Impl::push(Task& task) {
  posters.fetch_add(1, std::memory_order_relaxed);  // seen with the task, which is published after it
  Task* newest = posted.load(std::memory_order_relaxed);
  do {
    task.next = newest;
    // Release for run_posted(), seq_cst for wake(). Only the worker takes from the stack, and all at once, so
    // a `newest` that was taken and posted again meanwhile (ABA) is still a right successor.
  } while (
      !posted.compare_exchange_weak(newest, &task, std::memory_order_seq_cst, std::memory_order_relaxed));
  wake();
  // release: pairs with ~Impl().
  posters.fetch_sub(1, std::memory_order_release);
}

Result<std::unique_ptr<Worker>> Worker::create(const WorkerOptions& options) {
  std::unique_ptr<Worker> worker(new Worker(options));
  VMBUSD_CHECK(worker->impl_->set_up());
  return worker;
}

Worker::Worker(const WorkerOptions& options)
    : impl_(std::make_unique<Impl>(*this, options)), now_(Clock::now()) {}

Worker::~Worker() {
  VMBUSD_ASSERT(impl_->thread_id.load() == std::thread::id() && !impl_->thread.joinable());
  // Posted after the loop's end: whoever posted relies on run().
  while (impl_->run_posted()) {
  }
  VMBUSD_ASSERT(impl_->active.empty() && impl_->timers.empty());
}

void Worker::take_turns() {
  impl_->takes_turns = true;
}

void Worker::start() {
  // Signals are for the threads that expect them; those that tell of a fault are the faulting thread's.
  sigset_t blocked;
  ::sigfillset(&blocked);
  for (const int fault : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS})
    ::sigdelset(&blocked, fault);
  sigset_t before;
  VMBUSD_ASSERT(::pthread_sigmask(SIG_BLOCK, &blocked, &before) == 0);
  impl_->thread = std::thread([this] {
    constexpr std::size_t kThreadNameMax = 15;  // [linux: TASK_COMM_LEN]
    ::pthread_setname_np(::pthread_self(), impl_->options.name.substr(0, kThreadNameMax).c_str());
    if (impl_->takes_turns) impl_->take_turns();
    thread_started(ThreadRole::kIo);
    run();
  });
  VMBUSD_ASSERT(::pthread_sigmask(SIG_SETMASK, &before, nullptr) == 0);
}

void Worker::run() {
  Impl& impl = *impl_;
  impl.thread_id.store(std::this_thread::get_id());
  VMBUSD_ASSERT(enable_ring(impl.ring));
  // Spares a look-up of the ring's descriptor with each call; kernels before 5.18 do without.
  const bool registered = io_uring_register_ring_fd(&impl.ring) == 1;
  while (!impl.stopping.load(std::memory_order_acquire)) impl.turn();
  while (impl.run_posted()) {
  }
  // What those queued: signals, for instance.
  impl.submit();
  if (registered) io_uring_unregister_ring_fd(&impl.ring);
  impl.thread_id.store(std::thread::id());
}

void Worker::stop() {
  impl_->stopping.store(true, std::memory_order_seq_cst);
  impl_->wake();
  if (impl_->thread.joinable() && !on_worker_thread()) impl_->thread.join();
}

bool Worker::on_worker_thread() const {
  return impl_->thread_id.load(std::memory_order_relaxed) == std::this_thread::get_id();
}

void Worker::post(Task& task) {
  impl_->push(task);
}

void Worker::post(std::function<void()> function) {
  impl_->push(*std::make_unique<FunctionTask>(std::move(function)).release());
}

PolledRing* Worker::polled_ring() {
  return impl_->polled_ring.get();
}

io_uring_sqe* Worker::sqe(IoOp& op) {
  io_uring_sqe* const entry = io_uring_get_sqe(&impl_->ring);
  if (entry == nullptr) return nullptr;
  count(stats_.sqes);
  std::memset(entry, 0, sizeof *entry);
  io_uring_sqe_set_data(entry, &op);
  return entry;
}

void Worker::signal(int eventfd) {
  io_uring_sqe* const entry = sqe(impl_->signal_op);
  if (entry == nullptr) {
    // As for SignalOp: nothing that could be done about a failure.
    static_cast<void>(::write(eventfd, &kOne, sizeof kOne) == sizeof kOne);
    return;
  }
  io_uring_prep_write(entry, eventfd, &kOne, sizeof kOne, 0);
  if (impl_->can_skip_completion) entry->flags |= IOSQE_CQE_SKIP_SUCCESS;
}

void Worker::activate(Pollable& pollable) {
  const Clock::time_point last_work = std::exchange(pollable.last_work, now_);
  if (pollable.poll_hook.is_linked()) return;
  impl_->poll_time.woke(now_ - last_work);
  impl_->active.push_back(pollable);
  pollable.woken();
}

void Worker::deactivate(Pollable& pollable) {
  if (pollable.poll_hook.is_linked()) impl_->active.erase(impl_->active.iterator_to(pollable));
}

void Worker::arm(Timer& timer, Clock::time_point due) {
  disarm(timer);
  timer.due = due;
  impl_->timers.insert(timer);
}

void Worker::disarm(Timer& timer) {
  if (timer.timer_hook.is_linked()) impl_->timers.erase(impl_->timers.iterator_to(timer));
}

void FdWatch::start(Worker& worker, int fd, Callback callback) {
  VMBUSD_ASSERT(!active());
  worker_ = &worker;
  fd_ = fd;
  callback_ = std::move(callback);
  arm();
}

void FdWatch::stop(std::function<void()> done) {
  VMBUSD_ASSERT(active() && !stopped_ && done);
  stopped_ = std::move(done);
  worker_->disarm(retry_);
  if (armed_) cancel();
  finish_if_quiet();
}

void FdWatch::arm() {
  io_uring_sqe* const sqe = worker_->sqe(*this);
  if (sqe == nullptr) {
    worker_->arm(retry_, worker_->now());  // in the next turn
    return;
  }
  io_uring_prep_poll_multishot(sqe, fd_, POLLIN);
  armed_ = true;
}

void FdWatch::cancel() {
  io_uring_sqe* const sqe = worker_->sqe(cancel_);
  if (sqe == nullptr) {
    worker_->arm(retry_, worker_->now());
    return;
  }
  io_uring_prep_cancel(sqe, static_cast<IoOp*>(this), 0);
  cancelling_ = true;
}

void FdWatch::complete(std::int32_t result, std::uint32_t cqe_flags) noexcept {
  if ((cqe_flags & IORING_CQE_F_MORE) == 0) armed_ = false;
  if (!stopped_ && result >= 0) {
    in_callback_ = true;
    callback_();
    in_callback_ = false;
  }
  if (stopped_) {
    finish_if_quiet();
  } else if (!armed_ && result >= 0) {
    // The kernel ends a multishot poll where it cannot post to the completion queue.
    arm();
  } else if (!armed_) {
    worker_->arm(retry_, worker_->now() + kRetryInterval);
  }
}

void FdWatch::CancelOp::complete(std::int32_t, std::uint32_t) noexcept {
  // Whether it found the poll or not: that gives, or gave, a completion of its own.
  watch_.cancelling_ = false;
  watch_.finish_if_quiet();
}

void FdWatch::RetryTimer::expired() noexcept {
  if (!watch_.stopped_) {
    watch_.arm();
  } else if (watch_.armed_) {
    watch_.cancel();
  }
}

// The last thing that its callers do: `done` may destroy the watch.
void FdWatch::finish_if_quiet() {
  if (armed_ || cancelling_ || in_callback_) return;
  worker_->disarm(retry_);
  worker_ = nullptr;
  std::exchange(stopped_, nullptr)();
}

void park_all(std::span<Worker* const> workers, const std::function<void()>& change) {
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::size_t parked = 0;
    std::size_t left = 0;
    bool released = false;
  };
  class ParkTask final : public Task {
   public:
    ParkTask(Worker& worker, State& state) : worker_(worker), state_(state) {}
    void run() noexcept override {
      // Entries that the kernel did not take yet name descriptors and memory: let the turn submit them first.
      if (io_uring_sq_ready(&worker_.impl_->ring) != 0) {
        worker_.post(*this);
        return;
      }
      std::unique_lock lock(state_.mutex);
      ++state_.parked;
      state_.changed.notify_all();
      state_.changed.wait(lock, [this] { return state_.released; });
      ++state_.left;
      // Under the lock: the state may be gone once it is released.
      state_.changed.notify_all();
    }

   private:
    Worker& worker_;
    State& state_;
  };

  // Two at once could each hold a worker that the other waits for.
  static std::mutex one_at_a_time;
  const std::lock_guard only(one_at_a_time);
  State state;
  std::vector<ParkTask> tasks;
  tasks.reserve(workers.size());
  for (Worker* const worker : workers) {
    VMBUSD_ASSERT(!worker->on_worker_thread());
    tasks.emplace_back(*worker, state);
    worker->post(tasks.back());
  }
  std::unique_lock lock(state.mutex);
  state.changed.wait(lock, [&] { return state.parked == workers.size(); });
  change();
  state.released = true;
  state.changed.notify_all();
  state.changed.wait(lock, [&] { return state.left == workers.size(); });
}

std::string explain_setup_error(const Error& error) {
  std::string text = error.text;
  if (error.os_error == 0) {
    if (error.code == Errc::kUnsupported) text += "; run a newer kernel (6.1 or later is recommended)";
    return text;
  }
  text += std::string(": ") + std::strerror(error.os_error);
  switch (error.os_error) {
    case EPERM:
    case EACCES:
      return text +
             "; check sysctl kernel.io_uring_disabled (0 allows it), and whether a container's seccomp "
             "filter or a security module forbids io_uring_setup";
    case ENOSYS:
      return text +
             "; this kernel was built without CONFIG_IO_URING, or a container's seccomp filter hides it";
    case ENOMEM:
      return text + "; raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=), or free memory";
    case EMFILE:
      return text + "; raise RLIMIT_NOFILE (systemd: LimitNOFILE=)";
    case ENFILE:
      return text + "; raise sysctl fs.file-max";
    case EINVAL:
      return text + "; this kernel's io_uring is too old: run Linux 5.13 or later (6.1 is recommended)";
    default:
      return text;
  }
}

}  // namespace vmbusd::io
