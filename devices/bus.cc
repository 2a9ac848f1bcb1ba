#include "devices/bus.h"

#include <sys/eventfd.h>

#include <cerrno>

#include "base/assert.h"
#include "devices/gpadl_view.h"

namespace vmbusd::devices {

namespace {

// NTSTATUS values for OPENCHANNEL_RESULT [MS-ERREF: NTSTATUS Values].
constexpr std::uint32_t kStatusUnsuccessful = 0xc0000001;
constexpr std::uint32_t kStatusInvalidParameter = 0xc000000d;

}  // namespace

Bus::Bus(Config config, io::Worker& control, UniqueFd socket, std::function<void()> ended)
    : config_(std::move(config)),
      control_(control),
      log_(config_.name),
      ended_(std::move(ended)),
      attach_(*this, vmbus::Server::kMessageConnections, log_),
      socket_(
          control, std::move(socket),
          [this](partition::Datagram& datagram) {
            return attach_.receive(datagram.bytes(), std::move(datagram.fds));
          },
          [this](const Error& error) { disconnected(error); }) {
  VMBUSD_ASSERT(!config_.workers.empty());
}

Bus::~Bus() {
  VMBUSD_ASSERT(channels_.empty());
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
  for (Device* const device : config_.devices) {
    const Result<vmbus::Relid> relid = server_->offer(device->offer());
    if (!relid) {
      log_.error("cannot offer {}: {}", device->name(), describe(relid.error()));
      continue;
    }
    offered_.emplace(*relid, Offered{device, 0});
  }
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
          control_.post([this, relid] {
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
  partition::Partition& partition = *attach_.partition();
  VMBUSD_TRY(RingPair rings, make_rings(partition.memory(), *request.ring, request.incoming_pages));
  UniqueFd doorbell(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!doorbell) return fail_os(errno, "cannot make a doorbell");
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
                                   std::move(rings.outgoing), std::move(handler), std::move(doorbell));
}

void Bus::open_channel(vmbus::Relid relid, const vmbus::OpenRequest& request) {
  Result<std::unique_ptr<Channel>> channel = make_channel(relid, request);
  if (!channel) {
    log_.guest("cannot open channel {}: {}", relid, describe(channel.error()));
    server_->open_done(
        relid, channel.error().code == Errc::kBadGpadl ? kStatusInvalidParameter : kStatusUnsuccessful);
    return;
  }
  OpenChannel open;
  open.name = offered_.at(relid).device->name();
  open.channel = std::move(*channel);
  open.connection_id = request.connection_id;
  const int doorbell = open.channel->doorbell();
  VMBUSD_ASSERT(channels_.emplace(relid, std::move(open)).second);
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
  open.phase = OpenChannel::Phase::kStarting;
  Channel& channel = *open.channel;
  channel.worker().post([this, &channel, relid] {
    const Result<void> started = channel.start();
    control_.post([this, relid, started] { channel_started(relid, started); });
  });
}

void Bus::channel_started(vmbus::Relid relid, const Result<void>& result) {
  OpenChannel& open = channels_.at(relid);
  if (!result) {
    log_.guest("cannot open channel {}: {}", relid, describe(result.error()));
    open.status = kStatusInvalidParameter;
    stop_channel(relid);
    return;
  }
  open.phase = OpenChannel::Phase::kOpen;
  if (open.close_wanted) {
    stop_channel(relid);
    return;
  }
  log_.guest_info("{} opened, channel {}", open.name, relid);
  server_->open_done(relid, 0);
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
    channel.stop([this, relid] { control_.post([this, relid] { detach_doorbell(relid); }); });
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
  open.channel.reset();
  paused_.erase(relid);
  for (const vmbus::GpadlId gpadl : open.releasing) server_->gpadl_released(relid, gpadl);
  if (was_closed) {
    server_->close_done(relid);
  } else {
    server_->open_done(relid, status);
  }
  drained(relid);
}

void Bus::retarget_channel(vmbus::Relid relid, std::uint32_t vp) {
  OpenChannel& open = channels_.at(relid);
  Channel& channel = *open.channel;
  channel.worker().post([this, &channel, relid, vp] {
    channel.retarget(vp);
    control_.post([this, relid] { server_->retarget_done(relid, 0); });
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
    auto released = [this, relid, id] { control_.post([this, relid, id] { gpadl_released(relid, id); }); };
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
}

void Bus::connection_ended() {
  for (Device* const device : config_.devices) device->reset();
  if (reset_done_) std::exchange(reset_done_, nullptr)();
  if (!connected_ && ended_) control_.post(std::exchange(ended_, nullptr));
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
  control_.post([this, &device, count] {
    for (std::uint32_t i = 1; i <= count; ++i) {
      vmbus::Offer offer = device.offer();
      offer.sub_channel_index = static_cast<std::uint16_t>(i);
      const Result<vmbus::Relid> relid = server_->offer(offer);
      if (!relid) {
        log_.guest("cannot offer sub-channel {} of {}: {}", i, device.name(), describe(relid.error()));
        return;
      }
      offered_.emplace(*relid, Offered{&device, i});
    }
  });
}

}  // namespace vmbusd::devices
