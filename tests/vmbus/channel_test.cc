#include <bit>

#include "tests/catch.h"
#include "tests/vmbus/surroundings.h"

namespace vmbusd::vmbus {
namespace {

struct Connected : Surroundings {
  explicit Connected(Version version = Version::k5_3) {
    REQUIRE(server.offer(scsi(0)).value() == 1);
    REQUIRE(server.offer(scsi(1)).value() == 2);
    connect(version);
  }
};

}  // namespace

// --- OPENCHANNEL ---

TEST_CASE("OPENCHANNEL is refused with a status", "[vmbus]") {
  struct Case {
    const char* rule;
    OpenChannel message;
    std::uint32_t status;
  };
  // GPADL 0x10 has 4 pages; 0x11 is half there; 0x12 has two ranges; 0x13 starts inside a page; 0x14 is
  // channel 2's; 0x15 is being torn down. Channel 2 is open.
  const Case cases[] = {
      {"smallest rings", {.relid = 1, .ring_gpadl = 0x10, .downstream_page_offset = 2}, 0},
      {"the last VP", {.relid = 1, .ring_gpadl = 0x10, .target_vp = 3, .downstream_page_offset = 2}, 0},
      {"no interrupts",
       {.relid = 1, .ring_gpadl = 0x10, .target_vp = kNoInterruptVp, .downstream_page_offset = 2},
       0},
      {"a VP that does not exist",
       {.relid = 1, .ring_gpadl = 0x10, .target_vp = 4, .downstream_page_offset = 2},
       0xc000000d},
      {"no incoming ring", {.relid = 1, .ring_gpadl = 0x10, .downstream_page_offset = 0}, 0xc000000d},
      {"an incoming ring without data",
       {.relid = 1, .ring_gpadl = 0x10, .downstream_page_offset = 1},
       0xc000000d},
      {"an outgoing ring without data",
       {.relid = 1, .ring_gpadl = 0x10, .downstream_page_offset = 3},
       0xc000000d},
      {"no outgoing ring", {.relid = 1, .ring_gpadl = 0x10, .downstream_page_offset = 4}, 0xc000000d},
      {"an offset beyond the GPADL",
       {.relid = 1, .ring_gpadl = 0x10, .downstream_page_offset = 5},
       0xc000000d},
      {"the largest offset",
       {.relid = 1, .ring_gpadl = 0x10, .downstream_page_offset = 0xffffffff},
       0xc000000d},
      {"an unknown GPADL", {.relid = 1, .ring_gpadl = 0x99, .downstream_page_offset = 2}, 0xc000000d},
      {"a GPADL half there", {.relid = 1, .ring_gpadl = 0x11, .downstream_page_offset = 2}, 0xc000000d},
      {"a GPADL of two ranges", {.relid = 1, .ring_gpadl = 0x12, .downstream_page_offset = 2}, 0xc000000d},
      {"a GPADL not page-aligned", {.relid = 1, .ring_gpadl = 0x13, .downstream_page_offset = 2}, 0xc000000d},
      {"another channel's GPADL", {.relid = 1, .ring_gpadl = 0x14, .downstream_page_offset = 2}, 0xc000000d},
      {"a GPADL being torn down", {.relid = 1, .ring_gpadl = 0x15, .downstream_page_offset = 2}, 0xc000000d},
      {"a channel that is open", {.relid = 2, .ring_gpadl = 0x14, .downstream_page_offset = 2}, 0xc0000184},
      {"a relid never offered", {.relid = 3, .ring_gpadl = 0x10, .downstream_page_offset = 2}, 0xc000000d},
      {"relid 0", {.relid = 0, .ring_gpadl = 0x10, .downstream_page_offset = 2}, 0xc000000d},
  };
  for (const Case& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      Connected s;
      s.post_gpadl(1, 0x10, 4);
      s.post(GpadlHeader{.relid = 1, .gpadl = 0x11, .range_buflen = 5 * 8, .rangecount = 1});
      const auto page = std::bit_cast<std::uint64_t>(GpaRangeHeader{2 * 4096, 0});
      s.post_gpadl_values(1, 0x12, 2, std::vector<std::uint64_t>{page, 1, 2, page, 3, 4});
      const auto unaligned = std::bit_cast<std::uint64_t>(GpaRangeHeader{3 * 4096, 8});
      s.post_gpadl_values(1, 0x13, 1, std::vector<std::uint64_t>{unaligned, 1, 2, 3, 4});
      s.open(2, 0x14);
      s.post_gpadl(1, 0x15, 4);
      s.prompt = false;
      s.post(GpadlTeardown{.relid = 1, .gpadl = 0x15});
      s.prompt = true;
      s.take();

      OpenChannel message = c.message;
      message.openid = 0x1234;
      s.post(message);
      REQUIRE_FALSE(s.seen.empty());
      CHECK(s.seen.back() == fmt::format("OPENCHANNEL_RESULT {} 4660 {:#x}", message.relid, c.status));
      CHECK((s.seen.size() == 2) == (c.status == 0));  // the device hears of good ones only
    }
  }
}

