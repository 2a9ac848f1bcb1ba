// Messages of the integration components, by which a host asks its guest for small services. Each is one
// in-band packet: pipe header, message header, body. The host asks and the guest answers with the same
// message, changed. Facts from [linux: include/linux/hyperv.h; drivers/hv/hv_util.c] and tests of
// [openvmm: vm/devices/hyperv_ic].
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/wire.h"

namespace vmbusd::integration {

// [linux: struct vmbuspipe_hdr]
struct PipeHeader {
  std::uint32_t type;  // kPipeData
  std::uint32_t size;  // of what follows
};
static_assert(kIsWire<PipeHeader, 8> && offsetof(PipeHeader, size) == 4);

inline constexpr std::uint32_t kPipeData = 1;

// [linux: struct ic_version]
struct Version {
  std::uint16_t major;
  std::uint16_t minor;

  friend constexpr auto operator<=>(const Version&, const Version&) = default;
};
static_assert(kIsWire<Version, 4> && offsetof(Version, minor) == 2);

enum class MessageType : std::uint16_t {
  kNegotiate = 0,
  kHeartbeat = 1,
  kKvp = 2,
  kShutdown = 3,
  kTimeSync = 4,
  kVss = 5,
};

// HRESULTs that guests answer with. [linux: HV_S_OK and its neighbours]
inline constexpr std::uint32_t kStatusOk = 0;
inline constexpr std::uint32_t kStatusFail = 0x80004005;

inline constexpr std::uint8_t kFlagTransaction = 0x1;
inline constexpr std::uint8_t kFlagRequest = 0x2;
inline constexpr std::uint8_t kFlagResponse = 0x4;

// [linux: struct icmsg_hdr]
struct MessageHeader {
  Version framework;
  MessageType type;
  Version message;
  std::uint16_t body_size;
  std::uint32_t status;
  std::uint8_t transaction_id;
  std::uint8_t flags;  // kFlag*
  std::uint8_t reserved[2];
};
static_assert(kIsWire<MessageHeader, 20>);
static_assert(offsetof(MessageHeader, type) == 4 && offsetof(MessageHeader, message) == 6 &&
              offsetof(MessageHeader, body_size) == 10 && offsetof(MessageHeader, status) == 12 &&
              offsetof(MessageHeader, transaction_id) == 16 && offsetof(MessageHeader, flags) == 17);

// kNegotiate. The host's framework versions follow, then its message versions; the guest's choice of each
// stands in their first two places. [linux: struct icmsg_negotiate; vmbus_prep_negotiate_resp]
struct NegotiateBody {
  std::uint16_t framework_count;
  std::uint16_t message_count;
  std::uint32_t reserved;
};
static_assert(kIsWire<NegotiateBody, 8> && offsetof(NegotiateBody, message_count) == 2);

// kHeartbeat. [linux: struct heartbeat_msg_data]
struct HeartbeatBody {
  std::uint64_t sequence;  // the guest adds 1
  std::uint32_t reserved[8];
};
static_assert(kIsWire<HeartbeatBody, 40>);

// kShutdown. [linux: struct shutdown_msg_data]
struct ShutdownBody {
  std::uint32_t reason;
  std::uint32_t timeout_s;
  std::uint32_t flags;  // kShutdown*
  std::uint8_t text[2048];
};
static_assert(kIsWire<ShutdownBody, 2060>);
static_assert(offsetof(ShutdownBody, flags) == 8 && offsetof(ShutdownBody, text) == 12);

inline constexpr std::uint32_t kShutdownForce = 1;  // whatever the guest's programs say to it
inline constexpr std::uint32_t kShutdownRestart = 2;
inline constexpr std::uint32_t kShutdownHibernate = 4;
// "Planned", of the operating system's minor reasons. [win32: System Shutdown Reason Codes]
inline constexpr std::uint32_t kShutdownPlanned = 0x80000000;

// kTimeSync, message versions below 4.0. [linux: struct ictimesync_data]
struct [[gnu::packed]] TimeSyncBody {
  std::uint64_t parent_time;  // UTC in units of 100 ns since 1601
  std::uint64_t child_time;
  std::uint64_t round_trip;
  std::uint8_t flags;  // kTimeSync*
  std::uint8_t reserved[3];
};
static_assert(kIsWire<TimeSyncBody, 28> && offsetof(TimeSyncBody, flags) == 24);

inline constexpr std::uint8_t kTimeSyncSet = 1;                  // set the clock to it now
inline constexpr std::uint8_t kTimeSyncSample = 2;               // for who disciplines the clock
inline constexpr std::uint64_t kUnixEpoch = 116444736000000000;  // as parent_time

// kKvp: what is asked, and of which pool. [linux: enum hv_kvp_exchg_op, hv_kvp_exchg_pool]
enum class KvpOperation : std::uint8_t {
  kGet = 0,
  kSet = 1,
  kDelete = 2,
  kEnumerate = 3,
};

enum class KvpPool : std::uint8_t {
  kExternal = 0,  // what the host told the guest
  kGuest = 1,     // what the guest's programs tell the host
  kAuto = 2,      // what the guest's daemon tells of the guest
};

// [linux: struct hv_kvp_hdr]
struct KvpHeader {
  KvpOperation operation;
  KvpPool pool;
  std::uint16_t reserved;
};
static_assert(kIsWire<KvpHeader, 4> && offsetof(KvpHeader, pool) == 1);

inline constexpr std::uint32_t kKvpString = 1;  // KvpValue::type; UTF-16LE

// Sizes are in bytes, with the texts' NULs. [linux: struct hv_kvp_exchg_msg_value]
struct KvpValue {
  std::uint32_t type;
  std::uint32_t key_size;
  std::uint32_t value_size;
  std::uint8_t key[512];
  std::uint8_t value[2048];
};
static_assert(kIsWire<KvpValue, 2572>);
static_assert(offsetof(KvpValue, key) == 12 && offsetof(KvpValue, value) == 524);

// Each operation's body is sent with the size of the largest. [linux: struct hv_kvp_msg]
struct KvpEnumerateBody {
  KvpHeader header;
  std::uint32_t index;
  KvpValue entry;
};
static_assert(kIsWire<KvpEnumerateBody, 2580> && offsetof(KvpEnumerateBody, entry) == 8);

struct KvpSetBody {
  KvpHeader header;
  KvpValue entry;
  std::uint32_t reserved;
};
static_assert(kIsWire<KvpSetBody, sizeof(KvpEnumerateBody)> && offsetof(KvpSetBody, entry) == 4);

struct KvpDeleteBody {
  KvpHeader header;
  std::uint32_t key_size;
  std::uint8_t key[512];
  std::uint8_t reserved[2060];
};
static_assert(kIsWire<KvpDeleteBody, sizeof(KvpEnumerateBody)> && offsetof(KvpDeleteBody, key) == 8);

// kVss. [linux: enum hv_vss_op]
enum class VssOperation : std::uint8_t {
  kHotBackup = 2,  // whether it can
  kBackupComplete = 4,
  kFreeze = 5,
  kThaw = 6,
};

// [linux: struct hv_vss_msg]
struct VssBody {
  VssOperation operation;
  std::uint8_t reserved[7];
  std::uint32_t flags;
};
static_assert(kIsWire<VssBody, 12> && offsetof(VssBody, flags) == 8);

}  // namespace vmbusd::integration
