#include "netvsp/nvsp_session.h"

#include <cstring>

#include "tests/catch.h"
#include "tests/netvsp/bytes.h"

namespace vmbusd::netvsp {
namespace {

using Action = NvspOutcome::Action;

constexpr NvspSession::Limits kLimits{9000, kAllChecksums | kAllLso | kAllRsc};

struct Guest {
  explicit Guest(std::uint32_t version, std::uint32_t queues = 4, NvspSession::Limits limits = kLimits)
      : session(state, limits) {
    state.queues = queues;
    if (version != 0) say(bytes_of(NvspInit{NvspType::kInit, NvspVersion{version}, NvspVersion{version}}));
  }
  NvspOutcome say(std::span<const std::byte> message) { return session.handle(message); }
  NvspOutcome say(const char* text) { return say(hex(text)); }

  NicState state;
  NvspSession session;
};

// Padded to 40 bytes.
Bytes padded(const char* text) {
  Bytes bytes = hex(text);
  bytes.resize(40);
  return bytes;
}

Bytes payload(const NvspCompletion& completion) {
  return Bytes(completion.payload().begin(), completion.payload().end());
}

TEST_CASE("each NVSP message gets its completion", "[netvsp]") {
  struct Case {
    const char* rule;
    std::uint32_t version;  // negotiated before; 0: none
    const char* message;
    Action action;
    const char* completion;  // nullptr: empty, else padded to 40
  };
  constexpr Case kCases[] = {
      {"INIT 6.1 [reference: netvsp 12]", 0, "01000000 01000600 01000600 0000000000000000", Action::kComplete,
       "02000000 ffffffff 22000000 01000000"},
      {"INIT 1", 0, "01000000 02000000 02000000", Action::kComplete, "02000000 02000000 22000000 01000000"},
      {"INIT of a range takes the newest", 0, "01000000 02000000 00000500", Action::kComplete,
       "02000000 ffffffff 22000000 01000000"},
      {"INIT of a version to come", 0, "01000000 00000700 00000700", Action::kComplete,
       "02000000 00000000 22000000 03000000"},
      {"INIT of a version between ours", 0, "01000000 00000300 00000300", Action::kComplete,
       "02000000 00000000 22000000 04000000"},
      {"INIT of version 0", 0, "01000000 00000000 00000000", Action::kComplete,
       "02000000 00000000 22000000 04000000"},
      {"INIT cut short", 0, "01000000 01000600", Action::kComplete, "02000000 00000000 22000000 02000000"},
      {"INIT again", 0x60001, "01000000 01000600 01000600", Action::kComplete,
       "02000000 00000000 22000000 02000000"},
      {"anything before INIT", 0, "65000000 0d000000 feca0000", Action::kComplete, "65000000 02000000"},
      {"NDIS_CONFIG has no answer", 0x60001, "7d000000 ea050000 00000000 8800000000000000", Action::kComplete,
       nullptr},
      {"NDIS_VERSION has no answer", 0x60001, "64000000 06000000 1e000000", Action::kComplete, nullptr},
      {"SWITCH_DATA_PATH has no answer", 0x60001, "81000000 01000000", Action::kComplete, nullptr},
      {"receive buffer", 0x60001, "65000000 0d0b0000 feca0000", Action::kFindReceiveBuffer, nullptr},
      {"receive buffer cut short", 0x60001, "65000000 0d0b0000", Action::kComplete, "66000000 02000000"},
      {"send buffer", 0x60001, "68000000 0e0b0000 00000000", Action::kFindSendBuffer, nullptr},
      {"send buffer cut short", 0x60001, "68000000", Action::kComplete, "69000000 02000000"},
      {"revoke receive buffer", 0x60001, "67000000 feca0000", Action::kRevokeReceiveBuffer, nullptr},
      {"revoke send buffer", 0x60001, "6a000000 00000000", Action::kRevokeSendBuffer, nullptr},
      {"RNDIS data", 0x60001, "6b000000 00000000 05000000 68000000", Action::kData, nullptr},
      {"RNDIS control", 0x60001, "6b000000 01000000 ffffffff 00000000", Action::kControl, nullptr},
      {"RNDIS packet cut short", 0x60001, "6b000000 01000000 ffffffff", Action::kComplete,
       "6c000000 02000000"},
      {"sub-channels", 0x60001, "85000000 01000000 02000000", Action::kSubChannels,
       "85000000 01000000 02000000"},
      {"more sub-channels than there are", 0x50000, "85000000 01000000 3f000000", Action::kSubChannels,
       "85000000 01000000 03000000"},
      {"no sub-channels", 0x50000, "85000000 01000000 00000000", Action::kComplete,
       "85000000 02000000 00000000"},
      {"another sub-channel operation", 0x60001, "85000000 02000000 02000000", Action::kComplete,
       "85000000 02000000 00000000"},
      {"sub-channels before version 5", 0x40000, "85000000 01000000 02000000", Action::kComplete,
       "85000000 02000000 00000000"},
      {"OID_QUERY_EX", 0x60001, "83000000 00000000", Action::kComplete, "84000000 07000000"},
      {"PacketDirect", 0x60001, "87000000 00000000", Action::kComplete, "87000000 07000000"},
      {"our own message", 0x60001, "80000000 01000000 01000000", Action::kComplete, "80000000 07000000"},
      {"a type of no protocol", 0x60001, "ffffffff", Action::kComplete, "ffffffff 07000000"},
      {"less than a type", 0x60001, "6b0000", Action::kComplete, "00000000 02000000"},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Guest guest(c.version);
      const NvspOutcome outcome = guest.say(c.message);
      CHECK(outcome.action == c.action);
      CHECK(payload(outcome.completion) == (c.completion == nullptr ? Bytes() : padded(c.completion)));
    }
  }
}

TEST_CASE("every version is negotiated, once", "[netvsp]") {
  for (const std::uint32_t version : {0x2u, 0x30002u, 0x40000u, 0x50000u, 0x60000u, 0x60001u}) {
    Guest guest(version);
    CHECK(guest.session.negotiated());
    CHECK(static_cast<std::uint32_t>(guest.state.nvsp_version) == version);
  }
  // A refused attempt leaves the way open for the next. [linux: netvsc_connect_vsp]
  Guest guest(0x70000);
  CHECK_FALSE(guest.session.negotiated());
  guest.say("01000000 01000600 01000600");
  CHECK(guest.session.negotiated());
}

TEST_CASE("the receive buffer is cut into one section", "[netvsp]") {
  struct Case {
    const char* rule;
    std::uint64_t size;
    std::uint32_t mtu;  // of NDIS_CONFIG, with Ethernet header
    const char* completion;
  };
  constexpr Case kCases[] = {
      {"Linux' 16 MiB", 16u << 20, 1514, "66000000 01000000 01000000 00000000 00080000 00200000 00000001"},
      {"an odd end is left over", (16u << 20) - 1, 1514,
       "66000000 01000000 01000000 00000000 00080000 ff1f0000 00f8ff00"},
      {"jumbo frames take three pages each", 16u << 20, 9014,
       "66000000 01000000 01000000 00000000 00300000 55050000 00f0ff00"},
      {"iPXE's few", 65536, 1514, "66000000 01000000 01000000 00000000 00080000 20000000 00000100"},
      {"too small", 2047, 1514, "66000000 02000000"},
      {"unknown GPADL", 0, 1514, "66000000 02000000"},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Guest guest(0x60001);
      guest.say(bytes_of(NvspSendNdisConfig{NvspType::kSendNdisConfig, c.mtu, 0, 0x88, 0}));
      const NvspOutcome outcome = guest.say("65000000 0d0b0000 feca0000");
      CHECK(outcome.gpadl == 0xb0d);
      CHECK(payload(guest.session.receive_buffer_found(c.size)) == padded(c.completion));
      CHECK(guest.session.receive_buffer_id() == 0xcafe);
    }
  }
}

