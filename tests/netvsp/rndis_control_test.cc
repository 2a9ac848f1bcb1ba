#include "netvsp/rndis_control.h"

#include <array>
#include <bit>
#include <set>

#include "tests/catch.h"
#include "tests/netvsp/bytes.h"

namespace vmbusd::netvsp {
namespace {

// Fixed counters, all different.
class FixedCounters final : public CounterSource {
 public:
  QueueCounters totals() const override {
    QueueCounters c;
    c.tx_packets = 100;
    c.tx_bytes = 0x1'0000'0001;
    c.tx_dropped = 3;
    c.tx_rejected = 4;
    c.rx_packets = 200;
    c.rx_bytes = 0x2'0000'0002;
    c.rx_dropped = 5;
    c.tx_multicast_packets = 10;
    c.tx_broadcast_packets = 20;
    c.rx_multicast_packets = 30;
    c.rx_broadcast_packets = 40;
    return c;
  }
};

// An adapter as a guest on NVSP 6.1 sees it, RNDIS initialized.
NicState make_state() {
  NicState state;
  state.permanent_mac = *MacAddress::parse("02:00:00:00:00:01");
  state.mac = state.permanent_mac;
  state.mtu = 1500;
  state.nvsp_version = NvspVersion::k61;
  state.queues = 4;
  state.offloads_supported = kAllChecksums | kAllLso | kAllRsc;
  state.offloads_enabled = kAllChecksums | kAllLso;
  state.link_up = true;
  state.initialized = true;
  return state;
}

struct Exchange {
  ControlOutcome outcome;
  Bytes reply;
};

Exchange send(NicState& state, std::span<const std::byte> request) {
  std::array<std::byte, kControlMessageMax> reply;
  reply.fill(std::byte{0xee});  // stack bytes that must not get out
  const FixedCounters counters;
  Exchange exchange;
  exchange.outcome = handle_control(state, counters, request, reply);
  exchange.reply.assign(reply.begin(),
                        reply.begin() + static_cast<std::ptrdiff_t>(exchange.outcome.reply_size));
  return exchange;
}

Bytes request(RndisType type, std::uint32_t oid, std::span<const std::byte> info) {
  RndisRequest message{};
  message.header = {type, static_cast<std::uint32_t>(sizeof message + info.size())};
  message.request_id = 7;
  message.oid = oid;
  message.info_length = static_cast<std::uint32_t>(info.size());
  message.info_offset = info.empty() ? 0 : sizeof message - kRndisOffsetBase;
  Bytes bytes = bytes_of(message);
  append(bytes, info);
  return bytes;
}

Bytes query(Oid oid, std::span<const std::byte> info = {}) {
  return request(RndisType::kQuery, static_cast<std::uint32_t>(oid), info);
}

Bytes set(Oid oid, std::span<const std::byte> info) {
  return request(RndisType::kSet, static_cast<std::uint32_t>(oid), info);
}

// The information of a successful query.
Bytes answer_of(NicState& state, Oid oid, std::span<const std::byte> info = {}) {
  const Exchange exchange = send(state, query(oid, info));
  const auto done = read_at<RndisQueryComplete>(exchange.reply);
  REQUIRE(done.status == RndisStatus::kSuccess);
  return Bytes(exchange.reply.begin() + sizeof done, exchange.reply.end());
}

RndisStatus status_of_set(NicState& state, Oid oid, std::span<const std::byte> info) {
  return read_at<RndisStatusComplete>(send(state, set(oid, info)).reply).status;
}

TEST_CASE("RNDIS control messages are answered byte for byte", "[netvsp]") {
  struct Case {
    const char* rule;
    const char* request;
    const char* reply;  // empty: none
    bool well_formed;
  };
  constexpr Case kCases[] = {
      {"INITIALIZE 1.0 [reference: netvsp 12]", "02000000 18000000 01000000 01000000 00000000 00400000",
       "02000080 34000000 01000000 00000000 01000000 00000000 01000000 00000000"
       "08000000 ffffffef 03000000 00000000 00000000",
       true},
      {"INITIALIZE of another major version is refused by status",
       "02000000 18000000 01000000 02000000 00000000 00400000",
       "02000080 34000000 01000000 040001c0 01000000 00000000 01000000 00000000"
       "08000000 ffffffef 03000000 00000000 00000000",
       true},
      {"INITIALIZE cut short", "02000000 14000000 01000000 01000000 00000000", "", false},
      {"HALT has no reply", "03000000 0c000000 02000000", "", true},
      {"KEEPALIVE", "08000000 0c000000 22000000", "08000080 10000000 22000000 00000000", true},
      {"KEEPALIVE without request id", "08000000 08000000", "", false},
      {"RESET", "06000000 0c000000 00000000", "06000080 10000000 00000000 00000000", true},
      {"QUERY of the media status", "04000000 1c000000 05000000 14010100 00000000 00000000 00000000",
       "04000080 1c000000 05000000 00000000 04000000 10000000 00000000", true},
      {"QUERY of an unknown OID", "04000000 1c000000 05000000 ffff0f0f 00000000 00000000 00000000",
       "04000080 18000000 05000000 bb0000c0 00000000 00000000", true},
      {"QUERY of an OID that can only be set",
       "04000000 1c000000 05000000 04020100 00000000 00000000 00000000",
       "04000080 18000000 05000000 bb0000c0 00000000 00000000", true},
      {"QUERY whose information is outside the message",
       "04000000 1c000000 05000000 14010100 01000000 14000000 00000000",
       "04000080 18000000 05000000 150001c0 00000000 00000000", true},
      {"QUERY whose offset and length wrap 32 bits",
       "04000000 1c000000 05000000 14010100 10000000 f8ffffff 00000000",
       "04000080 18000000 05000000 150001c0 00000000 00000000", true},
      {"QUERY cut short", "04000000 18000000 05000000 14010100 00000000 00000000", "", false},
      {"SET of the packet filter", "05000000 20000000 06000000 0e010100 04000000 14000000 00000000 0b000000",
       "05000080 10000000 06000000 00000000", true},
      {"SET_EX is answered like SET, by its own number",
       "09000000 20000000 06000000 0e010100 04000000 14000000 00000000 0b000000",
       "09000080 10000000 06000000 00000000", true},
      {"SET of an OID that can only be queried",
       "05000000 20000000 06000000 01010101 04000000 14000000 00000000 0b000000",
       "05000080 10000000 06000000 bb0000c0", true},
      {"SET whose information overlaps the header",
       "05000000 20000000 06000000 0e010100 04000000 10000000 00000000 0b000000",
       "05000080 10000000 06000000 150001c0", true},
      {"SET whose information is too short for its OID",
       "05000000 1e000000 06000000 0e010100 02000000 14000000 00000000 0b00",
       "05000080 10000000 06000000 140001c0", true},
      {"bytes behind the message are no error", "08000000 0c000000 22000000 ffffffff",
       "08000080 10000000 22000000 00000000", true},
      {"a message longer than its bytes", "08000000 10000000 22000000", "", false},
      {"a message shorter than its header", "08000000 04000000 22000000", "", false},
      {"a completion: we asked nothing", "08000080 10000000 22000000 00000000", "", false},
      {"a data packet on the control path", "01000000 0c000000 22000000", "", false},
      {"an unknown type", "77000000 0c000000 22000000", "", false},
      {"nothing", "", "", false},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      NicState state = make_state();
      const Exchange exchange = send(state, hex(c.request));
      CHECK(exchange.reply == hex(c.reply));
      CHECK(exchange.outcome.well_formed == c.well_formed);
    }
  }
}

TEST_CASE("what a driver asks before INITIALIZE or after HALT fails", "[netvsp]") {
  NicState state = make_state();
  state.initialized = false;
  CHECK(read_at<RndisQueryComplete>(send(state, query(Oid::kGenHardwareStatus)).reply).status ==
        RndisStatus::kFailure);
  CHECK(status_of_set(state, Oid::kGenCurrentPacketFilter, hex("0b000000")) == RndisStatus::kFailure);
  CHECK(state.packet_filter == 0);
  (void)send(state, hex("02000000 18000000 01000000 01000000 00000000 00400000"));
  CHECK(status_of_set(state, Oid::kGenCurrentPacketFilter, hex("0b000000")) == RndisStatus::kSuccess);
  const Exchange halt = send(state, hex("03000000 0c000000 02000000"));
  CHECK(halt.outcome.halted);
  CHECK(halt.outcome.changes == (kFilterChanged | kRssChanged));
  CHECK(state.packet_filter == 0);
  CHECK_FALSE(state.initialized);
}

TEST_CASE("every OID has its answer", "[netvsp]") {
  struct Case {
    Oid oid;
    const char* answer;
  };
  constexpr Case kCases[] = {
      {Oid::kGenHardwareStatus, "00000000"},
      {Oid::kGenMediaSupported, "00000000"},
      {Oid::kGenMediaInUse, "00000000"},
      {Oid::kGenMaximumLookahead, "dc050000"},
      {Oid::kGenMaximumFrameSize, "dc050000"},
      {Oid::kGenLinkSpeed, "00e1f505"},  // 10 Gbit/s in 100 bit/s units
      {Oid::kGenTransmitBufferSpace, "00000400"},
      {Oid::kGenReceiveBufferSpace, "00000400"},
      {Oid::kGenTransmitBlockSize, "ea050000"},
      {Oid::kGenReceiveBlockSize, "ea050000"},
      {Oid::kGenVendorId, "5d150000"},
      {Oid::kGenVendorDescription, "4d6963726f736f667420436f72706f726174696f6e00"},
      {Oid::kGenCurrentPacketFilter, "00000000"},
      {Oid::kGenCurrentLookahead, "dc050000"},
      {Oid::kGenDriverVersion, "0001"},
      {Oid::kGenMaximumTotalSize, "ea050000"},
      {Oid::kGenMacOptions, "4d020000"},
      {Oid::kGenMediaConnectStatus, "00000000"},
      {Oid::kGenMaximumSendPackets, "ffffffff"},
      {Oid::kGenVendorDriverVersion, "0001"},
      {Oid::kGenPhysicalMedium, "00000000"},
      {Oid::kGenReceiveScaleCapabilities, "88021200 01030000 01000000 04000000 8000"},
      {Oid::kGenMaxLinkSpeed, "00e40b5402000000 00e40b5402000000"},
      {Oid::kGenLinkState,
       "80012800 01000000 02000000 00000000 00e40b5402000000 00e40b5402000000 00000000 00000000"},
      {Oid::kGenXmitOk, "64000000"},
      {Oid::kGenRcvOk, "c8000000"},
      {Oid::kGenXmitError, "07000000"},
      {Oid::kGenRcvError, "00000000"},
      {Oid::kGenRcvNoBuffer, "05000000"},
      {Oid::kGenDirectedBytesXmit, "01000000"},
      {Oid::kGenDirectedFramesXmit, "46000000"},
      {Oid::kGenMulticastBytesXmit, "00000000"},
      {Oid::kGenMulticastFramesXmit, "0a000000"},
      {Oid::kGenBroadcastBytesXmit, "00000000"},
      {Oid::kGenBroadcastFramesXmit, "14000000"},
      {Oid::kGenDirectedBytesRcv, "02000000"},
      {Oid::kGenDirectedFramesRcv, "82000000"},
      {Oid::kGenMulticastBytesRcv, "00000000"},
      {Oid::kGenMulticastFramesRcv, "1e000000"},
      {Oid::kGenBroadcastBytesRcv, "00000000"},
      {Oid::kGenBroadcastFramesRcv, "28000000"},
      {Oid::kGenRcvCrcError, "00000000"},
      {Oid::kGenTransmitQueueLength, "00000000"},
      {Oid::kGenBytesRcv, "02000000"},
      {Oid::kGenBytesXmit, "01000000"},
      {Oid::k8023PermanentAddress, "020000000001"},
      {Oid::k8023CurrentAddress, "020000000001"},
      {Oid::k8023MaximumListSize, "00000000"},
      {Oid::k8023MacOptions, "00000000"},
      {Oid::k8023RcvErrorAlignment, "00000000"},
      {Oid::k8023XmitOneCollision, "00000000"},
      {Oid::k8023XmitMoreCollisions, "00000000"},
  };
  std::set<Oid> seen;
  for (const Case& c : kCases) {
    seen.insert(c.oid);
    NicState state = make_state();
    INFO("OID " << std::hex << static_cast<std::uint32_t>(c.oid));
    CHECK(answer_of(state, c.oid) == hex(c.answer));
  }
  // Those with tests of their own, and those that are only set.
  for (const Oid oid :
       {Oid::kGenSupportedList, Oid::kGenStatistics, Oid::kGenFriendlyName, Oid::kTcpOffloadCurrentConfig,
        Oid::kTcpOffloadHardwareCapabilities, Oid::kGenProtocolOptions, Oid::kGenNetworkLayerAddresses,
        Oid::kGenReceiveScaleParameters, Oid::kGenLinkParameters, Oid::kGenRndisConfigParameter,
        Oid::k8023MulticastList, Oid::kOffloadEncapsulation, Oid::kTcpOffloadParameters}) {
    seen.insert(oid);
  }
  NicState state = make_state();
  const Bytes list = answer_of(state, Oid::kGenSupportedList);
  std::set<Oid> supported;
  for (std::size_t i = 0; i < list.size(); i += 4) supported.insert(read_at<Oid>(list, i));
  CHECK(list.size() == supported.size() * 4);
  CHECK(supported == seen);
}

TEST_CASE("counters are as wide as the guest has room", "[netvsp]") {
  NicState state = make_state();
  const Bytes room(8);
  CHECK(answer_of(state, Oid::kGenBytesXmit, room) == hex("0100000001000000"));
  CHECK(answer_of(state, Oid::kGenBytesRcv, room) == hex("0200000002000000"));
  CHECK(answer_of(state, Oid::kGenXmitOk, room) == hex("6400000000000000"));
  const auto statistics = read_at<NdisStatistics>(answer_of(state, Oid::kGenStatistics));
  CHECK(statistics.header.size == 152);
  CHECK(statistics.in_unicast_packets == 130);
  CHECK(statistics.out_unicast_packets == 70);
  CHECK(statistics.out_octets == 0x1'0000'0001);
}

TEST_CASE("each counter of all channels is their sum", "[netvsp]") {
  using Words = std::array<std::uint64_t, sizeof(QueueCounters) / sizeof(std::uint64_t)>;
  Words first{};
  Words second{};
  for (std::size_t i = 0; i < first.size(); ++i) {
    first[i] = std::uint64_t{1} << i;
    second[i] = 1000 * i;
  }
  const auto sum =
      std::bit_cast<Words>(std::bit_cast<QueueCounters>(first) + std::bit_cast<QueueCounters>(second));
  for (std::size_t i = 0; i < sum.size(); ++i) {
    INFO("counter " << i);
    CHECK(sum[i] == first[i] + second[i]);
  }
}

TEST_CASE("a link that is down is told", "[netvsp]") {
  NicState state = make_state();
  state.link_up = false;
  CHECK(answer_of(state, Oid::kGenMediaConnectStatus) == hex("01000000"));
  CHECK(read_at<NdisLinkState>(answer_of(state, Oid::kGenLinkState)).connect_state == 2);
}

TEST_CASE("the friendly name is UTF-16 in a fixed array", "[netvsp]") {
  NicState state = make_state();
  Bytes name = answer_of(state, Oid::kGenFriendlyName);
  CHECK(name.size() == 512);
  const Bytes fallback = wide("Network Adapter");
  CHECK(std::equal(fallback.begin(), fallback.end(), name.begin()));
  state.friendly_name = "uplink";
  name = answer_of(state, Oid::kGenFriendlyName);
  const Bytes uplink = wide("uplink");
  CHECK(std::equal(uplink.begin(), uplink.end(), name.begin()));
  CHECK(name[12] == std::byte{0});
}

TEST_CASE("offload capabilities come in the revision that the guest knows", "[netvsp]") {
  struct Case {
    const char* rule;
    const char* input;
    NvspVersion version;
    RndisStatus status;
    std::size_t size;
    std::uint8_t revision;
  };
  constexpr Case kCases[] = {
      {"Linux on NVSP 5 and later", "a7039c00", NvspVersion::k61, RndisStatus::kSuccess, 156, 3},
      {"Linux on NVSP 4", "a7029000", NvspVersion::k4, RndisStatus::kSuccess, 144, 2},
      {"Linux on NVSP 2", "a7017000", NvspVersion::k2, RndisStatus::kSuccess, 112, 1},
      {"a size between two revisions", "a7039800", NvspVersion::k61, RndisStatus::kSuccess, 144, 2},
      {"a later revision than ours", "a704ff00", NvspVersion::k61, RndisStatus::kSuccess, 156, 3},
      {"no header: by version", "", NvspVersion::k5, RndisStatus::kSuccess, 156, 3},
      {"no header: by version, 4", "", NvspVersion::k4, RndisStatus::kSuccess, 144, 2},
      {"no header: by version, 2", "", NvspVersion::k2, RndisStatus::kSuccess, 112, 1},
      {"too small for any", "a7016f00", NvspVersion::k61, RndisStatus::kBufferTooShort, 0, 0},
      {"another object", "80019c00", NvspVersion::k61, RndisStatus::kInvalidData, 0, 0},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      NicState state = make_state();
      state.nvsp_version = c.version;
      const Exchange exchange = send(state, query(Oid::kTcpOffloadHardwareCapabilities, hex(c.input)));
      const auto done = read_at<RndisQueryComplete>(exchange.reply);
      CHECK(done.status == c.status);
      CHECK(done.info_length == c.size);
      if (c.size != 0) {
        const auto header = read_at<NdisObjectHeader>(exchange.reply, sizeof done);
        CHECK(header.type == 0xa7);
        CHECK(header.revision == c.revision);
        CHECK(header.size == c.size);
      }
    }
  }
}

