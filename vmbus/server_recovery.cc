// What a restarted host must know of a connection, and taking it up again.
#include <algorithm>
#include <array>
#include <utility>

#include "base/assert.h"
#include "vmbus/server_core.h"

namespace vmbusd::vmbus {

namespace {

struct SavedConnection {
  Phase phase;
  std::array<std::uint8_t, 3> reserved;
  std::uint32_t connection_id;  // with `contact`: the request that was accepted
  InitiateContact contact;
  std::uint64_t next_ordinal;
  std::uint32_t channels;
  std::uint32_t gpadls;
};
static_assert(WireStruct<SavedConnection>);

constexpr std::uint32_t kNoMonitorId = 0xffffffff;

struct SavedChannel {
  Relid relid;
  std::uint32_t monitor_id;
  std::uint64_t ordinal;
  std::uint8_t revoked;
  std::uint8_t told;
  std::uint8_t open;
  std::uint8_t reserved;
  OpenChannel opened;  // where open
};
static_assert(WireStruct<SavedChannel>);

}  // namespace

bool ServerCore::settled() const {
  if (!queue_.empty() || phase_ == Phase::kDisconnecting || !gpadls_.settled()) return false;
  return std::all_of(channels_.begin(), channels_.end(), [](const auto& entry) {
    const Channel& channel = entry.second;
    return (channel.run_state == RunState::kClosed || channel.run_state == RunState::kOpen) &&
           (channel.offer_state == OfferState::kOffered ||
            (channel.offer_state == OfferState::kRevoked && channel.run_state == RunState::kClosed)) &&
           !channel.queued_open && !channel.retargeting;
  });
}

void ServerCore::save(SerialWriter& out) const {
  VMBUSD_ASSERT(settled());
  SavedConnection connection{};
  connection.phase = phase_;
  connection.connection_id = contacted_.connection_id;
  connection.contact = contacted_.message;
  connection.next_ordinal = next_ordinal_;
  connection.channels = static_cast<std::uint32_t>(channels_.size());
  connection.gpadls = static_cast<std::uint32_t>(gpadls_.size());
  out.put(connection);
  for (const auto& [relid, channel] : channels_) {
    SavedChannel saved{};
    saved.relid = relid;
    saved.monitor_id = channel.monitor_id ? *channel.monitor_id : kNoMonitorId;
    saved.ordinal = channel.ordinal;
    saved.revoked = channel.offer_state == OfferState::kRevoked ? 1 : 0;
    saved.told = channel.told ? 1 : 0;
    saved.open = channel.run_state == RunState::kOpen ? 1 : 0;
    saved.opened = channel.opened;
    out.put(saved);
  }
  gpadls_.save(out);
}

Result<void> ServerCore::restore(SerialReader& in, const std::function<Result<Offer>(Relid)>& offer_of) {
  VMBUSD_ASSERT(channels_.empty() && phase_ == Phase::kDisconnected);
  VMBUSD_TRY(const SavedConnection connection, in.get<SavedConnection>());
  if (connection.phase == Phase::kConnected || connection.phase == Phase::kOffersRequested) {
    const ContactRequest request{connection.contact, connection.connection_id};
    const ContactOutcome outcome =
        negotiate(request, vp_count_, [this](Gpn page) { return events_.page_exists(page); });
    if (outcome.version == Version::kNone) return fail(Errc::kProtocol, "a connection that would be refused");
    connect(request, outcome);
    phase_ = connection.phase;
  } else if (connection.phase != Phase::kDisconnected) {
    return fail(Errc::kProtocol, "a connection in no phase");
  }
  next_ordinal_ = connection.next_ordinal;
  for (std::uint32_t i = 0; i < connection.channels; ++i) {
    VMBUSD_TRY(const SavedChannel saved, in.get<SavedChannel>());
    if (saved.relid == 0 || saved.relid > kMaxChannels || channels_.contains(saved.relid) ||
        (saved.monitor_id != kNoMonitorId && saved.monitor_id >= kMonitorIds)) {
      return fail(Errc::kProtocol, "a channel that cannot be");
    }
    VMBUSD_TRY(Offer offer, offer_of(saved.relid));
    // Devices rely on each of their channels being open once.
    if ((saved.revoked == 0 || offer.sub_channel_index == 0) && offered_already(offer)) {
      return fail(Errc::kProtocol, "a channel that is offered twice");
    }
    Channel& channel = channels_[saved.relid];
    channel.relid = saved.relid;
    channel.ordinal = saved.ordinal;
    channel.offer = std::move(offer);
    if (saved.monitor_id != kNoMonitorId) channel.monitor_id = static_cast<std::uint8_t>(saved.monitor_id);
    if (saved.revoked != 0) channel.offer_state = OfferState::kRevoked;
    channel.told = saved.told != 0;
    if (saved.open == 0) continue;
    if (!connected() || !channel.told || saved.revoked != 0 || saved.opened.relid != saved.relid) {
      return fail(Errc::kProtocol, "an open channel that cannot be");
    }
    channel.opened = saved.opened;
    channel.reopen = true;
  }
  for (std::uint32_t i = 0; i < connection.gpadls; ++i) {
    VMBUSD_CHECK(
        gpadls_.restore(in, [this](Relid relid) { return connected() && find_told(relid) != nullptr; }));
  }
  return {};
}

Result<void> ServerCore::reopen(Relid relid) {
  Channel* const channel = find_channel(relid);
  if (channel == nullptr || !std::exchange(channel->reopen, false)) return {};
  if (check_open(*channel, channel->opened) != Status::kSuccess) {
    return fail(Errc::kProtocol, "a channel that could not have been opened");
  }
  channel->queued_open = channel->opened;
  start(*channel);
  channel->open_result.reset();  // the guest has it
  deliver();
  return {};
}

bool ServerCore::awaits_reopen(Relid relid) const {
  const auto found = channels_.find(relid);
  return found != channels_.end() && found->second.reopen;
}

}  // namespace vmbusd::vmbus
