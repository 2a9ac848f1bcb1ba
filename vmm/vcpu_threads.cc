#include "vmm/vcpu_threads.h"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <string>
#include <utility>

#include "base/assert.h"
#include "vmm/hypercall.h"

namespace vmbusd::vmm {

namespace {

// Crash control register: P3 and P4 are the address and the length of a text. [TLFS:
// HV_CRASH_CTL_REG_CONTENTS]
constexpr std::uint64_t kCrashHasMessage = 1ull << 62;
constexpr std::uint64_t kCrashMessageMax = 4096;

// The last lines of a text in guest memory, made harmless for a terminal.
std::string crash_message(const GuestRam& ram, std::uint64_t gpa, std::uint64_t size) {
  constexpr std::uint64_t kTail = 512;
  if (size == 0 || size > kCrashMessageMax) return {};
  const std::uint64_t shown = std::min(size, kTail);
  std::string text;
  for (const std::byte byte : ram.at(gpa + size - shown, shown)) {
    const char c = static_cast<char>(byte);
    text += c >= ' ' && c <= '~' ? c : c == '\n' ? '|' : '.';
  }
  return text;
}

}  // namespace

VcpuThreads::VcpuThreads(const Parts& parts, std::uint32_t vcpus, std::function<void()> ended)
    : parts_(parts), vcpus_(vcpus), ended_(std::move(ended)) {}

VcpuThreads::~VcpuThreads() {
  VMBUSD_ASSERT(threads_.empty());
}

void VcpuThreads::start() {
  for (std::uint32_t index = 0; index < vcpus_; ++index) {
    threads_.emplace_back([this, index] { run(index); });
  }
}

void VcpuThreads::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  for (std::uint32_t index = 0; index < vcpus_; ++index) parts_.machine.vcpu(index).kick();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

std::optional<MachineEnd> VcpuThreads::end() const {
  const std::lock_guard lock(mutex_);
  return end_;
}

void VcpuThreads::run(std::uint32_t index) {
  (void)::pthread_setname_np(::pthread_self(), fmt::format("vcpu{}", index).c_str());
  Vcpu& vcpu = parts_.machine.vcpu(index);
  Next next;
  while (!next && !stopping_.load(std::memory_order_relaxed)) {
    const RunExit exit = vcpu.run();
    next = std::visit([this, index](const auto& reason) { return handle(index, reason); }, exit);
  }
  if (!next) return;
  {
    const std::lock_guard lock(mutex_);
    if (end_) return;
    end_ = next;
  }
  ended_();
}

VcpuThreads::Next VcpuThreads::handle(std::uint32_t, const PortExit& exit) {
  switch (parts_.platform.port(exit)) {
    case PowerRequest::kPowerOff:
      return MachineEnd::kPowerOff;
    case PowerRequest::kReset:
      return MachineEnd::kReset;
    case PowerRequest::kNone:
      break;
  }
  return {};
}

VcpuThreads::Next VcpuThreads::handle(std::uint32_t, const MmioExit& exit) {
  parts_.platform.mmio(exit);
  return {};
}

VcpuThreads::Next VcpuThreads::handle(std::uint32_t vp, const HypercallExit& exit) {
  const DecodedHypercall decoded = decode_hypercall(exit, parts_.ram);
  const auto* const message = std::get_if<PostedMessage>(&decoded);
  const std::uint16_t status =
      message != nullptr ? parts_.attachment.post(vp, *message) : std::get<std::uint16_t>(decoded);
  parts_.machine.vcpu(vp).complete_hypercall(status);
  return {};
}

VcpuThreads::Next VcpuThreads::handle(std::uint32_t vp, const SynicExit& exit) {
  parts_.attachment.synic_change(vp, parts_.machine.vcpu(vp), exit.state);
  return {};
}

VcpuThreads::Next VcpuThreads::handle(std::uint32_t vp, const CrashExit& exit) {
  crashed_.store(true, std::memory_order_relaxed);
  const auto& p = exit.parameters;
  parts_.log.guest("the guest reports a crash on VP {}: {:#x} {:#x} {:#x} {:#x} {:#x}", vp, p[0], p[1], p[2],
                   p[3], p[4]);
  if ((exit.control & kCrashHasMessage) != 0) {
    parts_.log.guest("its last words: {}", crash_message(parts_.ram, p[3], p[4]));
  }
  return {};
}

VcpuThreads::Next VcpuThreads::handle(std::uint32_t, const ResetExit&) {
  return MachineEnd::kReset;
}

VcpuThreads::Next VcpuThreads::handle(std::uint32_t vp, const TripleFaultExit&) {
  parts_.log.error("the guest is dead: triple fault on VP {}", vp);
  return MachineEnd::kTripleFault;
}

VcpuThreads::Next VcpuThreads::handle(std::uint32_t, const InterruptedExit&) {
  return {};
}

VcpuThreads::Next VcpuThreads::handle(std::uint32_t vp, const FailedExit& exit) {
  parts_.log.error("VP {} cannot go on: {}", vp, exit.reason);
  return MachineEnd::kFailed;
}

}  // namespace vmbusd::vmm
