// A connection's ends and beginnings: unload, reboot, kexec, reset, a guest that does not listen.
#include "tests/catch.h"
#include "tests/vmbus/surroundings.h"

namespace vmbusd::vmbus {
namespace {

// Relid 1 is open with ring 0x10 and lent 0x20 besides; 2 is closed with 0x30 lent and 0x31 half there; the
// guest listens on VP 2; devices take their time from here on.
struct Busy : Surroundings {
  Busy() {
    REQUIRE(server.offer(scsi(0)).value() == 1);
    REQUIRE(server.offer(scsi(1)).value() == 2);
    initiate(Version::k5_3, 2);
    post(RequestOffers{});
    open(1);
    post_gpadl(1, 0x20, 16);
    post_gpadl(2, 0x30, 16);
    post(GpadlHeader{.relid = 2, .gpadl = 0x31, .range_buflen = 24, .rangecount = 1});
    prompt = false;
    take();
  }
  // The devices answer all that disconnecting asks of them; what is seen then is what follows.
  void finish() {
    server.close_done(1);
    server.gpadl_released(1, 0x10);
    server.gpadl_released(2, 0x30);
    take();
    server.gpadl_released(1, 0x20);
  }
};

}  // namespace

TEST_CASE("UNLOAD is answered when nothing is left of the connection", "[vmbus]") {
  Busy s;
  s.post(Unload{});
  CHECK(s.take() == Seen{"close 1", "release 2 0x30"});
  CHECK_FALSE(s.server.idle());
  CHECK(s.server.version() == 0);
  s.server.gpadl_released(2, 0x30);
  s.server.close_done(1);
  CHECK(s.take() == Seen{"release 1 0x10", "release 1 0x20"});
  s.post(Unload{});  // impatient: no second answer
  s.server.gpadl_released(1, 0x20);
  CHECK(s.take().empty());
  s.server.gpadl_released(1, 0x10);
  CHECK(s.take() == Seen{"ended", "@2 UNLOAD_RESPONSE"});
  CHECK(s.server.idle());
}

TEST_CASE("firmware unloads twice and is answered twice", "[vmbus]") {
  Surroundings s;
  s.post(Unload{});  // nobody knows yet where to answer
  CHECK(s.take().empty());
  s.initiate(Version::k4_0, 1);
  s.post(Unload{});
  s.post(Unload{});
  CHECK(s.take() ==
        Seen{"@1 VERSION_RESPONSE 1 0 0x40000", "ended", "@1 UNLOAD_RESPONSE", "@1 UNLOAD_RESPONSE"});
}

TEST_CASE("a guest reboots: unload, contact, the same offers", "[vmbus]") {
  Surroundings s;
  REQUIRE(s.server.offer(scsi()).has_value());
  for (int boot = 0; boot < 3; ++boot) {
    s.initiate(Version::k5_3);
    s.post(RequestOffers{});
    s.post_gpadl(1, 0xe1e10, 4);
    s.post_open(1, 1, 0xe1e10);
    CHECK(s.take() == Seen{"VERSION_RESPONSE 1 0 0x4", "OFFERCHANNEL 1", "ALLOFFERS_DELIVERED",
                           "GPADL_CREATED 1 0xe1e10 0x0", "open 1", "OPENCHANNEL_RESULT 1 1 0x0"});
    s.post(CloseChannel{.relid = 1});
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0xe1e10});
    s.post(Unload{});
    CHECK(s.take() ==
          Seen{"close 1", "release 1 0xe1e10", "GPADL_TORNDOWN 0xe1e10", "ended", "UNLOAD_RESPONSE"});
  }
}

TEST_CASE("after UNLOAD all but contact and UNLOAD is dropped", "[vmbus]") {
  Busy s;
  s.post(Unload{});
  s.take();
  s.post(RequestOffers{});
  s.post_gpadl(1, 0x50, 4);
  s.post_open(1, 9, 0x10);
  s.post(CloseChannel{.relid = 1});
  s.post(GpadlTeardown{.relid = 1, .gpadl = 0x20});
  s.post(ModifyChannel{.relid = 1, .target_vp = 0});
  CHECK(s.take().empty());
  s.finish();
  CHECK(s.take() == Seen{"ended", "@2 UNLOAD_RESPONSE"});
}