TEST_CASE("a layout holds the longest frame in every sub-allocation", "[netvsp]") {
  for (std::uint32_t mtu = 68; mtu <= 9216; ++mtu) {
    const ReceiveLayout layout = lay_out_receive_buffer(31u << 20, mtu);
    CHECK(layout.sub_allocation_size >= 112 + 18 + mtu + 36);
    CHECK((layout.sub_allocation_size % 4096 == 0 || 4096 % layout.sub_allocation_size == 0));
    CHECK(std::uint64_t{layout.sub_allocations} * layout.sub_allocation_size <= 31u << 20);
    CHECK(layout.sub_allocations > 1000);
  }
}

TEST_CASE("buffers are lent once at a time", "[netvsp]") {
  Guest guest(0x60001);
  const Bytes receive = hex("65000000 0d0b0000 feca0000");
  const Bytes send = hex("68000000 0e0b0000 00000000");
  CHECK(guest.say(receive).action == Action::kFindReceiveBuffer);
  CHECK(payload(guest.say(receive).completion) == padded("66000000 02000000"));  // not found yet
  CHECK(guest.session.receive_buffer_found(1u << 20).size == 40);
  CHECK(payload(guest.say(receive).completion) == padded("66000000 02000000"));  // there already
  CHECK(guest.say(send).action == Action::kFindSendBuffer);
  CHECK(payload(guest.say(send).completion) == padded("69000000 02000000"));
  CHECK(payload(guest.session.send_buffer_found(1u << 20)) == padded("69000000 01000000 00180000"));
  CHECK(guest.say("67000000 feca0000").action == Action::kRevokeReceiveBuffer);
  CHECK(guest.say(receive).action == Action::kFindReceiveBuffer);
  // Revoked while it is looked up.
  CHECK(guest.say("67000000 feca0000").action == Action::kRevokeReceiveBuffer);
  CHECK(payload(guest.session.receive_buffer_found(1u << 20)) == padded("66000000 02000000"));
  CHECK(guest.say("6a000000 00000000").action == Action::kRevokeSendBuffer);
  CHECK(guest.say(send).action == Action::kFindSendBuffer);
  CHECK(payload(guest.session.send_buffer_found(6143)) == padded("69000000 02000000"));
}

