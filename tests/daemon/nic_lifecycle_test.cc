// NICs whose back end goes and comes back under a guest, which keeps its disk meanwhile.
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <signal.h>
#include <sys/un.h>

#include <chrono>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "guest/net_client.h"
#include "netvsp/frame.h"
#include "tests/guest/host.h"
#include "tests/netvsp/network_namespace.h"

namespace vmbusd::daemon {
namespace {

using namespace std::chrono_literals;
using guest::must;
using netvsp::NetworkNamespace;
using Bytes = std::vector<std::byte>;

constexpr const char* kMac = "02:00:00:00:00:0a";
constexpr std::array kMacBytes = {2, 0, 0, 0, 0, 10};

// 60 bytes to the guest's own address, whichever way they go.
Bytes frame_of(std::uint32_t seed) {
  Bytes frame = guest::random_bytes(60, seed);
  std::transform(kMacBytes.begin(), kMacBytes.end(), frame.begin(), [](int c) { return std::byte(c); });
  netvsp::store_be16(frame, netvsp::kEtherType, 0x88b5);  // IEEE 802: for local experiments
  return frame;
}

std::size_t count(const std::string& log, const std::string& text) {
  std::size_t found = 0;
  for (std::size_t at = log.find(text); at != std::string::npos; at = log.find(text, at + 1)) ++found;
  return found;
}

// A vmbusd with a disk and a NIC.
class NicHost {
 public:
  explicit NicHost(const std::string& back_end) {
    std::ofstream(directory_.path("d.img")) << std::string(guest::kImageBytes, 'i');
    config_ =
        "[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\n[[partition.scsi]]\nname = 'scsi0'\n"
        "[[partition.scsi.disk]]\nlun = 0\npath = 'd.img'\n[[partition.nic]]\nname = 'nic0'\nmac = '" +
        std::string(kMac) + "'\n" + back_end;
  }
  void start() {
    daemon_.emplace(directory_, config_);
    const bool ready = daemon_->wait_until_ready();
    INFO(daemon_->log());
    REQUIRE(ready);
  }
  [[nodiscard]] RunningDaemon& daemon() { return *daemon_; }
  [[nodiscard]] std::string path(const char* name) const { return directory_.path(name); }
  [[nodiscard]] std::unique_ptr<guest::ChildPartition> attach() const {
    std::string error_text;
    auto child = guest::ChildPartition::attach({.socket_path = path("demo.sock")}, error_text);
    INFO(error_text);
    return must(std::move(child));
  }

 private:
  TemporaryDirectory directory_;
  std::string config_;
  std::optional<RunningDaemon> daemon_;
};

// The guest with its drivers for both.
class Guest {
 public:
  explicit Guest(guest::ChildPartition& child) : bus_(child) {
    must(bus_.contact(vmbus::Version::k5_3));
    for (const vmbus::OfferChannel& offer : must(bus_.request_offers())) {
      if (offer.interface_type == vmbus::kClassNetwork) nic_ = must(guest::GuestChannel::open(bus_, offer));
      if (offer.interface_type == vmbus::kClassScsi) disk_ = must(guest::GuestChannel::open(bus_, offer));
    }
    stor_ = std::make_unique<guest::StorClient>(*disk_, 1);
    must(stor_->initialize());
    net_ = std::make_unique<guest::NetClient>(*nic_);
    must(net_->initialize());
  }
  [[nodiscard]] bool disk_works() {
    guest::Disk disk(*stor_);
    const Bytes written = guest::random_bytes(4096, ++seed_);
    must(disk.write(0, written));
    return guest::read_disk(disk, 0, written.size()) == written;
  }
  // Sends a frame and waits until the host has done with it.
  void send(const Bytes& frame) {
    REQUIRE(must(net_->send(frame)));
    must(net_->flush());
    REQUIRE(eventually([&] {
      poll();
      return net_->in_flight() == 0;
    }));
  }
  [[nodiscard]] bool receives(const Bytes& frame) {
    const bool came = eventually([&] {
      poll();
      return !frames_.empty();
    });
    if (!came) return false;
    const Bytes first = frames_.front();
    frames_.erase(frames_.begin());
    return first == frame;
  }

