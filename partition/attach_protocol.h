// The attach protocol: what a VMM and vmbusd say to each other on a partition's Unix socket (SOCK_SEQPACKET).
// One datagram is one message; descriptors travel as SCM_RIGHTS beside it. docs/attach-protocol.md is the
// specification; this header holds its structs and constants and nothing else.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/wire.h"

namespace vmbusd::partition {

inline constexpr std::uint32_t kAttachMagic = 0x41424d56;  // "VMBA"
inline constexpr std::uint16_t kAttachMajor = 1;           // differs: refused
inline constexpr std::uint16_t kAttachMinor = 1;           // the lower of both sides is spoken

// Feature bits of Hello; the daemon answers with the intersection.
// Event flag pages are not guest memory (mshv), so the VMM raises events, by SignalEvent messages.
inline constexpr std::uint64_t kFeatureSignalByMessage = 1u << 0;
// The VMM keeps the recovery area and the doorbells, and gives them back to a daemon that was restarted. 1.1
inline constexpr std::uint64_t kFeatureTakeUp = 1u << 1;

inline constexpr std::uint32_t kMaxVps = 64;
inline constexpr std::uint32_t kMaxRegions = 64;
inline constexpr std::uint32_t kMaxMessagePayload = 240;  // [TLFS: HvPostMessage]
inline constexpr std::uint32_t kMaxHostMessages = 16;     // HostMessages sent and not yet answered
inline constexpr std::uint32_t kMaxVmmRequests = 128;     // requests of the VMM not yet answered
inline constexpr std::size_t kMaxFds = 2;                 // with one datagram

enum class AttachType : std::uint32_t {
  // VMM to daemon. Each is a request answered by kReply with the same cookie, but for kHello (answered by
  // kHelloReply) and kGuestMessage (not answered).
  kHello = 1,
  kMemoryAdd = 2,     // 1 fd: memory
  kMemoryRemove = 3,  // answered when nothing of the daemon touches the region any more
  kVpInterrupt = 4,   // 1 fd: writing 1 to this eventfd raises (VP, SINT)
  kSynicState = 5,    // answered when the daemon uses the new pages only
  kGuestMessage = 6,
  kReset = 7,  // answered when all channels are closed and no guest memory is in use
  // 1.1, with kFeatureTakeUp and before the first kGuestMessage
  kDoorbellKept = 8,  // 1 fd: eventfd of a kDoorbellAttach of the daemon before this one
  kTakeUp = 9,        // 1 fd: of the last kRecoveryArea. kRecoveryArea follows, or the connection's end

  // Daemon to VMM.
  kHelloReply = 64,
  kDoorbellAttach = 65,  // 1 fd: eventfd that HvSignalEvent on the connection id is to write. kReply
  kDoorbellDetach = 66,  // kReply
  kHostMessage = 67,     // kReply when it stands in the VP's message slot or was dropped by a reset
  kSignalEvent = 68,     // only with kFeatureSignalByMessage; not answered
  kRecoveryArea = 69,    // 1 fd: for kTakeUp. Only with kFeatureTakeUp; not answered. 1.1