TEST_CASE("offloads are told as Linux wants them, and only those that are there", "[netvsp]") {
  const NdisOffload all = make_offload_object(kAllChecksums | kAllLso | kAllRsc, kNdisOffloadSize3);
  // [linux: rndis_netdev_set_hwcaps]: these masks decide on NETIF_F_IP_CSUM, IPV6_CSUM, TSO, TSO6.
  CHECK((all.ipv4.tx_flags & 0x14) == 0x14);
  CHECK((all.ipv4.tx_flags & 0x140) == 0x140);
  CHECK((all.ipv6.tx_flags & 0x15) == 0x15);
  CHECK((all.ipv6.tx_flags & 0x40) == 0x40);
  CHECK((all.lso_v2_ipv4.encapsulation & 2) == 2);
  CHECK((all.lso_v2_ipv6.encapsulation & 2) == 2);
  CHECK((all.lso_v2_ipv6_flags & 5) == 5);
  CHECK(all.lso_v2_ipv4.size_max == 0xf53c);
  CHECK(all.rsc_ipv4 == 1);
  CHECK(all.rsc_ipv6 == 1);
  NdisOffload none = make_offload_object(0, kNdisOffloadSize3);
  none.header = {};
  CHECK(bytes_of(none) == Bytes(sizeof none));
}

