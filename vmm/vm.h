// Runs a guest from power-on to power-off, over its reboots.
#pragma once

#include <cstdint>
#include <string>

#include "base/log.h"
#include "base/result.h"
#include "vmm/hypervisor.h"
#include "vmm/loader.h"

namespace vmbusd::vmm {

// What vmbus-vmm exits with.
enum class ExitStatus : std::uint8_t {
  kPowerOff = 0,
  kHostError = 1,   // the host cannot run this guest, or not any longer
  kUsage = 2,       // the command line is wrong
  kReboot = 3,      // the guest asked for a reboot and --no-reboot is given
  kGuestCrash = 4,  // triple fault, or the end of a guest that had reported a crash
  kDaemonGone = 5,  // vmbusd cannot be reached, or went away before the guest powered itself off
  kStopped = 6,     // SIGTERM, SIGINT, or the console's escape
};

struct VmConfig {
  BootSource boot;
  std::uint32_t vcpus = 1;
  std::uint64_t memory_size = 0;
  bool hugepages = false;
  std::string console;            // see Console::open
  std::string attach_path;        // empty: without vmbusd
  std::uint32_t reconnect_s = 0;  // for so long another vmbusd is waited for where the first went away
  bool no_reboot = false;
};

// Blocks until the guest has ended. SIGTERM and SIGINT must be blocked in the calling thread. Failures are
// logged.
[[nodiscard]] ExitStatus run_vm(const VmConfig& config, Hypervisor& hypervisor, LogScope& log);

}  // namespace vmbusd::vmm
