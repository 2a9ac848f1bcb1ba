// A supervisor that dies or is restarted takes its workers along; the guests, here the user-space child
// partition, are taken up by the next one from what their VMMs have kept.
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "partition/attach_client.h"
#include "partition/partition.h"
#include "tests/daemon/verified_guest.h"

namespace vmbusd::daemon {
namespace {

using std::chrono::milliseconds;

int restarts_wanted() {
  const char* const asked = std::getenv("VMBUSD_TEST_KILLS");
  return asked != nullptr ? std::atoi(asked) : 6;
}

// Kills the daemon, or has it end in order, and starts it again.
class Restarting {
 public:
  Restarting(const TemporaryDirectory& directory, std::string config)
      : directory_(directory), config_(std::move(config)) {
    start();
  }

  void start() {
    daemon_.emplace(directory_, config_);
    const bool ready = daemon_->wait_until_ready();
    INFO(daemon_->log());
    REQUIRE(ready);
  }
  void end(int signal) {
    daemon_->signal(signal);
    const std::optional<int> status = daemon_->wait();
    INFO(daemon_->log());
    REQUIRE(status == (signal == SIGKILL ? -1 : 0));
  }
  void set_config(std::string config) { config_ = std::move(config); }
  [[nodiscard]] RunningDaemon& daemon() { return *daemon_; }

