// What the guest's driver negotiated and set on one opening of a NIC.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "netvsp/counters.h"
#include "netvsp/mac_address.h"
#include "netvsp/ndis.h"
#include "netvsp/nvsp.h"

namespace vmbusd::netvsp {

// Offloads as bits: what the NIC can do is one mask, what is switched on another.
inline constexpr std::uint32_t kTxIpv4Checksum = 1u << 0;  // of the IPv4 header
inline constexpr std::uint32_t kRxIpv4Checksum = 1u << 1;
inline constexpr std::uint32_t kTxTcpIpv4Checksum = 1u << 2;
inline constexpr std::uint32_t kRxTcpIpv4Checksum = 1u << 3;
inline constexpr std::uint32_t kTxUdpIpv4Checksum = 1u << 4;
inline constexpr std::uint32_t kRxUdpIpv4Checksum = 1u << 5;
inline constexpr std::uint32_t kTxTcpIpv6Checksum = 1u << 6;
inline constexpr std::uint32_t kRxTcpIpv6Checksum = 1u << 7;
inline constexpr std::uint32_t kTxUdpIpv6Checksum = 1u << 8;
inline constexpr std::uint32_t kRxUdpIpv6Checksum = 1u << 9;
inline constexpr std::uint32_t kLsoIpv4 = 1u << 10;
inline constexpr std::uint32_t kLsoIpv6 = 1u << 11;
inline constexpr std::uint32_t kRscIpv4 = 1u << 12;
inline constexpr std::uint32_t kRscIpv6 = 1u << 13;

inline constexpr std::uint32_t kAllChecksums = (1u << 10) - 1;
inline constexpr std::uint32_t kAllLso = kLsoIpv4 | kLsoIpv6;
inline constexpr std::uint32_t kAllRsc = kRscIpv4 | kRscIpv6;

struct RssState {
  bool enabled = false;
  std::uint32_t hash_info = 0;  // kHash*
  std::uint32_t entries = 0;    // 0..kRssIndirectionEntriesMax
  std::array<std::uint8_t, kRssKeySize> key{};
  std::array<std::uint8_t, kRssIndirectionEntriesMax> table{};  // channel indices, each below `queues`
};

// Lives on the primary channel's worker. The first part is filled in by the NIC and by NVSP, the second by
// RNDIS sets.
struct NicState {
  MacAddress permanent_mac;
  bool mac_fixed = false;
  std::uint32_t mtu = 1500;  // IP packet
  NvspVersion nvsp_version = NvspVersion::k1;
  std::uint32_t link_speed_mbps = 10'000;
  std::string_view friendly_name;  // ASCII; outlives this
  std::uint32_t queues = 1;        // channels that the guest may have
  std::uint32_t offloads_supported = 0;
  bool link_up = false;

  bool initialized = false;  // RNDIS INITIALIZE .. HALT
  MacAddress mac;
  std::uint32_t packet_filter = 0;  // kFilter*
  std::uint32_t offloads_enabled = 0;
  RssState rss;
};

}  // namespace vmbusd::netvsp