TEST_CASE("offload parameters switch what is supported, all or nothing", "[netvsp]") {
  struct Case {
    const char* rule;
    const char* parameters;  // from byte 4 on
    std::uint32_t supported;
    std::uint32_t enabled_before;
    RndisStatus status;
    std::uint32_t enabled_after;
  };
  constexpr std::uint32_t kAll = kAllChecksums | kAllLso | kAllRsc;
  constexpr Case kCases[] = {
      {"Linux with everything", "01 04 04 04 04 00 00 02 02 00 00 00 00000000 00 00 02 02 00 00 0000", kAll,
       0, RndisStatus::kSuccess, kAll & ~(kTxIpv4Checksum | kRxIpv4Checksum)},
      {"no change", "00 00 00 00 00 00 00 00 00 00 00 00 00000000 00 00 00 00 00 00 0000", kAll,
       kLsoIpv4 | kRxUdpIpv6Checksum, RndisStatus::kSuccess, kLsoIpv4 | kRxUdpIpv6Checksum},
      {"off", "01 01 01 01 01 00 00 01 01 00 00 00 00000000 00 00 01 01 00 00 0000", kAll, kAll,
       RndisStatus::kSuccess, 0},
      {"one direction each", "00 02 03 00 00 00 00 00 00 00 00 00 00000000 00 00 00 00 00 00 0000", kAll, 0,
       RndisStatus::kSuccess, kTxTcpIpv4Checksum | kRxUdpIpv4Checksum},
      {"an older guest stops before RSC", "00 04 00 00 00 00 00 02 00 00 00 00 00000000 00 00", kAll,
       kRscIpv4, RndisStatus::kSuccess, kTxTcpIpv4Checksum | kRxTcpIpv4Checksum | kLsoIpv4 | kRscIpv4},
      {"what is not supported stays off",
       "04 04 04 04 04 00 00 02 02 00 00 00 00000000 00 00 02 02 00 00 0000", kAllChecksums, 0,
       RndisStatus::kSuccess, kAllChecksums},
      {"an unknown value changes nothing",
       "04 05 00 00 00 00 00 00 00 00 00 00 00000000 00 00 00 00 00 00 0000", kAll, kLsoIpv6,
       RndisStatus::kInvalidData, kLsoIpv6},
      {"too short", "04 04 04 04", kAll, kLsoIpv6, RndisStatus::kInvalidLength, kLsoIpv6},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      NicState state = make_state();
      state.offloads_supported = c.supported;
      state.offloads_enabled = c.enabled_before;
      Bytes info = hex("80031c00");
      append(info, hex(c.parameters));
      CHECK(status_of_set(state, Oid::kTcpOffloadParameters, info) == c.status);
      CHECK(state.offloads_enabled == c.enabled_after);
    }
  }
}

