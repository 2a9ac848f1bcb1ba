// A Server that is taken up by another process.
#include "tests/catch.h"
#include "tests/vmbus/surroundings.h"

namespace vmbusd::vmbus {
namespace {

// Two controllers; the first is open with a sub-channel, and has lent a GPADL beside its rings.
struct Running : Surroundings {
  Running() {
    REQUIRE(server.offer(scsi(0)).value() == 1);
    REQUIRE(server.offer(scsi(1)).value() == 2);
    connect();
    open(1);
    REQUIRE(server.offer(sub_channel(scsi(0), 1)).value() == 3);
    open(3, 0x11);
    post_gpadl(1, 0x20, 40);
    take();
  }
};

Result<Offer> offer_of(Relid relid) {
  if (relid > 3) return fail(Errc::kProtocol, "no such offer");
  return relid == 3 ? sub_channel(scsi(0), 1) : scsi(static_cast<std::uint8_t>(relid - 1));
}

Bytes saved(const Server& server) {
  SerialWriter out;
  server.save(out);
  return bytes_of(out.bytes());
}

// What came of it; reopens what was open.
Result<void> restore(Server& server, std::span<const std::byte> bytes) {
  SerialReader in(bytes);
  VMBUSD_CHECK(server.restore(in, offer_of));
  if (!in.at_end()) return fail(Errc::kProtocol, "more than a server writes");
  for (const Relid relid : {1u, 2u, 3u}) VMBUSD_CHECK(server.reopen(relid));
  return {};
}

TEST_CASE("a server that was restored goes on where the other stood", "[vmbus]") {
  Running before;
  REQUIRE(before.server.settled());
  const Bytes bytes = saved(before.server);
  Surroundings after;
  REQUIRE(restore(after.server, bytes).has_value());
  CHECK(after.take() == Seen{"open 1", "open 3"});  // and the guest hears nothing
  CHECK(after.last_open.event_flag == 3);
  CHECK(after.last_open.ring->ranges[0].pages == before.last_open.ring->ranges[0].pages);
  CHECK(saved(after.server) == bytes);

  after.post(GpadlTeardown{.relid = 1, .gpadl = 0x20});
  CHECK(after.take() == Seen{"release 1 0x20", "GPADL_TORNDOWN 0x20"});
  after.open(2, 0x12);
  after.post(CloseChannel{.relid = 1});
  CHECK(after.take() == Seen{"close 3", "close 1", "RESCIND_CHANNELOFFER 3"});
  after.post(Unload{});
  CHECK(after.take().back() == "UNLOAD_RESPONSE");
}

TEST_CASE("a channel that is not reopened can be rescinded", "[vmbus]") {
  Running before;
  const Bytes bytes = saved(before.server);
  Surroundings after;
  SerialReader in(bytes);
  REQUIRE(after.server.restore(in, offer_of).has_value());
  CHECK(after.server.awaits_reopen(1));
  CHECK_FALSE(after.server.awaits_reopen(2));
  after.server.rescind(1);
  CHECK(after.take() == Seen{"RESCIND_CHANNELOFFER 3", "RESCIND_CHANNELOFFER 1"});
  after.post(RelidReleased{.relid = 3});
  after.post(RelidReleased{.relid = 1});
  CHECK(after.take() == Seen{"release 3 0x11", "gone 3", "release 1 0x10", "release 1 0x20", "gone 1"});
  REQUIRE(after.server.offer(scsi(0)).value() == 1);
  CHECK(after.take() == Seen{"OFFERCHANNEL 1"});
}

TEST_CASE("a retargeted channel is reopened on its last VP", "[vmbus]") {
  Running before;
  before.post(ModifyChannel{.relid = 1, .target_vp = 3});
  Surroundings after;
  SerialWriter out;
  before.server.save(out);
  SerialReader in(out.bytes());
  REQUIRE(after.server.restore(in, offer_of).has_value());
  REQUIRE(after.server.reopen(1).has_value());
  CHECK(after.last_open.target_vp == 3);
}

TEST_CASE("a server is settled where nothing waits", "[vmbus]") {
  Running s;
  s.post(GpadlHeader{.relid = 2, .gpadl = 0x30, .range_buflen = 5 * 8, .rangecount = 1});
  CHECK_FALSE(s.server.settled());
  s.post(GpadlTeardown{.relid = 2, .gpadl = 0x30});
  CHECK(s.server.settled());
  s.prompt = false;
  s.post(CloseChannel{.relid = 1});
  CHECK_FALSE(s.server.settled());
}

TEST_CASE("a channel is taken up once", "[vmbus]") {
  Running before;
  const Bytes bytes = saved(before.server);
  const Offer twice = GENERATE(scsi(0), sub_channel(scsi(0), 1));
  Surroundings after;
  SerialReader in(bytes);
  const Result<void> restored = after.server.restore(
      in, [&](Relid relid) -> Result<Offer> { return relid == 2 ? twice : offer_of(relid); });
  REQUIRE_FALSE(restored.has_value());
  CHECK(restored.error().code == Errc::kProtocol);
  after.server.reset();
}

TEST_CASE("what a server wrote is refused where a byte is missing", "[vmbus]") {
  Running before;
  const Bytes bytes = saved(before.server);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    Surroundings after;
    REQUIRE_FALSE(restore(after.server, std::span(bytes).first(size)).has_value());
    after.server.reset();
  }
}

}  // namespace
}  // namespace vmbusd::vmbus
