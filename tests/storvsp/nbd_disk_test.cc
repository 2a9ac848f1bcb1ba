#include "storvsp/nbd_disk.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/catch.h"
#include "tests/io/on_worker.h"
#include "tests/storvsp/nbd_server.h"

namespace vmbusd::storvsp {
namespace {

using namespace std::chrono_literals;
using io::Clock;

constexpr std::uint64_t kDiskBytes = 4u << 20;
constexpr std::uint32_t kBlock = 4096;

NbdExport export_of(const NbdServer& server) {
  NbdExport found;
  REQUIRE(probe_nbd(connect_unix(server.socket()), "", 10s, found).empty());
  return found;
}

class TestRequest final : public DiskRequest {
 public:
  void disk_done(int error) noexcept override { done.set_value(error); }
  std::promise<int> done;
  std::vector<iovec> vectors;
};

// A disk with a queue on each of some workers, and what the supervisor does for it: each time a socket is
// wanted, one is connected as soon as there is a server.
struct Fixture {
  explicit Fixture(const NbdServer& nbd_server, std::chrono::seconds delay = 30s,
                   std::size_t workers_wanted = 1)
      : Fixture(nbd_server, export_of(nbd_server), delay, workers_wanted) {}

  Fixture(const NbdServer& nbd_server, const NbdExport& found, std::chrono::seconds delay,
          std::size_t workers_wanted)
      : server(nbd_server) {
    NbdConnection::Options options;
    options.expected = found;
    options.reconnect_delay = delay;
    options.subject = "nbd-test";
    options.wanted = [this] { ++wanted; };
    connection = NbdConnection::make(std::move(options));
    DiskGeometry geometry;
    geometry.size_bytes = found.size_bytes;
    disk = std::make_unique<NbdDisk>(connection, geometry, NbdDisk::Options{});
    for (std::size_t i = 0; i < workers_wanted; ++i) {
      workers.push_back(std::move(*io::Worker::create({.name = "nbd-test"})));
      workers.back()->start();
      queues.emplace_back();
      on_worker(i, [&] { queues[i] = disk->open_queue(*workers[i]); });
    }
    connector = std::thread([this] {
      std::uint32_t connected = 0;
      while (!over) {
        std::this_thread::sleep_for(2ms);
        if (wanted == connected) continue;
        UniqueFd socket = connect_unix(server.socket());
        if (!socket) continue;
        ++connected;
        connection->connect(std::move(socket));
      }
    });
  }
  ~Fixture() {
    over = true;
    connector.join();
    for (std::size_t i = 0; i < workers.size(); ++i) {
      on_worker(i, [&] { queues[i]->cancel(); });
    }
    for (const auto& worker : workers) worker->stop();
  }

  template <typename Function>
  void on_worker(std::size_t index, Function function) {
    io::on_worker(*workers[index], std::move(function));
  }
  void submit(TestRequest& request, DiskIo io, std::vector<iovec> pieces, std::size_t queue = 0) {
    request.io = io;
    request.vectors = std::move(pieces);
    request.buffers = request.vectors;
    workers[queue]->post([this, &request, queue] { queues[queue]->submit(request); });
  }
  // One operation to its end. The errno.
  int run(DiskIo io, std::vector<iovec> pieces = {}, std::size_t queue = 0) {
    TestRequest request;
    std::future<int> done = request.done.get_future();
    submit(request, io, std::move(pieces), queue);
    const int error = done.get();
    if (io.op == DiskOp::kMap) extent = request.extent;
    return error;
  }
  int read(std::uint64_t offset, std::vector<std::byte>& to, std::size_t queue = 0) {
    return run({.op = DiskOp::kRead, .offset = offset, .length = static_cast<std::uint32_t>(to.size())},
               {{to.data(), to.size()}}, queue);
  }
  int write(std::uint64_t offset, std::vector<std::byte>& from, bool fua = false, std::size_t queue = 0) {
    return run({.op = DiskOp::kWrite,
                .fua = fua,
                .offset = offset,
                .length = static_cast<std::uint32_t>(from.size())},
               {{from.data(), from.size()}}, queue);
  }

