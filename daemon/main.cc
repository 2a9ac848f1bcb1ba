// vmbusd: serves VMBus devices to child partitions.
#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>

#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "daemon/config.h"
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

int run(int argc, char** argv) {
  const auto outcome = parse_options(argc, argv);
  if (const int* status = std::get_if<int>(&outcome)) return *status;
  const Options& options = std::get<Options>(outcome);
  log_init(options.log_level);
  std::signal(SIGPIPE, SIG_IGN);  // a log reader that is gone must not stop guests' I/O

  if (options.partition_worker_fd >= 0) {
    UniqueFd socket(options.partition_worker_fd);
    if (::fcntl(socket.get(), F_SETFD, FD_CLOEXEC) != 0) {
      fmt::print(stderr, "vmbusd: --partition-worker is for vmbusd's own use\n");
      return kExitUsage;
    }
    return run_partition_worker(std::move(socket));
  }

  const Result<std::string> text = read_config_file(options.config_path);
  if (!text) {
    fmt::print(stderr, "{}: {}\n", options.config_path, describe(text.error()));
    return kExitUsage;
  }
  const std::unique_ptr<char, decltype(&::free)> file(::realpath(options.config_path.c_str(), nullptr),
                                                      &::free);
  const std::string absolute = file ? file.get() : options.config_path;
  ParsedConfig parsed = parse_config(*text, absolute.substr(0, absolute.rfind('/')));
  if (!parsed.problems.empty()) return refuse_config(options.config_path, parsed.problems);
  if (const auto problems = check_host(parsed.config); !problems.empty()) {
    return refuse_config(options.config_path, problems);
  }
  if (options.check_config) {
    fmt::print("{}: OK\n", options.config_path);
    return kExitOk;
  }
  return run_supervisor(std::move(parsed.config), options.log_level);
}

}  // namespace
}  // namespace vmbusd::daemon

int main(int argc, char** argv) {
  return vmbusd::daemon::run(argc, argv);
}
