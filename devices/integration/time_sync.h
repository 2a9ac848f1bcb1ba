// Time synchronisation: sets the guest's clock when its driver comes, and tells it the time from then on.
#pragma once

#include <array>
#include <chrono>
#include <functional>

#include "devices/integration/component.h"

namespace vmbusd::integration {

// Version 4.0 says at which value of the guest's reference counter the time was read; only the VMM knows
// that counter. Up to 3.0 the guest takes a time for that of its arrival, which is late by the delivery.
// [linux: hv_util.c, timesync_onchannelcallback]
class TimeSync final : public Component {
 public:
  static constexpr std::chrono::seconds kInterval{5};
  // The host's clock was set, or the host slept, where it and the steady clock have come apart by so much.
  static constexpr std::chrono::seconds kStep{1};
  static constexpr std::array<Version, 2> kVersions = {{{1, 0}, {3, 0}}};
  static const Kind kKind;

  using WallClock = std::chrono::system_clock;
  TimeSync(StatusBoard&, LogScope& log, std::function<WallClock::time_point()> wall_clock = WallClock::now)
      : log_(log), wall_clock_(std::move(wall_clock)) {}

  void ready(Version version, TimePoint now) override;
  void tick(TimePoint) override {}
  [[nodiscard]] std::span<const std::byte> next(TimePoint now) override;
  void answered(std::uint32_t, std::span<const std::byte>, TimePoint now) override {
    next_ = now + kInterval;
  }
  [[nodiscard]] TimePoint due() const override { return next_; }
  void closed() override {}

 private:
  LogScope& log_;
  std::function<WallClock::time_point()> wall_clock_;
  TimeSyncBody body_{};
  TimePoint next_ = kNever;
  bool set_ = false;                  // the guest's clock was set
  WallClock::duration difference_{};  // of the host's clocks, when it was
};

}  // namespace vmbusd::integration
