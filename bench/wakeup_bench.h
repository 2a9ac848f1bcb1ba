// How long it takes until the other side's handler runs.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"

namespace vmbusd::bench {

struct WakeupOptions {
  std::string vmbusd;
  std::uint32_t rounds = 5;
  std::uint32_t requests = 1000;  // of each kind in a round
};

// Rows of {"what", "us"}: the way there and back of a request that needs no medium, with both sides polling;
// and what a doorbell to a sleeping host, and an interrupt to a sleeping guest, add. Prints each as it comes
// unless `quiet`.
[[nodiscard]] Result<nlohmann::json> measure_wakeup(const WakeupOptions& options, bool quiet);

}  // namespace vmbusd::bench