  const NbdServer& server;
  std::shared_ptr<NbdConnection> connection;
  std::unique_ptr<NbdDisk> disk;
  std::vector<std::unique_ptr<io::Worker>> workers;
  std::vector<std::unique_ptr<DiskQueue>> queues;
  DiskExtent extent;
  std::atomic<std::uint32_t> wanted{0};
  std::atomic<bool> over{false};
  std::thread connector;
};

std::vector<std::byte> bytes_of(std::uint32_t seed, std::size_t size) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

std::vector<iovec> in_pieces(std::vector<std::byte>& bytes, std::size_t piece) {
  std::vector<iovec> pieces;
  for (std::size_t at = 0; at < bytes.size(); at += piece) {
    pieces.push_back({bytes.data() + at, std::min(piece, bytes.size() - at)});
  }
  return pieces;
}

TEST_CASE("a probe tells what an export is", "[storvsp][nbd]") {
  SECTION("one that can do everything") {
    const NbdServer server({"memory", "4M"});
    const NbdExport found = export_of(server);
    CHECK(found.size_bytes == kDiskBytes);
    CHECK(found.block_bytes == 512);
    CHECK(found.transfer_bytes_max == 32u << 20);
    CHECK(found.writable);
    CHECK(found.flushes);
    CHECK(found.fua);
    CHECK(found.trims);
    CHECK(found.zeroes);
    CHECK(found.extents);
  }
  SECTION("one to be read only") {
    const NbdServer server({"--readonly", "memory", "4M"});
    const NbdExport found = export_of(server);
    CHECK(!found.writable);
    CHECK(!found.trims);
    CHECK(!found.zeroes);
  }
  SECTION("one that is particular about sizes") {
    const NbdServer server({"--filter=blocksize-policy", "memory", "4M", "blocksize-minimum=4096",
                            "blocksize-preferred=8192", "blocksize-maximum=65536"});
    const NbdExport found = export_of(server);
    CHECK(found.block_bytes == 4096);
    CHECK(found.preferred_bytes == 8192);
    CHECK(found.transfer_bytes_max == 65536);
  }
  SECTION("blocks that no disk has") {
    const NbdServer server({"--filter=blocksize-policy", "memory", "4M", "blocksize-minimum=8192",
                            "blocksize-preferred=8192", "blocksize-maximum=65536"});
    NbdExport found;
    CHECK(probe_nbd(connect_unix(server.socket()), "", 10s, found) ==
          "the server's smallest block is larger than 4096 bytes");
  }
  SECTION("a server that says nothing") {
    const NbdServer server({"memory", "4M"});
    server.pause();
    NbdExport found;
    CHECK(probe_nbd(connect_unix(server.socket()), "", 50ms, found) ==
          "the server does not finish the handshake; it may serve one client at a time");
    server.go_on();
  }
  SECTION("an export that is not there") {
    const NbdServer server(
        {"--filter=exportname", "memory", "4M", "exportname=disk", "exportname-strict=true"});
    NbdExport found;
    CHECK(probe_nbd(connect_unix(server.socket()), "disk", 10s, found).empty());
    CHECK(!probe_nbd(connect_unix(server.socket()), "another", 10s, found).empty());
  }
}

TEST_CASE("what is written to an NBD server is read", "[storvsp][nbd]") {
  const NbdServer server({"--filter=blocksize-policy", "memory", "4M", "blocksize-minimum=512",
                          "blocksize-preferred=4096", "blocksize-maximum=65536"});
  Fixture fixture(server);
  std::vector<std::byte> written = bytes_of(1, 1u << 20);
  std::vector<std::byte> found(written.size());
  SECTION("in one piece, larger than the server takes at once") {
    CHECK(fixture.write(kBlock, written) == 0);
    CHECK(fixture.read(kBlock, found) == 0);
  }
  SECTION("in pieces of any size") {
    const auto length = static_cast<std::uint32_t>(written.size());
    CHECK(fixture.run({.op = DiskOp::kWrite, .offset = kBlock, .length = length}, in_pieces(written, 4099)) ==
          0);
    CHECK(fixture.run({.op = DiskOp::kRead, .offset = kBlock, .length = length}, in_pieces(found, 5003)) ==
          0);
  }
  SECTION("durably") {
    CHECK(fixture.write(kBlock, written, true) == 0);
    CHECK(fixture.run({.op = DiskOp::kFlush}) == 0);
    CHECK(fixture.read(kBlock, found) == 0);
  }
  CHECK(found == written);
}

TEST_CASE("an NBD server without FUA is asked to flush", "[storvsp][nbd]") {
  const NbdServer server({"--filter=fua", "memory", "4M"});
  Fixture fixture(server);
  CHECK(!fixture.connection->expected().fua);
  std::vector<std::byte> written = bytes_of(1, kBlock);
  std::vector<std::byte> found(written.size());
  CHECK(fixture.write(0, written, true) == 0);
  CHECK(fixture.read(0, found) == 0);
  CHECK(found == written);
}

TEST_CASE("an NBD server gives space back, and tells what is there", "[storvsp][nbd]") {
  const NbdServer server({"memory", "4M"});
  Fixture fixture(server);
  std::vector<std::byte> written = bytes_of(1, 1u << 20);
  const DiskIo map{.op = DiskOp::kMap, .offset = 0};
  CHECK(fixture.run(map) == 0);
  CHECK(!fixture.extent.mapped);
  CHECK(fixture.extent.length == kDiskBytes);
  REQUIRE(fixture.write(0, written) == 0);
  CHECK(fixture.run(map) == 0);
  CHECK(fixture.extent.mapped);
  CHECK(fixture.extent.length >= written.size());
  SECTION("by a discard") {
    CHECK(fixture.run({.op = DiskOp::kDiscard, .offset = 0, .length = 1u << 20}) == 0);
  }
  SECTION("by zeroes that may") {
    CHECK(fixture.run({.op = DiskOp::kZero, .offset = 0, .length = 1u << 20, .unmap = true}) == 0);
  }
  SECTION("not by zeroes that must be there") {
    CHECK(fixture.run({.op = DiskOp::kZero, .offset = 0, .length = 1u << 20}) == 0);
  }
  std::vector<std::byte> found(written.size());
  CHECK(fixture.read(0, found) == 0);
  CHECK(found == std::vector<std::byte>(written.size()));
}

TEST_CASE("an NBD server's errors are the guest's", "[storvsp][nbd]") {
  struct Case {
    const char* error;
    int expected;
  };
  const auto [error, expected] = GENERATE(Case{"EIO", EIO}, Case{"ENOSPC", ENOSPC}, Case{"EPERM", EPERM},
                                          Case{"ENOMEM", ENOMEM}, Case{"EINVAL", EINVAL});
  const NbdServer server(
      {"--filter=error", "memory", "4M", std::string("error=") + error, "error-rate=100%"});
  Fixture fixture(server);
  std::vector<std::byte> bytes(kBlock);
  CHECK(fixture.write(0, bytes) == expected);
  CHECK(fixture.read(0, bytes) == expected);
  CHECK(fixture.run({.op = DiskOp::kZero, .offset = 0, .length = kBlock}) == expected);
}

TEST_CASE("a server that shuts down is a connection that is lost", "[storvsp][nbd]") {
  NbdServer server({"--filter=error", "memory", "4M", "error=ESHUTDOWN", "error-pwrite-rate=100%"});
  Fixture fixture(server);
  std::vector<std::byte> bytes(kBlock);
  // It does so each time, so in the end it is an error.
  CHECK(fixture.write(0, bytes) == EIO);
  CHECK(fixture.wanted > 1);
}

// Blocks that are written and read by two queues at once, each with its half, over a server that is killed
// and started again. Each block holds its number and how often it was written.
class VerifiedIo {
 public:
  VerifiedIo(Fixture& fixture, std::size_t queue, std::uint32_t first, std::uint32_t count)
      : fixture_(fixture), queue_(queue), first_(first), generation_(count) {}

