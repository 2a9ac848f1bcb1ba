// vmbusd as a service: processes, VMMs that come and go, signals. The VMM is played by the attach client.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "partition/attach_client.h"
#include "partition/seqpacket.h"
#include "tests/catch.h"
#include "tests/daemon/running_daemon.h"

namespace vmbusd::daemon {
namespace {

constexpr std::uint64_t kMemoryBytes = 1 << 20;

class FakeVmm final : public partition::AttachClientEvents {
 public:
  explicit FakeVmm(const std::string& socket) {
    partition::AttachClient::Options options;
    options.socket_path = socket;
    auto client = partition::AttachClient::connect(options, *this, error_text_);
    if (client) client_ = *std::move(client);
  }

  [[nodiscard]] bool attached() const { return client_ != nullptr; }
  [[nodiscard]] const std::string& error_text() const { return error_text_; }
  [[nodiscard]] bool disconnected() const { return disconnected_; }
  [[nodiscard]] bool add_memory() {
    const UniqueFd memory(::memfd_create("guest", MFD_CLOEXEC));
    REQUIRE(::ftruncate(memory.get(), kMemoryBytes) == 0);
    return client_->add_memory(0, kMemoryBytes, memory.get(), 0, true).has_value();
  }

  Result<void> doorbell_attach(std::uint32_t, UniqueFd) override { return {}; }
  Result<void> doorbell_detach(std::uint32_t) override { return {}; }
  void host_message(std::uint64_t, std::uint32_t, std::uint32_t, std::uint32_t,
                    std::span<const std::uint8_t>) override {}
  void signal_event(std::uint32_t, std::uint32_t, std::uint32_t) override {}
  void disconnected(const Error&) override { disconnected_ = true; }

 private:
  std::string error_text_;
  std::atomic<bool> disconnected_{false};
  std::unique_ptr<partition::AttachClient> client_;
};

// A daemon with one partition "demo" and a disk.
class Host {
 public:
  Host() { std::ofstream(directory_.path("d.img")) << std::string(1 << 20, 'x'); }

  [[nodiscard]] std::string socket() const { return directory_.path("demo.sock"); }
  [[nodiscard]] std::string config(const std::string& name = "demo") const {
    return "[[partition]]\nname = '" + name + "'\nsocket = '" + name +
           ".sock'\nio_threads = 2\n[[partition.scsi]]\nname = 'scsi0'\n[[partition.scsi.disk]]\nlun = "
           "0\npath = "
           "'d.img'\n";
  }
  [[nodiscard]] const TemporaryDirectory& directory() const { return directory_; }

