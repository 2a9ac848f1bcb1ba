#include "vmm/kvm/kvm_machine.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/assert.h"
#include "vmm/hypercall.h"
#include "vmm/kvm/ioctl.h"
#include "vmm/memory_map.h"

namespace vmbusd::vmm::kvm {

namespace {

// Three pages for real mode on processors that cannot run it as a guest, inside the MMIO hole.
constexpr std::uint64_t kIdentityMapGpa = 0xfffbc000;
constexpr std::uint64_t kTssGpa = kIdentityMapGpa + 0x1000;

constexpr std::uint64_t kStopTag = ~std::uint64_t{0};  // epoll data of stop_; the others are VP numbers

// KVM keeps one GSI for each (VP, SINT); these lie behind the I/O APIC's.
constexpr std::uint32_t sint_gsi(std::uint32_t vp) {
  return kIoApicPins + vp;
}

Result<UniqueFd> make_eventfd() {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd) return fail_os(errno, "cannot create an eventfd");
  return fd;
}

void write_eventfd(int fd) {
  const std::uint64_t one = 1;
  // Fails only where the counter is full, and then it is signalled anyway.
  (void)!::write(fd, &one, sizeof one);
}

void ignore_signal(int) {}

}  // namespace

Result<std::unique_ptr<Machine>> KvmMachine::create(int kvm, std::size_t run_size, const CpuidConfig& cpuid,
                                                    const MachineConfig& config, MachineEvents& events) {
  VMBUSD_ASSERT(config.vcpus >= 1 && config.vcpus <= kMaxVcpus && config.ram != nullptr);
  std::unique_ptr<KvmMachine> machine(new KvmMachine(config, events));
  VMBUSD_CHECK(machine->build(kvm, run_size, cpuid, config));
  return machine;
}

KvmMachine::~KvmMachine() {
  if (!event_thread_.joinable()) return;
  write_eventfd(stop_.get());
  event_thread_.join();
}

Result<void> KvmMachine::build(int kvm, std::size_t run_size, const CpuidConfig& cpuid,
                               const MachineConfig& config) {
  struct sigaction action {};
  action.sa_handler = ignore_signal;
  if (::sigaction(kKickSignal, &action, nullptr) != 0) return fail_os(errno, "cannot set a signal's handler");

  vm_.reset(retry_ioctl(kvm, KVM_CREATE_VM, 0));
  if (!vm_) return fail_os(errno, "cannot create a virtual machine");
  if (retry_ioctl(vm_.get(), KVM_SET_IDENTITY_MAP_ADDR, &kIdentityMapGpa) < 0 ||
      retry_ioctl(vm_.get(), KVM_SET_TSS_ADDR, kTssGpa) < 0) {
    return fail_os(errno, "cannot place KVM's real mode pages");
  }
  if (retry_ioctl(vm_.get(), KVM_CREATE_IRQCHIP, 0) < 0) {
    return fail_os(errno, "cannot create the interrupt controllers");
  }
  kvm_pit_config pit{};
  pit.flags = KVM_PIT_SPEAKER_DUMMY;  // port 0x61, which kernels use to calibrate
  if (retry_ioctl(vm_.get(), KVM_CREATE_PIT2, &pit) < 0)
    return fail_os(errno, "cannot create the interval timer");
  VMBUSD_CHECK(map_memory());
  VMBUSD_CHECK(create_vcpus(run_size, cpuid, config.vcpus));
  // Behind the vCPUs: KVM takes routes to active SynICs only.
  VMBUSD_CHECK(route_interrupts(config.vcpus));
  VMBUSD_CHECK(create_sints(config.vcpus));
  event_thread_ = std::thread([this] { run_event_thread(); });
  return {};
}

Result<void> KvmMachine::map_memory() {
  std::uint32_t slot = 0;
  for (const GuestRam::Region& region : ram_.regions()) {
    kvm_userspace_memory_region memory{};
    memory.slot = slot++;
    memory.guest_phys_addr = region.gpa;
    memory.memory_size = region.size;
    memory.userspace_addr = reinterpret_cast<std::uint64_t>(region.host);
    if (retry_ioctl(vm_.get(), KVM_SET_USER_MEMORY_REGION, &memory) < 0) {
      return fail_os(errno, "cannot give the guest its memory");
    }
  }
  return {};
}

Result<void> KvmMachine::create_vcpus(std::size_t run_size, const CpuidConfig& cpuid, std::uint32_t count) {
  const bool enforce_cpuid = retry_ioctl(vm_.get(), KVM_CHECK_EXTENSION, KVM_CAP_HYPERV_ENFORCE_CPUID) > 0;
  for (std::uint32_t index = 0; index < count; ++index) {
    // The vCPU's id is its local APIC id. KVM takes the order of creation for the VP index.
    UniqueFd fd(retry_ioctl(vm_.get(), KVM_CREATE_VCPU, index));
    if (!fd) return fail_os(errno, "cannot create a vCPU");
    VMBUSD_TRY(std::unique_ptr<KvmVcpu> vcpu, KvmVcpu::create(*this, index, std::move(fd), run_size));
    VMBUSD_CHECK(vcpu->configure(build_cpuid(cpuid, index), enforce_cpuid));
    vcpus_.push_back(std::move(vcpu));
  }
  return {};
}

