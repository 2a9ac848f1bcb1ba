#include "netvsp/tap_steering.h"

#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <utility>

namespace vmbusd::netvsp {

namespace {

// Relaxed: the kernel's program reads each number by itself.
void put(std::uint32_t& shared, std::uint32_t value) {
  std::atomic_ref(shared).store(value, std::memory_order_relaxed);
}

// `what`: IFF_ATTACH_QUEUE or IFF_DETACH_QUEUE. False where it is so already, or there is no device any more.
bool switch_queue(int tap, int what) {
  ifreq request{};
  request.ifr_flags = static_cast<short>(what);
  return ::ioctl(tap, TUNSETQUEUE, &request) == 0;
}

}  // namespace

Result<std::shared_ptr<TapSteering>> TapSteering::make(UniqueFd table) {
  if (!table) return std::shared_ptr<TapSteering>(new TapSteering(nullptr));
  void* const shared =
      ::mmap(nullptr, sizeof(SteeringTable), PROT_READ | PROT_WRITE, MAP_SHARED, table.get(), 0);
  if (shared == MAP_FAILED) return fail_os(errno, "cannot map the steering table");
  std::shared_ptr<TapSteering> made(new TapSteering(static_cast<SteeringTable*>(shared)));
  made->set_rss({});  // it may be of a worker before this one
  return made;
}

TapSteering::~TapSteering() {
  if (table_ != nullptr) ::munmap(table_, sizeof *table_);
}

void TapSteering::set_rss(const RssState& rss) {
  const std::lock_guard lock(mutex_);
  rss_ = rss;
  if (table_ == nullptr) return;
  const bool on = rss.enabled && rss.entries != 0 && (rss.hash_info & kHashFunctionMask) == kHashToeplitz;
  if (on && key_ != rss.key) {
    for (std::size_t i = 0; i < kToeplitzInputMax; ++i) {
      const ToeplitzBytes bytes = unfold_toeplitz_key(rss.key, i);
      for (std::size_t value = 0; value < bytes.size(); ++value) {
        put(table_->toeplitz[i][value], bytes[value]);
      }
    }
    key_ = rss.key;
  }
  write_queues();
  put(table_->entries, rss.entries);
  put(table_->hash_types, on ? rss.hash_info & ~kHashFunctionMask : 0);
}

void TapSteering::select(int tap, std::uint32_t channel, bool on) {
  if (channel == 0 || tap < 0) return;
  const std::lock_guard lock(mutex_);
  if (on) {
    // Fails where it is attached already, or the device is gone, which reading tells.
    if (switch_queue(tap, IFF_ATTACH_QUEUE)) channels_.push_back(channel);
  } else {
    // [linux: __tun_detach in drivers/net/tun.c]
    static_cast<void>(switch_queue(tap, IFF_DETACH_QUEUE));
    const auto found = std::find(channels_.begin(), channels_.end(), channel);
    if (found == channels_.end()) return;
    *found = channels_.back();
    channels_.pop_back();
  }
  write_queues();
}

void TapSteering::replace(int tap, std::uint32_t channel) {
  if (channel == 0) return;
  const std::lock_guard lock(mutex_);
  static_cast<void>(switch_queue(tap, IFF_DETACH_QUEUE));
  // Those that are left follow each other as on the new TAP, once every queue is that one's.
  channels_.erase(std::remove(channels_.begin(), channels_.end(), channel), channels_.end());
  write_queues();
}

void TapSteering::write_queues() {
  if (table_ == nullptr) return;
  for (std::uint32_t i = 0; i < rss_.entries; ++i) {
    const auto found = std::find(channels_.begin(), channels_.end(), rss_.table[i]);
    put(table_->queues[i],
        found == channels_.end() ? 0 : static_cast<std::uint32_t>(found - channels_.begin()));
  }
}

}  // namespace vmbusd::netvsp
