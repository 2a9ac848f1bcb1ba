#include "bench/running_host.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include <fmt/format.h>

namespace vmbusd::bench {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kPause{5};

pid_t only_child(pid_t process) {
  std::ifstream file(fmt::format("/proc/{0}/task/{0}/children", process));
  pid_t child = -1;
  file >> child;
  return child;
}

double cpu_seconds(pid_t process) {
  std::ifstream file(fmt::format("/proc/{}/stat", process));
  std::string text((std::istreambuf_iterator<char>(file)), {});
  // utime and stime are words 12 and 13 behind the name in parentheses. [proc(5)]
  std::istringstream words(text.substr(std::min(text.size(), text.rfind(')') + 1)));
  std::string word;
  double ticks = 0;
  for (int i = 1; i <= 13 && words >> word; ++i) {
    if (i >= 12) ticks += std::strtod(word.c_str(), nullptr);
  }
  return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

// Of all threads of a process. [proc(5)]
struct Switches {
  std::uint64_t voluntary = 0;  // went to sleep
  std::uint64_t involuntary = 0;
};
Switches context_switches(pid_t process) {
  Switches sum;
  std::error_code error;
  for (const auto& task : std::filesystem::directory_iterator(fmt::format("/proc/{}/task", process), error)) {
    std::ifstream file(task.path() / "status");
    for (std::string word; file >> word;) {
      std::uint64_t count = 0;
      if (word == "voluntary_ctxt_switches:" && file >> count) sum.voluntary += count;
      if (word == "nonvoluntary_ctxt_switches:" && file >> count) sum.involuntary += count;
    }
  }
  return sum;
}
std::uint64_t all_switches(pid_t process) {
  const Switches switches = context_switches(process);
  return switches.voluntary + switches.involuntary;
}

}  // namespace

pid_t spawn_process(const std::vector<std::string>& words, const std::string& log) {
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(out, STDERR_FILENO);
  ::execvp(arguments[0], arguments.data());
  ::_exit(127);
}

void end_process(pid_t process, int signal) {
  if (process <= 0) return;
  ::kill(process, signal);
  while (::waitpid(process, nullptr, 0) < 0 && errno == EINTR) {
  }
}

Result<std::unique_ptr<RunningHost>> RunningHost::start(const Options& options) {
  std::unique_ptr<RunningHost> host(new RunningHost);
  VMBUSD_CHECK(host->launch(options));
  VMBUSD_CHECK(host->attach(options));
  return host;
}

RunningHost::~RunningHost() {
  bus_.reset();
  child_.reset();
  end_process(daemon_, SIGTERM);
}

Result<void> RunningHost::launch(const Options& options) {
  if (directory_.path().empty()) return fail_os(errno, "cannot make a temporary folder");
  const std::string config = directory_.path("vmbusd.toml");
  std::ofstream(config) << "[[partition]]\nname = 'bench'\nsocket = '" << directory_.path()
                        << "/bench.sock'\n"
                        << options.devices;
  daemon_ = spawn_process({options.vmbusd, "--config", config}, directory_.path("log"));
  if (daemon_ < 0) return fail_os(errno, "cannot start vmbusd");
  return {};
}

Result<void> RunningHost::attach(const Options& options) {
  const auto deadline = Clock::now() + guest::kPatience;
  for (;; std::this_thread::sleep_for(kPause)) {
    std::string error_text;
    auto child = guest::ChildPartition::attach({.socket_path = directory_.path("bench.sock"),
                                                .vp_count = options.vp_count,
                                                .memory_bytes = options.guest_memory_bytes},
                                               error_text);
    if (child) {
      child_ = std::move(*child);
      break;
    }
    if (Clock::now() > deadline || ::waitpid(daemon_, nullptr, WNOHANG) == daemon_) {
      std::ifstream log(directory_.path("log"));
      fmt::print(stderr, "{}", std::string((std::istreambuf_iterator<char>(log)), {}));
      return fail(Errc::kClosed, "vmbusd does not start");
    }
  }
  worker_ = only_child(daemon_);
  for (std::uint32_t vp = 0; vp < options.vp_count; ++vp) child_->vp(vp).poll_for(options.halt_poll);
  bus_ = std::make_unique<guest::BusClient>(*child_);
  VMBUSD_CHECK(bus_->contact(vmbus::Version::k5_3));
  VMBUSD_TRY(offers_, bus_->request_offers());
  return {};
}

std::vector<vmbus::OfferChannel> RunningHost::offers(const Guid& interface_type) const {
  std::vector<vmbus::OfferChannel> found;
  for (const vmbus::OfferChannel& offer : offers_) {
    if (offer.interface_type == interface_type && offer.sub_channel_index == 0) found.push_back(offer);
  }
  return found;
}

std::uint64_t RunningHost::sleeps() const {
  return context_switches(worker_).voluntary;
}

Result<void> RunningHost::run_on(std::size_t cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  std::error_code error;
  for (const auto& task : std::filesystem::directory_iterator(fmt::format("/proc/{}/task", worker_), error)) {
    const auto thread = static_cast<pid_t>(std::strtol(task.path().filename().c_str(), nullptr, 10));
    if (::sched_setaffinity(thread, sizeof set, &set) != 0) {
      return fail_os(errno, "cannot choose the worker's processor");
    }
  }
  return {};
}

ProcessCost::ProcessCost(pid_t process) : process_(process), directory_("/tmp") {
  perf_ = spawn_process({"perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-o",
                         directory_.path() + "/perf", "-p", std::to_string(process)},
                        directory_.path("log"));
  // It has no other way to say that it counts.
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  before_ = {cpu_seconds(process), all_switches(process), {}};
}

ProcessCost::~ProcessCost() {
  end_process(perf_, SIGINT);
}

ProcessCost::Use ProcessCost::stop() {
  Use use = {
      cpu_seconds(process_) - before_.cpu_seconds, all_switches(process_) - before_.context_switches, {}};
  end_process(std::exchange(perf_, -1), SIGINT);
  std::ifstream file(directory_.path() + "/perf");
  for (std::string line; std::getline(file, line);) {
    // "<not counted>": it never ran. "<not supported>": there is no such counter.
    if (line.find("raw_syscalls") == std::string::npos || line.starts_with("<not supported>")) continue;
    use.system_calls = line.starts_with("<") ? 0 : std::strtoull(line.c_str(), nullptr, 10);
  }
  return use;
}

Spread spread_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  const double median = values.size() % 2 != 0 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  return {median, values.front(), values.back()};
}

}  // namespace vmbusd::bench
