#include "devices/bus.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/assert.h"
#include "devices/gpadl_view.h"

namespace vmbusd::devices {

namespace {

// NTSTATUS values for OPENCHANNEL_RESULT [MS-ERREF: NTSTATUS Values].
constexpr std::uint32_t kStatusUnsuccessful = 0xc0000001;
constexpr std::uint32_t kStatusInvalidParameter = 0xc000000d;

// For a guest to answer before it is told that a device goes, and then to let go of it.
constexpr std::chrono::seconds kLeaveTime{1};
constexpr std::chrono::seconds kLetGoTime{5};

// What save() writes of a bus, and a row of it. Devices go by what the guest knows them by: another process
// may have others.
struct SavedBus {
  Guid partition;
  std::uint64_t offers;
};
static_assert(WireStruct<SavedBus>);
struct SavedOffer {
  Guid interface_type;
  Guid instance;
  std::uint64_t incarnation;  // Device's
  vmbus::Relid relid;
  std::uint32_t sub_channel_index;
};
static_assert(WireStruct<SavedOffer>);

Guid identity_of(const std::string& partition) {
  return Guid::derive("vmbusd partition", partition);
}

}  // namespace

Bus::Bus(Config config, io::Worker& control, UniqueFd socket, std::function<void()> ended)
    : config_(std::move(config)),
      control_(control),
      log_(config_.name),
      ended_(std::move(ended)),
      attach_(*this, vmbus::Server::kMessageConnections, log_),
      socket_(
          control, std::move(socket), [this] { begin_transition(); },
          [this](partition::Datagram& datagram) {
            return attach_.receive(datagram.bytes(), std::move(datagram.fds));
          },
          [this](const Error& error) { disconnected(error); }) {
  VMBUSD_ASSERT(!config_.workers.empty());
}

Bus::~Bus() {
  VMBUSD_ASSERT(channels_.empty());
  control_.disarm(removal_timer_);
}

void Bus::start() {
  if (config_.recovery != nullptr) (void)config_.recovery->take_snapshot();  // of a connection that is over
  socket_.start();
}

void Bus::shut_down() {
  disconnected(Error{Errc::kClosed, 0, "the daemon ends the connection"});
}

std::vector<std::string> Bus::open_channels() const {
  std::vector<std::string> names;
  for (const auto& [relid, open] : channels_) names.push_back(open.name);
  return names;
}

bool Bus::look(std::function<void(BusStatus)> done) {
  if (look_done_) return false;
  look_done_ = std::move(done);
  looked_ = {};
  if (server_ != nullptr) {
    looked_.vp_count = attach_.partition()->vp_count();
    looked_.vmbus_version = server_->version();
  }
  // One more than channels, so that the end does not come inside this call.
  looking_ = 1;
  for (auto& [relid, open] : channels_) {
    // A channel that is stopping may be destroyed before its worker gets to this; all others are stopped by
    // what is posted after it.
    if (open.phase != OpenChannel::Phase::kStarting && open.phase != OpenChannel::Phase::kOpen) continue;
    ++looking_;
    Channel& channel = *open.channel;
    channel.worker().post([this, &channel, name = open.name] {
      ChannelStatus status = channel.status();
      status.device = name;
      control_.post([this, status = std::move(status)]() mutable { looked(std::move(status)); });
    });
  }
  control_.post([this] {
    if (--looking_ == 0) std::exchange(look_done_, nullptr)(std::move(looked_));
  });
  return true;
}

void Bus::looked(ChannelStatus status) {
  looked_.channels.push_back(std::move(status));
  if (--looking_ == 0) std::exchange(look_done_, nullptr)(std::move(looked_));
}

// The VMM.

void Bus::send(std::span<const std::byte> bytes, std::span<const int> fds) {
  socket_.send(bytes, fds);
}

void Bus::attached(partition::Partition& partition) {
  log_.info("VMM attached, {} VPs", partition.vp_count());
  server_ =
      std::make_unique<vmbus::Server>(static_cast<vmbus::ServerEvents&>(*this), partition.vp_count(), log_);
  if (recovering_) return;  // restore() knows what was offered
  offer_missing();
}

void Bus::offer(Device& device, std::uint32_t sub_channel_index) {
  vmbus::Offer offer = device.offer();
  offer.sub_channel_index = static_cast<std::uint16_t>(sub_channel_index);
  const Result<vmbus::Relid> relid = server_->offer(offer);
  if (!relid) {
    return log_.guest("cannot offer channel {} of {}: {}", sub_channel_index, device.name(),
                      describe(relid.error()));
  }
  offered_.emplace(*relid, Offered{&device, offer.interface_type, offer.instance, device.incarnation(),
                                   sub_channel_index});
}

// Those whose place no other has.
void Bus::offer_missing() {
  if (server_ == nullptr || recovering_ || !connected_) return;
  for (Device* const device : config_.devices) {
    const vmbus::Offer wanted = device->offer();
    const bool taken = std::any_of(offered_.begin(), offered_.end(), [&](const auto& entry) {
      const Offered& offered = entry.second;
      return offered.sub_channel_index == 0 && offered.interface_type == wanted.interface_type &&
             offered.instance == wanted.instance;
    });
    if (!taken) offer(*device, 0);
  }
}

void Bus::add_device(Device& device) {
  begin_transition();
  config_.devices.push_back(&device);
  offer_missing();
}

void Bus::remove_device(Device& device, std::function<void()> done) {
  begin_transition();
  config_.devices.erase(std::remove(config_.devices.begin(), config_.devices.end(), &device),
                        config_.devices.end());
  removals_.push_back({&device, std::move(done), io::Clock::time_point::max()});
  // What is being taken up is looked through when it has been.
  if (recovering_) return advance_removals();
  removals_.back().due = control_.now() + kLeaveTime;
  arm_removals();
  device.leave([&control = control_, weak = std::weak_ptr<Bus*>(self_), &device] {
    control.post([weak, &device] {
      if (const auto alive = weak.lock()) (*alive)->tell_of_removal(device);
    });
  });
}

void Bus::tell_of_removal(const Device& device) {
  const auto removal = std::find_if(removals_.begin(), removals_.end(),
                                    [&device](const Removal& each) { return each.device == &device; });
  if (recovering_ || removal == removals_.end() || removal->step != Removal::Step::kLeaving) return;
  removal->step = Removal::Step::kTold;
  removal->due = control_.now() + kLetGoTime;
  if (const auto relid = primary_of(device)) server_->rescind(*relid);
  arm_removals();
  advance_removals();
}

std::optional<vmbus::Relid> Bus::primary_of(const Device& device) const {
  for (const auto& [relid, offered] : offered_) {
    if (offered.device == &device && offered.sub_channel_index == 0) return relid;
  }
  return std::nullopt;
}

void Bus::removals_due() {
  std::vector<const Device*> late;
  std::vector<const Device*> held;
  for (Removal& removal : removals_) {
    if (removal.due > control_.now()) continue;
    if (removal.step == Removal::Step::kLeaving) late.push_back(removal.device);
    if (removal.step != Removal::Step::kTold) continue;
    removal.step = Removal::Step::kClosing;
    held.push_back(removal.device);
  }
  for (const Device* const device : late) tell_of_removal(*device);
  for (const Device* const device : held) {
    log_.warning("{} is removed, and the guest does not let go of it: closing it", device->name());
    // A primary's sub-channels go with it.
    if (const auto relid = primary_of(*device)) server_->close_rescinded(*relid);
  }
  arm_removals();
}

void Bus::arm_removals() {
  auto next = io::Clock::time_point::max();
  for (const Removal& removal : removals_) {
    if (removal.step != Removal::Step::kClosing) next = std::min(next, removal.due);
  }
  if (next != io::Clock::time_point::max()) control_.arm(removal_timer_, next);
}

void Bus::advance_removals() {
  if (recovering_ && connected_) return;
  for (std::size_t i = 0; i < removals_.size();) {
    Device* const device = removals_[i].device;
    if (removals_[i].step == Removal::Step::kLeaving && connected_ && server_ != nullptr) {
      ++i;
      continue;
    }
    const bool open = std::any_of(channels_.begin(), channels_.end(), [&](const auto& entry) {
      return offered_.at(entry.first).device == device;
    });
    if (open) {
      ++i;
      continue;
    }
    for (auto& [relid, offered] : offered_) {
      if (offered.device == device) offered.device = nullptr;
    }
    control_.post(std::move(removals_[i].done));
    removals_.erase(removals_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

bool Bus::removed(const Device* device) const {
  return device == nullptr ||
         std::find(config_.devices.begin(), config_.devices.end(), device) == config_.devices.end();
}

void Bus::change_partition(bool drain, std::function<void()> change, std::function<void()> done) {
  if (!drain && changes_.empty()) {
    io::park_all(config_.workers, change);
    done();
    return;
  }
  changes_.push_back({std::move(change), std::move(done)});
  if (changes_.size() == 1) next_change();
}

// Has every channel pause, or waits for it to close where it does so anyway. Once more when they have, for
// those that were opened meanwhile.
void Bus::next_change() {
  while (!changes_.empty()) {
    for (auto& [relid, open] : channels_) {
      if (paused_.contains(relid)) continue;
      if (open.phase == OpenChannel::Phase::kAttaching || open.phase == OpenChannel::Phase::kDetaching)
        continue;
      draining_.insert(relid);
      if (open.phase == OpenChannel::Phase::kStopping) continue;
      Channel& channel = *open.channel;
      channel.worker().post([this, &channel, relid = relid] {
        channel.pause([this, relid] {
          post_back([this, relid] {
            paused_.insert(relid);
            drained(relid);
          });
        });
      });
    }
    if (!draining_.empty()) return;
    Change change = std::move(changes_.front());
    io::park_all(config_.workers, change.change);
    for (const vmbus::Relid relid : std::exchange(paused_, {})) {
      const auto open = channels_.find(relid);
      if (open == channels_.end() || open->second.phase == OpenChannel::Phase::kStopping) continue;
      Channel& channel = *open->second.channel;
      channel.worker().post([&channel] { channel.resume(); });
    }
    changes_.pop_front();
    change.done();
  }
}

void Bus::drained(vmbus::Relid relid) {
  if (draining_.erase(relid) != 0 && draining_.empty()) next_change();
}

bool Bus::region_lent(std::uint64_t gpa, std::uint64_t size) const {
  return server_->holds_pages(gpa / partition::kPageSize, size / partition::kPageSize);
}

void Bus::guest_message(std::uint32_t vp, std::uint32_t connection_id, std::uint32_t message_type,
                        std::span<const std::byte> payload) {
  if (message_type != vmbus::Server::kMessageType) {
    log_.guest("VP {} posted a message of type {}, which is not VMBus's", vp, message_type);
    return;
  }
  server_->guest_message(connection_id, payload);
}

void Bus::reset(std::function<void()> done) {
  log_.info("guest is being reset");
  reset_done_ = std::move(done);
  attach_.drop_host_messages();
  server_->reset();
}

void Bus::disconnected(const Error& reason) {
  if (!connected_) return;
  connected_ = false;
  if (config_.recovery != nullptr) config_.recovery->forget();
  log_.info("VMM is gone: {}", describe(reason));
  socket_.close([this] {
    // Posted, as in connection_ended(): what look() has posted comes before it.
    if (server_ == nullptr) return control_.post(std::exchange(ended_, nullptr));
    attach_.disconnected();  // answers what the VMM was asked and will not answer
    server_->reset();
  });
}

// The VMBus server.

bool Bus::send(std::uint32_t vp, std::span<const std::byte> message) {
  return attach_.host_message(vp, vmbus::Server::kMessageType, message).has_value();
}

bool Bus::page_exists(vmbus::Gpn page) const {
  return const_cast<Bus*>(this)->attach_.partition()->memory().find(page) != nullptr;
}

Result<std::unique_ptr<Channel>> Bus::make_channel(vmbus::Relid relid, const vmbus::OpenRequest& request) {
  const Offered& offered = offered_.at(relid);
  if (offered.device == nullptr) return fail(Errc::kWrongState, "its device is gone");
  partition::Partition& partition = *attach_.partition();
  VMBUSD_TRY(RingPair rings, make_rings(partition.memory(), *request.ring, request.incoming_pages));
  UniqueFd doorbell;
  RecoveryRegion region;
  if (recovering_) {
    // The VMM has the other end.
    doorbell = std::move(kept_fds_[partition::doorbell_fd_key(relid)]);
    if (!doorbell) return fail(Errc::kProtocol, "the doorbell was not kept");
  } else {
    doorbell.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!doorbell) return fail_os(errno, "cannot make a doorbell");
  }
  if (config_.recovery != nullptr) {
    VMBUSD_TRY(region, config_.recovery->region(relid, !recovering_));
  } else {
    VMBUSD_TRY(region, RecoveryRegion::make_private());
  }
  const std::size_t spread = request.target_vp == vmbus::kNoInterruptVp ? 0 : request.target_vp;
  io::Worker& worker = *config_.workers[spread % config_.workers.size()];
  VMBUSD_TRY(std::unique_ptr<ChannelHandler> handler,
             offered.device->open(offered.sub_channel_index, static_cast<DeviceHost&>(*this), worker));
  Channel::Config config;
  config.name = offered.sub_channel_index == 0
                    ? offered.device->name()
                    : fmt::format("{}.{}", offered.device->name(), offered.sub_channel_index);
  config.relid = relid;
  config.sub_channel_index = offered.sub_channel_index;
  config.target_vp = request.target_vp;
  config.event_flag = request.event_flag;
  config.recovery = config_.recovery;
  config.recovered = recovering_;
  if (recovering_) config.gpadls = server_->gpadls_of(relid);
  if (request.interrupt_page != 0) {
    config.interrupt_page = reinterpret_cast<std::uint32_t*>(
        partition.memory().translate_writable(request.interrupt_page, partition::kPageSize));
    if (config.interrupt_page == nullptr)
      return fail(Errc::kBadGpadl, "interrupt page is not in guest memory");
  }
  if (request.monitor_page != 0) {
    std::byte* const page = partition.memory().translate_writable(request.monitor_page, partition::kPageSize);
    if (page == nullptr) return fail(Errc::kBadGpadl, "monitor page is not in guest memory");
    config.monitor.emplace(page, request.monitor_id, request.connection_id);
  }
  return std::make_unique<Channel>(std::move(config), partition, worker, std::move(rings.incoming),
                                   std::move(rings.outgoing), std::move(handler), std::move(doorbell),
                                   std::make_shared<RecoveryRegion>(std::move(region)));
}

void Bus::open_channel(vmbus::Relid relid, const vmbus::OpenRequest& request) {
  Result<std::unique_ptr<Channel>> channel = make_channel(relid, request);
  if (!channel) {
    log_.guest("cannot open channel {}: {}", relid, describe(channel.error()));
    if (recovering_) disconnected(channel.error());
    server_->open_done(
        relid, channel.error().code == Errc::kBadGpadl ? kStatusInvalidParameter : kStatusUnsuccessful);
    return;
  }
  OpenChannel open;
  open.name = offered_.at(relid).device->name();
  open.channel = std::move(*channel);
  open.connection_id = request.connection_id;
  open.primary = offered_.at(relid).sub_channel_index == 0;
  const int doorbell = open.channel->doorbell();
  VMBUSD_ASSERT(channels_.emplace(relid, std::move(open)).second);
  keep_fd(partition::doorbell_fd_key(relid), doorbell);
  if (recovering_) {
    ++reopening_;
    return start_channel(relid);
  }
  // The guest may signal as soon as it sees the open's result, so the doorbell comes first.
  attach_.doorbell_attach(request.connection_id, doorbell,
                          [this, relid](const Result<void>& result) { doorbell_attached(relid, result); });
}

void Bus::doorbell_attached(vmbus::Relid relid, const Result<void>& result) {
  OpenChannel& open = channels_.at(relid);
  if (!result) {
    log_.warning("cannot open channel {}: the VMM did not attach its doorbell: {}", relid,
                 describe(result.error()));
    open.status = kStatusUnsuccessful;
    channel_closed(relid);
    return;
  }
  if (open.close_wanted) {
    detach_doorbell(relid);
    return;
  }
  start_channel(relid);
}

void Bus::start_channel(vmbus::Relid relid) {
  OpenChannel& open = channels_.at(relid);
  open.phase = OpenChannel::Phase::kStarting;
  Channel& channel = *open.channel;
  channel.worker().post([this, &channel, relid] {
    const Result<void> started = channel.start();
    post_back([this, relid, started] { channel_started(relid, started); });
  });
}

void Bus::channel_started(vmbus::Relid relid, const Result<void>& result) {
  OpenChannel& open = channels_.at(relid);
  if (!result) {
    log_.guest("cannot open channel {}: {}", relid, describe(result.error()));
    open.status = kStatusInvalidParameter;
    stop_channel(relid);
    if (recovering_) disconnected(result.error());
    return;
  }
  open.phase = OpenChannel::Phase::kOpen;
  open.was_open = true;
  if (!recovering_) tell_of_primary(open, true);
  if (open.close_wanted) {
    stop_channel(relid);
    return;
  }
  if (!recovering_) log_.guest_info("{} opened, channel {}", open.name, relid);
  server_->open_done(relid, 0);
  if (recovering_) recovered_channel(relid);
}

void Bus::tell_of_primary(const OpenChannel& channel, bool open) {
  if (channel.primary && config_.primary_changed) config_.primary_changed(channel.name, open);
}

void Bus::close_channel(vmbus::Relid relid) {
  const auto found = channels_.find(relid);
  // It was not opened, and said so, after the server had made up its mind to close it.
  if (found == channels_.end()) return server_->close_done(relid);
  OpenChannel& open = found->second;
  open.close_wanted = true;
  if (open.phase == OpenChannel::Phase::kOpen) stop_channel(relid);
}

void Bus::stop_channel(vmbus::Relid relid) {
  OpenChannel& open = channels_.at(relid);
  open.phase = OpenChannel::Phase::kStopping;
  Channel& channel = *open.channel;
  channel.worker().post([this, &channel, relid] {
    channel.stop([this, relid] { post_back([this, relid] { detach_doorbell(relid); }); });
  });
}

void Bus::detach_doorbell(vmbus::Relid relid) {
  OpenChannel& open = channels_.at(relid);
  open.phase = OpenChannel::Phase::kDetaching;
  attach_.doorbell_detach(open.connection_id, [this, relid](const Result<void>& result) {
    if (!result && connected_)
      log_.warning("the VMM did not detach the doorbell of channel {}: {}", relid, describe(result.error()));
    channel_closed(relid);
  });
}

// Nothing of the channel is in use any more: tells the server, by the call that it waits for.
void Bus::channel_closed(vmbus::Relid relid) {
  auto closed = channels_.extract(relid);
  OpenChannel& open = closed.mapped();
  const bool was_closed = open.close_wanted;
  const std::uint32_t status = open.status;
  if (open.was_open) tell_of_primary(open, false);
  open.channel.reset();
  drop_fd(partition::doorbell_fd_key(relid));
  paused_.erase(relid);
  for (const vmbus::GpadlId gpadl : open.releasing) server_->gpadl_released(relid, gpadl);
  if (was_closed) {
    server_->close_done(relid);
  } else {
    server_->open_done(relid, status);
  }
  advance_removals();
  drained(relid);
}

void Bus::retarget_channel(vmbus::Relid relid, std::uint32_t vp) {
  OpenChannel& open = channels_.at(relid);
  Channel& channel = *open.channel;
  channel.worker().post([this, &channel, relid, vp] {
    channel.retarget(vp);
    post_back([this, relid] { server_->retarget_done(relid, 0); });
  });
}

void Bus::release_gpadl(vmbus::Relid relid, const std::shared_ptr<const vmbus::Gpadl>& gpadl) {
  const auto found = channels_.find(relid);
  if (found == channels_.end() || found->second.phase != OpenChannel::Phase::kOpen) {
    // No handler is running that could know it.
    server_->gpadl_released(relid, gpadl->id);
    return;
  }
  OpenChannel& open = found->second;
  open.releasing.insert(gpadl->id);
  Channel& channel = *open.channel;
  channel.worker().post([this, &channel, relid, id = gpadl->id] {
    auto released = [this, relid, id] { post_back([this, relid, id] { gpadl_released(relid, id); }); };
    if (channel.stopping()) {
      // Its handler was stopped: only what is in flight can still touch the pages.
      channel.when_idle(std::move(released));
    } else {
      channel.handler().release_gpadl(id, std::move(released));
    }
  });
}

void Bus::gpadl_released(vmbus::Relid relid, vmbus::GpadlId gpadl) {
  const auto found = channels_.find(relid);
  if (found == channels_.end() || found->second.releasing.erase(gpadl) == 0) return;
  server_->gpadl_released(relid, gpadl);
}

void Bus::offer_gone(vmbus::Relid relid) {
  offered_.erase(relid);
  offer_missing();
}

void Bus::connection_ended() {
  for (Device* const device : config_.devices) device->reset();
  advance_removals();
  if (reset_done_) std::exchange(reset_done_, nullptr)();
  if (!connected_ && ended_) control_.post(std::exchange(ended_, nullptr));
}

// Recovery.

void Bus::post_back(std::function<void()> function) {
  control_.post([this, run = std::move(function)] {
    begin_transition();
    run();
  });
}

// Before anything that may change what the guest or the VMM knows of us.
void Bus::begin_transition() {
  if (config_.recovery == nullptr) return;
  if (!in_transition_) config_.recovery->enter();
  in_transition_ = true;
  if (end_posted_) return;
  end_posted_ = true;
  control_.post([weak = std::weak_ptr<Bus*>(self_)] {
    if (const auto alive = weak.lock()) (*alive)->end_transition();
  });
}

// Where something still waits for an answer, what brings that begins anew.
void Bus::end_transition() {
  end_posted_ = false;
  if (in_transition_ && changes_.empty() && settled()) record();
}

void Bus::record() {
  snapshot_.clear();
  save(snapshot_);
  if (!config_.recovery->write_snapshot(snapshot_.bytes())) {
    log_.guest("the guest has lent too much memory to be recorded: it would not survive this worker process");
    return;
  }
  in_transition_ = false;
  config_.recovery->leave();
}

// Changes that wait apart.
bool Bus::settled() const {
  return connected_ && !recovering_ && server_ != nullptr && socket_.drained() && attach_.settled() &&
         server_->settled() && !reset_done_ &&
         std::all_of(channels_.begin(), channels_.end(), [](const auto& entry) {
           const OpenChannel& open = entry.second;
           return open.phase == OpenChannel::Phase::kOpen && !open.close_wanted && open.releasing.empty();
         });
}

void Bus::save(SerialWriter& out) const {
  attach_.save(out);
  out.put(SavedBus{identity_of(config_.name), offered_.size()});
  for (const auto& [relid, offered] : offered_) {
    out.put(SavedOffer{offered.interface_type, offered.instance, offered.incarnation, relid,
                       offered.sub_channel_index});
  }
  server_->save(out);
}

void Bus::recover(KeptFds fds) {
  VMBUSD_ASSERT(config_.recovery != nullptr);
  recovering_ = true;
  kept_fds_ = std::move(fds);
  const Result<std::vector<std::byte>> snapshot = config_.recovery->take_snapshot();
  Result<void> restored{};
  if (snapshot) {
    restored = restore(*snapshot);
  } else {
    restored = tl::unexpected(snapshot.error());
  }
  if (restored) return;
  log_.warning("cannot take up the guest of the last worker process: {}; its VMM must attach again",
               describe(restored.error()));
  disconnected(restored.error());
}

Result<void> Bus::restore(std::span<const std::byte> snapshot) {
  SerialReader in(snapshot);
  VMBUSD_CHECK(attach_.restore(in, [this](partition::FdKey key) { return std::move(kept_fds_[key]); }));
  VMBUSD_TRY(const SavedBus bus, in.get<SavedBus>());
  if (bus.partition != identity_of(config_.name)) return fail(Errc::kProtocol, "it is another partition's");
  for (std::uint64_t i = 0; i < bus.offers; ++i) {
    VMBUSD_TRY(const SavedOffer saved, in.get<SavedOffer>());
    if (saved.sub_channel_index > 0xffff) return fail(Errc::kProtocol, "a sub-channel that cannot be");
    const auto device =
        std::find_if(config_.devices.begin(), config_.devices.end(), [&saved](const Device* each) {
          const vmbus::Offer offer = each->offer();
          return offer.interface_type == saved.interface_type && offer.instance == saved.instance &&
                 each->incarnation() == saved.incarnation;
        });
    Offered offered{device == config_.devices.end() ? nullptr : *device, saved.interface_type, saved.instance,
                    saved.incarnation, saved.sub_channel_index};
    if (!offered_.emplace(saved.relid, offered).second) return fail(Errc::kProtocol, "an offer made twice");
  }
  VMBUSD_CHECK(server_->restore(in, [this](vmbus::Relid relid) { return offer_of(relid); }));
  if (!in.at_end()) return fail(Errc::kProtocol, "more than a bus records");
  std::vector<vmbus::Relid> primaries;
  for (const auto& [relid, offered] : offered_) {
    const bool primary = offered.sub_channel_index == 0;
    if (primary && !removed(offered.device) && offered.device->can_be_taken_up()) primaries.push_back(relid);
  }
  ++reopening_;
  for (const vmbus::Relid relid : primaries) VMBUSD_CHECK(server_->reopen(relid));
  recovered_channel(0);
  return {};
}

Result<vmbus::Offer> Bus::offer_of(vmbus::Relid relid) const {
  const auto found = offered_.find(relid);
  if (found == offered_.end()) return fail(Errc::kProtocol, "a channel that was not offered");
  const Offered& offered = found->second;
  vmbus::Offer offer;
  offer.interface_type = offered.interface_type;
  offer.instance = offered.instance;
  if (offered.device != nullptr) offer = offered.device->offer();
  offer.sub_channel_index = static_cast<std::uint16_t>(offered.sub_channel_index);
  return offer;
}

// One of the channels that recover() waits for serves again (0: they are all asked for). A primary's are
// asked for now.
void Bus::recovered_channel(vmbus::Relid relid) {
  if (relid != 0 && offered_.at(relid).sub_channel_index == 0) {
    std::vector<vmbus::Relid> sub_channels;
    for (const auto& [other, offered] : offered_) {
      if (offered.sub_channel_index != 0 && offered.device == offered_.at(relid).device) {
        sub_channels.push_back(other);
      }
    }
    for (const vmbus::Relid sub_channel : sub_channels) {
      const Result<void> reopened = server_->reopen(sub_channel);
      if (!reopened) return disconnected(reopened.error());
    }
  }
  if (--reopening_ != 0 || !connected_) return;
  recovering_ = false;
  for (const auto& [key, fd] : std::exchange(kept_fds_, {})) {
    if (fd) drop_fd(key);
  }
  log_.info("took up the guest of the last worker process: {} open channels", channels_.size());
  attach_.taken_up();
  exchange_devices();
  offer_missing();
  advance_removals();
  socket_.start();
  begin_transition();
  if (config_.recovered) config_.recovered();
}

// Has the guest see devices that were open and cannot be taken up go and come back, and those go that are not
// there any more.
void Bus::exchange_devices() {
  std::vector<vmbus::Relid> lost;
  for (auto& [relid, offered] : offered_) {
    const bool open = server_->awaits_reopen(relid);
    if (open) attach_.doorbell_detach(vmbus::Server::signal_connection(relid), [](const Result<void>&) {});
    if (offered.sub_channel_index != 0) continue;  // goes with its primary
    if (open || removed(offered.device)) lost.push_back(relid);
  }
  for (const vmbus::Relid relid : lost) {
    if (const Device* const device = offered_.at(relid).device; !removed(device)) {
      log_.warning("{} cannot be taken up: it is taken from the guest and offered anew", device->name());
    }
    server_->rescind(relid);
  }
  for (Removal& removal : removals_) {
    removal.step = Removal::Step::kTold;
    removal.due = control_.now() + kLetGoTime;
  }
  arm_removals();
}

bool Bus::doorbell_kept(std::uint32_t connection_id, int eventfd) {
  const vmbus::Relid relid = connection_id - vmbus::Server::signal_connection(0);
  if (relid == 0 || relid > vmbus::kMaxChannels) return false;
  keep_fd(partition::doorbell_fd_key(relid), eventfd);
  return true;
}

Result<void> Bus::take_up(UniqueFd area) {
  VMBUSD_CHECK(RecoveryArea::examine(area.get()));
  control_.post([weak = std::weak_ptr<Bus*>(self_), file = std::make_shared<UniqueFd>(std::move(area))] {
    const auto alive = weak.lock();
    if (alive && (*alive)->connected_) (*alive)->config_.take_up(std::move(*file));
  });
  return {};
}

void Bus::keep_fd(partition::FdKey key, int fd) {
  // Those of a connection that is taken up are kept still.
  if (config_.keep_fd && !recovering_) config_.keep_fd(key, fd);
}

void Bus::drop_fd(partition::FdKey key) {
  if (config_.drop_fd && connected_) config_.drop_fd(key);
}

void Bus::at_rest(std::function<void(bool recorded)> done) {
  if (config_.recovery == nullptr || server_ == nullptr) return done(false);
  change_partition(
      true, [this, done = std::move(done)] { done(recorded()); }, [] {});
}

bool Bus::recorded() {
  if (config_.recovery == nullptr) return false;
  if (in_transition_ && changes_.size() <= 1 && settled()) record();
  return !in_transition_;
}

// Devices; any thread.

void Bus::find_gpadl(Channel& channel, std::uint32_t gpadl,
                     std::function<void(std::shared_ptr<const vmbus::Gpadl>)> done) {
  control_.post([this, &channel, gpadl, done = std::move(done)] {
    // The channel is there still: its worker posted this before it can have posted the channel's end.
    const auto found = channels_.find(channel.relid());
    if (found == channels_.end() || found->second.close_wanted) return;
    channel.worker().post([&channel, done, lent = server_->find_gpadl(channel.relid(), gpadl)] {
      if (!channel.stopping()) done(lent);
    });
  });
}

void Bus::offer_sub_channels(Device& device, std::uint32_t count) {
  // The caller's transition may end before ours begins.
  if (config_.recovery != nullptr) config_.recovery->enter();
  control_.post([this, &device, count] {
    begin_transition();
    if (config_.recovery != nullptr) config_.recovery->leave();
    if (removed(&device)) return;
    for (std::uint32_t i = 1; i <= count; ++i) offer(device, i);
  });
}

}  // namespace vmbusd::devices
