#include "devices/integration/component_channel.h"

#include <algorithm>
#include <utility>

namespace vmbusd::integration {

void ComponentChannel::start(devices::Channel& channel) {
  channel_ = &channel;
  component_ = make_(channel.log());
  component_->keep(channel.region(), channel.recovered());
  drained_ = !channel.recovered();
  link_->channel = this;
  board_.set(kind_.part, PartState::kNegotiating);
}

void ComponentChannel::stop() {
  channel_->worker().disarm(alarm_);
  link_->channel = nullptr;
  component_->closed();
  board_.set(kind_.part, PartState::kClosed);
}

Result<bool> ComponentChannel::service(std::uint32_t budget) {
  bool worked = false;
  for (std::uint32_t i = 0; i < budget; ++i) {
    VMBUSD_TRY(const ring::Packet* const packet, channel_->incoming().next());
    if (packet == nullptr) break;
    VMBUSD_CHECK(receive(*packet));
    worked = true;
  }
  VMBUSD_TRY(const bool sent, send());
  if (session_.state() == Session::State::kReady) {
    if (const TimePoint due = component_->due(); due != kNever) channel_->worker().arm(alarm_, due);
  }
  return worked || sent;
}

Result<void> ComponentChannel::receive(const ring::Packet& packet) {
  const auto message =
      std::span(received_).first(std::min<std::size_t>(packet.payload_size, received_.size()));
  channel_->incoming().read_payload(packet, 0, message);
  const bool negotiating = session_.state() == Session::State::kNegotiating;
  const auto answer = session_.receive(message);
  if (!answer) {
    channel_->log().guest("ignored a message: {}", describe(answer.error()));
    if (++unasked_ == kUnaskedMax) return fail(Errc::kBadMessage, "too much that nobody asked for");
    return {};
  }
  if (*answer) {
    component_->answered((*answer)->status, (*answer)->body, now());
  } else if (negotiating && session_.state() == Session::State::kReady) {
    board_.set(kind_.part, PartState::kReady, session_.version());
    component_->ready(session_.version(), now());
  } else {
    board_.set(kind_.part, PartState::kRefused);
    channel_->log().guest("the guest knows none of the versions of {}", kind_.name);
  }
  return {};
}

Result<bool> ComponentChannel::send() {
  if (!drained_) {
    // A question of the process that died may be unread, and Linux's drivers read one packet for an
    // interrupt: another behind it would stay there. The guest answers it, which is ignored and brings us
    // here again.
    const ring::RingView view = channel_->outgoing().look();
    if (view.read_index != view.write_index) return false;
    drained_ = true;
  }
  if (session_.state() == Session::State::kNew) {
    unsent_ = session_.negotiate();
  } else if (session_.state() == Session::State::kReady) {
    component_->tick(now());
    if (!session_.outstanding()) {
      if (const auto body = component_->next(now()); !body.empty()) unsent_ = session_.request(body);
    }
  }
  if (unsent_.empty()) return false;
  ring::OutgoingRing& ring = channel_->outgoing();
  const ring::PacketToWrite packet{.transaction_id = next_id_, .payload = unsent_};
  VMBUSD_TRY(bool written, ring.write(packet));
  if (!written) {
    // The guest answered without having taken the question out of the ring.
    VMBUSD_TRY(const bool waits, ring.arm_space(ring::OutgoingRing::packet_size(0, unsent_.size())));
    return !waits;
  }
  ring.clear_space();
  ++next_id_;
  unsent_ = {};
  return true;
}

}  // namespace vmbusd::integration
