#include "vmm/kvm/kvm_vcpu.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "vmm/hypercall.h"
#include "vmm/kvm/ioctl.h"
#include "vmm/kvm/kvm_machine.h"

namespace vmbusd::vmm::kvm {

namespace {

constexpr std::uint32_t kMsrMtrrDefaultType = 0x2ff;
constexpr std::uint64_t kMtrrEnabledWriteBack = 1u << 11 | 6;
constexpr std::uint32_t kMsrScontrol = 0x40000080;
constexpr std::uint32_t kMsrCrash0 = 0x40000100;
constexpr std::size_t kCrashMsrs = 6;  // P0..P4 and the control register

constexpr std::uint64_t kPageEnabled = 1;  // SIMP, SIEFP and SCONTROL
constexpr std::uint64_t kPageMask = ~std::uint64_t{0xfff};

}  // namespace

Result<std::unique_ptr<KvmVcpu>> KvmVcpu::create(KvmMachine& machine, std::uint32_t index, UniqueFd fd,
                                                 std::size_t run_size) {
  void* const run = ::mmap(nullptr, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (run == MAP_FAILED) return fail_os(errno, "cannot map a vCPU's shared area");
  return std::unique_ptr<KvmVcpu>(new KvmVcpu(machine, index, std::move(fd), run, run_size));
}

KvmVcpu::KvmVcpu(KvmMachine& machine, std::uint32_t index, UniqueFd fd, void* run, std::size_t run_size)
    : machine_(machine),
      index_(index),
      fd_(std::move(fd)),
      run_(static_cast<kvm_run*>(run)),
      run_size_(run_size) {}

KvmVcpu::~KvmVcpu() {
  ::munmap(run_, run_size_);
}

Result<void> KvmVcpu::configure(std::span<const kvm_cpuid_entry2> cpuid, bool enforce_cpuid) {
  Table<kvm_cpuid_entry2> table(cpuid);
  if (retry_ioctl(fd_.get(), table_request(KVM_SET_CPUID2), table.data()) < 0) {
    return fail_os(errno, "cannot set a vCPU's CPUID table");
  }

  kvm_enable_cap synic{};
  synic.cap = KVM_CAP_HYPERV_SYNIC2;
  if (retry_ioctl(fd_.get(), KVM_ENABLE_CAP, &synic) < 0)
    return fail_os(errno, "cannot enable a vCPU's SynIC");
  if (enforce_cpuid) {
    kvm_enable_cap enforce{};
    enforce.cap = KVM_CAP_HYPERV_ENFORCE_CPUID;
    enforce.args[0] = 1;
    if (retry_ioctl(fd_.get(), KVM_ENABLE_CAP, &enforce) < 0) {
      return fail_os(errno, "cannot hold a guest to its Hyper-V privileges");
    }
  }

  // KVM starts SCONTROL at 0, the Microsoft hypervisor at 1, and some guests rely on that.
  // [reference: hypervisor-backends A.2]
  constexpr std::array<kvm_msr_entry, 2> kFirst = {{
      {kMsrScontrol, 0, kPageEnabled},
      {kMsrMtrrDefaultType, 0, kMtrrEnabledWriteBack},
  }};
  Table<kvm_msr_entry> msrs(kFirst);
  if (retry_ioctl(fd_.get(), table_request(KVM_SET_MSRS), msrs.data()) != static_cast<int>(kFirst.size())) {
    return fail_os(errno, "cannot set a vCPU's first MSRs");
  }
  synic_.enabled = true;
  return {};
}

Result<void> KvmVcpu::set_boot_state(const BootState& state) {
  kvm_sregs special{};
  if (retry_ioctl(fd_.get(), KVM_GET_SREGS, &special) < 0)
    return fail_os(errno, "cannot read a vCPU's registers");
  kvm_segment code{};
  code.limit = 0xffffffff;
  code.selector = state.code_selector;
  code.type = 0xb;  // execute, read, accessed
  code.present = 1;
  code.s = 1;
  code.l = 1;
  code.g = 1;
  kvm_segment data = code;
  data.selector = state.data_selector;
  data.type = 0x3;  // read, write, accessed
  data.l = 0;
  data.db = 1;
  special.cs = code;
  special.ds = special.es = special.fs = special.gs = special.ss = data;
  special.gdt.base = state.gdt_gpa;
  special.gdt.limit = state.gdt_limit;
  special.idt.base = 0;
  special.idt.limit = 0;
  special.cr0 = 0x80000033;  // PG, NE, ET, MP, PE
  special.cr3 = state.cr3;
  special.cr4 = 0x20;    // PAE
  special.efer = 0x500;  // LMA, LME
  if (retry_ioctl(fd_.get(), KVM_SET_SREGS, &special) < 0)
    return fail_os(errno, "cannot set a vCPU's registers");

  kvm_regs registers{};
  registers.rip = state.rip;
  registers.rsi = state.rsi;
  registers.rflags = 0x2;
  if (retry_ioctl(fd_.get(), KVM_SET_REGS, &registers) < 0)
    return fail_os(errno, "cannot set a vCPU's registers");
  return {};
}

RunExit KvmVcpu::run() {
  if (!has_thread_.load(std::memory_order_relaxed)) {
    thread_.store(::pthread_self(), std::memory_order_relaxed);
    // seq_cst: pairs with kick(), which sets immediate_exit before it looks for a thread. Either it finds
    // this one to interrupt, or KVM_RUN finds immediate_exit set.
    has_thread_.store(true, std::memory_order_seq_cst);
  }
  if (::ioctl(fd_.get(), KVM_RUN, 0) < 0) {
    if (errno == EINTR || errno == EAGAIN) return InterruptedExit{};
    return failed_exit("KVM_RUN failed, errno", static_cast<std::uint64_t>(errno));
  }
  auto* const shared = reinterpret_cast<std::uint8_t*>(run_);
  switch (run_->exit_reason) {
    case KVM_EXIT_IO:
      return PortExit{
          .port = run_->io.port,
          .size = run_->io.size,
          .write = run_->io.direction == KVM_EXIT_IO_OUT,
          .data = {shared + run_->io.data_offset, std::size_t{run_->io.size} * run_->io.count},
      };
    case KVM_EXIT_MMIO:
      return MmioExit{
          .gpa = run_->mmio.phys_addr,
          .write = run_->mmio.is_write != 0,
          .data = std::span(run_->mmio.data).first(run_->mmio.len),
      };
    case KVM_EXIT_HYPERV:
      return hyper_v_exit();
    case KVM_EXIT_SYSTEM_EVENT:
      return system_event_exit();
    case KVM_EXIT_SHUTDOWN:
      return TripleFaultExit{};
    case KVM_EXIT_INTR:
      return InterruptedExit{};
    case KVM_EXIT_FAIL_ENTRY:
      return failed_exit("the processor refuses to enter the guest, reason",
                         run_->fail_entry.hardware_entry_failure_reason);
    case KVM_EXIT_INTERNAL_ERROR:
      return failed_exit("KVM gave up on the guest, suberror", run_->internal.suberror);
    default:
      return failed_exit("KVM stopped for an unknown reason", run_->exit_reason);
  }
}

RunExit KvmVcpu::hyper_v_exit() {
  const kvm_hyperv_exit& exit = run_->hyperv;
  if (exit.type == KVM_EXIT_HYPERV_HCALL) return HypercallExit{exit.u.hcall.input, exit.u.hcall.params[0]};
  if (exit.type != KVM_EXIT_HYPERV_SYNIC)
    return failed_exit("KVM stopped for an unknown Hyper-V reason", exit.type);
  // The registers as they are after the write.
  synic_ = SynicState{
      .enabled = (exit.u.synic.control & kPageEnabled) != 0,
      .has_message_page = (exit.u.synic.msg_page & kPageEnabled) != 0,
      .has_event_page = (exit.u.synic.evt_page & kPageEnabled) != 0,
      .message_page_gpa = exit.u.synic.msg_page & kPageMask,
      .event_page_gpa = exit.u.synic.evt_page & kPageMask,
  };
  // A page outside of the guest's memory is as good as none.
  synic_.has_message_page = synic_.has_message_page && machine_.is_page(synic_.message_page_gpa);
  synic_.has_event_page = synic_.has_event_page && machine_.is_page(synic_.event_page_gpa);
  return SynicExit{synic_};
}

RunExit KvmVcpu::system_event_exit() {
  switch (run_->system_event.type) {
    case KVM_SYSTEM_EVENT_RESET:
      return ResetExit{};
    case KVM_SYSTEM_EVENT_CRASH: {
      std::array<kvm_msr_entry, kCrashMsrs> wanted{};
      for (std::uint32_t i = 0; i < kCrashMsrs; ++i) wanted[i].index = kMsrCrash0 + i;
      Table<kvm_msr_entry> msrs(wanted);
      (void)retry_ioctl(fd_.get(), table_request(KVM_GET_MSRS),
                        msrs.data());  // what cannot be read is told as 0
      const std::vector<kvm_msr_entry> read = msrs.entries();
      CrashExit crash{};
      for (std::size_t i = 0; i < crash.parameters.size(); ++i) crash.parameters[i] = read[i].data;
      crash.control = read.back().data;
      return crash;
    }
    default:
      return failed_exit("KVM stopped for an unknown system event", run_->system_event.type);
  }
}

FailedExit KvmVcpu::failed_exit(const char* what, std::uint64_t detail) {
  kvm_regs registers{};
  (void)retry_ioctl(fd_.get(), KVM_GET_REGS, &registers);
  return FailedExit{fmt::format("{} {:#x} (RIP {:#x})", what, detail, registers.rip)};
}

void KvmVcpu::complete_hypercall(std::uint16_t status) {
  run_->hyperv.u.hcall.result = status;
}

void KvmVcpu::complete_synic_change() {
  machine_.change_synic(index_, synic_);
}

void KvmVcpu::kick() {
  // Stays set: this vCPU does not run again. seq_cst: see run().
  std::atomic_ref(run_->immediate_exit).store(1, std::memory_order_seq_cst);
  if (has_thread_.load(std::memory_order_seq_cst)) {
    ::pthread_kill(thread_.load(std::memory_order_relaxed), KvmMachine::kKickSignal);
  }
}

}  // namespace vmbusd::vmm::kvm
