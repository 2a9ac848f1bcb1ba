// vmbus-vmm: boots a Linux guest on KVM and attaches it to vmbusd.

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>

#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "base/log.h"
#include "vmm/kvm/kvm_hypervisor.h"
#include "vmm/options.h"
#include "vmm/vm.h"

namespace vmbusd::vmm {
namespace {

void block_stop_signals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);  // a console's reader may go away
}

// KVM offers its guests a reference TSC page only on top of a host whose own clock is the TSC.
// [linux: arch/x86/kvm/x86.c, kvm_guest_time_update]
void warn_of_slow_clock(const LogScope& log) {
  std::string source;
  std::ifstream("/sys/devices/system/clocksource/clocksource0/current_clocksource") >> source;
  if (source.empty() || source == "tsc") return;
  log.warning(
      "the host's clock source is {}, not tsc: each look at the clock will cost the guest an exit; "
      "boot the host with tsc=reliable if its TSC is",
      source);
}

ExitStatus run(const Options& options) {
  LogScope log("vmbus-vmm");
  const Result<std::unique_ptr<Hypervisor>> hypervisor = kvm::KvmHypervisor::open();
  if (!hypervisor) {
    log.error("{}", describe(hypervisor.error()));
    return ExitStatus::kHostError;
  }
  warn_of_slow_clock(log);
  return run_vm(options.vm, **hypervisor, log);
}

}  // namespace
}  // namespace vmbusd::vmm

int main(int argc, char** argv) {
  using namespace vmbusd::vmm;
  const auto parsed = parse_options(argc, argv);
  if (const auto* const status = std::get_if<ExitStatus>(&parsed)) return static_cast<int>(*status);
  const Options& options = std::get<Options>(parsed);
  vmbusd::log_init(options.verbose ? vmbusd::LogLevel::kDebug : vmbusd::LogLevel::kInfo);
  block_stop_signals();
  return static_cast<int>(run(options));
}
