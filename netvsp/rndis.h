// RNDIS, the driver-to-adapter protocol inside NVSP: control messages, and packets with their per-packet
// info. Wire structs and constants only.
// Facts from [MS-RNDIS], [linux: include/linux/rndis.h and drivers/net/hyperv/hyperv_net.h].
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/wire.h"

namespace vmbusd::netvsp {

enum class RndisType : std::uint32_t {
  kPacket = 1,
  kInitialize = 2,
  kHalt = 3,
  kQuery = 4,
  kSet = 5,
  kReset = 6,
  kIndicateStatus = 7,
  kKeepalive = 8,
  kSetEx = 9,  // Windows, NVSP 5; answered as kSet
  kInitializeComplete = 0x80000002,
  kQueryComplete = 0x80000004,
  kSetComplete = 0x80000005,
  kResetComplete = 0x80000006,
  kKeepaliveComplete = 0x80000008,
  kSetExComplete = 0x80000009,
};

enum class RndisStatus : std::uint32_t {
  kSuccess = 0,
  kFailure = 0xc0000001,
  kNotSupported = 0xc00000bb,
  kBadVersion = 0xc0010004,
  kInvalidLength = 0xc0010014,
  kInvalidData = 0xc0010015,
  kBufferTooShort = 0xc0010016,
  // Indications.
  kMediaConnect = 0x4001000b,
  kMediaDisconnect = 0x4001000c,
  kLinkSpeedChange = 0x40010013,
  kNetworkChange = 0x40010018,
  kTaskOffloadCurrentConfig = 0x40020006,
};

struct RndisHeader {
  RndisType type;
  std::uint32_t message_length;  // with this header
};
static_assert(kIsWire<RndisHeader, 8>);

// Offsets inside a message count from behind RndisHeader. [MS-RNDIS: REMOTE_NDIS_PACKET_MSG and others]
inline constexpr std::uint32_t kRndisOffsetBase = sizeof(RndisHeader);

struct RndisInitialize {
  RndisHeader header;
  std::uint32_t request_id;
  std::uint32_t major_version;
  std::uint32_t minor_version;
  std::uint32_t transfer_size_max;
};
static_assert(kIsWire<RndisInitialize, 24>);

struct RndisInitializeComplete {
  RndisHeader header;
  std::uint32_t request_id;
  RndisStatus status;
  std::uint32_t major_version;
  std::uint32_t minor_version;
  std::uint32_t device_flags;             // kRndisConnectionless
  std::uint32_t medium;                   // 0: 802.3
  std::uint32_t packets_per_message_max;  // FreeBSD and DPDK aggregate by it
  std::uint32_t transfer_size_max;
  std::uint32_t packet_alignment_shift;
  std::uint32_t address_family_list_offset;
  std::uint32_t address_family_list_size;
};
static_assert(kIsWire<RndisInitializeComplete, 52>);
inline constexpr std::uint32_t kRndisMajorVersion = 1;
inline constexpr std::uint32_t kRndisMinorVersion = 0;
inline constexpr std::uint32_t kRndisConnectionless = 1;

// QUERY, SET and SET_EX.
struct RndisRequest {
  RndisHeader header;
  std::uint32_t request_id;
  std::uint32_t oid;
  std::uint32_t info_length;
  std::uint32_t info_offset;  // from kRndisOffsetBase
  std::uint32_t device_vc;
};
static_assert(kIsWire<RndisRequest, 28>);

struct RndisQueryComplete {
  RndisHeader header;
  std::uint32_t request_id;
  RndisStatus status;
  std::uint32_t info_length;
  std::uint32_t info_offset;  // from kRndisOffsetBase
};
static_assert(kIsWire<RndisQueryComplete, 24>);

// SET_CMPLT, KEEPALIVE_CMPLT.
struct RndisStatusComplete {
  RndisHeader header;
  std::uint32_t request_id;
  RndisStatus status;
};
static_assert(kIsWire<RndisStatusComplete, 16>);

// HALT, KEEPALIVE.
struct RndisPlainRequest {
  RndisHeader header;
  std::uint32_t request_id;
};
static_assert(kIsWire<RndisPlainRequest, 12>);

struct RndisResetComplete {
  RndisHeader header;
  RndisStatus status;
  std::uint32_t addressing_reset;
};
static_assert(kIsWire<RndisResetComplete, 16>);

struct RndisIndicateStatus {
  RndisHeader header;
  RndisStatus status;
  std::uint32_t buffer_length;
  std::uint32_t buffer_offset;  // from kRndisOffsetBase
};
static_assert(kIsWire<RndisIndicateStatus, 20>);

struct RndisPacket {
  RndisHeader header;
  std::uint32_t data_offset;  // this and the other offsets from kRndisOffsetBase
  std::uint32_t data_length;
  std::uint32_t oob_offset;
  std::uint32_t oob_length;
  std::uint32_t oob_count;
  std::uint32_t ppi_offset;
  std::uint32_t ppi_length;
  std::uint32_t vc_handle;
  std::uint32_t reserved;
};
static_assert(kIsWire<RndisPacket, 44>);
static_assert(offsetof(RndisPacket, data_offset) == 8 && offsetof(RndisPacket, data_length) == 12 &&
              offsetof(RndisPacket, ppi_offset) == 28 && offsetof(RndisPacket, ppi_length) == 32);

// Per-packet info: its header, then its data. [linux: struct rndis_per_packet_info]
enum class PpiType : std::uint32_t {
  kChecksum = 0,
  kLargeSend = 2,
  k8021q = 6,
  kHashValue = 8,
  kHashInfo = 9,
  kPacketId = 0x80000001,  // bit 31: internal to netvsp and netvsc
};

struct PpiHeader {
  std::uint32_t size;  // with this header; a multiple of 4
  PpiType type;
  std::uint32_t data_offset;  // from this header's start
};
static_assert(kIsWire<PpiHeader, 12>);

// The infos that we know have 4 bytes of data.
struct Ppi {
  PpiHeader header;
  std::uint32_t data;
};
static_assert(kIsWire<Ppi, 16>);

// kChecksum from the guest. [linux: struct ndis_tcp_ip_checksum_info, transmit]
inline constexpr std::uint32_t kTxChecksumIpv4 = 1u << 0;
inline constexpr std::uint32_t kTxChecksumIpv6 = 1u << 1;
inline constexpr std::uint32_t kTxChecksumTcp = 1u << 2;
inline constexpr std::uint32_t kTxChecksumUdp = 1u << 3;
inline constexpr std::uint32_t kTxChecksumIpHeader = 1u << 4;
inline constexpr std::uint32_t kTxChecksumTcpHeaderOffsetShift = 16;  // 10 bits

// kChecksum to the guest.
inline constexpr std::uint32_t kRxChecksumTcpFailed = 1u << 0;
inline constexpr std::uint32_t kRxChecksumUdpFailed = 1u << 1;
inline constexpr std::uint32_t kRxChecksumIpFailed = 1u << 2;
inline constexpr std::uint32_t kRxChecksumTcpSucceeded = 1u << 3;
inline constexpr std::uint32_t kRxChecksumUdpSucceeded = 1u << 4;
inline constexpr std::uint32_t kRxChecksumIpSucceeded = 1u << 5;

// kLargeSend. [linux: struct ndis_tcp_lso_info, lso_v2_transmit]
inline constexpr std::uint32_t kLargeSendMssMask = 0xfffff;
inline constexpr std::uint32_t kLargeSendTcpHeaderOffsetShift = 20;  // 10 bits
inline constexpr std::uint32_t kLargeSendV2 = 1u << 30;
inline constexpr std::uint32_t kLargeSendIpv6 = 1u << 31;

// k8021q: priority, canonical form, VLAN id from bit 0 up. The tag on the wire has them the other way round.
// [linux: struct ndis_pkt_8021q_info]
[[nodiscard]] constexpr std::uint32_t vlan_info_from_tci(std::uint16_t tci) {
  return static_cast<std::uint32_t>(tci >> 13) | static_cast<std::uint32_t>((tci >> 12) & 1) << 3 |
         static_cast<std::uint32_t>(tci & 0xfff) << 4;
}
[[nodiscard]] constexpr std::uint16_t tci_from_vlan_info(std::uint32_t info) {
  return static_cast<std::uint16_t>((info & 7) << 13 | ((info >> 3) & 1) << 12 | ((info >> 4) & 0xfff));
}
static_assert(tci_from_vlan_info(vlan_info_from_tci(0xb123)) == 0xb123);

// kPacketId: u8 version, u8 flags, u16 id. [linux: struct rndis_pktinfo_id]
inline constexpr std::uint32_t kPacketIdVersion = 1;
inline constexpr std::uint32_t kPacketIdSubAllocation = 1u << 8;
inline constexpr std::uint32_t kPacketIdFirst = 2u << 8;
inline constexpr std::uint32_t kPacketIdLast = 4u << 8;

}  // namespace vmbusd::netvsp
