// What the guest's CPUID says: the host's features, the machine's topology, Hyper-V's identity.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <span>
#include <vector>

namespace vmbusd::vmm::kvm {

// How guests reach their local APIC with the fewest exits.
struct ApicOffer {
  bool x2apic = true;
  bool hyper_v_msrs = false;  // recommend Hyper-V's MSRs and assist page instead of the APIC's own registers
};

// Where the processor carries out APIC accesses itself, they are best left alone. Where each is an exit,
// Hyper-V's assist page saves the one at the end of most interrupts; Linux uses it in xAPIC mode only, so
// then x2APIC is not offered. [linux: arch/x86/hyperv/hv_apic.c, hv_apic_init; arch/x86/kvm/lapic.c,
// apic_sync_pv_eoi_to_guest]
[[nodiscard]] constexpr ApicOffer choose_apic(bool virtual_apic, bool virtual_x2apic) {
  return {.x2apic = virtual_x2apic, .hyper_v_msrs = !virtual_apic && !virtual_x2apic};
}

struct CpuidConfig {
  std::span<const kvm_cpuid_entry2> host;     // KVM_GET_SUPPORTED_CPUID
  std::span<const kvm_cpuid_entry2> hyper_v;  // KVM_GET_SUPPORTED_HV_CPUID
  std::uint32_t vcpus;
  bool tsc_deadline_timer;  // KVM_CAP_TSC_DEADLINE_TIMER
  ApicOffer apic;
};

// The table for the vCPU with local APIC id `apic_id`. Of Hyper-V's leaves it has what KVM implements and a
// VMBus guest makes use of, never more than config.hyper_v offers. [reference: vmbus 1.2]
[[nodiscard]] std::vector<kvm_cpuid_entry2> build_cpuid(const CpuidConfig& config, std::uint32_t apic_id);

// What a VMBus guest needs and `hyper_v` does not offer, in words; nullptr where nothing is missing.
[[nodiscard]] const char* missing_hyper_v_feature(std::span<const kvm_cpuid_entry2> hyper_v);

}  // namespace vmbusd::vmm::kvm
