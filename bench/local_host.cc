#include "bench/local_host.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/assert.h"
#include "bench/counted.h"
#include "devices/gpadl_view.h"

namespace vmbusd::bench {
namespace {

constexpr std::uint64_t kMemoryBytes = 64u << 20;

}  // namespace

bool LocalHost::Driver::poll() noexcept {
  stop_counting();
  if (drive_()) {
    start_counting();
    return true;
  }
  host_.worker_->deactivate(*this);
  host_.channel_->stop([this] { host_.worker_->stop(); });
  return false;
}

Result<std::unique_ptr<LocalHost>> LocalHost::make(devices::Device& device, std::uint32_t ring_pages) {
  std::unique_ptr<LocalHost> host(new LocalHost);
  VMBUSD_CHECK(host->open(device, ring_pages));
  return host;
}

LocalHost::~LocalHost() {
  if (channel_ != nullptr && !stopped_) {
    run([] { return false; });
  }
}

Result<void> LocalHost::open(devices::Device& device, std::uint32_t ring_pages) {
  VMBUSD_TRY(ram_, guest::Ram::create(kMemoryBytes));
  VMBUSD_CHECK(partition_.memory().add(0, ram_->size(), UniqueFd(::dup(ram_->fd())), 0, true));
  // Without polling: how long it polls depends on the clock.
  VMBUSD_TRY(worker_, io::Worker::create({.name = "bench", .poll_time_max = std::chrono::microseconds(0)}));
  VMBUSD_TRY(ring_pages_, ram_->take(2 * ring_pages));
  const std::span<const guest::Gpn> pages = ring_pages_.gpns();
  const vmbus::Gpadl gpadl = {
      1, 1, {{static_cast<std::uint32_t>(ring_pages_.bytes()), 0, {pages.begin(), pages.end()}}}};
  VMBUSD_TRY(devices::RingPair host_rings, devices::make_rings(partition_.memory(), gpadl, ring_pages));
  VMBUSD_TRY(devices::RingPair guest_rings, devices::make_rings(partition_.memory(), gpadl, ring_pages));
  to_host_.emplace(std::move(guest_rings.incoming));
  from_host_.emplace(std::move(guest_rings.outgoing));
  VMBUSD_CHECK(to_host_->attach());
  VMBUSD_CHECK(from_host_->attach());
  UniqueFd doorbell(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!doorbell) return fail_os(errno, "cannot make an eventfd");
  doorbell_ = doorbell.get();
  VMBUSD_TRY(std::unique_ptr<devices::ChannelHandler> handler, device.open(0, *this, *worker_));
  VMBUSD_TRY(devices::RecoveryRegion region, devices::RecoveryRegion::make_private());
  channel_ = std::make_unique<devices::Channel>(
      devices::Channel::Config{
          .name = "bench", .relid = 1, .target_vp = vmbus::kNoInterruptVp, .event_flag = 1},
      partition_, *worker_, std::move(host_rings.incoming), std::move(host_rings.outgoing),
      std::move(handler), std::move(doorbell), std::make_shared<devices::RecoveryRegion>(std::move(region)));
  return channel_->start();
}

void LocalHost::run(std::function<bool()> drive) {
  VMBUSD_ASSERT(!stopped_);
  Driver driver(*this, std::move(drive));
  worker_->activate(driver);
  start_counting();
  worker_->run();
  stopped_ = true;
}

Result<void> LocalHost::flush() {
  VMBUSD_TRY(const bool written, to_host_->commit());
  const bool room = from_host_->release();
  if (written || room) VMBUSD_ASSERT(::eventfd_write(doorbell_, 1) == 0);
  return {};
}

Result<bool> LocalHost::wait(std::chrono::milliseconds /*patience*/) {
  VMBUSD_CHECK(flush());
  (void)channel_->poll();
  if (found_) std::exchange(found_, nullptr)();
  (void)channel_->poll();
  VMBUSD_TRY(const std::uint32_t readable, from_host_->readable());
  return readable != 0;
}

Result<std::uint32_t> LocalHost::lend(std::span<const guest::Gpn> pages) {
  const auto id = static_cast<std::uint32_t>(2 + gpadls_.size());
  vmbus::Gpadl gpadl = {id, 1, {{static_cast<std::uint32_t>(pages.size() * guest::kPageSize), 0, {}}}};
  gpadl.ranges[0].pages.assign(pages.begin(), pages.end());
  gpadls_[id] = std::make_shared<const vmbus::Gpadl>(std::move(gpadl));
  return id;
}

void LocalHost::find_gpadl(devices::Channel& /*channel*/, std::uint32_t gpadl,
                           std::function<void(std::shared_ptr<const vmbus::Gpadl>)> done) {
  const auto found = gpadls_.find(gpadl);
  found_ = [done = std::move(done), lent = found == gpadls_.end() ? nullptr : found->second] { done(lent); };
}

void LocalHost::offer_sub_channels(devices::Device& /*device*/, std::uint32_t /*count*/) {}

}  // namespace vmbusd::bench