 private:
  const TemporaryDirectory& directory_;
  std::string config_;
  std::optional<RunningDaemon> daemon_;
};

// What the guest or its VMM changed last is recorded when the daemon has heard that it arrived: before that,
// a death costs the guest its devices.
void let_it_rest() {
  std::this_thread::sleep_for(milliseconds(500));
}

std::unique_ptr<guest::ChildPartition> attach(const TemporaryDirectory& directory) {
  std::string error_text;
  auto child = guest::ChildPartition::attach({.socket_path = directory.path("demo.sock"), .take_up = true},
                                             error_text);
  INFO(error_text);
  return must(std::move(child));
}

void reattach(guest::ChildPartition& child, Restarting& host) {
  std::string error_text;
  const Result<void> taken_up = child.reattach(error_text);
  INFO(error_text << "\n" << host.daemon().log());
  must(taken_up);
}

TEST_CASE("a supervisor that ends under verified I/O and comes back costs the guest a pause",
          "[daemon][restart]") {
  constexpr std::uint32_t kDepth = 32;
  const DiskHost disks;
  Restarting host(disks.directory(), disks.config());
  const auto child = attach(disks.directory());
  guest::Driver driver(*child, {.depth = kDepth});
  const std::uint32_t seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  let_it_rest();
  VerifiedLoad load(*child, *driver.stor, kDepth, seed);
  const int restarts = restarts_wanted();
  for (int restarted = 0; restarted < restarts; ++restarted) {
    INFO("after " << restarted << " restarts");
    const auto next = guest::Clock::now() + milliseconds(std::uniform_int_distribution<>(100, 400)(random));
    while (guest::Clock::now() < next) load.turn(true, host.daemon());
    host.end(restarted % 3 == 2 ? SIGTERM : SIGKILL);
    host.start();
    reattach(*child, host);
  }
  while (load.in_flight() != 0) load.turn(false, host.daemon());
  WARN(load.commands() << " commands, " << restarts << " restarts, longest pause "
                       << load.longest_pause().count() << " ms");
  load.check_image(disks.image());
  // The control path goes on as well, and so does the recovery from a worker's death.
  driver.disk.reset();
  driver.stor.reset();
  must(driver.channel->close());
  driver.channel = must(guest::GuestChannel::open(driver.bus, driver.offer, {}));
  guest::StorClient again(*driver.channel, kDepth);
  must(again.initialize());
  must(guest::Disk(again).ready());
  REQUIRE(::kill(host.daemon().worker_pid(), SIGKILL) == 0);
  must(guest::Disk(again).ready());
  CHECK_FALSE(child->disconnected_by_host());
}

TEST_CASE("a supervisor that ends under traffic and comes back costs the guest frames", "[daemon][restart]") {
  const TemporaryDirectory directory;
  Restarting host(directory,
                  "[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\n[[partition.nic]]\nname = 'nic0'\n"
                  "backend = 'loopback'\n");
  const auto child = attach(directory);
  guest::BusClient bus(*child);
  must(bus.contact(vmbus::Version::k5_3));
  const auto channel = must(guest::GuestChannel::open(bus, must(bus.request_offers()).front()));
  guest::NetClient net(*channel);
  must(net.initialize({.receive_pages = 32, .send_pages = 64}));
  Echo echo(net);
  const int restarts = restarts_wanted();
  for (int restarted = 0; restarted < restarts; ++restarted) {
    INFO("after " << restarted << " restarts\n" << host.daemon().log());
    const std::uint64_t wanted = echo.received() + 1000;
    const bool traffic = eventually([&] {
      echo.send_all();
      static_cast<void>(echo.poll());
      return echo.received() >= wanted;
    });
    REQUIRE(traffic);
    host.end(restarted % 3 == 2 ? SIGTERM : SIGKILL);
    host.start();
    reattach(*child, host);
  }
  const bool all_back = eventually([&] {
    static_cast<void>(echo.poll());
    return net.in_flight() == 0;
  });
  INFO(net.in_flight() << " of " << echo.sent() << " frames did not come back\n" << host.daemon().log());
  REQUIRE(all_back);
  CHECK(net.statistics().completed == echo.sent());
}

const char* const kOneDisk =
    "[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\n[[partition.scsi]]\nname = 'scsi0'\n"
    "[[partition.scsi.disk]]\nlun = 0\npath = 'd.img'\n";

TEST_CASE("a disk that is gone after a restart is refused to the guest, others go on", "[daemon][restart]") {
  const DiskHost disks;
  std::ofstream(disks.directory().path("e.img")) << std::string(guest::kImageBytes, 'e');
  Restarting host(disks.directory(),
                  std::string(kOneDisk) + "[[partition.scsi.disk]]\nlun = 1\npath = 'e.img'\n");
  const auto child = attach(disks.directory());
  guest::Driver driver(*child);
  guest::Disk second(*driver.stor, 1);
  must(second.ready());
  let_it_rest();
  host.end(SIGKILL);
  host.set_config(kOneDisk);
  host.start();
  reattach(*child, host);
  must(driver.disk->ready());
  CHECK_FALSE(second.ready());
  // It comes back, as what it was.
  host.end(SIGTERM);
  host.set_config(std::string(kOneDisk) + "[[partition.scsi.disk]]\nlun = 1\npath = 'e.img'\n");
  host.start();
  reattach(*child, host);
  static_cast<void>(second.ready());  // a unit attention comes first
  must(second.ready());
}

TEST_CASE("a LUN that has another image after a restart is not given to the guest", "[daemon][restart]") {
  const DiskHost disks;
  std::ofstream(disks.directory().path("e.img")) << std::string(guest::kImageBytes, 'e');
  Restarting host(disks.directory(), kOneDisk);
  const auto child = attach(disks.directory());
  const guest::Driver driver(*child);
  let_it_rest();
  host.end(SIGKILL);
  host.set_config(
      "[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\n[[partition.scsi]]\nname = 'scsi0'\n"
      "[[partition.scsi.disk]]\nlun = 0\npath = 'e.img'\n");
  host.start();
  std::string error_text;
  CHECK(guest::error_of(child->reattach(error_text)) == Errc::kClosed);
  const bool told = host.daemon().wait_for_log("a LUN has another image than before");
  INFO(host.daemon().log());
  CHECK(told);
}

TEST_CASE("a controller that is gone after a restart is taken from the guest, one that came is offered",
          "[daemon][restart]") {
  const std::string more =
      "[[partition.scsi]]\nname = 'scsi1'\n[[partition.scsi.disk]]\nlun = 0\npath = 'e.img'\n";
  const DiskHost disks;
  std::ofstream(disks.directory().path("e.img")) << std::string(guest::kImageBytes, 'e');
  Restarting host(disks.directory(), kOneDisk + more);
  const auto child = attach(disks.directory());
  guest::BusClient bus(*child);
  must(bus.contact(vmbus::Version::k5_3));
  std::vector<vmbus::OfferChannel> controllers;
  for (const vmbus::OfferChannel& offer : must(bus.request_offers())) {
    if (offer.interface_type == vmbus::kClassScsi) controllers.push_back(offer);
  }
  REQUIRE(controllers.size() == 2);
  const auto first = must(guest::GuestChannel::open(bus, controllers[0]));
  guest::StorClient stor(*first, 4);
  must(stor.initialize());
  const auto second = must(guest::GuestChannel::open(bus, controllers[1]));
  guest::StorClient lost(*second, 4);
  must(lost.initialize());
  let_it_rest();
  host.end(SIGKILL);
  host.set_config(kOneDisk);
  host.start();
  reattach(*child, host);
  CHECK(must(bus.wait_rescind()) == controllers[1].relid);
  must(guest::Disk(stor).ready());
  must(bus.release_relid(controllers[1].relid));

  host.end(SIGTERM);
  host.set_config(kOneDisk + more);
  host.start();
  reattach(*child, host);
  CHECK(must(bus.wait_offer()).instance == controllers[1].instance);
  must(guest::Disk(stor).ready());
}

TEST_CASE("a guest's message that the daemon died before reading reaches the next one", "[daemon][restart]") {
  const DiskHost disks;
  Restarting host(disks.directory(), disks.config());
  const auto child = attach(disks.directory());
  guest::BusClient bus(*child);
  must(bus.contact(vmbus::Version::k5_3));
  let_it_rest();
  REQUIRE(::kill(host.daemon().worker_pid(), SIGSTOP) == 0);
  must(bus.post(vmbus::RequestOffers{}));
  host.end(SIGKILL);
  host.start();
  reattach(*child, host);
  must(bus.expect<vmbus::OfferChannel>([](const vmbus::OfferChannel&) { return true; }));
}

// A VMM that says what the test has it say.
class RawVmm final : public partition::AttachClientEvents {
 public:
  RawVmm(const std::string& socket, std::uint64_t features = partition::kFeatureTakeUp) {
    std::string error_text;
    auto connected = partition::AttachClient::connect(
        {.socket_path = socket, .vp_count = 1, .features = features}, *this, error_text);
    INFO(error_text);
    client_ = must(std::move(connected));
  }
  ~RawVmm() { client_.reset(); }

