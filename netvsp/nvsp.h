// NVSP, the outermost protocol of the synthetic NIC: negotiation, buffers, sub-channels, and the announcement
// of RNDIS messages. Wire structs and constants only.
// Facts from [linux: drivers/net/hyperv/hyperv_net.h], checked against [openvmm: netvsp/src/protocol.rs].
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/wire.h"

namespace vmbusd::netvsp {

// Newest first in a guest's INIT attempts. [linux: NVSP_PROTOCOL_VERSION_*]
enum class NvspVersion : std::uint32_t {
  k1 = 0x00002,
  k2 = 0x30002,   // NDIS_CONFIG
  k4 = 0x40000,   // VF association
  k5 = 0x50000,   // sub-channels, indirection table
  k6 = 0x60000,   // PacketDirect; nothing that we use
  k61 = 0x60001,  // RSC
};

enum class NvspType : std::uint32_t {
  kInit = 1,
  kInitComplete = 2,
  kSendNdisVersion = 100,
  kSendReceiveBuffer = 101,
  kSendReceiveBufferComplete = 102,
  kRevokeReceiveBuffer = 103,
  kSendSendBuffer = 104,
  kSendSendBufferComplete = 105,
  kRevokeSendBuffer = 106,
  kSendRndisPacket = 107,
  kSendRndisPacketComplete = 108,
  kSendNdisConfig = 125,        // v2
  kSendVfAssociation = 128,     // v4
  kSwitchDataPath = 129,        // v4
  kUplinkConnectState = 130,    // v4, unused
  kOidQueryEx = 131,            // v5, Windows
  kOidQueryExComplete = 132,    // v5
  kSubChannel = 133,            // v5; request and completion
  kSendIndirectionTable = 134,  // v5
};

enum class NvspStatus : std::uint32_t {
  kNone = 0,
  kSuccess = 1,
  kFailure = 2,
  kProtocolTooNew = 3,
  kProtocolTooOld = 4,
  kInvalidRndisPacket = 5,
  kBusy = 6,
  kUnsupported = 7,
};

// Every message and completion of ours is padded to this with zeros: the union's size since 6.1 (28 before,
// longer is tolerated). Linux copies 40 bytes out of completions whatever was negotiated.
inline constexpr std::uint32_t kNvspMessageSize = 40;

struct NvspInit {
  NvspType type;
  NvspVersion version_min;
  NvspVersion version_max;
};
static_assert(kIsWire<NvspInit, 12>);
static_assert(offsetof(NvspInit, version_min) == 4 && offsetof(NvspInit, version_max) == 8);

struct NvspInitComplete {
  NvspType type;
  std::uint32_t version;  // guests ignore it
  std::uint32_t mdl_chain_length_max;
  NvspStatus status;
};
static_assert(kIsWire<NvspInitComplete, 16>);
static_assert(offsetof(NvspInitComplete, version) == 4 &&
              offsetof(NvspInitComplete, mdl_chain_length_max) == 8 &&
              offsetof(NvspInitComplete, status) == 12);
inline constexpr std::uint32_t kMdlChainLengthMax = 34;  // what Hyper-V says

struct NvspSendNdisVersion {
  NvspType type;
  std::uint32_t major;
  std::uint32_t minor;
};
static_assert(kIsWire<NvspSendNdisVersion, 12>);

// SEND_RECEIVE_BUFFER and SEND_SEND_BUFFER.
struct NvspSendBuffer {
  NvspType type;
  std::uint32_t gpadl;
  std::uint16_t id;  // of the receive buffer: the transfer page set that the host names it by
  std::uint16_t reserved;
};
static_assert(kIsWire<NvspSendBuffer, 12>);
static_assert(offsetof(NvspSendBuffer, gpadl) == 4 && offsetof(NvspSendBuffer, id) == 8);

struct NvspReceiveBufferSection {
  std::uint32_t offset;
  std::uint32_t sub_allocation_size;
  std::uint32_t sub_allocations;
  std::uint32_t end_offset;
};
static_assert(kIsWire<NvspReceiveBufferSection, 16>);

struct NvspSendReceiveBufferComplete {
  NvspType type;
  NvspStatus status;
  std::uint32_t section_count;  // Linux takes 1 only
  NvspReceiveBufferSection section;
};
static_assert(kIsWire<NvspSendReceiveBufferComplete, 28>);
static_assert(offsetof(NvspSendReceiveBufferComplete, section) == 12);

struct NvspSendSendBufferComplete {
  NvspType type;
  NvspStatus status;
  std::uint32_t section_size;
};
static_assert(kIsWire<NvspSendSendBufferComplete, 12>);

// REVOKE_RECEIVE_BUFFER and REVOKE_SEND_BUFFER.
struct NvspRevokeBuffer {
  NvspType type;
  std::uint16_t id;
  std::uint16_t reserved;
};
static_assert(kIsWire<NvspRevokeBuffer, 8>);

enum class NvspChannelType : std::uint32_t { kData = 0, kControl = 1 };

struct NvspSendRndisPacket {
  NvspType type;
  NvspChannelType channel_type;
  std::uint32_t send_section_index;
  std::uint32_t send_section_size;  // bytes used
};
static_assert(kIsWire<NvspSendRndisPacket, 16>);
static_assert(offsetof(NvspSendRndisPacket, channel_type) == 4 &&
              offsetof(NvspSendRndisPacket, send_section_index) == 8 &&
              offsetof(NvspSendRndisPacket, send_section_size) == 12);
inline constexpr std::uint32_t kNoSendSection = 0xffffffff;

// A status alone: SEND_RNDIS_PACKET_COMPLETE, and the refusal of what we do not know.
struct NvspStatusMessage {
  NvspType type;
  NvspStatus status;
};
static_assert(kIsWire<NvspStatusMessage, 8>);

struct NvspSendNdisConfig {
  NvspType type;
  std::uint32_t mtu;  // with the 14 bytes of the Ethernet header
  std::uint32_t reserved;
  std::uint32_t capabilities;  // kNdisConfig*; a u64 on the wire, at an offset that is no multiple of 8
  std::uint32_t capabilities_high;
};
static_assert(kIsWire<NvspSendNdisConfig, 20>);
static_assert(offsetof(NvspSendNdisConfig, mtu) == 4 && offsetof(NvspSendNdisConfig, capabilities) == 12);

inline constexpr std::uint32_t kNdisConfigSriov = 1u << 2;  // v5
inline constexpr std::uint32_t kNdisConfig8021q = 1u << 3;
inline constexpr std::uint32_t kNdisConfigRsc = 1u << 7;  // v6.1

struct NvspSwitchDataPath {
  NvspType type;
  std::uint32_t active;  // 0: synthetic, 1: VF
};
static_assert(kIsWire<NvspSwitchDataPath, 8>);

inline constexpr std::uint32_t kSubChannelAllocate = 1;
struct NvspSubChannelRequest {
  NvspType type;
  std::uint32_t operation;
  std::uint32_t count;
};
static_assert(kIsWire<NvspSubChannelRequest, 12>);

struct NvspSubChannelComplete {
  NvspType type;
  NvspStatus status;
  std::uint32_t count;
};
static_assert(kIsWire<NvspSubChannelComplete, 12>);

// The table stands behind the padded message: Linux before 6.2 expects it right behind the 40-byte union
// (netvsc_send_table), whatever `offset` says in NVSP 6 and older.
inline constexpr std::uint32_t kSendIndirectionEntries = 16;
struct NvspSendIndirectionTable {
  NvspType type;
  std::uint32_t count;   // kSendIndirectionEntries
  std::uint32_t offset;  // of the table, from the message's start
  std::uint32_t reserved[7];
  std::uint32_t table[kSendIndirectionEntries];  // channel indices by transmit hash
};
static_assert(kIsWire<NvspSendIndirectionTable, 104>);
static_assert(offsetof(NvspSendIndirectionTable, table) == kNvspMessageSize);

}  // namespace vmbusd::netvsp
