// What a NIC's channel keeps in its recovery region, so that another worker process can take it up: what it
// owes the guest and what the guest owes it, and of a primary channel what was negotiated and set.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/wire.h"
#include "devices/channel.h"
#include "netvsp/mac_address.h"
#include "netvsp/nic_state.h"

namespace vmbusd::netvsp {

// Packets whose completion is owed or on its way.
inline constexpr std::uint32_t kTransmitPackets = 256;

// A packet of the guest's. Written in an order such that a process that dies anywhere leaves one of the
// states below; by one thread, and read when that is dead.
struct TransmitRecord {
  // Values of `answered`; all others are a count of commits: the one that hands the completion to the guest.
  static constexpr std::uint64_t kFree = 0;
  static constexpr std::uint64_t kOwed = ~std::uint64_t{0};

  std::uint64_t transaction_id;
  std::uint64_t taken;  // the count of releases that takes it from the guest: until then it has it still
  std::uint64_t answered;

  void mark(std::uint64_t value) {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    answered = value;
  }
  [[nodiscard]] bool owed(const devices::PublicationCounts& seen) const {
    return answered > seen.commits && taken <= seen.releases;
  }
};

// A sub-allocation of the receive buffer, as TransmitRecord. All but `next` are of the first of a packet's.
struct ReceiveRecord {
  static constexpr std::uint64_t kNever = ~std::uint64_t{0};

  std::uint64_t delivered;   // the count of commits that hands the packet to the guest
  std::uint64_t given_back;  // the count of releases that takes its completion from the guest
  std::uint32_t next;        // sub-allocation in the same packet
  std::uint32_t count;       // of the packet; 0: not the first of one

  void lend(std::uint64_t commit, std::uint32_t sub_allocations) {
    delivered = commit;
    // Until it is delivered the rest means nothing.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    given_back = kNever;
    count = sub_allocations;
  }
  [[nodiscard]] bool with_guest(const devices::PublicationCounts& seen) const {
    return count != 0 && delivered <= seen.commits && given_back > seen.releases;
  }
};

// Of a primary channel; written whole when a change is over.
struct NicRecord {
  std::uint32_t nvsp_version;  // 0: none yet, and nothing else
  std::uint32_t mtu;
  std::uint32_t receive_gpadl;  // where `receives`
  std::uint32_t send_gpadl;     // where `sends`
  std::uint32_t sub_channels;   // granted
  std::uint32_t packet_filter;
  std::uint32_t offloads_supported;
  std::uint32_t offloads_enabled;
  std::uint16_t receive_buffer_id;
  MacAddress mac;
  // bools
  std::uint8_t vlan;
  std::uint8_t receives;
  std::uint8_t sends;
  std::uint8_t initialized;
  std::uint8_t link_told;
  std::uint8_t awaits_sub_channels;
  std::uint8_t rss_enabled;
  std::uint8_t reserved;
  std::uint32_t rss_hash_info;
  std::uint32_t rss_entries;
  std::array<std::uint8_t, kRssKeySize> rss_key;
  std::array<std::uint8_t, kRssIndirectionEntriesMax> rss_table;
};
static_assert(kIsWire<NicRecord, 224>);

// At the region's begin; the ReceiveRecords follow, as many as the channel has sub-allocations.
struct alignas(64) NetRecord {
  NicRecord nic;
  std::array<TransmitRecord, kTransmitPackets> transmit;
};

}  // namespace vmbusd::netvsp
