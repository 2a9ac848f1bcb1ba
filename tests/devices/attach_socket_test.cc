#include "devices/attach_socket.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "base/fd.h"
#include "base/wire.h"
#include "partition/seqpacket.h"
#include "tests/catch.h"
#include "tests/io/on_worker.h"

namespace vmbusd::devices {
namespace {

constexpr std::chrono::seconds kPatience{20};

// A connection with the VMM's end in the test's hands; ours is on a worker. What is sent and received is
// numbered.
class Connection {
 public:
  explicit Connection(std::function<Result<void>(partition::Datagram&)> received = nullptr)
      : worker_(std::move(*io::Worker::create({.name = "control"}))) {
    std::array<int, 2> pair{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) == 0);
    vmm.reset(pair[1]);
    worker_->start();
    on_worker([&, ours = pair[0]] {
      socket_.emplace(
          *worker_, UniqueFd(ours), [] {}, std::move(received),
          [this](const Error& error) {
            ++failures;
            failed.set_value(error);
          });
      socket_->start();
    });
  }
  ~Connection() {
    std::promise<void> closed;
    on_worker([&] { socket_->close([&] { closed.set_value(); }); });
    closed.get_future().get();
    on_worker([&] { socket_.reset(); });
    worker_->stop();
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void on_worker(const std::function<void()>& function) { io::on_worker(*worker_, function); }
  void send(std::uint32_t first, std::uint32_t count, std::span<const int> fds = {}) {
    on_worker([&] {
      for (std::uint32_t number = first; number < first + count; ++number) {
        socket_->send(std::as_bytes(std::span(&number, 1)), fds);
      }
    });
  }
  [[nodiscard]] bool drained() {
    bool is = false;
    on_worker([&] { is = socket_->drained(); });
    return is;
  }
  // The error that the connection's owner is told.
  [[nodiscard]] Error error() {
    auto told = failed.get_future();
    REQUIRE(told.wait_for(kPatience) == std::future_status::ready);
    on_worker([] {});
    CHECK(failures == 1);
    return told.get();
  }

  UniqueFd vmm;
  std::promise<Error> failed;
  int failures = 0;

 private:
  std::unique_ptr<io::Worker> worker_;
  std::optional<AttachSocket> socket_;
};

TEST_CASE("what the VMM does not read yet waits in order, with its descriptors", "[attach]") {
  constexpr std::uint32_t kCount = 2000;  // several times what a socket holds
  Connection connection;
  UniqueFd lent(::eventfd(7, EFD_CLOEXEC));
  const std::array<int, 1> fds = {lent.get()};
  connection.send(0, kCount);
  connection.send(kCount, 1, fds);
  lent.reset();  // the queue has one of its own
  CHECK_FALSE(connection.drained());
  for (std::uint32_t number = 0; number <= kCount; ++number) {
    Result<std::optional<partition::Datagram>> datagram =
        partition::receive_datagram(connection.vmm.get(), true);
    REQUIRE(datagram.has_value());
    std::uint32_t come = 0;
    REQUIRE(read_wire((*datagram)->bytes(), come));
    REQUIRE(come == number);
    if (number < kCount) continue;
    REQUIRE((*datagram)->fds.size() == 1);
    std::uint64_t value = 0;
    CHECK(::read((*datagram)->fds[0].get(), &value, sizeof value) == sizeof value);
    CHECK(value == 7);
  }
  CHECK(connection.drained());
  CHECK(connection.failures == 0);
}

TEST_CASE("a VMM that reads nothing is cut off, once", "[attach]") {
  Connection connection;
  connection.send(0, 2 * AttachSocket::kMaxQueued);
  CHECK(connection.error().code == Errc::kLimit);
  connection.send(0, 1);  // in vain
}

TEST_CASE("a VMM that is gone is told once, to those who read and to those who send", "[attach]") {
  Connection connection;
  SECTION("while nothing is sent") {
    connection.vmm.reset();
    CHECK(connection.error().code == Errc::kClosed);
  }
  SECTION("while datagrams wait for it") {
    connection.send(0, 2000);
    REQUIRE_FALSE(connection.drained());
    connection.vmm.reset();
    CHECK(connection.error().code == Errc::kClosed);
  }
  connection.send(0, 1);
}

TEST_CASE("a datagram that is refused ends the connection", "[attach]") {
  int received = 0;
  Connection connection([&](partition::Datagram&) -> Result<void> {
    ++received;
    return fail(Errc::kProtocol, "none of ours");
  });
  const std::array<std::byte, 8> datagram{};
  for (int i = 0; i < 3; ++i) {
    REQUIRE(::send(connection.vmm.get(), datagram.data(), datagram.size(), MSG_NOSIGNAL) == 8);
  }
  CHECK(connection.error().code == Errc::kProtocol);
  connection.on_worker([&] { CHECK(received == 1); });
}

TEST_CASE("a flood of datagrams waits in the socket", "[attach]") {
  constexpr int kBeyond = 3000;
  const auto worker = std::move(*io::Worker::create({.name = "control"}));
  std::array<int, 2> pair{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) == 0);
  const UniqueFd vmm(pair[1]);
  int received = 0;
  std::promise<void> all;
  std::optional<AttachSocket> socket;
  worker->start();
  worker->post([&, ours = pair[0]] {
    socket.emplace(
        *worker, UniqueFd(ours), [] {},
        [&](partition::Datagram&) -> Result<void> {
          if (++received == AttachSocket::kBurst + kBeyond) all.set_value();
          return {};
        },
        [](const Error&) {});
    socket->start();
  });

  const auto begin = std::chrono::steady_clock::now();
  const std::array<std::byte, 64> datagram{};
  for (int i = 0; i < AttachSocket::kBurst + kBeyond; ++i) {
    // Blocks while the reader has had enough.
    REQUIRE(::send(vmm.get(), datagram.data(), datagram.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(datagram.size()));
  }
  all.get_future().get();
  CHECK(std::chrono::steady_clock::now() - begin >= (kBeyond - 1) * AttachSocket::kInterval);

  std::promise<void> closed;
  worker->post([&] { socket->close([&] { closed.set_value(); }); });
  closed.get_future().get();
  worker->post([&] { socket.reset(); });
  worker->stop();
}

}  // namespace
}  // namespace vmbusd::devices