Bytes rss_parameters(std::uint16_t flags, bool key_first, std::uint32_t entries, std::uint32_t channel) {
  NdisRssParameters p{};
  p.header = {kNdisObjectRssParameters, 2, sizeof p};
  p.flags = flags;
  p.hash_info = kHashToeplitz | kHashTcpIpv4;
  p.indirection_table_size = static_cast<std::uint16_t>(entries * 4);
  p.hash_key_size = kRssKeySize;
  p.hash_key_offset = key_first ? sizeof p : static_cast<std::uint32_t>(sizeof p + entries * 4);
  p.indirection_table_offset = key_first ? sizeof p + kRssKeySize : sizeof p;
  Bytes table;
  for (std::uint32_t i = 0; i < entries; ++i) append(table, bytes_of(i % 2 == 0 ? channel : 0u));
  const Bytes key(kRssKeySize, std::byte{0x6d});
  Bytes bytes = bytes_of(p);
  append(bytes, key_first ? key : table);
  append(bytes, key_first ? table : key);
  return bytes;
}

TEST_CASE("RSS parameters are found by their offsets", "[netvsp]") {
  for (const bool key_first : {false, true}) {  // Linux; DPDK and FreeBSD
    NicState state = make_state();
    CHECK(status_of_set(state, Oid::kGenReceiveScaleParameters, rss_parameters(0, key_first, 128, 3)) ==
          RndisStatus::kSuccess);
    CHECK(state.rss.enabled);
    CHECK(state.rss.hash_info == (kHashToeplitz | kHashTcpIpv4));
    CHECK(state.rss.entries == 128);
    CHECK(state.rss.table[0] == 3);
    CHECK(state.rss.table[1] == 0);
    CHECK(state.rss.key[39] == 0x6d);
    // Disabling keeps the rest, for a guest that enables again with "unchanged" flags.
    CHECK(status_of_set(state, Oid::kGenReceiveScaleParameters, rss_parameters(kRssDisable, false, 1, 9)) ==
          RndisStatus::kSuccess);
    CHECK_FALSE(state.rss.enabled);
    CHECK(state.rss.entries == 128);
    CHECK(status_of_set(state, Oid::kGenReceiveScaleParameters,
                        rss_parameters(kRssHashInfoUnchanged | kRssTableUnchanged | kRssKeyUnchanged, false,
                                       1, 2)) == RndisStatus::kSuccess);
    CHECK(state.rss.enabled);
    CHECK(state.rss.table[0] == 3);
  }
}

