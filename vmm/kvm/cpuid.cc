#include "vmm/kvm/cpuid.h"

#include <algorithm>
#include <bit>

#include "vmm/hypervisor.h"

namespace vmbusd::vmm::kvm {

namespace {

// Leaf 1.
constexpr std::uint32_t kVmx = 1u << 5;              // ECX
constexpr std::uint32_t kX2apic = 1u << 21;          // ECX
constexpr std::uint32_t kTscDeadline = 1u << 24;     // ECX
constexpr std::uint32_t kHypervisor = 1u << 31;      // ECX
constexpr std::uint32_t kHyperThreading = 1u << 28;  // EDX: the package holds more than one logical processor
// Leaf 0x80000001.
constexpr std::uint32_t kLegacyMultiCore = 1u << 1;  // ECX
constexpr std::uint32_t kSvm = 1u << 2;              // ECX

constexpr std::uint32_t kHypervisorFirst = 0x40000000;
constexpr std::uint32_t kHypervisorLast = 0x4fffffff;

// Hyper-V's leaves. [TLFS: Feature and Interface Discovery]
constexpr std::uint32_t kHvVendor = 0x40000000;
constexpr std::uint32_t kHvInterface = 0x40000001;
constexpr std::uint32_t kHvVersion = 0x40000002;
constexpr std::uint32_t kHvFeatures = 0x40000003;
constexpr std::uint32_t kHvRecommendations = 0x40000004;
constexpr std::uint32_t kHvLimits = 0x40000005;
constexpr std::uint32_t kHvHardware = 0x40000006;

// Leaf 3, EAX: what a VMBus guest cannot do without.
constexpr std::uint32_t kReferenceCounter = 1u << 1;
constexpr std::uint32_t kSynic = 1u << 2;
constexpr std::uint32_t kHypercallMsrs = 1u << 5;
constexpr std::uint32_t kVpIndex = 1u << 6;
constexpr std::uint32_t kFeaturesNeeded = kReferenceCounter | kSynic | kHypercallMsrs | kVpIndex;
// And what makes it comfortable: VP run time, APIC MSRs, reset MSR, reference TSC, frequency MSRs, TSC
// invariant control. Not: statistics, guest idle, re-enlightenment (of use to nested hypervisors only).
constexpr std::uint32_t kFeaturesWanted =
    kFeaturesNeeded | 1u << 0 | 1u << 4 | 1u << 7 | 1u << 9 | 1u << 11 | 1u << 15;
constexpr std::uint32_t kSyntheticTimers = 1u << 3;
// EBX. Not bit 0 nor bit 12, CPU management: with it a Linux guest takes itself for the root partition.
constexpr std::uint32_t kPrivilegesWanted = 1u << 4 /* post messages */ | 1u << 5 /* signal events */;
// EDX: hypercall input in XMM registers, frequency MSRs, crash MSRs.
constexpr std::uint32_t kMoreFeaturesWanted = 1u << 4 | 1u << 8 | 1u << 10;
constexpr std::uint32_t kDirectTimers = 1u << 19;
// Leaf 4, EAX: remote TLB flush, APIC MSRs, relaxed timing, cluster IPI, sparse processor masks.
constexpr std::uint32_t kUseApicMsrs = 1u << 3;
constexpr std::uint32_t kRecommendationsWanted = 1u << 2 | kUseApicMsrs | 1u << 5 | 1u << 10 | 1u << 11;
// A SINT with auto-EOI keeps KVM from using the hardware's virtual APIC. [linux: arch/x86/kvm/hyperv.c,
// synic_update_vector]
constexpr std::uint32_t kDeprecateAutoEoi = 1u << 9;
constexpr std::uint32_t kNeverNotifySpinLocks = 0xffffffff;  // leaf 4, EBX

const kvm_cpuid_entry2* find(std::span<const kvm_cpuid_entry2> entries, std::uint32_t leaf) {
  const auto found = std::find_if(entries.begin(), entries.end(),
                                  [leaf](const auto& entry) { return entry.function == leaf; });
  return found == entries.end() ? nullptr : &*found;
}

kvm_cpuid_entry2 leaf_or_zero(std::span<const kvm_cpuid_entry2> entries, std::uint32_t leaf) {
  const kvm_cpuid_entry2* const entry = find(entries, leaf);
  if (entry != nullptr) return *entry;
  kvm_cpuid_entry2 zero{};
  zero.function = leaf;
  return zero;
}

void append_hyper_v(std::vector<kvm_cpuid_entry2>& table, const CpuidConfig& config) {
  const std::span<const kvm_cpuid_entry2> offered = config.hyper_v;
  kvm_cpuid_entry2 vendor{};
  vendor.function = kHvVendor;
  vendor.eax = kHvHardware;  // the highest leaf
  vendor.ebx = 0x7263694d;   // "Microsoft Hv"
  vendor.ecx = 0x666f736f;
  vendor.edx = 0x76482074;
  table.push_back(vendor);

  table.push_back(leaf_or_zero(offered, kHvInterface));
  table.push_back(leaf_or_zero(offered, kHvVersion));

  kvm_cpuid_entry2 features = leaf_or_zero(offered, kHvFeatures);
  // Linux takes Hyper-V's timers before the APIC's where it has both, and sets them anew before it ends their
  // interrupt, so that it ends each by one more exit: what the assist page says is withdrawn at any exit. The
  // APIC's deadline timer it sets afterwards. [linux: arch/x86/kernel/cpu/mshyperv.c, sysvec_hyperv_stimer0;
  // arch/x86/kernel/apic/apic.c, sysvec_apic_timer_interrupt]
  const bool timers = !config.tsc_deadline_timer;
  features.eax &= kFeaturesWanted | (timers ? kSyntheticTimers : 0);
  features.ebx &= kPrivilegesWanted;
  features.ecx = 0;
  features.edx &= kMoreFeaturesWanted | (timers ? kDirectTimers : 0);
  table.push_back(features);

  kvm_cpuid_entry2 recommendations = leaf_or_zero(offered, kHvRecommendations);
  recommendations.eax = (recommendations.eax & kRecommendationsWanted) | kDeprecateAutoEoi;
  if (!config.apic.hyper_v_msrs) recommendations.eax &= ~kUseApicMsrs;
  recommendations.ebx = kNeverNotifySpinLocks;
  recommendations.ecx = 0;
  recommendations.edx = 0;
  table.push_back(recommendations);

  kvm_cpuid_entry2 limits{};
  limits.function = kHvLimits;
  limits.eax = kMaxVcpus;
  table.push_back(limits);

  kvm_cpuid_entry2 hardware{};
  hardware.function = kHvHardware;
  table.push_back(hardware);
}

// One package, as many cores as vCPUs, one thread each, whatever the host is.
class Topology {
 public:
  Topology(std::uint32_t vcpus, std::uint32_t apic_id)
      : vcpus_(vcpus), apic_id_(apic_id), id_bits_(static_cast<std::uint32_t>(std::bit_width(vcpus - 1))) {}

