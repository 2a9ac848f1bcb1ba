// A worker process that dies is followed by another, and its guest, here the user-space child partition, sees
// nothing but a pause.
#include <signal.h>

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "tests/daemon/verified_guest.h"
#include "tests/storvsp/nbd_server.h"

namespace vmbusd::daemon {
namespace {

using std::chrono::milliseconds;

// More for a long run. Deaths are far enough from each other not to be taken for a worker that cannot live:
// five take more than two seconds.
int kills_wanted() {
  const char* const asked = std::getenv("VMBUSD_TEST_KILLS");
  return asked != nullptr ? std::atoi(asked) : 10;
}
constexpr milliseconds kBetweenKillsMin{520};
constexpr milliseconds kBetweenKillsMax{720};

// `beside` is called with each kill.
template <typename Beside>
void kill_under_verified_io(const DiskHost& host, const std::string& config, Beside beside) {
  constexpr std::uint32_t kDepth = 32;
  RunningDaemon daemon(host.directory(), config);
  REQUIRE(daemon.wait_until_ready());
  std::string error_text;
  const auto child =
      must(guest::ChildPartition::attach({.socket_path = host.directory().path("demo.sock")}, error_text));
  guest::Driver driver(*child, {.depth = kDepth});
  const std::uint32_t seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  VerifiedLoad load(*child, *driver.stor, kDepth, seed);
  const int kills = kills_wanted();
  pid_t worker = -1;
  auto next_kill = guest::Clock::now();
  for (int killed = 0; killed < kills || load.in_flight() != 0;) {
    if (killed < kills && guest::Clock::now() >= next_kill) {
      worker = daemon.worker_pid(worker);
      REQUIRE(worker > 0);
      REQUIRE(::kill(worker, SIGKILL) == 0);
      beside(killed);
      ++killed;
      next_kill = guest::Clock::now() + milliseconds(std::uniform_int_distribution<>(
                                            kBetweenKillsMin.count(), kBetweenKillsMax.count())(random));
    }
    INFO("after " << killed << " kills");
    load.turn(killed < kills, daemon);
  }
  WARN(load.commands() << " commands, " << kills << " kills, longest pause " << load.longest_pause().count()
                       << " ms");
  load.check_image(host.image());
  CHECK_FALSE(child->disconnected_by_host());
  // The control path goes on as well.
  driver.disk.reset();
  driver.stor.reset();
  must(driver.channel->close());
  driver.channel = must(guest::GuestChannel::open(driver.bus, driver.offer, {}));
  guest::StorClient again(*driver.channel, kDepth);
  must(again.initialize());
  must(guest::Disk(again).ready());
}

TEST_CASE("a worker that is killed under verified I/O costs the guest a pause", "[daemon][recovery]") {
  const DiskHost host;
  kill_under_verified_io(host, host.config(), [](int) {});
}

TEST_CASE("a worker that is killed under verified I/O on an NBD server costs the guest a pause",
          "[daemon][recovery][nbd]") {
  const DiskHost host;
  NbdServer server({"file", host.image()});
  kill_under_verified_io(host, host.config("nbd = 'nbd+unix:///?socket=" + server.socket() + "'"),
                         [&](int killed) {
                           if (killed % 3 != 1) return;
                           server.kill();
                           server.start();
                         });
}

TEST_CASE("a worker that is killed under traffic costs the guest frames and nothing else",
          "[daemon][recovery]") {
  const TemporaryDirectory directory;
  RunningDaemon daemon(directory,
                       "[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\n[[partition.nic]]\nname = "
                       "'nic0'\nbackend = 'loopback'\n");
  REQUIRE(daemon.wait_until_ready());
  std::string error_text;
  const auto child =
      must(guest::ChildPartition::attach({.socket_path = directory.path("demo.sock")}, error_text));
  guest::BusClient bus(*child);
  must(bus.contact(vmbus::Version::k5_3));
  const auto channel = must(guest::GuestChannel::open(bus, must(bus.request_offers()).front()));
  guest::NetClient net(*channel);
  // 64 sub-allocations: what a death loses of them would soon be missed.
  must(net.initialize({.receive_pages = 32, .send_pages = 64}));
  Echo echo(net);

  const std::uint32_t seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  const int kills = kills_wanted();
  pid_t worker = -1;
  auto next_kill = guest::Clock::now();
  auto last = guest::Clock::now();
  std::uint64_t received_before = 0;
  for (int killed = 0; killed < kills || guest::Clock::now() < next_kill;) {
    if (killed < kills && guest::Clock::now() >= next_kill) {
      // Each worker has had frames come through.
      INFO("after " << killed << " kills\n" << daemon.log());
      REQUIRE((killed == 0 || echo.received() > received_before + 1000));
      received_before = echo.received();
      worker = daemon.worker_pid(worker);
      REQUIRE(worker > 0);
      REQUIRE(::kill(worker, SIGKILL) == 0);
      ++killed;
      next_kill = guest::Clock::now() + milliseconds(std::uniform_int_distribution<>(
                                            kBetweenKillsMin.count(), kBetweenKillsMax.count())(random));
    }
    echo.send_all();
    if (echo.poll() != 0) {
      last = guest::Clock::now();
      continue;
    }
    static_cast<void>(must(net.wait(milliseconds(100))));
    INFO("after " << killed << " kills and " << echo.sent() << " frames\n" << daemon.log());
    REQUIRE(guest::Clock::now() - last < kPatience);
  }
  // Every frame's memory comes back, once.
  const bool all_back = eventually([&] {
    static_cast<void>(echo.poll());
    return net.in_flight() == 0;
  });
  INFO(net.in_flight() << " of " << echo.sent() << " frames did not come back\n" << daemon.log());
  REQUIRE(all_back);
  CHECK(net.statistics().completed == echo.sent());
  WARN(echo.sent() << " frames, " << echo.received() << " came back, " << kills << " kills");
  CHECK_FALSE(child->disconnected_by_host());
}

TEST_CASE("vmbusctl upgrade replaces the worker process under its guest", "[daemon][recovery]") {
  const DiskHost host;
  RunningDaemon daemon(host.directory(), "control_socket = 'control.sock'\n" + host.config());
  REQUIRE(daemon.wait_until_ready());
  std::string error_text;
  const auto child =
      must(guest::ChildPartition::attach({.socket_path = host.directory().path("demo.sock")}, error_text));
  guest::Driver driver(*child);
  const std::vector<std::byte> bytes(4096, std::byte{'u'});
  must(driver.disk->write(0, bytes));
  pid_t worker = daemon.worker_pid();
  for (int i = 0; i < 3; ++i) {
    const Finished upgrade =
        run_program(VMBUSCTL_EXE, {"--socket", host.directory().path("control.sock"), "upgrade", "demo"});
    INFO(upgrade.output << daemon.log());
    REQUIRE(upgrade.status == 0);
    worker = daemon.worker_pid(worker);
    REQUIRE(worker > 0);
    CHECK(guest::read_disk(*driver.disk, 0, bytes.size()) == bytes);
  }
  CHECK_FALSE(child->disconnected_by_host());
  CHECK(daemon.log().find("unexpectedly") == std::string::npos);
}

}  // namespace
}  // namespace vmbusd::daemon
