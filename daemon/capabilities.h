// What this vmbusd can do, for programs that start it.
#pragma once

#include <string>

namespace vmbusd::daemon {

// One JSON object, many lines. Looks at the host for what depends on it.
[[nodiscard]] std::string capabilities();

}  // namespace vmbusd::daemon
