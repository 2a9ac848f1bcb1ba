// A worker process that dies is followed by another, and its guest, here the user-space child partition, sees
// nothing but a pause.
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "guest/net_client.h"
#include "tests/guest/host.h"

namespace vmbusd::daemon {
namespace {

using guest::must;
using std::chrono::milliseconds;

// More for a long run. Deaths are far enough from each other not to be taken for a worker that cannot live:
// five take more than two seconds.
int kills_wanted() {
  const char* const asked = std::getenv("VMBUSD_TEST_KILLS");
  return asked != nullptr ? std::atoi(asked) : 10;
}
constexpr milliseconds kBetweenKillsMin{520};
constexpr milliseconds kBetweenKillsMax{720};

constexpr std::uint32_t kBlockBytes = 512;

// Commands of one kind after the other on a part of the disk of its own, all of whose blocks it knows.
class Area {
 public:
  static constexpr std::uint32_t kBlocks = 256;
  static constexpr std::uint32_t kBlocksMax = 64;  // of one command

  Area(guest::ChildPartition& child, std::uint32_t number, std::uint32_t seed)
      : first_(number * kBlocks),
        random_(seed),
        written_(kBlocks),
        pages_(must(child.ram().take(kBlocksMax * kBlockBytes / 4096))) {}

  // Puts the next command into the ring.
  void submit(guest::StorClient& client) {
    blocks_ = below(kBlocksMax) + 1;
    begin_ = below(kBlocks - blocks_ + 1);
    writes_ = below(3) != 0;
    if (writes_) {
      ++generation_;
      for (std::uint32_t i = 0; i < blocks_; ++i)
        pages_.write(i * kBlockBytes, pattern(begin_ + i, generation_));
    } else {
      pages_.write(0, std::vector<std::byte>(blocks_ * kBlockBytes));
    }
    guest::StorCommand command = guest::block_command(
        writes_ ? guest::scsi::Opcode::kWrite16 : guest::scsi::Opcode::kRead16, first_ + begin_, blocks_);
    command.pages = pages_.gpns();
    command.bytes = blocks_ * kBlockBytes;
    const auto id = must(client.submit(command));
    REQUIRE(id.has_value());
    id_ = *id;
  }
  [[nodiscard]] std::uint64_t id() const { return id_; }

  // That command is over: a read found what was written last.
  void completed(const guest::vstor::SrbPacket& packet) {
    REQUIRE(guest::succeeded(packet));
    REQUIRE(packet.srb.data_transfer_length == blocks_ * kBlockBytes);
    for (std::uint32_t i = 0; i < blocks_; ++i) {
      if (writes_) {
        written_[begin_ + i] = generation_;
        // Memory of a command that is over is the guest's: what still writes it out shows.
        pages_.write(i * kBlockBytes, std::vector<std::byte>(kBlockBytes, std::byte{0xee}));
        continue;
      }
      std::vector<std::byte> found(kBlockBytes);
      pages_.read(i * kBlockBytes, found);
      REQUIRE(found == pattern(begin_ + i, written_[begin_ + i]));
    }
  }

  void check_image(std::ifstream& image) const {
    for (std::uint32_t block = 0; block < kBlocks; ++block) {
      std::vector<std::byte> found(kBlockBytes);
      image.seekg(static_cast<std::streamoff>(first_ + block) * kBlockBytes);
      image.read(reinterpret_cast<char*>(found.data()), kBlockBytes);
      REQUIRE(found == pattern(block, written_[block]));
    }
  }

 private:
  // What write number `generation` puts into a block; 0: the image as it was made.
  [[nodiscard]] std::vector<std::byte> pattern(std::uint32_t block, std::uint64_t generation) const {
    std::vector<std::byte> bytes(kBlockBytes, std::byte{'i'});
    if (generation == 0) return bytes;
    const std::uint64_t word = (std::uint64_t{first_ + block} << 40) ^ generation;
    for (std::size_t at = 0; at < kBlockBytes; at += sizeof word) std::memcpy(&bytes[at], &word, sizeof word);
    return bytes;
  }

  [[nodiscard]] std::uint32_t below(std::uint32_t bound) {
    return std::uniform_int_distribution<std::uint32_t>(0, bound - 1)(random_);
  }

  std::uint32_t first_;  // block of the disk
  std::mt19937 random_;
  std::vector<std::uint64_t> written_;  // by block: the last write that is over
  guest::Pages pages_;
  std::uint64_t generation_ = 0;
  std::uint64_t id_ = 0;
  std::uint32_t begin_ = 0;
  std::uint32_t blocks_ = 0;
  bool writes_ = false;
};

class DiskHost {
 public:
  DiskHost() { std::ofstream(directory_.path("d.img")) << std::string(guest::kImageBytes, 'i'); }