 private:
  TemporaryDirectory directory_;
};

TEST_CASE("a VMM comes and goes a hundred times and nothing is left of it", "[daemon]") {
  const Host host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  const pid_t worker = daemon.worker_pid();
  const std::size_t supervisor_before = open_descriptors(daemon.pid());
  const std::size_t worker_before = open_descriptors(worker);
  for (int i = 0; i < 100; ++i) {
    FakeVmm vmm(host.socket());
    INFO(vmm.error_text());
    REQUIRE(vmm.attached());
    REQUIRE(vmm.add_memory());
  }
  CHECK(daemon.worker_pid() == worker);
  CHECK(eventually([&] { return open_descriptors(daemon.pid()) == supervisor_before; }));
  CHECK(eventually([&] { return open_descriptors(worker) == worker_before; }));
}

TEST_CASE("a second VMM is told who is there, and the first goes on", "[daemon]") {
  const Host host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  const std::size_t supervisor_before = open_descriptors(daemon.pid());
  FakeVmm first(host.socket());
  REQUIRE(first.attached());
  for (int i = 0; i < 20; ++i) {
    const FakeVmm second(host.socket());
    CHECK_FALSE(second.attached());
    CHECK(second.error_text() ==
          "partition demo is in use by another VMM: process " + std::to_string(::getpid()));
  }
  CHECK(first.add_memory());
  CHECK_FALSE(first.disconnected());
  // The first one's connection and memory are there, and nothing of the others'.
  CHECK(eventually([&] { return open_descriptors(daemon.pid()) == supervisor_before + 2; }));
}

TEST_CASE("VMMs that connect and say nothing hold nobody up", "[daemon]") {
  const Host host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  const std::size_t supervisor_before = open_descriptors(daemon.pid());
  {
    FakeVmm first(host.socket());
    REQUIRE(first.attached());
    // More than the supervisor is willing to answer at once.
    std::vector<UniqueFd> silent;
    for (int i = 0; i < 40; ++i) silent.push_back(partition::connect_seqpacket(host.socket()).value());
    CHECK(first.add_memory());
    CHECK(open_descriptors(daemon.pid()) <= supervisor_before + 20);
  }
  CHECK(eventually([&] { return open_descriptors(daemon.pid()) == supervisor_before; }));
  CHECK(FakeVmm(host.socket()).attached());
}

TEST_CASE("a VMM that breaks the protocol is cut off, and the next is served", "[daemon]") {
  const Host host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  const UniqueFd rude = partition::connect_seqpacket(host.socket()).value();
  const std::vector<std::byte> rubbish(40, std::byte{0xff});
  REQUIRE(partition::send_datagram(rude.get(), rubbish).has_value());
  char byte = 0;
  while (::recv(rude.get(), &byte, 1, 0) > 0) {
  }
  CHECK(FakeVmm(host.socket()).attached());
}

TEST_CASE("a worker that dies is replaced, and its VMM is not told", "[daemon]") {
  const Host host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  const std::size_t supervisor_before = open_descriptors(daemon.pid());
  const pid_t worker = daemon.worker_pid();
  {
    FakeVmm vmm(host.socket());
    REQUIRE(vmm.attached());
    REQUIRE(vmm.add_memory());
    std::this_thread::sleep_for(
        std::chrono::milliseconds(200));  // what was answered is recorded a turn later
    REQUIRE(::kill(worker, SIGKILL) == 0);
    CHECK(daemon.wait_for_log("ended unexpectedly: killed by signal 9 (Killed); another takes up its guest"));
    CHECK(daemon.wait_for_log("the guest goes on after"));
    INFO(daemon.log());
    CHECK(daemon.worker_pid(worker) != worker);
    CHECK_FALSE(vmm.disconnected());
    CHECK_FALSE(vmm.add_memory());  // the region is there already
  }
  FakeVmm next(host.socket());
  CHECK(next.attached());
  CHECK(next.add_memory());
  // The VMM that is attached, and its memory.
  CHECK(eventually([&] { return open_descriptors(daemon.pid()) == supervisor_before + 2; }));
}

std::vector<int> niceness_of_threads(pid_t process) {
  std::vector<int> values;
  for (const auto& thread : std::filesystem::directory_iterator(fmt::format("/proc/{}/task", process))) {
    values.push_back(
        ::getpriority(PRIO_PROCESS, static_cast<id_t>(std::stoul(thread.path().filename().string()))));
  }
  return values;
}

TEST_CASE("every thread of a worker process is as nice as its partition is to be, and so of the next",
          "[daemon]") {
  const Host host;
  // The nicest there is, which everybody may be.
  const std::string config = host.config();
  const std::size_t end_of_name = config.find('\n', config.find("socket"));
  RunningDaemon daemon(host.directory(), std::string(config).insert(end_of_name, "\nnice = 19"));
  REQUIRE(daemon.wait_until_ready());
  const pid_t worker = daemon.worker_pid();
  const std::vector<int> first = niceness_of_threads(worker);
  CHECK(first.size() >= 3);  // one for control, two for I/O
  CHECK(first == std::vector<int>(first.size(), 19));
  CHECK(::getpriority(PRIO_PROCESS, static_cast<id_t>(daemon.pid())) == ::getpriority(PRIO_PROCESS, 0));

  REQUIRE(::kill(worker, SIGKILL) == 0);
  const pid_t another = daemon.worker_pid(worker);
  REQUIRE(FakeVmm(host.socket()).attached());  // it has its threads
  const std::vector<int> next = niceness_of_threads(another);
  CHECK(next.size() == first.size());
  CHECK(next == std::vector<int>(next.size(), 19));
}

TEST_CASE("a VMM whose worker dies before it said a word is cut off", "[daemon]") {
  const Host host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  const pid_t worker = daemon.worker_pid();
  const UniqueFd mute = partition::connect_seqpacket(host.socket()).value();
  REQUIRE(daemon.wait_for_log("VMM attaches"));
  REQUIRE(::kill(worker, SIGKILL) == 0);
  char byte = 0;
  CHECK(::recv(mute.get(), &byte, 1, 0) == 0);
  CHECK(FakeVmm(host.socket()).attached());
}

TEST_CASE("SIGTERM stops all and takes the sockets away", "[daemon]") {
  const Host host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  const pid_t worker = daemon.worker_pid();
  FakeVmm vmm(host.socket());
  REQUIRE(vmm.attached());
  REQUIRE(vmm.add_memory());
  daemon.signal(SIGTERM);
  CHECK(daemon.wait_for_notification("STOPPING=1"));
  CHECK(daemon.wait() == 0);
  CHECK(eventually([&] { return vmm.disconnected(); }));
  CHECK_FALSE(is_alive(worker));
  CHECK(::access(host.socket().c_str(), F_OK) != 0);
}

TEST_CASE("a second SIGTERM does not wait for a worker that hangs", "[daemon]") {
  const Host host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  const pid_t worker = daemon.worker_pid();
  REQUIRE(::kill(worker, SIGSTOP) == 0);
  daemon.signal(SIGTERM);
  CHECK(daemon.wait_for_notification("STOPPING=1"));
  daemon.signal(SIGTERM);
  CHECK(daemon.wait() == 1);
  CHECK_FALSE(is_alive(worker));
  CHECK(::access(host.socket().c_str(), F_OK) != 0);
}

TEST_CASE("SIGHUP changes nothing", "[daemon]") {
  const Host host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  daemon.signal(SIGHUP);
  CHECK(FakeVmm(host.socket()).attached());
  daemon.signal(SIGINT);
  CHECK(daemon.wait() == 0);
}

TEST_CASE("a worker does not outlive its killed supervisor, and the next takes over its socket", "[daemon]") {
  const Host host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  const pid_t worker = daemon.worker_pid();
  daemon.signal(SIGKILL);
  CHECK(daemon.wait() == -1);
  CHECK(eventually([&] { return !is_alive(worker); }));
  RunningDaemon second(host.directory(), host.config());
  CHECK(second.wait_until_ready());
  CHECK(FakeVmm(host.socket()).attached());
}

TEST_CASE("a socket or an image in use keeps vmbusd from starting, in words", "[daemon]") {
  const Host host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  RunningDaemon same(host.directory(), host.config());
  CHECK(same.wait() == 1);
  CHECK(same.log().find("demo: attach socket " + host.socket() +
                        ": cannot bind the socket: Address already in use") != std::string::npos);
  CHECK(same.log().find("d.img is in use: another program (a VM or another vmbusd) holds a lock on it") !=
        std::string::npos);
  CHECK(FakeVmm(host.socket()).attached());
  // What was refused has not taken the first one's socket away.
  CHECK(::access(host.socket().c_str(), F_OK) == 0);
}

}  // namespace
}  // namespace vmbusd::daemon