  void run(const std::atomic<bool>& over) {
    constexpr std::size_t kAtOnce = 8;
    std::mt19937 random(static_cast<std::uint32_t>(queue_) + 1);
    while (!over) {
      struct Write {
        TestRequest request;
        std::vector<std::byte> bytes;
        std::future<int> done;
      };
      std::deque<Write> writes(kAtOnce);
      const auto start = static_cast<std::uint32_t>(random() % generation_.size());
      for (std::uint32_t i = 0; i < kAtOnce; ++i) {
        const std::uint32_t index = (start + i) % static_cast<std::uint32_t>(generation_.size());
        Write& write = writes[i];
        ++generation_[index];
        write.bytes = contents(index);
        write.done = write.request.done.get_future();
        const std::size_t piece = i % 2 == 0 ? kBlock : kBlock / 4;
        fixture_.submit(write.request,
                        {.op = DiskOp::kWrite, .fua = i == 0, .offset = offset(index), .length = kBlock},
                        in_pieces(write.bytes, piece), queue_);
      }
      for (Write& write : writes) errors += write.done.get() != 0 ? 1 : 0;
      rounds += 1;
      check(start);
    }
  }
  void check_all() {
    for (std::uint32_t i = 0; i < generation_.size(); ++i) check(i);
  }

