#include "bench/neighbours_bench.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "base/temporary_directory.h"
#include "bench/running_host.h"
#include "guest/bystander.h"
#include "guest/faulty_file.h"
#include "guest/hostile_child.h"

namespace vmbusd::bench {
namespace {

using Clock = std::chrono::steady_clock;
using guest::Bystander;

// After each change, for what it sets going to have begun; not measured.
constexpr std::chrono::milliseconds kSettle{200};
constexpr std::uint64_t kDiskBytes = 8 << 20;
constexpr int kBurst = 64;  // commands in flight of a VMM that stands still

enum class Half : std::uint8_t { kCalm, kTrouble, kUncounted, kEnd };

void sleep_for(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

// A guest whose waiting counts.
class Neighbour {
 public:
  Neighbour(std::unique_ptr<Bystander> guest, const std::atomic<Half>& half, std::chrono::microseconds think)
      : guest_(std::move(guest)), half_(half), think_(think), thread_([this] { run(); }) {}
  ~Neighbour() { (void)end(); }
  Neighbour(const Neighbour&) = delete;
  Neighbour& operator=(const Neighbour&) = delete;

  // Waits for it to see Half::kEnd.
  [[nodiscard]] Result<void> end() {
    if (thread_.joinable()) thread_.join();
    return outcome_;
  }
  // Of its commands in that half, in microseconds.
  [[nodiscard]] const std::vector<double>& waits(Half half) const {
    return waits_[static_cast<std::size_t>(half)];
  }

 private:
  void run() {
    while (outcome_ && half_ != Half::kEnd) {
      const Half half = half_;
      const Clock::time_point begin = Clock::now();
      outcome_ = guest_->step();
      const std::chrono::duration<double, std::micro> took = Clock::now() - begin;
      // One that began in a half is that half's, though it may end behind it.
      if (half <= Half::kTrouble) waits_[static_cast<std::size_t>(half)].push_back(took.count());
      std::this_thread::sleep_for(think_);
    }
    if (outcome_) outcome_ = guest_->check_all();
  }

  std::unique_ptr<Bystander> guest_;
  const std::atomic<Half>& half_;
  const std::chrono::microseconds think_;
  std::array<std::vector<double>, 2> waits_;
  Result<void> outcome_;
  std::thread thread_;  // last: uses the others
};

// One of the three, in a process of its own, so that it can be stopped as a VMM can: what it is told comes by
// a pipe.
class Troubled {
 public:
  // What it does in the second half of a round, until `over` says so. It may replace its guest, which is
  // to be as it was then.
  using Trouble = Result<void> (*)(std::unique_ptr<Bystander>& guest, const std::string& socket,
                                   const std::function<bool()>& over);

  Troubled() = default;
  ~Troubled() { end_process(process_, SIGKILL); }
  Troubled(const Troubled&) = delete;
  Troubled& operator=(const Troubled&) = delete;

  // Before this process has threads.
  [[nodiscard]] Result<void> start(std::string socket, Trouble trouble, std::chrono::microseconds think) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail_os(errno, "cannot make a pipe");
    const UniqueFd hears(ends[0]);
    tells_.reset(ends[1]);
    process_ = ::fork();
    if (process_ < 0) return fail_os(errno, "cannot start a guest's process");
    if (process_ != 0) return {};
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const Result<void> lived = live(hears.get(), socket, trouble, think);
    if (!lived) fmt::print(stderr, "vmbus-bench: {}: {}\n", socket, describe(lived.error()));
    ::_exit(lived ? 0 : 1);
  }
  // First of all Half::kCalm: it attaches.
  void tell(Half half) const {
    if (half == Half::kCalm) ::kill(process_, SIGCONT);
    (void)!::write(tells_.get(), &half, sizeof half);  // one that is gone shows at the end
  }
  [[nodiscard]] Result<void> end() {
    tell(Half::kEnd);
    int status = 0;
    while (::waitpid(process_, &status, 0) < 0 && errno == EINTR) {
    }
    process_ = -1;
    if (status != 0) return fail(Errc::kProtocol, "a guest was not served when its trouble was over");
    return {};
  }

 private:
  [[nodiscard]] static Result<void> live(int hears, const std::string& socket, Trouble trouble,
                                         std::chrono::microseconds think) {
    Half told = Half::kEnd;
    if (::read(hears, &told, sizeof told) != sizeof told) return {};
    const auto something_new = [hears] {
      pollfd readable{hears, POLLIN, 0};
      return ::poll(&readable, 1, 0) != 0;
    };
    VMBUSD_TRY(std::unique_ptr<Bystander> guest, Bystander::attach(socket, 1));
    while (told != Half::kEnd) {
      if (told == Half::kTrouble) {
        VMBUSD_CHECK(trouble(guest, socket, something_new));
        VMBUSD_CHECK(guest->check_all());
      }
      while (!something_new()) {
        VMBUSD_CHECK(guest->step());
        std::this_thread::sleep_for(think);
      }
      if (::read(hears, &told, sizeof told) != sizeof told) return {};
    }
    return guest->check_all();
  }

  UniqueFd tells_;
  pid_t process_ = -1;
};

Result<void> break_every_rule(std::unique_ptr<Bystander>& guest, const std::string& socket,
                              const std::function<bool()>& over) {
  static std::uint32_t seed = 0;
  guest.reset();
  {
    guest::HostileChild hostile({.socket_path = socket, .seed = ++seed});
    while (!over()) VMBUSD_CHECK(hostile.round());
  }
  VMBUSD_TRY(guest, Bystander::attach(socket, 1));  // whose disk was anyone's
  return {};
}

// One command waits as long as that lasts.
Result<void> use_a_disk_that_hangs(std::unique_ptr<Bystander>& guest, const std::string& /*socket*/,
                                   const std::function<bool()>& /*over*/) {
  return guest->step();
}

Result<void> use_a_disk_that_fails(std::unique_ptr<Bystander>& guest, const std::string& socket,
                                   const std::function<bool()>& over) {
  while (!over()) (void)guest->step();
  guest.reset();
  VMBUSD_TRY(guest, Bystander::attach(socket, 1));  // what it wrote is lost
  return {};
}

Result<void> stand_still(std::unique_ptr<Bystander>& guest, const std::string& /*socket*/,
                         const std::function<bool()>& /*over*/) {
  const std::size_t bytes = Bystander::kPieceBytes;
  VMBUSD_TRY(const guest::Pages buffer, guest->child().ram().take(bytes / guest::kPageSize));
  guest::StorCommand command = guest::block_command(guest::scsi::Opcode::kRead16, 0, bytes / 512);
  command.pages = buffer.gpns();
  command.bytes = bytes;
  int sent = 0;
  for (; sent < kBurst; ++sent) {
    VMBUSD_TRY(const std::optional<std::uint64_t> id, guest->client().submit(command));
    if (!id) break;
  }
  VMBUSD_CHECK(guest->client().flush());
  ::raise(SIGSTOP);
  while (sent > 0) {
    bool failed = false;
    VMBUSD_TRY(const std::uint32_t come, guest->client().poll([&](const guest::StorCompletion& completion) {
      failed = failed || !guest::succeeded(completion.packet);
    }));
    if (failed) return fail(Errc::kProtocol, "a command failed while its VMM stood still");
    sent -= static_cast<int>(come);
    if (come == 0) VMBUSD_CHECK(guest->client().wait());
  }
  return {};
}

// A disk that dies and comes back. It hangs, or, without the right to mount a file system of our own, fails.
class MortalDisk {
 public:
  [[nodiscard]] static bool can_hang() { return guest::FaultyFile::create(guest::kPageSize) != nullptr; }