  void apply(kvm_cpuid_entry2& entry) const {
    switch (entry.function) {
      case 0x1:
        entry.ebx = (entry.ebx & 0x0000ffff) | (1u << id_bits_) << 16 | apic_id_ << 24;
        entry.edx = vcpus_ > 1 ? entry.edx | kHyperThreading : entry.edx & ~kHyperThreading;
        break;
      case 0x4:  // caches: each core has its own but for the last level
        if ((entry.eax & 0x1f) == 0) break;
        entry.eax &= 0x00003fff;
        entry.eax |= ((1u << id_bits_) - 1) << 26;
        if ((entry.eax >> 5 & 0x7) >= 3) entry.eax |= ((1u << id_bits_) - 1) << 14;
        break;
      case 0x8000001d:  // the same of AMD
        if ((entry.eax & 0x1f) == 0) break;
        entry.eax &= 0x00003fff;
        if ((entry.eax >> 5 & 0x7) >= 3) entry.eax |= (vcpus_ - 1) << 14;
        break;
      case 0x80000001:
        entry.ecx = vcpus_ > 1 ? entry.ecx | kLegacyMultiCore : entry.ecx & ~kLegacyMultiCore;
        break;
      case 0x80000008:
        entry.ecx = id_bits_ << 12 | (vcpus_ - 1);
        break;
      case 0x8000001e:
        entry.eax = apic_id_;
        entry.ebx = apic_id_;  // core id; one thread each
        entry.ecx = 0;         // one node
        break;
      default:
        break;
    }
  }

