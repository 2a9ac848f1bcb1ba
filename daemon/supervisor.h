// The supervisor process: everything that needs a path or a privilege, and the worker processes' lives.
#pragma once

#include <string>

#include "base/log.h"
#include "daemon/config.h"
#include "daemon/given_sockets.h"

namespace vmbusd::daemon {

// Serves `config`, which came from the file at `config_path`, by `sockets` where they have one for it, until
// SIGTERM or SIGINT; reads the file again
// on SIGHUP. Returns the exit status. It never touches guest memory and parses nothing that a guest wrote.
// Single-threaded; call once, before any thread was started.
[[nodiscard]] int run_supervisor(Config config, const std::string& config_path, GivenSockets sockets,
                                 LogLevel log_level);

}  // namespace vmbusd::daemon
