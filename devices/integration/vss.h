// Freeze and thaw: the guest's file systems, for a snapshot of its disks that is consistent.
#pragma once

#include <array>
#include <chrono>
#include <optional>

#include "devices/integration/component.h"

namespace vmbusd::integration {

// Whatever happens between, a thaw follows a freeze: when it is asked for, when its time is over, when the
// worker process died, or when the freeze has failed, for what it may have frozen. One question at a time, so
// a guest that is still freezing is thawed once it has answered.
//
//   kThawed -- freeze() --> kFreezing: check, freeze --> kFrozen -- thaw(), time --> kThawing: thaw, complete
//      ^                                                                                 |
//      +---------------------------------------------------------------------------------+
class Vss final : public Component {
 public:
  static constexpr std::chrono::seconds kAnswerTime{10};
  static constexpr std::chrono::seconds kThawAgain{5};  // after a guest refused to thaw
  // Linux thaws by itself after 15 minutes. [linux: hv_snapshot.c, VSS_FREEZE_TIMEOUT]
  static constexpr std::chrono::seconds kFreezeTimeMax{600};
  static constexpr std::array<Version, 1> kVersions = {{{5, 0}}};
  static const Kind kKind;

  Vss(StatusBoard& board, LogScope& log) : board_(board), log_(log) {}

  // `done` is called when all is frozen, or will not be. The guest is thawed after `time`, 1 s to
  // kFreezeTimeMax from now, if not before.
  void freeze(std::chrono::seconds time, TimePoint now, Done done);
  // `done` is called when all is thawed. Where nothing is frozen that is an answer, too: what was copied is
  // not consistent.
  void thaw(TimePoint now, Done done);

  void keep(std::span<std::byte> memory, bool recovered) override;
  void ready(Version, TimePoint now) override;
  void tick(TimePoint now) override;
  [[nodiscard]] std::span<const std::byte> next(TimePoint now) override;
  void answered(std::uint32_t status, std::span<const std::byte> body, TimePoint now) override;
  [[nodiscard]] TimePoint due() const override;
  void closed() override;

 private:
  using Step = std::optional<VssOperation>;

  void enter(FreezeState state);
  void keep_frozen(bool frozen);
  void begin_thaw(TimePoint now);
  void end_freeze(std::string problem);
  void end_thaw(std::string problem);

  StatusBoard& board_;
  LogScope& log_;
  bool ready_ = false;
  std::span<std::byte> kept_;  // the first byte says whether the guest may be frozen
  bool left_frozen_ = false;   // by a worker process that died
  FreezeState state_ = FreezeState::kThawed;
  Step step_;                     // to be asked next
  Step asked_;                    // whose answer is outstanding
  bool froze_ = false;            // the guest said that it has frozen, and not that it has thawed
  bool lapsed_ = false;           // the last freeze ended by its time
  TimePoint thaw_by_ = kNever;    // while it freezes or is frozen
  TimePoint thaw_from_ = kNever;  // not to be asked to thaw before
  TimePoint answer_by_ = kNever;  // to thaw_done_
  Done freeze_done_;
  Done thaw_done_;
  VssBody body_{};
};

}  // namespace vmbusd::integration
