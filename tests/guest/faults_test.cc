// What fails on the host's side or the VMM's, under a guest that behaves: disks, memory, descriptors. Each
// fault is the guest's, or its partition's, that meets it; a second partition is served all the while.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "daemon/sandbox.h"
#include "guest/faulty_file.h"
#include "tests/guest/host.h"

namespace vmbusd::guest {
namespace {

using scsi::Asc;
using scsi::SenseKey;

constexpr std::uint64_t kGpaOfMore = std::uint64_t{1} << 30;  // above the child's own memory

std::string disk_table(int lun, const std::string& path) {
  return "[[partition.scsi.disk]]\nlun = " + std::to_string(lun) + "\npath = '" + path + "'\n";
}

// Says where the bytes differ first.
bool holds(Disk& disk, std::uint64_t offset, std::span<const std::byte> expected) {
  const std::vector<std::byte> read = read_disk(disk, offset, expected.size());
  const auto [at, other] = std::mismatch(expected.begin(), expected.end(), read.begin());
  if (at == expected.end()) return true;
  UNSCOPED_INFO("byte " << at - expected.begin() << " of " << expected.size() << " differs");
  return false;
}

// The partition "ill" with the faulty file at LUN 0 and a sound disk at LUN 1, on one I/O thread, and the
// partition "well". Without O_DIRECT, with which Linux 6.18 goes on at the wrong place after a short transfer
// of FUSE's.
class FaultyHost {
 public:
  explicit FaultyHost(const FaultyFile& file) {
    for (const char* const image : {"ill.img", "well.img"}) {
      std::ofstream(directory_.path(image)) << std::string(kImageBytes, 'i');
    }
    const auto partition = [](const std::string& name) {
      return "[[partition]]\nname = '" + name + "'\nsocket = '" + name +
             ".sock'\nio_threads = 1\n[[partition.scsi]]\nname = 'scsi0'\n";
    };
    daemon_.emplace(directory_, partition("ill") + disk_table(0, file.path()) + "direct = 'off'\n" +
                                    disk_table(1, "ill.img") + partition("well") + disk_table(0, "well.img"));
    const bool ready = daemon_->wait_until_ready();
    INFO(daemon_->log());
    REQUIRE(ready);
  }
  ~FaultyHost() {
    const std::string log = daemon_->log();
    INFO(log);
    CHECK(log.find("ended unexpectedly") == std::string::npos);
    CHECK(log.find("Sanitizer: ") == std::string::npos);
  }

  [[nodiscard]] std::unique_ptr<ChildPartition> attach(const std::string& partition) const {
    std::string error_text;
    return must(ChildPartition::attach({.socket_path = directory_.path(partition + ".sock")}, error_text));
  }

 private:
  TemporaryDirectory directory_;
  std::optional<daemon::RunningDaemon> daemon_;
};

// A host, its guests, and what must go on whatever the faulty disk does.
struct Ward {
  explicit Ward(const FaultyFile& file)
      : host(file), ill(host.attach("ill")), well(host.attach("well")), driver(*ill), bystander(*well) {}

  void check_that_the_rest_goes_on() {
    const std::vector<std::byte> data = random_bytes(64 << 10, ++seed);
    Disk sound(*driver.stor, 1);
    if (driver.stor->in_flight() == 0) {
      must(sound.write(0, data));
      CHECK(holds(sound, 0, data));
    }
    must(bystander.disk->write(0, data));
    CHECK(holds(*bystander.disk, 0, data));
  }

