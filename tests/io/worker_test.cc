#include "io/worker.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <deque>
#include <future>
#include <limits>
#include <numeric>
#include <thread>
#include <vector>

#include "tests/catch.h"

using namespace vmbusd;
using namespace vmbusd::io;
using namespace std::chrono_literals;

namespace {

// Long enough for any machine, reached only by a test that fails.
constexpr auto kPatience = 20s;

std::unique_ptr<Worker> make_worker(const WorkerOptions& options) {
  Result<std::unique_ptr<Worker>> worker = Worker::create(options);
  if (!worker) {
    // The kernel, or the container, has no io_uring: not this program's fault. 77 means "skipped".
    WARN(explain_setup_error(worker.error()));
    std::exit(77);
  }
  return std::move(*worker);
}

// A running worker that the test commands from outside.
class RunningWorker {
 public:
  explicit RunningWorker(const WorkerOptions& options = {.name = "test"}) : worker_(make_worker(options)) {
    worker_->start();
  }
  ~RunningWorker() { worker_->stop(); }

  Worker& operator*() { return *worker_; }
  Worker* operator->() { return worker_.get(); }

  // Runs `function` on the worker and waits for it.
  void call(const std::function<void()>& function) {
    std::promise<void> done;
    worker_->post([&] {
      function();
      done.set_value();
    });
    REQUIRE(done.get_future().wait_for(kPatience) == std::future_status::ready);
  }
  // Until `condition`, evaluated on the worker, holds.
  [[nodiscard]] bool wait_until(const std::function<bool()>& condition) {
    const auto end = Clock::now() + kPatience;
    while (Clock::now() < end) {
      bool holds = false;
      call([&] { holds = condition(); });
      if (holds) return true;
      std::this_thread::sleep_for(1ms);
    }
    return false;
  }

 private:
  std::unique_ptr<Worker> worker_;
};

UniqueFd make_eventfd() {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  REQUIRE(fd);
  return fd;
}

void write_one(int fd) {
  const std::uint64_t one = 1;
  REQUIRE(::write(fd, &one, sizeof one) == sizeof one);
}

std::uint64_t read_counter(int fd) {
  std::uint64_t value = 0;
  return ::read(fd, &value, sizeof value) == sizeof value ? value : 0;
}

// Stops the watch and waits until it is.
void stop_watch(RunningWorker& worker, FdWatch& watch) {
  std::promise<void> stopped;
  worker.call([&] { watch.stop([&] { stopped.set_value(); }); });
  REQUIRE(stopped.get_future().wait_for(kPatience) == std::future_status::ready);
}

class CountingOp final : public IoOp {
 public:
  void complete(std::int32_t result, std::uint32_t) noexcept override {
    last_result = result;
    ++completions;
  }
  std::int32_t last_result = 0;
  int completions = 0;
};

class RecordingTimer final : public Timer {
 public:
  RecordingTimer(int name, std::vector<int>& record) : name_(name), record_(record) {}
  void expired() noexcept override { record_.push_back(name_); }

 private:
  int name_;
  std::vector<int>& record_;
};

// Finds work as often as it was told to.
class FakePollable final : public Pollable {
 public:
  bool poll() noexcept override {
    ++polls;
    if (on_poll) on_poll();
    if (work == 0) return false;
    --work;
    return true;
  }
  bool prepare_sleep() noexcept override {
    ++sleeps;
    if (refusals == 0) return true;
    --refusals;
    return false;
  }
  void woken() noexcept override { ++wakes; }

  std::function<void()> on_poll;
  int work = 0;
  int refusals = 0;
  int polls = 0;
  int sleeps = 0;
  int wakes = 0;
};

}  // namespace

