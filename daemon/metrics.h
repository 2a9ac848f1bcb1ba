// The counters of all partitions in the text format that Prometheus reads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "daemon/partition_status.h"

namespace vmbusd::daemon {

struct PartitionSample {
  std::string name;
  bool serving = false;
  bool attached = false;
  std::uint64_t worker_deaths = 0;
  std::optional<PartitionStatus> status;  // empty: the worker does not say
};

[[nodiscard]] std::string metrics_text(const std::vector<PartitionSample>& samples);

}  // namespace vmbusd::daemon
