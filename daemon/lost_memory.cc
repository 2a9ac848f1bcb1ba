#include "daemon/lost_memory.h"

#include <signal.h>
#include <unistd.h>

#include "daemon/options.h"

namespace vmbusd::daemon {

namespace {

// On the thread that touched the page, anywhere in the code: nothing but what is async-signal-safe. The
// supervisor says what happened.
void memory_lost(int number, siginfo_t* info, void*) {
  // Of the files that a worker maps, its guest's memory is the only one that someone else can shorten.
  if (info->si_code == BUS_ADRERR) ::_exit(kExitLostMemory);
  // A page that the hardware has lost, or a signal that somebody sent.
  ::signal(number, SIG_DFL);
  ::raise(number);
}

}  // namespace

void end_on_lost_memory() {
  struct sigaction action {};
  action.sa_sigaction = &memory_lost;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  ::sigaction(SIGBUS, &action, nullptr);  // cannot fail for this signal
}

}  // namespace vmbusd::daemon
