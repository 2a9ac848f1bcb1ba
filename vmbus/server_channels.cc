// Offers and channels: open, close, modify, rescind, release.
#include <algorithm>
#include <bitset>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "vmbus/server_core.h"

namespace vmbusd::vmbus {

// --- Offers ---

ServerCore::Channel* ServerCore::find_channel(Relid relid) {
  const auto found = channels_.find(relid);
  return found == channels_.end() ? nullptr : &found->second;
}

// The channel, where the guest may name its relid: from OFFERCHANNEL to RELID_RELEASED.
ServerCore::Channel* ServerCore::find_told(Relid relid) {
  Channel* const channel = find_channel(relid);
  if (channel == nullptr || !channel->told) return nullptr;
  const OfferState state = channel->offer_state;
  return state == OfferState::kReleased || state == OfferState::kGone ? nullptr : channel;
}

bool ServerCore::same_device(const Offer& a, const Offer& b) {
  return a.interface_type == b.interface_type && a.instance == b.instance;
}

ServerCore::Channel* ServerCore::find_primary(const Channel& sub_channel) {
  for (auto& [relid, channel] : channels_) {
    if (channel.primary() && same_device(channel.offer, sub_channel.offer)) return &channel;
  }
  return nullptr;
}

std::optional<Relid> ServerCore::free_relid() const {
  Relid candidate = 1;
  for (const auto& [relid, channel] : channels_) {
    if (relid != candidate) break;
    ++candidate;
  }
  return candidate <= kMaxChannels ? std::optional{candidate} : std::nullopt;
}

std::optional<std::uint8_t> ServerCore::free_monitor_id() const {
  std::bitset<kMonitorIds> used;
  for (const auto& [relid, channel] : channels_) {
    if (channel.monitor_id) used.set(*channel.monitor_id);
  }
  for (std::uint8_t id = 0; id < kMonitorIds; ++id) {
    if (!used.test(id)) return id;
  }
  return std::nullopt;
}

// Linux takes a primary for the return of the one that it has not released yet; sub-channels it tells apart
// by relid. [linux: channel_mgmt.c, vmbus_onoffer]
bool ServerCore::offered_already(const Offer& offer) const {
  return std::any_of(channels_.begin(), channels_.end(), [&](const auto& entry) {
    const Channel& other = entry.second;
    return same_device(other.offer, offer) && other.offer.sub_channel_index == offer.sub_channel_index &&
           (other.primary() || other.offer_state == OfferState::kOffered);
  });
}

Result<Relid> ServerCore::offer(const Offer& offer) {
  if (offered_already(offer)) return fail(Errc::kWrongState, "channel is offered already");
  const bool primary_open = std::any_of(channels_.begin(), channels_.end(), [&](const auto& entry) {
    const Channel& other = entry.second;
    return other.primary() && other.run_state == RunState::kOpen && same_device(other.offer, offer);
  });
  if (offer.sub_channel_index != 0 && !primary_open) {
    return fail(Errc::kWrongState, "sub-channel's primary is not open");
  }
  const std::optional<Relid> relid = free_relid();
  if (!relid) return fail(Errc::kLimit, "all relids are in use");
  // Kept as long as the relid is: the guest may go on setting the bit until it has released that.
  std::optional<std::uint8_t> monitor_id;
  if (offer.monitored) {
    monitor_id = free_monitor_id();
    // The guest signals it by its connection id then.
    if (!monitor_id) log_.guest("relid {} is not monitored: all monitor ids are in use", *relid);
  }
  Channel& channel = channels_[*relid];
  channel.monitor_id = monitor_id;
  channel.relid = *relid;
  channel.ordinal = next_ordinal_++;
  channel.offer = offer;
  if (phase_ == Phase::kOffersRequested) send_offer(channel);
  deliver();
  return *relid;
}

void ServerCore::send_offer(Channel& channel) {
  const Offer& offer = channel.offer;
  OfferChannel message;
  message.interface_type = offer.interface_type;
  message.instance = offer.instance;
  message.flags = kOfferEnumerateDeviceInterface;
  message.mmio_megabytes = offer.mmio_megabytes;
  message.user_defined = offer.user_defined;
  if (offer.pipe_message_mode) {
    message.flags |= kOfferNamedPipeMode;
    std::memcpy(message.user_defined.data(), &kPipeModeMessage, sizeof kPipeModeMessage);
  }
  message.sub_channel_index = offer.sub_channel_index;
  message.relid = channel.relid;
  if (channel.monitor_id && monitor_page_ != 0) {
    message.monitor_id = *channel.monitor_id;
    message.monitor_flags = kMonitorAllocated;
  }
  message.interrupt_flags = kDedicatedInterrupt;
  message.connection_id = Server::signal_connection(channel.relid);
  tell(message);
  channel.told = true;
}

void ServerCore::rescind(Relid relid) {
  Channel* const channel = find_channel(relid);
  if (channel == nullptr || channel->offer_state != OfferState::kOffered) return;
  if (channel->primary()) {
    for (auto& [other_relid, other] : channels_) {
      if (!other.primary() && same_device(other.offer, channel->offer)) withdraw(other);
    }
  }
  withdraw(*channel);
  deliver();
}

void ServerCore::close_rescinded(Relid relid) {
  Channel* const channel = find_channel(relid);
  if (channel == nullptr || channel->offer_state != OfferState::kRevoked || !channel->running()) return;
  stop(*channel);
  deliver();
}

// Drivers wait for answers to all that they sent before they heard of it, so an open channel is served on
// until the guest closes it. [linux: rndis_filter.c, rndis_filter_halt_device; storvsc_drv.c, storvsc_remove]
void ServerCore::withdraw(Channel& channel) {
  if (channel.offer_state != OfferState::kOffered || !channel.told || !channel.running() || !connected()) {
    return revoke(channel);
  }
  tell(RescindChannelOffer{.relid = channel.relid});
  channel.offer_state = OfferState::kRevoked;
}

// The same for a channel that nobody is to use any more.
void ServerCore::revoke(Channel& channel) {
  if (channel.offer_state == OfferState::kOffered) {
    channel.offer_state = OfferState::kRevoking;
    cancel_queued_open(channel);
  }
  if (channel.running()) stop(channel);
  advance(channel);
}

void ServerCore::retire(Channel& channel) {
  channel.offer_state = OfferState::kGone;
  queue_.emplace_back(OfferGone{channel.relid});
}

void ServerCore::on_relid_released(const RelidReleased& message) {
  Channel* const channel = find_told(message.relid);
  if (channel == nullptr || channel->offer_state != OfferState::kRevoked) {
    log_.guest("RELID_RELEASED of {} dropped: it was not rescinded", message.relid);
    return;
  }
  // Linux skips the teardown of a rescinded channel's GPADLs. [linux: channel.c, vmbus_teardown_gpadl]
  gpadls_.abandon(channel->relid);
  channel->offer_state = OfferState::kReleased;
  if (channel->running()) stop(*channel);
  advance(*channel);
}

// --- Life of a channel ---

// Takes the steps that the state of the channel, its GPADLs and its sub-channels allows now. Called after
// every change of theirs.
void ServerCore::advance(Channel& channel) {
  if (channel.run_state == RunState::kClosing) return;
  release_wanted(channel.relid);
  if (channel.run_state != RunState::kClosed) return;
  switch (channel.offer_state) {
    case OfferState::kOffered:
      if (channel.queued_open && may_start(channel)) start(channel);
      break;
    case OfferState::kRevoking:
      if (!channel.told) {
        retire(channel);
      } else if (connected()) {
        tell(RescindChannelOffer{.relid = channel.relid});
        channel.offer_state = OfferState::kRevoked;
      }
      break;
    case OfferState::kRevoked:
      if (!channel.told) retire(channel);
      break;
    case OfferState::kReleased:
      if (!gpadls_.any(channel.relid)) retire(channel);
      break;
    case OfferState::kGone:
      break;
  }
}

bool ServerCore::target_vp_valid(std::uint32_t vp) const {
  return vp < vp_count_ || vp == kNoInterruptVp;
}

// What answers the message at once, or kSuccess where the channel can be opened.
Status ServerCore::check_open(const Channel& channel, const OpenChannel& message) {
  if (channel.running() || channel.queued_open) return Status::kInvalidDeviceState;
  if (!channel.primary()) {
    const Channel* const primary = find_primary(channel);
    if (primary == nullptr || primary->run_state != RunState::kOpen) return Status::kInvalidDeviceState;
  }
  if (version_ >= Version::k2_4 && !target_vp_valid(message.target_vp)) return Status::kInvalidParameter;
  const std::shared_ptr<const Gpadl> ring = gpadls_.live(channel.relid, message.ring_gpadl);
  if (ring == nullptr || ring->ranges.size() != 1 || ring->ranges[0].byte_offset != 0) {
    return Status::kInvalidParameter;
  }
  // Each ring is its control page and at least one page of data.
  const std::size_t pages = ring->ranges[0].pages.size();
  const std::size_t incoming = message.downstream_page_offset;
  if (incoming < 2 || incoming > pages || pages - incoming < 2) return Status::kInvalidParameter;
  return Status::kSuccess;
}

void ServerCore::on_open_channel(const OpenChannel& message) {
  Channel* const channel = find_told(message.relid);
  if (channel != nullptr && channel->offer_state != OfferState::kOffered) return;  // RESCIND is the answer
  const Status status = channel == nullptr ? Status::kInvalidParameter : check_open(*channel, message);
  if (status != Status::kSuccess) {
    log_.guest("OPENCHANNEL of relid {} refused with status {:#x}", message.relid,
               static_cast<std::uint32_t>(status));
    tell(OpenChannelResult{.relid = message.relid, .openid = message.openid, .status = status});
    return;
  }
  // CLOSECHANNEL has no answer, so this may come while the device still closes.
  channel->queued_open = message;
  advance(*channel);
}

// A primary starts afresh only when the sub-channels of its last time have stopped.
bool ServerCore::may_start(const Channel& channel) const {
  if (!channel.primary()) return true;
  return std::all_of(channels_.begin(), channels_.end(), [&channel](const auto& entry) {
    const Channel& other = entry.second;
    return other.primary() || !same_device(other.offer, channel.offer) ||
           other.run_state == RunState::kClosed;
  });
}

void ServerCore::start(Channel& channel) {
  const OpenChannel message = *std::exchange(channel.queued_open, std::nullopt);
  OpenRequest request;
  request.ring = gpadls_.live(channel.relid, message.ring_gpadl);
  VMBUSD_ASSERT(request.ring != nullptr);  // its teardown would have cancelled the queued open
  request.incoming_pages = message.downstream_page_offset;
  request.target_vp = version_ >= Version::k2_4 ? message.target_vp : 0;
  request.event_flag = channel.relid;
  request.interrupt_page = interrupt_page_;
  request.connection_id = Server::signal_connection(channel.relid);
  if (channel.monitor_id) {
    request.monitor_page = monitor_page_;
    request.monitor_id = *channel.monitor_id;
  }
  request.user_data = message.user_data;
  channel.run_state = RunState::kOpening;
  channel.opened = message;
  channel.open_result = message.openid;
  queue_.emplace_back(Open{channel.relid, std::move(request)});
}

void ServerCore::open_done(Relid relid, std::uint32_t status) {
  Channel* const channel = find_channel(relid);
  VMBUSD_ASSERT(channel != nullptr);
  if (channel->run_state == RunState::kClosing) return;  // crossed close_channel; close_done answers both
  VMBUSD_ASSERT(channel->run_state == RunState::kOpening);
  answer_open(*channel, Status{status});
  channel->run_state = Status{status} == Status::kSuccess ? RunState::kOpen : RunState::kClosed;
  advance(*channel);
  deliver();
}

void ServerCore::answer_open(Channel& channel, Status status) {
  if (!channel.open_result) return;
  tell(OpenChannelResult{.relid = channel.relid, .openid = *channel.open_result, .status = status});
  channel.open_result.reset();
}

void ServerCore::cancel_queued_open(Channel& channel) {
  if (!channel.queued_open) return;
  tell(OpenChannelResult{
      .relid = channel.relid, .openid = channel.queued_open->openid, .status = Status::kCancelled});
  channel.queued_open.reset();
}

void ServerCore::on_close_channel(const CloseChannel& message) {
  Channel* const channel = find_told(message.relid);
  if (channel == nullptr) {
    log_.guest("CLOSECHANNEL dropped: relid {} is not offered", message.relid);
    return;
  }
  if (channel->running()) {
    stop(*channel);
  } else if (channel->queued_open) {
    cancel_queued_open(*channel);
  } else if (channel->offer_state == OfferState::kOffered) {
    log_.guest("CLOSECHANNEL dropped: relid {} is not open", message.relid);
  }
}

// Sub-channels live only while their primary does: they go with it, before it.
void ServerCore::stop(Channel& channel) {
  VMBUSD_ASSERT(channel.running());
  channel.run_state = RunState::kClosing;
  if (channel.primary()) {
    for (auto& [relid, other] : channels_) {
      if (!other.primary() && same_device(other.offer, channel.offer)) revoke(other);
    }
  }
  queue_.emplace_back(Close{channel.relid});
}

void ServerCore::close_done(Relid relid) {
  Channel* const channel = find_channel(relid);
  VMBUSD_ASSERT(channel != nullptr && channel->run_state == RunState::kClosing);
  channel->run_state = RunState::kClosed;
  answer_open(*channel, Status::kCancelled);
  if (channel->retargeting) {
    answer_modify(relid, Status::kCancelled);
    if (channel->next_vp) answer_modify(relid, Status::kCancelled);
    channel->retargeting = false;
    channel->next_vp.reset();
  }
  advance(*channel);
  if (!channel->primary()) {
    if (Channel* const primary = find_primary(*channel)) advance(*primary);
  }
  advance_connection();
  deliver();
}

// --- MODIFYCHANNEL ---

void ServerCore::on_modify_channel(const ModifyChannel& message) {
  Channel* const channel = find_told(message.relid);
  if (channel == nullptr || channel->run_state != RunState::kOpen || !target_vp_valid(message.target_vp)) {
    log_.guest("MODIFYCHANNEL of relid {} refused: not open, or no such VP", message.relid);
    answer_modify(message.relid, Status::kInvalidParameter);
    return;
  }
  if (!channel->retargeting) {
    retarget(*channel, message.target_vp);
    return;
  }
  // Below 5.3 guests do not wait for one to be done before they send the next: the last one wins.
  if (channel->next_vp) answer_modify(message.relid, Status::kCancelled);
  channel->next_vp = message.target_vp;
}

void ServerCore::retarget(Channel& channel, std::uint32_t vp) {
  channel.retargeting = true;
  channel.retargeting_to = vp;
  queue_.emplace_back(Retarget{channel.relid, vp});
}

void ServerCore::retarget_done(Relid relid, std::uint32_t status) {
  Channel* const channel = find_channel(relid);
  // An answer that crossed close_channel; close_done speaks for it.
  if (channel == nullptr || channel->run_state != RunState::kOpen || !channel->retargeting) return;
  channel->retargeting = false;
  channel->opened.target_vp = channel->retargeting_to;
  answer_modify(relid, Status{status});
  if (const std::optional<std::uint32_t> vp = std::exchange(channel->next_vp, std::nullopt)) {
    retarget(*channel, *vp);
  }
  deliver();
}

void ServerCore::answer_modify(Relid relid, Status status) {
  if (version_ >= Version::k5_3) tell(ModifyChannelResponse{.relid = relid, .status = status});
}

// --- Reserved channels ---

void ServerCore::on_open_reserved_channel(const OpenReservedChannel& message) {
  // It has no answer; a guest that reserves a channel has to look at its ring to see whether anybody serves.
  log_.guest("OPEN_RESERVED_CHANNEL of relid {} ignored: reserved channels are not served", message.relid);
}

void ServerCore::on_close_reserved_channel(const CloseReservedChannel& message) {
  // Nothing is open, so it is closed already. Guests wait for this answer on crash paths, perhaps after the
  // connection, whose version says whether the answer exists.
  if (!last_peer_ || last_peer_->version < Version::k4_0) return;
  if (message.target_sint != kMessageSint || message.target_vp >= vp_count_) {
    log_.guest("CLOSE_RESERVED_CHANNEL dropped: cannot answer on VP {}, SINT {}", message.target_vp,
               message.target_sint);
    return;
  }
  send(message.target_vp, CloseReservedResponse{.relid = message.relid});
}

}  // namespace vmbusd::vmbus
