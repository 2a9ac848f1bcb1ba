// What the bus tells of itself and its channels to those who look on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ringbuffer/ring_memory.h"

namespace vmbusd::devices {

// What a channel's handler counts where it serves a medium, since the channel was opened. Its worker's alone.
struct IoCounters {
  std::uint64_t reads = 0;  // that succeeded, as are writes and flushes
  std::uint64_t read_bytes = 0;
  std::uint64_t writes = 0;
  std::uint64_t written_bytes = 0;
  std::uint64_t flushes = 0;
  std::uint64_t errors = 0;  // that the host's medium failed
};

struct ChannelStatus {
  std::string device;                   // Device::name()
  std::uint32_t sub_channel_index = 0;  // 0: primary
  std::uint32_t relid = 0;
  std::string state;            // "opening", "running", "paused", "broken" or "closing"
  std::uint32_t target_vp = 0;  // or vmbus::kNoInterruptVp
  std::uint32_t in_flight = 0;  // operations
  ring::RingView incoming;      // guest to host
  ring::RingView outgoing;
  std::uint64_t doorbells = 0;
  std::uint64_t interrupts = 0;        // eventfd writes
  std::uint64_t interrupts_saved = 0;  // the guest was about to look anyway
  IoCounters io;
};

// Of one VMM connection.
struct BusStatus {
  std::uint32_t vp_count = 0;       // 0: the VMM has not said Hello yet
  std::uint32_t vmbus_version = 0;  // major << 16 | minor; 0: no guest is connected
  std::vector<ChannelStatus> channels;
};

}  // namespace vmbusd::devices
