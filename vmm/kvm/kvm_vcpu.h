// A virtual CPU of KVM.
#pragma once

#include <linux/kvm.h>
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <span>

#include "base/fd.h"
#include "base/result.h"
#include "vmm/hypervisor.h"

namespace vmbusd::vmm::kvm {

class KvmMachine;

class KvmVcpu final : public Vcpu {
 public:
  // `fd` is the vCPU's, `run_size` that of the area it shares with KVM. `machine` outlives it.
  [[nodiscard]] static Result<std::unique_ptr<KvmVcpu>> create(KvmMachine& machine, std::uint32_t index,
                                                               UniqueFd fd, std::size_t run_size);
  ~KvmVcpu() override;
  KvmVcpu(const KvmVcpu&) = delete;
  KvmVcpu& operator=(const KvmVcpu&) = delete;

  // Gives it its CPUID table and its SynIC. Before any run().
  [[nodiscard]] Result<void> configure(std::span<const kvm_cpuid_entry2> cpuid, bool enforce_cpuid);

  [[nodiscard]] Result<void> set_boot_state(const BootState& state) override;
  [[nodiscard]] RunExit run() override;
  void complete_hypercall(std::uint16_t status) override;
  void complete_synic_change() override;
  void kick() override;

 private:
  KvmVcpu(KvmMachine& machine, std::uint32_t index, UniqueFd fd, void* run, std::size_t run_size);

  [[nodiscard]] RunExit hyper_v_exit();
  [[nodiscard]] RunExit system_event_exit();
  [[nodiscard]] FailedExit failed_exit(const char* what, std::uint64_t detail);

  KvmMachine& machine_;
  std::uint32_t index_;
  UniqueFd fd_;
  kvm_run* run_;  // shared with KVM
  std::size_t run_size_;
  SynicState synic_;  // as the last SynicExit told
  std::atomic<pthread_t> thread_{};
  std::atomic<bool> has_thread_{false};
};

}  // namespace vmbusd::vmm::kvm
