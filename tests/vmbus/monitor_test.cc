// Channels that the guest signals by its monitor page.
#include "tests/catch.h"
#include "tests/vmbus/surroundings.h"

namespace vmbusd::vmbus {
namespace {

constexpr std::uint64_t kToParent = 0x102000;

Offer monitored(std::uint8_t index = 0) {
  Offer offer = scsi(index);
  offer.monitored = true;
  return offer;
}

void contact(Surroundings& s, bool with_pages) {
  InitiateContact message;
  message.version = Version::k5_3;
  message.target.sint = kMessageSint;
  if (with_pages) {
    message.parent_to_child_monitor_gpa = 0x101000;
    message.child_to_parent_monitor_gpa = kToParent;
  }
  s.post(message);
}

OfferChannel last_offer(const Surroundings& s) {
  OfferChannel offer;
  REQUIRE(read_wire(s.last_message, offer));
  REQUIRE(offer.header.type == MessageType::kOfferChannel);
  return offer;
}

}  // namespace

TEST_CASE("a monitored offer has a monitor id, others have none", "[vmbus]") {
  Surroundings s;
  contact(s, true);
  s.post(RequestOffers{});
  REQUIRE(s.server.offer(scsi(0)).has_value());
  CHECK(last_offer(s).monitor_id == kNoMonitor);
  CHECK(last_offer(s).monitor_flags == 0);
  REQUIRE(s.server.offer(monitored(1)).has_value());
  CHECK(last_offer(s).monitor_id == 0);
  CHECK(last_offer(s).monitor_flags == kMonitorAllocated);
  CHECK((last_offer(s).interrupt_flags & kDedicatedInterrupt) != 0);
  REQUIRE(s.server.offer(monitored(2)).has_value());
  CHECK(last_offer(s).monitor_id == 1);
}

TEST_CASE("the device of a monitored channel learns the guest's page", "[vmbus]") {
  Surroundings s;
  REQUIRE(s.server.offer(scsi(0)).value() == 1);
  REQUIRE(s.server.offer(monitored(1)).value() == 2);
  contact(s, true);
  s.post(RequestOffers{});
  s.open(1);
  CHECK(s.last_open.monitor_page == 0);
  CHECK_FALSE(s.server.holds_pages(kToParent / kPageBytes, 1));
  s.open(2);
  CHECK(s.last_open.monitor_page == kToParent);
  CHECK(s.last_open.monitor_id == 0);
  // While it is open the page must stay.
  CHECK(s.server.holds_pages(kToParent / kPageBytes, 1));
  CHECK_FALSE(s.server.holds_pages(kToParent / kPageBytes + 1, 1));
  s.prompt = false;
  s.post(CloseChannel{.relid = 2});
  CHECK(s.server.holds_pages(kToParent / kPageBytes, 1));
  s.server.close_done(2);
  CHECK_FALSE(s.server.holds_pages(kToParent / kPageBytes, 1));
}

TEST_CASE("a guest without monitor pages signals by connection id", "[vmbus]") {
  Surroundings s;
  contact(s, false);
  s.post(RequestOffers{});
  REQUIRE(s.server.offer(monitored()).has_value());
  CHECK(last_offer(s).monitor_id == kNoMonitor);
  CHECK(last_offer(s).monitor_flags == 0);
  s.open(1);
  CHECK(s.last_open.monitor_page == 0);
  // The next guest has some.
  s.post(Unload{});
  contact(s, true);
  s.post(RequestOffers{});
  s.open(1);
  CHECK(s.last_open.monitor_page == kToParent);
}

TEST_CASE("a monitor id is another's only after its relid is released", "[vmbus]") {
  Surroundings s;
  contact(s, true);
  s.post(RequestOffers{});
  REQUIRE(s.server.offer(monitored(0)).value() == 1);
  s.server.rescind(1);
  REQUIRE(s.server.offer(monitored(1)).value() == 2);
  CHECK(last_offer(s).monitor_id == 1);
  s.post(RelidReleased{.relid = 1});
  REQUIRE(s.server.offer(monitored(2)).value() == 1);
  CHECK(last_offer(s).monitor_id == 0);
}

TEST_CASE("a monitored channel too many is offered without a monitor", "[vmbus]") {
  Surroundings s;
  contact(s, true);
  s.post(RequestOffers{});
  for (std::uint32_t i = 0; i < kMonitorIds; ++i) {
    REQUIRE(s.server.offer(monitored(static_cast<std::uint8_t>(i))).has_value());
    CHECK(last_offer(s).monitor_id == i);
  }
  REQUIRE(s.server.offer(monitored(kMonitorIds)).has_value());
  CHECK(last_offer(s).monitor_id == kNoMonitor);
  CHECK(last_offer(s).monitor_flags == 0);
  s.open(kMonitorIds + 1);
  CHECK(s.last_open.monitor_page == 0);
}

}  // namespace vmbusd::vmbus
