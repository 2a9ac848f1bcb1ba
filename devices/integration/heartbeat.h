// Heartbeat: whether the guest's kernel answers.
#pragma once

#include <array>
#include <chrono>

#include "devices/integration/component.h"

namespace vmbusd::integration {

class Heartbeat final : public Component {
 public:
  static constexpr std::chrono::seconds kInterval{2};  // Hyper-V's
  static constexpr std::chrono::seconds kLostAfter{10};
  static constexpr std::array<Version, 2> kVersions = {{{1, 0}, {3, 0}}};
  static const Kind kKind;

  Heartbeat(StatusBoard& board, LogScope& log) : board_(board), log_(log) {}

  void ready(Version version, TimePoint now) override;
  void tick(TimePoint now) override;
  [[nodiscard]] std::span<const std::byte> next(TimePoint now) override;
  void answered(std::uint32_t status, std::span<const std::byte> body, TimePoint now) override;
  [[nodiscard]] TimePoint due() const override;
  void closed() override;

  // What a guest that last answered then is taken for now.
  [[nodiscard]] static Health health(const Status& status, TimePoint now);

 private:
  StatusBoard& board_;
  LogScope& log_;
  HeartbeatBody body_{};
  TimePoint next_ = kNever;
  TimePoint lost_at_ = kNever;  // where no answer comes before
  bool lost_ = false;
};

}  // namespace vmbusd::integration