TEST_CASE("RSS parameters that lie are refused and change nothing", "[netvsp]") {
  struct Case {
    const char* rule;
    std::size_t at;  // u16 or u32 to overwrite
    std::uint32_t value;
    RndisStatus status;
  };
  constexpr Case kCases[] = {
      {"no table entries", 12, 0, RndisStatus::kInvalidLength},
      {"table of odd size", 12, 6, RndisStatus::kInvalidLength},
      {"more entries than told", 12, 129 * 4, RndisStatus::kInvalidLength},
      {"table outside", 16, 0xffffff00, RndisStatus::kInvalidData},
      {"table one entry too far", 16, 40 + 44, RndisStatus::kInvalidData},
      {"key of another size", 20, 41, RndisStatus::kInvalidLength},
      {"key outside", 24, 0xfffffff0, RndisStatus::kInvalidData},
      {"a channel that cannot be", 40, 4, RndisStatus::kInvalidData},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      NicState state = make_state();
      Bytes info = rss_parameters(0, false, 16, 1);
      std::memcpy(info.data() + c.at, &c.value, c.at == 12 || c.at == 20 ? 2 : 4);
      CHECK(status_of_set(state, Oid::kGenReceiveScaleParameters, info) == c.status);
      CHECK_FALSE(state.rss.enabled);
      CHECK(state.rss.entries == 0);
    }
  }
}

