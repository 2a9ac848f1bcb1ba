// /dev/kvm with its in-kernel SynIC.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "vmm/hypervisor.h"
#include "vmm/kvm/cpuid.h"

namespace vmbusd::vmm::kvm {

class KvmHypervisor final : public Hypervisor {
 public:
  // Opens /dev/kvm and makes sure that it can run VMBus guests; the error names what is missing.
  [[nodiscard]] static Result<std::unique_ptr<Hypervisor>> open();

  [[nodiscard]] std::uint32_t physical_address_bits() const override;
  [[nodiscard]] bool event_flags_in_guest_memory() const override { return true; }
  [[nodiscard]] Result<std::unique_ptr<Machine>> create_machine(const MachineConfig& config,
                                                                MachineEvents& events) override;

 private:
  explicit KvmHypervisor(UniqueFd kvm) : kvm_(std::move(kvm)) {}
  [[nodiscard]] Result<void> probe();

  UniqueFd kvm_;
  std::size_t run_size_ = 0;  // of the area that a vCPU shares with KVM
  bool tsc_deadline_timer_ = false;
  ApicOffer apic_;
  std::vector<kvm_cpuid_entry2> host_cpuid_;
  std::vector<kvm_cpuid_entry2> hyper_v_cpuid_;
};

}  // namespace vmbusd::vmm::kvm