TEST_CASE("the MTU is the smaller of both sides'", "[netvsp]") {
  struct Case {
    std::uint32_t allowed;
    std::uint32_t asked;  // with Ethernet header
    std::uint32_t mtu;
  };
  constexpr Case kCases[] = {
      {1500, 1514, 1500}, {9000, 1514, 1500},  {9000, 9014, 9000},
      {1500, 9014, 1500}, {9216, 65535, 9216}, {9216, 600, 1500},
      {1280, 1514, 1280}, {9216, 0, 1500},     {9000, 0xffffffff, 9000},
  };
  for (const Case& c : kCases) {
    Guest guest(0x60001, 1, {c.allowed, 0});
    guest.say(bytes_of(NvspSendNdisConfig{NvspType::kSendNdisConfig, c.asked, 0, 0, 0}));
    CHECK(guest.state.mtu == c.mtu);
  }
  // Version 1 has no NDIS_CONFIG.
  Guest guest(0x2, 1, {9000, 0});
  guest.say("7d000000 36230000 00000000 8800000000000000");
  CHECK(guest.state.mtu == 1500);
  CHECK_FALSE(guest.session.vlan());
}

TEST_CASE("capabilities need both sides and the version", "[netvsp]") {
  struct Case {
    std::uint32_t version;
    std::uint32_t capabilities;
    std::uint32_t offloads;
    bool vlan;
    std::uint32_t rsc;
  };
  constexpr Case kCases[] = {
      {0x60001, 0x88, kAllRsc, true, kAllRsc},  {0x60001, 0x08, kAllRsc, true, 0},
      {0x60001, 0x80, kAllRsc, false, kAllRsc}, {0x60001, 0x88, 0, true, 0},
      {0x60000, 0x88, kAllRsc, true, 0},
  };
  for (const Case& c : kCases) {
    Guest guest(c.version, 1, {1500, c.offloads});
    guest.say(bytes_of(NvspSendNdisConfig{NvspType::kSendNdisConfig, 1514, 0, c.capabilities, 0}));
    CHECK(guest.session.vlan() == c.vlan);
    CHECK((guest.state.offloads_supported & kAllRsc) == c.rsc);
    CHECK((guest.state.offloads_enabled & kAllRsc) == 0);
  }
}

TEST_CASE("NDIS_CONFIG is too late once the receive buffer is laid out", "[netvsp]") {
  Guest guest(0x60001);
  guest.say("65000000 0d0b0000 feca0000");
  guest.say(bytes_of(NvspSendNdisConfig{NvspType::kSendNdisConfig, 9014, 0, 0x88, 0}));
  CHECK(guest.state.mtu == 1500);
}

