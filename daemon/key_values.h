// Tables of the configuration on a command line.
#pragma once

#include <string>
#include <vector>

namespace vmbusd::daemon {

struct KeyValues {
  std::string json;     // an object, to be used only where there is no problem
  std::string problem;  // for the operator
};

// "KEY=VALUE" words, such as name=g1 scsi.name=scsi0 scsi.disk.lun=0 scsi.disk.path=/a. A key with dots is
// that of the last table that was begun; one that this table has already begins the next table, so order
// matters as it does in TOML. Values that look like numbers or booleans are such; anything else, and what is
// in double quotes, is text. What keys and values there are is vmbusd's to say.
[[nodiscard]] KeyValues parse_key_values(const std::vector<std::string>& words);

}  // namespace vmbusd::daemon
