// NDIS objects that RNDIS queries and sets carry, and the numbers that name them (OIDs). Wire structs and
// constants only.
// Facts from [NDIS: network reference], [linux: drivers/net/hyperv/hyperv_net.h], [dpdk: netvsc/ndis.h].
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/wire.h"

namespace vmbusd::netvsp {

enum class Oid : std::uint32_t {
  kGenSupportedList = 0x00010101,
  kGenHardwareStatus = 0x00010102,
  kGenMediaSupported = 0x00010103,
  kGenMediaInUse = 0x00010104,
  kGenMaximumLookahead = 0x00010105,
  kGenMaximumFrameSize = 0x00010106,
  kGenLinkSpeed = 0x00010107,
  kGenTransmitBufferSpace = 0x00010108,
  kGenReceiveBufferSpace = 0x00010109,
  kGenTransmitBlockSize = 0x0001010a,
  kGenReceiveBlockSize = 0x0001010b,
  kGenVendorId = 0x0001010c,
  kGenVendorDescription = 0x0001010d,
  kGenCurrentPacketFilter = 0x0001010e,
  kGenCurrentLookahead = 0x0001010f,
  kGenDriverVersion = 0x00010110,
  kGenMaximumTotalSize = 0x00010111,
  kGenProtocolOptions = 0x00010112,
  kGenMacOptions = 0x00010113,
  kGenMediaConnectStatus = 0x00010114,
  kGenMaximumSendPackets = 0x00010115,
  kGenVendorDriverVersion = 0x00010116,
  kGenNetworkLayerAddresses = 0x00010118,
  kGenPhysicalMedium = 0x00010202,
  kGenReceiveScaleCapabilities = 0x00010203,
  kGenReceiveScaleParameters = 0x00010204,
  kGenMaxLinkSpeed = 0x00010206,
  kGenLinkState = 0x00010207,
  kGenLinkParameters = 0x00010208,
  kGenRndisConfigParameter = 0x0001021b,
  kGenXmitOk = 0x00020101,
  kGenRcvOk = 0x00020102,
  kGenXmitError = 0x00020103,
  kGenRcvError = 0x00020104,
  kGenRcvNoBuffer = 0x00020105,
  kGenStatistics = 0x00020106,
  kGenDirectedBytesXmit = 0x00020201,
  kGenDirectedFramesXmit = 0x00020202,
  kGenMulticastBytesXmit = 0x00020203,
  kGenMulticastFramesXmit = 0x00020204,
  kGenBroadcastBytesXmit = 0x00020205,
  kGenBroadcastFramesXmit = 0x00020206,
  kGenDirectedBytesRcv = 0x00020207,
  kGenDirectedFramesRcv = 0x00020208,
  kGenMulticastBytesRcv = 0x00020209,
  kGenMulticastFramesRcv = 0x0002020a,
  kGenBroadcastBytesRcv = 0x0002020b,
  kGenBroadcastFramesRcv = 0x0002020c,
  kGenRcvCrcError = 0x0002020d,
  kGenTransmitQueueLength = 0x0002020e,
  kGenFriendlyName = 0x00020216,
  kGenBytesRcv = 0x00020219,
  kGenBytesXmit = 0x0002021a,
  k8023PermanentAddress = 0x01010101,
  k8023CurrentAddress = 0x01010102,
  k8023MulticastList = 0x01010103,
  k8023MaximumListSize = 0x01010104,
  k8023MacOptions = 0x01010105,
  kOffloadEncapsulation = 0x0101010a,
  k8023RcvErrorAlignment = 0x01020101,
  k8023XmitOneCollision = 0x01020102,
  k8023XmitMoreCollisions = 0x01020103,
  kTcpOffloadCurrentConfig = 0xfc01020b,
  kTcpOffloadParameters = 0xfc01020c,
  kTcpOffloadHardwareCapabilities = 0xfc01020d,
};

// kGenCurrentPacketFilter.
inline constexpr std::uint32_t kFilterDirected = 0x01;
inline constexpr std::uint32_t kFilterMulticast = 0x02;
inline constexpr std::uint32_t kFilterAllMulticast = 0x04;
inline constexpr std::uint32_t kFilterBroadcast = 0x08;
inline constexpr std::uint32_t kFilterPromiscuous = 0x20;

// kGenMacOptions.
inline constexpr std::uint32_t kMacOptionCopyLookahead = 0x001;
inline constexpr std::uint32_t kMacOptionTransfersNotPending = 0x004;
inline constexpr std::uint32_t kMacOptionNoLoopback = 0x008;
inline constexpr std::uint32_t kMacOption8021pPriority = 0x040;
inline constexpr std::uint32_t kMacOption8021qVlan = 0x200;

// [NDIS: NDIS_OBJECT_HEADER]
struct NdisObjectHeader {
  std::uint8_t type;  // kNdisObject*
  std::uint8_t revision;
  std::uint16_t size;  // of the object, with this header
};
static_assert(kIsWire<NdisObjectHeader, 4>);
inline constexpr std::uint8_t kNdisObjectDefault = 0x80;
inline constexpr std::uint8_t kNdisObjectRssCapabilities = 0x88;
inline constexpr std::uint8_t kNdisObjectRssParameters = 0x89;
inline constexpr std::uint8_t kNdisObjectOffload = 0xa7;

// Offload flags of NdisOffload.
inline constexpr std::uint32_t kEncapsulation8023 = 2;
inline constexpr std::uint32_t kChecksumIpOptions = 0x001;  // IPv6: extension headers
inline constexpr std::uint32_t kChecksumTcpOptions = 0x004;
inline constexpr std::uint32_t kChecksumTcp = 0x010;
inline constexpr std::uint32_t kChecksumUdp = 0x040;
inline constexpr std::uint32_t kChecksumIpv4Header = 0x100;
inline constexpr std::uint32_t kLsoV6ExtensionHeaders = 0x01;
inline constexpr std::uint32_t kLsoV6TcpOptions = 0x04;

struct NdisChecksumOffload {
  std::uint32_t tx_encapsulation;
  std::uint32_t tx_flags;
  std::uint32_t rx_encapsulation;
  std::uint32_t rx_flags;
};
static_assert(kIsWire<NdisChecksumOffload, 16>);

struct NdisLsoV2 {
  std::uint32_t encapsulation;
  std::uint32_t size_max;
  std::uint32_t segments_min;
};
static_assert(kIsWire<NdisLsoV2, 12>);

// [NDIS: NDIS_OFFLOAD; linux: struct ndis_offload]. Revision 1 ends before ipsec_v2, 2 before rsc_ipv4.
struct NdisOffload {
  NdisObjectHeader header;
  NdisChecksumOffload ipv4;
  NdisChecksumOffload ipv6;
  std::uint32_t lso_v1[4];
  std::uint32_t ipsec_v1[7];
  NdisLsoV2 lso_v2_ipv4;
  NdisLsoV2 lso_v2_ipv6;
  std::uint32_t lso_v2_ipv6_flags;
  std::uint32_t flags;
  std::uint32_t ipsec_v2[8];
  std::uint8_t rsc_ipv4;
  std::uint8_t rsc_ipv6;
  std::uint8_t reserved[2];
  std::uint32_t nvgre[2];
};
static_assert(kIsWire<NdisOffload, 156>);
static_assert(offsetof(NdisOffload, ipv6) == 20 && offsetof(NdisOffload, lso_v1) == 36 &&
              offsetof(NdisOffload, ipsec_v1) == 52 && offsetof(NdisOffload, lso_v2_ipv4) == 80 &&
              offsetof(NdisOffload, lso_v2_ipv6) == 92 && offsetof(NdisOffload, lso_v2_ipv6_flags) == 104 &&
              offsetof(NdisOffload, flags) == 108 && offsetof(NdisOffload, ipsec_v2) == 112 &&
              offsetof(NdisOffload, rsc_ipv4) == 144 && offsetof(NdisOffload, nvgre) == 148);
inline constexpr std::uint16_t kNdisOffloadSize1 = 112;  // NDIS 6.0
inline constexpr std::uint16_t kNdisOffloadSize2 = 144;  // NDIS 6.1
inline constexpr std::uint16_t kNdisOffloadSize3 = 156;  // NDIS 6.30

// What a byte of NdisOffloadParameters asks for.
inline constexpr std::uint8_t kOffloadNoChange = 0;
inline constexpr std::uint8_t kChecksumOffBoth = 1;
inline constexpr std::uint8_t kChecksumTxOnly = 2;
inline constexpr std::uint8_t kChecksumRxOnly = 3;
inline constexpr std::uint8_t kChecksumOnBoth = 4;
inline constexpr std::uint8_t kOffloadDisabled = 1;  // LSO, RSC
inline constexpr std::uint8_t kOffloadEnabled = 2;

// [NDIS: NDIS_OFFLOAD_PARAMETERS; linux: struct ndis_offload_params]. Older guests stop before rsc_ipv4.
struct NdisOffloadParameters {
  NdisObjectHeader header;
  std::uint8_t ipv4_checksum;
  std::uint8_t tcp_ipv4_checksum;
  std::uint8_t udp_ipv4_checksum;
  std::uint8_t tcp_ipv6_checksum;
  std::uint8_t udp_ipv6_checksum;
  std::uint8_t lso_v1;
  std::uint8_t ipsec_v1;
  std::uint8_t lso_v2_ipv4;
  std::uint8_t lso_v2_ipv6;
  std::uint8_t tcp_connection_ipv4;
  std::uint8_t tcp_connection_ipv6;
  std::uint8_t reserved;
  std::uint32_t flags;
  std::uint8_t ipsec_v2;
  std::uint8_t ipsec_v2_ipv4;
  std::uint8_t rsc_ipv4;
  std::uint8_t rsc_ipv6;
  std::uint8_t encapsulated_packet_task_offload;
  std::uint8_t encapsulation_types;
  std::uint8_t reserved2[2];
};
static_assert(kIsWire<NdisOffloadParameters, 28>);
static_assert(offsetof(NdisOffloadParameters, lso_v2_ipv4) == 11 &&
              offsetof(NdisOffloadParameters, flags) == 16 &&
              offsetof(NdisOffloadParameters, rsc_ipv4) == 22);
inline constexpr std::uint32_t kNdisOffloadParametersSizeMin = 22;

// [NDIS: NDIS_RECEIVE_SCALE_CAPABILITIES; linux: struct ndis_recv_scale_cap]. Guests ask for 18 bytes
// (revision 2) or 16 (revision 1, without the last field).
struct NdisRssCapabilities {
  NdisObjectHeader header;
  std::uint32_t flags;
  std::uint32_t interrupt_messages;
  std::uint32_t receive_queues;
  std::uint16_t indirection_entries;
  std::uint16_t reserved;
};
static_assert(kIsWire<NdisRssCapabilities, 20>);
inline constexpr std::uint16_t kNdisRssCapabilitiesSize1 = 16;
inline constexpr std::uint16_t kNdisRssCapabilitiesSize2 = 18;
inline constexpr std::uint32_t kRssCapabilityToeplitz = 0x001;
inline constexpr std::uint32_t kRssCapabilityTcpIpv4 = 0x100;
inline constexpr std::uint32_t kRssCapabilityTcpIpv6 = 0x200;

// [NDIS: NDIS_RECEIVE_SCALE_PARAMETERS; linux: struct ndis_recv_scale_param]. Offsets count from its start.
struct NdisRssParameters {
  NdisObjectHeader header;
  std::uint16_t flags;
  std::uint16_t base_cpu;
  std::uint32_t hash_info;
  std::uint16_t indirection_table_size;  // bytes
  std::uint16_t reserved1;
  std::uint32_t indirection_table_offset;
  std::uint16_t hash_key_size;
  std::uint16_t reserved2;
  std::uint32_t hash_key_offset;
  std::uint32_t processor_masks_offset;
  std::uint32_t processor_masks_count;
  std::uint32_t processor_masks_entry_size;
};
static_assert(kIsWire<NdisRssParameters, 40>);
static_assert(offsetof(NdisRssParameters, hash_info) == 8 &&
              offsetof(NdisRssParameters, indirection_table_size) == 12 &&
              offsetof(NdisRssParameters, indirection_table_offset) == 16 &&
              offsetof(NdisRssParameters, hash_key_size) == 20 &&
              offsetof(NdisRssParameters, hash_key_offset) == 24);
inline constexpr std::uint16_t kRssHashInfoUnchanged = 0x02;
inline constexpr std::uint16_t kRssTableUnchanged = 0x04;
inline constexpr std::uint16_t kRssKeyUnchanged = 0x08;
inline constexpr std::uint16_t kRssDisable = 0x10;

// NdisRssParameters::hash_info.
inline constexpr std::uint32_t kHashToeplitz = 0x0001;  // the function; the others are types
inline constexpr std::uint32_t kHashIpv4 = 0x0100;
inline constexpr std::uint32_t kHashTcpIpv4 = 0x0200;
inline constexpr std::uint32_t kHashIpv6 = 0x0400;
inline constexpr std::uint32_t kHashIpv6Ex = 0x0800;
inline constexpr std::uint32_t kHashTcpIpv6 = 0x1000;
inline constexpr std::uint32_t kHashTcpIpv6Ex = 0x2000;
inline constexpr std::uint32_t kHashUdpIpv4 = 0x4000;
inline constexpr std::uint32_t kHashUdpIpv6 = 0x8000;
inline constexpr std::uint32_t kHashFunctionMask = 0x00ff;

inline constexpr std::uint32_t kRssKeySize = 40;
// DPDK and FreeBSD refuse more entries than 128, Linux more than 260 (older: 128).
inline constexpr std::uint32_t kRssIndirectionEntriesMax = 128;

// [NDIS: NDIS_LINK_STATE]
struct NdisLinkState {
  NdisObjectHeader header;
  std::uint32_t connect_state;  // 1: connected, 2: disconnected
  std::uint32_t duplex;         // 0: unknown, 2: full
  std::uint32_t padding;
  std::uint64_t tx_bits_per_second;
  std::uint64_t rx_bits_per_second;
  std::uint32_t pause_functions;
  std::uint32_t auto_negotiation_flags;
};
static_assert(kIsWire<NdisLinkState, 40>);

struct NdisLinkSpeed {
  std::uint64_t tx_bits_per_second;
  std::uint64_t rx_bits_per_second;
};
static_assert(kIsWire<NdisLinkSpeed, 16>);

// [NDIS: NDIS_STATISTICS_INFO]
struct NdisStatistics {
  NdisObjectHeader header;
  std::uint32_t supported;
  std::uint64_t in_discards;
  std::uint64_t in_errors;
  std::uint64_t in_octets;
  std::uint64_t in_unicast_packets;
  std::uint64_t in_multicast_packets;
  std::uint64_t in_broadcast_packets;
  std::uint64_t out_octets;
  std::uint64_t out_unicast_packets;
  std::uint64_t out_multicast_packets;
  std::uint64_t out_broadcast_packets;
  std::uint64_t out_errors;
  std::uint64_t out_discards;
  std::uint64_t in_unicast_octets;
  std::uint64_t in_multicast_octets;
  std::uint64_t in_broadcast_octets;
  std::uint64_t out_unicast_octets;
  std::uint64_t out_multicast_octets;
  std::uint64_t out_broadcast_octets;
};
static_assert(kIsWire<NdisStatistics, 152>);

// Set by kGenRndisConfigParameter; offsets count from its start, strings are UTF-16LE.
// [linux: struct rndis_config_parameter_info]
struct RndisConfigParameter {
  std::uint32_t name_offset;
  std::uint32_t name_length;
  std::uint32_t type;  // kConfigInteger, kConfigString
  std::uint32_t value_offset;
  std::uint32_t value_length;
};
static_assert(kIsWire<RndisConfigParameter, 20>);
inline constexpr std::uint32_t kConfigInteger = 0;
inline constexpr std::uint32_t kConfigString = 2;

// A fixed array of UTF-16LE, zero-terminated. [linux: OID_GEN_FRIENDLY_NAME's 512-byte buffer]
inline constexpr std::uint32_t kFriendlyNameSize = 512;

}  // namespace vmbusd::netvsp
