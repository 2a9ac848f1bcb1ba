// What the supervisor does for a NIC whose back end goes and comes back.
#include "daemon/nic_keeper.h"

#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "base/temporary_directory.h"
#include "daemon/nic_source.h"
#include "netvsp/steering_program.h"
#include "tests/netvsp/frames.h"
#include "tests/netvsp/network_namespace.h"

namespace vmbusd::daemon {
namespace {

using namespace std::chrono_literals;
using netvsp::NetworkNamespace;
using Backend = netvsp::NicConfig::Backend;

// A peer that listens as passt does.
class Peer {
 public:
  explicit Peer(std::string path) : path_(std::move(path)) { listen(); }
  void listen() {
    socket_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(socket_.get(), 8) == 0);
  }
  void die() {
    socket_.reset();
    ::unlink(path_.c_str());
  }
  [[nodiscard]] UniqueFd accept() const {
    return UniqueFd(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  }

 private:
  std::string path_;
  UniqueFd socket_;
};

bool ended(const UniqueFd& connection) {
  char byte = 0;
  return ::recv(connection.get(), &byte, 1, MSG_DONTWAIT) == 0;
}

NicSource stream_at(const TemporaryDirectory& directory) {
  NicSource source;
  source.socket = directory.path("peer.sock");
  return source;
}

NicSource tap_named(const char* name, bool any_queues = false) {
  NicSource source;
  source.tap = name;
  source.any_queues = any_queues;
  return source;
}

NicSource given(const UniqueFd& fd) {
  NicSource source;
  source.fds = {fd.get()};
  return source;
}

// A keeper on a supervisor's event loop, and how often it had something to hand over.
class Kept {
 public:
  Kept(Backend backend, const NicSource& source, std::uint32_t queues = 1) {
    NicConfig config;
    config.nic.name = "nic0";
    config.nic.backend = backend;
    config.nic.queues = queues;
    config.source = source;
    keeper = std::make_unique<NicKeeper>(context_, "test", std::move(config), [this] { ++reopened; });
  }
  // Until it has handed over `count` times in all.
  [[nodiscard]] bool wait(int count) {
    const auto end = std::chrono::steady_clock::now() + 30s;
    while (reopened < count && std::chrono::steady_clock::now() < end) run(10ms);
    return reopened == count;
  }
  void run(std::chrono::milliseconds time) {
    context_.restart();
    context_.run_for(time);
  }
  [[nodiscard]] std::size_t descriptors() const { return keeper->nic().fds.size(); }

  int reopened = 0;

 private:
  boost::asio::io_context context_{1};

