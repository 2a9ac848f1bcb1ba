// What the channels of one opening of a NIC share: the primary sets it, all read it.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/cache_line.h"
#include "io/worker.h"
#include "netvsp/counters.h"
#include "netvsp/nvsp_session.h"
#include "vmbus/server.h"

namespace vmbusd::netvsp {

class NetChannel;

// How others reach a channel: post to its worker, look there whether it is still running.
struct ChannelAnchor {
  io::Worker* worker;
  NetChannel* channel;  // worker thread only; nullptr once nothing of it is in flight any more
};

struct Opening {
  // Set-up. Any thread, under the mutex.
  std::mutex mutex;
  // By sub-channel index; [0] is the primary. nullptr: not started yet.
  std::vector<std::shared_ptr<ChannelAnchor>> channels;
  std::uint32_t sub_channels_granted = 0;
  std::shared_ptr<const vmbus::Gpadl> receive_gpadl;
  std::shared_ptr<const vmbus::Gpadl> send_gpadl;
  ReceiveLayout receive_layout;
  std::uint16_t receive_buffer_id = 0;
  std::uint32_t receive_shares = 1;  // channels that the sub-allocations are divided among
  bool large_receive = false;

  // Read by the data path of every channel; each stands for itself, so relaxed.
  std::atomic<std::uint32_t> filter{0};  // kFilter*; 0 once `leaving`
  std::atomic<std::uint32_t> offloads{0};
  std::atomic<std::uint32_t> mtu{1500};
  std::atomic<std::uint64_t> mac{0};  // MacAddress::value()
  std::atomic<bool> vlan{false};
  std::atomic<bool> running{false};  // RNDIS is initialized
  std::atomic<std::uint32_t> nvsp_version{0};
  std::atomic<bool> leaving{false};  // the NIC goes: nothing is received any more
};

// The counters of a queue, for others to read: its channel publishes them at the end of each turn.
class alignas(kCacheLineBytes) PublishedCounters {
 public:
  void publish(const QueueCounters& counters) {
    const auto words = std::bit_cast<Words>(counters);
    for (std::size_t i = 0; i < words.size(); ++i) words_[i].store(words[i], std::memory_order_relaxed);
  }
  // Each number is whole; together they may be of two turns.
  [[nodiscard]] QueueCounters read() const {
    Words words;
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = words_[i].load(std::memory_order_relaxed);
    return std::bit_cast<QueueCounters>(words);
  }

 private:
  using Words = std::array<std::uint64_t, sizeof(QueueCounters) / sizeof(std::uint64_t)>;
  std::array<std::atomic<std::uint64_t>, std::tuple_size_v<Words>> words_{};
};

}  // namespace vmbusd::netvsp