  std::atomic<std::uint32_t> rounds{0};
  std::uint32_t errors = 0;
  std::uint32_t differences = 0;

 private:
  [[nodiscard]] std::uint64_t offset(std::uint32_t index) const {
    return std::uint64_t{first_ + index} * kBlock;
  }
  [[nodiscard]] std::vector<std::byte> contents(std::uint32_t index) const {
    if (generation_[index] == 0) return std::vector<std::byte>(kBlock);
    return bytes_of((first_ + index) * 100'000 + generation_[index], kBlock);
  }
  void check(std::uint32_t index) {
    std::vector<std::byte> found(kBlock);
    errors += fixture_.read(offset(index), found, queue_) != 0 ? 1 : 0;
    differences += found != contents(index) ? 1 : 0;
  }

  Fixture& fixture_;
  const std::size_t queue_;
  const std::uint32_t first_;
  std::vector<std::uint32_t> generation_;
};

TEST_CASE("a server that is killed and started again costs time and nothing else", "[storvsp][nbd]") {
  constexpr std::uint32_t kHalf = kDiskBytes / kBlock / 2;
  constexpr int kKills = 5;
  NbdServer server({"memory", "4M"});
  server.kill();
  const UniqueFd file(::open(server.file().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  REQUIRE(::ftruncate(file.get(), kDiskBytes) == 0);
  server.set_arguments({"file", server.file()});
  server.start();

  Fixture fixture(server, 60s, 2);
  VerifiedIo first(fixture, 0, 0, kHalf);
  VerifiedIo second(fixture, 1, kHalf, kHalf);
  std::atomic<bool> over{false};
  std::thread threads[] = {std::thread([&] { first.run(over); }), std::thread([&] { second.run(over); })};
  for (int i = 0; i < kKills; ++i) {
    const std::uint32_t before[] = {first.rounds, second.rounds};
    while (first.rounds < before[0] + 10 || second.rounds < before[1] + 10) std::this_thread::sleep_for(1ms);
    server.kill();
    std::this_thread::sleep_for(50ms);
    server.start();
  }
  over = true;
  for (std::thread& thread : threads) thread.join();
  first.check_all();
  second.check_all();
  CHECK(first.errors + second.errors == 0);
  CHECK(first.differences + second.differences == 0);
  CHECK(fixture.wanted > 1);
}

TEST_CASE("a server that stays away fails what is asked for", "[storvsp][nbd]") {
  NbdServer server({"memory", "4M"});
  Fixture fixture(server, 1s);
  std::vector<std::byte> bytes(kBlock);
  REQUIRE(fixture.write(0, bytes) == 0);
  server.kill();
  const Clock::time_point before = Clock::now();
  CHECK(fixture.write(0, bytes) == ETIMEDOUT);
  CHECK(Clock::now() - before >= 1s);
  // From then on at once, until it is there again.
  const Clock::time_point failing = Clock::now();
  for (int i = 0; i < 10; ++i) CHECK(fixture.read(0, bytes) == ETIMEDOUT);
  CHECK(Clock::now() - failing < 5s);
  server.start();
  const Clock::time_point there = Clock::now();
  int error = ETIMEDOUT;
  while (error != 0 && Clock::now() - there < 20s) {
    std::this_thread::sleep_for(5ms);
    error = fixture.write(0, bytes);
  }
  CHECK(error == 0);
}

TEST_CASE("a server that is another one now is not used", "[storvsp][nbd]") {
  NbdServer server({"memory", "4M"});
  Fixture fixture(server, 1s);
  std::vector<std::byte> bytes(kBlock);
  REQUIRE(fixture.write(0, bytes) == 0);
  server.kill();
  SECTION("smaller") {
    server.set_arguments({"memory", "2M"});
  }
  SECTION("read-only") {
    server.set_arguments({"--readonly", "memory", "4M"});
  }
  SECTION("without FUA") {
    server.set_arguments({"--filter=fua", "memory", "4M"});
  }
  server.start();
  CHECK(fixture.write(0, bytes) == ETIMEDOUT);
}

TEST_CASE("a server that stops is waited for in the handshake, for a while", "[storvsp][nbd]") {
  const NbdServer server({"memory", "4M"});
  Fixture fixture(server, 1s);
  server.pause();
  std::vector<std::byte> bytes(kBlock);
  CHECK(fixture.write(0, bytes) == ETIMEDOUT);
  server.go_on();
}

TEST_CASE("what waits for a server can be aborted, one and all", "[storvsp][nbd]") {
  NbdServer server({"memory", "4M"});
  Fixture fixture(server, 3600s, 2);
  const std::size_t queue = GENERATE(0, 1);  // the connection's own worker, and another
  server.kill();
  std::vector<std::byte> bytes(kBlock);
  std::deque<TestRequest> requests(100);  // more than a queue has operations
  std::vector<std::future<int>> done;
  for (TestRequest& request : requests) {
    done.push_back(request.done.get_future());
    fixture.submit(request, {.op = DiskOp::kRead, .offset = 0, .length = kBlock}, {{bytes.data(), kBlock}},
                   queue);
  }
  fixture.on_worker(queue, [&] {
    fixture.queues[queue]->abort(requests.front());
    fixture.queues[queue]->abort(requests.back());
  });
  CHECK(done.front().get() == ECANCELED);
  CHECK(done.back().get() == ECANCELED);
  CHECK(done[1].wait_for(0s) == std::future_status::timeout);
  fixture.on_worker(queue, [&] { fixture.queues[queue]->cancel(); });
  for (std::size_t i = 1; i + 1 < done.size(); ++i) CHECK(done[i].get() == ECANCELED);
}

TEST_CASE("many operations are under way at once", "[storvsp][nbd]") {
  const NbdServer server({"--filter=delay", "memory", "4M", "rdelay=20ms"});
  Fixture fixture(server);
  constexpr std::size_t kReads = 200;
  std::deque<TestRequest> requests(kReads);
  std::vector<std::vector<std::byte>> buffers(kReads, std::vector<std::byte>(kBlock));
  std::vector<std::future<int>> done;
  const Clock::time_point before = Clock::now();
  for (std::size_t i = 0; i < kReads; ++i) {
    done.push_back(requests[i].done.get_future());
    fixture.submit(requests[i], {.op = DiskOp::kRead, .offset = i * kBlock, .length = kBlock},
                   {{buffers[i].data(), kBlock}});
  }
  for (std::future<int>& each : done) CHECK(each.get() == 0);
  CHECK(Clock::now() - before < kReads * 20ms / 2);
}

}  // namespace
}  // namespace vmbusd::storvsp
