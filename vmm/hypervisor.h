// The seam between the VMM proper (loader, ACPI, devices, attach half) and the hypervisor under it. vmm/kvm/
// is the first back end; one for /dev/mshv fits behind the same classes: there the event flag pages are the
// hypervisor's own (signal_event instead of sint_interrupt) and the message slots too (post_message is a
// hypercall, the notification an exit). [reference: hypervisor-backends B.7]
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>

#include "base/fd.h"
#include "base/result.h"
#include "vmm/guest_ram.h"

namespace vmbusd::vmm {

// What is tested; ACPI's MADT and the attach protocol would take more.
inline constexpr std::uint32_t kMaxVcpus = 16;
// VMBus uses this SINT for its messages and its event flags. [TLFS: SynIC; linux: VMBUS_MESSAGE_SINT]
inline constexpr std::uint32_t kVmbusSint = 2;

// The state in which the boot processor enters the kernel: 64-bit mode, paging on, flat segments, interrupts
// off.
struct BootState {
  std::uint64_t rip;
  std::uint64_t rsi;  // the zero page
  std::uint64_t cr3;
  std::uint64_t gdt_gpa;
  std::uint16_t gdt_limit;
  std::uint16_t code_selector;
  std::uint16_t data_selector;
};

// A VP's SynIC registers as far as the daemon cares.
struct SynicState {
  bool enabled = false;  // SCONTROL bit 0
  bool has_message_page = false;
  bool has_event_page = false;
  std::uint64_t message_page_gpa = 0;  // page aligned; valid with has_message_page
  std::uint64_t event_page_gpa = 0;    // the same

  friend bool operator==(const SynicState&, const SynicState&) = default;
};

// Why Vcpu::run() came back. Spans point into the vCPU and are valid until its next run(); what a read exit's
// span holds then is what the guest reads.
struct PortExit {
  std::uint16_t port;
  std::uint8_t size;  // of one access: 1, 2 or 4 bytes; string instructions bring several in `data`
  bool write;
  std::span<std::uint8_t> data;
};
struct MmioExit {
  std::uint64_t gpa;
  bool write;
  std::span<std::uint8_t> data;
};
// A hypercall that the hypervisor leaves to the VMM. Vcpu::complete_hypercall() must be called before the
// next run().
struct HypercallExit {
  std::uint64_t control;
  std::uint64_t input;  // GPA of the input block, or the input itself with the fast bit
};
// The guest wrote a SynIC register. Whoever uses the old pages lets go of them, then
// Vcpu::complete_synic_change() is called, then the new ones are made known, all before the next run().
struct SynicExit {
  SynicState state;
};
struct CrashExit {  // the guest wrote its crash registers; it goes on running
  std::array<std::uint64_t, 5> parameters;
  std::uint64_t control;
};
struct ResetExit {};        // the guest asked the hypervisor for a reset
struct TripleFaultExit {};  // the guest cannot go on
struct InterruptedExit {};  // Vcpu::kick(), or nothing to do
struct FailedExit {         // the hypervisor cannot run the vCPU
  std::string reason;
};
using RunExit = std::variant<PortExit, MmioExit, HypercallExit, SynicExit, CrashExit, ResetExit,
                             TripleFaultExit, InterruptedExit, FailedExit>;

// One virtual processor. All but kick() belong to the thread that runs it.
class Vcpu {
 public:
  virtual ~Vcpu() = default;

  // Only for VP 0, before its first run(). The others wait for INIT and SIPI.
  [[nodiscard]] virtual Result<void> set_boot_state(const BootState& state) = 0;
  [[nodiscard]] virtual RunExit run() = 0;
  // `status` is an HV_STATUS code.
  virtual void complete_hypercall(std::uint16_t status) = 0;
  // Puts the pages of the last SynicExit in place: new ones zero, moved ones with what they held.
  virtual void complete_synic_change() = 0;
  // Makes run() return InterruptedExit soon, or at once where it is called later. Any thread.
  virtual void kick() = 0;
};

// What a machine tells the VMM, on a thread of its own. The machine's destructor waits for a call under way.
class MachineEvents {
 public:
  // The slot that Machine::post_message() found busy is perhaps free now: post again.
  virtual void message_slot_free(std::uint32_t vp, std::uint32_t sint) = 0;

 protected:
  ~MachineEvents() = default;
};

enum class PostOutcome : std::uint8_t {
  kPosted,
  kBusy,  // the slot is taken or the guest has no message page; message_slot_free() or a SynicExit will tell
};

// One virtual machine, from its reset to the next: a reboot makes a new one over the same memory. Thread-safe
// but for what Vcpu says. All vCPU threads have left Vcpu::run() for good when it is destroyed.
class Machine {
 public:
  virtual ~Machine() = default;

  [[nodiscard]] virtual Vcpu& vcpu(std::uint32_t index) = 0;
  // `gsi` is an I/O APIC input, 0..23.
  [[nodiscard]] virtual Result<void> set_irq_line(std::uint32_t gsi, bool level) = 0;

  // HvSignalEvent on `connection_id` (24 bits) writes `eventfd` from now on. Errc::kWrongState where one is
  // attached.
  [[nodiscard]] virtual Result<void> attach_doorbell(std::uint32_t connection_id, UniqueFd eventfd) = 0;
  [[nodiscard]] virtual Result<void> detach_doorbell(std::uint32_t connection_id) = 0;

  // The eventfd that raises (vp, sint) when written; the machine's own. -1 where interrupts come with
  // signal_event().
  [[nodiscard]] virtual int sint_interrupt(std::uint32_t vp, std::uint32_t sint) = 0;
  // Sets an event flag and raises the SINT. Errc::kUnsupported where event flag pages are guest memory.
  [[nodiscard]] virtual Result<void> signal_event(std::uint32_t vp, std::uint32_t sint,
                                                  std::uint32_t flag) = 0;
  // Puts a message (at most 240 bytes) into the VP's slot for the SINT and raises it. Does not block.
  [[nodiscard]] virtual Result<PostOutcome> post_message(std::uint32_t vp, std::uint32_t sint,
                                                         std::uint32_t type,
                                                         std::span<const std::uint8_t> payload) = 0;
};

struct MachineConfig {
  std::uint32_t vcpus = 1;        // 1..kMaxVcpus
  const GuestRam* ram = nullptr;  // outlives the machine
};

class Hypervisor {
 public:
  virtual ~Hypervisor() = default;

  // Physical address bits that guests have; memory and MMIO must lie below.
  [[nodiscard]] virtual std::uint32_t physical_address_bits() const = 0;
  // False where Machine::sint_interrupt() is of no use and signal_event() is the way.
  [[nodiscard]] virtual bool event_flags_in_guest_memory() const = 0;
  [[nodiscard]] virtual Result<std::unique_ptr<Machine>> create_machine(const MachineConfig& config,
                                                                        MachineEvents& events) = 0;
};

}  // namespace vmbusd::vmm
