// Every message number against length, state and version.
#include "vmbus/message_table.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

#include "tests/catch.h"
#include "tests/vmbus/surroundings.h"
#include "vmbus/negotiation.h"

namespace vmbusd::vmbus {
namespace {

constexpr std::uint8_t kDisconnected = static_cast<std::uint8_t>(Phase::kDisconnected);
constexpr std::uint8_t kConnected = static_cast<std::uint8_t>(Phase::kConnected);
constexpr std::uint8_t kOffersRequested = static_cast<std::uint8_t>(Phase::kOffersRequested);
constexpr std::uint8_t kDisconnecting = static_cast<std::uint8_t>(Phase::kDisconnecting);
constexpr std::uint8_t kLinked = kConnected | kOffersRequested;
constexpr std::uint8_t kAlways = kLinked | kDisconnected | kDisconnecting;

using Prepare = std::function<void(Surroundings&)>;

struct MessageCase {
  const char* name;
  Bytes right;
  Version version;  // least that has the message
  Version before;   // newest served version that lacks it; kNone: all have it
  std::uint8_t phases;
  Prepare prepare;  // from right_phase() to where the message has its effect
  Seen effect;
};

// Where the message is tried when it shall have its effect.
Phase right_phase(std::uint8_t phases) {
  return phases == kConnected ? Phase::kConnected : Phase::kOffersRequested;
}

const Prepare kNothing = [](Surroundings& /*s*/) {};
const Prepare kRing = [](Surroundings& s) { s.post_gpadl(1, 0x10, 4); };
const Prepare kOpen = [](Surroundings& s) { s.open(1); };
const Prepare kRescinded = [](Surroundings& s) { s.server.rescind(1); };
const Prepare kHalfGpadl = [](Surroundings& s) {
  // 28 pages: the header holds 26 of them.
  std::vector<std::uint64_t> values = {std::bit_cast<std::uint64_t>(GpaRangeHeader{28 * 4096, 0})};
  for (Gpn page = 0x1000; values.size() < kGpadlHeaderValuesMax; ++page) values.push_back(page);
  s.post_values(GpadlHeader{.relid = 1, .gpadl = 0x10, .range_buflen = 29 * 8, .rangecount = 1}, values);
};

Bytes with_values(Bytes fixed, std::initializer_list<std::uint64_t> values) {
  const auto rest = std::as_bytes(std::span(values.begin(), values.size()));
  fixed.insert(fixed.end(), rest.begin(), rest.end());
  return fixed;
}

const MessageCase kCases[] = {
    {"REQUESTOFFERS",
     message(RequestOffers{}),
     Version::k1_1,
     Version::kNone,
     kConnected,
     kNothing,
     {"OFFERCHANNEL 1", "ALLOFFERS_DELIVERED"}},
    {"OPENCHANNEL",
     message(OpenChannel{.relid = 1, .openid = 9, .ring_gpadl = 0x10, .downstream_page_offset = 2}),
     Version::k1_1,
     Version::kNone,
     kOffersRequested,
     kRing,
     {"open 1", "OPENCHANNEL_RESULT 1 9 0x0"}},
    {"CLOSECHANNEL",
     message(CloseChannel{.relid = 1}),
     Version::k1_1,
     Version::kNone,
     kOffersRequested,
     kOpen,
     {"close 1"}},
    {"GPADL_HEADER",
     with_values(message(GpadlHeader{.relid = 1, .gpadl = 0x10, .range_buflen = 16, .rangecount = 1}),
                 {std::bit_cast<std::uint64_t>(GpaRangeHeader{4096, 0}), 0x1000}),
     Version::k1_1,
     Version::kNone,
     kOffersRequested,
     kNothing,
     {"GPADL_CREATED 1 0x10 0x0"}},
    {"GPADL_BODY",
     with_values(message(GpadlBody{.gpadl = 0x10}), {0x101a, 0x101b}),
     Version::k1_1,
     Version::kNone,
     kOffersRequested,
     kHalfGpadl,
     {"GPADL_CREATED 1 0x10 0x0"}},
    {"GPADL_TEARDOWN",
     message(GpadlTeardown{.relid = 1, .gpadl = 0x10}),
     Version::k1_1,
     Version::kNone,
     kOffersRequested,
     kRing,
     {"release 1 0x10", "GPADL_TORNDOWN 0x10"}},
    {"RELID_RELEASED",
     message(RelidReleased{.relid = 1}),
     Version::k1_1,
     Version::kNone,
     kOffersRequested,
     kRescinded,
     {"gone 1"}},
    {"INITIATE_CONTACT",
     message(InitiateContact{.version = Version::k5_3, .target = {.sint = 2}}),
     Version::kNone,
     Version::kNone,
     kAlways,
     kNothing,
     {"ended", "VERSION_RESPONSE 1 0 0x4"}},
    {"UNLOAD",
     message(Unload{}),
     Version::kNone,
     Version::kNone,
     kAlways,
     kNothing,
     {"ended", "UNLOAD_RESPONSE"}},
    {"OPEN_RESERVED_CHANNEL",
     message(OpenReservedChannel{.relid = 1, .target_sint = 2}),
     Version::k4_0,
     Version::k3_0,
     kLinked,
     kNothing,
     {}},
    {"CLOSE_RESERVED_CHANNEL",
     message(CloseReservedChannel{.relid = 1, .target_vp = 2, .target_sint = 2}),
     Version::k4_0,
     Version::k3_0,
     kAlways,
     kNothing,
     {"@2 CLOSE_RESERVED_RESPONSE 1"}},
    {"TL_CONNECT_REQUEST",
     message(TlConnectRequest{}),
     Version::k4_1,
     Version::k4_0,
     kLinked,
     kNothing,
     {"TL_CONNECT_RESULT 0xc0000236"}},
    {"TL_CONNECT_REQUEST with a silo",
     message(TlConnectRequestWithSilo{}),
     Version::k5_2,
     Version::k3_0,
     kLinked,
     kNothing,
     {"TL_CONNECT_RESULT 0xc0000236"}},
    {"MODIFYCHANNEL",
     message(ModifyChannel{.relid = 1, .target_vp = 3}),
     Version::k5_3,
     Version::k4_0,
     kOffersRequested,
     kOpen,
     {"retarget 1 3", "MODIFYCHANNEL_RESPONSE 1 0x0"}},
    {"MODIFYCHANNEL below 5.3",
     message(ModifyChannel{.relid = 1, .target_vp = 3}),
     Version::k4_1,
     Version::k4_0,
     kOffersRequested,
     kOpen,
     {"retarget 1 3"}},
    {"MODIFY_CONNECTION, never granted",
     message(ModifyConnection{}),
     Version::k6_0,
     Version::k5_3,
     0,
     kNothing,
     {}},
    {"PAUSE, never granted", message(Pause{}), Version::k6_0, Version::k5_3, 0, kNothing, {}},
    {"RESUME, never granted", message(Resume{}), Version::k6_0, Version::k5_3, 0, kNothing, {}},
};

MessageType type_of(const MessageCase& c) {
  MessageHeader header{};
  REQUIRE(read_wire(c.right, header));
  return header.type;
}

// `s` has the offer of relid 1, and has forgotten how it came here.
void bring_to(Surroundings& s, Phase phase, Version version) {
  REQUIRE(s.server.offer(scsi()).has_value());
  if (phase != Phase::kDisconnected) {
    InitiateContact contact{.version = version};
    if (version >= Version::k5_0) contact.target.sint = kMessageSint;
    s.message_connection = version >= Version::k5_0 ? kMessageConnectionFrom5 : kMessageConnectionBelow5;
    s.post(contact);
  }
  if (phase == Phase::kOffersRequested || phase == Phase::kDisconnecting) s.post(RequestOffers{});
  if (phase == Phase::kDisconnecting) {
    s.open(1);
    s.prompt = false;
    s.post(Unload{});  // and the device does not answer close_channel
  }
  s.take();
}

Version or_newest(Version version) {
  return version == Version::kNone ? Version::k5_3 : version;
}

}  // namespace

TEST_CASE("a right message has its effect, padded or not", "[vmbus]") {
  for (const MessageCase& c : kCases) {
    for (const std::size_t padding : {std::size_t{0}, kMessagePayloadBytesMax - c.right.size()}) {
      DYNAMIC_SECTION(c.name << ", " << padding << " bytes of padding") {
        Surroundings s;
        bring_to(s, right_phase(c.phases), or_newest(c.version));
        c.prepare(s);
        s.take();
        Bytes bytes = c.right;
        bytes.resize(bytes.size() + padding, std::byte{0xa5});
        s.post(bytes);
        CHECK(s.take() == c.effect);
      }
    }
  }
}

TEST_CASE("a message one byte short is dropped", "[vmbus]") {
  for (const MessageCase& c : kCases) {
    if (c.effect.empty()) continue;
    DYNAMIC_SECTION(c.name) {
      Surroundings s;
      bring_to(s, right_phase(c.phases), or_newest(c.version));
      c.prepare(s);
      s.take();
      const std::size_t least = find_message_rule(type_of(c))->bytes_min;
      s.post(std::span(c.right).first(least - 1));
      CHECK(s.take().empty());
    }
  }
}

TEST_CASE("a message in the wrong state is dropped", "[vmbus]") {
  for (const MessageCase& c : kCases) {
    for (const Phase phase :
         {Phase::kDisconnected, Phase::kConnected, Phase::kOffersRequested, Phase::kDisconnecting}) {
      if ((c.phases & static_cast<std::uint8_t>(phase)) != 0) continue;
      DYNAMIC_SECTION(c.name << " in phase " << static_cast<unsigned>(phase)) {
        Surroundings s;
        bring_to(s, phase, or_newest(c.version));
        s.post(c.right);
        CHECK(s.take().empty());
        CHECK(refuse_message(*find_message_rule(type_of(c)), c.right.size(), phase, Version::k6_0) !=
              nullptr);
      }
    }
  }
}

TEST_CASE("a message that the version lacks is dropped or unanswered", "[vmbus]") {
  for (const MessageCase& c : kCases) {
    if (c.before == Version::kNone) continue;
    DYNAMIC_SECTION(c.name) {
      Surroundings s;
      bring_to(s, Phase::kOffersRequested, c.before);
      c.prepare(s);
      s.take();
      s.post(c.right);
      CHECK(s.take().empty());
    }
  }
}

TEST_CASE("the table lists each message once, in order, with all its states", "[vmbus]") {
  const auto rules = message_rules();
  CHECK(std::is_sorted(rules.begin(), rules.end(),
                       [](const MessageRule& a, const MessageRule& b) { return a.type < b.type; }));
  for (const MessageRule& rule : rules) {
    const bool tested = std::any_of(std::begin(kCases), std::end(kCases),
                                    [&](const MessageCase& c) { return type_of(c) == rule.type; });
    INFO(rule.name);
    CHECK(tested);
    const bool never_granted = (rule.feature & ~kFeaturesGranted) != 0;
    CHECK((rule.handle == nullptr) == never_granted);
  }
}

TEST_CASE("numbers that no guest may send are dropped", "[vmbus]") {
  for (const Phase phase :
       {Phase::kDisconnected, Phase::kConnected, Phase::kOffersRequested, Phase::kDisconnecting}) {
    DYNAMIC_SECTION("phase " << static_cast<unsigned>(phase)) {
      Surroundings s;
      bring_to(s, phase, Version::k6_0);
      for (std::uint32_t number : {0U, 1U, 2U, 4U, 6U, 10U, 12U, 15U, 17U, 20U, 23U, 24U, 26U, 28U, 30U, 31U,
                                   255U, 0x80000005U, 0xffffffffU}) {
        Bytes bytes(kMessagePayloadBytesMax);
        std::memcpy(bytes.data(), &number, sizeof number);
        s.post(bytes);
      }
      CHECK(s.take().empty());
    }
  }
}

TEST_CASE("what is no VMBus message at all is dropped", "[vmbus]") {
  Surroundings s;
  s.connect();
  s.post(std::span<const std::byte>{});
  const Bytes unload = message(Unload{});
  s.post(std::span(unload).first(7));
  Bytes too_long = unload;
  too_long.resize(kMessagePayloadBytesMax + 1);
  s.post(too_long);
  s.server.guest_message(2, unload);
  CHECK(s.take().empty());
}

TEST_CASE("after contact both message connections are heard", "[vmbus]") {
  Surroundings s;
  s.connect();
  s.server.guest_message(kMessageConnectionBelow5, message(Unload{}));
  CHECK(s.take() == Seen{"ended", "UNLOAD_RESPONSE"});
}

TEST_CASE("reserved channels are never served, and closing one is answered where that can be", "[vmbus]") {
  Surroundings s;
  const auto close = [](std::uint32_t vp, std::uint32_t sint) {
    return CloseReservedChannel{.relid = 3, .target_vp = vp, .target_sint = sint};
  };
  s.post(close(0, 2));  // no connection yet: is the answer known to this guest?
  CHECK(s.take().empty());
  s.initiate(Version::k4_0);
  s.post(Unload{});
  s.take();
  s.post(close(1, 2));
  CHECK(s.take() == Seen{"@1 CLOSE_RESERVED_RESPONSE 3"});
  s.post(close(1, 3));
  s.post(close(kVpCount, 2));
  CHECK(s.take().empty());
}

}  // namespace vmbusd::vmbus