 public:
  std::unique_ptr<NicKeeper> keeper;  // with a timer of the context
};

TEST_CASE("a stream's peer that went away is connected to again", "[daemon][nic]") {
  const TemporaryDirectory directory;
  Peer peer(directory.path("peer.sock"));
  Kept kept(Backend::kStream, stream_at(directory));
  REQUIRE(kept.keeper->open().empty());
  UniqueFd connection = peer.accept();
  REQUIRE(connection);
  for (int round = 1; round <= 2; ++round) {
    peer.die();
    kept.keeper->lost();
    // The peer that is left must not take the connection for one that lives.
    CHECK(ended(connection));
    CHECK(kept.descriptors() == 0);
    kept.run(400ms);
    CHECK(kept.reopened == round - 1);
    peer.listen();
    REQUIRE(kept.wait(round));
    CHECK(kept.descriptors() == 1);
    connection = peer.accept();
    REQUIRE(connection);
    CHECK_FALSE(ended(connection));
  }
}

TEST_CASE("a stream's peer may come after vmbusd", "[daemon][nic]") {
  const TemporaryDirectory directory;
  Kept kept(Backend::kStream, stream_at(directory));
  REQUIRE(kept.keeper->open().empty());
  CHECK(kept.descriptors() == 0);
  const Peer peer(directory.path("peer.sock"));
  REQUIRE(kept.wait(1));
  CHECK(kept.descriptors() == 1);
}

TEST_CASE("a peer that hangs up at once is not connected to without end", "[daemon][nic]") {
  const TemporaryDirectory directory;
  const Peer peer(directory.path("peer.sock"));
  Kept kept(Backend::kStream, stream_at(directory));
  REQUIRE(kept.keeper->open().empty());
  int seen = 0;
  const auto end = std::chrono::steady_clock::now() + 1s;
  kept.keeper->lost();
  while (std::chrono::steady_clock::now() < end) {
    kept.run(10ms);
    for (; seen < kept.reopened; ++seen) kept.keeper->lost();
  }
  CHECK(kept.reopened >= 1);
  CHECK(kept.reopened <= 2);  // after 250 ms and 500 ms more
}

TEST_CASE("reports of a loss that is being seen to change nothing", "[daemon][nic]") {
  const TemporaryDirectory directory;
  const Peer peer(directory.path("peer.sock"));
  Kept kept(Backend::kStream, stream_at(directory));
  REQUIRE(kept.keeper->open().empty());
  for (int i = 0; i < 20; ++i) {
    kept.keeper->lost();
    kept.run(5ms);
  }
  REQUIRE(kept.wait(1));
  kept.run(600ms);
  CHECK(kept.reopened == 1);
}

TEST_CASE("a new worker begins with a new stream", "[daemon][nic]") {
  const TemporaryDirectory directory;
  Peer peer(directory.path("peer.sock"));
  Kept kept(Backend::kStream, stream_at(directory));
  REQUIRE(kept.keeper->open().empty());
  const UniqueFd first = peer.accept();
  kept.keeper->renew();
  CHECK(ended(first));
  CHECK(kept.descriptors() == 1);
  CHECK_FALSE(ended(peer.accept()));
  CHECK(kept.reopened == 0);
  // The peer died with the worker.
  peer.die();
  kept.keeper->renew();
  CHECK(kept.descriptors() == 0);
  peer.listen();
  CHECK(kept.wait(1));
}

TEST_CASE("descriptors that were given are not opened anew", "[daemon][nic]") {
  int pair[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
  const UniqueFd own(pair[0]);
  const UniqueFd peer(pair[1]);
  Kept kept(Backend::kStream, given(own));
  REQUIRE(kept.keeper->open().empty());
  CHECK(kept.descriptors() == 1);
  kept.keeper->renew();
  CHECK(kept.descriptors() == 1);
  kept.keeper->lost();
  kept.run(400ms);
  CHECK(kept.descriptors() == 0);
  CHECK(kept.reopened == 0);
}

TEST_CASE("a NIC without descriptors loses none", "[daemon][nic]") {
  Kept kept(Backend::kLoopback, {});
  REQUIRE(kept.keeper->open().empty());
  kept.keeper->lost();
  kept.keeper->renew();
  kept.run(400ms);
  CHECK(kept.reopened == 0);
}

TEST_CASE("what the host does not permit is an error at the start", "[daemon][nic]") {
  const TemporaryDirectory directory;
  // A file that is no socket refuses connections as well, but an interface that is no TAP never will be one.
  Kept kept(Backend::kTap, tap_named("lo"));
  CHECK_FALSE(kept.keeper->open().empty());
  CHECK(kept.descriptors() == 0);
}

TEST_CASE("a TAP that was removed is made again", "[daemon][nic][tap]") {
  NEED_NAMESPACE();
  for (const std::uint32_t queues : {1u, 3u}) {
    Kept kept(Backend::kTap, {.tap = "kept0", .socket = {}, .fds = {}}, queues);
    REQUIRE(kept.keeper->open().empty());
    CHECK(kept.descriptors() == queues);
    netvsp::remove_interface("kept0");
    kept.keeper->lost();
    REQUIRE(kept.wait(1));
    CHECK(kept.descriptors() == queues);
    CHECK(::if_nametoindex("kept0") != 0);
    // Unnoticed by a worker that then died.
    netvsp::remove_interface("kept0");
    kept.keeper->renew();
    CHECK(kept.descriptors() == queues);
    CHECK(::if_nametoindex("kept0") != 0);
  }
}

// As `ip tuntap add kept0 mode tap vnet_hdr` makes it; it stays when the descriptor is closed.
void make_persistent_tap(bool multi_queue) {
  const UniqueFd fd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  ifreq request{};
  std::strcpy(request.ifr_name, "kept0");
  request.ifr_flags =
      static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (multi_queue ? IFF_MULTI_QUEUE : 0));
  REQUIRE(::ioctl(fd.get(), TUNSETIFF, &request) == 0);
  REQUIRE(::ioctl(fd.get(), TUNSETPERSIST, 1) == 0);
}

// Whether flows that the kernel would spread all come to the first queue of kept0: a program steers them, and
// no worker has filled its table in yet.
bool steered(const netvsp::NicConfig& nic) {
  netvsp::set_interface("kept0", true);
  const UniqueFd wire(::socket(AF_PACKET, SOCK_RAW, 0));
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_ifindex = static_cast<int>(::if_nametoindex("kept0"));
  // An empty UDP packet; its source port makes the flow.
  netvsp::Bytes frame = netvsp::hex(
      "ffffffffffff 020000000001 0800 4500001c 00004000 40110000 0a000001 0a000002 00000009 00080000");
  for (std::uint32_t flow = 0; flow < 64; ++flow) {
    netvsp::put16(frame, 34, 1000 + flow);
    REQUIRE(::sendto(wire.get(), frame.data(), frame.size(), 0, reinterpret_cast<const sockaddr*>(&address),
                     sizeof address) == static_cast<ssize_t>(frame.size()));
  }
  std::size_t elsewhere = 0;
  for (std::size_t i = 1; i < nic.fds.size(); ++i) {
    char packet[2048];
    while (::read(nic.fds[i].get(), packet, sizeof packet) > 0) ++elsewhere;
  }
  return elsewhere == 0;
}

TEST_CASE("a TAP with queues is steered, also when it was made again", "[daemon][nic][tap]") {
  NEED_NAMESPACE();
  if (!netvsp::load_steering_program()) {
    WARN("no BPF programs for this user: nothing is tested");
    return;
  }
  Kept kept(Backend::kTap, tap_named("kept0"), 4);
  REQUIRE(kept.keeper->open().empty());
  const int table = kept.keeper->nic().steering.get();
  REQUIRE(table >= 0);
  CHECK(steered(kept.keeper->nic()));
  netvsp::remove_interface("kept0");
  kept.keeper->lost();
  REQUIRE(kept.wait(1));
  CHECK(kept.keeper->nic().steering.get() == table);
  CHECK(steered(kept.keeper->nic()));
}

TEST_CASE("a TAP that stays is not steered by a vmbusd that is gone", "[daemon][nic][tap]") {
  NEED_NAMESPACE();
  make_persistent_tap(true);
  {
    const Kept kept(Backend::kTap, tap_named("kept0"), 4);
    REQUIRE(kept.keeper->open().empty());
  }
  netvsp::NicConfig nic;
  nic.backend = Backend::kTap;
  nic.queues = 4;
  REQUIRE_FALSE(open_nic_source(tap_named("kept0"), nic));
  CHECK_FALSE(steered(nic));
}

TEST_CASE("one queue needs no steering", "[daemon][nic][tap]") {
  NEED_NAMESPACE();
  Kept kept(Backend::kTap, tap_named("kept0"));
  REQUIRE(kept.keeper->open().empty());
  CHECK_FALSE(kept.keeper->nic().steering);
}

TEST_CASE("a TAP gives as many queues as it can where no number is asked for", "[daemon][nic][tap]") {
  NEED_NAMESPACE();
  SECTION("one that is made") {
    Kept kept(Backend::kTap, tap_named("kept0", true), 8);
    REQUIRE(kept.keeper->open().empty());
    CHECK(kept.descriptors() == 8);
  }
  SECTION("one with many") {
    make_persistent_tap(true);
    Kept kept(Backend::kTap, tap_named("kept0", true), 8);
    REQUIRE(kept.keeper->open().empty());
    CHECK(kept.descriptors() == 8);
  }
  SECTION("one with a single queue") {
    make_persistent_tap(false);
    {
      Kept asked(Backend::kTap, tap_named("kept0"), 2);
      CHECK_FALSE(asked.keeper->open().empty());
    }
    Kept kept(Backend::kTap, tap_named("kept0", true), 8);
    REQUIRE(kept.keeper->open().empty());
    CHECK(kept.descriptors() == 1);
    CHECK(kept.keeper->nic().queues == 1);
    // Made anew, it is of the same kind.
    netvsp::remove_interface("kept0");
    kept.keeper->lost();
    REQUIRE(kept.wait(1));
    CHECK(kept.descriptors() == 1);
  }
}

TEST_CASE("a TAP that another has is waited for", "[daemon][nic][tap]") {
  NEED_NAMESPACE();
  Kept kept(Backend::kTap, tap_named("kept0"));
  REQUIRE(kept.keeper->open().empty());
  netvsp::remove_interface("kept0");
  UniqueFd other(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  ifreq request{};
  std::strcpy(request.ifr_name, "kept0");
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  REQUIRE(::ioctl(other.get(), TUNSETIFF, &request) == 0);
  kept.keeper->lost();
  kept.run(400ms);
  CHECK(kept.reopened == 0);
  CHECK(kept.descriptors() == 0);
  other.reset();
  CHECK(kept.wait(1));
  CHECK(kept.descriptors() == 1);
}

}  // namespace
}  // namespace vmbusd::daemon
