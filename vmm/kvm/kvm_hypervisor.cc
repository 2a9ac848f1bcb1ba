#include "vmm/kvm/kvm_hypervisor.h"

#include <cpuid.h>
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <string>
#include <utility>

#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/ioctl.h"
#include "vmm/kvm/kvm_machine.h"

namespace vmbusd::vmm::kvm {

namespace {

struct Need {
  int capability;
  const char* complaint;
};

// Without these there is no VMBus, so there is no fall-back either.
constexpr std::array kNeeds = {
    Need{KVM_CAP_HYPERV_SYNIC2,
         "KVM lacks the Hyper-V SynIC (KVM_CAP_HYPERV_SYNIC2); it needs a kernel of 4.14 or "
         "later built with CONFIG_KVM_HYPERV"},
    Need{KVM_CAP_HYPERV_EVENTFD, "KVM lacks doorbells for HvSignalEvent (KVM_CAP_HYPERV_EVENTFD)"},
    Need{KVM_CAP_IRQFD_RESAMPLE, "KVM lacks end-of-message notification (KVM_CAP_IRQFD_RESAMPLE)"},
    Need{KVM_CAP_HYPERV_VP_INDEX, "KVM lacks the Hyper-V VP index (KVM_CAP_HYPERV_VP_INDEX)"},
    Need{KVM_CAP_USER_MEMORY, "KVM lacks KVM_CAP_USER_MEMORY"},
    Need{KVM_CAP_IMMEDIATE_EXIT, "KVM lacks KVM_CAP_IMMEDIATE_EXIT"},
    Need{KVM_CAP_SYS_HYPERV_CPUID, "KVM lacks KVM_CAP_SYS_HYPERV_CPUID (kernel 5.11)"},
};

// A boolean parameter of a kernel module; false where the module is not loaded.
bool module_parameter(const char* path) {
  std::string value;
  std::ifstream(path) >> value;
  return value == "Y" || value == "1";
}

ApicOffer probe_apic() {
  // Intel's processors virtualize both modes or none, AMD's x2APIC came later: CPUID 0x8000000a, EDX bit 18.
  const bool apicv = module_parameter("/sys/module/kvm_intel/parameters/enable_apicv");
  const bool avic = module_parameter("/sys/module/kvm_amd/parameters/avic");
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  const bool x2avic = avic && ::__get_cpuid(0x8000000a, &eax, &ebx, &ecx, &edx) != 0 && (edx & 1u << 18) != 0;
  return choose_apic(apicv || avic, apicv || x2avic);
}

// `request` fills a kvm_cpuid2, whose number of entries must be guessed.
Result<std::vector<kvm_cpuid_entry2>> read_cpuid(int fd, unsigned long request) {
  constexpr std::size_t kEntriesMax = 256;  // KVM's own bound
  Table<kvm_cpuid_entry2> table(kEntriesMax);
  if (retry_ioctl(fd, table_request(request), table.data()) < 0)
    return fail_os(errno, "cannot read KVM's CPUID leaves");
  return table.entries();
}

}  // namespace

Result<std::unique_ptr<Hypervisor>> KvmHypervisor::open() {
  UniqueFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm) return fail_os(errno, "cannot open /dev/kvm");
  std::unique_ptr<KvmHypervisor> hypervisor(new KvmHypervisor(std::move(kvm)));
  VMBUSD_CHECK(hypervisor->probe());
  return hypervisor;
}

Result<void> KvmHypervisor::probe() {
  const int fd = kvm_.get();
  if (retry_ioctl(fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
    return fail(Errc::kUnsupported, "/dev/kvm speaks another version of its interface");
  }
  for (const Need& need : kNeeds) {
    if (retry_ioctl(fd, KVM_CHECK_EXTENSION, need.capability) <= 0)
      return fail(Errc::kUnsupported, need.complaint);
  }
  tsc_deadline_timer_ = retry_ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
  apic_ = probe_apic();
  const int run_size = retry_ioctl(fd, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (run_size < 0) return fail_os(errno, "cannot ask KVM for the size of a vCPU's shared area");
  run_size_ = static_cast<std::size_t>(run_size);
  VMBUSD_TRY(host_cpuid_, read_cpuid(fd, KVM_GET_SUPPORTED_CPUID));
  VMBUSD_TRY(hyper_v_cpuid_, read_cpuid(fd, KVM_GET_SUPPORTED_HV_CPUID));
  if (const char* const missing = missing_hyper_v_feature(hyper_v_cpuid_); missing != nullptr) {
    return fail(Errc::kUnsupported, missing);
  }
  return {};
}

std::uint32_t KvmHypervisor::physical_address_bits() const {
  for (const kvm_cpuid_entry2& entry : host_cpuid_) {
    if (entry.function == 0x80000008) return entry.eax & 0xff;
  }
  return 36;  // what processors without that leaf have
}

Result<std::unique_ptr<Machine>> KvmHypervisor::create_machine(const MachineConfig& config,
                                                               MachineEvents& events) {
  const CpuidConfig cpuid{
      .host = host_cpuid_,
      .hyper_v = hyper_v_cpuid_,
      .vcpus = config.vcpus,
      .tsc_deadline_timer = tsc_deadline_timer_,
      .apic = apic_,
  };
  return KvmMachine::create(kvm_.get(), run_size_, cpuid, config, events);
}

}  // namespace vmbusd::vmm::kvm
