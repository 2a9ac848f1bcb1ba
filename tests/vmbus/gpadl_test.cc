#include <bit>

#include "tests/catch.h"
#include "tests/vmbus/surroundings.h"
#include "vmbus/gpadl_table.h"

namespace vmbusd::vmbus {
namespace {

constexpr std::uint64_t range(std::uint32_t byte_count, std::uint32_t byte_offset) {
  return std::bit_cast<std::uint64_t>(GpaRangeHeader{byte_count, byte_offset});
}
constexpr Gpn kLast = kGuestPages - 1;

struct RangesCase {
  const char* rule;
  std::uint16_t range_count;
  std::vector<std::uint64_t> values;
  bool ok;
};

const RangesCase kRangesCases[] = {
    {"one byte", 1, {range(1, 0), 0x1000}, true},
    {"a whole page", 1, {range(4096, 0), 0x1000}, true},
    {"the last byte of a page", 1, {range(1, 4095), 0x1000}, true},
    {"a page that is not aligned takes two", 1, {range(4096, 1), 0x1000, 0x2000}, true},
    {"a page that is not aligned in one", 1, {range(4096, 1), 0x1000}, false},
    {"the first and the last page of guest memory", 1, {range(8192, 0), 0, kLast}, true},
    {"a page beyond guest memory", 1, {range(8192, 0), 0x1000, kLast + 1}, false},
    {"a page number whose address overflows", 1, {range(4096, 0), 0x0010000000000000}, false},
    {"the largest page number", 1, {range(4096, 0), ~0ULL}, false},
    {"the same page again and again", 1, {range(3 * 4096, 0), 0x1000, 0x1000, 0x1000}, true},
    {"no bytes", 1, {range(0, 0), 0x1000}, false},
    {"an offset of a whole page", 1, {range(1, 4096), 0x1000, 0x1001}, false},
    {"the largest offset", 1, {range(1, 0xffffffff), 0x1000}, false},
    {"the largest byte count", 1, {range(0xffffffff, 0), 0x1000}, false},
    {"byte count and offset that overflow 32 bits", 1, {range(0xffffffff, 4095), 0x1000}, false},
    {"values left over", 1, {range(4096, 0), 0x1000, ~0ULL}, true},
    {"two ranges", 2, {range(4096, 0), 0x1000, range(100, 50), 0x2000}, true},
    {"two ranges announced, one there", 2, {range(8192, 0), 0x1000, 0x1001, range(1, 0)}, false},
    {"second range is empty", 2, {range(4096, 0), 0x1000, range(0, 0), 0x2000}, false},
    {"no range", 0, {range(4096, 0), 0x1000}, false},
    {"more ranges than values", 0xffff, {range(4096, 0), 0x1000}, false},
    {"a range without room for a page", 1, {range(4096, 0)}, false},
    {"no values", 1, {}, false},
};

struct Connected : Surroundings {
  explicit Connected(const ServerLimits& limits = {}) : Surroundings(limits) {
    REQUIRE(server.offer(scsi(0)).value() == 1);
    REQUIRE(server.offer(scsi(1)).value() == 2);
    connect();
  }
};

}  // namespace

TEST_CASE("GPADL ranges are taken or refused", "[vmbus]") {
  for (const RangesCase& c : kRangesCases) {
    DYNAMIC_SECTION(c.rule) {
      Connected s;
      s.post_gpadl_values(1, 0x10, c.range_count, c.values);
      const Seen answer = s.take();
      REQUIRE(answer.size() == 1);
      CHECK((answer[0] == "GPADL_CREATED 1 0x10 0x0") == c.ok);
      CHECK((s.server.find_gpadl(1, 0x10) != nullptr) == c.ok);
      s.post_gpadl(1, 0x10, 1);  // nothing is left of one that was refused
      CHECK((s.take() == Seen{"GPADL_CREATED 1 0x10 0x0"}) == !c.ok);
    }
  }
}

TEST_CASE("a GPADL has the ranges that the guest sent", "[vmbus]") {
  Connected s;
  s.post_gpadl_values(1, 0x10, 2, std::vector<std::uint64_t>{range(5000, 8), 0x10, 0x20, range(1, 0), 0x30});
  const auto gpadl = s.server.find_gpadl(1, 0x10);
  REQUIRE(gpadl != nullptr);
  CHECK(gpadl->id == 0x10);
  CHECK(gpadl->relid == 1);
  REQUIRE(gpadl->ranges.size() == 2);
  CHECK(gpadl->ranges[0].byte_count == 5000);
  CHECK(gpadl->ranges[0].byte_offset == 8);
  CHECK(gpadl->ranges[0].pages == std::vector<Gpn>{0x10, 0x20});
  CHECK(gpadl->ranges[1].pages == std::vector<Gpn>{0x30});
}

TEST_CASE("range_buflen must be whole values that can hold the ranges", "[vmbus]") {
  for (const std::uint16_t buflen : std::initializer_list<std::uint16_t>{0, 1, 7, 8, 15, 17, 23, 0xffff}) {
    DYNAMIC_SECTION("range_buflen " << buflen) {
      Connected s;
      s.post_values(GpadlHeader{.relid = 1, .gpadl = 0x10, .range_buflen = buflen, .rangecount = 1},
                    std::vector<std::uint64_t>{range(4096, 0), 0x1000});
      CHECK(s.take() == Seen{"GPADL_CREATED 1 0x10 0xc000000d"});
    }
  }
}

TEST_CASE("the largest GPADL comes in hundreds of messages", "[vmbus]") {
  // range_buflen is 16 bits wide: 8191 values, the range's header among them.
  Connected s;
  s.post_gpadl(1, 0x10, 8190, 0);
  CHECK(s.take() == Seen{"GPADL_CREATED 1 0x10 0x0"});
  const auto gpadl = s.server.find_gpadl(1, 0x10);
  REQUIRE(gpadl != nullptr);
  REQUIRE(gpadl->ranges[0].pages.size() == 8190);
  for (Gpn page = 0; page < 8190; ++page) REQUIRE(gpadl->ranges[0].pages[page] == page);
}

TEST_CASE("a padded GPADL ends where its length says", "[vmbus]") {
  Connected s;
  std::vector<std::uint64_t> values(kGpadlHeaderValuesMax, ~0ULL);
  values[0] = range(4096, 0);
  values[1] = 0x1000;
  s.post_values(GpadlHeader{.relid = 1, .gpadl = 0x10, .range_buflen = 16, .rangecount = 1}, values);
  CHECK(s.take() == Seen{"GPADL_CREATED 1 0x10 0x0"});
  CHECK(s.server.find_gpadl(1, 0x10)->ranges[0].pages == std::vector<Gpn>{0x1000});
}

TEST_CASE("bodies of several GPADLs may alternate", "[vmbus]") {
  Connected s;
  const auto header = [&](Relid relid, GpadlId id) {
    s.post_values(GpadlHeader{.relid = relid, .gpadl = id, .range_buflen = 24, .rangecount = 1},
                  std::vector<std::uint64_t>{range(8192, 0)});
  };
  const auto body = [&](GpadlId id, std::vector<std::uint64_t> values) {
    s.post_values(GpadlBody{.gpadl = id}, values);
  };
  header(1, 0x10);
  header(2, 0x11);
  body(0x11, {0x21});
  body(0x10, {0x11});
  body(0x10, {});  // harmless
  CHECK(s.take().empty());
  CHECK(s.server.find_gpadl(1, 0x10) == nullptr);  // not before it is complete
  body(0x10, {0x12});
  body(0x11, {0x22});
  CHECK(s.take() == Seen{"GPADL_CREATED 1 0x10 0x0", "GPADL_CREATED 2 0x11 0x0"});
  CHECK(s.server.find_gpadl(2, 0x11)->ranges[0].pages == std::vector<Gpn>{0x21, 0x22});
  body(0x10, {0x13});  // one too many
  CHECK(s.take().empty());
}

TEST_CASE("a handle is free on each channel, but one at a time while it is assembled", "[vmbus]") {
  Connected s;
  s.post_gpadl(1, 0x10, 1);
  s.post_gpadl(2, 0x10, 1);
  CHECK(s.take() == Seen{"GPADL_CREATED 1 0x10 0x0", "GPADL_CREATED 2 0x10 0x0"});
  s.post_gpadl(1, 0x10, 1);
  CHECK(s.take() == Seen{"GPADL_CREATED 1 0x10 0xc000000d"});
  CHECK(s.server.find_gpadl(1, 0x10) != nullptr);  // the first is unharmed

  const GpadlHeader unfinished{.relid = 1, .gpadl = 0x20, .range_buflen = 24, .rangecount = 1};
  s.post(unfinished);
  s.post_gpadl(2, 0x20, 1);
  s.post_gpadl(1, 0x20, 1);
  CHECK(s.take() == Seen{"GPADL_CREATED 2 0x20 0xc000000d", "GPADL_CREATED 1 0x20 0xc000000d"});
  s.post_values(GpadlBody{.gpadl = 0x20}, std::vector<std::uint64_t>{range(8192, 0), 1, 2});
  CHECK(s.take() == Seen{"GPADL_CREATED 1 0x20 0x0"});
}

TEST_CASE("a GPADL for a relid that is not offered is refused, its bodies dropped", "[vmbus]") {
  Connected s;
  for (const Relid relid : {0U, 3U, 2047U, 2048U, 0xffffffffU}) {
    s.post_gpadl(relid, 0x10, 60);
    CHECK(s.take() == Seen{fmt::format("GPADL_CREATED {} 0x10 0xc000000d", relid)});
  }
}

TEST_CASE("pages of a GPADL are lent until the device let go", "[vmbus]") {
  Connected s;
  s.post_gpadl_values(1, 0x10, 1, std::vector<std::uint64_t>{range(8192, 0), 0x20, 0x30});
  s.prompt = false;
  CHECK(s.server.holds_pages(0x20, 1));
  CHECK(s.server.holds_pages(0x25, 0x0c));
  CHECK_FALSE(s.server.holds_pages(0x21, 0x0f));
  CHECK_FALSE(s.server.holds_pages(0x31, 0x100));
  CHECK_FALSE(s.server.holds_pages(0, 0x20));
  s.post(GpadlTeardown{.relid = 1, .gpadl = 0x10});
  CHECK(s.server.holds_pages(0x30, 1));
  s.server.gpadl_released(1, 0x10);
  CHECK_FALSE(s.server.holds_pages(0, kGuestPages));
}

TEST_CASE("teardown", "[vmbus]") {
  Connected s;
  SECTION("of one that is lent: after the device let go") {
    s.post_gpadl(1, 0x10, 1);
    s.prompt = false;
    s.take();
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x10});
    CHECK(s.take() == Seen{"release 1 0x10"});
    CHECK(s.server.find_gpadl(1, 0x10) == nullptr);
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x10});  // again: no second answer
    s.post_gpadl(1, 0x10, 1);                          // the handle is not free yet
    CHECK(s.take() == Seen{"GPADL_CREATED 1 0x10 0xc000000d"});
    s.server.gpadl_released(1, 0x10);
    CHECK(s.take() == Seen{"GPADL_TORNDOWN 0x10"});
    s.post_gpadl(1, 0x10, 1);
    CHECK(s.take() == Seen{"GPADL_CREATED 1 0x10 0x0"});
  }
  SECTION("of one that is being assembled: cancels it") {
    s.post(GpadlHeader{.relid = 1, .gpadl = 0x10, .range_buflen = 24, .rangecount = 1});
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x10});
    CHECK(s.take() == Seen{"GPADL_TORNDOWN 0x10"});
    s.post_values(GpadlBody{.gpadl = 0x10}, std::vector<std::uint64_t>{range(8192, 0), 1, 2});
    CHECK(s.take().empty());
  }
  SECTION("of one that is unknown, or another channel's: dropped") {
    s.post_gpadl(1, 0x10, 1);
    s.take();
    s.post(GpadlTeardown{.relid = 2, .gpadl = 0x10});
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x11});
    s.post(GpadlTeardown{.relid = 9, .gpadl = 0x10});
    CHECK(s.take().empty());
  }
  SECTION("of another than the ring while the channel is open: at once") {
    s.open(1);
    s.post_gpadl(1, 0x20, 8);
    s.take();
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x20});
    CHECK(s.take() == Seen{"release 1 0x20", "GPADL_TORNDOWN 0x20"});
  }
  SECTION("while the channel closes: when it has closed") {
    s.open(1);
    s.post_gpadl(1, 0x20, 8);
    s.prompt = false;
    s.take();
    s.post(CloseChannel{.relid = 1});
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x20});
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x10});
    CHECK(s.take() == Seen{"close 1"});
    s.server.close_done(1);
    CHECK(s.take() == Seen{"release 1 0x10", "release 1 0x20"});
    s.server.gpadl_released(1, 0x20);
    s.server.gpadl_released(1, 0x10);
    CHECK(s.take() == Seen{"GPADL_TORNDOWN 0x20", "GPADL_TORNDOWN 0x10"});
  }
  SECTION("of an open channel's ring: closes it first") {
    s.open(1);
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x10});
    CHECK(s.take() == Seen{"close 1", "release 1 0x10", "GPADL_TORNDOWN 0x10"});
    s.open(1);  // and the channel is good again
    CHECK(s.server.find_gpadl(1, 0x10) != nullptr);
  }
  SECTION("of an opening channel's ring: closes it first, and the open is answered") {
    s.prompt = false;
    s.post_gpadl(1, 0x10, 4);
    s.post_open(1, 7, 0x10);
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0x10});
    CHECK(s.take() == Seen{"GPADL_CREATED 1 0x10 0x0", "open 1", "close 1"});
    s.server.open_done(1, 0);  // crossed the close
    s.server.close_done(1);
    CHECK(s.take() == Seen{"OPENCHANNEL_RESULT 1 7 0xc0000120", "release 1 0x10"});
    s.server.gpadl_released(1, 0x10);
    CHECK(s.take() == Seen{"GPADL_TORNDOWN 0x10"});
  }
}