  FaultyHost host;
  std::unique_ptr<ChildPartition> ill;
  std::unique_ptr<ChildPartition> well;
  Driver driver;
  Driver bystander;
  std::uint32_t seed = 0;
};

// nullptr, and the test says so, where this host has no FUSE for us.
std::unique_ptr<FaultyFile> faulty_file() {
  auto file = FaultyFile::create(kImageBytes);
  if (file == nullptr) WARN("no right to mount a file system in user space here: not tested");
  return file;
}

TEST_CASE("a disk that fails tells the guest why, and is itself again afterwards", "[guest][faults]") {
  const auto file = faulty_file();
  if (file == nullptr) return;
  Ward ward(*file);
  struct Failure {
    int error;
    bool write;
    Sense sense;
  };
  static constexpr Failure kFailures[] = {
      {EIO, false, {SenseKey::kMediumError, Asc::kUnrecoveredReadError}},
      {EIO, true, {SenseKey::kMediumError, Asc::kWriteError}},
      {ENOSPC, true, {SenseKey::kDataProtect, Asc::kSpaceAllocationFailedWriteProtect}},
      {EROFS, true, {SenseKey::kDataProtect, Asc::kWriteProtected}},
      {ENOMEM, false, {SenseKey::kAbortedCommand, Asc::kNone}},
      {ETIMEDOUT, false, {SenseKey::kHardwareError, Asc::kInternalTargetFailure}},
  };
  const std::vector<std::byte> data = random_bytes(16 << 10, 1);
  must(ward.driver.disk->write(0, data));
  for (const Failure& failure : kFailures) {
    INFO(std::strerror(failure.error));
    file->fail_with(failure.error);
    std::vector<std::byte> read(4096);
    const Result<void> outcome =
        failure.write ? ward.driver.disk->write(0, read) : ward.driver.disk->read(0, read);
    CHECK_FALSE(outcome.has_value());
    CHECK(ward.driver.disk->last_sense() == failure.sense);
    ward.check_that_the_rest_goes_on();
  }
  file->fail_with(0);
  CHECK(holds(*ward.driver.disk, 0, data));
}

TEST_CASE("a disk that writes less than it is asked to is asked again", "[guest][faults]") {
  const auto file = faulty_file();
  if (file == nullptr) return;
  Ward ward(*file);
  for (const std::uint32_t most : {4096u, 512u, 5000u}) {
    INFO(most);
    file->write_at_most(most);
    const std::vector<std::byte> data = random_bytes(64 << 10, most);
    must(ward.driver.disk->write(8192, data));
    CHECK(holds(*ward.driver.disk, 8192, data));
  }
  ward.check_that_the_rest_goes_on();
}

TEST_CASE("a disk that answers late holds up nobody else", "[guest][faults]") {
  const auto file = faulty_file();
  if (file == nullptr) return;
  Ward ward(*file);
  const std::vector<std::byte> data = random_bytes(4096, 1);
  must(ward.driver.disk->write(0, data));
  file->hold();
  const Pages buffer = must(ward.ill->ram().take(1));
  StorCommand command = block_command(scsi::Opcode::kRead16, 0, 8);
  command.pages = buffer.gpns();
  command.bytes = 4096;
  const std::uint64_t late = must(ward.driver.stor->submit(command)).value();
  must(ward.driver.stor->flush());
  REQUIRE(daemon::eventually([&] { return file->held() == 1; }));

  // The other disk of the same channel, and of the same I/O thread.
  command = block_command(scsi::Opcode::kRead16, 0, 8, 1);
  const Pages other = must(ward.ill->ram().take(1));
  command.pages = other.gpns();
  command.bytes = 4096;
  for (int i = 0; i < 10; ++i) {
    const std::uint64_t prompt = must(ward.driver.stor->submit(command)).value();
    must(ward.driver.stor->flush());
    std::optional<StorCompletion> completion;
    REQUIRE(daemon::eventually([&] {
      must(ward.driver.stor->poll([&](const StorCompletion& come) { completion = come; }));
      return completion.has_value();
    }));
    CHECK(completion->id == prompt);
    CHECK(succeeded(completion->packet));
  }
  ward.check_that_the_rest_goes_on();

  SECTION("and what it answers counts, however late") {
    file->release();
    std::optional<StorCompletion> completion;
    REQUIRE(daemon::eventually([&] {
      must(ward.driver.stor->poll([&](const StorCompletion& come) { completion = come; }));
      return completion.has_value();
    }));
    CHECK(completion->id == late);
    std::vector<std::byte> read(4096);
    buffer.read(0, read);
    CHECK((read == data));
  }
  SECTION("and a guest that is reset is let go when its memory is not in use any more") {
    auto reset = std::async(std::launch::async, [&] { return ward.ill->reset(); });
    CHECK(reset.wait_for(std::chrono::milliseconds(200)) == std::future_status::timeout);
    file->release();
    REQUIRE(reset.wait_for(daemon::kPatience) == std::future_status::ready);
    must(reset.get());
    Driver again(*ward.ill);
    CHECK(holds(*again.disk, 0, data));
  }
}

TEST_CASE("a disk that vanishes takes nothing with it", "[guest][faults]") {
  const auto file = faulty_file();
  if (file == nullptr) return;
  Ward ward(*file);
  file->hold();
  const Pages buffer = must(ward.ill->ram().take(1));
  StorCommand command = block_command(scsi::Opcode::kRead16, 0, 8);
  command.pages = buffer.gpns();
  command.bytes = 4096;
  for (int i = 0; i < 4; ++i) REQUIRE(must(ward.driver.stor->submit(command)));
  must(ward.driver.stor->flush());
  REQUIRE(daemon::eventually([&] { return file->held() != 0; }));
  file->vanish();
  std::size_t failed = 0;
  REQUIRE(daemon::eventually([&] {
    must(ward.driver.stor->poll([&](const StorCompletion& completion) {
      failed += sense_of(completion.packet).has_value() ? 1 : 0;
    }));
    return failed == 4;
  }));
  std::vector<std::byte> read(4096);
  CHECK_FALSE(ward.driver.disk->read(0, read).has_value());
  ward.check_that_the_rest_goes_on();
}

// A file for guest memory that takes no seal, so that its VMM can cut it short.
UniqueFd unsealed_memory(std::uint64_t bytes) {
  UniqueFd fd(::memfd_create("lent", MFD_CLOEXEC));
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
  return fd;
}

TEST_CASE("buffers that the VMM took away fail the commands that use them", "[guest][faults]") {
  Host host;
  const pid_t worker = host.daemon().worker_pid();
  const auto child = host.attach();
  Driver driver(*child);
  const UniqueFd lent = unsealed_memory(8 * kPageSize);
  must(child->client().add_memory(kGpaOfMore, 8 * kPageSize, lent.get(), 0, true));
  std::vector<Gpn> pages;
  for (Gpn page = 0; page < 8; ++page) pages.push_back(kGpaOfMore / kPageSize + page);
  const auto run = [&](scsi::Opcode opcode) {
    StorCommand command = block_command(opcode, 0, 64);
    command.pages = pages;
    command.bytes = 8 * kPageSize;
    return must(driver.stor->execute(command));
  };
  CHECK(succeeded(run(scsi::Opcode::kRead16)));
  REQUIRE(::ftruncate(lent.get(), 0) == 0);
  // Of a host that fails: the medium is not to blame.
  for (const scsi::Opcode opcode : {scsi::Opcode::kRead16, scsi::Opcode::kWrite16}) {
    CHECK(sense_of(run(opcode)) == Sense{SenseKey::kHardwareError, Asc::kInternalTargetFailure});
  }
  CHECK((host.image(0, 4096) == std::vector<std::byte>(4096, std::byte{'i'})));
  must(driver.disk->write(0, random_bytes(4096, 1)));
  CHECK(holds(*driver.disk, 0, random_bytes(4096, 1)));
  CHECK(host.daemon().worker_pid() == worker);
}

TEST_CASE("rings that the VMM took away end its partition's worker, once, and nobody else's",
          "[guest][faults]") {
  Host host(Host::kDeathsExpected);
  const auto other = host.attach("two");
  Driver bystander(*other);
  {
    const auto liar = host.attach("one");
    // Its channels and pages are not to be touched any more: by us it would be SIGBUS as well. So it is never
    // ended, which the leak sanitizer bears where somebody still knows of it.
    static Driver* left = nullptr;
    left = new Driver(*liar);
    Driver& driver = *left;
    must(driver.disk->write(0, random_bytes(4096, 1)));
    const Doorbell doorbell = liar->doorbell(driver.offer.connection_id);
    REQUIRE(doorbell != nullptr);
    REQUIRE(::ftruncate(liar->ram().fd(), 0) == 0);
    const std::uint64_t one = 1;
    REQUIRE(::write(doorbell->get(), &one, sizeof one) == sizeof one);
    CHECK(daemon::eventually([&] { return liar->disconnected_by_host(); }));
    CHECK(host.daemon().wait_for_log("exited with status 3: guest memory that the VMM lent is not there"));
    must(bystander.disk->write(0, random_bytes(4096, 2)));
    CHECK(holds(*bystander.disk, 0, random_bytes(4096, 2)));
  }
  // The next VMM of that partition is served, by a worker that nobody had to start for.
  const auto honest = host.attach("one");
  Driver driver(*honest);
  CHECK(holds(*driver.disk, 0, random_bytes(4096, 1)));
  const std::string log = host.daemon().log();
  CHECK(log.find("ended unexpectedly") == log.rfind("ended unexpectedly"));
  CHECK(log.find("takes up its guest") == std::string::npos);
}

// What the process may have of a resource, until the end of a scope.
class Limit {
 public:
  Limit(pid_t pid, __rlimit_resource resource, rlim_t soft) : pid_(pid), resource_(resource) {
    set_ = ::prlimit(pid_, resource_, nullptr, &before_) == 0;
    const rlimit limit{soft, before_.rlim_max};
    set_ = set_ && ::prlimit(pid_, resource_, &limit, nullptr) == 0;
    if (!set_) WARN("no right to change another process's limits here: not tested");
  }
  ~Limit() {
    if (set_) ::prlimit(pid_, resource_, &before_, nullptr);
  }
  Limit(const Limit&) = delete;
  Limit& operator=(const Limit&) = delete;

