#include "netvsp/primary_channel.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "devices/gpadl_view.h"

namespace vmbusd::netvsp {

PrimaryChannel::PrimaryChannel(NicServices& nic, std::shared_ptr<Opening> opening, devices::DeviceHost& host,
                               Config config)
    : NetChannel(nic, std::move(opening), 0),
      host_(host),
      config_(std::move(config)),
      session_(state_, config_.limits) {}

PrimaryChannel::~PrimaryChannel() = default;

void PrimaryChannel::start(devices::Channel& new_channel) {
  NetChannel::start(new_channel);
  // Shares of the receive buffer that no VP would ever use are lost to the others.
  channels_max_ = std::min(state_.queues, new_channel.vp_count());
  state_.queues = channels_max_;
  state_.link_up = nic().link_up();
  nic().set_rss(state_.rss);
  publish();
}

// Recovery.

Result<void> PrimaryChannel::recover() {
  VMBUSD_CHECK(NetChannel::recover());
  // The guest may not have begun to speak.
  const NicRecord seen = record().nic;
  if (seen.nvsp_version != 0) VMBUSD_CHECK(restore(seen));
  publish();
  nic().set_rss(state_.rss);
  link_changed();
  return {};
}

Result<void> PrimaryChannel::restore(const NicRecord& seen) {
  VMBUSD_CHECK(session_.restore(seen));
  if (!seen.mac.valid_unicast() || (state_.mac_fixed && seen.mac != state_.permanent_mac) ||
      (seen.offloads_enabled & ~state_.offloads_supported) != 0) {
    return fail(Errc::kProtocol, "a NIC's session with settings that cannot be");
  }
  state_.mac = seen.mac;
  state_.packet_filter = seen.packet_filter;
  state_.offloads_enabled = seen.offloads_enabled;
  state_.initialized = seen.initialized != 0;
  link_told_ = seen.link_told != 0;
  if (seen.rss_entries > seen.rss_table.size()) return fail(Errc::kProtocol, "an RSS table that cannot be");
  state_.rss = {seen.rss_enabled != 0, seen.rss_hash_info, seen.rss_entries, seen.rss_key, seen.rss_table};
  for (std::uint32_t i = 0; i < seen.rss_entries; ++i) {
    if (seen.rss_table[i] >= channels_max_) return fail(Errc::kProtocol, "an RSS table that cannot be");
  }
  {
    const std::lock_guard lock(opening().mutex);
    opening().sub_channels_granted = seen.sub_channels;
  }
  awaiting_sub_channels_ = seen.awaits_sub_channels != 0;
  if (seen.receives != 0) {
    VMBUSD_CHECK(take_receive_gpadl(channel().recovered_gpadl(seen.receive_gpadl), true));
    const std::lock_guard lock(opening().mutex);
    queue().set_large_receive(opening().large_receive);
  }
  if (seen.sends != 0) VMBUSD_CHECK(take_send_gpadl(channel().recovered_gpadl(seen.send_gpadl)));
  return {};
}

bool PrimaryChannel::record_change() {
  const bool over = NetChannel::record_change() && outbound_count_ == 0 && !receive_lookup_.pending &&
                    !send_lookup_.pending && sub_channels_to_offer_ == 0;
  if (over) save();
  return over;
}

void PrimaryChannel::save() {
  NicRecord now{};
  session_.save(now);
  now.mac = state_.mac;
  now.packet_filter = state_.packet_filter;
  now.offloads_enabled = state_.offloads_enabled;
  now.initialized = state_.initialized ? 1 : 0;
  now.link_told = link_told_ ? 1 : 0;
  now.awaits_sub_channels = awaiting_sub_channels_ ? 1 : 0;
  now.rss_enabled = state_.rss.enabled ? 1 : 0;
  now.rss_hash_info = state_.rss.hash_info;
  now.rss_entries = state_.rss.entries;
  now.rss_key = state_.rss.key;
  now.rss_table = state_.rss.table;
  {
    const std::lock_guard lock(opening().mutex);
    if (opening().receive_gpadl != nullptr) now.receive_gpadl = opening().receive_gpadl->id;
    if (opening().send_gpadl != nullptr) now.send_gpadl = opening().send_gpadl->id;
  }
  record().nic = now;
}

void PrimaryChannel::stop() {
  channel().worker().disarm(link_timer_);
  // The pages are ours until stop() has ended on this channel, so the others must let go of them before.
  drop_everywhere(true, true, [] {});
  NetChannel::stop();
}

Result<bool> PrimaryChannel::service(std::uint32_t budget) {
  // A turn after the completion was written, so that the guest has it before the offers.
  if (sub_channels_to_offer_ != 0) offer_sub_channels();
  if (awaiting_sub_channels_) send_indirection();
  VMBUSD_TRY(const bool worked, NetChannel::service(budget));
  return worked || sub_channels_to_offer_ != 0;
}

// NVSP.

Result<void> PrimaryChannel::handle_message(const ring::Packet& packet, std::span<const std::byte> message) {
  channel().begin_change();
  const NvspOutcome outcome = session_.handle(message);
  switch (outcome.action) {
    case NvspOutcome::Action::kData:  // dispatched before it comes here
    case NvspOutcome::Action::kComplete:
      break;
    case NvspOutcome::Action::kControl:
      return control(packet, outcome.rndis);
    case NvspOutcome::Action::kFindReceiveBuffer:
      find_buffer(packet, outcome.gpadl, true);
      return {};
    case NvspOutcome::Action::kFindSendBuffer:
      find_buffer(packet, outcome.gpadl, false);
      return {};
    case NvspOutcome::Action::kRevokeReceiveBuffer:
      drop_everywhere(true, false, [] {});
      break;
    case NvspOutcome::Action::kRevokeSendBuffer:
      drop_everywhere(false, true, [] {});
      break;
    case NvspOutcome::Action::kSubChannels:
      sub_channels_to_offer_ = outcome.count;
      break;
  }
  publish();
  return owe(packet, outcome.completion);
}

// The guest spreads what it transmits once it has this, so only when every channel is there.
void PrimaryChannel::send_indirection() {
  std::size_t channels = 0;
  {
    const std::lock_guard lock(opening().mutex);
    const auto& all = opening().channels;
    if (all.size() != 1 + opening().sub_channels_granted) return;
    if (std::count(all.begin(), all.end(), nullptr) != 0) return;
    channels = all.size();
  }
  Outbound* const message = next_outbound();
  if (message == nullptr) return;
  channel().begin_change();
  awaiting_sub_channels_ = false;
  message->rndis = false;
  const NvspSendIndirectionTable table = make_send_indirection(static_cast<std::uint32_t>(channels));
  message->size = sizeof table;
  std::memcpy(message->bytes.data(), &table, sizeof table);
}

void PrimaryChannel::offer_sub_channels() {
  const std::uint32_t count = std::exchange(sub_channels_to_offer_, 0);
  awaiting_sub_channels_ = true;
  {
    const std::lock_guard lock(opening().mutex);
    opening().sub_channels_granted = count;
  }
  config_.offer_sub_channels(count);
}

void PrimaryChannel::find_buffer(const ring::Packet& packet, std::uint32_t gpadl, bool receive) {
  Lookup& lookup = receive ? receive_lookup_ : send_lookup_;
  lookup = {true, packet.completion_requested(), packet.transaction_id};
  host_.find_gpadl(channel(), gpadl, [this, receive](std::shared_ptr<const vmbus::Gpadl> found) {
    if (receive) {
      receive_buffer_found(std::move(found));
    } else {
      send_buffer_found(std::move(found));
    }
  });
}

Result<void> PrimaryChannel::take_receive_gpadl(const std::shared_ptr<const vmbus::Gpadl>& gpadl,
                                                bool taken_up) {
  if (gpadl == nullptr) return fail(Errc::kBadGpadl, "GPADL is unknown");
  if (receive_open() || receiver().is_open()) return fail(Errc::kWrongState, "the old buffer is in use");
  VMBUSD_TRY(const devices::GpadlView view, devices::GpadlView::make(channel().memory(), *gpadl));
  const ReceiveLayout layout = lay_out_receive_buffer(view.size(), state_.mtu);
  {
    const std::lock_guard lock(opening().mutex);
    Opening& shared = opening();
    shared.receive_gpadl = gpadl;
    shared.receive_layout = layout;
    shared.receive_buffer_id = session_.receive_buffer_id();
    // Sub-channels come with version 5. A small buffer (iPXE's) is the primary's alone.
    constexpr std::uint32_t kShareMin = 64;
    shared.receive_shares = state_.nvsp_version >= NvspVersion::k5
                                ? std::clamp(layout.sub_allocations / kShareMin, 1u, channels_max_)
                                : 1;
    shared.large_receive = config_.large_receive &&
                           Receiver::large_frames(layout, layout.sub_allocations / shared.receive_shares);
    // A channel without a share would leave what the back end steers to its queue unread.
    state_.queues = shared.receive_shares;
  }
  return take_receive_buffer(taken_up);
}

Result<std::uint64_t> PrimaryChannel::take_send_gpadl(const std::shared_ptr<const vmbus::Gpadl>& gpadl) {
  if (gpadl == nullptr) return fail(Errc::kBadGpadl, "GPADL is unknown");
  if (send_sections() != nullptr) return fail(Errc::kWrongState, "the old buffer is in use");
  VMBUSD_TRY(const devices::GpadlView view, devices::GpadlView::make(channel().memory(), *gpadl));
  if (view.size() > kSendBufferSizeMax) return fail(Errc::kLimit, "buffer is too large");
  {
    const std::lock_guard lock(opening().mutex);
    opening().send_gpadl = gpadl;
  }
  VMBUSD_CHECK(take_send_buffer());
  return view.size();
}

void PrimaryChannel::receive_buffer_found(std::shared_ptr<const vmbus::Gpadl> gpadl) {
  const Result<void> taken = take_receive_gpadl(gpadl, false);
  std::uint64_t size = 0;
  if (taken) {
    const std::lock_guard lock(opening().mutex);
    const ReceiveLayout& layout = opening().receive_layout;
    size = std::uint64_t{layout.sub_allocation_size} * layout.sub_allocations;
    queue().set_large_receive(opening().large_receive);
  } else {
    channel().log().guest("receive buffer is refused: {}", taken.error().text);
    const std::lock_guard lock(opening().mutex);
    opening().receive_gpadl.reset();
  }
  const NvspCompletion completion = session_.receive_buffer_found(size);
  publish();
  answer(receive_lookup_, completion);
}

void PrimaryChannel::send_buffer_found(std::shared_ptr<const vmbus::Gpadl> gpadl) {
  const Result<std::uint64_t> size = take_send_gpadl(gpadl);
  if (!size) {
    channel().log().guest("send buffer is refused: {}", size.error().text);
    const std::lock_guard lock(opening().mutex);
    opening().send_gpadl.reset();
  }
  answer(send_lookup_, session_.send_buffer_found(size.value_or(0)));
}

void PrimaryChannel::answer(Lookup& lookup, const NvspCompletion& completion) {
  lookup.pending = false;
  if (lookup.wants_completion) {
    // Behind its capacity are only guests that take no completions at all; service() finds them.
    static_cast<void>(owe(lookup.transaction_id, completion));
  }
  wake_all();
}

void PrimaryChannel::release_gpadl(std::uint32_t gpadl, std::function<void()> done) {
  bool receive = false;
  bool send = false;
  {
    const std::lock_guard lock(opening().mutex);
    receive = opening().receive_gpadl != nullptr && opening().receive_gpadl->id == gpadl;
    send = opening().send_gpadl != nullptr && opening().send_gpadl->id == gpadl;
  }
  // Also where a revoke has dropped it already: that may still be under way.
  if (receive) session_.receive_buffer_lost();
  if (send) session_.send_buffer_lost();
  save();  // before the guest can be told that the GPADL is gone
  drop_everywhere(receive, send, std::move(done));
}

void PrimaryChannel::drop_everywhere(bool receive, bool send, std::function<void()> done) {
  std::vector<std::shared_ptr<ChannelAnchor>> others;
  {
    const std::lock_guard lock(opening().mutex);
    if (receive) opening().receive_gpadl.reset();
    if (send) opening().send_gpadl.reset();
    for (const auto& other : opening().channels) {
      if (other != nullptr && other != anchor()) others.push_back(other);
    }
  }
  // Counts those that still have it; only this worker touches it.
  struct Waiting {
    std::size_t left;
    std::function<void()> done;
  };
  auto waiting = std::make_shared<Waiting>(Waiting{others.size() + 1, std::move(done)});
  const auto let_go = [waiting] {
    if (--waiting->left == 0) waiting->done();
  };
  for (const std::shared_ptr<ChannelAnchor>& other : others) {
    // Keeps this channel until the other has answered.
    channel().begin_op();
    const auto answer_here = [this, let_go] {
      channel().worker().post([this, let_go] {
        let_go();
        channel().end_op();
      });
    };
    other->worker->post([other, receive, send, answer_here] {
      if (other->channel == nullptr) {
        answer_here();
      } else {
        other->channel->drop_buffers(receive, send, answer_here);
      }
    });
  }
  drop_buffers(receive, send, let_go);
}

// RNDIS.

Result<void> PrimaryChannel::control(const ring::Packet& packet, const NvspSendRndisPacket& rndis) {
  const Result<void> gathered =
      control_bytes_->gather(channel().incoming(), packet, rndis, send_sections(), channel().memory());
  const std::uint64_t size = control_bytes_->left();
  if (!gathered || size < sizeof(RndisHeader) || size > request_.size()) {
    channel().log().guest("RNDIS control message of {} bytes is refused", size);
    return owe(packet, rndis_packet_complete(NvspStatus::kInvalidRndisPacket));
  }
  control_bytes_->copy(0, std::span(request_).first(size));
  Outbound* const reply = next_outbound();
  if (reply == nullptr) {
    channel().log().guest("guest takes no RNDIS replies, its request is refused");
    return owe(packet, rndis_packet_complete(NvspStatus::kBusy));
  }
  const ControlOutcome outcome =
      handle_control(state_, *config_.counters, std::span(request_).first(size), reply->bytes);
  reply->rndis = true;
  reply->size = static_cast<std::uint32_t>(outcome.reply_size);
  if (reply->size == 0) --outbound_count_;
  act_on(outcome);
  return owe(packet, rndis_packet_complete(outcome.well_formed ? NvspStatus::kSuccess
                                                               : NvspStatus::kInvalidRndisPacket));
}

void PrimaryChannel::act_on(const ControlOutcome& outcome) {
  const bool was_running = opening().running.load(std::memory_order_relaxed);
  publish();
  if (state_.initialized && !was_running) {
    // What it asks for, it learns anyway; only changes from now on are told.
    state_.link_up = link_told_ = nic().link_up();
  }
  if ((outcome.changes & kRssChanged) != 0) nic().set_rss(state_.rss);
  if ((outcome.changes & kFilterChanged) != 0 || outcome.halted) wake_all();
  if ((outcome.changes & kOffloadsChanged) != 0) {
    // Windows waits for it, Linux ignores it.
    const NdisOffload object =
        make_offload_object(state_.offloads_enabled, offload_size_of(state_.nvsp_version));
    indicate(RndisStatus::kTaskOffloadCurrentConfig, wire_bytes(object).first(object.header.size));
  }
}

// Tells the data path of all channels what holds now.
void PrimaryChannel::publish() {
  constexpr auto kRelaxed = std::memory_order_relaxed;
  Opening& shared = opening();
  const bool receives = state_.initialized && !shared.leaving.load(kRelaxed);
  shared.filter.store(receives ? state_.packet_filter : 0, kRelaxed);
  shared.offloads.store(state_.offloads_enabled, kRelaxed);
  shared.mtu.store(state_.mtu, kRelaxed);
  shared.mac.store(state_.mac.value(), kRelaxed);
  shared.vlan.store(session_.vlan(), kRelaxed);
  shared.running.store(state_.initialized, kRelaxed);
  shared.nvsp_version.store(session_.negotiated() ? static_cast<std::uint32_t>(state_.nvsp_version) : 0,
                            kRelaxed);
}

void PrimaryChannel::wake_all() {
  const std::lock_guard lock(opening().mutex);
  for (const std::shared_ptr<ChannelAnchor>& each : opening().channels) {
    if (each == nullptr) continue;
    each->worker->post([each] {
      if (each->channel != nullptr) each->channel->wake();
    });
  }
}

void PrimaryChannel::link_changed() {
  if (stopped()) return;
  state_.link_up = nic().link_up();
  if (!state_.initialized || state_.link_up == link_told_) return;
  const io::Clock::time_point now = channel().worker().now();
  if (now < link_told_at_ + kLinkChangeInterval) {
    channel().worker().arm(link_timer_, link_told_at_ + kLinkChangeInterval);
    return;
  }
  channel().begin_change();
  link_told_ = state_.link_up;
  link_told_at_ = now;
  indicate(link_told_ ? RndisStatus::kMediaConnect : RndisStatus::kMediaDisconnect, {});
  wake();
}

// Messages to the guest.

PrimaryChannel::Outbound* PrimaryChannel::next_outbound() {
  if (outbound_count_ == kOutboundMax) return nullptr;
  return &(*outbound_)[(outbound_first_ + outbound_count_++) % kOutboundMax];
}

void PrimaryChannel::indicate(RndisStatus status, std::span<const std::byte> data) {
  Outbound* const message = next_outbound();
  if (message == nullptr) {
    channel().log().guest("guest takes no RNDIS messages, an indication is lost");
    return;
  }
  message->rndis = true;
  message->size = static_cast<std::uint32_t>(make_indication(status, data, message->bytes));
}

Result<bool> PrimaryChannel::write_messages() {
  ring::OutgoingRing& ring = channel().outgoing();
  for (; outbound_count_ != 0; --outbound_count_, outbound_first_ = (outbound_first_ + 1) % kOutboundMax) {
    const Outbound& message = (*outbound_)[outbound_first_];
    const auto bytes = std::span(message.bytes).first(message.size);
    if (message.rndis) {
      VMBUSD_TRY(const bool written, receiver().deliver_control(ring, bytes));
      // Without a sub-allocation the ring is not to blame: data may go on.
      if (!written) return !ring.space_armed();
      continue;
    }
    ring::PacketToWrite packet;
    packet.payload = bytes;
    VMBUSD_TRY(bool written, ring.write(packet));
    if (!written) {
      VMBUSD_TRY(const bool waiting, ring.arm_space(ring::OutgoingRing::packet_size(0, bytes.size())));
      if (waiting) return false;
      VMBUSD_TRY(written, ring.write(packet));
      if (!written) return false;
    }
  }
  return true;
}

}  // namespace vmbusd::netvsp
