// vmbus-hostile: the hostile child against a running vmbusd, beside a guest that behaves.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>

#include "base/log.h"
#include "guest/bystander.h"
#include "guest/hostile_child.h"

namespace vmbusd::guest {
namespace {

struct Usage {
  std::uint64_t rss_kb = 0;
  std::uint64_t descriptors = 0;
};

std::optional<Usage> usage_of(int pid) {
  const std::filesystem::path proc = "/proc/" + std::to_string(pid);
  std::error_code error;
  const std::filesystem::directory_iterator descriptors(proc / "fd", error);
  if (error) return std::nullopt;
  Usage usage;
  usage.descriptors = static_cast<std::uint64_t>(std::distance(begin(descriptors), end(descriptors)));
  std::ifstream status(proc / "status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) usage.rss_kb = std::strtoull(line.c_str() + 8, nullptr, 10);
  }
  return usage;
}

// Gives the process time to let go of the guest that was there; what is left then is kept for good.
std::optional<Usage> usage_at_rest(int pid, std::uint64_t descriptors_at_first) {
  const Clock::time_point end = Clock::now() + std::chrono::seconds(2);
  for (;;) {
    const std::optional<Usage> usage = usage_of(pid);
    if (!usage || usage->descriptors <= descriptors_at_first || Clock::now() > end) return usage;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

// What the daemon's processes take, looked at while no guest but the bystander is there. The supervisor's is
// the first.
class Watch {
 public:
  explicit Watch(int daemon) : daemon_(daemon) {}

  // False where a worker came or went.
  [[nodiscard]] bool look() {
    std::vector<int> pids = {daemon_};
    const std::string proc = "/proc/" + std::to_string(daemon_);
    std::ifstream children(proc + "/task/" + std::to_string(daemon_) + "/children");
    for (int pid = 0; children >> pid;) pids.push_back(pid);
    if (pids_.empty()) pids_ = pids;
    if (pids_ != pids) return false;
    for (const int pid : pids) {
      std::vector<Usage>& samples = samples_[pid];
      const std::optional<Usage> usage =
          samples.empty() ? usage_of(pid) : usage_at_rest(pid, samples.front().descriptors);
      if (!usage) return false;
      samples.push_back(*usage);
    }
    return true;
  }

  // Prints what was seen; false where something grew. The first half of the run fills pools and caches.
  [[nodiscard]] bool report() const {
    bool steady = true;
    for (const int pid : pids_) {
      const std::vector<Usage>& samples = samples_.at(pid);
      const Usage& first = samples.front();
      const Usage middle =
          most(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2));
      const Usage late =
          most(samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2), samples.end());
      const bool grew = late.descriptors > middle.descriptors || late.rss_kb > middle.rss_kb + kSlackKb;
      fmt::print(
          "{} {}: {} KiB and {} descriptors at first, at most {} and {} in the first half, {} and {} in the "
          "second{}\n",
          pid == daemon_ ? "supervisor" : "worker", pid, first.rss_kb, first.descriptors, middle.rss_kb,
          middle.descriptors, late.rss_kb, late.descriptors, grew ? ": it GROWS" : "");
      steady = steady && !grew;
    }
    return steady;
  }

 private:
  using Iterator = std::vector<Usage>::const_iterator;
  static Usage most(Iterator from, Iterator to) {
    Usage most;
    for (; from != to; ++from) {
      most.rss_kb = std::max(most.rss_kb, from->rss_kb);
      most.descriptors = std::max(most.descriptors, from->descriptors);
    }
    return most;
  }

  // What a sanitizer's allocator keeps back varies by so much.
  static constexpr std::uint64_t kSlackKb = 16 << 10;

  int daemon_;
  std::vector<int> pids_;
  std::map<int, std::vector<Usage>> samples_;
};

struct Options {
  std::string socket;
  std::string bystander;
  std::uint32_t seed = std::random_device()();
  double seconds = 60;
  int daemon = 0;
};

// False where the daemon failed.
bool run(const Options& options) {
  constexpr int kRoundsBetweenLooks = 20;
  fmt::print("seed {}\n", options.seed);
  std::fflush(stdout);
  const auto failed = [](const char* who, const Error& error) {
    fmt::print("FAILED: {}: {}\n", who, describe(error));
    return false;
  };
  HostileChild hostile({.socket_path = options.socket, .seed = options.seed});
  std::unique_ptr<Bystander> bystander;
  if (!options.bystander.empty()) {
    auto attached = Bystander::attach(options.bystander, options.seed);
    if (!attached) return failed("the bystander's beginning", attached.error());
    bystander = *std::move(attached);
  }
  const auto check_bystander = [&]() -> Result<void> {
    return bystander != nullptr ? bystander->check() : Result<void>{};
  };
  std::optional<Watch> watch;
  if (options.daemon != 0) watch.emplace(options.daemon);

  const Clock::time_point end =
      Clock::now() + std::chrono::milliseconds(static_cast<long>(options.seconds * 1000));
  std::uint64_t rounds = 0;
  for (; Clock::now() < end; ++rounds) {
    if (watch && rounds % kRoundsBetweenLooks == 0) {
      hostile.leave();
      // Its worker has let go of it when it serves the bystander and the next.
      const Result<void> kept = check_bystander();
      if (!kept) return failed("the bystander", kept.error());
      if (!watch->look()) {
        fmt::print("FAILED: a worker ended in one of the {} rounds before round {}\n", kRoundsBetweenLooks,
                   rounds);
        return false;
      }
    }
    const Result<void> lived = hostile.round();
    if (!lived) {
      fmt::print("round {}\n", rounds);
      return failed("a guest that has not misbehaved yet", lived.error());
    }
    const Result<void> kept = check_bystander();
    if (!kept) return failed("the bystander", kept.error());
  }
  fmt::print("{} rounds", rounds);
  if (bystander != nullptr) {
    fmt::print("; the bystander's disk kept its data over {} commands", bystander->commands());
  }
  fmt::print("\n");
  for (const HostileChild::Deed& deed : hostile.deeds()) fmt::print("  {:6} {}\n", deed.times, deed.what);
  return !watch || watch->report();
}

}  // namespace
}  // namespace vmbusd::guest

int main(int argc, char** argv) {
  vmbusd::guest::Options options;
  CLI::App app(
      "Attaches to a partition of vmbusd and breaks every rule, while a second one's disk is checked.",
      "vmbus-hostile");
  app.add_option("--socket", options.socket, "attach socket of the partition to misbehave in")->required();
  app.add_option(
      "--bystander", options.bystander,
      "attach socket of a partition whose first disk may be overwritten; none where it is not given");
  app.add_option("--seed", options.seed, "repeats what a run did that printed it");
  app.add_option("--seconds", options.seconds, "how long; 60 where it is not given");
  app.add_option("--daemon", options.daemon,
                 "process id of vmbusd: fails where a worker of its ends or grows");
  CLI11_PARSE(app, argc, argv);
  vmbusd::log_init(vmbusd::LogLevel::kWarning);
  return vmbusd::guest::run(options) ? 0 : 1;
}
