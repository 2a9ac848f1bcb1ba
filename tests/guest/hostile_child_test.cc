// A short run of the hostile child, the same attacks in the same order each time. tools/hostile runs it for
// longer and with other seeds.
#include "guest/hostile_child.h"
#include "guest/bystander.h"
#include "tests/guest/host.h"

namespace vmbusd::guest {
namespace {

constexpr std::chrono::seconds kRunTime{8};
constexpr std::uint32_t kRoundsMax = 150;  // so that fast machines need not run to the time's end

TEST_CASE("a child that lies in every way takes nothing down but itself", "[guest][hostile]") {
  Host host("[[partition.nic]]\nname = 'nic0'\nbackend = 'loopback'\n");
  auto bystander = must(Bystander::attach(host.socket("two"), 1));
  HostileChild hostile({.socket_path = host.socket("one"), .seed = 20261123});
  const Clock::time_point end = Clock::now() + kRunTime;
  for (std::uint32_t round = 0; round < kRoundsMax && Clock::now() < end; ++round) {
    INFO("round " << round);
    must(hostile.round());
    must(bystander->check());
  }
  hostile.leave();
  const auto child = host.attach("one");
  Driver driver(*child);
  CHECK(must(driver.disk->capacity()).blocks * 512 == kImageBytes);
}

}  // namespace
}  // namespace vmbusd::guest
