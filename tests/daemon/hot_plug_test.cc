// Devices that come, go and change under guests, here user-space child partitions.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "daemon/sandbox.h"
#include "guest/net_client.h"
#include "tests/daemon/http_client.h"
#include "tests/guest/host.h"

namespace vmbusd::daemon {
namespace {

using guest::must;
using Json = nlohmann::json;
using scsi_asc = guest::scsi::Asc;

constexpr const char* kDemo =
    "control_socket = 'control.sock'\n[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\nio_threads = 2\n"
    "[[partition.scsi]]\nname = 'scsi0'\nchannels = 2\n[[partition.scsi.disk]]\nlun = 0\npath = 'd.img'\n";
constexpr const char* kDisks = "/v1/partitions/demo/scsi/scsi0/disks";
constexpr const char* kMoreDisk = "{\"lun\": 5, \"path\": \"more.img\"}";

class PluggedHost {
 public:
  explicit PluggedHost(const std::string& more = "") {
    make_image("d.img");
    make_image("more.img");
    daemon_ = std::make_unique<RunningDaemon>(directory_, kDemo + more);
    REQUIRE(daemon_->wait_until_ready());
  }

  ~PluggedHost() {
    const std::string log = daemon_->log();
    INFO(log);
    CHECK(is_alive(daemon_->pid()));
    CHECK(log.find("Sanitizer: ") == std::string::npos);
    CHECK(log.find("runtime error: ") == std::string::npos);
  }
  PluggedHost(const PluggedHost&) = delete;
  PluggedHost& operator=(const PluggedHost&) = delete;

