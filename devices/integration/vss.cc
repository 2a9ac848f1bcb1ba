#include "devices/integration/vss.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "vmbus/protocol.h"

namespace vmbusd::integration {

namespace {

constexpr const char* kLapsed = "the guest was thawed before: its time was over, or its worker process died";

}  // namespace

const Kind Vss::kKind = {Part::kVss,        "vss",
                         vmbus::kClassVss,  Guid::literal("2450ee40-33bf-4fbd-892e-9fb06e9214cf"),
                         MessageType::kVss, kVersions};

void Vss::keep(std::span<std::byte> memory, bool recovered) {
  kept_ = memory.first(1);
  left_frozen_ = recovered && kept_[0] != std::byte{0};
}

void Vss::ready(Version, TimePoint now) {
  ready_ = true;
  if (!std::exchange(left_frozen_, false)) return;
  froze_ = true;
  lapsed_ = true;
  log_.warning("thawing the guest, which the last worker process left frozen");
  begin_thaw(now);
}

void Vss::keep_frozen(bool frozen) {
  if (!kept_.empty()) kept_[0] = frozen ? std::byte{1} : std::byte{0};
}

void Vss::freeze(std::chrono::seconds time, TimePoint now, Done done) {
  if (!ready_) return done("the guest's driver has not answered yet whether it can freeze");
  if (state_ != FreezeState::kThawed) return done("the guest is frozen already");
  lapsed_ = false;
  step_ = VssOperation::kHotBackup;
  thaw_by_ = now + std::min(time, kFreezeTimeMax);
  freeze_done_ = std::move(done);
  enter(FreezeState::kFreezing);
}

void Vss::thaw(TimePoint now, Done done) {
  if (state_ == FreezeState::kThawed) {
    return done(std::exchange(lapsed_, false) ? kLapsed : "the guest is not frozen");
  }
  if (thaw_done_) return done("the guest is being thawed already");
  thaw_done_ = std::move(done);
  answer_by_ = now + kAnswerTime;
  if (state_ != FreezeState::kThawing) begin_thaw(now);
}

void Vss::begin_thaw(TimePoint now) {
  thaw_by_ = kNever;
  thaw_from_ = now;
  step_ = VssOperation::kThaw;
  enter(FreezeState::kThawing);
  end_freeze("the guest was thawed before it was frozen");
}

void Vss::tick(TimePoint now) {
  if (now >= thaw_by_) {
    lapsed_ = true;
    log_.warning("thawing the guest: its time is over");
    end_freeze("the guest did not freeze in the time that it had");
    begin_thaw(now);
  }
  if (thaw_done_ && now >= answer_by_) {
    end_thaw(fmt::format("the guest does not answer within {} s; it goes on being asked to thaw",
                         kAnswerTime.count()));
  }
}

std::span<const std::byte> Vss::next(TimePoint now) {
  if (!step_ || (step_ == VssOperation::kThaw && now < thaw_from_)) return {};
  asked_ = std::exchange(step_, std::nullopt);
  if (asked_ == VssOperation::kFreeze) keep_frozen(true);
  body_ = {};
  body_.operation = *asked_;
  return wire_bytes(body_);
}

void Vss::answered(std::uint32_t status, std::span<const std::byte>, TimePoint now) {
  const bool good = status == kStatusOk;
  if (!asked_) return;
  switch (*std::exchange(asked_, std::nullopt)) {
    case VssOperation::kHotBackup:
      if (state_ != FreezeState::kFreezing) return;  // it is to be thawed instead
      if (good) {
        step_ = VssOperation::kFreeze;
        return;
      }
      thaw_by_ = kNever;
      enter(FreezeState::kThawed);
      return end_freeze(fmt::format("the guest cannot freeze, status {:#x}", status));
    case VssOperation::kFreeze:
      froze_ = good;
      if (state_ != FreezeState::kFreezing) return;
      if (good) {
        enter(FreezeState::kFrozen);
        return end_freeze({});
      }
      end_freeze(fmt::format(
          "the guest did not freeze, status {:#x}; Linux needs hv_vss_daemon running in it", status));
      return begin_thaw(now);
    case VssOperation::kThaw:
      if (!good && froze_) {
        log_.guest("the guest refuses to thaw, status {:#x}; asking again", status);
        step_ = VssOperation::kThaw;
        thaw_from_ = now + kThawAgain;
        return;
      }
      froze_ = false;
      keep_frozen(false);
      step_ = VssOperation::kBackupComplete;
      return;
    case VssOperation::kBackupComplete:
      enter(FreezeState::kThawed);
      if (!thaw_done_) return;  // the next thaw() is told
      return end_thaw(std::exchange(lapsed_, false) ? kLapsed : "");
  }
}

TimePoint Vss::due() const {
  TimePoint due = std::min(thaw_by_, thaw_done_ ? answer_by_ : kNever);
  if (step_ == VssOperation::kThaw && !asked_) due = std::min(due, thaw_from_);
  return due;
}

void Vss::closed() {
  end_freeze("the guest closed its channel for freezing");
  end_thaw("the guest closed its channel for freezing");
  if (state_ != FreezeState::kThawed) enter(FreezeState::kThawed);
}

void Vss::enter(FreezeState state) {
  state_ = state;
  board_.change([&](Status& status) { status.freeze = state; });
}

void Vss::end_freeze(std::string problem) {
  if (freeze_done_) std::exchange(freeze_done_, nullptr)(std::move(problem));
}

void Vss::end_thaw(std::string problem) {
  if (thaw_done_) std::exchange(thaw_done_, nullptr)(std::move(problem));
}

}  // namespace vmbusd::integration
