#include "daemon/supervisor.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <memory>
#include <vector>

#include "daemon/options.h"
#include "daemon/partition_supervisor.h"
#include "daemon/partition_worker.h"
#include "daemon/service_notify.h"
#include "io/worker.h"

namespace vmbusd::daemon {

namespace {

using boost::system::error_code;
using namespace std::chrono_literals;

const LogScope kLog("vmbusd");

// A worker gives up by itself after kDrainTime; this is for one that cannot even do that.
constexpr std::chrono::seconds kStopTime = kDrainTime + 5s;

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

class Supervisor {
 public:
  Supervisor(Config config, LogLevel log_level) : signals_(context_), stop_timer_(context_) {
    for (PartitionConfig& partition : config.partitions) {
      PartitionSupervisor::Events events;
      events.ready = [this] { partition_ready(); };
      events.failed = [this] { start_failed(); };
      events.stopped = [this] { partition_stopped(); };
      partitions_.push_back(std::make_unique<PartitionSupervisor>(context_, std::move(partition), log_level,
                                                                  std::move(events)));
    }
  }

  int run() {
    bool all = true;
    for (const auto& partition : partitions_) all = partition->open() && all;
    if (!all) return kExitRuntime;
    wait_for_signal();
    for (const auto& partition : partitions_) partition->start();
    context_.run();
    return status_;
  }

 private:
  void wait_for_signal() {
    error_code ignored;
    signals_.add(SIGTERM, ignored);
    signals_.add(SIGINT, ignored);
    signals_.async_wait([this](error_code error, int signal) {
      if (error) return;
      if (stopping_) {
        kLog.warning("{} again: not waiting for I/O in flight", ::strsignal(signal));
        return kill_all();
      }
      kLog.info("{}: draining and stopping", ::strsignal(signal));
      stop();
      wait_for_signal();
    });
  }

  void partition_ready() {
    if (++ready_ != partitions_.size() || stopping_) return;
    notifier_.notify(fmt::format("READY=1\nSTATUS=Serving {} partition(s)", partitions_.size()));
    kLog.info("ready: {} partition(s)", partitions_.size());
  }

  void start_failed() {
    status_ = kExitRuntime;
    stop();
  }

  void stop() {
    if (stopping_) return;
    stopping_ = true;
    notifier_.notify("STOPPING=1");
    stop_timer_.expires_after(kStopTime);
    stop_timer_.async_wait([this](error_code error) {
      if (error) return;
      kLog.error("worker processes did not stop within {} s: killing them", kStopTime.count());
      kill_all();
    });
    for (const auto& partition : partitions_) partition->stop();
  }

  void kill_all() {
    status_ = kExitRuntime;
    for (const auto& partition : partitions_) partition->kill();
  }

  void partition_stopped() {
    if (++stopped_ != partitions_.size()) return;
    for (const auto& partition : partitions_) {
      if (partition->stopped_badly()) status_ = kExitRuntime;
    }
    kLog.info("stopped");
    stop_timer_.cancel();
    signals_.cancel();
    context_.stop();
  }

  boost::asio::io_context context_{1};
  boost::asio::signal_set signals_;
  boost::asio::steady_timer stop_timer_;
  ServiceNotifier notifier_;
  std::vector<std::unique_ptr<PartitionSupervisor>> partitions_;
  std::size_t ready_ = 0;
  std::size_t stopped_ = 0;
  bool stopping_ = false;
  int status_ = kExitOk;
};

}  // namespace

int run_supervisor(Config config, LogLevel log_level) {
  std::signal(SIGHUP, SIG_IGN);  // a terminal that closes is no reason to take guests' disks away
  raise_descriptor_limit();
  if (!io_uring_usable()) return kExitRuntime;
  return Supervisor(std::move(config), log_level).run();
}

}  // namespace vmbusd::daemon
