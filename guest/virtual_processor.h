// A fake virtual processor: what SINT 2 of its SynIC delivers.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "guest/ram.h"

namespace vmbusd::guest {

using Clock = std::chrono::steady_clock;

// Messages may come from any thread and be taken by any. Events are for one thread at a time, which may wait
// for the flags of many channels in turn.
class VirtualProcessor {
 public:
  static constexpr std::uint32_t kEventFlags = 2048;

  struct Message {
    std::uint64_t cookie;  // of AttachClientEvents::host_message
    std::uint32_t type;
    std::vector<std::byte> payload;
  };

  [[nodiscard]] static Result<std::unique_ptr<VirtualProcessor>> create(Ram& ram);

  [[nodiscard]] int interrupt_fd() const { return interrupt_.get(); }
  [[nodiscard]] std::uint64_t message_page_gpa() const { return pages_.gpa(0); }
  [[nodiscard]] std::uint64_t event_page_gpa() const { return pages_.gpa(1); }

  void push_message(Message message);
  // No message will come any more: wakes all who wait.
  void close();
  // The oldest message; empty where none came before `deadline`, or none can come any more.
  [[nodiscard]] std::optional<Message> take_message(Clock::time_point deadline);

  // Takes event flag `flag`; false where it did not come before `deadline`. Flags of other channels that are
  // found on the way are kept for them.
  [[nodiscard]] bool wait_event(std::uint32_t flag, Clock::time_point deadline);
  // How long wait_event() looks at the flags before it sleeps, as KVM does for a processor that halts (200 us
  // at most where nothing else is said). 0, the default: not at all. Its own thread.
  // [linux: Documentation/virt/kvm/halt-polling.rst]
  void poll_for(std::chrono::microseconds time) { poll_time_ = time; }
  // As wait_event() with a deadline that has passed, without a system call.
  [[nodiscard]] bool take_event(std::uint32_t flag);
  // VMBus before 2.4: event flag 0 says that the host half of the interrupt page at `gpa` has bits.
  void use_interrupt_page(std::uint64_t gpa);
  // Eventfd writes so far.
  [[nodiscard]] std::uint64_t interrupts();

 private:
  static constexpr std::size_t kWords = kEventFlags / 32;

  VirtualProcessor(Ram& ram, Pages pages, UniqueFd interrupt)
      : ram_(ram), pages_(std::move(pages)), interrupt_(std::move(interrupt)) {}
  [[nodiscard]] std::uint32_t* event_flags() const;  // guest memory
  void collect_events();
  [[nodiscard]] bool poll_event(std::uint32_t flag, Clock::time_point deadline);

  Ram& ram_;
  Pages pages_;  // message page, event flags page
  UniqueFd interrupt_;

  std::mutex mutex_;  // of the messages
  std::condition_variable message_came_;
  std::deque<Message> messages_;
  bool closed_ = false;

  std::uint32_t* interrupt_page_ = nullptr;
  std::array<std::uint32_t, kWords> latched_{};
  std::uint64_t interrupts_ = 0;
  std::chrono::microseconds poll_time_{0};
};

}  // namespace vmbusd::guest
