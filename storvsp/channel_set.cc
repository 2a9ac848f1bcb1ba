#include "storvsp/channel_set.h"

#include <algorithm>
#include <utility>

namespace vmbusd::storvsp {

void Barrier::arrive(const StorChannel* where) {
  // acq_rel: what the channels did before they arrived is done where `done` runs.
  if (left_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  if (where != nullptr && where == origin_) return std::exchange(done_, nullptr)();
  worker_.post(std::exchange(done_, nullptr));
}

void ChannelSet::add(StorChannel& channel, io::Worker& worker) {
  const std::lock_guard lock(mutex_);
  entries_.push_back({next_id_++, &channel, &worker});
}

void ChannelSet::remove(StorChannel& channel) {
  const std::lock_guard lock(mutex_);
  std::erase_if(entries_, [&](const Entry& entry) { return entry.channel == &channel; });
}

void ChannelSet::meet(StorChannel& origin, io::Worker& worker, const VisitToMeet& visit,
                      std::function<void()> done) {
  const std::vector<Entry> all = entries();
  const auto barrier =
      std::make_shared<Barrier>(&origin, worker, static_cast<std::uint32_t>(all.size()), std::move(done));
  post_visits(all, &origin, visit, barrier);
  visit(origin, barrier);
}

void ChannelSet::meet(io::Worker& worker, const VisitToMeet& visit, std::function<void()> done) {
  const std::vector<Entry> all = entries();
  const auto barrier =
      std::make_shared<Barrier>(nullptr, worker, static_cast<std::uint32_t>(all.size()) + 1, std::move(done));
  post_visits(all, nullptr, visit, barrier);
  barrier->arrive(nullptr);
}

void ChannelSet::post_visits(const std::vector<Entry>& entries, const StorChannel* apart,
                             const VisitToMeet& visit, const std::shared_ptr<Barrier>& barrier) {
  for (const Entry& entry : entries) {
    if (entry.channel == apart) continue;
    // A channel leaves the set on its worker, so one that is found there stays for the visit.
    entry.worker->post([this, visit, barrier, id = entry.id] {
      if (StorChannel* const channel = find(id); channel != nullptr) {
        visit(*channel, barrier);
      } else {
        barrier->arrive(nullptr);
      }
    });
  }
}

void ChannelSet::tell(StorChannel& origin, const Visit& visit) {
  for (const Entry& entry : entries()) {
    if (entry.channel == &origin) continue;
    entry.worker->post([this, visit, id = entry.id] {
      if (StorChannel* const channel = find(id); channel != nullptr) visit(*channel);
    });
  }
  visit(origin);
}

std::vector<ChannelSet::Entry> ChannelSet::entries() {
  const std::lock_guard lock(mutex_);
  return entries_;
}

StorChannel* ChannelSet::find(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [id](const Entry& entry) { return entry.id == id; });
  return found == entries_.end() ? nullptr : found->channel;
}

}  // namespace vmbusd::storvsp