  void make_image(const std::string& name) const {
    std::ofstream(directory_.path(name)) << std::string(guest::kImageBytes, 'i');
  }
  [[nodiscard]] RunningDaemon& daemon() { return *daemon_; }
  [[nodiscard]] const TemporaryDirectory& directory() const { return directory_; }
  // The status of the answer; says what it was where it is no success.
  int ask(const std::string& method, const std::string& target, const std::string& body = "") const {
    const HttpAnswer answer = daemon::ask(directory_.path("control.sock"), method, target, body);
    if (answer.status / 100 != 2) UNSCOPED_INFO(method << " " << target << ": " << answer.body);
    return answer.status;
  }
  [[nodiscard]] Json get(const std::string& target) const {
    return Json::parse(daemon::ask(directory_.path("control.sock"), "GET", target).body);
  }
  [[nodiscard]] std::unique_ptr<guest::ChildPartition> attach(const std::string& partition = "demo") const {
    std::string error_text;
    auto child =
        guest::ChildPartition::attach({.socket_path = directory_.path(partition + ".sock")}, error_text);
    INFO(error_text);
    return must(std::move(child));
  }
  void reload(const std::string& config) {
    std::ofstream(daemon_->config_path()) << config;
    REQUIRE(ask("POST", "/v1/reload") == 204);
  }
  // A worker that dies while the guest or its VMM is told of something is not followed: one that answers has
  // been through with what came before the question.
  void kill_worker() {
    worker_ = daemon_->worker_pid(worker_);
    REQUIRE(worker_ > 0);
    for (int i = 0; i < 2; ++i) {
      REQUIRE(eventually([&] { return get("/v1/partitions/demo")["worker_answers"] == true; }));
    }
    REQUIRE(::kill(worker_, SIGKILL) == 0);
  }
  // Whether a file can be locked as a program would that uses it as a disk.
  [[nodiscard]] bool lockable(const std::string& name) const {
    const UniqueFd file(::open(directory_.path(name).c_str(), O_RDWR | O_CLOEXEC));
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_start = 100;
    lock.l_len = 200;
    return ::fcntl(file.get(), F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
  }

 private:
  TemporaryDirectory directory_;
  std::unique_ptr<RunningDaemon> daemon_;
  pid_t worker_ = -1;
};

// TEST UNIT READY until it reports nothing; what it reported. Empty: there is no such LUN.
std::optional<std::set<scsi_asc>> attentions(guest::StorClient& stor, std::uint8_t lun) {
  std::set<scsi_asc> seen;
  // What changes meanwhile is reported as well, perhaps once more of a kind.
  constexpr int kReportsMax = 20;
  for (int reports = 0;; ++reports) {
    REQUIRE(reports < kReportsMax);
    guest::StorCommand command;
    command.cdb_length = 6;
    command.lun = lun;
    const auto packet = must(stor.execute(command));
    if (guest::succeeded(packet)) return seen;
    if (packet.srb.srb_status == static_cast<std::uint8_t>(guest::vstor::SrbStatus::kInvalidLun))
      return std::nullopt;
    const auto sense = guest::sense_of(packet);
    REQUIRE(sense.has_value());
    REQUIRE(sense->key == guest::scsi::SenseKey::kUnitAttention);
    seen.insert(sense->asc);
  }
}

TEST_CASE("a disk comes, grows and goes through the control API", "[daemon][hotplug]") {
  PluggedHost host;
  const auto child = host.attach();
  guest::Driver driver(*child);
  REQUIRE(attentions(*driver.stor, 5) == std::nullopt);

  REQUIRE(host.ask("POST", kDisks, kMoreDisk) == 201);
  CHECK(attentions(*driver.stor, 0) == std::set{scsi_asc::kReportedLunsDataHasChanged});
  CHECK(driver.stor->bus_changes() == 1);
  CHECK(attentions(*driver.stor, 5) == std::set{scsi_asc::kPowerOnOrReset});
  guest::Disk disk(*driver.stor, 5);
  const std::vector<std::byte> bytes(4096, std::byte{'h'});
  must(disk.write(8192, bytes));
  CHECK(guest::read_disk(disk, 8192, bytes.size()) == bytes);
  CHECK_FALSE(host.lockable("more.img"));
  CHECK(host.ask("POST", kDisks, kMoreDisk) == 409);

  REQUIRE(host.ask("POST", std::string(kDisks) + "/5/resize", "{\"size\": \"16M\"}") == 204);
  CHECK(attentions(*driver.stor, 5) == std::set{scsi_asc::kCapacityDataHasChanged});
  CHECK(driver.stor->bus_changes() == 2);
  CHECK(must(disk.capacity()).blocks == (16u << 20) / 512);
  must(disk.write((16u << 20) - 4096, bytes));
  CHECK(host.ask("POST", std::string(kDisks) + "/5/resize", "{\"size\": \"8M\"}") == 409);
  REQUIRE(host.ask("PATCH", std::string(kDisks) + "/5", "{\"iops\": 100000, \"rate\": \"1G\"}") == 204);
  CHECK(guest::read_disk(disk, 8192, bytes.size()) == bytes);
  REQUIRE(host.ask("PATCH", std::string(kDisks) + "/5", "{\"iops\": 0, \"rate\": 0}") == 204);
  CHECK(guest::read_disk(disk, 8192, bytes.size()) == bytes);

  REQUIRE(host.ask("DELETE", std::string(kDisks) + "/5") == 204);
  CHECK(host.lockable("more.img"));
  CHECK(attentions(*driver.stor, 5) == std::nullopt);
  CHECK(attentions(*driver.stor, 0) == std::set{scsi_asc::kReportedLunsDataHasChanged});
  CHECK(driver.stor->bus_changes() == 3);
  CHECK(host.ask("DELETE", std::string(kDisks) + "/5") == 404);
  CHECK(host.ask("POST", kDisks, "{\"lun\": 5, \"path\": \"none.img\"}") == 422);
  CHECK(host.ask("POST", kDisks, "{\"lun\": 5, \"pfad\": \"more.img\"}") == 422);
}

// Keeps a queue of reads and writes at LUN 0, each of which must go well.
class Load {
 public:
  explicit Load(guest::Driver& driver, guest::ChildPartition& child)
      : driver_(driver), pages_(must(child.ram().take(1))) {}

