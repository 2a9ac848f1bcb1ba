// The threads that run a machine's vCPUs and answer its exits.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/log.h"
#include "vmm/attachment.h"
#include "vmm/guest_ram.h"
#include "vmm/hypervisor.h"
#include "vmm/platform.h"

namespace vmbusd::vmm {

// How a machine's life ended.
enum class MachineEnd : std::uint8_t { kPowerOff, kReset, kTripleFault, kFailed };

// Life cycle: start() once, stop() before destruction; both by the same thread.
class VcpuThreads {
 public:
  struct Parts {
    Machine& machine;
    Platform& platform;
    Attachment& attachment;
    const GuestRam& ram;
    LogScope& log;
  };

  // `ended` is called once end() has something to say, on a vCPU's thread.
  VcpuThreads(const Parts& parts, std::uint32_t vcpus, std::function<void()> ended);
  ~VcpuThreads();
  VcpuThreads(const VcpuThreads&) = delete;
  VcpuThreads& operator=(const VcpuThreads&) = delete;

  void start();
  // Takes all vCPUs out of the guest, for good.
  void stop();

  // The first reason to end, empty while the guest runs. Any thread.
  [[nodiscard]] std::optional<MachineEnd> end() const;
  // The guest reported a crash. It may go on: to save a dump, to reboot. Any thread.
  [[nodiscard]] bool crashed() const { return crashed_.load(std::memory_order_relaxed); }

 private:
  void run(std::uint32_t index);
  // Each answers one exit; the vCPU goes on where they return nothing.
  using Next = std::optional<MachineEnd>;
  [[nodiscard]] Next handle(std::uint32_t vp, const PortExit& exit);
  [[nodiscard]] Next handle(std::uint32_t vp, const MmioExit& exit);
  [[nodiscard]] Next handle(std::uint32_t vp, const HypercallExit& exit);
  [[nodiscard]] Next handle(std::uint32_t vp, const SynicExit& exit);
  [[nodiscard]] Next handle(std::uint32_t vp, const CrashExit& exit);
  [[nodiscard]] Next handle(std::uint32_t vp, const ResetExit& exit);
  [[nodiscard]] Next handle(std::uint32_t vp, const TripleFaultExit& exit);
  [[nodiscard]] Next handle(std::uint32_t vp, const InterruptedExit& exit);
  [[nodiscard]] Next handle(std::uint32_t vp, const FailedExit& exit);

  const Parts parts_;
  const std::uint32_t vcpus_;
  const std::function<void()> ended_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> crashed_{false};
  mutable std::mutex mutex_;  // of end_
  std::optional<MachineEnd> end_;
};

}  // namespace vmbusd::vmm
