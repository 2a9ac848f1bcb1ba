#include "io/turn_taking.h"

#include "tests/catch.h"

using vmbusd::io::TurnTaking;

namespace {

// How many of so many sleeps left the others alone, where each comes after `alone` or `at_once` SQEs.
std::uint32_t left_alone(TurnTaking& turns, std::uint32_t sleeps, std::uint32_t alone,
                         std::uint32_t at_once) {
  std::uint32_t count = 0;
  for (std::uint32_t i = 0; i < sleeps; ++i) {
    count += turns.lets_others_go_on();
    turns.sleeps(turns.lets_others_go_on() ? alone : at_once);
  }
  return count;
}

}  // namespace

TEST_CASE("a guest that sends several requests is left to go on", "[io]") {
  TurnTaking turns;
  CHECK(left_alone(turns, 10'000, TurnTaking::kSeveral, 1) == 10'000);
}

TEST_CASE("a guest that waits for each answer is served at once, but for trials", "[io]") {
  TurnTaking turns;
  constexpr std::uint32_t kCycle = TurnTaking::kTrial + TurnTaking::kUntilTrial;
  CHECK(left_alone(turns, 10 * kCycle, TurnTaking::kSeveral - 1, 1) == 10 * TurnTaking::kTrial);
}

TEST_CASE("what is done at once tells nothing", "[io]") {
  TurnTaking turns;
  constexpr std::uint32_t kCycle = TurnTaking::kTrial + TurnTaking::kUntilTrial;
  CHECK(left_alone(turns, 10 * kCycle, 1, 100) == 10 * TurnTaking::kTrial);
}

TEST_CASE("a guest that changes its ways is found out by the next trial", "[io]") {
  TurnTaking turns;
  left_alone(turns, TurnTaking::kTrial, 1, 1);
  REQUIRE_FALSE(turns.lets_others_go_on());
  CHECK(left_alone(turns, TurnTaking::kUntilTrial, 32, 2) == 0);
  CHECK(left_alone(turns, 1000, 32, 2) == 1000);
}
