#include "io/polled_ring.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "base/assert.h"
#include "base/fd.h"
#include "tests/catch.h"
#include "tests/io/on_worker.h"

namespace vmbusd::io {
namespace {

using namespace std::chrono_literals;

constexpr std::uint32_t kBytes = 4096;

// A worker that runs, with a polled ring of 8 entries.
class Fixture {
 public:
  Fixture() : worker_(std::move(*Worker::create({.name = "test", .entries = 8, .polled_ring = true}))) {
    worker_->start();
  }
  ~Fixture() { worker_->stop(); }

  template <typename Function>
  void on_worker(Function function) {
    io::on_worker(*worker_, [&] { function(*worker_->polled_ring()); });
  }
  [[nodiscard]] const WorkerStats& stats() const { return worker_->stats(); }

 private:
  std::unique_ptr<Worker> worker_;
};

class Op final : public IoOp {
 public:
  void complete(std::int32_t result, std::uint32_t) noexcept override { done_.set_value(result); }
  [[nodiscard]] std::int32_t wait() { return done_.get_future().get(); }

 private:
  std::promise<std::int32_t> done_;
};

// 64 KiB on a file system that knows O_DIRECT; none where this machine has no such.
UniqueFd direct_file() {
  UniqueFd plain(::open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!plain) return {};
  const std::vector<char> content(64 * 1024, 'p');
  REQUIRE(::write(plain.get(), content.data(), content.size()) == static_cast<ssize_t>(content.size()));
  REQUIRE(::fsync(plain.get()) == 0);
  const std::string path = "/proc/self/fd/" + std::to_string(plain.get());
  return UniqueFd(::open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

TEST_CASE("a worker has a polled ring only if it is to have one", "[io]") {
  const auto without = std::move(*Worker::create({.name = "test"}));
  CHECK(without->polled_ring() == nullptr);
  const auto with = std::move(*Worker::create({.name = "test", .polled_ring = true}));
  CHECK(with->polled_ring() != nullptr);
}

TEST_CASE("a polled ring does nothing but read and write", "[io]") {
  Fixture fixture;
  for (const std::uint8_t opcode :
       {IORING_OP_NOP, IORING_OP_FSYNC, IORING_OP_OPENAT, IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL}) {
    Op op;
    fixture.on_worker([&](PolledRing& ring) {
      io_uring_sqe* const sqe = ring.sqe(op);
      VMBUSD_ASSERT(sqe != nullptr);
      sqe->opcode = opcode;
      sqe->fd = -1;
    });
    CHECK(op.wait() == -EACCES);
  }
}

TEST_CASE("a polled read comes, or the kernel says that it cannot be polled for", "[io]") {
  const UniqueFd file = direct_file();
  if (!file) return;
  Fixture fixture;
  const std::unique_ptr<char, Free> memory(static_cast<char*>(std::aligned_alloc(kBytes, 8 * kBytes)));
  // More than there are entries at once, so that they come in several groups.
  constexpr std::uint32_t kCount = 24;
  std::vector<Op> ops(kCount);
  for (std::uint32_t begun = 0; begun < kCount;) {
    const std::uint32_t before = begun;
    fixture.on_worker([&](PolledRing& ring) {
      for (; begun < kCount; ++begun) {
        io_uring_sqe* const sqe = ring.sqe(ops[begun]);
        if (sqe == nullptr) break;
        io_uring_prep_read(sqe, file.get(), memory.get() + begun % 8 * kBytes, kBytes, begun % 16 * kBytes);
        io_uring_sqe_set_data(sqe, static_cast<IoOp*>(&ops[begun]));
      }
    });
    CHECK(begun - before <= 8);
  }
  for (Op& op : ops) {
    const std::int32_t result = op.wait();
    CHECK((result == static_cast<std::int32_t>(kBytes) || result == -EOPNOTSUPP));
    if (result > 0) CHECK(memory.get()[0] == 'p');
  }
}

TEST_CASE("a polled ring with nothing in flight costs nothing", "[io]") {
  Fixture fixture;
  Op op;
  fixture.on_worker([&](PolledRing& ring) { ring.sqe(op)->opcode = IORING_OP_NOP; });
  CHECK(op.wait() == -EACCES);
  std::this_thread::sleep_for(20ms);  // until it sleeps
  const std::uint64_t turns = fixture.stats().turns.load();
  std::this_thread::sleep_for(100ms);
  CHECK(fixture.stats().turns.load() == turns);
}

}  // namespace
}  // namespace vmbusd::io
