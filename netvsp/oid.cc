#include "netvsp/oid.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

#include "netvsp/rndis_packet.h"

namespace vmbusd::netvsp {

namespace {

constexpr std::uint32_t kMicrosoftVendorId = 0x155d;  // drivers match Hyper-V's NIC by it
constexpr std::uint32_t kBufferSpace = 262144;        // as Hyper-V
constexpr std::uint16_t kDriverVersion = 0x0100;
// Below 64 KiB with all headers, so that an IPv4 total length can hold every segment. As [openvmm: netvsp].
constexpr std::uint32_t kLsoSizeMax = 0xf53c;
constexpr std::uint32_t kLsoSegmentsMin = 2;
// Windows then has all multicast frames delivered rather than send a list.
constexpr std::uint32_t kMulticastListMax = 0;

// [NDIS: NDIS_STATISTICS_INFO, SupportedStatistics]: all fields of NdisStatistics.
constexpr std::uint32_t kStatisticsSupported = 0x0001'ffff;

struct Query {
  const NicState& state;
  const CounterSource& counters;
  std::span<const std::byte> input;
  OidAnswer& out;
};

struct Set {
  NicState& state;
  std::span<const std::byte> input;
  std::uint32_t& changes;
};

using QueryFunction = RndisStatus (*)(const Query&);
using SetFunction = RndisStatus (*)(const Set&);

template <std::uint32_t Value>
RndisStatus constant(const Query& query) {
  query.out.u32(Value);
  return RndisStatus::kSuccess;
}

// Counters come in the width that the guest has room for. [NDIS: General Statistics OIDs]
RndisStatus counter(const Query& query, std::uint64_t value) {
  if (query.input.size() >= sizeof value) {
    query.out.u64(value);
  } else {
    query.out.u32(static_cast<std::uint32_t>(value));
  }
  return RndisStatus::kSuccess;
}

template <auto... Fields>
RndisStatus sum(const Query& query) {
  const QueueCounters totals = query.counters.totals();
  return counter(query, ((totals.*Fields) + ...));
}

RndisStatus no_counter(const Query& query) {
  return counter(query, 0);
}

RndisStatus supported_list(const Query& query);

RndisStatus mtu(const Query& query) {
  query.out.u32(query.state.mtu);
  return RndisStatus::kSuccess;
}

RndisStatus frame_size(const Query& query) {
  query.out.u32(query.state.mtu + kEthernetHeaderSize);
  return RndisStatus::kSuccess;
}

RndisStatus link_speed(const Query& query) {
  query.out.u32(query.state.link_speed_mbps * 10'000);  // 100 bit/s units
  return RndisStatus::kSuccess;
}

std::uint64_t bits_per_second(const NicState& state) {
  return std::uint64_t{state.link_speed_mbps} * 1'000'000;
}

RndisStatus max_link_speed(const Query& query) {
  const std::uint64_t speed = bits_per_second(query.state);
  query.out.bytes(wire_bytes(NdisLinkSpeed{speed, speed}));
  return RndisStatus::kSuccess;
}

RndisStatus link_state(const Query& query) {
  const std::uint64_t speed = bits_per_second(query.state);
  NdisLinkState link{};
  link.header = {kNdisObjectDefault, 1, sizeof link};
  link.connect_state = query.state.link_up ? 1 : 2;
  link.duplex = 2;
  link.tx_bits_per_second = speed;
  link.rx_bits_per_second = speed;
  query.out.bytes(wire_bytes(link));
  return RndisStatus::kSuccess;
}

RndisStatus vendor_description(const Query& query) {
  constexpr std::string_view kText = "Microsoft Corporation";  // as Hyper-V
  query.out.bytes(std::as_bytes(std::span(kText.data(), kText.size() + 1)));
  return RndisStatus::kSuccess;
}

RndisStatus driver_version(const Query& query) {
  query.out.u16(kDriverVersion);
  return RndisStatus::kSuccess;
}

RndisStatus packet_filter(const Query& query) {
  query.out.u32(query.state.packet_filter);
  return RndisStatus::kSuccess;
}

RndisStatus media_connect_status(const Query& query) {
  query.out.u32(query.state.link_up ? 0 : 1);
  return RndisStatus::kSuccess;
}

RndisStatus friendly_name(const Query& query) {
  // "Network Adapter" is Hyper-V's default, which Linux ignores.
  const std::string_view name =
      query.state.friendly_name.empty() ? "Network Adapter" : query.state.friendly_name;
  std::array<std::uint16_t, kFriendlyNameSize / 2> wide{};
  const std::size_t length = std::min(name.size(), wide.size() - 1);
  std::transform(name.begin(), name.begin() + static_cast<std::ptrdiff_t>(length), wide.begin(),
                 [](char c) { return static_cast<std::uint16_t>(static_cast<unsigned char>(c)); });
  query.out.bytes(std::as_bytes(std::span(wide)));
  return RndisStatus::kSuccess;
}

RndisStatus permanent_mac(const Query& query) {
  query.out.bytes(std::as_bytes(std::span(query.state.permanent_mac.bytes)));
  return RndisStatus::kSuccess;
}

RndisStatus current_mac(const Query& query) {
  query.out.bytes(std::as_bytes(std::span(query.state.mac.bytes)));
  return RndisStatus::kSuccess;
}

RndisStatus statistics(const Query& query) {
  const QueueCounters totals = query.counters.totals();
  NdisStatistics out{};
  out.header = {kNdisObjectDefault, 1, sizeof out};
  out.supported = kStatisticsSupported;
  out.in_discards = totals.rx_dropped;
  out.in_octets = totals.rx_bytes;
  out.in_multicast_packets = totals.rx_multicast_packets;
  out.in_broadcast_packets = totals.rx_broadcast_packets;
  out.in_unicast_packets = totals.rx_packets - out.in_multicast_packets - out.in_broadcast_packets;
  out.in_multicast_octets = totals.rx_multicast_bytes;
  out.in_broadcast_octets = totals.rx_broadcast_bytes;
  out.in_unicast_octets = totals.rx_bytes - out.in_multicast_octets - out.in_broadcast_octets;
  out.out_octets = totals.tx_bytes;
  out.out_multicast_packets = totals.tx_multicast_packets;
  out.out_broadcast_packets = totals.tx_broadcast_packets;
  out.out_unicast_packets = totals.tx_packets - out.out_multicast_packets - out.out_broadcast_packets;
  out.out_multicast_octets = totals.tx_multicast_bytes;
  out.out_broadcast_octets = totals.tx_broadcast_bytes;
  out.out_unicast_octets = totals.tx_bytes - out.out_multicast_octets - out.out_broadcast_octets;
  out.out_errors = totals.tx_rejected;
  out.out_discards = totals.tx_dropped;
  query.out.bytes(wire_bytes(out));
  return RndisStatus::kSuccess;
}

template <auto Total, auto Multicast, auto Broadcast>
RndisStatus directed(const Query& query) {
  const QueueCounters totals = query.counters.totals();
  return counter(query, totals.*Total - totals.*Multicast - totals.*Broadcast);
}

RndisStatus rss_capabilities(const Query& query) {
  if (query.state.nvsp_version < NvspVersion::k5) return RndisStatus::kNotSupported;
  // The guest says by a header how much it knows; none: all.
  std::uint16_t size = kNdisRssCapabilitiesSize2;
  NdisObjectHeader asked;
  if (read_wire(query.input, asked)) size = std::min(size, asked.size);
  if (size < kNdisRssCapabilitiesSize1) return RndisStatus::kBufferTooShort;
  NdisRssCapabilities caps{};
  if (size < kNdisRssCapabilitiesSize2) size = kNdisRssCapabilitiesSize1;
  caps.header = {kNdisObjectRssCapabilities,
                 static_cast<std::uint8_t>(size == kNdisRssCapabilitiesSize2 ? 2 : 1), size};
  caps.flags = kRssCapabilityToeplitz | kRssCapabilityTcpIpv4 | kRssCapabilityTcpIpv6;
  caps.interrupt_messages = 1;
  caps.receive_queues = query.state.queues;
  caps.indirection_entries = kRssIndirectionEntriesMax;
  query.out.bytes(wire_bytes(caps).first(size));
  return RndisStatus::kSuccess;
}

RndisStatus offload_object(const Query& query, std::uint32_t offloads) {
  std::uint32_t limit = offload_size_of(query.state.nvsp_version);
  NdisObjectHeader asked;
  if (read_wire(query.input, asked)) {
    if (asked.type != kNdisObjectOffload) return RndisStatus::kInvalidData;
    limit = asked.size;
  }
  if (limit < kNdisOffloadSize1) return RndisStatus::kBufferTooShort;
  const NdisOffload object = make_offload_object(offloads, limit);
  query.out.bytes(wire_bytes(object).first(object.header.size));
  return RndisStatus::kSuccess;
}

RndisStatus hardware_capabilities(const Query& query) {
  return offload_object(query, query.state.offloads_supported);
}

RndisStatus current_offloads(const Query& query) {
  return offload_object(query, query.state.offloads_enabled);
}

// Sets.

// What has no effect on this NIC, but must not fail.
template <std::size_t SizeMin>
RndisStatus accept(const Set& set) {
  return set.input.size() < SizeMin ? RndisStatus::kInvalidLength : RndisStatus::kSuccess;
}

RndisStatus set_packet_filter(const Set& set) {
  std::uint32_t filter;
  if (!read_wire(set.input, filter)) return RndisStatus::kInvalidLength;
  set.state.packet_filter = filter;
  set.changes |= kFilterChanged;
  return RndisStatus::kSuccess;
}

RndisStatus set_multicast_list(const Set& set) {
  // All multicast frames are delivered where the filter wants any, so the list itself is not kept.
  return set.input.size() % sizeof(MacAddress) == 0 ? RndisStatus::kSuccess : RndisStatus::kInvalidLength;
}

void switch_bits(std::uint32_t& mask, std::uint32_t bits, bool on) {
  mask = on ? mask | bits : mask & ~bits;
}

// Applies a byte of NdisOffloadParameters. False where its value is unknown.
bool switch_checksum(std::uint32_t& mask, std::uint8_t value, std::uint32_t tx, std::uint32_t rx) {
  if (value == kOffloadNoChange) return true;
  if (value > kChecksumOnBoth) return false;
  switch_bits(mask, tx, value == kChecksumTxOnly || value == kChecksumOnBoth);
  switch_bits(mask, rx, value == kChecksumRxOnly || value == kChecksumOnBoth);
  return true;
}

bool switch_feature(std::uint32_t& mask, std::uint8_t value, std::uint32_t bit) {
  if (value == kOffloadNoChange) return true;
  if (value > kOffloadEnabled) return false;
  switch_bits(mask, bit, value == kOffloadEnabled);
  return true;
}

RndisStatus set_offload_parameters(const Set& set) {
  if (set.input.size() < kNdisOffloadParametersSizeMin) return RndisStatus::kInvalidLength;
  NdisOffloadParameters asked{};  // what an older guest does not send stays at "no change"
  std::memcpy(&asked, set.input.data(), std::min(set.input.size(), sizeof asked));
  std::uint32_t mask = set.state.offloads_enabled;
  const bool known = switch_checksum(mask, asked.ipv4_checksum, kTxIpv4Checksum, kRxIpv4Checksum) &&
                     switch_checksum(mask, asked.tcp_ipv4_checksum, kTxTcpIpv4Checksum, kRxTcpIpv4Checksum) &&
                     switch_checksum(mask, asked.udp_ipv4_checksum, kTxUdpIpv4Checksum, kRxUdpIpv4Checksum) &&
                     switch_checksum(mask, asked.tcp_ipv6_checksum, kTxTcpIpv6Checksum, kRxTcpIpv6Checksum) &&
                     switch_checksum(mask, asked.udp_ipv6_checksum, kTxUdpIpv6Checksum, kRxUdpIpv6Checksum) &&
                     switch_feature(mask, asked.lso_v2_ipv4, kLsoIpv4) &&
                     switch_feature(mask, asked.lso_v2_ipv6, kLsoIpv6) &&
                     switch_feature(mask, asked.rsc_ipv4, kRscIpv4) &&
                     switch_feature(mask, asked.rsc_ipv6, kRscIpv6);
  if (!known) return RndisStatus::kInvalidData;
  set.state.offloads_enabled = mask & set.state.offloads_supported;
  set.changes |= kOffloadsChanged;
  return RndisStatus::kSuccess;
}

// A range that the guest names inside its input; empty where it is not inside.
std::optional<std::span<const std::byte>> part(std::span<const std::byte> input, std::uint64_t offset,
                                               std::uint64_t size) {
  if (offset + size > input.size()) return std::nullopt;  // both below 2^32: no wrap
  return input.subspan(offset, size);
}

RndisStatus set_rss_parameters(const Set& set) {
  // Offsets of table and key are in any order: Linux has the table first, DPDK and FreeBSD the key.
  constexpr std::size_t kSizeMin = offsetof(NdisRssParameters, processor_masks_offset);
  if (set.input.size() < kSizeMin) return RndisStatus::kInvalidLength;
  NdisRssParameters asked{};
  std::memcpy(&asked, set.input.data(), std::min(set.input.size(), sizeof asked));
  RssState rss = set.state.rss;
  if ((asked.flags & kRssDisable) != 0) {
    set.state.rss.enabled = false;
    set.changes |= kRssChanged;
    return RndisStatus::kSuccess;
  }
  rss.enabled = true;
  if ((asked.flags & kRssHashInfoUnchanged) == 0) rss.hash_info = asked.hash_info;
  if ((asked.flags & kRssKeyUnchanged) == 0) {
    if (asked.hash_key_size != rss.key.size()) return RndisStatus::kInvalidLength;
    const auto key = part(set.input, asked.hash_key_offset, asked.hash_key_size);
    if (!key) return RndisStatus::kInvalidData;
    std::memcpy(rss.key.data(), key->data(), rss.key.size());
  }
  if ((asked.flags & kRssTableUnchanged) == 0) {
    const std::uint32_t size = asked.indirection_table_size;
    if (size == 0 || size % sizeof(std::uint32_t) != 0 ||
        size / sizeof(std::uint32_t) > kRssIndirectionEntriesMax) {
      return RndisStatus::kInvalidLength;
    }
    const auto table = part(set.input, asked.indirection_table_offset, size);
    if (!table) return RndisStatus::kInvalidData;
    rss.entries = size / static_cast<std::uint32_t>(sizeof(std::uint32_t));
    for (std::uint32_t i = 0; i < rss.entries; ++i) {
      std::uint32_t channel;
      std::memcpy(&channel, table->data() + i * sizeof channel, sizeof channel);
      if (channel >= set.state.queues) return RndisStatus::kInvalidData;
      rss.table[i] = static_cast<std::uint8_t>(channel);
    }
  }
  set.state.rss = rss;
  set.changes |= kRssChanged;
  return RndisStatus::kSuccess;
}

// UTF-16LE whose characters all are ASCII, as text; empty where it is anything else or too long.
class AsciiName {
 public:
  explicit AsciiName(std::span<const std::byte> wide) {
    if (wide.size() % 2 != 0 || wide.size() / 2 > text_.size()) return;
    for (std::size_t i = 0; i < wide.size(); i += 2) {
      if (wide[i + 1] != std::byte{0}) return;
      text_[i / 2] = static_cast<char>(wide[i]);
    }
    size_ = wide.size() / 2;
    while (size_ != 0 && text_[size_ - 1] == '\0') --size_;  // some guests count the terminator
  }
  [[nodiscard]] std::string_view text() const { return {text_.data(), size_}; }

 private:
  std::array<char, 64> text_{};
  std::size_t size_ = 0;
};

RndisStatus set_network_address(const Set& set, std::string_view digits) {
  if (set.state.mac_fixed) return RndisStatus::kFailure;
  std::array<char, 17> text{};
  if (digits.size() != 12) return RndisStatus::kInvalidData;
  for (std::size_t i = 0; i < 6; ++i) {
    text[i * 3] = digits[i * 2];
    text[i * 3 + 1] = digits[i * 2 + 1];
    if (i != 5) text[i * 3 + 2] = ':';
  }
  const std::optional<MacAddress> mac = MacAddress::parse(std::string_view(text.data(), text.size()));
  if (!mac || !mac->valid_unicast()) return RndisStatus::kInvalidData;
  set.state.mac = *mac;
  set.changes |= kMacChanged;
  return RndisStatus::kSuccess;
}

// Windows' advanced properties; their value counts 0 off, 1 transmit, 2 receive, 3 both.
struct Keyword {
  std::string_view name;
  std::uint32_t tx;
  std::uint32_t rx;
};
constexpr Keyword kKeywords[] = {
    {"*IPChecksumOffloadIPv4", kTxIpv4Checksum, kRxIpv4Checksum},
    {"*TCPChecksumOffloadIPv4", kTxTcpIpv4Checksum, kRxTcpIpv4Checksum},
    {"*TCPChecksumOffloadIPv6", kTxTcpIpv6Checksum, kRxTcpIpv6Checksum},
    {"*UDPChecksumOffloadIPv4", kTxUdpIpv4Checksum, kRxUdpIpv4Checksum},
    {"*UDPChecksumOffloadIPv6", kTxUdpIpv6Checksum, kRxUdpIpv6Checksum},
    {"*LsoV2IPv4", kLsoIpv4, 0},
    {"*LsoV2IPv6", kLsoIpv6, 0},
};

RndisStatus set_config_parameter(const Set& set) {
  RndisConfigParameter asked;
  if (!read_wire(set.input, asked)) return RndisStatus::kInvalidLength;
  const auto name_bytes = part(set.input, asked.name_offset, asked.name_length);
  const auto value_bytes = part(set.input, asked.value_offset, asked.value_length);
  if (!name_bytes || !value_bytes) return RndisStatus::kInvalidData;
  const AsciiName name(*name_bytes);
  const AsciiName value(*value_bytes);
  if (name.text() == "NetworkAddress") {
    if (asked.type != kConfigString) return RndisStatus::kInvalidData;
    return set_network_address(set, value.text());
  }
  for (const Keyword& keyword : kKeywords) {
    if (name.text() != keyword.name) continue;
    std::uint32_t number = 0;
    if (asked.type == kConfigInteger) {
      if (!read_wire(*value_bytes, number)) return RndisStatus::kInvalidData;
    } else {
      if (value.text().size() != 1) return RndisStatus::kInvalidData;
      number = static_cast<std::uint32_t>(value.text()[0] - '0');
    }
    if (number > 3) return RndisStatus::kInvalidData;
    std::uint32_t mask = set.state.offloads_enabled;
    switch_bits(mask, keyword.tx, (number & 1) != 0);
    switch_bits(mask, keyword.rx, (number & 2) != 0);
    set.state.offloads_enabled = mask & set.state.offloads_supported;
    set.changes |= kOffloadsChanged;
    return RndisStatus::kSuccess;
  }
  return RndisStatus::kSuccess;  // a property of the guest's own that says nothing to us
}

struct OidEntry {
  Oid oid;
  QueryFunction query;  // nullptr: set only
  SetFunction set;      // nullptr: query only
};

constexpr std::uint32_t kMacOptions = kMacOptionCopyLookahead | kMacOptionTransfersNotPending |
                                      kMacOptionNoLoopback | kMacOption8021pPriority | kMacOption8021qVlan;
using C = QueueCounters;

constexpr OidEntry kOids[] = {
    {Oid::kGenSupportedList, supported_list, nullptr},
    {Oid::kGenHardwareStatus, constant<0>, nullptr},  // ready
    {Oid::kGenMediaSupported, constant<0>, nullptr},  // 802.3
    {Oid::kGenMediaInUse, constant<0>, nullptr},
    {Oid::kGenMaximumLookahead, mtu, nullptr},
    {Oid::kGenMaximumFrameSize, mtu, nullptr},
    {Oid::kGenLinkSpeed, link_speed, nullptr},
    {Oid::kGenTransmitBufferSpace, constant<kBufferSpace>, nullptr},
    {Oid::kGenReceiveBufferSpace, constant<kBufferSpace>, nullptr},
    {Oid::kGenTransmitBlockSize, frame_size, nullptr},
    {Oid::kGenReceiveBlockSize, frame_size, nullptr},
    {Oid::kGenVendorId, constant<kMicrosoftVendorId>, nullptr},
    {Oid::kGenVendorDescription, vendor_description, nullptr},
    {Oid::kGenCurrentPacketFilter, packet_filter, set_packet_filter},
    {Oid::kGenCurrentLookahead, mtu, accept<4>},
    {Oid::kGenDriverVersion, driver_version, nullptr},
    {Oid::kGenMaximumTotalSize, frame_size, nullptr},
    {Oid::kGenProtocolOptions, nullptr, accept<4>},
    {Oid::kGenMacOptions, constant<kMacOptions>, nullptr},
    {Oid::kGenMediaConnectStatus, media_connect_status, nullptr},
    {Oid::kGenMaximumSendPackets, constant<0xffffffff>, nullptr},
    {Oid::kGenVendorDriverVersion, driver_version, nullptr},
    {Oid::kGenNetworkLayerAddresses, nullptr, accept<0>},
    {Oid::kGenPhysicalMedium, constant<0>, nullptr},  // unspecified
    {Oid::kGenReceiveScaleCapabilities, rss_capabilities, nullptr},
    {Oid::kGenReceiveScaleParameters, nullptr, set_rss_parameters},
    {Oid::kGenMaxLinkSpeed, max_link_speed, nullptr},
    {Oid::kGenLinkState, link_state, nullptr},
    {Oid::kGenLinkParameters, nullptr, accept<sizeof(NdisObjectHeader)>},
    {Oid::kGenFriendlyName, friendly_name, nullptr},
    {Oid::kGenRndisConfigParameter, nullptr, set_config_parameter},
    {Oid::kGenXmitOk, sum<&C::tx_packets>, nullptr},
    {Oid::kGenRcvOk, sum<&C::rx_packets>, nullptr},
    {Oid::kGenXmitError, sum<&C::tx_rejected, &C::tx_dropped>, nullptr},
    {Oid::kGenRcvError, no_counter, nullptr},
    {Oid::kGenRcvNoBuffer, sum<&C::rx_dropped>, nullptr},
    {Oid::kGenStatistics, statistics, nullptr},
    {Oid::kGenDirectedBytesXmit, directed<&C::tx_bytes, &C::tx_multicast_bytes, &C::tx_broadcast_bytes>,
     nullptr},
    {Oid::kGenDirectedFramesXmit,
     directed<&C::tx_packets, &C::tx_multicast_packets, &C::tx_broadcast_packets>, nullptr},
    {Oid::kGenMulticastBytesXmit, sum<&C::tx_multicast_bytes>, nullptr},
    {Oid::kGenMulticastFramesXmit, sum<&C::tx_multicast_packets>, nullptr},
    {Oid::kGenBroadcastBytesXmit, sum<&C::tx_broadcast_bytes>, nullptr},
    {Oid::kGenBroadcastFramesXmit, sum<&C::tx_broadcast_packets>, nullptr},
    {Oid::kGenDirectedBytesRcv, directed<&C::rx_bytes, &C::rx_multicast_bytes, &C::rx_broadcast_bytes>,
     nullptr},
    {Oid::kGenDirectedFramesRcv, directed<&C::rx_packets, &C::rx_multicast_packets, &C::rx_broadcast_packets>,
     nullptr},
    {Oid::kGenMulticastBytesRcv, sum<&C::rx_multicast_bytes>, nullptr},
    {Oid::kGenMulticastFramesRcv, sum<&C::rx_multicast_packets>, nullptr},
    {Oid::kGenBroadcastBytesRcv, sum<&C::rx_broadcast_bytes>, nullptr},
    {Oid::kGenBroadcastFramesRcv, sum<&C::rx_broadcast_packets>, nullptr},
    {Oid::kGenRcvCrcError, no_counter, nullptr},
    {Oid::kGenTransmitQueueLength, no_counter, nullptr},
    {Oid::kGenBytesRcv, sum<&C::rx_bytes>, nullptr},
    {Oid::kGenBytesXmit, sum<&C::tx_bytes>, nullptr},
    {Oid::k8023PermanentAddress, permanent_mac, nullptr},
    {Oid::k8023CurrentAddress, current_mac, nullptr},
    {Oid::k8023MulticastList, nullptr, set_multicast_list},
    {Oid::k8023MaximumListSize, constant<kMulticastListMax>, nullptr},
    {Oid::k8023MacOptions, constant<0>, nullptr},
    {Oid::k8023RcvErrorAlignment, no_counter, nullptr},
    {Oid::k8023XmitOneCollision, no_counter, nullptr},
    {Oid::k8023XmitMoreCollisions, no_counter, nullptr},
    {Oid::kOffloadEncapsulation, nullptr, accept<sizeof(NdisObjectHeader)>},
    {Oid::kTcpOffloadCurrentConfig, current_offloads, nullptr},
    {Oid::kTcpOffloadParameters, nullptr, set_offload_parameters},
    {Oid::kTcpOffloadHardwareCapabilities, hardware_capabilities, nullptr},
};
static_assert(sizeof(kOids) / sizeof(kOids[0]) * sizeof(std::uint32_t) <= kOidAnswerMax);

RndisStatus supported_list(const Query& query) {
  for (const OidEntry& entry : kOids) query.out.u32(static_cast<std::uint32_t>(entry.oid));
  return RndisStatus::kSuccess;
}

const OidEntry* find(std::uint32_t oid) {
  for (const OidEntry& entry : kOids) {
    if (static_cast<std::uint32_t>(entry.oid) == oid) return &entry;
  }
  return nullptr;
}

}  // namespace

RndisStatus query_oid(const NicState& state, const CounterSource& counters, std::uint32_t oid,
                      std::span<const std::byte> input, OidAnswer& answer) {
  const OidEntry* const entry = find(oid);
  if (entry == nullptr || entry->query == nullptr) return RndisStatus::kNotSupported;
  return entry->query(Query{state, counters, input, answer});
}

RndisStatus set_oid(NicState& state, std::uint32_t oid, std::span<const std::byte> input,
                    std::uint32_t& changes) {
  const OidEntry* const entry = find(oid);
  if (entry == nullptr || entry->set == nullptr) return RndisStatus::kNotSupported;
  return entry->set(Set{state, input, changes});
}

std::uint32_t offload_size_of(NvspVersion version) {
  // [linux: rndis_query_hwcaps]
  if (version >= NvspVersion::k5) return kNdisOffloadSize3;
  return version >= NvspVersion::k4 ? kNdisOffloadSize2 : kNdisOffloadSize1;
}

NdisOffload make_offload_object(std::uint32_t offloads, std::uint32_t size_limit) {
  NdisOffload object{};
  object.header.type = kNdisObjectOffload;
  if (size_limit >= kNdisOffloadSize3) {
    object.header.revision = 3;
    object.header.size = kNdisOffloadSize3;
  } else if (size_limit >= kNdisOffloadSize2) {
    object.header.revision = 2;
    object.header.size = kNdisOffloadSize2;
  } else {
    object.header.revision = 1;
    object.header.size = kNdisOffloadSize1;
  }
  const auto flags_if = [offloads](std::uint32_t bit, std::uint32_t flags) {
    return (offloads & bit) != 0 ? flags : 0;
  };
  const auto encapsulation_if = [](std::uint32_t flags) { return flags != 0 ? kEncapsulation8023 : 0; };

  // Linux takes IPv4 checksums for offloaded where TCP and its options are, IPv6 where extension headers are
  // too. [linux: rndis_netdev_set_hwcaps]
  constexpr std::uint32_t kTcp = kChecksumTcp | kChecksumTcpOptions | kChecksumIpOptions;
  constexpr std::uint32_t kUdp = kChecksumUdp | kChecksumIpOptions;
  constexpr std::uint32_t kIp = kChecksumIpv4Header | kChecksumIpOptions;
  object.ipv4.tx_flags = flags_if(kTxTcpIpv4Checksum, kTcp) | flags_if(kTxUdpIpv4Checksum, kUdp) |
                         flags_if(kTxIpv4Checksum, kIp);
  object.ipv4.rx_flags = flags_if(kRxTcpIpv4Checksum, kTcp) | flags_if(kRxUdpIpv4Checksum, kUdp) |
                         flags_if(kRxIpv4Checksum, kIp);
  object.ipv6.tx_flags = flags_if(kTxTcpIpv6Checksum, kTcp) | flags_if(kTxUdpIpv6Checksum, kUdp);
  object.ipv6.rx_flags = flags_if(kRxTcpIpv6Checksum, kTcp) | flags_if(kRxUdpIpv6Checksum, kUdp);
  for (NdisChecksumOffload* const family : {&object.ipv4, &object.ipv6}) {
    family->tx_encapsulation = encapsulation_if(family->tx_flags);
    family->rx_encapsulation = encapsulation_if(family->rx_flags);
  }
  constexpr NdisLsoV2 kLso = {kEncapsulation8023, kLsoSizeMax, kLsoSegmentsMin};
  if ((offloads & kLsoIpv4) != 0) object.lso_v2_ipv4 = kLso;
  if ((offloads & kLsoIpv6) != 0) {
    object.lso_v2_ipv6 = kLso;
    object.lso_v2_ipv6_flags = kLsoV6ExtensionHeaders | kLsoV6TcpOptions;
  }
  object.rsc_ipv4 = (offloads & kRscIpv4) != 0 ? 1 : 0;
  object.rsc_ipv6 = (offloads & kRscIpv6) != 0 ? 1 : 0;
  return object;
}

}  // namespace vmbusd::netvsp
