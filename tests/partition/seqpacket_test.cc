#include "partition/seqpacket.h"

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <thread>

#include "partition/attach_protocol.h"
#include "tests/catch.h"
#include "tests/partition/descriptors.h"
#include "tests/partition/temporary_folder.h"

using namespace vmbusd;
using namespace vmbusd::partition;
using namespace vmbusd::test;

namespace {

struct SocketPair {
  SocketPair() {
    std::array<int, 2> ends{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) == 0);
    ours = UniqueFd(ends[0]);
    theirs = UniqueFd(ends[1]);
  }
  UniqueFd ours;
  UniqueFd theirs;
};

const std::array<std::byte, 4> kBytes{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};

}  // namespace

TEST_CASE("datagrams arrive whole, with their descriptors", "[partition]") {
  const SocketPair sockets;
  const UniqueFd memfd = make_memfd(4096);
  const UniqueFd eventfd = make_eventfd();
  const std::array<int, 2> fds{memfd.get(), eventfd.get()};
  const std::array<std::byte, Datagram::kMaxBytes> longest{std::byte{9}};
  REQUIRE(send_datagram(sockets.theirs.get(), kBytes, fds).has_value());
  REQUIRE(send_datagram(sockets.theirs.get(), longest).has_value());

  Result<std::optional<Datagram>> first = receive_datagram(sockets.ours.get(), false);
  REQUIRE((first.has_value() && first->has_value()));
  CHECK(std::ranges::equal((*first)->bytes(), kBytes));
  REQUIRE((*first)->fds.size() == 2);
  struct stat status {};
  REQUIRE(::fstat((*first)->fds[0].get(), &status) == 0);
  CHECK(status.st_size == 4096);
  CHECK((::fcntl((*first)->fds[1].get(), F_GETFD) & FD_CLOEXEC) != 0);

  const Result<std::optional<Datagram>> second = receive_datagram(sockets.ours.get(), true);
  REQUIRE((second.has_value() && second->has_value()));
  CHECK((*second)->size == longest.size());
  CHECK((*second)->fds.empty());

  const Result<std::optional<Datagram>> none = receive_datagram(sockets.ours.get(), false);
  REQUIRE(none.has_value());
  CHECK_FALSE(none->has_value());
}

TEST_CASE("a datagram that does not fit is refused and leaks nothing", "[partition]") {
  const SocketPair sockets;
  const UniqueFd eventfd = make_eventfd();
  const std::ptrdiff_t open_before = count_open_fds();
  // Raw, because send_datagram() would not.
  constexpr std::size_t kFds = kMaxFds + 1;
  std::array<char, Datagram::kMaxBytes + 1> bytes{};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kFds * sizeof(int))> control{};
  iovec vector{bytes.data(), 4};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  SECTION("too many descriptors") {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(kFds * sizeof(int));
    std::array<int, kFds> fds{};
    fds.fill(eventfd.get());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof fds);
  }
  SECTION("too long") {
    vector.iov_len = bytes.size();
  }
  REQUIRE(::sendmsg(sockets.theirs.get(), &message, 0) > 0);
  const Result<std::optional<Datagram>> received = receive_datagram(sockets.ours.get(), true);
  REQUIRE_FALSE(received.has_value());
  CHECK(received.error().code == Errc::kProtocol);
  CHECK(count_open_fds() == open_before);
}