TEST_CASE("the device gets what the guest asked for", "[vmbus]") {
  Connected s;
  OpenChannel message{
      .relid = 2, .openid = 1, .ring_gpadl = 0x10, .target_vp = 3, .downstream_page_offset = 5};
  message.user_data[0] = 0xaa;
  message.user_data[119] = 0xbb;
  s.post_gpadl(2, 0x10, 8);
  s.post(message);
  CHECK(s.last_open.ring == s.server.find_gpadl(2, 0x10));
  CHECK(s.last_open.incoming_pages == 5);
  CHECK(s.last_open.target_vp == 3);
  CHECK(s.last_open.event_flag == 2);
  CHECK(s.last_open.connection_id == 0x2002);
  CHECK(s.last_open.user_data == message.user_data);
}

TEST_CASE("a device that cannot open says so to the guest, and may the next time", "[vmbus]") {
  Connected s;
  s.post_gpadl(1, 0x10, 4);
  s.open_status = 0xc0000001;
  s.take();
  s.post_open(1, 7, 0x10);
  CHECK(s.take() == Seen{"open 1", "OPENCHANNEL_RESULT 1 7 0xc0000001"});
  s.open_status = 0;
  s.post_open(1, 8, 0x10);
  CHECK(s.take() == Seen{"open 1", "OPENCHANNEL_RESULT 1 8 0x0"});
}

TEST_CASE("a channel is opened again", "[vmbus]") {
  Connected s;
  s.open(1);
  SECTION("with the same GPADL") {
    s.post(CloseChannel{.relid = 1});
    s.post_open(1, 8, 0x10);
    CHECK(s.take() == Seen{"close 1", "open 1", "OPENCHANNEL_RESULT 1 8 0x0"});
  }
  SECTION("with a new GPADL") {
    s.post(CloseChannel{.relid = 1});
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x10});
    s.post_gpadl(1, 0x11, 4);
    s.post_open(1, 8, 0x11);
    CHECK(s.take() == Seen{"close 1", "release 1 0x10", "GPADL_TORNDOWN 0x10", "GPADL_CREATED 1 0x11 0x0",
                           "open 1", "OPENCHANNEL_RESULT 1 8 0x0"});
  }
  SECTION("while the device still closes: when it has closed") {
    s.prompt = false;
    s.post(CloseChannel{.relid = 1});
    s.post_open(1, 8, 0x10);
    CHECK(s.take() == Seen{"close 1"});
    s.post_open(1, 9, 0x10);  // one may wait, no more
    CHECK(s.take() == Seen{"OPENCHANNEL_RESULT 1 9 0xc0000184"});
    s.server.close_done(1);
    CHECK(s.take() == Seen{"open 1"});
    s.server.open_done(1, 0);
    CHECK(s.take() == Seen{"OPENCHANNEL_RESULT 1 8 0x0"});
  }
  SECTION("and the one that waits is closed") {
    s.prompt = false;
    s.post(CloseChannel{.relid = 1});
    s.post_open(1, 8, 0x10);
    s.post(CloseChannel{.relid = 1});
    s.server.close_done(1);
    CHECK(s.take() == Seen{"close 1", "OPENCHANNEL_RESULT 1 8 0xc0000120"});
  }
  SECTION("and its ring taken back while it waits") {
    s.prompt = false;
    s.post(CloseChannel{.relid = 1});
    s.post_open(1, 8, 0x10);
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x10});
    s.server.close_done(1);
    CHECK(s.take() == Seen{"close 1", "OPENCHANNEL_RESULT 1 8 0xc0000120", "release 1 0x10"});
  }
}

