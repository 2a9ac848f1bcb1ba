// The command line of vmbus-vmm.
#pragma once

#include <optional>
#include <string_view>
#include <variant>

#include "vmm/vm.h"

namespace vmbusd::vmm {

struct Options {
  VmConfig vm;
  bool verbose = false;
};

// Parses a size such as "512M" or "4G"; the units are K, M, G, T, powers of 1024, and are needed. Empty where
// it is anything else or overflows.
[[nodiscard]] std::optional<std::uint64_t> parse_size(std::string_view text);

// Either the options, or what to exit with: then help, version or error have been printed.
[[nodiscard]] std::variant<Options, ExitStatus> parse_options(int argc, const char* const* argv);

}  // namespace vmbusd::vmm
