#include "daemon/supervisor.h"

#include <fmt/format.h>
#include <grp.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "daemon/control_api.h"
#include "daemon/event_log.h"
#include "daemon/given_sockets.h"
#include "daemon/http_server.h"
#include "daemon/options.h"
#include "daemon/partition_set.h"
#include "daemon/sandbox.h"
#include "daemon/service_notify.h"
#include "io/worker.h"

namespace vmbusd::daemon {

namespace {

using boost::system::error_code;

const LogScope kLog("vmbusd");

// Each attached guest costs descriptors for its memory, VPs and channels, in its worker and some here.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    kLog.warning("cannot raise the limit of open files to {}: {}", limit.rlim_max, std::strerror(errno));
  }
}

// Whether a worker will get its io_uring, said now rather than when the first guest comes.
bool io_uring_usable() {
  io::WorkerOptions options;
  options.name = "probe";
  const auto probe = io::Worker::create(options);
  if (!probe) kLog.error("{}", io::explain_setup_error(probe.error()));
  return probe.has_value();
}

// A group's name or number.
std::optional<gid_t> find_group(const std::string& name) {
  gid_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (error == std::errc() && end == name.data() + name.size()) return number;
  std::array<char, 16384> buffer;
  group entry{};
  group* found = nullptr;
  if (::getgrnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr) {
    return std::nullopt;
  }
  return found->gr_gid;
}

class Supervisor {
 public:
  Supervisor(Config config, const std::string& config_path, GivenSockets sockets, LogLevel log_level)
      : config_(std::move(config)),
        sockets_(std::move(sockets)),
        config_path_(config_path),
        signals_(context_),
        watchdog_timer_(context_),
        events_(context_),
        partitions_(context_, log_level, events_,
                    {[this] { ready(); }, [this] { start_failed(); }, [this] { stopped(); },
                     [this] { notifier_.notify(status()); }}),
        api_(partitions_, events_, config_, directory_of(config_path), [this] { return reload(); }) {}

  int run() {
    if (!prepare_sandbox()) return kExitRuntime;
    partitions_.set_given_sockets(sockets_);
    const bool listens = open_control_socket();
    const bool all = partitions_.open(std::exchange(config_.partitions, {}));
    if (!all || !listens) return kExitRuntime;
    wait_for_signal();
    feed_watchdog();
    partitions_.start();
    context_.run();
    return status_;
  }

 private:
  bool prepare_sandbox() {
    SandboxConfig sandbox;
    sandbox.seccomp = config_.seccomp;
    if (::geteuid() == 0) sandbox.user = find_user(config_.worker_user);
    if (::geteuid() == 0 && !sandbox.user) {
      kLog.error("there is no user {} for worker processes to be; give worker_user another",
                 config_.worker_user);
      return false;
    }
    partitions_.set_sandbox(sandbox);
    return true;
  }

  bool open_control_socket() {
    HttpServer::Options options;
    options.path = config_.control_socket;
    options.given = sockets_.control();
    const bool given = static_cast<bool>(options.given);
    if (options.path.empty() && !given) {
      if (config_.socket_group.empty()) return true;
      kLog.error("socket_group is given and no control socket; give --control-socket or control_socket too");
      return false;
    }
    if (!config_.socket_group.empty()) {
      options.group = find_group(config_.socket_group);
      if (!options.group) {
        kLog.error("there is no group {} to give the control socket to", config_.socket_group);
        return false;
      }
    }
    const std::string name = given ? "as given" : options.path;
    auto server = HttpServer::listen(
        context_, std::move(options),
        [this](const HttpRequest& request, auto respond) { api_.handle(request, std::move(respond)); });
    if (!server) {
      kLog.error("control socket {}: {}", name, describe(server.error()));
      return false;
    }
    server_ = *std::move(server);
    kLog.info("control socket: {}", name);
    return true;
  }

  void wait_for_signal() {
    error_code ignored;
    for (const int signal : {SIGTERM, SIGINT, SIGHUP}) signals_.add(signal, ignored);
    signals_.async_wait([this](error_code error, int signal) {
      if (error) return;
      wait_for_signal();
      if (signal == SIGHUP) {
        (void)reload();
      } else if (stopping_) {
        kLog.warning("{} again: not waiting for I/O in flight", ::strsignal(signal));
        status_ = kExitRuntime;
        partitions_.kill();
      } else {
        kLog.info("{}: draining and stopping", ::strsignal(signal));
        stop();
      }
    });
  }

  // What is wrong with the file, which changes nothing then.
  std::vector<std::string> reload() {
    if (stopping_) return {"vmbusd is stopping"};
    ParsedConfig parsed = load_config(config_path_);
    std::vector<std::string> problems;
    for (const ConfigProblem& problem : parsed.problems) {
      problems.push_back(format_problem(config_path_, problem));
      kLog.error("{}", problems.back());
    }
    if (!problems.empty()) {
      kLog.error("the configuration file is not accepted; everything runs on as before");
      return problems;
    }
    kLog.info("taking up changes of {}", config_path_);
    const auto now = std::chrono::steady_clock::now().time_since_epoch();  // CLOCK_MONOTONIC
    notifier_.notify(fmt::format("RELOADING=1\nMONOTONIC_USEC={}",
                                 std::chrono::duration_cast<std::chrono::microseconds>(now).count()));
    partitions_.reload(std::move(parsed.config.partitions));
    notifier_.notify("READY=1\n" + status());
    return {};
  }

  void feed_watchdog() {
    const auto interval = notifier_.watchdog_interval();
    if (!interval) return;
    notifier_.notify("WATCHDOG=1");
    watchdog_timer_.expires_after(*interval);
    watchdog_timer_.async_wait([this](error_code error) {
      if (!error) feed_watchdog();
    });
  }

  std::string status() { return fmt::format("STATUS=Serving {} partition(s)", partitions_.all().size()); }

  void ready() {
    if (stopping_) return;
    notifier_.notify("READY=1\n" + status());
    kLog.info("ready: {} partition(s)", partitions_.all().size());
  }

  void start_failed() {
    status_ = kExitRuntime;
    stop();
  }

  void stop() {
    if (stopping_) return;
    stopping_ = true;
    notifier_.notify("STOPPING=1");
    partitions_.stop();
  }

  void stopped() {
    if (partitions_.stopped_badly()) status_ = kExitRuntime;
    kLog.info("stopped");
    context_.stop();
  }

  boost::asio::io_context context_{1};
  Config config_;  // its partitions are with partitions_
  const GivenSockets sockets_;
  std::string config_path_;
  boost::asio::signal_set signals_;
  boost::asio::steady_timer watchdog_timer_;
  ServiceNotifier notifier_;
  EventLog events_;
  PartitionSet partitions_;
  ControlApi api_;
  std::unique_ptr<HttpServer> server_;
  bool stopping_ = false;
  int status_ = kExitOk;
};

}  // namespace

int run_supervisor(Config config, const std::string& config_path, GivenSockets sockets, LogLevel log_level) {
  std::signal(SIGHUP, SIG_IGN);  // until it is listened to
  raise_descriptor_limit();
  if (!io_uring_usable()) return kExitRuntime;
  return Supervisor(std::move(config), config_path, std::move(sockets), log_level).run();
}

}  // namespace vmbusd::daemon
