// What a NIC counts.
#pragma once

#include <cstdint>

namespace vmbusd::netvsp {

// Of one queue, since the NIC was made.
struct QueueCounters {
  std::uint64_t tx_packets = 0;  // a large send counts once
  std::uint64_t tx_bytes = 0;
  std::uint64_t tx_dropped = 0;   // could not be sent: back end down, or stuck while the guest starves
  std::uint64_t tx_rejected = 0;  // malformed, too long or with a foreign source address
  std::uint64_t rx_packets = 0;   // a coalesced packet counts once
  std::uint64_t rx_bytes = 0;
  std::uint64_t rx_dropped = 0;   // too long for the guest, or no room when it had to be split
  std::uint64_t rx_filtered = 0;  // not wanted by the guest's packet filter
  // Of the packets and bytes above.
  std::uint64_t tx_multicast_packets = 0;
  std::uint64_t tx_multicast_bytes = 0;
  std::uint64_t tx_broadcast_packets = 0;
  std::uint64_t tx_broadcast_bytes = 0;
  std::uint64_t rx_multicast_packets = 0;
  std::uint64_t rx_multicast_bytes = 0;
  std::uint64_t rx_broadcast_packets = 0;
  std::uint64_t rx_broadcast_bytes = 0;
  std::uint64_t tx_completions = 0;       // packets of the ring, each with one frame or more
  std::uint64_t rx_transfer_packets = 0;  // packets of the ring, each with one frame or more
};

[[nodiscard]] inline QueueCounters operator+(QueueCounters a, const QueueCounters& b) {
  a.tx_packets += b.tx_packets;
  a.tx_bytes += b.tx_bytes;
  a.tx_dropped += b.tx_dropped;
  a.tx_rejected += b.tx_rejected;
  a.rx_packets += b.rx_packets;
  a.rx_bytes += b.rx_bytes;
  a.rx_dropped += b.rx_dropped;
  a.rx_filtered += b.rx_filtered;
  a.tx_multicast_packets += b.tx_multicast_packets;
  a.tx_multicast_bytes += b.tx_multicast_bytes;
  a.tx_broadcast_packets += b.tx_broadcast_packets;
  a.tx_broadcast_bytes += b.tx_broadcast_bytes;
  a.rx_multicast_packets += b.rx_multicast_packets;
  a.rx_multicast_bytes += b.rx_multicast_bytes;
  a.rx_broadcast_packets += b.rx_broadcast_packets;
  a.rx_broadcast_bytes += b.rx_broadcast_bytes;
  a.tx_completions += b.tx_completions;
  a.rx_transfer_packets += b.rx_transfer_packets;
  return a;
}

}  // namespace vmbusd::netvsp
