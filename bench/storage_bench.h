// A disk of vmbusd's driven by a user-space guest in a process of its own, beside fio on the same file.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/running_host.h"

namespace vmbusd::bench {

struct StorageOptions {
  std::string vmbusd;
  std::string directory = "/var/tmp";  // where the file is made: its file system is what is measured
  bool direct = true;                  // O_DIRECT, for both sides
  bool file = true;                    // measures that back end, and fio
  bool null = true;                    // likewise
  std::uint32_t rounds = 5;
  double seconds = 1;  // of each run
  std::uint32_t halt_poll_us = kHaltPollUs;
  std::uint32_t poll_us = kPollUs;
  std::uint32_t channels = 1;  // 1..4, each on a VP and a thread of its own; fio has as many jobs
  std::vector<std::uint32_t> block_bytes = {4096, 131072};
  std::vector<std::uint32_t> depths = {1, 32, 128};
};

// Rows of {"backend", "bs", "qd", ...}; prints each as it comes unless `quiet`.
[[nodiscard]] Result<nlohmann::json> measure_storage(const StorageOptions& options, bool quiet);

}  // namespace vmbusd::bench
