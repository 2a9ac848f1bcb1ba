// A virtual machine of KVM.
#pragma once

#include <signal.h>

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "vmm/hypervisor.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/kvm_vcpu.h"
#include "vmm/message_slots.h"

namespace vmbusd::vmm::kvm {

// Signals and interrupts stay in the kernel: a doorbell is an eventfd in KVM's table of connections, an
// interrupt an irqfd on the GSI of (VP, SINT 2). Only messages pass through here:
//
//   post_message()  --> slot free: write it, raise the SINT
//                   --> slot busy: end-of-message notification on, pending flag, try again, else kBusy
//   guest's EOM     --> resample eventfd --> event thread --> MachineEvents::message_slot_free() -->
//   post_message()
//
// KVM notifies at each end-of-interrupt of the SINT's vector too, so while the notification is on, every
// channel interrupt of that VP would wake the event thread. It is therefore attached when a message first
// finds its slot busy, and detached when kIdleNotificationsMax came without a message waiting. [linux:
// arch/x86/kvm/hyperv.c, kvm_hv_synic_send_eoi; reference: hypervisor-backends A.5]
class KvmMachine final : public Machine {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Machine>> create(int kvm, std::size_t run_size,
                                                               const CpuidConfig& cpuid,
                                                               const MachineConfig& config,
                                                               MachineEvents& events);
  ~KvmMachine() override;

  [[nodiscard]] Vcpu& vcpu(std::uint32_t index) override { return *vcpus_.at(index); }
  [[nodiscard]] Result<void> set_irq_line(std::uint32_t gsi, bool level) override;
  [[nodiscard]] Result<void> attach_doorbell(std::uint32_t connection_id, UniqueFd eventfd) override;
  [[nodiscard]] Result<void> detach_doorbell(std::uint32_t connection_id) override;
  [[nodiscard]] int sint_interrupt(std::uint32_t vp, std::uint32_t sint) override;
  [[nodiscard]] Result<void> signal_event(std::uint32_t vp, std::uint32_t sint, std::uint32_t flag) override;
  [[nodiscard]] Result<PostOutcome> post_message(std::uint32_t vp, std::uint32_t sint, std::uint32_t type,
                                                 std::span<const std::uint8_t> payload) override;

  // For KvmVcpu, on the thread of the VP's vCPU.
  [[nodiscard]] bool is_page(std::uint64_t gpa) const;
  void change_synic(std::uint32_t vp, const SynicState& state);

  // Interrupts KVM_RUN; has a handler that does nothing.
  static constexpr int kKickSignal = SIGUSR1;
  static constexpr std::uint32_t kIdleNotificationsMax = 64;

 private:
  // What belongs to (VP, kVmbusSint).
  struct Sint {
    UniqueFd interrupt;  // eventfd, an irqfd of the GSI
    UniqueFd eom_irqfd;  // eventfd that nobody writes: KVM ties a resample eventfd to an irqfd
    UniqueFd eom;        // the resample eventfd

    std::mutex mutex;  // of all below
    SynicState state;
    MessageSlots slots;
    bool eom_attached = false;
    bool message_waits = false;
    std::uint32_t idle_notifications = 0;
  };

  KvmMachine(const MachineConfig& config, MachineEvents& events) : ram_(*config.ram), events_(events) {}

  [[nodiscard]] Result<void> build(int kvm, std::size_t run_size, const CpuidConfig& cpuid,
                                   const MachineConfig& config);
  [[nodiscard]] Result<void> map_memory();
  [[nodiscard]] Result<void> create_vcpus(std::size_t run_size, const CpuidConfig& cpuid,
                                          std::uint32_t count);
  [[nodiscard]] Result<void> route_interrupts(std::uint32_t vcpus);
  [[nodiscard]] Result<void> create_sints(std::uint32_t vcpus);
  [[nodiscard]] Result<void> set_eom_notification(std::uint32_t vp, bool attached);
  void run_event_thread();
  void end_of_message(std::uint32_t vp);

  const GuestRam& ram_;
  MachineEvents& events_;
  UniqueFd vm_;
  std::vector<std::unique_ptr<KvmVcpu>> vcpus_;
  std::array<Sint, kMaxVcpus> sints_;
  UniqueFd epoll_;
  UniqueFd stop_;  // eventfd: ends the event thread
  std::thread event_thread_;
};

}  // namespace vmbusd::vmm::kvm