  [[nodiscard]] explicit operator bool() const { return set_; }

 private:
  pid_t pid_;
  __rlimit_resource resource_;
  rlimit before_{};
  bool set_ = false;
};

// Whether a sub-channel brings what the driver wrote to its disk's first block.
void check_serves(Driver& driver, GuestChannel& channel) {
  const Pages buffer = must(channel.ram().take(1));
  StorClient stor(channel, 1);
  StorCommand command = block_command(scsi::Opcode::kRead16, 0, 8);
  command.pages = buffer.gpns();
  command.bytes = kPageSize;
  CHECK(succeeded(must(stor.execute(command))));
  std::vector<std::byte> read(kPageSize);
  buffer.read(0, read);
  CHECK(holds(*driver.disk, 0, read));
}

constexpr rlim_t kNoDescriptor = 3;  // all numbers below are taken

// The process's that serves the partition which the child is attached to.
pid_t worker_of(daemon::RunningDaemon& daemon, const std::string& partition) {
  const std::string log = daemon.log();
  const std::string line = " " + partition + ": serving on ";
  const std::size_t at = log.find("worker process ", log.find(line));
  REQUIRE(at != std::string::npos);
  return std::stoi(log.substr(at + std::string("worker process ").size()));
}

// Limits of a process of one's own need no privilege: workers stay this test's user.
constexpr const char* kOwnUser = "worker_user = 'root'\n";

// The sanitizers' own checks need descriptors, and say nonsense without.
bool runs_without_descriptors() {
  if (daemon::kInstrumented)
    WARN("built with sanitizers or for coverage, which need descriptors: not tested");
  return !daemon::kInstrumented;
}

TEST_CASE("a worker without descriptors refuses what needs one, and goes on", "[guest][faults]") {
  if (!runs_without_descriptors()) return;
  Host host("", kOwnUser);
  const auto child = host.attach();
  Driver driver(*child);
  const pid_t worker = worker_of(host.daemon(), "one");
  const UniqueFd more = unsealed_memory(kPageSize);
  REQUIRE(must(driver.stor->create_sub_channels(1)) == vstor::Status::kSuccess);
  const vmbus::OfferChannel offer = must(driver.bus.wait_offer());
  {
    const Limit limit(worker, RLIMIT_NOFILE, kNoDescriptor);
    if (!limit) return;
    CHECK(error_of(GuestChannel::open(driver.bus, offer)) == Errc::kWrongState);
    const Result<void> added = child->client().add_memory(kGpaOfMore, kPageSize, more.get(), 0, true);
    REQUIRE_FALSE(added.has_value());
    CHECK(added.error().os_error == EMFILE);
    CHECK(child->client().error_text().find("no descriptor left") != std::string::npos);
    // What is open needs none.
    must(driver.disk->write(0, random_bytes(4096, 1)));
  }
  CHECK_FALSE(child->disconnected_by_host());
  must(child->client().add_memory(kGpaOfMore, kPageSize, more.get(), 0, true));
  const auto channel = must(GuestChannel::open(driver.bus, offer));
  check_serves(driver, *channel);
}

TEST_CASE("a supervisor without descriptors keeps VMMs waiting, and serves those that are there",
          "[guest][faults]") {
  if (!runs_without_descriptors()) return;
  Host host;
  const auto child = host.attach("one");
  Driver driver(*child);
  std::future<std::unique_ptr<ChildPartition>> second;
  {
    const Limit limit(host.daemon().pid(), RLIMIT_NOFILE, kNoDescriptor);
    if (!limit) return;
    second = std::async(std::launch::async, [&] {
      std::string error_text;
      auto attached = ChildPartition::attach({.socket_path = host.socket("two")}, error_text);
      return attached ? *std::move(attached) : nullptr;
    });
    CHECK(host.daemon().wait_for_log("cannot accept a VMM's connection: Too many open files"));
    must(driver.disk->write(0, random_bytes(4096, 1)));
  }
  const auto late = second.get();
  REQUIRE(late != nullptr);
  Driver other(*late);
  CHECK(must(other.disk->capacity()).blocks * 512 == kImageBytes);
}

// Address space that the process has.
rlim_t address_space(pid_t pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmSize:")) return std::stoull(line.substr(7)) * 1024;
  }
  return RLIM_INFINITY;
}

TEST_CASE("a worker without memory for a channel refuses it, and goes on", "[guest][faults]") {
  if (daemon::kInstrumented) {
    WARN("built with sanitizers or for coverage, which live on address space: not tested");
    return;
  }
  Host host("", kOwnUser);
  const auto child = host.attach();
  Driver driver(*child);
  const pid_t worker = worker_of(host.daemon(), "one");
  REQUIRE(must(driver.stor->create_sub_channels(1)) == vstor::Status::kSuccess);
  const vmbus::OfferChannel offer = must(driver.bus.wait_offer());
  const GuestChannel::Options large = {
      .to_host_pages = 1024, .from_host_pages = 1024, .layout = Layout::kScattered};
  {
    const Limit limit(worker, RLIMIT_AS, address_space(worker) + (1 << 20));
    if (!limit) return;
    CHECK(error_of(GuestChannel::open(driver.bus, offer, large)) == Errc::kWrongState);
    CHECK(host.daemon().wait_for_log("Cannot allocate memory"));
    must(driver.disk->write(0, random_bytes(4096, 1)));
  }
  const auto channel = must(GuestChannel::open(driver.bus, offer, large));
  check_serves(driver, *channel);
}

}  // namespace
}  // namespace vmbusd::guest