  // Both ways.
  kReply = 128,
};

enum class AttachStatus : std::uint32_t {
  kOk = 0,
  kMalformed = 1,     // size, type or number of descriptors is wrong
  kVersion = 2,       // major version differs
  kState = 3,         // not now: no Hello yet, or a second one
  kInvalid = 4,       // a field is out of its range
  kOverlap = 5,       // region overlaps one that is there
  kNotShareable = 6,  // memory's descriptor cannot be mapped shared
  kNotFound = 7,      // no such region, VP or connection id
  kLimit = 8,         // too many regions, VPs, connections or requests
  kFailed = 9,        // the system refused; text says how
};

struct AttachHeader {
  AttachType type;
  std::uint32_t size;    // of the whole datagram
  std::uint64_t cookie;  // chosen by the requester, echoed in the answer; 0 in messages that have none
};
static_assert(kIsWire<AttachHeader, 16>);
static_assert(offsetof(AttachHeader, size) == 4 && offsetof(AttachHeader, cookie) == 8);

struct AttachHello {
  AttachHeader header;
  std::uint32_t magic;
  std::uint16_t major;
  std::uint16_t minor;
  std::uint64_t features;
  std::uint32_t vp_count;  // 1..kMaxVps; VP indices are 0..vp_count-1
  std::uint32_t reserved;
};
static_assert(kIsWire<AttachHello, 40>);
static_assert(offsetof(AttachHello, magic) == 16 && offsetof(AttachHello, features) == 24 &&
              offsetof(AttachHello, vp_count) == 32);

inline constexpr std::size_t kAttachTextSize = 104;

struct AttachHelloReply {
  AttachHeader header;
  AttachStatus status;
  std::uint16_t major;
  std::uint16_t minor;
  std::uint64_t features;
  // HvPostMessage connection ids that the daemon serves; all others are invalid. Unused entries are 0.
  std::array<std::uint32_t, 4> message_connections;
  std::array<char, kAttachTextSize> text;  // why it failed, NUL-terminated UTF-8
};
static_assert(kIsWire<AttachHelloReply, 152>);
static_assert(offsetof(AttachHelloReply, features) == 24 &&
              offsetof(AttachHelloReply, message_connections) == 32 &&
              offsetof(AttachHelloReply, text) == 48);

struct AttachReply {
  AttachHeader header;
  AttachStatus status;
  std::int32_t os_error;                   // errno value, 0 where none
  std::array<char, kAttachTextSize> text;  // why it failed, NUL-terminated UTF-8
};
static_assert(kIsWire<AttachReply, 128>);
static_assert(offsetof(AttachReply, status) == 16 && offsetof(AttachReply, text) == 24);

inline constexpr std::uint32_t kMemoryWritable = 1u << 0;

struct AttachMemory {  // kMemoryAdd, kMemoryRemove
  AttachHeader header;
  std::uint64_t gpa;     // bytes, page aligned
  std::uint64_t size;    // bytes, page aligned, not 0
  std::uint64_t offset;  // into the descriptor, page aligned; 0 in kMemoryRemove
  std::uint32_t flags;   // kMemoryWritable; 0 in kMemoryRemove
  std::uint32_t reserved;
};
static_assert(kIsWire<AttachMemory, 48>);
static_assert(offsetof(AttachMemory, gpa) == 16 && offsetof(AttachMemory, offset) == 32 &&
              offsetof(AttachMemory, flags) == 40);

struct AttachVpInterrupt {
  AttachHeader header;
  std::uint32_t vp;
  std::uint32_t sint;  // 2 is the only one served
};
static_assert(kIsWire<AttachVpInterrupt, 24>);

inline constexpr std::uint32_t kSynicEnabled = 1u << 0;
inline constexpr std::uint32_t kSynicMessagePage = 1u << 1;
inline constexpr std::uint32_t kSynicEventPage = 1u << 2;

struct AttachSynicState {
  AttachHeader header;
  std::uint32_t vp;
  std::uint32_t flags;             // kSynic...
  std::uint64_t message_page_gpa;  // valid with kSynicMessagePage; page aligned
  std::uint64_t event_page_gpa;    // valid with kSynicEventPage; page aligned
};
static_assert(kIsWire<AttachSynicState, 40>);
static_assert(offsetof(AttachSynicState, message_page_gpa) == 24 &&
              offsetof(AttachSynicState, event_page_gpa) == 32);

struct AttachReset {
  AttachHeader header;
};
static_assert(kIsWire<AttachReset, 16>);

struct AttachGuestMessage {  // HvPostMessage, as copied from the guest's hypercall input
  AttachHeader header;
  std::uint32_t vp;  // that posted it
  std::uint32_t connection_id;
  std::uint32_t message_type;
  std::uint32_t payload_size;  // 0..kMaxMessagePayload
  std::array<std::uint8_t, kMaxMessagePayload> payload;
};
static_assert(kIsWire<AttachGuestMessage, 272>);
static_assert(offsetof(AttachGuestMessage, payload_size) == 28 &&
              offsetof(AttachGuestMessage, payload) == 32);

struct AttachHostMessage {
  AttachHeader header;
  std::uint32_t vp;
  std::uint32_t sint;
  std::uint32_t message_type;
  std::uint32_t payload_size;  // 0..kMaxMessagePayload
  std::array<std::uint8_t, kMaxMessagePayload> payload;
};
static_assert(kIsWire<AttachHostMessage, 272>);
static_assert(offsetof(AttachHostMessage, payload_size) == 28 && offsetof(AttachHostMessage, payload) == 32);

struct AttachDoorbell {  // kDoorbellAttach, kDoorbellDetach, kDoorbellKept
  AttachHeader header;
  std::uint32_t connection_id;  // 24 bits
  std::uint32_t reserved;
};
static_assert(kIsWire<AttachDoorbell, 24>);

struct AttachSignalEvent {
  AttachHeader header;
  std::uint32_t vp;
  std::uint32_t sint;
  std::uint32_t flag;  // 0..2047
  std::uint32_t reserved;
};
static_assert(kIsWire<AttachSignalEvent, 32>);

struct AttachTakeUp {
  AttachHeader header;
};
static_assert(kIsWire<AttachTakeUp, 16>);

inline constexpr std::uint32_t kRecoveryTakenUp = 1u << 0;

struct AttachRecoveryArea {
  AttachHeader header;
  std::uint64_t guest_messages;  // that the daemon, and those that it took the guest up from, have acted on
  std::uint32_t flags;           // kRecoveryTakenUp: the guest was taken up
  std::uint32_t reserved;
};
static_assert(kIsWire<AttachRecoveryArea, 32>);
static_assert(offsetof(AttachRecoveryArea, guest_messages) == 16 &&
              offsetof(AttachRecoveryArea, flags) == 24);

}  // namespace vmbusd::partition