TEST_CASE("RSS is for NVSP 5 and later, in the size that the guest knows", "[netvsp]") {
  NicState state = make_state();
  const auto size_for = [&state](const char* input) {
    return read_at<RndisQueryComplete>(
        send(state, query(Oid::kGenReceiveScaleCapabilities, hex(input))).reply);
  };
  CHECK(size_for("88021200").info_length == 18);
  CHECK(size_for("88021400").info_length == 18);
  CHECK(size_for("88011000").info_length == 16);
  CHECK(size_for("88010f00").status == RndisStatus::kBufferTooShort);
  state.nvsp_version = NvspVersion::k4;
  CHECK(size_for("88021200").status == RndisStatus::kNotSupported);
}

Bytes config_parameter(std::string_view name, std::uint32_t type, std::span<const std::byte> value) {
  const Bytes name_bytes = wide(name);
  RndisConfigParameter p{};
  p.name_offset = sizeof p;
  p.name_length = static_cast<std::uint32_t>(name_bytes.size());
  p.type = type;
  p.value_offset = static_cast<std::uint32_t>(sizeof p + name_bytes.size());
  p.value_length = static_cast<std::uint32_t>(value.size());
  Bytes bytes = bytes_of(p);
  append(bytes, name_bytes);
  append(bytes, value);
  return bytes;
}