 private:
  void poll() {
    (void)must(net_->poll([this](std::span<const std::byte> frame) {
      // The interface's own chatter has another type.
      if (netvsp::load_be16(frame, netvsp::kEtherType) == 0x88b5)
        frames_.emplace_back(frame.begin(), frame.end());
    }));
    must(net_->flush());
  }

  guest::BusClient bus_;
  std::unique_ptr<guest::GuestChannel> disk_;
  std::unique_ptr<guest::GuestChannel> nic_;
  std::unique_ptr<guest::StorClient> stor_;
  std::unique_ptr<guest::NetClient> net_;
  std::vector<Bytes> frames_;
  std::uint32_t seed_ = 0;
};

// What listens as passt does.
class Peer {
 public:
  explicit Peer(std::string path) : path_(std::move(path)) {}
  ~Peer() { die(); }
  void listen() {
    listener_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    REQUIRE(path_.size() < sizeof address.sun_path);
    path_.copy(address.sun_path, path_.size());
    REQUIRE(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(listener_.get(), 8) == 0);
  }
  void accept() {
    REQUIRE(eventually([&] {
      connection_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      return static_cast<bool>(connection_);
    }));
  }
  void die() {
    connection_.reset();
    listener_.reset();
    ::unlink(path_.c_str());
  }
  void put(const Bytes& frame) const {
    Bytes framed(4);
    netvsp::store_be16(framed, 2, static_cast<std::uint16_t>(frame.size()));
    framed.insert(framed.end(), frame.begin(), frame.end());
    REQUIRE(::send(connection_.get(), framed.data(), framed.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(framed.size()));
  }
  [[nodiscard]] bool gets(const Bytes& frame) const {
    Bytes framed(4 + frame.size());
    const bool came = eventually([&] {
      return ::recv(connection_.get(), framed.data(), framed.size(), MSG_PEEK) ==
             static_cast<ssize_t>(framed.size());
    });
    if (!came) return false;
    (void)!::recv(connection_.get(), framed.data(), framed.size(), 0);
    return std::equal(frame.begin(), frame.end(), framed.begin() + 4);
  }
  [[nodiscard]] bool connection_ended() const {
    char byte = 0;
    return eventually([&] { return ::recv(connection_.get(), &byte, 1, 0) == 0; });
  }

 private:
  std::string path_;
  UniqueFd listener_;
  UniqueFd connection_;
};

// A frame each way between the guest and the NIC's other end, which is a Peer or a Wire.
template <typename Other>
void check_traffic(Guest& guest, const Other& other, std::uint32_t seed) {
  const Bytes out = frame_of(seed);
  guest.send(out);
  CHECK(other.gets(out));
  const Bytes in = frame_of(100 + seed);
  other.put(in);
  CHECK(guest.receives(in));
}

TEST_CASE("a NIC's peer dies and comes back, and the guest keeps its disk", "[daemon][nic]") {
  NicHost host("backend = 'stream'\nsocket = 'peer.sock'\n");
  Peer peer(host.path("peer.sock"));
  peer.listen();
  host.start();
  peer.accept();
  const auto child = host.attach();
  Guest guest(*child);
  check_traffic(guest, peer, 1);
  for (std::uint32_t round = 1; round <= 2; ++round) {
    peer.die();
    REQUIRE(eventually([&] { return count(host.daemon().log(), "nic0: link down: peer closed") == round; }));
    guest.send(frame_of(0));  // is lost, and completed all the same
    CHECK(guest.disk_works());
    // Long enough for two tries, of which only one is worth a line.
    REQUIRE(eventually([&] { return count(host.daemon().log(), "cannot connect to") == round; }));
    std::this_thread::sleep_for(1200ms);
    CHECK(count(host.daemon().log(), "cannot connect to") == round);
    peer.listen();
    peer.accept();
    REQUIRE(eventually([&] { return count(host.daemon().log(), "nic0: back end is there") == round; }));
    check_traffic(guest, peer, 1 + round);
  }
  CHECK(guest.disk_works());
}

TEST_CASE("a guest whose NIC has no peer yet has its disk", "[daemon][nic]") {
  NicHost host("backend = 'stream'\nsocket = 'peer.sock'\n");
  host.start();
  CHECK(host.daemon().wait_for_log("nic0: link is down: cannot connect"));
  const auto child = host.attach();
  Guest guest(*child);
  CHECK(guest.disk_works());
  Peer peer(host.path("peer.sock"));
  peer.listen();
  peer.accept();
  REQUIRE(host.daemon().wait_for_log("nic0: back end is there"));
  const Bytes in = frame_of(1);
  peer.put(in);
  CHECK(guest.receives(in));
}

TEST_CASE("a new worker process has a stream of its own", "[daemon][nic]") {
  NicHost host("backend = 'stream'\nsocket = 'peer.sock'\n");
  Peer peer(host.path("peer.sock"));
  peer.listen();
  host.start();
  peer.accept();
  REQUIRE(::kill(host.daemon().worker_pid(), SIGKILL) == 0);
  CHECK(peer.connection_ended());
  peer.accept();
  const auto child = host.attach();
  Guest guest(*child);
  const Bytes in = frame_of(1);
  peer.put(in);
  CHECK(guest.receives(in));
}

TEST_CASE("a NIC on a stream outlives its worker process", "[daemon][nic][recovery]") {
  NicHost host("backend = 'stream'\nsocket = 'peer.sock'\n");
  Peer peer(host.path("peer.sock"));
  peer.listen();
  host.start();
  peer.accept();
  const auto child = host.attach();
  Guest guest(*child);
  for (std::uint32_t round = 1; round <= 3; ++round) {
    REQUIRE(::kill(host.daemon().worker_pid(), SIGKILL) == 0);
    CHECK(peer.connection_ended());
    peer.accept();
    REQUIRE(eventually([&] { return count(host.daemon().log(), "the guest goes on") == round; }));
    check_traffic(guest, peer, round);
    CHECK(guest.disk_works());
  }
  CHECK_FALSE(child->disconnected_by_host());
}

// The interface's other end.
class Wire {
 public:
  Wire() : socket_(::socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0)) {
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(ETH_P_ALL);
    address.sll_ifindex = static_cast<int>(::if_nametoindex("demo0"));
    REQUIRE(::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  }
  void put(const Bytes& frame) const {
    REQUIRE(::send(socket_.get(), frame.data(), frame.size(), 0) == static_cast<ssize_t>(frame.size()));
  }
  [[nodiscard]] bool gets(const Bytes& frame) const {
    Bytes buffer(2000);
    return eventually([&] {
      const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
      return got == static_cast<ssize_t>(frame.size()) &&
             std::equal(frame.begin(), frame.end(), buffer.begin());
    });
  }

 private:
  UniqueFd socket_;
};

TEST_CASE("a TAP that is removed is made again, and works once it is up", "[daemon][nic][tap]") {
  NEED_NAMESPACE();
  NicHost host("backend = 'tap'\ntap = 'demo0'\n");
  host.start();
  const auto child = host.attach();
  Guest guest(*child);
  for (std::uint32_t round = 1; round <= 3; ++round) {
    guest.send(frame_of(0));  // is lost: the interface is not up
    CHECK(guest.disk_works());
    netvsp::set_interface("demo0", true);
    check_traffic(guest, Wire(), round);
    netvsp::remove_interface("demo0");
    REQUIRE(eventually([&] { return count(host.daemon().log(), "nic0: link down: TAP is gone") == round; }));
    guest.send(frame_of(0));
    CHECK(guest.disk_works());
    REQUIRE(eventually([&] { return count(host.daemon().log(), "nic0: back end is there") == round; }));
  }
  INFO(host.daemon().log());
  CHECK(count(host.daemon().log(), "warning demo/nic0") == 3);
}

TEST_CASE("a NIC on a TAP outlives its worker process", "[daemon][nic][tap][recovery]") {
  NEED_NAMESPACE();
  NicHost host("backend = 'tap'\ntap = 'demo0'\n");
  host.start();
  netvsp::set_interface("demo0", true);
  const auto child = host.attach();
  Guest guest(*child);
  const Wire wire;
  check_traffic(guest, wire, 0);
  for (std::uint32_t round = 1; round <= 3; ++round) {
    REQUIRE(::kill(host.daemon().worker_pid(), SIGKILL) == 0);
    const bool goes_on = eventually([&] { return count(host.daemon().log(), "the guest goes on") == round; });
    INFO(host.daemon().log());
    REQUIRE(goes_on);
    check_traffic(guest, wire, round);
  }
  CHECK_FALSE(child->disconnected_by_host());
  CHECK(count(host.daemon().log(), "link down") == 0);
}

}  // namespace
}  // namespace vmbusd::daemon