TEST_CASE("posts of several threads all run, in each thread's order", "[io]") {
  constexpr int kThreads = 4;
  constexpr int kPosts = 5000;
  std::array<std::vector<int>, kThreads> seen;
  {
    RunningWorker worker;
    std::vector<std::thread> threads;
    for (int thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread] {
        for (int i = 0; i < kPosts; ++i) worker->post([&seen, thread, i] { seen[thread].push_back(i); });
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  std::vector<int> expected(kPosts);
  std::iota(expected.begin(), expected.end(), 0);
  for (const std::vector<int>& of_one : seen) CHECK(of_one == expected);
}

TEST_CASE("a post wakes a worker that sleeps or is about to", "[io]") {
  // Each round trip meets the worker at another point of falling asleep; a lost wake-up hangs one.
  constexpr int kRoundTrips = 20000;
  class Ping final : public Task {
   public:
    void run() noexcept override { done.store(true, std::memory_order_release); }
    std::atomic<bool> done{false};
  };
  RunningWorker worker;
  bool all_came_back = true;
  for (int i = 0; i < kRoundTrips && all_came_back; ++i) {
    Ping ping;
    worker->post(ping);
    const auto end = Clock::now() + kPatience;
    while (!ping.done.load(std::memory_order_acquire) && all_came_back) all_came_back = Clock::now() < end;
  }
  CHECK(all_came_back);
}

TEST_CASE("a task may post itself again", "[io]") {
  class Repeating final : public Task {
   public:
    explicit Repeating(Worker& worker) : worker_(worker) {}
    void run() noexcept override {
      if (++runs < 10) {
        worker_.post(*this);
      } else {
        done.set_value();
      }
    }
    int runs = 0;
    std::promise<void> done;

   private:
    Worker& worker_;
  };
  RunningWorker worker;
  Repeating task(*worker);
  worker->post(task);
  CHECK(task.done.get_future().wait_for(kPatience) == std::future_status::ready);
}

TEST_CASE("what is posted runs, before stop or after it", "[io]") {
  int runs = 0;
  std::unique_ptr<Worker> worker = make_worker({.name = "test"});
  worker->post([&] { ++runs; });
  SECTION("before it ran") {}
  SECTION("stopped from outside") {
    worker->start();
    worker->stop();
    CHECK(runs == 1);
  }
  SECTION("stopped by itself") {
    worker->post([&] { worker->stop(); });
    worker->run();
    CHECK(runs == 1);
  }
  worker->post([&] { ++runs; });
  worker.reset();
  CHECK(runs == 2);
}

TEST_CASE("the worker knows its thread", "[io]") {
  RunningWorker worker;
  CHECK_FALSE(worker->on_worker_thread());
  bool on_it = false;
  worker.call([&] { on_it = worker->on_worker_thread(); });
  CHECK(on_it);
}

TEST_CASE("timers expire in the order of their times", "[io]") {
  RunningWorker worker;
  std::vector<int> record;
  std::deque<RecordingTimer> timers;
  for (int name = 0; name < 5; ++name) timers.emplace_back(name, record);
  worker.call([&] {
    const Clock::time_point now = worker->now();
    worker->arm(timers[0], now + 30ms);
    worker->arm(timers[1], now + 10ms);
    worker->arm(timers[2], now + 20ms);
    worker->arm(timers[3], now + 1h);
    worker->arm(timers[3], now + 5ms);  // moved
    worker->arm(timers[4], now + 15ms);
    worker->disarm(timers[4]);
    worker->disarm(timers[4]);  // not armed: nothing
  });
  CHECK(worker.wait_until([&] { return record.size() == 4; }));
  CHECK(record == std::vector<int>{3, 1, 2, 0});
}

TEST_CASE("a timer that is always due does not starve the rest", "[io]") {
  class Eager final : public Timer {
   public:
    explicit Eager(Worker& worker) : worker_(worker) {}
    void expired() noexcept override {
      ++runs;
      worker_.arm(*this, worker_.now());
    }
    int runs = 0;

   private:
    Worker& worker_;
  };
  RunningWorker worker;
  Eager timer(*worker);
  worker.call([&] { worker->arm(timer, worker->now()); });
  CHECK(worker.wait_until([&] { return timer.runs > 100; }));
  worker.call([&] { worker->disarm(timer); });
}

TEST_CASE("a watch tells of each time its eventfd is written", "[io]") {
  RunningWorker worker;
  const UniqueFd fd = make_eventfd();
  FdWatch watch;
  int calls = 0;
  worker.call([&] { watch.start(*worker, fd.get(), [&] { ++calls; }); });
  for (int i = 1; i <= 3; ++i) {
    write_one(fd.get());
    CHECK(worker.wait_until([&] { return calls >= i; }));
  }
  CHECK(watch.active());
  stop_watch(worker, watch);
  CHECK_FALSE(watch.active());
  const int calls_before = calls;
  write_one(fd.get());
  worker.call([] {});
  CHECK(calls == calls_before);

  SECTION("started again, it tells of what was written before") {
    worker.call([&] { watch.start(*worker, fd.get(), [&] { ++calls; }); });
    CHECK(worker.wait_until([&] { return calls > calls_before; }));
    stop_watch(worker, watch);
  }
}

TEST_CASE("a watch tells of data and of the end of a socket", "[io]") {
  RunningWorker worker;
  std::array<int, 2> ends{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) == 0);
  const UniqueFd ours(ends[0]);
  UniqueFd theirs(ends[1]);
  FdWatch watch;
  std::string received;
  bool closed = false;
  worker.call([&] {
    watch.start(*worker, ours.get(), [&] {
      for (;;) {
        std::array<char, 16> buffer{};
        const ssize_t size = ::recv(ours.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
        if (size == 0) closed = true;
        if (size <= 0) return;
        received.append(buffer.data(), static_cast<std::size_t>(size));
      }
    });
  });
  REQUIRE(::send(theirs.get(), "one", 3, 0) == 3);
  CHECK(worker.wait_until([&] { return received == "one"; }));
  REQUIRE(::send(theirs.get(), "two", 3, 0) == 3);
  CHECK(worker.wait_until([&] { return received == "onetwo"; }));
  theirs.reset();
  CHECK(worker.wait_until([&] { return closed; }));
  stop_watch(worker, watch);
}

TEST_CASE("a watch may be stopped in its own callback", "[io]") {
  RunningWorker worker;
  const UniqueFd fd = make_eventfd();
  auto watch = std::make_unique<FdWatch>();
  worker.call([&] { watch->start(*worker, fd.get(), [&] { watch->stop([&] { watch.reset(); }); }); });
  write_one(fd.get());
  CHECK(worker.wait_until([&] { return watch == nullptr; }));
}

TEST_CASE("a watch of what cannot be polled goes on trying and can be stopped", "[io]") {
  RunningWorker worker;
  FdWatch watch;
  constexpr int kNoSuchFd = 1'000'000;
  worker.call([&] { watch.start(*worker, kNoSuchFd, [] {}); });
  const auto start = Clock::now();
  std::this_thread::sleep_for(30ms);
  // One retry in 10 ms, of a few turns, and no busy loop.
  const std::uint64_t turns = worker->stats().turns;
  CHECK(turns < 10 + 5 * static_cast<std::uint64_t>((Clock::now() - start) / 10ms));
  stop_watch(worker, watch);
}

TEST_CASE("more watches than queue entries are armed, told of and stopped", "[io]") {
  // 4 SQEs and 16 CQEs: arming and cancelling meet a full submission queue, the events a full completion
  // queue.
  constexpr std::size_t kWatches = 64;
  RunningWorker worker({.name = "test", .entries = 4});
  std::vector<UniqueFd> fds;
  std::deque<FdWatch> watches(kWatches);
  std::vector<int> calls(kWatches);
  for (std::size_t i = 0; i < kWatches; ++i) fds.push_back(make_eventfd());
  worker.call([&] {
    for (std::size_t i = 0; i < kWatches; ++i) {
      watches[i].start(*worker, fds[i].get(), [&calls, i] { ++calls[i]; });
    }
  });
  for (int round = 1; round <= 3; ++round) {
    // While the worker is busy, so that all events wait for it at once.
    worker.call([&] {
      for (const UniqueFd& fd : fds) write_one(fd.get());
    });
    CHECK(worker.wait_until(
        [&] { return std::all_of(calls.begin(), calls.end(), [&](int count) { return count >= round; }); }));
  }
  std::size_t stopped = 0;
  worker.call([&] {
    for (FdWatch& watch : watches) watch.stop([&] { ++stopped; });
  });
  CHECK(worker.wait_until([&] { return stopped == kWatches; }));
}

TEST_CASE("signals arrive, through the queue and past a full one", "[io]") {
  constexpr std::uint64_t kSignals = 10;  // 4 take the queue, 6 write(2)
  RunningWorker worker({.name = "test", .entries = 4});
  const UniqueFd fd = make_eventfd();
  worker.call([&] {
    for (std::uint64_t i = 0; i < kSignals; ++i) worker->signal(fd.get());
  });
  worker.call([] {});  // the turn of the signals is over
  CHECK(read_counter(fd.get()) == kSignals);
}

TEST_CASE("a full submission queue is back-pressure", "[io]") {
  constexpr std::uint32_t kEntries = 4;
  RunningWorker worker({.name = "test", .entries = kEntries});
  worker.call([] {});  // the wake-up's own entry is submitted
  CountingOp op;
  const auto fill = [&] {
    int taken = 0;
    while (io_uring_sqe* sqe = worker->sqe(op)) {
      io_uring_prep_fsync(sqe, -1, 0);
      ++taken;
    }
    return taken;
  };
  int first = 0;
  int second = 0;
  worker.call([&] { first = fill(); });
  worker.call([&] { second = fill(); });
  CHECK(first == kEntries);
  CHECK(second == kEntries);
  CHECK(worker.wait_until([&] { return op.completions == first + second; }));
}

TEST_CASE("completions that the completion queue has no room for are not lost", "[io]") {
  // 4 SQEs and 16 CQEs; operations that end all at once, none of which is asked for anew. So many that the
  // kernel, which looks after some 20 of them at a time, is done before all have been taken.
  constexpr int kOps = 256;
  RunningWorker worker({.name = "test", .entries = 4});
  const UniqueFd fd = make_eventfd();
  CountingOp op;
  int submitted = 0;
  CHECK(worker.wait_until([&] {
    while (submitted < kOps) {
      io_uring_sqe* const sqe = worker->sqe(op);
      if (sqe == nullptr) return false;  // in the next turn
      io_uring_prep_poll_add(sqe, fd.get(), POLLIN);
      ++submitted;
    }
    return true;
  }));
  worker.call([] {});  // the last of them are submitted
  CHECK(op.completions == 0);
  // A worker that is about to sleep asks the kernel for them anyway; one that polls must be told to.
  FakePollable busy;
  busy.work = std::numeric_limits<int>::max();
  worker.call([&] {
    worker->activate(busy);
    write_one(fd.get());
  });
  CHECK(worker.wait_until([&] { return op.completions == kOps; }));
  worker.call([&] { worker->deactivate(busy); });
}

TEST_CASE("operations complete with io_uring's result", "[io]") {
  RunningWorker worker;
  std::array<char, 32> path{"/tmp/worker_test_XXXXXX"};
  const UniqueFd fd(::mkstemp(path.data()));
  REQUIRE(fd);
  ::unlink(path.data());
  REQUIRE(::write(fd.get(), "vmbus", 5) == 5);
  std::array<char, 8> buffer{};
  iovec vector{buffer.data(), buffer.size()};
  CountingOp read;
  CountingOp bad;
  worker.call([&] {
    io_uring_prep_readv(worker->sqe(read), fd.get(), &vector, 1, 1);
    io_uring_prep_readv(worker->sqe(bad), -1, &vector, 1, 0);
  });
  CHECK(worker.wait_until([&] { return read.completions == 1 && bad.completions == 1; }));
  CHECK(read.last_result == 4);
  CHECK(std::string(buffer.data()) == "mbus");
  CHECK(bad.last_result == -EBADF);
}

TEST_CASE("a ring does what workers need and nothing else", "[io]") {
  RunningWorker worker;
  CountingOp open;
  CountingOp flagged;
  const UniqueFd fd = make_eventfd();
  worker.call([&] {
    io_uring_prep_openat(worker->sqe(open), AT_FDCWD, "/", O_RDONLY, 0);
    io_uring_sqe* const sqe = worker->sqe(flagged);
    io_uring_prep_poll_add(sqe, fd.get(), POLLOUT);
    sqe->flags = IOSQE_IO_DRAIN;
  });
  CHECK(worker.wait_until([&] { return open.completions == 1 && flagged.completions == 1; }));
  CHECK(open.last_result == -EACCES);
  CHECK(flagged.last_result == -EACCES);
}

TEST_CASE("a pollable is polled while it has work, then asked before it sleeps", "[io]") {
  RunningWorker worker({.name = "test", .poll_time_max = 0us});
  FakePollable pollable;
  pollable.work = 5;
  pollable.refusals = 2;
  worker.call([&] { worker->activate(pollable); });
  CHECK(worker.wait_until([&] { return !pollable.poll_hook.is_linked(); }));
  CHECK(pollable.wakes == 1);
  CHECK(pollable.sleeps == 3);
  CHECK(pollable.polls == 5 + 3);

  worker.call([&] {
    worker->activate(pollable);
    worker->activate(pollable);  // active already
  });
  CHECK(worker.wait_until([&] { return !pollable.poll_hook.is_linked(); }));
  CHECK(pollable.wakes == 2);
  CHECK(pollable.sleeps == 4);
}

TEST_CASE("pollables may change the set of active ones from poll()", "[io]") {
  RunningWorker worker({.name = "test", .poll_time_max = 0us});
  FakePollable first;
  FakePollable second;
  FakePollable third;
  first.on_poll = [&] {
    worker->deactivate(first);
    worker->deactivate(second);
    worker->activate(third);
  };
  worker.call([&] {
    worker->activate(first);
    worker->activate(second);
  });
  CHECK(worker.wait_until([&] { return third.sleeps == 1; }));
  CHECK(first.polls == 1);
  CHECK(first.sleeps == 0);
  CHECK(second.polls == 0);
  CHECK(third.wakes == 1);
}

TEST_CASE("a pollable with endless work does not starve the rest", "[io]") {
  RunningWorker worker;
  FakePollable busy;
  busy.work = 1 << 30;
  FakePollable other;
  other.work = 10;
  const UniqueFd fd = make_eventfd();
  FdWatch watch;
  int calls = 0;
  std::vector<int> record;
  RecordingTimer timer(1, record);
  worker.call([&] {
    worker->activate(busy);
    worker->activate(other);
    watch.start(*worker, fd.get(), [&] { ++calls; });
    worker->arm(timer, worker->now() + 1ms);
  });
  write_one(fd.get());
  CHECK(worker.wait_until([&] { return calls >= 1 && other.work == 0 && record.size() == 1; }));
  worker.call([&] { worker->deactivate(busy); });
  CHECK(worker.wait_until([&] { return !other.poll_hook.is_linked(); }));
  stop_watch(worker, watch);
}

TEST_CASE("an idle worker does nothing at all", "[io]") {
  RunningWorker worker;
  FakePollable pollable;
  const UniqueFd fd = make_eventfd();
  FdWatch watch;
  worker.call([&] {
    worker->activate(pollable);
    watch.start(*worker, fd.get(), [] {});
  });
  CHECK(worker.wait_until([&] { return !pollable.poll_hook.is_linked(); }));
  // A machine under load may let it fall asleep late; one that has wake-ups of its own is never quiet so
  // long.
  constexpr int kAttempts = 20;
  const WorkerStats& stats = worker->stats();
  bool quiet = false;
  for (int attempt = 0; attempt < kAttempts && !quiet; ++attempt) {
    const std::uint64_t turns = stats.turns;
    const std::uint64_t submits = stats.submits;
    std::this_thread::sleep_for(300ms);
    quiet = stats.turns == turns && stats.submits == submits;
  }
  CHECK(quiet);
  stop_watch(worker, watch);
}

TEST_CASE("a guest that comes seldom is not polled for", "[io]") {
  // Each activation comes long after the poll time, so polling would only burn: after the first few there is
  // one turn for the activation and a few for the post that makes it.
  constexpr int kActivations = 20;
  FakePollable pollable;
  RunningWorker worker({.name = "test", .poll_time_max = 1ms});
  for (int i = 0; i < kActivations; ++i) {
    worker.call([&] { worker->activate(pollable); });
    std::this_thread::sleep_for(5ms);
  }
  CHECK(worker->stats().turns < 4 * kActivations);
  CHECK(worker->stats().sleeps >= kActivations);
}

TEST_CASE("nothing runs on parked workers", "[io]") {
  // Plain variable: the thread sanitizer finds any worker that reads it beside the change.
  int shared = 0;
  RunningWorker busy;
  RunningWorker idle;
  FakePollable pollable;
  int last_seen = 0;
  bool ran_back = false;
  pollable.work = 1 << 30;
  pollable.on_poll = [&] {
    ran_back |= shared < last_seen;
    last_seen = shared;
  };
  busy.call([&] { busy->activate(pollable); });
  const std::array<Worker*, 2> workers = {&*busy, &*idle};
  constexpr int kChanges = 200;
  for (int i = 0; i < kChanges; ++i) {
    park_all(workers, [&] { ++shared; });
  }
  CHECK(busy.wait_until([&] { return last_seen == kChanges; }));
  busy.call([&] { busy->deactivate(pollable); });
  CHECK_FALSE(ran_back);

  SECTION("and none is needed") {
    park_all({}, [&] { ++shared; });
    CHECK(shared == kChanges + 1);
  }
}

TEST_CASE("two threads may park the same workers", "[io]") {
  RunningWorker first;
  RunningWorker second;
  const std::array<Worker*, 2> forth = {&*first, &*second};
  const std::array<Worker*, 2> back = {&*second, &*first};
  int shared = 0;
  std::thread other([&] {
    for (int i = 0; i < 100; ++i) park_all(back, [&] { ++shared; });
  });
  for (int i = 0; i < 100; ++i) park_all(forth, [&] { ++shared; });
  other.join();
  CHECK(shared == 200);
}

TEST_CASE("a worker that cannot be made says what to do", "[io]") {
  struct Case {
    const char* rule;
    Error error;
    const char* advice;
  };
  static constexpr Case kCases[] = {
      {"forbidden", {Errc::kOs, EPERM, "cannot create io_uring"}, "kernel.io_uring_disabled"},
      {"not in this kernel", {Errc::kOs, ENOSYS, "cannot create io_uring"}, "CONFIG_IO_URING"},
      {"no memory", {Errc::kOs, ENOMEM, "cannot create io_uring"}, "RLIMIT_MEMLOCK"},
      {"no descriptor", {Errc::kOs, EMFILE, "cannot create io_uring"}, "RLIMIT_NOFILE"},
      {"no descriptor at all", {Errc::kOs, ENFILE, "cannot create io_uring"}, "fs.file-max"},
      {"too old", {Errc::kOs, EINVAL, "cannot create io_uring"}, "Linux 5.13"},
      {"something else", {Errc::kOs, EIO, "cannot create io_uring"}, "Input/output error"},
      {"lacks an opcode", {Errc::kUnsupported, 0, "io_uring lacks IORING_OP_READ"}, "newer kernel"},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      const std::string text = explain_setup_error(c.error);
      CHECK(text.find(c.error.text) == 0);
      CHECK(text.find(c.advice) != std::string::npos);
      CHECK(text.find('\n') == std::string::npos);
    }
  }
}

TEST_CASE("no descriptor left is an error, not a crash", "[io]") {
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  const rlimit none{0, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  const Result<std::unique_ptr<Worker>> worker = Worker::create({.name = "test"});
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  REQUIRE_FALSE(worker.has_value());
  CHECK(worker.error().os_error == EMFILE);
}