TEST_CASE("closing", "[vmbus]") {
  Connected s;
  SECTION("twice: acts once") {
    s.open(1);
    s.prompt = false;
    s.post(CloseChannel{.relid = 1});
    s.post(CloseChannel{.relid = 1});
    s.server.close_done(1);
    s.post(CloseChannel{.relid = 1});
    CHECK(s.take() == Seen{"close 1"});
  }
  SECTION("what was never open, or offered: nothing") {
    s.post(CloseChannel{.relid = 1});
    s.post(CloseChannel{.relid = 3});
    CHECK(s.take().empty());
  }
  SECTION("while opening: the open is answered when the device has closed") {
    s.prompt = false;
    s.post_gpadl(1, 0x10, 4);
    s.post_open(1, 7, 0x10);
    s.take();
    s.post(CloseChannel{.relid = 1});
    CHECK(s.take() == Seen{"close 1"});
    s.server.close_done(1);
    CHECK(s.take() == Seen{"OPENCHANNEL_RESULT 1 7 0xc0000120"});
  }
  SECTION("one channel leaves the others alone") {
    s.open(1, 0x10);
    s.open(2, 0x20);
    s.post(CloseChannel{.relid = 1});
    CHECK(s.take() == Seen{"close 1"});
    s.post(ModifyChannel{.relid = 2, .target_vp = 1});
    CHECK(s.take() == Seen{"retarget 2 1", "MODIFYCHANNEL_RESPONSE 2 0x0"});
  }
}

// --- MODIFYCHANNEL ---

TEST_CASE("MODIFYCHANNEL is refused with a status from 5.3 on", "[vmbus]") {
  Connected s;
  s.open(1);
  s.post(ModifyChannel{.relid = 1, .target_vp = kVpCount});
  s.post(ModifyChannel{.relid = 2, .target_vp = 0});  // not open
  s.post(ModifyChannel{.relid = 3, .target_vp = 0});
  CHECK(s.take() == Seen{"MODIFYCHANNEL_RESPONSE 1 0xc000000d", "MODIFYCHANNEL_RESPONSE 2 0xc000000d",
                         "MODIFYCHANNEL_RESPONSE 3 0xc000000d"});
  s.post(ModifyChannel{.relid = 1, .target_vp = kNoInterruptVp});
  CHECK(s.take() == Seen{"retarget 1 4294967295", "MODIFYCHANNEL_RESPONSE 1 0x0"});
}

