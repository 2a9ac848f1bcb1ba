// The VMBus control messages as they stand on the wire: numbers, structs, versions, feature flags, device
// classes. Both ends use it: the server here, the guest's half in guest/.
//
// Numbers are little-endian. Reserved fields are ignored on receipt and written as zero. A struct's comment
// names the version that brought it where that is not the first. Guests may pad any message up to
// kMessagePayloadBytesMax bytes [uefi firmware drivers], so a message is at least as long as its struct.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/guid.h"
#include "base/wire.h"

namespace vmbusd::vmbus {

inline constexpr std::size_t kMessagePayloadBytesMax = 240;  // [TLFS: HvCallPostMessage]
inline constexpr std::uint8_t kMessageSint = 2;              // [linux: VMBUS_MESSAGE_SINT]
inline constexpr std::uint32_t kPageBytes = 4096;            // of a GPN, whatever the guest's page size

// HvPostMessage connection ids. [linux: VMBUS_MESSAGE_CONNECTION_ID, VMBUS_MESSAGE_CONNECTION_ID_4]
inline constexpr std::uint32_t kMessageConnectionBelow5 = 1;
inline constexpr std::uint32_t kMessageConnectionFrom5 = 4;

// major << 16 | minor. [linux: include/linux/hyperv.h, VERSION_WIN10_V5_3 and its neighbours]
enum class Version : std::uint32_t {
  kNone = 0,  // no connection
  k0_13 = 0x0000000d,
  k1_1 = 0x00010001,
  k2_4 = 0x00020004,
  k3_0 = 0x00030000,
  k4_0 = 0x00040000,
  k4_1 = 0x00040001,
  k5_0 = 0x00050000,
  k5_1 = 0x00050001,
  k5_2 = 0x00050002,
  k5_3 = 0x00050003,
  k6_0 = 0x00060000,
};

// Of INITIATE_CONTACT and VERSION_RESPONSE since 6.0. [openvmm: vmbus_core/src/protocol.rs, FeatureFlags]
inline constexpr std::uint32_t kFeatureGuestSignalParameters = 0x01;
inline constexpr std::uint32_t kFeatureInterruptRedirection = 0x02;
inline constexpr std::uint32_t kFeatureModifyConnection = 0x04;
inline constexpr std::uint32_t kFeatureClientId = 0x08;
inline constexpr std::uint32_t kFeatureConfidentialChannels = 0x10;
inline constexpr std::uint32_t kFeaturePauseResume = 0x20;
inline constexpr std::uint32_t kFeatureServerMonitorPages = 0x40;
inline constexpr std::uint32_t kFeatureGpaPinning = 0x80;

// [linux: include/linux/hyperv.h, enum vmbus_channel_message_type; from 25 on: openvmm, MessageType]
enum class MessageType : std::uint32_t {
  kInvalid = 0,
  kOfferChannel = 1,
  kRescindChannelOffer = 2,
  kRequestOffers = 3,
  kAllOffersDelivered = 4,
  kOpenChannel = 5,
  kOpenChannelResult = 6,
  kCloseChannel = 7,
  kGpadlHeader = 8,
  kGpadlBody = 9,
  kGpadlCreated = 10,
  kGpadlTeardown = 11,
  kGpadlTorndown = 12,
  kRelidReleased = 13,
  kInitiateContact = 14,
  kVersionResponse = 15,
  kUnload = 16,
  kUnloadResponse = 17,
  kOpenReservedChannel = 18,
  kCloseReservedChannel = 19,
  kCloseReservedResponse = 20,
  kTlConnectRequest = 21,
  kModifyChannel = 22,
  kTlConnectResult = 23,
  kModifyChannelResponse = 24,
  kModifyConnection = 25,
  kModifyConnectionResponse = 26,
  kPause = 27,
  kPauseResponse = 28,
  kResume = 29,
};

// NTSTATUS values of result messages; guests only tell zero from non-zero. [MS-ERREF: NTSTATUS Values]
enum class Status : std::uint32_t {
  kSuccess = 0,
  kUnsuccessful = 0xc0000001,
  kInvalidParameter = 0xc000000d,
  kInsufficientResources = 0xc000009a,
  kCancelled = 0xc0000120,
  kInvalidDeviceState = 0xc0000184,
  kConnectionRefused = 0xc0000236,
};

// First bytes of every message. [linux: struct vmbus_channel_message_header]
struct MessageHeader {
  MessageType type = MessageType::kInvalid;
  std::uint32_t reserved = 0;
};
static_assert(kIsWire<MessageHeader, 8>);
static_assert(offsetof(MessageHeader, type) == 0);

// Messages that are nothing but their header.
struct RequestOffers {
  MessageHeader header{MessageType::kRequestOffers};
};
struct AllOffersDelivered {
  MessageHeader header{MessageType::kAllOffersDelivered};
};
struct Unload {
  MessageHeader header{MessageType::kUnload};
};
struct UnloadResponse {  // since 1.1
  MessageHeader header{MessageType::kUnloadResponse};
};
struct Pause {  // since 6.0 with kFeaturePauseResume, as the next two
  MessageHeader header{MessageType::kPause};
};
struct PauseResponse {
  MessageHeader header{MessageType::kPauseResponse};
};
struct Resume {
  MessageHeader header{MessageType::kResume};
};
static_assert(kIsWire<RequestOffers, 8> && kIsWire<AllOffersDelivered, 8> && kIsWire<Unload, 8> &&
              kIsWire<UnloadResponse, 8> && kIsWire<Pause, 8> && kIsWire<PauseResponse, 8> &&
              kIsWire<Resume, 8>);

// --- Connection ---

// Bytes 16..23 of INITIATE_CONTACT since 5.0. Below 5.0 the same bytes are the interrupt page's GPA as one
// u64: std::bit_cast.
struct InitiateTarget {
  std::uint8_t sint = 0;
  std::uint8_t vtl = 0;  // since 5.1
  std::uint16_t reserved = 0;
  std::uint32_t feature_flags = 0;  // since 6.0
};
static_assert(kIsWire<InitiateTarget, 8>);
static_assert(offsetof(InitiateTarget, vtl) == 1 && offsetof(InitiateTarget, feature_flags) == 4);

// [linux: struct vmbus_channel_initiate_contact]
struct InitiateContact {
  MessageHeader header{MessageType::kInitiateContact};
  Version version{};
  std::uint32_t target_vp = 0;  // since 3.0: takes the host's messages; VP 0 does before
  InitiateTarget target{};
  std::uint64_t parent_to_child_monitor_gpa = 0;
  std::uint64_t child_to_parent_monitor_gpa = 0;
};
static_assert(kIsWire<InitiateContact, 40>);
static_assert(offsetof(InitiateContact, version) == 8 && offsetof(InitiateContact, target_vp) == 12 &&
              offsetof(InitiateContact, target) == 16 &&
              offsetof(InitiateContact, parent_to_child_monitor_gpa) == 24 &&
              offsetof(InitiateContact, child_to_parent_monitor_gpa) == 32);

// Since 6.0 with kFeatureClientId.
struct InitiateContactWithClientId {
  InitiateContact contact{};
  Guid client_id{};
};
static_assert(kIsWire<InitiateContactWithClientId, 56>);
static_assert(offsetof(InitiateContactWithClientId, client_id) == 40);

enum class ConnectionState : std::uint8_t { kOk = 0, kLowResources = 1, kFailed = 2 };

// Up to 5.3, and every "unsupported" of any version. [linux: struct vmbus_channel_version_response]
struct VersionResponse {
  MessageHeader header{MessageType::kVersionResponse};
  std::uint8_t version_supported = 0;
  ConnectionState connection_state = ConnectionState::kOk;  // since 2.4
  std::uint16_t reserved = 0;
  std::uint32_t version_or_connection_id = 0;  // < 5.0: the version; else where the guest posts from now on
};
static_assert(kIsWire<VersionResponse, 16>);
static_assert(offsetof(VersionResponse, version_supported) == 8 &&
              offsetof(VersionResponse, connection_state) == 9 &&
              offsetof(VersionResponse, version_or_connection_id) == 12);

// Since 6.0, where the version is supported.
struct VersionResponseWithFeatures {
  VersionResponse response{};
  std::uint32_t feature_flags = 0;
};
static_assert(kIsWire<VersionResponseWithFeatures, 20>);
static_assert(offsetof(VersionResponseWithFeatures, feature_flags) == 16);

// Since 6.0 with kFeatureServerMonitorPages.
struct VersionResponseWithMonitorPages {
  VersionResponseWithFeatures response{};
  std::uint32_t reserved = 0;
  std::uint64_t parent_to_child_monitor_gpa = 0;
  std::uint64_t child_to_parent_monitor_gpa = 0;
};
static_assert(kIsWire<VersionResponseWithMonitorPages, 40>);
static_assert(offsetof(VersionResponseWithMonitorPages, parent_to_child_monitor_gpa) == 24 &&
              offsetof(VersionResponseWithMonitorPages, child_to_parent_monitor_gpa) == 32);

// Since 6.0 with kFeatureModifyConnection.
struct ModifyConnection {
  MessageHeader header{MessageType::kModifyConnection};
  std::uint64_t parent_to_child_monitor_gpa = 0;
  std::uint64_t child_to_parent_monitor_gpa = 0;
};
static_assert(kIsWire<ModifyConnection, 24>);
static_assert(offsetof(ModifyConnection, parent_to_child_monitor_gpa) == 8 &&
              offsetof(ModifyConnection, child_to_parent_monitor_gpa) == 16);

// As above. Packed (9 bytes on the wire), hence no MessageHeader inside.
struct [[gnu::packed]] ModifyConnectionResponse {
  MessageType type = MessageType::kModifyConnectionResponse;
  std::uint32_t reserved = 0;
  ConnectionState connection_state = ConnectionState::kOk;
};
static_assert(kIsWire<ModifyConnectionResponse, 9>);
static_assert(offsetof(ModifyConnectionResponse, connection_state) == 8);

// --- Offers ---

// OfferChannel::flags. [linux: VMBUS_CHANNEL_ENUMERATE_DEVICE_INTERFACE and its neighbours]
inline constexpr std::uint16_t kOfferEnumerateDeviceInterface = 0x0001;
inline constexpr std::uint16_t kOfferConfidentialRing = 0x0002;
inline constexpr std::uint16_t kOfferConfidentialExternalMemory = 0x0004;
inline constexpr std::uint16_t kOfferNamedPipeMode = 0x0010;
inline constexpr std::uint16_t kOfferLoopback = 0x0100;
inline constexpr std::uint16_t kOfferParent = 0x0200;
inline constexpr std::uint16_t kOfferRequestMonitor = 0x0400;
inline constexpr std::uint16_t kOfferTlnpiProvider = 0x2000;  // hvsocket

inline constexpr std::size_t kUserDataBytes = 120;      // of an offer, and of an open
inline constexpr std::uint32_t kPipeModeByte = 0;       // first u32 of user_defined with kOfferNamedPipeMode
inline constexpr std::uint32_t kPipeModeMessage = 4;    // [linux: VMBUS_PIPE_TYPE_MESSAGE]
inline constexpr std::uint8_t kNoMonitor = 0xff;        // OfferChannel::monitor_id
inline constexpr std::uint8_t kMonitorIds = 128;        // the others, from 0 on
inline constexpr std::uint8_t kMonitorAllocated = 0x1;  // bit of OfferChannel::monitor_flags
inline constexpr std::uint16_t kDedicatedInterrupt = 0x1;  // bit of OfferChannel::interrupt_flags

// [linux: struct vmbus_channel_offer_channel]
struct OfferChannel {
  MessageHeader header{MessageType::kOfferChannel};
  Guid interface_type{};
  Guid instance{};
  std::array<std::uint8_t, 16> reserved{};
  std::uint16_t flags = 0;           // kOffer*
  std::uint16_t mmio_megabytes = 0;  // MMIO space that the device wants
  std::array<std::uint8_t, kUserDataBytes> user_defined{};
  std::uint16_t sub_channel_index = 0;  // 0: primary
  std::uint16_t mmio_megabytes_optional = 0;
  std::uint32_t relid = 0;
  std::uint8_t monitor_id = kNoMonitor;
  std::uint8_t monitor_flags = 0;     // kMonitorAllocated
  std::uint16_t interrupt_flags = 0;  // kDedicatedInterrupt: guest signals need no interrupt page
  std::uint32_t connection_id = 0;    // that the guest signals
};
static_assert(kIsWire<OfferChannel, 196>);
static_assert(offsetof(OfferChannel, interface_type) == 8 && offsetof(OfferChannel, instance) == 24 &&
              offsetof(OfferChannel, flags) == 56 && offsetof(OfferChannel, mmio_megabytes) == 58 &&
              offsetof(OfferChannel, user_defined) == 60 &&
              offsetof(OfferChannel, sub_channel_index) == 180 &&
              offsetof(OfferChannel, mmio_megabytes_optional) == 182 &&
              offsetof(OfferChannel, relid) == 184 && offsetof(OfferChannel, monitor_id) == 188 &&
              offsetof(OfferChannel, monitor_flags) == 189 &&
              offsetof(OfferChannel, interrupt_flags) == 190 && offsetof(OfferChannel, connection_id) == 192);

// [linux: struct vmbus_channel_rescind_offer]
struct RescindChannelOffer {
  MessageHeader header{MessageType::kRescindChannelOffer};
  std::uint32_t relid = 0;
};
static_assert(kIsWire<RescindChannelOffer, 12> && offsetof(RescindChannelOffer, relid) == 8);

// [linux: struct vmbus_channel_relid_released]
struct RelidReleased {
  MessageHeader header{MessageType::kRelidReleased};
  std::uint32_t relid = 0;
};
static_assert(kIsWire<RelidReleased, 12> && offsetof(RelidReleased, relid) == 8);

// --- GPADLs ---

// Starts each range of a GPADL's range buffer; its page numbers (u64 each) follow. [linux: struct gpa_range]
struct GpaRangeHeader {
  std::uint32_t byte_count = 0;
  std::uint32_t byte_offset = 0;  // into the first page
};
static_assert(kIsWire<GpaRangeHeader, 8> && offsetof(GpaRangeHeader, byte_offset) == 4);

// The fixed part; as much of the range buffer as fits follows. [linux: struct vmbus_channel_gpadl_header]
struct GpadlHeader {
  MessageHeader header{MessageType::kGpadlHeader};
  std::uint32_t relid = 0;
  std::uint32_t gpadl = 0;
  std::uint16_t range_buflen = 0;  // of the whole range buffer, over all messages
  std::uint16_t rangecount = 0;
};
static_assert(kIsWire<GpadlHeader, 20>);
static_assert(offsetof(GpadlHeader, relid) == 8 && offsetof(GpadlHeader, gpadl) == 12 &&
              offsetof(GpadlHeader, range_buflen) == 16 && offsetof(GpadlHeader, rangecount) == 18);
inline constexpr std::size_t kGpadlHeaderValuesMax =
    (kMessagePayloadBytesMax - sizeof(GpadlHeader)) / sizeof(std::uint64_t);
static_assert(kGpadlHeaderValuesMax == 27);

// The fixed part; more of the range buffer follows. [linux: struct vmbus_channel_gpadl_body]
struct GpadlBody {
  MessageHeader header{MessageType::kGpadlBody};
  std::uint32_t msgnumber = 0;  // Linux leaves it 0
  std::uint32_t gpadl = 0;
};
static_assert(kIsWire<GpadlBody, 16>);
static_assert(offsetof(GpadlBody, msgnumber) == 8 && offsetof(GpadlBody, gpadl) == 12);
inline constexpr std::size_t kGpadlBodyValuesMax =
    (kMessagePayloadBytesMax - sizeof(GpadlBody)) / sizeof(std::uint64_t);
static_assert(kGpadlBodyValuesMax == 28);

// [linux: struct vmbus_channel_gpadl_created]
struct GpadlCreated {
  MessageHeader header{MessageType::kGpadlCreated};
  std::uint32_t relid = 0;
  std::uint32_t gpadl = 0;
  Status status = Status::kSuccess;
};
static_assert(kIsWire<GpadlCreated, 20>);
static_assert(offsetof(GpadlCreated, relid) == 8 && offsetof(GpadlCreated, gpadl) == 12 &&
              offsetof(GpadlCreated, status) == 16);

// [linux: struct vmbus_channel_gpadl_teardown]
struct GpadlTeardown {
  MessageHeader header{MessageType::kGpadlTeardown};
  std::uint32_t relid = 0;
  std::uint32_t gpadl = 0;
};
static_assert(kIsWire<GpadlTeardown, 16>);
static_assert(offsetof(GpadlTeardown, relid) == 8 && offsetof(GpadlTeardown, gpadl) == 12);

// [linux: struct vmbus_channel_gpadl_torndown]
struct GpadlTorndown {
  MessageHeader header{MessageType::kGpadlTorndown};
  std::uint32_t gpadl = 0;
};
static_assert(kIsWire<GpadlTorndown, 12> && offsetof(GpadlTorndown, gpadl) == 8);

// --- Channels ---

// [linux: struct vmbus_channel_open_channel]
struct OpenChannel {
  MessageHeader header{MessageType::kOpenChannel};
  std::uint32_t relid = 0;
  std::uint32_t openid = 0;  // the guest's cookie: echoed, never interpreted
  std::uint32_t ring_gpadl = 0;
  std::uint32_t target_vp = 0;               // since 2.4; 0xffffffff: no interrupts
  std::uint32_t downstream_page_offset = 0;  // pages of the guest-to-host ring
  std::array<std::uint8_t, kUserDataBytes> user_data{};
};
static_assert(kIsWire<OpenChannel, 148>);
static_assert(offsetof(OpenChannel, relid) == 8 && offsetof(OpenChannel, openid) == 12 &&
              offsetof(OpenChannel, ring_gpadl) == 16 && offsetof(OpenChannel, target_vp) == 20 &&
              offsetof(OpenChannel, downstream_page_offset) == 24 && offsetof(OpenChannel, user_data) == 28);

// Since 6.0 with kFeatureGuestSignalParameters or kFeatureInterruptRedirection.
struct OpenChannelWithSignals {
  OpenChannel open{};
  std::uint32_t connection_id = 0;
  std::uint16_t event_flag = 0;
  std::uint16_t flags = 0;  // bit 0: redirect the interrupt
};
static_assert(kIsWire<OpenChannelWithSignals, 156>);
static_assert(offsetof(OpenChannelWithSignals, connection_id) == 148 &&
              offsetof(OpenChannelWithSignals, event_flag) == 152 &&
              offsetof(OpenChannelWithSignals, flags) == 154);

// [linux: struct vmbus_channel_open_result]
struct OpenChannelResult {
  MessageHeader header{MessageType::kOpenChannelResult};
  std::uint32_t relid = 0;
  std::uint32_t openid = 0;
  Status status = Status::kSuccess;
};
static_assert(kIsWire<OpenChannelResult, 20>);
static_assert(offsetof(OpenChannelResult, relid) == 8 && offsetof(OpenChannelResult, openid) == 12 &&
              offsetof(OpenChannelResult, status) == 16);

// [linux: struct vmbus_channel_close_channel]
struct CloseChannel {
  MessageHeader header{MessageType::kCloseChannel};
  std::uint32_t relid = 0;
};
static_assert(kIsWire<CloseChannel, 12> && offsetof(CloseChannel, relid) == 8);

// Since 4.1. [linux: struct vmbus_channel_modifychannel]
struct ModifyChannel {
  MessageHeader header{MessageType::kModifyChannel};
  std::uint32_t relid = 0;
  std::uint32_t target_vp = 0;
};
static_assert(kIsWire<ModifyChannel, 16>);
static_assert(offsetof(ModifyChannel, relid) == 8 && offsetof(ModifyChannel, target_vp) == 12);

// Since 5.3. [linux: struct vmbus_channel_modifychannel_response]
struct ModifyChannelResponse {
  MessageHeader header{MessageType::kModifyChannelResponse};
  std::uint32_t relid = 0;
  Status status = Status::kSuccess;
};
static_assert(kIsWire<ModifyChannelResponse, 16>);
static_assert(offsetof(ModifyChannelResponse, relid) == 8 && offsetof(ModifyChannelResponse, status) == 12);

// --- Reserved channels, opened outside an ordinary connection; since 4.0 ---
// [openvmm: vmbus_core/src/protocol.rs, OpenReservedChannel and its neighbours]

struct OpenReservedChannel {
  MessageHeader header{MessageType::kOpenReservedChannel};
  std::uint32_t relid = 0;
  std::uint32_t target_vp = 0;
  std::uint32_t target_sint = 0;
  std::uint32_t ring_gpadl = 0;
  std::uint32_t downstream_page_offset = 0;
};
static_assert(kIsWire<OpenReservedChannel, 28>);
static_assert(offsetof(OpenReservedChannel, relid) == 8 && offsetof(OpenReservedChannel, target_vp) == 12 &&
              offsetof(OpenReservedChannel, target_sint) == 16 &&
              offsetof(OpenReservedChannel, ring_gpadl) == 20 &&
              offsetof(OpenReservedChannel, downstream_page_offset) == 24);

struct CloseReservedChannel {
  MessageHeader header{MessageType::kCloseReservedChannel};
  std::uint32_t relid = 0;
  std::uint32_t target_vp = 0;  // takes the response
  std::uint32_t target_sint = 0;
};
static_assert(kIsWire<CloseReservedChannel, 20>);
static_assert(offsetof(CloseReservedChannel, relid) == 8 && offsetof(CloseReservedChannel, target_vp) == 12 &&
              offsetof(CloseReservedChannel, target_sint) == 16);

struct CloseReservedResponse {
  MessageHeader header{MessageType::kCloseReservedResponse};
  std::uint32_t relid = 0;
};
static_assert(kIsWire<CloseReservedResponse, 12> && offsetof(CloseReservedResponse, relid) == 8);

// --- hvsocket ---

// Since 4.0. [linux: struct vmbus_channel_tl_connect_request]
struct TlConnectRequest {
  MessageHeader header{MessageType::kTlConnectRequest};
  Guid endpoint{};  // the guest's
  Guid service{};
};
static_assert(kIsWire<TlConnectRequest, 40>);
static_assert(offsetof(TlConnectRequest, endpoint) == 8 && offsetof(TlConnectRequest, service) == 24);

// Since 5.2; Linux goes on sending the short form.
struct TlConnectRequestWithSilo {
  TlConnectRequest request{};
  Guid silo{};
};
static_assert(kIsWire<TlConnectRequestWithSilo, 56> && offsetof(TlConnectRequestWithSilo, silo) == 40);

// Since 4.1.
struct TlConnectResult {
  MessageHeader header{MessageType::kTlConnectResult};
  Guid endpoint{};
  Guid service{};
  Status status = Status::kSuccess;
};
static_assert(kIsWire<TlConnectResult, 44>);
static_assert(offsetof(TlConnectResult, endpoint) == 8 && offsetof(TlConnectResult, service) == 24 &&
              offsetof(TlConnectResult, status) == 40);

// --- Device classes [linux: include/linux/hyperv.h, HV_NIC_GUID and its neighbours] ---

inline constexpr Guid kClassNetwork = Guid::literal("f8615163-df3e-46c5-913f-f2d2f965ed0e");
inline constexpr Guid kClassIde = Guid::literal("32412632-86cb-44a2-9b5c-50d1417354f5");
inline constexpr Guid kClassScsi = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
inline constexpr Guid kClassFibreChannel = Guid::literal("2f9bcc4a-0069-4af3-b76b-6fd0be528cda");
inline constexpr Guid kClassShutdown = Guid::literal("0e0b6031-5213-4934-818b-38d90ced39db");
inline constexpr Guid kClassTimeSync = Guid::literal("9527e630-d0ae-497b-adce-e80ab0175caf");
inline constexpr Guid kClassHeartbeat = Guid::literal("57164f39-9115-4e78-ab55-382f3bd5422d");
inline constexpr Guid kClassKvp = Guid::literal("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6");
inline constexpr Guid kClassVss = Guid::literal("35fa2e29-ea23-4236-96ae-3a6ebacba440");
inline constexpr Guid kClassFileCopy = Guid::literal("34d14be3-dee4-41c8-9ae7-6b174977c192");
inline constexpr Guid kClassDynamicMemory = Guid::literal("525074dc-8985-46e2-8057-a307dc18a502");
inline constexpr Guid kClassKeyboard = Guid::literal("f912ad6d-2b17-48ea-bd65-f927a61c7684");
inline constexpr Guid kClassMouse = Guid::literal("cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a");
inline constexpr Guid kClassVideo = Guid::literal("da0a7802-e377-4aac-8e77-0558eb1073f8");
inline constexpr Guid kClassPciPassThrough = Guid::literal("44c4f61d-4444-4400-9d52-802e27ede19f");

// --- Monitor page ---

// By which a guest signals without a hypercall: it sets bit monitor_id % 32 of triggers[monitor_id / 32], and
// somebody looks now and then. A page of the guest's, which it can write at any time. [linux: struct
// hv_monitor_page]
struct MonitorPage {
  struct Trigger {
    std::uint32_t pending;  // a bit for each channel
    std::uint32_t armed;
  };
  struct Parameter {
    std::uint32_t connection_id;
    std::uint16_t flag;
    std::uint16_t reserved;
  };
  static constexpr std::size_t kGroups = 4;
  static constexpr std::size_t kGroupSize = 32;

  std::uint32_t enabled;  // bits 0..3: the groups that are looked at
  std::uint32_t reserved;
  std::array<Trigger, kGroups> triggers;
  std::array<std::uint64_t, 3> reserved2;
  std::array<std::int32_t, kGroups * kGroupSize> next_check_time;  // the rest by monitor id
  std::array<std::uint16_t, kGroups * kGroupSize> latency;         // between two looks, 100 ns units
  std::array<std::uint64_t, 32> reserved3;
  std::array<Parameter, kGroups * kGroupSize> parameters;
  std::array<std::uint64_t, 248> reserved4;
};
static_assert(kIsWire<MonitorPage, kPageBytes>);
static_assert(offsetof(MonitorPage, triggers) == 8 && offsetof(MonitorPage, next_check_time) == 0x40 &&
              offsetof(MonitorPage, latency) == 0x240 && offsetof(MonitorPage, parameters) == 0x440);
static_assert(MonitorPage::kGroups * MonitorPage::kGroupSize == kMonitorIds);

}  // namespace vmbusd::vmbus
