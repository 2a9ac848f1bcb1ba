#include "vmbus/negotiation.h"

#include <bit>

#include "tests/catch.h"
#include "tests/vmbus/surroundings.h"

namespace vmbusd::vmbus {
namespace {

struct ContactCase {
  const char* rule;
  std::uint32_t version;
  std::uint32_t connection_id;
  std::uint32_t target_vp;
  InitiateTarget target;  // below 5.0: the interrupt page
  std::uint64_t to_child;
  std::uint64_t to_parent;
  bool accepted;
  std::uint32_t answer_vp;
  unsigned state;
};

constexpr InitiateTarget kSint2{.sint = 2};
constexpr InitiateTarget kNoPage{};
constexpr InitiateTarget page(std::uint64_t gpa) {
  return std::bit_cast<InitiateTarget>(gpa);
}

constexpr ContactCase kContactCases[] = {
    {"1.1 talks to VP 0 whatever it names", 0x00010001, 1, 3, page(0x5000), 0, 0, true, 0, 0},
    {"2.4 talks to VP 0 whatever it names", 0x00020004, 1, 3, kNoPage, 0, 0, true, 0, 0},
    {"2.4 may name a VP that does not exist", 0x00020004, 1, 99, kNoPage, 0, 0, true, 0, 0},
    {"3.0 talks to the VP it names", 0x00030000, 1, 3, kNoPage, 0, 0, true, 3, 0},
    {"4.0", 0x00040000, 1, 1, kNoPage, 0, 0, true, 1, 0},
    {"4.1", 0x00040001, 1, 1, kNoPage, 0, 0, true, 1, 0},
    {"5.0", 0x00050000, 4, 1, kSint2, 0, 0, true, 1, 0},
    {"5.1", 0x00050001, 4, 1, kSint2, 0, 0, true, 1, 0},
    {"5.2", 0x00050002, 4, 1, kSint2, 0, 0, true, 1, 0},
    {"5.3", 0x00050003, 4, 1, kSint2, 0, 0, true, 1, 0},
    {"6.0", 0x00060000, 4, 1, kSint2, 0, 0, true, 1, 0},
    {"0.13 lives by the interrupt page", 0x0000000d, 1, 0, page(0x5000), 0, 0, false, 0, 0},
    {"a version never published, before 3.0", 0x00020005, 1, 3, kNoPage, 0, 0, false, 0, 0},
    {"a version never published, after 3.0", 0x00050004, 4, 3, kSint2, 0, 0, false, 3, 0},
    {"a version of the future", 0x00070000, 4, 3, kSint2, 0, 0, false, 3, 0},
    {"version 0", 0, 1, 0, kNoPage, 0, 0, false, 0, 0},
    {"the largest version", 0xffffffff, 4, 0, kSint2, 0, 0, false, 0, 0},
    {"5.0 on connection id 1", 0x00050000, 1, 1, kSint2, 0, 0, false, 1, 0},
    {"4.1 on connection id 4", 0x00040001, 4, 1, kNoPage, 0, 0, false, 1, 0},
    {"the last VP", 0x00050003, 4, kVpCount - 1, kSint2, 0, 0, true, kVpCount - 1, 0},
    {"a VP that does not exist is answered on VP 0", 0x00050003, 4, kVpCount, kSint2, 0, 0, false, 0, 0},
    {"SINT 0 at 5.0", 0x00050000, 4, 0, {.sint = 0}, 0, 0, false, 0, 0},
    {"SINT 5 at 6.0", 0x00060000, 4, 0, {.sint = 5}, 0, 0, false, 0, 0},
    {"5.0 has no VTL: the byte is padding", 0x00050000, 4, 0, {.sint = 2, .vtl = 2}, 0, 0, true, 0, 0},
    {"VTL 2 at 5.1", 0x00050001, 4, 0, {.sint = 2, .vtl = 2}, 0, 0, false, 0, 0},
    {"features before 6.0 are padding",
     0x00050003,
     4,
     0,
     {.sint = 2, .feature_flags = 0xff},
     0,
     0,
     true,
     0,
     0},
    {"monitor pages", 0x00050003, 4, 0, kSint2, 0x101000, 0x102000, true, 0, 0},
    {"only a parent-to-child monitor page", 0x00050003, 4, 0, kSint2, 0x101000, 0, false, 0, 2},
    {"only a child-to-parent monitor page", 0x00020004, 1, 0, kNoPage, 0, 0x101000, false, 0, 2},
    {"a monitor page not aligned", 0x00050003, 4, 0, kSint2, 0x101000, 0x102008, false, 0, 2},
    {"a monitor page outside guest memory", 0x00050003, 4, 0, kSint2, 0x101000, kGuestPages * 4096, false, 0,
     2},
    {"before 2.4 there is no connection state", 0x00010001, 1, 0, page(0x5000), 0x101000, 0, false, 0, 0},
    {"1.1 with an interrupt page outside guest memory", 0x00010001, 1, 0, page(kGuestPages * 4096), 0, 0,
     false, 0, 0},
    {"1.1 with an interrupt page not aligned", 0x00010001, 1, 0, page(0x5008), 0, 0, false, 0, 0},
    {"from 2.4 on the interrupt page is not looked at", 0x00040001, 1, 0, page(~0ULL), 0, 0, true, 0, 0},
};

ContactOutcome outcome_of(const ContactCase& c) {
  InitiateContact message;
  message.version = static_cast<Version>(c.version);
  message.target_vp = c.target_vp;
  message.target = c.target;
  message.parent_to_child_monitor_gpa = c.to_child;
  message.child_to_parent_monitor_gpa = c.to_parent;
  return negotiate({message, c.connection_id}, kVpCount, [](Gpn gpn) { return gpn < kGuestPages; });
}

}  // namespace

TEST_CASE("INITIATE_CONTACT is accepted or refused", "[vmbus]") {
  for (const ContactCase& c : kContactCases) {
    DYNAMIC_SECTION(c.rule) {
      const ContactOutcome outcome = outcome_of(c);
      CHECK(static_cast<std::uint32_t>(outcome.version) == (c.accepted ? c.version : 0));
      CHECK((outcome.refusal == nullptr) == c.accepted);
      CHECK(outcome.target_vp == c.answer_vp);
      CHECK(static_cast<unsigned>(outcome.state) == c.state);
      const bool page_expected = c.accepted && c.version < 0x00020004;
      CHECK(outcome.interrupt_page == (page_expected ? 0x5000 : 0));
      CHECK(outcome.monitor_page == (c.accepted ? c.to_parent : 0));
    }
  }
}

TEST_CASE("VERSION_RESPONSE has the form of its version", "[vmbus]") {
  struct Case {
    Version version;
    std::size_t bytes;
    std::uint32_t version_or_connection_id;
  };
  const Case cases[] = {
      {Version::k2_4, 16, 0x00020004}, {Version::k3_0, 16, 0x00030000}, {Version::k4_0, 16, 0x00040000},
      {Version::k4_1, 16, 0x00040001}, {Version::k5_0, 16, 4},          {Version::k5_1, 16, 4},
      {Version::k5_2, 16, 4},          {Version::k5_3, 16, 4},          {Version::k6_0, 20, 4},
  };
  for (const Case& c : cases) {
    DYNAMIC_SECTION(std::hex << static_cast<std::uint32_t>(c.version)) {
      Surroundings s;
      s.initiate(c.version);
      REQUIRE(s.last_message.size() == c.bytes);
      VersionResponse response;
      REQUIRE(read_wire(s.last_message, response));
      CHECK(response.version_supported == 1);
      CHECK(response.version_or_connection_id == c.version_or_connection_id);
      CHECK(s.server.version() == static_cast<std::uint32_t>(c.version));
      CHECK_FALSE(s.server.idle());
    }
  }
}

TEST_CASE("a refusal is 16 bytes in any version", "[vmbus]") {
  Surroundings s;
  s.initiate(static_cast<Version>(0x00070000));
  CHECK(s.last_message == hex("0f 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"));
  CHECK(s.server.version() == 0);
  CHECK(s.server.idle());
}

TEST_CASE("no feature of 6.0 is granted, whatever is asked", "[vmbus]") {
  Surroundings s;
  s.post(InitiateContactWithClientId{
      .contact = {.version = Version::k6_0, .target = {.sint = 2, .feature_flags = 0xffffffff}}});
  VersionResponseWithFeatures response;
  REQUIRE(read_wire(s.last_message, response));
  CHECK(response.response.version_supported == 1);
  CHECK(response.feature_flags == 0);
}

TEST_CASE("a guest of the future falls back to a version that is served", "[vmbus]") {
  Surroundings s;
  s.initiate(static_cast<Version>(0x00070000));
  s.initiate(static_cast<Version>(0x00060001));
  s.initiate(Version::k6_0);
  // No "ended" between: a refusal made no connection.
  CHECK(s.take() == Seen{"VERSION_RESPONSE 0 0 0x0", "VERSION_RESPONSE 0 0 0x0", "VERSION_RESPONSE 1 0 0x4"});
}

TEST_CASE("iPXE's sequence is answered at every step", "[vmbus]") {
  Surroundings s;
  s.initiate(Version::k3_0);
  s.post(Unload{});
  s.initiate(Version::k0_13);
  CHECK(s.take() ==
        Seen{"VERSION_RESPONSE 1 0 0x30000", "ended", "UNLOAD_RESPONSE", "VERSION_RESPONSE 0 0 0x0"});
}

TEST_CASE("a guest below 2.4 gets its interrupts on VP 0, by the interrupt page", "[vmbus]") {
  Surroundings s;
  REQUIRE(s.server.offer(scsi()).has_value());
  s.message_connection = kMessageConnectionBelow5;
  s.post(InitiateContact{.version = Version::k1_1, .target_vp = 3, .target = page(0x5000)});
  s.post(RequestOffers{});
  s.post_gpadl(1, 0x10, 4);
  s.post_open(1, 7, 0x10, 0x1234);  // the field has no meaning yet
  CHECK(s.last_open.target_vp == 0);
  CHECK(s.last_open.event_flag == 1);
  CHECK(s.last_open.interrupt_page == 0x5000);
  CHECK(s.seen.back() == "OPENCHANNEL_RESULT 1 7 0x0");
}

}  // namespace vmbusd::vmbus