TEST_CASE("the guest may change its address where that is allowed", "[netvsp]") {
  struct Case {
    const char* rule;
    const char* digits;
    std::uint32_t type;
    bool fixed;
    RndisStatus status;
  };
  constexpr Case kCases[] = {
      {"as Linux sets it", "02ABcd00ff10", kConfigString, false, RndisStatus::kSuccess},
      {"not where it is fixed", "02abcd00ff10", kConfigString, true, RndisStatus::kFailure},
      {"not to a multicast address", "03abcd00ff10", kConfigString, false, RndisStatus::kInvalidData},
      {"not to zero", "000000000000", kConfigString, false, RndisStatus::kInvalidData},
      {"not by a number", "02abcd00ff10", kConfigInteger, false, RndisStatus::kInvalidData},
      {"not by fewer digits", "02abcd00ff1", kConfigString, false, RndisStatus::kInvalidData},
      {"not by other letters", "02abcd00ffxx", kConfigString, false, RndisStatus::kInvalidData},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      NicState state = make_state();
      state.mac_fixed = c.fixed;
      CHECK(status_of_set(state, Oid::kGenRndisConfigParameter,
                          config_parameter("NetworkAddress", c.type, wide(c.digits))) == c.status);
      const bool changed = c.status == RndisStatus::kSuccess;
      CHECK(state.mac.to_string() == (changed ? "02:ab:cd:00:ff:10" : "02:00:00:00:00:01"));
      CHECK(state.permanent_mac.to_string() == "02:00:00:00:00:01");
    }
  }
}