TEST_CASE("what a guest can make the server hold in GPADLs is bounded", "[vmbus]") {
  Connected s(ServerLimits{.gpadls = 8, .gpadls_in_progress = 3, .gpadl_pages = 100});
  const auto header_only = [&](GpadlId id, std::uint16_t pages) {
    s.post(GpadlHeader{.relid = 1,
                       .gpadl = id,
                       .range_buflen = static_cast<std::uint16_t>((pages + 1) * 8),
                       .rangecount = 1});
  };
  const auto refused = [](GpadlId id) { return Seen{fmt::format("GPADL_CREATED 1 {:#x} 0xc000009a", id)}; };

  SECTION("their number") {
    for (GpadlId id = 0; id < 8; ++id) s.post_gpadl(1, id, 1);
    s.take();
    s.post_gpadl(1, 8, 1);
    CHECK(s.take() == refused(8));
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0});
    s.take();
    s.post_gpadl(1, 8, 1);
    CHECK(s.take() == Seen{"GPADL_CREATED 1 0x8 0x0"});
  }
  SECTION("those without their bodies") {
    for (GpadlId id = 0; id < 3; ++id) header_only(id, 30);
    CHECK(s.take().empty());
    header_only(3, 1);
    CHECK(s.take() == refused(3));
    s.post_gpadl(1, 4, 1);  // even one that would be complete at once: there is no telling a good guest
    CHECK(s.take() == refused(4));
    s.post(GpadlTeardown{.relid = 1, .gpadl = 1});
    s.take();
    s.post_gpadl(1, 4, 1);
    CHECK(s.take() == Seen{"GPADL_CREATED 1 0x4 0x0"});
  }
  SECTION("their pages, from the header on") {
    header_only(0, 60);
    s.post_gpadl(1, 1, 40);
    CHECK(s.take() == Seen{"GPADL_CREATED 1 0x1 0x0"});
    s.post_gpadl(1, 2, 1);
    CHECK(s.take() == refused(2));
    s.post(GpadlTeardown{.relid = 1, .gpadl = 0});
    s.take();
    s.post_gpadl(1, 2, 60);
    CHECK(s.take() == Seen{"GPADL_CREATED 1 0x2 0x0"});
  }
  SECTION("one that is malformed gives its share back") {
    for (int i = 0; i < 20; ++i) s.post_gpadl(1, 5, 100, kGuestPages);
    s.take();
    s.post_gpadl(1, 5, 100);
    CHECK(s.take() == Seen{"GPADL_CREATED 1 0x5 0x0"});
  }
  SECTION("a new connection starts with all of it") {
    header_only(0, 60);
    s.post_gpadl(1, 1, 40);
    s.connect();
    s.post_gpadl(1, 2, 100);
    CHECK(s.take() == Seen{"GPADL_CREATED 1 0x2 0x0"});
  }
}

TEST_CASE("uio_hv_generic's buffers fit before it opens the channel", "[vmbus]") {
  // 31 MiB to receive, 16 MiB to send, two rings of 2 MiB. [linux: uio_hv_generic.c]
  Connected s;
  s.post_gpadl(1, 0xe1e10, 1024);
  s.post_gpadl(1, 0xe1e11, 31 * 256);
  s.post_gpadl(1, 0xe1e12, 16 * 256);
  s.post(OpenChannel{.relid = 1, .openid = 1, .ring_gpadl = 0xe1e10, .downstream_page_offset = 512});
  CHECK(s.take() == Seen{"GPADL_CREATED 1 0xe1e10 0x0", "GPADL_CREATED 1 0xe1e11 0x0",
                         "GPADL_CREATED 1 0xe1e12 0x0", "open 1", "OPENCHANNEL_RESULT 1 1 0x0"});
}

}  // namespace vmbusd::vmbus