  MortalDisk(const std::string& path, bool hangs) : path_(path) {
    if (hangs) file_ = guest::FaultyFile::create(kDiskBytes);
  }
  [[nodiscard]] std::string path() const { return file_ ? file_->path() : path_; }
  void die() const {
    if (file_) return file_->hold();
    (void)!::truncate(path_.c_str(), 0);
  }
  void revive() const {
    if (file_) return file_->release();
    (void)!::truncate(path_.c_str(), static_cast<off_t>(kDiskBytes));
  }

 private:
  std::string path_;
  std::unique_ptr<guest::FaultyFile> file_;
};

class Neighbourhood {
 public:
  explicit Neighbourhood(const NeighboursOptions& options)
      : options_(options), directory_("/tmp"), think_(options.think_us) {}
  ~Neighbourhood() {
    half_ = Half::kEnd;
    guests_.clear();
    end_process(daemon_, SIGTERM);
  }
  Neighbourhood(const Neighbourhood&) = delete;
  Neighbourhood& operator=(const Neighbourhood&) = delete;

  [[nodiscard]] Result<void> run() {
    if (directory_.path().empty()) return fail_os(errno, "cannot make a temporary folder");
    VMBUSD_CHECK(move_in());
    for (std::uint32_t round = 0; round < options_.rounds; ++round) {
      spend(Half::kCalm);
      spend(Half::kTrouble);
    }
    return move_out();
  }

