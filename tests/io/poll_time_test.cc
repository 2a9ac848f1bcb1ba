#include "io/poll_time.h"

#include <vector>

#include "tests/catch.h"

using namespace vmbusd::io;
using namespace std::chrono_literals;

TEST_CASE("the poll time follows what polling would have found", "[io]") {
  using Times = std::vector<PollTime::Duration>;
  struct Case {
    const char* rule;
    PollTime::Duration max;
    Times since_work;  // of each wake-up
    Times expected;    // poll time after each
  };
  // The longest pause that polling could have spanned is max + kWakeUpCost = 75 us.
  const Case cases[] = {
      {"none before anything happened", 50us, {}, {}},
      {"grows by doubling to its bound",
       50us,
       {1us, 1us, 1us, 1us, 1us, 1us},
       {5us, 10us, 20us, 40us, 50us, 50us}},
      {"the wake-up's own time does not count", 50us, {75us, 76us}, {5us, 0us}},
      {"shrinks by halves to none",
       50us,
       {0us, 0us, 0us, 0us, 1s, 1s, 1s, 1s},
       {5us, 10us, 20us, 40us, 20us, 10us, 5us, 0us}},
      {"a guest that comes seldom is never polled for", 50us, {1ms, 1ms, 1ms}, {0us, 0us, 0us}},
      {"first wake-up ever", 50us, {1000h}, {0us}},
      {"polling that is switched off stays off", 0us, {0us, 1us, 25us}, {0us, 0us, 0us}},
      {"a bound below the step", 3us, {1us, 1us, 1ms}, {3us, 3us, 0us}},
  };
  for (const Case& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      PollTime time(c.max);
      CHECK(time.now() == 0us);
      Times seen;
      for (const PollTime::Duration since_work : c.since_work) {
        time.woke(since_work);
        seen.push_back(time.now());
      }
      CHECK(seen == c.expected);
    }
  }
}
