// Contact and version negotiation, unload, reset, and the delivery of events.
#include <algorithm>
#include <utility>

#include "base/assert.h"
#include "vmbus/server_core.h"

namespace vmbusd::vmbus {

ServerCore::ServerCore(ServerEvents& events, std::uint32_t vp_count, LogScope& log,
                       const ServerLimits& limits)
    : events_(events),
      log_(log),
      vp_count_(vp_count),
      gpadls_(limits, [&events](Gpn page) { return events.page_exists(page); }) {
  VMBUSD_ASSERT(vp_count > 0);
}

void ServerCore::guest_message(std::uint32_t connection_id, std::span<const std::byte> message) {
  // Which of our two ids a guest posts to matters to INITIATE_CONTACT alone.
  if (connection_id != kMessageConnectionBelow5 && connection_id != kMessageConnectionFrom5) {
    log_.guest("message dropped: connection id {} is not VMBus's", connection_id);
    return;
  }
  MessageHeader header;
  if (message.size() > kMessagePayloadBytesMax || !read_wire(message, header)) {
    log_.guest("message dropped: {} bytes are none or more than a message's", message.size());
    return;
  }
  const MessageRule* const rule = find_message_rule(header.type);
  if (rule == nullptr) {
    log_.guest("message dropped: no guest may send number {}", static_cast<std::uint32_t>(header.type));
    return;
  }
  const Version version = connected() ? version_ : Version::kNone;
  if (const char* const reason = refuse_message(*rule, message.size(), phase_, version)) {
    log_.guest("{} dropped: {}", rule->name, reason);
    return;
  }
  rule->handle(*this, Received{connection_id, message});
  deliver();
}

void ServerCore::deliver() {
  if (delivering_) return;  // called back by an event: the call below on the stack goes on with the queue
  delivering_ = true;
  while (!queue_.empty()) {
    const Event event = std::move(queue_.front());
    queue_.pop_front();
    std::visit([this](const auto& e) { perform(e); }, event);
  }
  delivering_ = false;
}

void ServerCore::perform(const Send& event) {
  if (events_.send(event.vp, event.bytes)) return;
  log_.guest("connection dropped: the guest does not take its messages");
  drop_queued_messages();
  if (connected()) disconnect();
}

void ServerCore::perform(const OfferGone& event) {
  channels_.erase(event.relid);  // not earlier: offer() must not hand the relid out while it is announced
  events_.offer_gone(event.relid);
}

void ServerCore::drop_queued_messages() {
  const auto is_message = [](const Event& event) { return std::holds_alternative<Send>(event); };
  queue_.erase(std::remove_if(queue_.begin(), queue_.end(), is_message), queue_.end());
}

void ServerCore::on_initiate_contact(const InitiateContact& message, const Received& received) {
  const ContactRequest request{message, received.connection_id};
  if (phase_ == Phase::kDisconnected) {
    contact(request);
    return;
  }
  // A crash kernel or the next boot stage that did not unload: nothing of the old connection is answered any
  // more, and nothing may be left of it when the new one is. The latest request is the one that counts.
  contact_after_ = request;
  unload_after_ = false;
  if (connected()) disconnect();
}

void ServerCore::contact(const ContactRequest& request) {
  const ContactOutcome outcome =
      negotiate(request, vp_count_, [this](Gpn page) { return events_.page_exists(page); });
  const auto requested = static_cast<std::uint32_t>(request.message.version);
  const std::uint32_t major = requested >> 16;
  const std::uint32_t minor = requested & 0xffff;
  VersionResponse response;
  if (outcome.version == Version::kNone) {
    log_.guest_info("VMBus {}.{} refused: {}", major, minor, outcome.refusal);
    response.connection_state = outcome.state;
    send(outcome.target_vp, response);
    return;
  }
  log_.guest_info("VMBus {}.{} negotiated, messages to VP {}", major, minor, outcome.target_vp);
  connect(request, outcome);
  response.version_supported = 1;
  response.version_or_connection_id = version_ >= Version::k5_0 ? kMessageConnectionFrom5 : requested;
  if (version_ >= Version::k6_0) {
    tell(VersionResponseWithFeatures{response, request.message.target.feature_flags & kFeaturesGranted});
  } else {
    tell(response);
  }
}

void ServerCore::connect(const ContactRequest& request, const ContactOutcome& outcome) {
  phase_ = Phase::kConnected;
  contacted_ = request;
  version_ = outcome.version;
  target_vp_ = outcome.target_vp;
  interrupt_page_ = outcome.interrupt_page;
  monitor_page_ = outcome.monitor_page;
  last_peer_ = Peer{version_, target_vp_};
}

void ServerCore::on_request_offers(const RequestOffers& /*message*/) {
  phase_ = Phase::kOffersRequested;
  std::vector<Channel*> channels;
  for (auto& [relid, channel] : channels_) {
    if (channel.offer_state == OfferState::kOffered) channels.push_back(&channel);
  }
  std::sort(channels.begin(), channels.end(),
            [](const Channel* a, const Channel* b) { return a->ordinal < b->ordinal; });
  for (Channel* const channel : channels) send_offer(*channel);
  tell(AllOffersDelivered{});
}

void ServerCore::on_unload(const Unload& /*message*/) {
  unload();
}

void ServerCore::unload() {
  if (phase_ == Phase::kDisconnected) {
    // Firmware unloads twice, and waits for both answers.
    if (last_peer_) send(last_peer_->target_vp, UnloadResponse{});
    return;
  }
  unload_after_ = true;
  if (connected()) disconnect();
}

void ServerCore::reset() {
  drop_queued_messages();
  last_peer_.reset();
  contact_after_.reset();
  unload_after_ = false;
  if (connected()) {
    disconnect();
  } else if (phase_ == Phase::kDisconnected) {
    queue_.emplace_back(ConnectionEnded{});
  }
  deliver();
}

void ServerCore::disconnect() {
  VMBUSD_ASSERT(connected());
  phase_ = Phase::kDisconnecting;
  for (auto& [relid, channel] : channels_) {
    gpadls_.abandon(relid);
    channel.queued_open.reset();
    channel.open_result.reset();
    if (channel.running()) stop(channel);  // a primary's sub-channels go with it
    advance(channel);
  }
  advance_connection();
}

// Finishes a disconnect when the last channel has closed and the last GPADL is back.
void ServerCore::advance_connection() {
  if (phase_ != Phase::kDisconnecting || !gpadls_.empty()) return;
  for (const auto& [relid, channel] : channels_) {
    if (channel.run_state != RunState::kClosed) return;
  }
  phase_ = Phase::kDisconnected;
  interrupt_page_ = 0;
  monitor_page_ = 0;
  for (auto& [relid, channel] : channels_) {
    channel.told = false;
    advance(channel);
  }
  queue_.emplace_back(ConnectionEnded{});

  const std::optional<ContactRequest> request = std::exchange(contact_after_, std::nullopt);
  const bool unload_wanted = std::exchange(unload_after_, false);
  if (request) contact(*request);
  if (unload_wanted) unload();
}

void ServerCore::on_tl_connect_request(const TlConnectRequest& message) {
  // hvsocket has no listeners here. Below 4.1 a refusal has no words: the guest's connect times out.
  if (version_ < Version::k4_1) return;
  tell(TlConnectResult{
      .endpoint = message.endpoint, .service = message.service, .status = Status::kConnectionRefused});
}

}  // namespace vmbusd::vmbus
