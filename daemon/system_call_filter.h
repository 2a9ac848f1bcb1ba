// The system calls that a partition's worker process may make, and each of its threads.
#pragma once

#include "base/result.h"
#include "daemon/sandbox.h"

namespace vmbusd::daemon {

// Filters the system calls of the calling thread, which is to be the only one, and of those that it starts:
// what the control thread may do, is what all may do. Each of those that announce themselves (see
// base/thread_role.h) gets a second filter for its role. Needs PR_SET_NO_NEW_PRIVS.
[[nodiscard]] Result<void> filter_system_calls(SeccompAction action);

}  // namespace vmbusd::daemon
