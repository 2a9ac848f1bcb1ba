// vmbusd's command line; vmbusd(8) is its manual.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/log.h"
#include "base/log_format.h"
#include "daemon/sandbox.h"

namespace vmbusd::daemon {

// Documented in vmbusd(8).
inline constexpr int kExitOk = 0;
inline constexpr int kExitRuntime = 1;  // it could not start, or not go on
inline constexpr int kExitUsage = 2;    // command line or configuration
// A worker process alone: see lost_memory.h.
inline constexpr int kExitLostMemory = 3;

struct Options {
  std::string config_path;
  bool check_config = false;
  bool print_capabilities = false;
  std::string control_socket;                        // absolute; empty: as the configuration says
  std::string socket_group;                          // likewise
  std::vector<std::pair<std::string, int>> sockets;  // GivenSockets::add()
  std::string worker_user;                           // likewise
  std::optional<SeccompAction> seccomp;              // likewise
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kText;
  int partition_worker_fd = -1;  // not -1: this process is a partition's worker, see partition_worker.h
};

// What to do, or the exit status where --help, --version or an error was all there was to say; that has been
// printed then.
[[nodiscard]] std::variant<Options, int> parse_options(int argc, char** argv);

}  // namespace vmbusd::daemon
