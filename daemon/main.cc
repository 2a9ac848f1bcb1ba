// vmbusd: serves VMBus devices to child partitions.
#include <fcntl.h>
#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "daemon/capabilities.h"
#include "daemon/config.h"
#include "daemon/given_sockets.h"
#include "daemon/options.h"
#include "daemon/partition_worker.h"
#include "daemon/supervisor.h"

namespace vmbusd::daemon {
namespace {

int refuse_config(const std::string& file, const std::vector<ConfigProblem>& problems) {
  for (const ConfigProblem& problem : problems) {
    fmt::print(stderr, "{}\n", format_problem(file, problem));
  }
  return kExitUsage;
}

// What is wrong with the sockets that this process was started with; empty where nothing is.
std::string take_sockets(const Options& options, GivenSockets& sockets) {
  std::string subject;
  if (const Result<void> taken = sockets.take_from_environment(subject); !taken)
    return fmt::format("{} {}", subject, describe(taken.error()));
  for (const auto& [name, fd] : options.sockets) {
    if (const Result<void> added = sockets.add(name, fd); !added)
      return fmt::format("--fd {}={} {}", name, fd, describe(added.error()));
  }
  return {};
}

int run(int argc, char** argv) {
  const auto outcome = parse_options(argc, argv);
  if (const int* status = std::get_if<int>(&outcome)) return *status;
  const Options& options = std::get<Options>(outcome);
  log_init(options.log_level);
  log_set_format(options.log_format);
  std::signal(SIGPIPE, SIG_IGN);  // a log reader that is gone must not stop guests' I/O

  if (options.partition_worker_fd >= 0) {
    UniqueFd socket(options.partition_worker_fd);
    if (::fcntl(socket.get(), F_SETFD, FD_CLOEXEC) != 0) {
      fmt::print(stderr, "vmbusd: --partition-worker is for vmbusd's own use\n");
      return kExitUsage;
    }
    return run_partition_worker(std::move(socket));
  }

  if (options.print_capabilities) {
    fmt::print("{}\n", capabilities());
    return kExitOk;
  }

  ParsedConfig parsed = load_config(options.config_path);
  if (!parsed.problems.empty()) return refuse_config(options.config_path, parsed.problems);
  if (options.check_config) {
    fmt::print("{}: OK\n", options.config_path);
    return kExitOk;
  }
  GivenSockets sockets;
  if (const std::string problem = take_sockets(options, sockets); !problem.empty()) {
    fmt::print(stderr, "vmbusd: {}\n", problem);
    return kExitUsage;
  }
  if (!options.control_socket.empty()) parsed.config.control_socket = options.control_socket;
  if (!options.socket_group.empty()) parsed.config.socket_group = options.socket_group;
  if (!options.worker_user.empty()) parsed.config.worker_user = options.worker_user;
  if (options.seccomp) parsed.config.seccomp = *options.seccomp;
  return run_supervisor(std::move(parsed.config), options.config_path, std::move(sockets), options.log_level);
}

}  // namespace
}  // namespace vmbusd::daemon

int main(int argc, char** argv) {
  return vmbusd::daemon::run(argc, argv);
}