  [[nodiscard]] std::string config() const {
    return "[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\nio_threads = 2\n[[partition.scsi]]\nname = "
           "'scsi0'\nchannels = 2\n[[partition.scsi.disk]]\nlun = 0\npath = 'd.img'\n";
  }
  [[nodiscard]] const TemporaryDirectory& directory() const { return directory_; }
  [[nodiscard]] std::string image() const { return directory_.path("d.img"); }

 private:
  TemporaryDirectory directory_;
};

TEST_CASE("a worker that is killed under verified I/O costs the guest a pause", "[daemon][recovery]") {
  constexpr std::uint32_t kDepth = 32;
  const DiskHost host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  std::string error_text;
  const auto child =
      must(guest::ChildPartition::attach({.socket_path = host.directory().path("demo.sock")}, error_text));
  guest::Driver driver(*child, {.depth = kDepth});
  guest::StorClient& stor = *driver.stor;

  const std::uint32_t seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  std::vector<Area> areas;
  for (std::uint32_t i = 0; i < kDepth; ++i) areas.emplace_back(*child, i, seed + i);
  std::map<std::uint64_t, Area*> in_flight;  // by command id
  const auto submit = [&](Area& area) {
    area.submit(stor);
    REQUIRE(in_flight.emplace(area.id(), &area).second);
  };
  for (Area& area : areas) submit(area);
  must(stor.flush());

  const int kills = kills_wanted();
  pid_t worker = -1;
  std::uint64_t commands = 0;
  milliseconds longest{0};
  auto last_completion = guest::Clock::now();
  auto next_kill = guest::Clock::now();
  for (int killed = 0; killed < kills || !in_flight.empty();) {
    if (killed < kills && guest::Clock::now() >= next_kill) {
      worker = daemon.worker_pid(worker);
      REQUIRE(worker > 0);
      REQUIRE(::kill(worker, SIGKILL) == 0);
      ++killed;
      next_kill = guest::Clock::now() + milliseconds(std::uniform_int_distribution<>(
                                            kBetweenKillsMin.count(), kBetweenKillsMax.count())(random));
    }
    const Result<std::uint32_t> polled = stor.poll([&](const guest::StorCompletion& completion) {
      const auto found = in_flight.find(completion.id);
      REQUIRE(found != in_flight.end());
      Area& area = *found->second;
      in_flight.erase(found);
      area.completed(completion.packet);
      ++commands;
      if (killed < kills) submit(area);
    });
    INFO("after " << commands << " commands and " << killed << " kills");
    const std::uint32_t count = must(polled);
    must(stor.flush());
    if (count == 0 && !in_flight.empty()) {
      static_cast<void>(must(stor.wait(milliseconds(500))));
      INFO("while waiting for " << in_flight.size() << "\n" << daemon.log());
      REQUIRE(guest::Clock::now() - last_completion < kPatience);
    }
    if (count == 0) continue;
    const auto now = guest::Clock::now();
    longest = std::max(longest, std::chrono::duration_cast<milliseconds>(now - last_completion));
    last_completion = now;
  }
  WARN(commands << " commands, " << kills << " kills, longest pause " << longest.count() << " ms");
  std::ifstream image(host.image(), std::ios::binary);
  for (const Area& area : areas) area.check_image(image);
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

// Frames to itself, each with a number and bytes that follow from it.
class Echo {
 public:
  explicit Echo(guest::NetClient& net) : net_(net) {}

  void send_all() {
    for (;;) {
      std::vector<std::byte> frame(64 + sent_ % 1400);
      std::memcpy(frame.data(), net_.mac().bytes.data(), 6);
      std::memcpy(frame.data() + kNumberAt, &sent_, sizeof sent_);
      fill(std::span(frame).subspan(kBytesAt), sent_);
      if (!must(net_.send(frame))) break;
      ++sent_;
    }
    must(net_.flush());
  }
  std::uint32_t poll() {
    const std::uint64_t completed = net_.statistics().completed;
    const std::uint32_t packets = must(net_.poll([this](std::span<const std::byte> frame) {
      std::uint64_t number = 0;
      REQUIRE(frame.size() >= 64);
      std::memcpy(&number, frame.data() + kNumberAt, sizeof number);
      REQUIRE(number < sent_);
      REQUIRE(frame.size() == 64 + number % 1400);
      std::vector<std::byte> bytes(frame.size() - kBytesAt);
      fill(bytes, number);
      REQUIRE(std::equal(bytes.begin(), bytes.end(), frame.begin() + kBytesAt));
      ++received_;
    }));
    must(net_.flush());
    return packets + static_cast<std::uint32_t>(net_.statistics().completed - completed);
  }
  [[nodiscard]] std::uint64_t sent() const { return sent_; }
  [[nodiscard]] std::uint64_t received() const { return received_; }

 private:
  static constexpr std::size_t kNumberAt = 16;
  static constexpr std::size_t kBytesAt = 24;

  static void fill(std::span<std::byte> bytes, std::uint64_t number) {
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(number + i);
  }

  guest::NetClient& net_;
  std::uint64_t sent_ = 0;
  std::uint64_t received_ = 0;
};

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
