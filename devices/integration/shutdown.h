// Shutdown: has the guest power itself off, restart or hibernate.
#pragma once

#include <array>
#include <chrono>
#include <optional>

#include "devices/integration/component.h"

namespace vmbusd::integration {

enum class ShutdownAction : std::uint8_t { kPowerOff, kReboot, kHibernate };

class Shutdown final : public Component {
 public:
  // That a guest which is well says whether it will; what it then does takes as long as it takes.
  static constexpr std::chrono::seconds kAnswerTime{10};
  static constexpr std::array<Version, 4> kVersions = {{{1, 0}, {3, 0}, {3, 1}, {3, 2}}};
  static const Kind kKind;

  Shutdown(StatusBoard&, LogScope& log) : log_(log) {}

  // One at a time. `done` is called when the guest has said that it will, or that it will not.
  void request(ShutdownAction action, TimePoint now, Done done);

  void ready(Version version, TimePoint now) override;
  void tick(TimePoint now) override;
  [[nodiscard]] std::span<const std::byte> next(TimePoint now) override;
  void answered(std::uint32_t status, std::span<const std::byte> body, TimePoint now) override;
  [[nodiscard]] TimePoint due() const override { return done_ ? answer_by_ : kNever; }
  void closed() override;

 private:
  void finish(std::string problem);

  LogScope& log_;
  std::optional<Version> version_;  // once it is ready
  ShutdownBody body_{};
  bool waiting_ = false;  // to be asked
  Done done_;             // of the request under way
  TimePoint answer_by_ = kNever;
};

}  // namespace vmbusd::integration
