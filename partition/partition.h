// A child partition as the daemon holds it: guest memory, VPs and their interrupts.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>

#include "base/fd.h"
#include "base/result.h"
#include "partition/attach_protocol.h"
#include "partition/guest_memory.h"

namespace vmbusd::partition {

inline constexpr std::uint32_t kVmbusSint = 2;  // [TLFS: SynIC; linux: VMBUS_MESSAGE_SINT]
inline constexpr std::uint32_t kEventFlagsPerSint = 2048;

// Changed by the control thread only, while every I/O worker is parked; read by I/O workers.
class Partition {
 public:
  struct Vp {
    UniqueFd interrupt;  // eventfd: raises kVmbusSint on this VP
    std::uint32_t* event_flags =
        nullptr;  // guest-controlled: 2048 bits of kVmbusSint; nullptr while disabled
  };

  explicit Partition(std::uint32_t vp_count) : vp_count_(vp_count) {}

  [[nodiscard]] GuestMemory& memory() { return memory_; }
  [[nodiscard]] const GuestMemory& memory() const { return memory_; }
  [[nodiscard]] std::uint32_t vp_count() const { return vp_count_; }
  [[nodiscard]] Vp& vp(std::uint32_t index) { return vps_.at(index); }

  // Sets the event flag on the VP. Returns the eventfd to write 1 to, or empty where nothing is to be done:
  // the flag was set already (the guest has an interrupt under way), or the VP takes no events now. `vp` <
  // vp_count(), `flag` < kEventFlagsPerSint. Any worker thread. [TLFS: SynIC event flags; reference:
  // hypervisor-backends A.7]
  [[nodiscard]] std::optional<int> set_event_flag(std::uint32_t vp, std::uint32_t flag) {
    Vp& target = vps_[vp];
    if (target.event_flags == nullptr) return std::nullopt;
    // seq_cst (a locked instruction, as any order is on x86): the ring indices stored before are visible to
    // the guest that finds the bit (vmbus_chan_sched).
    const std::uint32_t bit = 1u << (flag % 32);
    const std::uint32_t before = std::atomic_ref<std::uint32_t>(target.event_flags[flag / 32])
                                     .fetch_or(bit, std::memory_order_seq_cst);
    if ((before & bit) != 0 || !target.interrupt) return std::nullopt;
    return target.interrupt.get();
  }

 private:
  GuestMemory memory_;
  std::uint32_t vp_count_;
  std::array<Vp, kMaxVps> vps_;
};

}  // namespace vmbusd::partition