TEST_CASE("a crash kernel makes contact without unloading", "[vmbus]") {
  Busy s;
  s.post_open(2, 1, 0x30);  // unanswered by the device
  s.post(ModifyChannel{.relid = 1, .target_vp = 1});
  s.post(GpadlTeardown{.relid = 1, .gpadl = 0x20});
  s.take();
  s.initiate(Version::k5_3, 3);  // it runs on another CPU
  // 0x20 was asked for before; nothing of what the old kernel waits for is answered.
  CHECK(s.take() == Seen{"close 1", "close 2"});
  s.server.gpadl_released(1, 0x20);
  s.server.retarget_done(1, 0);
  s.server.open_done(2, 0);
  s.server.close_done(1);
  s.server.close_done(2);
  CHECK(s.take() == Seen{"release 1 0x10", "release 2 0x30"});
  s.server.gpadl_released(2, 0x30);
  CHECK(s.take().empty());
  s.server.gpadl_released(1, 0x10);
  CHECK(s.take() == Seen{"ended", "@3 VERSION_RESPONSE 1 0 0x4"});
  s.prompt = true;
  s.post(RequestOffers{});
  CHECK(s.take() == Seen{"@3 OFFERCHANNEL 1", "@3 OFFERCHANNEL 2", "@3 ALLOFFERS_DELIVERED"});
  s.open(1);
  CHECK(s.server.find_gpadl(1, 0x10) != nullptr);
}

TEST_CASE("contact while connected is a disconnect even where the version is refused", "[vmbus]") {
  Surroundings s;
  REQUIRE(s.server.offer(scsi()).has_value());
  s.connect();
  s.open(1);
  s.initiate(static_cast<Version>(0x00070000), 1);
  CHECK(s.take() == Seen{"close 1", "release 1 0x10", "ended", "@1 VERSION_RESPONSE 0 0 0x0"});
  CHECK(s.server.idle());
}

TEST_CASE("while a connection ends", "[vmbus]") {
  Busy s;
  SECTION("the latest contact is the one that is answered") {
    s.initiate(Version::k5_3, 1);
    s.initiate(Version::k4_1, 3);
    s.finish();
    CHECK(s.take() == Seen{"ended", "@3 VERSION_RESPONSE 1 0 0x40001"});
  }
  SECTION("contact after UNLOAD is the next guest: UNLOAD has no reader any more") {
    s.post(Unload{});
    s.initiate(Version::k5_3, 1);
    s.finish();
    CHECK(s.take() == Seen{"ended", "@1 VERSION_RESPONSE 1 0 0x4"});
  }
  SECTION("UNLOAD after contact: both are answered, in order") {
    s.initiate(Version::k5_3, 1);
    s.post(Unload{});
    s.finish();
    CHECK(s.take() == Seen{"ended", "@1 VERSION_RESPONSE 1 0 0x4", "ended", "@1 UNLOAD_RESPONSE"});
    CHECK(s.server.idle());
  }
  SECTION("an offer can be made and taken back") {
    s.post(Unload{});
    CHECK(s.server.offer(scsi(7)).value() == 3);
    CHECK(s.server.offer(scsi(8)).value() == 4);
    s.server.rescind(3);
    s.server.rescind(1);
    CHECK(s.take() == Seen{"close 1", "release 2 0x30", "gone 3"});
    s.finish();
    CHECK(s.take() == Seen{"gone 1", "ended", "@2 UNLOAD_RESPONSE"});
  }
  SECTION("a rescinded offer that was not released is gone with it") {
    s.server.rescind(2);
    CHECK(s.take() == Seen{"@2 RESCIND_CHANNELOFFER 2"});
    s.post(Unload{});
    s.finish();
    CHECK(s.take() == Seen{"gone 2", "ended", "@2 UNLOAD_RESPONSE"});
  }
}