Result<void> KvmMachine::route_interrupts(std::uint32_t vcpus) {
  constexpr std::uint32_t kPicPins = 8;
  constexpr std::uint32_t kPics = 2;
  std::vector<kvm_irq_routing_entry> routes;
  // Setting a table replaces KVM's own, so that is in it as well. [linux: arch/x86/kvm/irq_comm.c,
  // default_routing]
  const auto route_to_chip = [&routes](std::uint32_t gsi, std::uint32_t chip, std::uint32_t pin) {
    kvm_irq_routing_entry route{};
    route.gsi = gsi;
    route.type = KVM_IRQ_ROUTING_IRQCHIP;
    route.u.irqchip.irqchip = chip;
    route.u.irqchip.pin = pin;
    routes.push_back(route);
  };
  for (std::uint32_t gsi = 0; gsi < kIoApicPins; ++gsi) {
    if (gsi < kPicPins) route_to_chip(gsi, KVM_IRQCHIP_PIC_MASTER, gsi);
    if (gsi >= kPicPins && gsi < kPics * kPicPins) route_to_chip(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - kPicPins);
    route_to_chip(gsi, KVM_IRQCHIP_IOAPIC, gsi);
  }
  for (std::uint32_t vp = 0; vp < vcpus; ++vp) {
    kvm_irq_routing_entry route{};
    route.gsi = sint_gsi(vp);
    route.type = KVM_IRQ_ROUTING_HV_SINT;
    route.u.hv_sint.vcpu = vp;
    route.u.hv_sint.sint = kVmbusSint;
    routes.push_back(route);
  }
  Table<kvm_irq_routing_entry> table(routes);
  if (retry_ioctl(vm_.get(), table_request(KVM_SET_GSI_ROUTING), table.data()) < 0) {
    return fail_os(errno, "cannot route interrupts to SINTs");
  }
  return {};
}

Result<void> KvmMachine::create_sints(std::uint32_t vcpus) {
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return fail_os(errno, "cannot create an epoll descriptor");
  const auto watch = [this](int fd, std::uint64_t tag) -> Result<void> {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = tag;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
      return fail_os(errno, "cannot watch an eventfd");
    return {};
  };
  VMBUSD_TRY(stop_, make_eventfd());
  VMBUSD_CHECK(watch(stop_.get(), kStopTag));
  for (std::uint32_t vp = 0; vp < vcpus; ++vp) {
    Sint& sint = sints_[vp];
    VMBUSD_TRY(sint.interrupt, make_eventfd());
    VMBUSD_TRY(sint.eom_irqfd, make_eventfd());
    VMBUSD_TRY(sint.eom, make_eventfd());
    VMBUSD_CHECK(watch(sint.eom.get(), vp));
    kvm_irqfd irqfd{};
    irqfd.fd = static_cast<std::uint32_t>(sint.interrupt.get());
    irqfd.gsi = sint_gsi(vp);
    if (retry_ioctl(vm_.get(), KVM_IRQFD, &irqfd) < 0)
      return fail_os(errno, "cannot attach an interrupt's eventfd");
  }
  return {};
}

Result<void> KvmMachine::set_irq_line(std::uint32_t gsi, bool level) {
  kvm_irq_level line{};
  line.irq = gsi;
  line.level = level ? 1 : 0;
  if (retry_ioctl(vm_.get(), KVM_IRQ_LINE, &line) < 0) return fail_os(errno, "cannot set an interrupt line");
  return {};
}

Result<void> KvmMachine::attach_doorbell(std::uint32_t connection_id, UniqueFd eventfd) {
  if ((connection_id & ~kConnectionIdMask) != 0)
    return fail(Errc::kProtocol, "connection id has more than 24 bits");
  kvm_hyperv_eventfd doorbell{};
  doorbell.conn_id = connection_id;
  doorbell.fd = eventfd.get();
  if (retry_ioctl(vm_.get(), KVM_HYPERV_EVENTFD, &doorbell) < 0) {
    if (errno == EEXIST) return fail(Errc::kWrongState, "connection id has a doorbell already");
    return fail_os(errno, "cannot attach a doorbell");
  }
  return {};  // KVM holds the eventfd itself; the descriptor is not needed any more
}

Result<void> KvmMachine::detach_doorbell(std::uint32_t connection_id) {
  if ((connection_id & ~kConnectionIdMask) != 0)
    return fail(Errc::kProtocol, "connection id has more than 24 bits");
  kvm_hyperv_eventfd doorbell{};
  doorbell.conn_id = connection_id;
  doorbell.fd = -1;
  doorbell.flags = KVM_HYPERV_EVENTFD_DEASSIGN;
  if (retry_ioctl(vm_.get(), KVM_HYPERV_EVENTFD, &doorbell) < 0) {
    if (errno == ENOENT) return fail(Errc::kWrongState, "connection id has no doorbell");
    return fail_os(errno, "cannot detach a doorbell");
  }
  return {};
}