TEST_CASE("descriptors that there is no number for are told as lost", "[partition]") {
  const SocketPair sockets;
  const UniqueFd eventfd = make_eventfd();
  const std::array<int, 2> fds{eventfd.get(), eventfd.get()};
  REQUIRE(send_datagram(sockets.theirs.get(), kBytes, fds).has_value());
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  const rlimit none{0, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  const Result<std::optional<Datagram>> received = receive_datagram(sockets.ours.get(), true);
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  REQUIRE((received.has_value() && received->has_value()));
  CHECK(std::ranges::equal((*received)->bytes(), kBytes));
  REQUIRE((*received)->fds.size() == 1);
  CHECK_FALSE((*received)->fds[0]);
}

TEST_CASE("the end of the stream is told from an error", "[partition]") {
  SocketPair sockets;
  sockets.theirs.reset();
  const Result<std::optional<Datagram>> received = receive_datagram(sockets.ours.get(), true);
  REQUIRE_FALSE(received.has_value());
  CHECK(received.error().code == Errc::kClosed);
  const Result<void> sent = send_datagram(sockets.ours.get(), kBytes);
  REQUIRE_FALSE(sent.has_value());
  CHECK(sent.error().code == Errc::kClosed);
}

TEST_CASE("a full socket is told to those who do not wait", "[partition]") {
  const SocketPair sockets;
  Result<void> sent;
  std::size_t count = 0;
  // The kernel's default buffers take some hundreds.
  for (; sent && count < 1'000'000; ++count) sent = send_datagram(sockets.theirs.get(), kBytes, {}, false);
  REQUIRE_FALSE(sent.has_value());
  CHECK(sent.error().code == Errc::kLimit);
  // Nothing of the refused one was sent.
  std::size_t received = 0;
  while (receive_datagram(sockets.ours.get(), false)->has_value()) ++received;
  CHECK(received == count - 1);
  CHECK(send_datagram(sockets.theirs.get(), kBytes, {}, false).has_value());
}

TEST_CASE("those who wait do so on a socket that does not block, too", "[partition]") {
  constexpr int kDatagrams = 2000;  // several times what a socket holds
  const SocketPair sockets;
  for (const int end : {sockets.ours.get(), sockets.theirs.get()}) {
    REQUIRE(::fcntl(end, F_SETFL, ::fcntl(end, F_GETFL) | O_NONBLOCK) == 0);
  }
  std::thread sender([&] {
    for (int i = 0; i < kDatagrams; ++i) {
      if (!send_datagram(sockets.theirs.get(), kBytes)) return;
    }
  });
  int received = 0;
  for (; received < kDatagrams; ++received) {
    // The sender runs into a full socket first, then we into an empty one.
    if (received == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const Result<std::optional<Datagram>> datagram = receive_datagram(sockets.ours.get(), true);
    if (!datagram || !*datagram) break;
  }
  sender.join();
  CHECK(received == kDatagrams);
}

TEST_CASE("a socket that is none is an error of the system's", "[partition]") {
  const UniqueFd eventfd = make_eventfd();
  CHECK(send_datagram(eventfd.get(), kBytes).error().os_error == ENOTSOCK);
  CHECK(receive_datagram(eventfd.get(), false).error().os_error == ENOTSOCK);
  const SocketPair sockets;
  REQUIRE(::shutdown(sockets.ours.get(), SHUT_RDWR) == 0);
  CHECK(send_datagram(sockets.theirs.get(), kBytes).error().code == Errc::kClosed);
}

TEST_CASE("a listening socket is the owner's alone", "[partition]") {
  const TemporaryFolder folder;
  const std::string path = folder.path("attach.sock");
  const Result<UniqueFd> listening = listen_seqpacket(path);
  REQUIRE(listening.has_value());
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  const Result<UniqueFd> connected = connect_seqpacket(path);
  REQUIRE(connected.has_value());
  const UniqueFd accepted(::accept4(listening->get(), nullptr, nullptr, SOCK_CLOEXEC));
  REQUIRE(accepted);
  REQUIRE(send_datagram(connected->get(), kBytes).has_value());
  CHECK(receive_datagram(accepted.get(), true)->has_value());
}

TEST_CASE("listening replaces a stale socket only", "[partition]") {
  const TemporaryFolder folder;
  const std::string path = folder.path("attach.sock");
  SECTION("nobody listens any more") {
    REQUIRE(listen_seqpacket(path).has_value());  // closed at once, the file stays
    CHECK(listen_seqpacket(path).has_value());
  }
  SECTION("somebody listens") {
    const Result<UniqueFd> first = listen_seqpacket(path);
    REQUIRE(first.has_value());
    const Result<UniqueFd> second = listen_seqpacket(path);
    REQUIRE_FALSE(second.has_value());
    CHECK(second.error().os_error == EADDRINUSE);
    CHECK(connect_seqpacket(path).has_value());
  }
  SECTION("something else is there") {
    std::ofstream(path) << "precious";
    CHECK_FALSE(listen_seqpacket(path).has_value());
    CHECK(std::filesystem::file_size(path) == 8);
  }
}

TEST_CASE("paths that cannot be are told", "[partition]") {
  CHECK_FALSE(listen_seqpacket("").has_value());
  CHECK_FALSE(connect_seqpacket("").has_value());
  CHECK_FALSE(connect_seqpacket(std::string(108, 'x')).has_value());
  CHECK_FALSE(listen_seqpacket("/nonexistent/attach.sock").has_value());
  const Result<UniqueFd> absent = connect_seqpacket("/nonexistent/attach.sock");
  REQUIRE_FALSE(absent.has_value());
  CHECK(absent.error().os_error == ENOENT);
}