TEST_CASE("of a burst of MODIFYCHANNEL the last wins", "[vmbus]") {
  SECTION("below 5.3 without a word") {
    Connected s(Version::k5_2);
    s.open(1);
    s.prompt = false;
    for (const std::uint32_t vp : {1U, 2U, 3U}) s.post(ModifyChannel{.relid = 1, .target_vp = vp});
    CHECK(s.take() == Seen{"retarget 1 1"});
    s.server.retarget_done(1, 0);
    s.server.retarget_done(1, 0);
    CHECK(s.take() == Seen{"retarget 1 3"});
  }
  SECTION("from 5.3 on each is answered") {
    Connected s;
    s.open(1);
    s.prompt = false;
    for (const std::uint32_t vp : {1U, 2U, 3U}) s.post(ModifyChannel{.relid = 1, .target_vp = vp});
    CHECK(s.take() == Seen{"retarget 1 1", "MODIFYCHANNEL_RESPONSE 1 0xc0000120"});
    s.server.retarget_done(1, 0);
    CHECK(s.take() == Seen{"MODIFYCHANNEL_RESPONSE 1 0x0", "retarget 1 3"});
    s.server.retarget_done(1, 0xc0000001);
    CHECK(s.take() == Seen{"MODIFYCHANNEL_RESPONSE 1 0xc0000001"});
  }
}

TEST_CASE("closing answers the MODIFYCHANNELs under way", "[vmbus]") {
  Connected s;
  s.open(1);
  s.prompt = false;
  s.post(ModifyChannel{.relid = 1, .target_vp = 1});
  s.post(ModifyChannel{.relid = 1, .target_vp = 2});
  s.post(CloseChannel{.relid = 1});
  s.server.retarget_done(1, 0);  // crossed the close
  CHECK(s.take() == Seen{"retarget 1 1", "close 1"});
  s.server.close_done(1);
  CHECK(s.take() == Seen{"MODIFYCHANNEL_RESPONSE 1 0xc0000120", "MODIFYCHANNEL_RESPONSE 1 0xc0000120"});
}

// --- Offers ---

TEST_CASE("offers come in the order in which they were made, whatever their relids", "[vmbus]") {
  Surroundings s;
  for (std::uint8_t i = 0; i < 3; ++i) REQUIRE(s.server.offer(scsi(i)).value() == i + 1U);
  s.server.rescind(1);
  CHECK(s.take() == Seen{"gone 1"});
  REQUIRE(s.server.offer(scsi(3)).value() == 1);  // the lowest that is free
  s.initiate(Version::k5_3);
  s.take();
  s.post(RequestOffers{});
  CHECK(s.take() == Seen{"OFFERCHANNEL 2", "OFFERCHANNEL 3", "OFFERCHANNEL 1", "ALLOFFERS_DELIVERED"});
  s.post(RequestOffers{});
  CHECK(s.take().empty());
}

TEST_CASE("a device offered later is told of when the guest knows the others", "[vmbus]") {
  Surroundings s;
  s.initiate(Version::k5_3, 2);
  s.take();
  REQUIRE(s.server.offer(scsi(0)).has_value());
  CHECK(s.take().empty());
  s.post(RequestOffers{});
  REQUIRE(s.server.offer(scsi(1)).has_value());
  CHECK(s.take() == Seen{"@2 OFFERCHANNEL 1", "@2 ALLOFFERS_DELIVERED", "@2 OFFERCHANNEL 2"});
}

TEST_CASE("an offer is refused", "[vmbus]") {
  Surroundings s;
  REQUIRE(s.server.offer(scsi()).has_value());
  SECTION("where it is there already") {
    CHECK(s.server.offer(scsi()).error().code == Errc::kWrongState);
  }
  SECTION("where it is there until its relid is released") {
    s.connect();
    s.server.rescind(1);
    CHECK(s.server.offer(scsi()).error().code == Errc::kWrongState);
    s.post(RelidReleased{.relid = 1});
    CHECK(s.server.offer(scsi()).has_value());
  }
  SECTION("of a sub-channel whose primary is not open") {
    CHECK(s.server.offer(sub_channel(scsi(), 1)).error().code == Errc::kWrongState);
    CHECK(s.server.offer(sub_channel(scsi(9), 1)).error().code == Errc::kWrongState);
  }
  SECTION("beyond the last relid") {
    Offer offer = scsi();
    for (std::uint32_t i = 2; i <= kMaxChannels; ++i) {
      offer.instance.bytes[0] = static_cast<std::uint8_t>(i);
      offer.instance.bytes[1] = static_cast<std::uint8_t>(i >> 8);
      REQUIRE(s.server.offer(offer).value() == i);
    }
    offer.instance.bytes[2] ^= 1;
    CHECK(s.server.offer(offer).error().code == Errc::kLimit);
  }
}

