// Writes a configuration out, as its file has it: what the reader makes of the text is what was written.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "daemon/config.h"

namespace vmbusd::daemon {

// A table with its keys in the order of vmbusd.toml(5), tables of its own last. Keys whose value is the
// default are left out, paths are absolute.
using ConfigTable = nlohmann::ordered_json;

[[nodiscard]] ConfigTable to_table(const Config& config);
[[nodiscard]] ConfigTable to_table(const PartitionConfig& partition);
[[nodiscard]] ConfigTable to_table(const ScsiConfig& scsi);
[[nodiscard]] ConfigTable to_table(const storvsp::DiskConfig& disk, const ImageConfig& image);
[[nodiscard]] ConfigTable to_table(const netvsp::NicConfig& nic, const NicSource& source);

// Of the whole file. Bytes of paths that are no UTF-8, which TOML cannot have, are replaced.
[[nodiscard]] std::string to_toml(const ConfigTable& root);

}  // namespace vmbusd::daemon
