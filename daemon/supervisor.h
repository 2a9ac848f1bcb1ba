// The supervisor process: everything that needs a path or a privilege, and the worker processes' lives.
#pragma once

#include "base/log.h"
#include "daemon/config.h"

namespace vmbusd::daemon {

// Serves `config` until SIGTERM or SIGINT. Returns the exit status. It never touches guest memory and parses
// nothing that a guest wrote. Single-threaded; call once, before any thread was started.
[[nodiscard]] int run_supervisor(Config config, LogLevel log_level);

}  // namespace vmbusd::daemon
