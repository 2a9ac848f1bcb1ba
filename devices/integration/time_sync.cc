#include "devices/integration/time_sync.h"

#include "vmbus/protocol.h"

namespace vmbusd::integration {

const Kind TimeSync::kKind = {Part::kTimeSync,        "timesync",
                              vmbus::kClassTimeSync,  Guid::literal("2dd1ce17-079e-403c-b352-a1921ee207ee"),
                              MessageType::kTimeSync, kVersions};

void TimeSync::ready(Version, TimePoint now) {
  next_ = now;
}

std::span<const std::byte> TimeSync::next(TimePoint now) {
  if (now < next_) return {};
  next_ = kNever;  // until it has answered
  const WallClock::duration wall = wall_clock_().time_since_epoch();
  // `now` is the turn's; what has passed since is small against a step.
  const WallClock::duration difference =
      wall - std::chrono::duration_cast<WallClock::duration>(now.time_since_epoch());
  const bool stepped = set_ && std::chrono::abs(difference - difference_) >= kStep;
  if (stepped) log_.info("the host's clock was set: setting the guest's");
  using Ticks = std::chrono::duration<std::int64_t, std::ratio<1, 10'000'000>>;
  body_ = {};
  body_.parent_time =
      kUnixEpoch + static_cast<std::uint64_t>(std::chrono::duration_cast<Ticks>(wall).count());
  body_.flags = !set_ || stepped ? kTimeSyncSet : kTimeSyncSample;
  if (!set_ || stepped) difference_ = difference;
  set_ = true;
  return wire_bytes(body_);
}

}  // namespace vmbusd::integration
