// The VSTOR protocol between storvsc (guest) and storvsp (host): what stands in the packets of a storage
// channel. Facts from [linux: drivers/scsi/storvsc_drv.c] and [openvmm: vm/devices/storage/storvsp_protocol].
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/guid.h"
#include "base/wire.h"

namespace vmbusd::storvsp::vstor {

// Offer class of a synthetic SCSI controller.
inline constexpr Guid kScsiControllerClass = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");

enum class Operation : std::uint32_t {
  kCompleteIo = 1,  // every answer of the host
  kRemoveDevice = 2,
  kExecuteSrb = 3,
  kResetLun = 4,
  kResetAdapter = 5,
  kResetBus = 6,
  kBeginInitialization = 7,
  kEndInitialization = 8,
  kQueryProtocolVersion = 9,
  kQueryProperties = 10,
  kEnumerateBus = 11,  // host to guest, unsolicited: the set of LUNs changed
  kFcHbaData = 12,
  kCreateSubChannels = 13,
  kEventNotification = 14,
};

inline constexpr std::uint32_t kFlagCompletionRequested = 1u << 0;  // of PacketHeader

// NTSTATUS values of PacketHeader::status.
enum class Status : std::uint32_t {
  kSuccess = 0,
  kBufferOverflow = 0x80000005,
  kDeviceBusy = 0x80000011,
  kUnsuccessful = 0xc0000001,
  kInvalidParameter = 0xc000000d,
  kInvalidDeviceRequest = 0xc0000010,
  kRevisionMismatch = 0xc0000059,
  kIoTimeout = 0xc00000b5,
  kNoSuchDevice = 0xc00000c0,
  kCancelled = 0xc0000120,
  kInvalidDeviceState = 0xc0000184,
  kIoDeviceError = 0xc0000185,
};

// Protocol versions, major << 8 | minor.
inline constexpr std::uint16_t kVersion2008 = 0x0200;
inline constexpr std::uint16_t kVersionWin7 = 0x0402;
inline constexpr std::uint16_t kVersionWin8 =
    0x0501;  // from here on packets have 64 bytes, and sub-channels exist
inline constexpr std::uint16_t kVersionWin81 = 0x0600;
inline constexpr std::uint16_t kVersionWin10 = 0x0602;

inline constexpr std::size_t kPacketSize = 64;
inline constexpr std::size_t kPacketSizeBeforeWin8 = 48;

struct PacketHeader {
  Operation operation;
  std::uint32_t flags;  // kFlagCompletionRequested; informational, the ring packet's own flag decides
  Status status;        // in answers
};
static_assert(kIsWire<PacketHeader, 12>);
static_assert(offsetof(PacketHeader, flags) == 4 && offsetof(PacketHeader, status) == 8);

// Any packet; `body` is one of the structs below, by operation.
struct Packet {
  PacketHeader header;
  std::array<std::byte, 52> body;
};
static_assert(kIsWire<Packet, kPacketSize> && offsetof(Packet, body) == 12);

enum class SrbStatus : std::uint8_t {
  kPending = 0x00,
  kSuccess = 0x01,
  kAborted = 0x02,
  kError = 0x04,
  kBusy = 0x05,
  kInvalidRequest = 0x06,
  kTimeout = 0x09,
  kBusReset = 0x0e,
  kDataOverrun = 0x12,
  kBadSrbBlockLength = 0x15,
  kRequestFlushed = 0x16,
  kInvalidLun = 0x20,  // the guest removes the LUN
  kInvalidTargetId = 0x21,
  kBadFunction = 0x22,
};
inline constexpr std::uint8_t kSrbAutosenseValid = 0x80;  // beside an SrbStatus
inline constexpr std::uint8_t kSrbQueueFrozen = 0x40;     // never set by a host

enum class DataIn : std::uint8_t { kWrite = 0, kRead = 1, kUnknown = 2 };

inline constexpr std::uint32_t kSrbFlagDataIn = 0x40;   // device to guest
inline constexpr std::uint32_t kSrbFlagDataOut = 0x80;  // guest to device

inline constexpr std::size_t kCdbSizeMax = 16;
inline constexpr std::size_t kSenseSizeMax = 20;

// Body of kExecuteSrb, of its completion, and (addresses only) of kResetLun and kResetBus. Before
// kVersionWin8 it ends in front of `reserved2`. [linux: struct vmscsi_request]
struct Srb {
  std::uint16_t length;  // of this struct; informational
  std::uint8_t srb_status;
  std::uint8_t scsi_status;
  std::uint8_t port_number;
  std::uint8_t path_id;
  std::uint8_t target_id;
  std::uint8_t lun;
  std::uint8_t cdb_length;         // <= kCdbSizeMax
  std::uint8_t sense_info_length;  // request: room; completion: valid bytes
  DataIn data_in;
  std::uint8_t reserved;
  std::uint32_t data_transfer_length;                    // completion: bytes that moved
  std::array<std::uint8_t, kSenseSizeMax> cdb_or_sense;  // request: CDB; completion: sense data, where valid
  std::uint16_t reserved2;
  std::uint8_t queue_tag;
  std::uint8_t queue_action;
  std::uint32_t srb_flags;
  std::uint32_t time_out_value;  // seconds
  std::uint32_t queue_sort_key;
};
static_assert(kIsWire<Srb, 52>);
static_assert(offsetof(Srb, srb_status) == 2 && offsetof(Srb, scsi_status) == 3 &&
              offsetof(Srb, path_id) == 5 && offsetof(Srb, target_id) == 6 && offsetof(Srb, lun) == 7 &&
              offsetof(Srb, cdb_length) == 8 && offsetof(Srb, sense_info_length) == 9 &&
              offsetof(Srb, data_in) == 10 && offsetof(Srb, data_transfer_length) == 12 &&
              offsetof(Srb, cdb_or_sense) == 16 && offsetof(Srb, reserved2) == 36 &&
              offsetof(Srb, queue_tag) == 38 && offsetof(Srb, queue_action) == 39 &&
              offsetof(Srb, srb_flags) == 40 && offsetof(Srb, time_out_value) == 44 &&
              offsetof(Srb, queue_sort_key) == 48);
static_assert(sizeof(PacketHeader) + offsetof(Srb, reserved2) == kPacketSizeBeforeWin8);

struct SrbPacket {
  PacketHeader header;
  Srb srb;
};
static_assert(kIsWire<SrbPacket, kPacketSize> && offsetof(SrbPacket, srb) == 12);

// Body of the answer to kQueryProperties. [linux: struct vmstorage_channel_properties]
struct ChannelProperties {
  std::uint32_t reserved;
  std::uint16_t max_channel_count;  // sub-channels that the guest may ask for
  std::uint16_t reserved2;
  std::uint32_t flags;               // kPropertyMultiChannel
  std::uint32_t max_transfer_bytes;  // of one SRB
  std::uint32_t reserved3[2];
};
static_assert(kIsWire<ChannelProperties, 24>);
static_assert(offsetof(ChannelProperties, max_channel_count) == 4 &&
              offsetof(ChannelProperties, flags) == 8 &&
              offsetof(ChannelProperties, max_transfer_bytes) == 12);
inline constexpr std::uint32_t kPropertyMultiChannel = 1u << 0;

// Body of kQueryProtocolVersion. [linux: struct vmstorage_protocol_version]
struct ProtocolVersion {
  std::uint16_t major_minor;
  std::uint16_t revision;  // of the guest's header file; ignored
};
static_assert(kIsWire<ProtocolVersion, 4> && offsetof(ProtocolVersion, revision) == 2);

// Body of kCreateSubChannels; since kVersionWin8.
struct SubChannelRequest {
  std::uint16_t count;
};
static_assert(kIsWire<SubChannelRequest, 2>);

}  // namespace vmbusd::storvsp::vstor
