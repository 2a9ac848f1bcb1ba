#include "devices/monitor_slot.h"

#include <algorithm>
#include <atomic>

namespace vmbusd::devices {

namespace {

using LatencyUnit = std::chrono::duration<std::int64_t, std::ratio<1, 10'000'000>>;  // 100 ns

}  // namespace

void MonitorSlot::open() {
  constexpr auto kLatency = std::chrono::duration_cast<LatencyUnit>(kIntervalDefault).count();
  std::atomic_ref(page_->parameters[id_].connection_id).store(connection_id_, std::memory_order_relaxed);
  std::atomic_ref(page_->parameters[id_].flag).store(0, std::memory_order_relaxed);
  std::atomic_ref(page_->latency[id_]).store(kLatency, std::memory_order_relaxed);
  // No guest is known to look at it before it sets its bit, so nothing has to come before anything.
  std::atomic_ref(page_->enabled).fetch_or(1u << group(), std::memory_order_relaxed);
}

void MonitorSlot::close() {
  std::atomic_ref(page_->triggers[group()].pending).fetch_and(~bit(), std::memory_order_relaxed);
  std::atomic_ref(page_->parameters[id_].connection_id).store(0, std::memory_order_relaxed);
}

bool MonitorSlot::take() {
  const std::atomic_ref pending(page_->triggers[group()].pending);
  // Without writing where there is nothing: the guest's other signals are in this cache line.
  if ((pending.load(std::memory_order_relaxed) & bit()) == 0) return false;
  // acq_rel: the ring is looked at behind it, so a packet that was stored before the bit (vmbus_setevent) is
  // seen now, and one that is stored later sets the bit anew.
  return (pending.fetch_and(~bit(), std::memory_order_acq_rel) & bit()) != 0;
}

std::chrono::nanoseconds MonitorSlot::interval() const {
  // At most 6.6 ms: the field has 16 bits.
  const std::uint16_t latency = std::atomic_ref(page_->latency[id_]).load(std::memory_order_relaxed);
  return std::max<std::chrono::nanoseconds>(LatencyUnit(latency), kIntervalMin);
}

}  // namespace vmbusd::devices