TEST_CASE("rescind", "[vmbus]") {
  Surroundings s;
  REQUIRE(s.server.offer(scsi()).has_value());
  SECTION("with no guest: gone at once, and again: nothing") {
    s.server.rescind(1);
    s.server.rescind(1);
    CHECK(s.take() == Seen{"gone 1"});
    s.connect();
    s.initiate(Version::k5_3);
    s.take();
    s.post(RequestOffers{});
    CHECK(s.take() == Seen{"ALLOFFERS_DELIVERED"});
  }
  SECTION("before the guest asked for offers: gone at once") {
    s.initiate(Version::k5_3);
    s.take();
    s.server.rescind(1);
    CHECK(s.take() == Seen{"gone 1"});
  }
  SECTION("of a closed channel: told, gone when released") {
    s.connect();
    s.server.rescind(1);
    s.server.rescind(1);
    CHECK(s.take() == Seen{"RESCIND_CHANNELOFFER 1"});
    s.post(RelidReleased{.relid = 1});
    CHECK(s.take() == Seen{"gone 1"});
    s.post(RelidReleased{.relid = 1});
    CHECK(s.take().empty());
  }
  SECTION("of an open channel: told, and served until the guest closes it") {
    s.connect();
    s.open(1);
    s.server.rescind(1);
    s.server.rescind(1);
    CHECK(s.take() == Seen{"RESCIND_CHANNELOFFER 1"});
    CHECK_FALSE(s.server.settled());
    s.post(CloseChannel{.relid = 1});
    CHECK(s.take() == Seen{"close 1"});
    CHECK(s.server.settled());
    s.post(RelidReleased{.relid = 1});
    CHECK(s.take() == Seen{"release 1 0x10", "gone 1"});
  }
  SECTION("of an open channel that the guest does not close: its relid's release does") {
    s.connect();
    s.open(1);
    s.server.rescind(1);
    s.prompt = false;
    s.take();
    s.post(RelidReleased{.relid = 1});
    CHECK(s.take() == Seen{"close 1"});
    s.server.close_done(1);
    CHECK(s.take() == Seen{"release 1 0x10"});
    s.server.gpadl_released(1, 0x10);
    CHECK(s.take() == Seen{"gone 1"});
  }
  SECTION("of an open channel that the guest holds on to: we close it") {
    s.connect();
    s.open(1);
    s.server.close_rescinded(1);
    CHECK(s.take().empty());  // it is not rescinded
    s.server.rescind(1);
    s.server.close_rescinded(1);
    s.server.close_rescinded(1);
    CHECK(s.take() == Seen{"RESCIND_CHANNELOFFER 1", "close 1"});
    s.post(CloseChannel{.relid = 1});
    CHECK(s.take().empty());
  }
  SECTION("of an open channel: gone with the connection") {
    s.connect();
    s.open(1);
    s.server.rescind(1);
    s.take();
    s.post(Unload{});
    CHECK(s.take() == Seen{"close 1", "release 1 0x10", "gone 1", "ended", "UNLOAD_RESPONSE"});
  }
  SECTION("of an opening channel: the open is answered") {
    s.connect();
    s.prompt = false;
    s.post_gpadl(1, 0x10, 4);
    s.post_open(1, 7, 0x10);
    s.take();
    s.server.rescind(1);
    s.server.open_done(1, 0);
    CHECK(s.take() == Seen{"RESCIND_CHANNELOFFER 1", "OPENCHANNEL_RESULT 1 7 0x0"});
  }
  SECTION("of a closing channel with an open that waits: it is answered") {
    s.connect();
    s.open(1);
    s.prompt = false;
    s.post(CloseChannel{.relid = 1});
    s.post_open(1, 8, 0x10);
    s.server.rescind(1);
    s.server.close_done(1);
    CHECK(s.take() == Seen{"close 1", "OPENCHANNEL_RESULT 1 8 0xc0000120", "RESCIND_CHANNELOFFER 1"});
  }
  SECTION("until the relid is released the guest may tear down, lend anew, and not open") {
    s.connect();
    s.open(1);
    s.server.rescind(1);
    s.take();
    s.post_open(1, 9, 0x10);
    CHECK(s.take().empty());
    s.post_gpadl(1, 0x11, 4);
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x11});
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x10});
    CHECK(s.take() == Seen{"GPADL_CREATED 1 0x11 0x0", "release 1 0x11", "GPADL_TORNDOWN 0x11", "close 1",
                           "release 1 0x10", "GPADL_TORNDOWN 0x10"});
  }
  SECTION("Linux releases the relid without tearing down: the GPADLs go first") {
    s.connect();
    s.open(1);
    s.post_gpadl(1, 0x20, 64);
    s.post(GpadlHeader{.relid = 1, .gpadl = 0x30, .range_buflen = 24, .rangecount = 1});
    s.server.rescind(1);
    s.post(CloseChannel{.relid = 1});
    s.prompt = false;
    s.take();
    s.post(RelidReleased{.relid = 1});
    CHECK(s.take() == Seen{"release 1 0x10", "release 1 0x20"});
    s.post_gpadl(1, 0x40, 1);  // too late
    CHECK(s.take() == Seen{"GPADL_CREATED 1 0x40 0xc000000d"});
    s.server.gpadl_released(1, 0x10);
    CHECK(s.take().empty());
    s.server.gpadl_released(1, 0x20);
    CHECK(s.take() == Seen{"gone 1"});
    REQUIRE(s.server.offer(scsi()).value() == 1);
    CHECK(s.take() == Seen{"OFFERCHANNEL 1"});
  }
  SECTION("a TORNDOWN that was owed is sent even so") {
    s.connect();
    s.open(1);
    s.server.rescind(1);
    s.post(CloseChannel{.relid = 1});
    s.prompt = false;
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x10});
    s.post(RelidReleased{.relid = 1});
    s.take();
    s.server.gpadl_released(1, 0x10);
    CHECK(s.take() == Seen{"GPADL_TORNDOWN 0x10", "gone 1"});
  }
  SECTION("a guest cannot release what was not rescinded") {
    s.connect();
    s.post(RelidReleased{.relid = 1});
    s.post(RelidReleased{.relid = 5});
    CHECK(s.take().empty());
    s.open(1);
    CHECK(s.server.find_gpadl(1, 0x10) != nullptr);
  }
  SECTION("while it closes before the rescind the guest cannot release") {
    s.connect();
    s.open(1);
    s.prompt = false;
    s.post(CloseChannel{.relid = 1});
    s.server.rescind(1);
    s.post(RelidReleased{.relid = 1});
    s.server.close_done(1);
    CHECK(s.take() == Seen{"close 1", "RESCIND_CHANNELOFFER 1"});
  }
}

