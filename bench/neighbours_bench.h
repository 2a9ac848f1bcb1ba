// What guests notice of neighbours that misbehave or are in trouble.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"

namespace vmbusd::bench {

struct NeighboursOptions {
  std::string vmbusd;
  std::uint32_t guests = 21;  // beside the three
  std::uint32_t rounds = 5;
  double seconds = 2;             // of each half of a round
  std::uint32_t think_us = 1000;  // between two commands of a guest's
};

// Guests on one vmbusd, each with a partition and a disk of its own, one command in flight, every byte that
// they read compared. In the first half of each round three more do the same; in the second one of those
// breaks every rule (guest/hostile_child.h), the disk of one gives no answer, and the VMM of one stands still
// with its rings full.
//
// {"calm", "trouble": {"p50_us", "p99_us", "worst_guest_p99_us", "commands"}, "p99_ratio"}: what the guests
// waited for a command in either half. Prints them unless `quiet`. An error where one of the guests lost a
// byte or an answer, where one of the three does not find its disk as it was when its trouble is over, or
// where a worker process ended.
[[nodiscard]] Result<nlohmann::json> measure_neighbours(const NeighboursOptions& options, bool quiet);

}  // namespace vmbusd::bench