  // Of that half, by all guests.
  [[nodiscard]] nlohmann::json waits(Half half) const {
    std::vector<double> all;
    double worst = 0;
    for (const auto& guest : guests_) {
      std::vector<double> own = guest->waits(half);
      all.insert(all.end(), own.begin(), own.end());
      worst = std::max(worst, share(own, 0.99));
    }
    return {{"p50_us", share(all, 0.5)},
            {"p99_us", share(all, 0.99)},
            {"worst_guest_p99_us", worst},
            {"commands", all.size()}};
  }

 private:
  [[nodiscard]] static double share(std::vector<double>& values, double part) {
    if (values.empty()) return 0;
    const auto at = static_cast<std::ptrdiff_t>(static_cast<double>(values.size() - 1) * part);
    std::nth_element(values.begin(), values.begin() + at, values.end());
    return values[static_cast<std::size_t>(at)];
  }

  [[nodiscard]] std::string socket(const std::string& name) const { return directory_.path(name + ".sock"); }
  [[nodiscard]] std::string partition(const std::string& name, std::string image = "") const {
    if (image.empty()) image = directory_.path(name + ".img");
    if (image.starts_with(directory_.path())) {
      const std::ofstream made(image);
      (void)!::truncate(image.c_str(), static_cast<off_t>(kDiskBytes));
    }
    return fmt::format(
        "[[partition]]\nname = '{}'\nsocket = '{}'\nio_threads = 1\n[[partition.scsi]]\nname = 'scsi0'\n"
        "[[partition.scsi.disk]]\nlun = 0\npath = '{}'\ndirect = 'off'\n",
        name, socket(name), image);
  }

  [[nodiscard]] Result<void> move_in() {
    const bool hangs = MortalDisk::can_hang();
    const std::pair<const char*, Troubled::Trouble> troubles[] = {
        {"hostile", &break_every_rule},
        {"dead-disk", hangs ? &use_a_disk_that_hangs : &use_a_disk_that_fails},
        {"stopped", &stand_still}};
    for (std::size_t i = 0; i < troubled_.size(); ++i) {
      VMBUSD_CHECK(troubled_[i].start(socket(troubles[i].first), troubles[i].second, think_));
    }
    dead_.emplace(directory_.path("dead-disk.img"), hangs);
    std::string config = partition("hostile") + partition("dead-disk", dead_->path()) + partition("stopped");
    for (std::uint32_t i = 0; i < options_.guests; ++i) config += partition(fmt::format("guest{}", i));
    const std::string config_path = directory_.path("vmbusd.toml");
    std::ofstream(config_path) << config;
    daemon_ = spawn_process({options_.vmbusd, "--config", config_path}, log_path());
    if (daemon_ < 0) return fail_os(errno, "cannot start vmbusd");
    VMBUSD_CHECK(wait_until_ready());
    for (std::uint32_t i = 0; i < options_.guests; ++i) {
      VMBUSD_TRY(auto guest, Bystander::attach(socket(fmt::format("guest{}", i)), i));
      guests_.push_back(std::make_unique<Neighbour>(std::move(guest), half_, think_));
    }
    return {};
  }

