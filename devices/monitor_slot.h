// A channel's place in the guest's monitor page, where the guest signals by setting a bit instead of a
// hypercall.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

#include "vmbus/protocol.h"

namespace vmbusd::devices {

// The guest can write the page at any time, so what stands there is a hint: a bit that is set for nothing
// costs a look at the ring, one that is taken away costs the guest its signal. On the channel's worker; other
// channels have the rest of the page.
class MonitorSlot {
 public:
  // `page`: 4096 bytes, guest-controlled, mapped while this is open. `id` < vmbus::kMonitorIds.
  MonitorSlot(std::byte* page, std::uint8_t id, std::uint32_t connection_id)
      : page_(reinterpret_cast<vmbus::MonitorPage*>(page)), id_(id), connection_id_(connection_id) {}

  // Tells the guest what is served here, and how often.
  void open();
  // Takes that back.
  void close();
  // Whether the guest has signalled since the last time.
  [[nodiscard]] bool take();
  // Until the next look: what the guest wants, within bounds.
  [[nodiscard]] std::chrono::nanoseconds interval() const;

  static constexpr std::chrono::nanoseconds kIntervalMin = std::chrono::microseconds(10);
  static constexpr std::chrono::nanoseconds kIntervalDefault = std::chrono::microseconds(100);

 private:
  [[nodiscard]] std::uint32_t group() const { return id_ / vmbus::MonitorPage::kGroupSize; }
  [[nodiscard]] std::uint32_t bit() const { return 1u << (id_ % vmbus::MonitorPage::kGroupSize); }

  vmbus::MonitorPage* page_;  // guest-controlled
  std::uint8_t id_;
  std::uint32_t connection_id_;
};

}  // namespace vmbusd::devices