// --- Sub-channels ---

namespace {

// Relid 1 is open with ring 0x10, its sub-channels 3 and 4 with rings 0x13 and 0x14.
struct WithSubChannels : Connected {
  WithSubChannels() {
    open(1);
    REQUIRE(server.offer(sub_channel(scsi(), 1)).value() == 3);
    REQUIRE(server.offer(sub_channel(scsi(), 2)).value() == 4);
    CHECK(take() == Seen{"OFFERCHANNEL 3 sub 1", "OFFERCHANNEL 4 sub 2"});
    open(3, 0x13);
    open(4, 0x14);
  }
};

}  // namespace

TEST_CASE("sub-channels", "[vmbus]") {
  WithSubChannels s;
  SECTION("close on their own, and open again") {
    s.post(CloseChannel{.relid = 3});
    s.post_open(3, 8, 0x13);
    CHECK(s.take() == Seen{"close 3", "open 3", "OPENCHANNEL_RESULT 3 8 0x0"});
  }
  SECTION("go with their primary, and are rescinded") {
    s.post(CloseChannel{.relid = 4});
    s.take();
    s.post(CloseChannel{.relid = 1});
    CHECK(s.take() == Seen{"close 3", "RESCIND_CHANNELOFFER 4", "close 1", "RESCIND_CHANNELOFFER 3"});
    s.post(RelidReleased{.relid = 3});
    s.post(RelidReleased{.relid = 4});
    CHECK(s.take() == Seen{"release 3 0x13", "gone 3", "release 4 0x14", "gone 4"});
  }
  SECTION("are offered anew before the guest has released the old ones") {
    s.post(CloseChannel{.relid = 1});
    s.post_open(1, 8, 0x10);
    s.take();
    CHECK(s.server.offer(sub_channel(scsi(), 1)).value() == 5);
    CHECK(s.take() == Seen{"OFFERCHANNEL 5 sub 1"});
  }
  SECTION("are not offered twice") {
    CHECK(s.server.offer(sub_channel(scsi(), 1)).error().code == Errc::kWrongState);
  }
  SECTION("must have stopped before the primary starts again") {
    s.prompt = false;
    s.post(CloseChannel{.relid = 1});
    s.post_open(1, 8, 0x10);
    CHECK(s.take() == Seen{"close 3", "close 4", "close 1"});
    s.server.close_done(1);
    s.server.close_done(4);
    CHECK(s.take() == Seen{"RESCIND_CHANNELOFFER 4"});
    s.server.close_done(3);
    CHECK(s.take() == Seen{"RESCIND_CHANNELOFFER 3", "open 1"});
  }
  SECTION("cannot be opened once the primary closes") {
    s.post(CloseChannel{.relid = 3});
    s.prompt = false;
    s.post(CloseChannel{.relid = 1});
    s.take();
    s.post_open(3, 8, 0x13);
    CHECK(s.take().empty());  // rescinded
  }
  SECTION("go with a rescinded primary") {
    s.server.rescind(1);
    CHECK(s.take() == Seen{"RESCIND_CHANNELOFFER 3", "RESCIND_CHANNELOFFER 4", "RESCIND_CHANNELOFFER 1"});
    s.post(CloseChannel{.relid = 3});
    s.post(RelidReleased{.relid = 3});
    CHECK(s.take() == Seen{"close 3", "release 3 0x13", "gone 3"});
    s.post(CloseChannel{.relid = 1});
    CHECK(s.take() == Seen{"close 4", "close 1"});
  }
  SECTION("go with a rescinded primary that is closed for the guest") {
    s.server.rescind(1);
    s.take();
    s.server.close_rescinded(1);
    CHECK(s.take() == Seen{"close 3", "close 4", "close 1"});
  }
  SECTION("can be rescinded alone") {
    s.server.rescind(4);
    CHECK(s.take() == Seen{"RESCIND_CHANNELOFFER 4"});
    s.post(CloseChannel{.relid = 4});
    CHECK(s.take() == Seen{"close 4"});
  }
  SECTION("are gone after a disconnect; the primary is not") {
    s.post(Unload{});
    CHECK(s.take() == Seen{"close 3", "close 4", "close 1", "release 3 0x13", "release 4 0x14",
                           "release 1 0x10", "gone 3", "gone 4", "ended", "UNLOAD_RESPONSE"});
    s.initiate(Version::k5_3);
    s.post(RequestOffers{});
    CHECK(s.take() ==
          Seen{"VERSION_RESPONSE 1 0 0x4", "OFFERCHANNEL 1", "OFFERCHANNEL 2", "ALLOFFERS_DELIVERED"});
  }
}

}  // namespace vmbusd::vmbus
