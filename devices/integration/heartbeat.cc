#include "devices/integration/heartbeat.h"

#include <algorithm>

#include "vmbus/protocol.h"

namespace vmbusd::integration {

const Kind Heartbeat::kKind = {Part::kHeartbeat,        "heartbeat",
                               vmbus::kClassHeartbeat,  Guid::literal("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"),
                               MessageType::kHeartbeat, kVersions};

void Heartbeat::ready(Version, TimePoint now) {
  next_ = now;
}

void Heartbeat::tick(TimePoint now) {
  if (lost_ || now < lost_at_) return;
  lost_ = true;
  log_.guest("the guest does not answer its heartbeat");
}

std::span<const std::byte> Heartbeat::next(TimePoint now) {
  if (now < next_) return {};
  next_ = now + kInterval;
  lost_at_ = now + kLostAfter;
  return wire_bytes(body_);
}

void Heartbeat::answered(std::uint32_t, std::span<const std::byte> body, TimePoint now) {
  // A guest that breathes may count as it likes; it gets back what it said.
  if (!read_wire(body, body_.sequence)) return;
  if (lost_) log_.guest_info("the guest answers its heartbeat again");
  lost_ = false;
  lost_at_ = kNever;
  board_.change([&](Status& status) { status.heartbeat = now; });
}

TimePoint Heartbeat::due() const {
  // With an answer outstanding next() is not called, so its time must not be waited for.
  if (lost_at_ == kNever) return next_;
  return lost_ ? kNever : lost_at_;
}

void Heartbeat::closed() {
  board_.change([](Status& status) { status.heartbeat.reset(); });
}

Health Heartbeat::health(const Status& status, TimePoint now) {
  if (!status.heartbeat) return Health::kUnknown;
  return now - *status.heartbeat < kLostAfter ? Health::kOk : Health::kLost;
}

}  // namespace vmbusd::integration