  [[nodiscard]] partition::AttachClient& client() { return *client_; }
  // The daemon's latest recovery area.
  [[nodiscard]] UniqueFd area() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kPatience, [this] { return static_cast<bool>(area_); });
    return std::move(area_);
  }
  [[nodiscard]] bool disconnected() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [this] { return disconnected_ || taken_up_; }) && disconnected_;
  }

 private:
  Result<void> doorbell_attach(std::uint32_t, UniqueFd) override { return {}; }
  Result<void> doorbell_detach(std::uint32_t) override { return {}; }
  void host_message(std::uint64_t, std::uint32_t, std::uint32_t, std::uint32_t,
                    std::span<const std::uint8_t>) override {}
  void signal_event(std::uint32_t, std::uint32_t, std::uint32_t) override {}
  void recovery_area(UniqueFd file, bool taken_up, std::uint64_t) override {
    const std::lock_guard lock(mutex_);
    area_ = std::move(file);
    taken_up_ |= taken_up;
    changed_.notify_all();
  }
  void disconnected(const Error&) override {
    const std::lock_guard lock(mutex_);
    disconnected_ = true;
    changed_.notify_all();
  }

  std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  UniqueFd area_;
  bool taken_up_ = false;
  bool disconnected_ = false;
  std::unique_ptr<partition::AttachClient> client_;
};

