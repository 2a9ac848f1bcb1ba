// A partition's worker process: its VMBus server, devices and I/O threads.
#pragma once

#include <chrono>

#include "base/fd.h"

namespace vmbusd::daemon {

// How long I/O in flight may take to end when the worker stops. Network storage takes seconds to fail;
// service managers give 90.
inline constexpr std::chrono::seconds kDrainTime{10};

// Serves the partition that the supervisor describes on `socket`, until it says stop, closes the socket or
// dies. Returns the exit status. Runs the control thread on the calling thread; call before any other was
// started.
[[nodiscard]] int run_partition_worker(UniqueFd socket);

}  // namespace vmbusd::daemon
