#include "guest/guest_channel.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace vmbusd::guest {

Result<std::unique_ptr<GuestChannel>> GuestChannel::open(BusClient& bus, const vmbus::OfferChannel& offer,
                                                         const Options& options) {
  VMBUSD_TRY(Pages pages,
             bus.child().ram().take(options.to_host_pages + options.from_host_pages, options.layout));
  VMBUSD_TRY(const std::uint32_t gpadl, bus.create_gpadl(offer.relid, pages.gpns()));
  std::unique_ptr<GuestChannel> channel(new GuestChannel(bus, offer, options, std::move(pages), gpadl));
  VMBUSD_CHECK(channel->start());
  return channel;
}

GuestChannel::GuestChannel(BusClient& bus, const vmbus::OfferChannel& offer, const Options& options,
                           Pages pages, std::uint32_t gpadl)
    : bus_(bus),
      offer_(offer),
      options_(options),
      pages_(std::move(pages)),
      gpadl_(gpadl),
      to_host_(ring_memory(0, options.to_host_pages)),
      from_host_(ring_memory(options.to_host_pages, options.from_host_pages)) {}

GuestChannel::~GuestChannel() {
  if (open_) pages_.abandon();
}

ring::RingMemory GuestChannel::ring_memory(std::uint32_t first_page, std::uint32_t count) {
  std::vector<ring::RingMemory::MappedPage> data;
  for (std::uint32_t page = first_page + 1; page < first_page + count; ++page) {
    data.push_back({pages_.host(page), child().ram().fd(), static_cast<off_t>(pages_.gpa(page))});
  }
  return ring::RingMemory::best(&control_at(first_page), data);
}

// Zeroes both index pairs, as Linux does at every open, and opens the channel with the GPADL that is there.
Result<void> GuestChannel::start() {
  std::memset(pages_.host(0), 0, kPageSize);
  std::memset(pages_.host(options_.to_host_pages), 0, kPageSize);
  VMBUSD_CHECK(to_host_.attach());
  VMBUSD_CHECK(from_host_.attach());
  to_host_position_ = from_host_position_ = 0;
  open_ = true;
  VMBUSD_TRY(const vmbus::Status status, bus_.open_channel({.relid = offer_.relid,
                                                            .gpadl = gpadl_,
                                                            .to_host_pages = options_.to_host_pages,
                                                            .target_vp = options_.target_vp}));
  if (status != vmbus::Status::kSuccess) {
    open_ = false;
    return fail(Errc::kWrongState, "the host refuses to open the channel");
  }
  doorbell_ = child().doorbell(offer_.connection_id);
  if (doorbell_ == nullptr) return fail(Errc::kProtocol, "the host attached no doorbell to the channel");
  return {};
}

Result<void> GuestChannel::close() {
  VMBUSD_CHECK(bus_.close_channel(offer_.relid));
  VMBUSD_CHECK(bus_.teardown_gpadl(offer_.relid, gpadl_));
  open_ = false;
  return {};
}

Result<void> GuestChannel::reopen() {
  VMBUSD_CHECK(bus_.close_channel(offer_.relid));
  // An event of the channel's first life must not wake its second.
  (void)child().vp(options_.target_vp).take_event(offer_.relid);
  return start();
}

Result<void> GuestChannel::flush() {
  VMBUSD_TRY(const bool written, to_host_.commit());
  const bool room = from_host_.release();
  // Less than a ring each: no more is written or read before the host has seen it.
  const std::uint32_t sent =
      ring::ring_distance(to_host_position_, to_host_.write_position(), to_host_.size());
  const std::uint32_t taken =
      ring::ring_distance(from_host_position_, from_host_.read_position(), from_host_.size());
  ring_bytes_.to_host += sent;
  ring_bytes_.from_host += taken;
  to_host_position_ = to_host_.write_position();
  from_host_position_ = from_host_.read_position();
  if (written || room) ring_doorbell();
  return {};
}

void GuestChannel::ring_doorbell() {
  ++doorbells_;
  if ((offer_.monitor_flags & vmbus::kMonitorAllocated) != 0) return bus_.set_monitor_bit(offer_.monitor_id);
  const std::uint64_t one = 1;
  // Fails only where the counter is full, which is a signal as well.
  (void)!::write(doorbell_->get(), &one, sizeof one);
}

Result<bool> GuestChannel::wait(std::chrono::milliseconds patience) {
  VMBUSD_CHECK(flush());
  if (!from_host_.unmask()) return true;
  VirtualProcessor& vp = child().vp(options_.target_vp);
  const bool signalled = vp.wait_event(offer_.relid, Clock::now() + patience);
  VMBUSD_TRY(const std::uint32_t readable, from_host_.readable());
  // A packet without its signal: that may be under way.
  if (!signalled && readable != 0 && !vp.wait_event(offer_.relid, Clock::now() + kPatience)) {
    return fail(Errc::kWrongState, "the host wrote into an empty ring without a signal");
  }
  from_host_.mask();
  return readable != 0;
}

Result<vmbus::Status> GuestChannel::retarget(std::uint32_t vp) {
  VMBUSD_TRY(const vmbus::Status status, bus_.modify_channel(offer_.relid, vp));
  if (status == vmbus::Status::kSuccess) options_.target_vp = vp;
  return status;
}

}  // namespace vmbusd::guest
