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

// Rows of {"what", "us", "host_sleeps_per_request", "guest_sleeps_per_request"}: the way there and back of a
// request that needs no medium, with both sides polling; and what a doorbell to a sleeping host, and an
// interrupt to a sleeping guest, add. Each side has a processor of its own; sleeps are counted, and "us" is
// null, with "refused" saying why, where those who were to sleep did not, or others did. Prints each row
// unless `quiet`. Leaves the calling thread on its processor. Errc::kUnsupported where there is but one.
[[nodiscard]] Result<nlohmann::json> measure_wakeup(const WakeupOptions& options, bool quiet);

}  // namespace vmbusd::bench