TEST_CASE("Windows' offload keywords switch offloads", "[netvsp]") {
  NicState state = make_state();
  state.offloads_enabled = 0;
  CHECK(status_of_set(state, Oid::kGenRndisConfigParameter,
                      config_parameter("*TCPChecksumOffloadIPv4", kConfigString, wide("3"))) ==
        RndisStatus::kSuccess);
  CHECK(state.offloads_enabled == (kTxTcpIpv4Checksum | kRxTcpIpv4Checksum));
  CHECK(status_of_set(state, Oid::kGenRndisConfigParameter,
                      config_parameter("*LsoV2IPv6", kConfigInteger, hex("01000000"))) ==
        RndisStatus::kSuccess);
  CHECK(status_of_set(state, Oid::kGenRndisConfigParameter,
                      config_parameter("*TCPChecksumOffloadIPv4", kConfigInteger, hex("00000000"))) ==
        RndisStatus::kSuccess);
  CHECK(state.offloads_enabled == kLsoIpv6);
  CHECK(status_of_set(state, Oid::kGenRndisConfigParameter,
                      config_parameter("*LsoV2IPv6", kConfigInteger, hex("04000000"))) ==
        RndisStatus::kInvalidData);
  CHECK(status_of_set(state, Oid::kGenRndisConfigParameter,
                      config_parameter("*JumboPacket", kConfigString, wide("1514"))) ==
        RndisStatus::kSuccess);
  Bytes lie = config_parameter("*LsoV2IPv6", kConfigString, wide("1"));
  lie[3] = std::byte{0xff};  // name offset
  CHECK(status_of_set(state, Oid::kGenRndisConfigParameter, lie) == RndisStatus::kInvalidData);
}

TEST_CASE("sets without effect are accepted in their form", "[netvsp]") {
  NicState state = make_state();
  const Bytes zeros(28);
  for (const Oid oid : {Oid::kGenCurrentLookahead, Oid::kGenProtocolOptions, Oid::kGenNetworkLayerAddresses,
                        Oid::kGenLinkParameters, Oid::kOffloadEncapsulation}) {
    CHECK(status_of_set(state, oid, zeros) == RndisStatus::kSuccess);
  }
  CHECK(status_of_set(state, Oid::k8023MulticastList, Bytes(18)) == RndisStatus::kSuccess);
  CHECK(status_of_set(state, Oid::k8023MulticastList, Bytes(17)) == RndisStatus::kInvalidLength);
  CHECK(status_of_set(state, Oid::kGenProtocolOptions, Bytes(3)) == RndisStatus::kInvalidLength);
}

TEST_CASE("indications have their data behind the header", "[netvsp]") {
  std::array<std::byte, kControlMessageMax> out;
  std::size_t size = make_indication(RndisStatus::kMediaConnect, {}, out);
  CHECK(Bytes(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(size)) ==
        hex("07000000 14000000 0b000140 00000000 00000000"));
  const std::uint32_t speed = 0x11223344;
  size = make_indication(RndisStatus::kLinkSpeedChange, wire_bytes(speed), out);
  CHECK(Bytes(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(size)) ==
        hex("07000000 18000000 13000140 04000000 0c000000 44332211"));
}

TEST_CASE("addresses are parsed, printed and derived", "[netvsp]") {
  CHECK(MacAddress::parse("02:1a:4B:00:c3:9d")->to_string() == "02:1a:4b:00:c3:9d");
  for (const char* text : {"", "02:1a:4b:00:c3", "02:1a:4b:00:c3:9g", "02-1a-4b-00-c3-9d", "021a4b00c39d"}) {
    CHECK_FALSE(MacAddress::parse(text).has_value());
  }
  const MacAddress one = MacAddress::derive("guest1", "nic0");
  CHECK(one == MacAddress::derive("guest1", "nic0"));
  CHECK(one != MacAddress::derive("guest1", "nic1"));
  CHECK(one != MacAddress::derive("guest2", "nic0"));
  CHECK(one.valid_unicast());
  CHECK((one.bytes[0] & 2) == 2);  // locally administered
}

}  // namespace
}  // namespace vmbusd::netvsp