TEST_CASE("sub-channels are granted once", "[netvsp]") {
  Guest guest(0x60001, 4);
  CHECK(guest.say("85000000 01000000 03000000").count == 3);
  CHECK(guest.say("85000000 01000000 03000000").action == Action::kComplete);
  Guest alone(0x60001, 1);
  CHECK(payload(alone.say("85000000 01000000 03000000").completion) == padded("85000000 02000000 00000000"));
}

TEST_CASE("the send indirection table stands where Linux looks", "[netvsp]") {
  const Bytes bytes = bytes_of(make_send_indirection(3));
  CHECK(bytes.size() == 104);
  Bytes expected = hex("86000000 10000000 28000000");
  expected.resize(40);
  for (std::uint32_t i = 0; i < 16; ++i) append(expected, bytes_of(i % 3));
  CHECK(bytes == expected);
}

TEST_CASE("completions of data are padded", "[netvsp]") {
  CHECK(payload(rndis_packet_complete(NvspStatus::kSuccess)) == padded("6c000000 01000000"));
  CHECK(payload(rndis_packet_complete(NvspStatus::kInvalidRndisPacket)) == padded("6c000000 05000000"));
}

NicRecord record_of(const Guest& guest) {
  NicRecord record{};
  guest.session.save(record);
  return record;
}

TEST_CASE("a session goes on where it was saved", "[netvsp][recovery]") {
  Guest guest(0x60001);
  guest.say(
      bytes_of(NvspSendNdisConfig{NvspType::kSendNdisConfig, 9014, 0, kNdisConfig8021q | kNdisConfigRsc, 0}));
  guest.say(bytes_of(NvspSendBuffer{NvspType::kSendReceiveBuffer, 0xe1e10, 0xcafe, 0}));
  (void)guest.session.receive_buffer_found(16 << 20);
  guest.say(bytes_of(NvspSubChannelRequest{NvspType::kSubChannel, kSubChannelAllocate, 2}));
  const NicRecord record = record_of(guest);

  Guest other(0);
  REQUIRE(other.session.restore(record).has_value());
  CHECK(other.state.nvsp_version == NvspVersion::k61);
  CHECK(other.state.mtu == 9000);
  CHECK(other.state.offloads_supported == kLimits.offloads);
  CHECK(other.session.vlan());
  CHECK(other.session.receive_buffer_id() == 0xcafe);
  NicRecord again{};
  other.session.save(again);
  CHECK(std::memcmp(&again, &record, sizeof record) == 0);
  // What was done is not to be had twice.
  CHECK(other.say(bytes_of(NvspSendBuffer{NvspType::kSendReceiveBuffer, 1, 2, 0})).action ==
        Action::kComplete);
  CHECK(other.say(bytes_of(NvspSubChannelRequest{NvspType::kSubChannel, kSubChannelAllocate, 2})).action ==
        Action::kComplete);
}

TEST_CASE("a session that cannot have been is refused", "[netvsp][recovery]") {
  struct Case {
    const char* rule;
    void (*change)(NicRecord&);
  };
  constexpr Case kCases[] = {
      {"a version between ours", [](NicRecord& r) { r.nvsp_version = 0x30000; }},
      {"no MTU", [](NicRecord& r) { r.mtu = 0; }},
      {"an MTU beyond the operator's", [](NicRecord& r) { r.mtu = 9001; }},
      {"offloads that there are not", [](NicRecord& r) { r.offloads_supported = 1u << 31; }},
      {"as many sub-channels as channels", [](NicRecord& r) { r.sub_channels = 4; }},
      {"sub-channels before version 5",
       [](NicRecord& r) {
         r.nvsp_version = 0x40000;
         r.sub_channels = 1;
       }},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      NicRecord record = record_of(Guest(0x60001));
      REQUIRE(Guest(0).session.restore(record).has_value());
      c.change(record);
      const Result<void> restored = Guest(0).session.restore(record);
      REQUIRE_FALSE(restored.has_value());
      CHECK(restored.error().code == Errc::kProtocol);
    }
  }
}

}  // namespace
}  // namespace vmbusd::netvsp
