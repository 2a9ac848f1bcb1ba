// The open channels of one controller, for what concerns them all: resets, and commands that must be alone.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "io/worker.h"

namespace vmbusd::storvsp {

class StorChannel;

// Tells whoever made it when every channel has arrived. Any thread.
class Barrier {
 public:
  // `origin` is the channel that made it and stays until `done` was called; nullptr: it was none of them.
  // `done` is called on `worker`.
  Barrier(const StorChannel* origin, io::Worker& worker, std::uint32_t channels, std::function<void()> done)
      : origin_(origin), worker_(worker), left_(channels), done_(std::move(done)) {}

  // One channel is there; `where` is it, or nullptr where it has closed. Calls `done` where it is the last
  // and the origin, else posts it.
  void arrive(const StorChannel* where);

 private:
  const StorChannel* origin_;
  io::Worker& worker_;
  std::atomic<std::uint32_t> left_;
  std::function<void()> done_;
};

// Its lock guards the list only and is never taken for I/O: channels come and go, and ask all others for
// something, rarely.
class ChannelSet {
 public:
  // The channel's worker. From its start until it stopped and has nothing in flight.
  void add(StorChannel& channel, io::Worker& worker);
  void remove(StorChannel& channel);

  // `origin`'s worker, where `origin` is in the set. Has every channel call `visit` on its own worker,
  // `origin` at once and the others by a message; each arrives at the barrier sooner or later, those that
  // close meanwhile by themselves. Then `done` runs on `origin`'s worker, perhaps before this returns:
  // `origin` must stay till then.
  using VisitToMeet = std::function<void(StorChannel&, const std::shared_ptr<Barrier>&)>;
  void meet(StorChannel& origin, io::Worker& worker, const VisitToMeet& visit, std::function<void()> done);
  // The same for another thread, that of `worker`: `done` runs there, from its loop.
  void meet(io::Worker& worker, const VisitToMeet& visit, std::function<void()> done);
  // The same without the barrier: nobody waits.
  using Visit = std::function<void(StorChannel&)>;
  void tell(StorChannel& origin, const Visit& visit);

 private:
  struct Entry {
    std::uint64_t id;  // a new channel may take an old one's address
    StorChannel* channel;
    io::Worker* worker;
  };
  void post_visits(const std::vector<Entry>& entries, const StorChannel* apart, const VisitToMeet& visit,
                   const std::shared_ptr<Barrier>& barrier);
  [[nodiscard]] std::vector<Entry> entries();
  [[nodiscard]] StorChannel* find(std::uint64_t id);

  std::mutex mutex_;
  std::vector<Entry> entries_;
  std::uint64_t next_id_ = 0;
};

}  // namespace vmbusd::storvsp