UniqueFd memfd(std::uint64_t size, bool sealed, mode_t mode = S_IRUSR | S_IWUSR) {
  UniqueFd file(::memfd_create("lie", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::ftruncate(file.get(), static_cast<off_t>(size)) == 0);
  REQUIRE(::fchmod(file.get(), mode) == 0);
  if (sealed) REQUIRE(::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
  return file;
}

TEST_CASE("a VMM that lies about what it has kept loses its connection and nothing else",
          "[daemon][restart]") {
  const DiskHost disks;
  Restarting host(disks.directory(), disks.config());
  const std::string socket = disks.directory().path("demo.sock");
  std::uint64_t size = 0;
  UniqueFd own;  // of the supervisor that lives
  {
    RawVmm vmm(socket);
    own = vmm.area();
    struct stat status {};
    REQUIRE(::fstat(own.get(), &status) == 0);
    size = static_cast<std::uint64_t>(status.st_size);
    CHECK((::fcntl(own.get(), F_GETFL) & O_ACCMODE) == O_RDONLY);
    CHECK(::fcntl(own.get(), F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW));
  }
  const auto refused = [&](UniqueFd area, const char* why) {
    INFO("refused because " << why);
    {
      RawVmm vmm(socket);
      must(vmm.client().take_up(area.get()));
      CHECK(vmm.disconnected());
    }
    INFO(host.daemon().log());
    CHECK(host.daemon().wait_for_log(why));
  };
  {
    RawVmm vmm(socket);
    CHECK_FALSE(vmm.client().take_up(memfd(size, false).get()));
    CHECK_FALSE(vmm.client().take_up(memfd(size / 2, true).get()));
    CHECK_FALSE(vmm.client().take_up(UniqueFd(::eventfd(0, EFD_CLOEXEC)).get()));
    CHECK(vmm.client().error_text() == "it is no recovery area of this version");
  }
  refused(memfd(size, true, 0666), "it was made by another user");
  refused(memfd(size, true), "nothing was recorded");
  {
    UniqueFd other = memfd(size, true);
    const std::uint64_t header[2] = {0x72766f6365726d76, 0};  // the magic number, and layout 0
    REQUIRE(::pwrite(other.get(), header, sizeof header, 0) == sizeof header);
    refused(std::move(other), "what the last worker recorded is of another version");
  }
  // All of them cost the partition a pause, and no other connection.
  const auto child = attach(disks.directory());
  const guest::Driver driver(*child);
}

TEST_CASE("what a VMM keeps is asked for at its time only", "[daemon][restart]") {
  const DiskHost disks;
  Restarting host(disks.directory(), disks.config());
  const std::string socket = disks.directory().path("demo.sock");
  const UniqueFd doorbell(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  SECTION("not without the feature") {
    RawVmm vmm(socket, 0);
    CHECK_FALSE(vmm.client().keep_doorbell(0x2001, doorbell.get()));
    CHECK_FALSE(vmm.client().take_up(doorbell.get()));
  }
  SECTION("no doorbells of channels that cannot be, none that are no eventfds") {
    RawVmm vmm(socket);
    CHECK_FALSE(vmm.client().keep_doorbell(0x2000, doorbell.get()));
    CHECK_FALSE(vmm.client().keep_doorbell(0x2800, doorbell.get()));
    CHECK_FALSE(vmm.client().keep_doorbell(1, doorbell.get()));
    CHECK_FALSE(vmm.client().keep_doorbell(0x2001, memfd(4096, false).get()));
    must(vmm.client().keep_doorbell(0x2001, doorbell.get()));
  }
  SECTION("not once the guest has spoken") {
    RawVmm vmm(socket);
    must(vmm.client().post_guest_message(0, 1, 1, {}));
    CHECK_FALSE(vmm.client().keep_doorbell(0x2001, doorbell.get()));
    CHECK_FALSE(vmm.client().take_up(doorbell.get()));
  }
}

TEST_CASE("a guest is not taken up for another partition", "[daemon][restart]") {
  const TemporaryDirectory directory;
  Restarting host(directory,
                  "[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\n"
                  "[[partition]]\nname = 'other'\nsocket = 'other.sock'\n");
  const auto child = attach(directory);
  guest::BusClient bus(*child);
  must(bus.contact(vmbus::Version::k5_3));
  child->set_socket_path(directory.path("other.sock"));
  std::string error_text;
  let_it_rest();
  host.end(SIGKILL);
  host.start();
  CHECK(guest::error_of(child->reattach(error_text)) == Errc::kClosed);
  CHECK(host.daemon().wait_for_log("it is another partition's"));
}

}  // namespace
}  // namespace vmbusd::daemon
