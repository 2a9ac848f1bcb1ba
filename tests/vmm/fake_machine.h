// A machine that does nothing but take notes.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "vmm/hypervisor.h"

namespace vmbusd::vmm {

class FakeVcpu final : public Vcpu {
 public:
  [[nodiscard]] Result<void> set_boot_state(const BootState&) override { return {}; }
  [[nodiscard]] RunExit run() override { return InterruptedExit{}; }
  void complete_hypercall(std::uint16_t status) override { hypercall_status = status; }
  void complete_synic_change() override { ++synic_changes; }
  void kick() override {}

  std::uint16_t hypercall_status = 0;
  int synic_changes = 0;
};

// Thread-safe where Machine is.
class FakeMachine final : public Machine {
 public:
  struct Posted {
    std::uint32_t vp;
    std::uint32_t type;
    std::vector<std::uint8_t> payload;
  };

  explicit FakeMachine(std::uint32_t vcpus) : vcpus_(vcpus), interrupts_(vcpus, -1) {}

  [[nodiscard]] Vcpu& vcpu(std::uint32_t index) override { return vcpus_.at(index); }
  [[nodiscard]] Result<void> set_irq_line(std::uint32_t gsi, bool level) override {
    lines.emplace_back(gsi, level);
    return {};
  }
  [[nodiscard]] Result<void> attach_doorbell(std::uint32_t connection_id, UniqueFd) override {
    const std::lock_guard lock(mutex);
    if (!doorbells.insert(connection_id).second) return fail(Errc::kWrongState, "doorbell is there");
    return {};
  }
  [[nodiscard]] Result<void> detach_doorbell(std::uint32_t connection_id) override {
    const std::lock_guard lock(mutex);
    if (doorbells.erase(connection_id) == 0) return fail(Errc::kWrongState, "no such doorbell");
    return {};
  }
  [[nodiscard]] int sint_interrupt(std::uint32_t vp, std::uint32_t) override { return interrupts_.at(vp); }
  [[nodiscard]] Result<void> signal_event(std::uint32_t, std::uint32_t, std::uint32_t) override { return {}; }
  [[nodiscard]] Result<PostOutcome> post_message(std::uint32_t vp, std::uint32_t, std::uint32_t type,
                                                 std::span<const std::uint8_t> payload) override {
    const std::lock_guard lock(mutex);
    ++attempts;
    changed.notify_all();
    if (slot_busy) return PostOutcome::kBusy;
    posted.push_back({vp, type, {payload.begin(), payload.end()}});
    slot_busy = one_at_a_time;
    return PostOutcome::kPosted;
  }

  std::vector<std::pair<std::uint32_t, bool>> lines;  // set_irq_line's calls

  std::mutex mutex;  // of all below
  std::condition_variable changed;
  std::set<std::uint32_t> doorbells;
  std::deque<Posted> posted;
  int attempts = 0;            // post_message's calls
  bool one_at_a_time = false;  // a post fills the slot
  bool slot_busy = false;

 private:
  std::vector<FakeVcpu> vcpus_;
  std::vector<int> interrupts_;
};

}  // namespace vmbusd::vmm
