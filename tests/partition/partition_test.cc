#include "partition/partition.h"

#include "tests/catch.h"
#include "tests/partition/descriptors.h"

using namespace vmbusd;
using namespace vmbusd::partition;
using namespace vmbusd::test;

TEST_CASE("an event flag raises the interrupt where it was clear", "[partition]") {
  std::array<std::uint32_t, kEventFlagsPerSint / 32> page{};
  Partition partition(2);
  Partition::Vp& vp = partition.vp(1);

  SECTION("not while the VP has no event flags page") {
    vp.interrupt = make_eventfd();
    CHECK(partition.set_event_flag(1, 5) == std::nullopt);
  }
  SECTION("not without an eventfd, but the flag is kept") {
    vp.event_flags = page.data();
    CHECK(partition.set_event_flag(1, 5) == std::nullopt);
    CHECK(page[0] == 1u << 5);
  }
  SECTION("once until the guest clears it") {
    vp.interrupt = make_eventfd();
    vp.event_flags = page.data();
    CHECK(partition.set_event_flag(1, 33) == vp.interrupt.get());
    CHECK(partition.set_event_flag(1, 33) == std::nullopt);
    CHECK(page[1] == 1u << 1);
    page[1] = 0;
    CHECK(partition.set_event_flag(1, 33) == vp.interrupt.get());
    CHECK(partition.set_event_flag(1, kEventFlagsPerSint - 1) == vp.interrupt.get());
    CHECK(page.back() == 1u << 31);
  }
}
