#include "guest/virtual_processor.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <memory>

#include "vmbus/protocol.h"

namespace vmbusd::guest {
namespace {

constexpr std::size_t kSintSlotBytes = 256;  // of the event flags page [TLFS: SynIC event flags page]

std::uint32_t take_all(std::uint32_t& flags) {
  const std::atomic_ref<std::uint32_t> shared(flags);
  // acquire: pairs with the host's locked OR behind its ring stores (partition::Partition::set_event_flag).
  return shared.load(std::memory_order_relaxed) == 0 ? 0 : shared.exchange(0, std::memory_order_acq_rel);
}

// Rounded up, so that a wait for less than a millisecond is not a spin.
int milliseconds_until(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 1'000'000));
}

}  // namespace

Result<std::unique_ptr<VirtualProcessor>> VirtualProcessor::create(Ram& ram) {
  UniqueFd interrupt(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!interrupt) return fail_os(errno, "cannot create a VP's interrupt");
  VMBUSD_TRY(Pages pages, ram.take(2));
  return std::unique_ptr<VirtualProcessor>(new VirtualProcessor(ram, std::move(pages), std::move(interrupt)));
}

void VirtualProcessor::push_message(Message message) {
  {
    const std::lock_guard lock(mutex_);
    messages_.push_back(std::move(message));
  }
  message_came_.notify_one();
}

void VirtualProcessor::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  message_came_.notify_all();
}

std::optional<VirtualProcessor::Message> VirtualProcessor::take_message(Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  message_came_.wait_until(lock, deadline, [this] { return !messages_.empty() || closed_; });
  if (messages_.empty()) return std::nullopt;
  Message message = std::move(messages_.front());
  messages_.pop_front();
  return message;
}

bool VirtualProcessor::take_event(std::uint32_t flag) {
  collect_events();
  const std::uint32_t bit = 1u << flag % 32;
  const bool came = (latched_[flag / 32] & bit) != 0;
  latched_[flag / 32] &= ~bit;
  return came;
}

bool VirtualProcessor::wait_event(std::uint32_t flag, Clock::time_point deadline) {
  while (!poll_event(flag, deadline)) {
    pollfd readable = {.fd = interrupt_.get(), .events = POLLIN, .revents = 0};
    const int ready = ::poll(&readable, 1, milliseconds_until(deadline));
    if (ready == 0) return take_event(flag);
    if (ready == 1) (void)interrupts();
  }
  return true;
}

bool VirtualProcessor::poll_event(std::uint32_t flag, Clock::time_point deadline) {
  if (take_event(flag)) return true;
  if (poll_time_ == poll_time_.zero()) return false;
  const Clock::time_point end = std::min(deadline, Clock::now() + poll_time_);
  const std::atomic_ref<std::uint32_t> word(event_flags()[flag / 32]);
  // Any flag of the word ends the poll; whether it was ours, and its acquire, are take_event()'s.
  while (word.load(std::memory_order_relaxed) == 0) {
    if (Clock::now() >= end) return false;
    __builtin_ia32_pause();
  }
  return take_event(flag);
}

std::uint64_t VirtualProcessor::interrupts() {
  std::uint64_t count = 0;
  // Empty where another thread took it, or where none came.
  if (::read(interrupt_.get(), &count, sizeof count) == sizeof count) interrupts_ += count;
  return interrupts_;
}

std::uint32_t* VirtualProcessor::event_flags() const {
  return reinterpret_cast<std::uint32_t*>(pages_.host(1) + vmbus::kMessageSint * kSintSlotBytes);
}

void VirtualProcessor::use_interrupt_page(std::uint64_t gpa) {
  interrupt_page_ = reinterpret_cast<std::uint32_t*>(ram_.host(gpa));
}

void VirtualProcessor::collect_events() {
  std::uint32_t* const flags = event_flags();
  for (std::size_t word = 0; word < kWords; ++word) latched_[word] |= take_all(flags[word]);
  if (interrupt_page_ == nullptr || (latched_[0] & 1) == 0) return;
  latched_[0] &= ~1u;
  for (std::size_t word = 0; word < kWords; ++word) latched_[word] |= take_all(interrupt_page_[word]);
}

}  // namespace vmbusd::guest