int KvmMachine::sint_interrupt(std::uint32_t vp, std::uint32_t sint) {
  VMBUSD_ASSERT(vp < vcpus_.size() && sint == kVmbusSint);
  return sints_[vp].interrupt.get();
}

Result<void> KvmMachine::signal_event(std::uint32_t, std::uint32_t, std::uint32_t) {
  return fail(Errc::kUnsupported, "event flags are in guest memory");
}

Result<PostOutcome> KvmMachine::post_message(std::uint32_t vp, std::uint32_t sint, std::uint32_t type,
                                             std::span<const std::uint8_t> payload) {
  if (vp >= vcpus_.size() || sint != kVmbusSint) return fail(Errc::kProtocol, "no such VP or SINT");
  if (type == kMessageTypeNone || payload.size() > kMessagePayloadMax) {
    return fail(Errc::kProtocol, "message's type or size is none that the guest could receive");
  }
  Sint& target = sints_[vp];
  const std::lock_guard lock(target.mutex);
  bool posted = target.slots.post(sint, type, payload);
  if (!posted && target.slots.page() != nullptr) {
    // First listen for the end of the message, then ask for it.
    if (!target.eom_attached) VMBUSD_CHECK(set_eom_notification(vp, true));
    posted = target.slots.post_or_mark_pending(sint, type, payload);
  }
  target.message_waits = !posted;
  target.idle_notifications = 0;
  if (!posted) return PostOutcome::kBusy;
  write_eventfd(target.interrupt.get());
  return PostOutcome::kPosted;
}

bool KvmMachine::is_page(std::uint64_t gpa) const {
  return !ram_.at(gpa, kMessagePageSize).empty();
}

void KvmMachine::change_synic(std::uint32_t vp, const SynicState& state) {
  Sint& sint = sints_[vp];
  const std::lock_guard lock(sint.mutex);
  // The registers overlay guest memory with pages of the hypervisor's, empty at first. KVM leaves it to us to
  // make guest memory look so; with a stale slot in a new page no message would ever be delivered.
  // [reference: hypervisor-backends A.6]
  const auto overlay = [this](bool was, std::uint64_t old_gpa, bool is, std::uint64_t new_gpa) {
    if (!is || (was && old_gpa == new_gpa)) return;
    std::byte* const to = ram_.at(new_gpa, kMessagePageSize).data();
    if (was) {
      std::memcpy(to, ram_.at(old_gpa, kMessagePageSize).data(), kMessagePageSize);
    } else {
      std::memset(to, 0, kMessagePageSize);
    }
  };
  overlay(sint.state.has_message_page, sint.state.message_page_gpa, state.has_message_page,
          state.message_page_gpa);
  overlay(sint.state.has_event_page, sint.state.event_page_gpa, state.has_event_page, state.event_page_gpa);
  sint.state = state;
  const bool deliverable = state.enabled && state.has_message_page;
  sint.slots.set_page(deliverable ? ram_.at(state.message_page_gpa, kMessagePageSize).data() : nullptr);
}

Result<void> KvmMachine::set_eom_notification(std::uint32_t vp, bool attached) {
  Sint& sint = sints_[vp];
  kvm_irqfd irqfd{};
  irqfd.fd = static_cast<std::uint32_t>(sint.eom_irqfd.get());
  irqfd.gsi = sint_gsi(vp);
  irqfd.flags = attached ? KVM_IRQFD_FLAG_RESAMPLE : KVM_IRQFD_FLAG_DEASSIGN;
  irqfd.resamplefd = static_cast<std::uint32_t>(sint.eom.get());
  if (retry_ioctl(vm_.get(), KVM_IRQFD, &irqfd) < 0) {
    return fail_os(errno, "cannot attach or detach the end-of-message notification");
  }
  sint.eom_attached = attached;
  return {};
}

void KvmMachine::run_event_thread() {
  (void)::pthread_setname_np(::pthread_self(), "kvm-events");
  for (;;) {
    std::array<epoll_event, kMaxVcpus> events{};
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), -1);
    for (int i = 0; i < count; ++i) {
      const std::uint64_t tag = events[static_cast<std::size_t>(i)].data.u64;
      if (tag == kStopTag) return;
      end_of_message(static_cast<std::uint32_t>(tag));
    }
  }
}

void KvmMachine::end_of_message(std::uint32_t vp) {
  Sint& sint = sints_[vp];
  std::uint64_t count = 0;
  (void)!::read(sint.eom.get(), &count, sizeof count);
  {
    const std::lock_guard lock(sint.mutex);
    if (!sint.message_waits) {
      if (++sint.idle_notifications < kIdleNotificationsMax || !sint.eom_attached) return;
      sint.idle_notifications = 0;
      (void)set_eom_notification(vp, false);  // where it stays attached it only costs time
      return;
    }
  }
  events_.message_slot_free(vp, kVmbusSint);
}

}  // namespace vmbusd::vmm::kvm
