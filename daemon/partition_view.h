// A partition as clients of the control API see it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "daemon/config_text.h"
#include "daemon/partition_supervisor.h"

namespace vmbusd::daemon {

// What the supervisor knows by itself, and how the guest is. `status`: nullptr where the worker does not say.
[[nodiscard]] nlohmann::json partition_summary(const PartitionSupervisor& partition,
                                               const PartitionStatus* status);
// That, and its devices down to their channels' rings.
[[nodiscard]] nlohmann::json partition_tree(const PartitionSupervisor& partition,
                                            const PartitionStatus* status);

// Its table of the configuration file, as it is now.
[[nodiscard]] ConfigTable partition_table(const PartitionSupervisor& partition);

// A client's text as it may stand in an answer.
[[nodiscard]] std::string shown(std::string_view text);

}  // namespace vmbusd::daemon
