#include "devices/attach_socket.h"

#include <sys/socket.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <future>
#include <memory>
#include <optional>
#include <utility>

#include "base/fd.h"
#include "tests/catch.h"

namespace vmbusd::devices {
namespace {

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
