// What open channels cost while nothing happens.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"

namespace vmbusd::bench {

// System calls, context switches and CPU time of a partition worker whose guest has `channels` channels open
// and is silent for `seconds`; and the memory of the worker's own, in KiB: before the channels are open, and
// what they added.
[[nodiscard]] Result<nlohmann::json> measure_idle(const std::string& vmbusd, std::uint32_t channels,
                                                  double seconds);

}  // namespace vmbusd::bench
