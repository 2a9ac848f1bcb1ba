#include "storvsp/limited_disk.h"

#include <cerrno>
#include <chrono>
#include <deque>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "storvsp/null_disk.h"
#include "tests/catch.h"
#include "tests/io/on_worker.h"

namespace vmbusd::storvsp {
namespace {

using namespace std::chrono_literals;
using io::Clock;

Clock::time_point at(Clock::duration since) {
  return Clock::time_point(1h) + since;
}

TEST_CASE("a pace hands out times one after the other, whoever asks", "[storvsp]") {
  Pace pace(0ms);
  CHECK(pace.take(at(0ms), 10ms) == at(0ms));
  CHECK(pace.take(at(0ms), 10ms) == at(10ms));
  CHECK(pace.take(at(5ms), 20ms) == at(20ms));
  CHECK(pace.take(at(5ms), 1ms) == at(40ms));
  // What nobody asked for is over.
  CHECK(pace.take(at(100ms), 10ms) == at(100ms));
}

TEST_CASE("a pace makes up for a burst, and for no more", "[storvsp]") {
  Pace pace(30ms);
  // Three at once of what is past, then one each 10 ms.
  for (int i = 0; i < 3; ++i) CHECK(pace.take(at(0ms), 10ms) < at(0ms));
  CHECK(pace.take(at(0ms), 10ms) == at(0ms));
  CHECK(pace.take(at(0ms), 10ms) == at(10ms));
  CHECK(pace.take(at(1h), 10ms) == at(1h - 30ms));
}

DiskGeometry geometry() {
  DiskGeometry geometry;
  geometry.size_bytes = 1 << 20;
  return geometry;
}

TEST_CASE("operations and bytes are limited, each as its own", "[storvsp]") {
  const DiskIo read{.op = DiskOp::kRead, .length = 4096};
  const DiskIo write{.op = DiskOp::kWrite, .length = 8192};
  const DiskIo flush{.op = DiskOp::kFlush};
  SECTION("operations of any kind") {
    LimitedDisk disk(std::make_unique<NullDisk>(geometry()), {100, 0, 0});
    CHECK(disk.begin_of(read, at(0ms)) == at(0ms));
    CHECK(disk.begin_of(flush, at(0ms)) == at(10ms));
    CHECK(disk.begin_of(write, at(0ms)) == at(20ms));
  }
  SECTION("bytes that are moved") {
    LimitedDisk disk(std::make_unique<NullDisk>(geometry()), {0, 4096 * 100, 0});
    CHECK(disk.begin_of(read, at(0ms)) == at(0ms));
    CHECK(disk.begin_of(flush, at(0ms)) == at(0ms));
    CHECK(disk.begin_of(write, at(0ms)) == at(10ms));
    CHECK(disk.begin_of(read, at(0ms)) == at(30ms));
  }
  SECTION("both") {
    LimitedDisk disk(std::make_unique<NullDisk>(geometry()), {200, 4096 * 100, 0});
    CHECK(disk.begin_of(read, at(0ms)) == at(0ms));
    CHECK(disk.begin_of(read, at(0ms)) == at(10ms));
    CHECK(disk.begin_of(flush, at(0ms)) == at(10ms));
    CHECK(disk.begin_of(flush, at(0ms)) == at(15ms));
  }
}

class TestRequest final : public DiskRequest {
 public:
  void disk_done(int result) noexcept override {
    error = result;
    order->push_back(this);
  }
  std::vector<TestRequest*>* order = nullptr;
  int error = -1;
};

// Requests to a disk of 100 operations a second, without a burst, on a worker.
struct Fixture {
  static constexpr int kRequests = 4;

  Fixture() {
    worker->start();
    for (TestRequest& request : requests) {
      request.io = {.op = DiskOp::kFlush};
      request.order = &order;
    }
    io::on_worker(*worker, [this] { queue = disk.open_queue(*worker); });
  }
  ~Fixture() {
    io::on_worker(*worker, [this] { queue->cancel(); });
    worker->stop();
  }
  [[nodiscard]] std::size_t done() {
    std::size_t count = 0;
    io::on_worker(*worker, [&] { count = order.size(); });
    return count;
  }

  LimitedDisk disk{std::make_unique<NullDisk>(geometry()), {100, 0, 0}};
  std::unique_ptr<io::Worker> worker = std::move(*io::Worker::create({.name = "limited-test"}));
  std::unique_ptr<DiskQueue> queue;
  std::deque<TestRequest> requests = std::deque<TestRequest>(kRequests);
  std::vector<TestRequest*> order;
};

TEST_CASE("what is over the limit waits its turn", "[storvsp]") {
  Fixture fixture;
  const Clock::time_point start = Clock::now();
  io::on_worker(*fixture.worker, [&] {
    for (TestRequest& request : fixture.requests) fixture.queue->submit(request);
    CHECK(fixture.order.size() == 1);
  });
  while (fixture.done() < Fixture::kRequests) std::this_thread::sleep_for(1ms);
  CHECK(Clock::now() - start >= 30ms);
  for (int i = 0; i < Fixture::kRequests; ++i) {
    CHECK(fixture.order[static_cast<std::size_t>(i)] == &fixture.requests[static_cast<std::size_t>(i)]);
    CHECK(fixture.requests[static_cast<std::size_t>(i)].error == 0);
  }
}

TEST_CASE("what waits can be aborted", "[storvsp]") {
  Fixture fixture;
  io::on_worker(*fixture.worker, [&] {
    for (TestRequest& request : fixture.requests) fixture.queue->submit(request);
    fixture.queue->abort(fixture.requests[1]);
    fixture.queue->abort(fixture.requests[3]);
    CHECK(fixture.requests[1].error == ECANCELED);
    CHECK(fixture.requests[3].error == ECANCELED);
  });
  while (fixture.done() < Fixture::kRequests) std::this_thread::sleep_for(1ms);
  CHECK(fixture.requests[2].error == 0);
}

TEST_CASE("a queue that is cancelled ends what waits", "[storvsp]") {
  Fixture fixture;
  io::on_worker(*fixture.worker, [&] {
    for (TestRequest& request : fixture.requests) fixture.queue->submit(request);
    fixture.queue->cancel();
    CHECK(fixture.order.size() == Fixture::kRequests);
    CHECK(fixture.requests[0].error == 0);
    CHECK(fixture.requests[3].error == ECANCELED);
    TestRequest late;
    late.order = &fixture.order;
    fixture.queue->submit(late);
    CHECK(late.error == ECANCELED);
    fixture.order.pop_back();
  });
}

}  // namespace
}  // namespace vmbusd::storvsp