TEST_CASE("the VMM resets the guest", "[vmbus]") {
  SECTION("with channels open: when all is closed, without a word to the guest") {
    Busy s;
    s.server.reset();
    CHECK(s.take() == Seen{"close 1", "release 2 0x30"});
    s.finish();
    CHECK(s.take() == Seen{"ended"});
    CHECK(s.server.idle());
    s.post(Unload{});  // whom to answer was forgotten
    CHECK(s.take().empty());
  }
  SECTION("with nothing open: at once") {
    Surroundings s;
    s.server.reset();
    CHECK(s.take() == Seen{"ended"});
  }
  SECTION("while a connection ends: what the guest waited for is not answered") {
    Busy s;
    s.initiate(Version::k5_3);
    s.server.reset();
    s.finish();
    CHECK(s.take() == Seen{"ended"});
    CHECK(s.server.idle());
  }
  SECTION("again while it resets: ends once") {
    Busy s;
    s.server.reset();
    s.server.reset();
    s.finish();
    CHECK(s.take() == Seen{"ended"});
  }
}

TEST_CASE("a guest that does not take its messages loses its connection", "[vmbus]") {
  Busy s;
  s.guest_queue_full = true;
  s.post_gpadl(1, 0x50, 1);
  CHECK(s.take() == Seen{"close 1", "release 2 0x30"});
  s.server.close_done(1);
  CHECK(s.take() == Seen{"release 1 0x10", "release 1 0x20", "release 1 0x50"});
  for (const GpadlId id : {0x10U, 0x20U, 0x50U}) s.server.gpadl_released(1, id);
  s.server.gpadl_released(2, 0x30);
  CHECK(s.take() == Seen{"ended"});
  CHECK(s.server.idle());

  s.guest_queue_full = false;
  s.prompt = true;
  s.connect();
  s.open(1);
  CHECK(s.server.find_gpadl(1, 0x10) != nullptr);
}

TEST_CASE("a full queue in the middle of the offers stops them", "[vmbus]") {
  Surroundings s;
  for (std::uint8_t i = 0; i < 200; ++i) REQUIRE(s.server.offer(scsi(i)).has_value());
  s.initiate(Version::k5_3);
  s.take();
  s.guest_queue_full = true;
  s.post(RequestOffers{});
  CHECK(s.take() == Seen{"ended"});
  CHECK(s.server.idle());
}

TEST_CASE("a guest that cannot be told of a refusal has no connection to lose", "[vmbus]") {
  Surroundings s;
  s.guest_queue_full = true;
  s.initiate(Version::k0_13);
  CHECK(s.take().empty());
  CHECK(s.server.idle());
}

TEST_CASE("events may call the server back", "[vmbus]") {
  // As a device that offers anew what is gone, from inside the event.
  struct Reoffering final : ServerEvents {
    bool send(std::uint32_t /*vp*/, std::span<const std::byte> /*message*/) override { return true; }
    bool page_exists(Gpn /*page*/) const override { return true; }
    void open_channel(Relid relid, const OpenRequest& /*request*/) override { server.open_done(relid, 0); }
    void close_channel(Relid relid) override { server.close_done(relid); }
    void retarget_channel(Relid relid, std::uint32_t /*vp*/) override { server.retarget_done(relid, 0); }
    void release_gpadl(Relid relid, const std::shared_ptr<const Gpadl>& gpadl) override {
      server.gpadl_released(relid, gpadl->id);
    }
    void offer_gone(Relid relid) override {
      gone.push_back(relid);
      offered.push_back(server.offer(scsi(static_cast<std::uint8_t>(10 + gone.size()))).value());
    }
    void connection_ended() override {}
    std::vector<Relid> gone;
    std::vector<Relid> offered;
    LogScope log{"test"};
    Server server{*this, 1, log};
  };
  Reoffering s;
  REQUIRE(s.server.offer(scsi(0)).has_value());
  REQUIRE(s.server.offer(scsi(1)).has_value());
  const auto post = [&s](const auto& message) { s.server.guest_message(4, wire_bytes(message)); };
  post(InitiateContact{.version = Version::k5_3, .target = {.sint = 2}});
  post(RequestOffers{});
  s.server.rescind(1);
  s.server.rescind(2);
  s.server.reset();
  // Both were gone at the same moment, yet no relid was handed out before it was announced.
  CHECK(s.gone == std::vector<Relid>{1, 2});
  CHECK(s.offered == std::vector<Relid>{1, 2});
}

}  // namespace vmbusd::vmbus
