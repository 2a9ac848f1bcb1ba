// How long a worker polls in vain before it lets a Pollable sleep.
#pragma once

#include <algorithm>
#include <chrono>

namespace vmbusd::io {

// As with KVM's halt polling, a wake-up that polling would have spared lets the poll time grow, and one that
// came too late for any polling lets it shrink, down to none. [linux:
// Documentation/virt/kvm/halt-polling.rst]
class PollTime {
 public:
  using Duration = std::chrono::nanoseconds;

  // What a wake-up through the kernel takes, so that the time until the sleeper ran is not taken for the time
  // without work. [measured: an eventfd to a sleeper on another CPU of a virtual machine, 27 us]
  static constexpr Duration kWakeUpCost = std::chrono::microseconds(25);
  // It grows from here by doubling; below it, polling is not worth its reading of the clock.
  static constexpr Duration kStep = std::chrono::microseconds(5);

  explicit PollTime(Duration max) : max_(max) {}

  // 0..max.
  [[nodiscard]] Duration now() const { return now_; }
  // A Pollable that slept has work again, `since_work` after it had some last.
  void woke(Duration since_work) {
    if (since_work <= max_ + kWakeUpCost) {
      now_ = std::min(std::max(now_ * 2, kStep), max_);
    } else {
      now_ /= 2;
      if (now_ < kStep) now_ = Duration::zero();
    }
  }

 private:
  Duration max_;
  Duration now_{0};
};

}  // namespace vmbusd::io
