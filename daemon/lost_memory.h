// What becomes of a worker process that touches guest memory which is not there any more.
#pragma once

namespace vmbusd::daemon {

// From here on SIGBUS for a page that cannot be had ends the process with kExitLostMemory: the VMM has cut a
// memfd short that took no seal, or the host has no page left for it. Nothing that the partition is told
// after that could be relied on, and its memory is its own affair, so the process ends rather than puts
// another page there. Other kinds of SIGBUS end it by the signal. Once, before there are other threads.
void end_on_lost_memory();

}  // namespace vmbusd::daemon