  // Leaves 0xb and 0x1f replace the host's.
  void append_extended(std::vector<kvm_cpuid_entry2>& table, std::uint32_t leaf) const {
    constexpr std::uint32_t kThreadLevel = 1;
    constexpr std::uint32_t kCoreLevel = 2;
    table.push_back(level(leaf, 0, 0, 1, kThreadLevel));
    table.push_back(level(leaf, 1, id_bits_, vcpus_, kCoreLevel));
    table.push_back(level(leaf, 2, 0, 0, 0));
  }

 private:
  [[nodiscard]] kvm_cpuid_entry2 level(std::uint32_t leaf, std::uint32_t index, std::uint32_t shift,
                                       std::uint32_t processors, std::uint32_t type) const {
    kvm_cpuid_entry2 entry{};
    entry.function = leaf;
    entry.index = index;
    entry.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    entry.eax = shift;
    entry.ebx = processors;
    entry.ecx = type << 8 | index;
    entry.edx = apic_id_;
    return entry;
  }

  std::uint32_t vcpus_;
  std::uint32_t apic_id_;
  std::uint32_t id_bits_;
};

}  // namespace

std::vector<kvm_cpuid_entry2> build_cpuid(const CpuidConfig& config, std::uint32_t apic_id) {
  constexpr std::uint32_t kExtendedTopology = 0xb;
  constexpr std::uint32_t kExtendedTopologyV2 = 0x1f;
  const Topology topology(config.vcpus, apic_id);
  std::vector<kvm_cpuid_entry2> table;
  bool extended_topology = false;
  for (kvm_cpuid_entry2 entry : config.host) {
    // KVM's own signature would be found first.
    if (entry.function >= kHypervisorFirst && entry.function <= kHypervisorLast) continue;
    if (entry.function == kExtendedTopologyV2) continue;
    if (entry.function == kExtendedTopology) {
      extended_topology = true;
      continue;
    }
    topology.apply(entry);
    if (entry.function == 0x1) {
      entry.ecx = (entry.ecx | kHypervisor) & ~kVmx;
      if (config.tsc_deadline_timer) entry.ecx |= kTscDeadline;
      if (!config.apic.x2apic) entry.ecx &= ~kX2apic;
    }
    if (entry.function == 0x80000001) entry.ecx &= ~kSvm;
    table.push_back(entry);
  }
  if (extended_topology) topology.append_extended(table, kExtendedTopology);
  append_hyper_v(table, config);
  return table;
}

const char* missing_hyper_v_feature(std::span<const kvm_cpuid_entry2> hyper_v) {
  const kvm_cpuid_entry2 features = leaf_or_zero(hyper_v, kHvFeatures);
  if ((features.eax & kFeaturesNeeded) != kFeaturesNeeded) {
    return "KVM lacks one of Hyper-V's SynIC, hypercall, VP index and reference counter MSRs";
  }
  if ((features.ebx & kPrivilegesWanted) != kPrivilegesWanted) {
    return "KVM lacks HvPostMessage or HvSignalEvent";
  }
  return nullptr;
}

}  // namespace vmbusd::vmm::kvm
