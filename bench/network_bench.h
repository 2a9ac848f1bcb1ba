// A NIC of vmbusd's driven by a user-space guest in a process of its own.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"
#include "bench/running_host.h"

namespace vmbusd::bench {

struct NetworkOptions {
  std::string vmbusd;
  std::uint32_t rounds = 5;
  double seconds = 1;  // of each run
  std::uint32_t halt_poll_us = kHaltPollUs;
  std::uint32_t poll_us = kPollUs;
  std::uint32_t channels = 1;  // 1..4, each on a VP and a thread of its own
};

// Frames per second: transmit, receive, echo, 64 B and 1514 B, and large sends. Prints each row as it comes
// unless `quiet`.
[[nodiscard]] Result<nlohmann::json> measure_network(const NetworkOptions& options, bool quiet);

}  // namespace vmbusd::bench