  void run() {
    while (driver_.stor->in_flight() < kDepth) {
      ++count_;
      guest::StorCommand command = guest::block_command(
          count_ % 2 == 0 ? guest::scsi::Opcode::kWrite16 : guest::scsi::Opcode::kRead16, count_ % 1000, 8);
      command.pages = pages_.gpns();
      command.bytes = 4096;
      REQUIRE(must(driver_.stor->submit(command)).has_value());
    }
    must(driver_.stor->flush());
    take();
  }
  void drain() {
    const bool drained = eventually([&] {
      take();
      return driver_.stor->in_flight() == 0;
    });
    REQUIRE(drained);
  }
  [[nodiscard]] std::uint64_t completed() const { return completed_; }

 private:
  static constexpr std::uint32_t kDepth = 16;

  void take() {
    must(driver_.stor->poll([&](const guest::StorCompletion& completion) {
      const auto sense = guest::sense_of(completion.packet);
      const bool attention = sense && sense->key == guest::scsi::SenseKey::kUnitAttention;
      REQUIRE((guest::succeeded(completion.packet) || attention));
      ++completed_;
    }));
  }

  guest::Driver& driver_;
  guest::Pages pages_;
  std::uint64_t count_ = 0;
  std::uint64_t completed_ = 0;
};

TEST_CASE("a hundred disks come, grow and go under I/O, and leave nothing", "[daemon][hotplug]") {
  PluggedHost host;
  const auto child = host.attach();
  guest::Driver driver(*child);
  Load load(driver, *child);
  std::size_t supervisor = 0;
  std::size_t worker = 0;
  for (int round = 0; round < 100; ++round) {
    load.run();
    REQUIRE(host.ask("POST", kDisks, kMoreDisk) == 201);
    load.run();
    const std::string size = "{\"size\": \"" + std::to_string(9 + round) + "M\"}";
    REQUIRE(host.ask("POST", std::string(kDisks) + "/5/resize", size) == 204);
    load.run();
    REQUIRE(host.ask("DELETE", std::string(kDisks) + "/5") == 204);
    if (round != 9) continue;
    load.drain();
    supervisor = open_descriptors(host.daemon().pid());
    worker = open_descriptors(host.daemon().worker_pid());
  }
  load.drain();
  CHECK(load.completed() > 100);
  CHECK(open_descriptors(host.daemon().pid()) == supervisor);
  CHECK(open_descriptors(host.daemon().worker_pid()) == worker);
  CHECK(host.daemon().log().find("unexpectedly") == std::string::npos);
}

TEST_CASE("a NIC and a controller come and go while the guest runs", "[daemon][hotplug]") {
  PluggedHost host;
  const auto child = host.attach();
  guest::Driver driver(*child);
  for (int round = 0; round < 3; ++round) {
    REQUIRE(host.ask("POST", "/v1/partitions/demo/nics", "{\"name\": \"nic7\", \"backend\": \"loopback\"}") ==
            201);
    const vmbus::OfferChannel nic = must(driver.bus.wait_offer());
    CHECK(nic.interface_type == vmbus::kClassNetwork);
    auto channel = must(guest::GuestChannel::open(driver.bus, nic));
    guest::NetClient net(*channel);
    must(net.initialize({.receive_pages = 32, .send_pages = 64}));
    CHECK(host.ask("POST", "/v1/partitions/demo/nics", "{\"name\": \"nic7\", \"backend\": \"null\"}") == 409);

    REQUIRE(host.ask("POST", "/v1/partitions/demo/scsi",
                     "{\"name\": \"scsi7\", \"disk\": [{\"lun\": 3, \"path\": \"more.img\"}]}") == 201);
    const vmbus::OfferChannel scsi = must(driver.bus.wait_offer());
    CHECK(scsi.interface_type == vmbus::kClassScsi);
    auto stor_channel = must(guest::GuestChannel::open(driver.bus, scsi));
    guest::StorClient stor(*stor_channel, 4);
    must(stor.initialize());
    must(guest::Disk(stor, 3).ready());

    REQUIRE(host.ask("DELETE", "/v1/partitions/demo/devices/nic7") == 204);
    CHECK(must(driver.bus.wait_rescind()) == nic.relid);
    must(driver.bus.release_relid(nic.relid));
    REQUIRE(host.ask("DELETE", "/v1/partitions/demo/devices/scsi7") == 204);
    CHECK(must(driver.bus.wait_rescind()) == scsi.relid);
    must(driver.bus.release_relid(scsi.relid));
    CHECK(host.lockable("more.img"));
    CHECK(guest::read_disk(*driver.disk, 0, 512).size() == 512);
  }
  CHECK(host.ask("DELETE", "/v1/partitions/demo/devices/nic7") == 404);
}

TEST_CASE("a worker that is killed is followed by one that knows the devices of now",
          "[daemon][hotplug][recovery]") {
  PluggedHost host("[[partition.nic]]\nname = 'nic0'\nbackend = 'loopback'\n");
  const auto child = host.attach();
  guest::Driver driver(*child);
  REQUIRE(host.ask("POST", kDisks, kMoreDisk) == 201);
  REQUIRE(attentions(*driver.stor, 5).has_value());
  guest::Disk disk(*driver.stor, 5);
  const std::vector<std::byte> bytes(4096, std::byte{'k'});
  must(disk.write(0, bytes));
  static_cast<void>(attentions(*driver.stor, 0));

  host.kill_worker();
  CHECK(guest::read_disk(disk, 0, bytes.size()) == bytes);
  // The next finds that it has grown meanwhile.
  REQUIRE(::truncate(host.directory().path("more.img").c_str(), 2 * guest::kImageBytes) == 0);
  host.kill_worker();
  CHECK(attentions(*driver.stor, 5) == std::set{scsi_asc::kCapacityDataHasChanged});

  REQUIRE(host.ask("DELETE", std::string(kDisks) + "/5") == 204);
  host.kill_worker();
  CHECK(attentions(*driver.stor, 5) == std::nullopt);
  CHECK(attentions(*driver.stor, 0) == std::set{scsi_asc::kReportedLunsDataHasChanged});

  // A device that the guest does not use, and one that comes.
  REQUIRE(host.ask("DELETE", "/v1/partitions/demo/devices/nic0") == 204);
  must(driver.bus.release_relid(must(driver.bus.wait_rescind())));
  REQUIRE(host.ask("POST", "/v1/partitions/demo/nics", "{\"name\": \"nic1\", \"backend\": \"loopback\"}") ==
          201);
  const vmbus::OfferChannel nic = must(driver.bus.wait_offer());
  // A worker that dies while the guest's channels change is not followed.
  ::usleep(100'000);
  host.kill_worker();
  const auto channel = must(guest::GuestChannel::open(driver.bus, nic));
  guest::NetClient net(*channel);
  must(net.initialize({.receive_pages = 32, .send_pages = 64}));
  INFO(host.daemon().log());
  CHECK_FALSE(child->disconnected_by_host());
  CHECK(guest::read_disk(*driver.disk, 0, 512).size() == 512);
}

TEST_CASE("what is asked for while the worker is dead is what the next one has",
          "[daemon][hotplug][recovery]") {
  PluggedHost host;
  const auto child = host.attach();
  guest::Driver driver(*child);
  // Whether the worker has done it, has not, or is not there yet: after either it must be so.
  for (int round = 0; round < 4; ++round) {
    host.kill_worker();
    REQUIRE(host.ask("POST", kDisks, kMoreDisk) == 201);
    REQUIRE(eventually([&] { return attentions(*driver.stor, 5).has_value(); }));
    const std::uint32_t changes = driver.stor->bus_changes();
    CHECK(changes > 0);
    static_cast<void>(attentions(*driver.stor, 0));
    host.kill_worker();
    REQUIRE(host.ask("DELETE", std::string(kDisks) + "/5") == 204);
    REQUIRE(eventually([&] { return !attentions(*driver.stor, 5).has_value(); }));
    static_cast<void>(attentions(*driver.stor, 0));
    CHECK(driver.stor->bus_changes() > changes);
    // Deaths far enough from each other not to be taken for a worker that cannot live.
    ::usleep(1'200'000);
  }
  CHECK_FALSE(child->disconnected_by_host());
}

TEST_CASE("a reload changes the devices that differ and leaves the others", "[daemon][hotplug]") {
  PluggedHost host;
  host.make_image("third.img");
  const auto child = host.attach();
  guest::Driver driver(*child);
  const pid_t worker = host.daemon().worker_pid();
  const std::string third = "[[partition.scsi.disk]]\nlun = 3\npath = 'third.img'\n";

  host.reload(kDemo + third);
  REQUIRE(eventually([&] { return attentions(*driver.stor, 3).has_value(); }));
  REQUIRE(host.ask("POST", kDisks, kMoreDisk) == 201);
  static_cast<void>(attentions(*driver.stor, 5));
  static_cast<void>(attentions(*driver.stor, 3));
  static_cast<void>(attentions(*driver.stor, 0));

  // Limits change in place; what came at run time stays.
  const std::uint32_t changes = driver.stor->bus_changes();
  host.reload(kDemo + third + "iops = 5000\n");
  CHECK(attentions(*driver.stor, 3) == std::set<scsi_asc>());
  CHECK(attentions(*driver.stor, 5) == std::set<scsi_asc>());
  CHECK(driver.stor->bus_changes() == changes);

  // Another disk in its place.
  host.reload(kDemo + third + "readonly = true\n[[partition.nic]]\nname = 'nic0'\nbackend = 'null'\n");
  CHECK(must(driver.bus.wait_offer()).interface_type == vmbus::kClassNetwork);
  REQUIRE(eventually([&] {
    const auto seen = attentions(*driver.stor, 3);
    return seen && seen->contains(scsi_asc::kPowerOnOrReset);
  }));
  host.reload(kDemo);
  static_cast<void>(must(driver.bus.wait_rescind()));
  REQUIRE(eventually([&] { return !attentions(*driver.stor, 3).has_value(); }));
  CHECK(attentions(*driver.stor, 5).has_value());
  CHECK(host.daemon().worker_pid() == worker);
  CHECK(host.daemon().log().find("unexpectedly") == std::string::npos);
}

// Resident memory of a process in KiB; 0 where it cannot be told.
std::size_t resident_kib(pid_t pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) return std::strtoul(line.c_str() + 6, nullptr, 10);
  }
  return 0;
}

TEST_CASE("twenty partitions take plugs, removals and reloads, and grow by nothing", "[daemon][hotplug]") {
  constexpr int kPartitions = 20;
  constexpr int kPlugs = 1000;
  constexpr int kReloadEvery = 20;
  PluggedHost host;
  std::string config = kDemo;
  for (int i = 0; i < kPartitions; ++i) {
    const std::string name = "p" + std::to_string(i);
    host.make_image(name + ".img");
    config += "[[partition]]\nname = '" + name + "'\nsocket = '" + name +
              ".sock'\nio_threads = 1\n[[partition.scsi]]\nname = 'scsi0'\n[[partition.scsi.disk]]\nlun = 0\n"
              "path = 'd.img'\nreadonly = true\n[[partition.nic]]\nname = 'nic0'\nbackend = 'loopback'\n";
    config.replace(config.rfind("d.img"), 5, name + ".img");
  }
  host.reload(config);
  std::vector<std::unique_ptr<guest::ChildPartition>> children;
  std::vector<std::unique_ptr<guest::Driver>> drivers;
  for (int i = 0; i < kPartitions; ++i) {
    const std::string name = "p" + std::to_string(i);
    REQUIRE(eventually([&] { return host.get("/v1/partitions/" + name)["state"] == "serving"; }));
    children.push_back(host.attach(name));
    drivers.push_back(std::make_unique<guest::Driver>(*children.back()));
  }
  std::map<std::string, pid_t> workers;
  const auto count_workers = [&] {
    std::map<std::string, pid_t> found;
    const Json answer = host.get("/v1/partitions");
    for (const Json& each : answer["partitions"]) found[each["name"]] = each["worker_pid"];
    return found;
  };
  workers = count_workers();

  const std::uint32_t seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  const auto below = [&](int bound) { return std::uniform_int_distribution<>(0, bound - 1)(random); };
  std::set<std::pair<int, int>> plugged;  // partition; 0 a NIC, else a disk's LUN
  const auto toggle = [&](int partition, int what) {
    const std::string target = "/v1/partitions/p" + std::to_string(partition);
    const bool there = plugged.contains({partition, what});
    if (what == 0) {
      REQUIRE(
          (there ? host.ask("DELETE", target + "/devices/nic1") == 204
                 : host.ask("POST", target + "/nics", "{\"name\": \"nic1\", \"backend\": \"null\"}") == 201));
      if (there) {
        must(drivers[partition]->bus.release_relid(must(drivers[partition]->bus.wait_rescind())));
      } else {
        static_cast<void>(must(drivers[partition]->bus.wait_offer()));
      }
    } else {
      const std::string disks = target + "/scsi/scsi0/disks";
      const std::string disk =
          "{\"lun\": " + std::to_string(what) + ", \"path\": \"more.img\", \"readonly\": true}";
      REQUIRE((there ? host.ask("DELETE", disks + "/" + std::to_string(what)) == 204
                     : host.ask("POST", disks, disk) == 201));
      CHECK(attentions(*drivers[partition]->stor, static_cast<std::uint8_t>(what)).has_value() == !there);
    }
    if (there) {
      plugged.erase({partition, what});
    } else {
      plugged.insert({partition, what});
    }
  };
  const auto unplug_all = [&] {
    while (!plugged.empty()) toggle(plugged.begin()->first, plugged.begin()->second);
  };
  struct Use {
    std::size_t descriptors = 0;
    std::size_t kib = 0;
  };
  const auto use = [&] {
    Use all{open_descriptors(host.daemon().pid()), resident_kib(host.daemon().pid())};
    for (const auto& [name, pid] : workers) {
      all.descriptors += open_descriptors(pid);
      all.kib += resident_kib(pid);
    }
    return all;
  };
  const auto some = [&](int count) {
    for (int i = 0; i < count; ++i) {
      toggle(below(kPartitions), below(4));
      if (i % kReloadEvery == 0) host.reload(config);
    }
    unplug_all();
  };
  // Whatever is made once is made.
  for (int i = 0; i < kPartitions; ++i) {
    for (int what = 0; what < 4; ++what) toggle(i, what);
  }
  unplug_all();
  const Use before = use();
  some(kPlugs);
  const Use after = use();
  WARN(kPlugs << " plugs: " << before.descriptors << " to " << after.descriptors << " descriptors, "
              << before.kib << " to " << after.kib << " KiB");
  CHECK(after.descriptors == before.descriptors);
  if (kInstrumented) {
    WARN("built with sanitizers or for coverage, which keep memory that was freed: its growth is not tested");
  } else {
    CHECK(after.kib < before.kib + before.kib / 20 + 4096);
  }
  CHECK(count_workers() == workers);
  for (const auto& driver : drivers) CHECK(guest::read_disk(*driver->disk, 0, 512).size() == 512);
}

}  // namespace
}  // namespace vmbusd::daemon