  void spend(Half half) {
    for (const Troubled& troubled : troubled_) troubled.tell(half);
    std::this_thread::sleep_for(kSettle);
    if (half == Half::kTrouble) dead_->die();
    half_ = half;
    sleep_for(options_.seconds);
    half_ = Half::kUncounted;
    if (half == Half::kTrouble) dead_->revive();
  }

  // All find what they wrote, and no worker process has ended.
  [[nodiscard]] Result<void> move_out() {
    spend(Half::kCalm);
    half_ = Half::kEnd;
    for (Troubled& troubled : troubled_) VMBUSD_CHECK(troubled.end());
    for (const auto& guest : guests_) VMBUSD_CHECK(guest->end());
    const std::string words = log();
    if (words.find("ended unexpectedly") == std::string::npos) return {};
    fmt::print(stderr, "{}", words);
    return fail(Errc::kProtocol, "a worker process ended");
  }

  [[nodiscard]] std::string log_path() const { return directory_.path("log"); }
  [[nodiscard]] std::string log() const {
    std::ifstream file(log_path());
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  [[nodiscard]] Result<void> wait_until_ready() {
    const Clock::time_point deadline = Clock::now() + guest::kPatience;
    while (log().find(" ready: ") == std::string::npos) {
      if (Clock::now() > deadline || ::waitpid(daemon_, nullptr, WNOHANG) == daemon_) {
        fmt::print(stderr, "{}", log());
        return fail(Errc::kClosed, "vmbusd does not start");
      }
      sleep_for(0.01);
    }
    return {};
  }

  const NeighboursOptions options_;
  TemporaryDirectory directory_;
  const std::chrono::microseconds think_;
  std::array<Troubled, 3> troubled_;
  std::optional<MortalDisk> dead_;
  pid_t daemon_ = -1;
  std::atomic<Half> half_{Half::kUncounted};
  std::vector<std::unique_ptr<Neighbour>> guests_;
};

}  // namespace

Result<nlohmann::json> measure_neighbours(const NeighboursOptions& options, bool quiet) {
  Neighbourhood neighbourhood(options);
  VMBUSD_CHECK(neighbourhood.run());
  nlohmann::json found = {{"calm", neighbourhood.waits(Half::kCalm)},
                          {"trouble", neighbourhood.waits(Half::kTrouble)}};
  const double calm = found["calm"]["p99_us"];
  const double ratio = calm > 0 ? found["trouble"]["p99_us"].get<double>() / calm : 0;
  found["p99_ratio"] = ratio;
  if (quiet) return found;
  fmt::print("{} guests beside three, {} rounds of {} s and {} s\n", options.guests, options.rounds,
             options.seconds, options.seconds);
  for (const char* const half : {"calm", "trouble"}) {
    fmt::print(
        "  {:8} p50 {:7.0f} us   p99 {:7.0f} us   p99 of the guest that waits longest {:7.0f} us   {} "
        "commands\n",
        half, found[half]["p50_us"].get<double>(), found[half]["p99_us"].get<double>(),
        found[half]["worst_guest_p99_us"].get<double>(), found[half]["commands"].get<std::size_t>());
  }
  fmt::print("  p99 in trouble / p99 in calm: {:.2f}\n", ratio);
  return found;
}

}  // namespace vmbusd::bench
