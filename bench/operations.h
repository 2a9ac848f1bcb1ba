// The operations whose instructions are counted: what the data path does once for each packet or I/O.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/result.h"

namespace vmbusd::bench {

struct Operation {
  const char* name;  // as in the table
  const char* what;
  // Does it `count` times, a multiple of kOperationBatch, counting only what is vmbusd's; what comes before
  // the first counts too.
  Result<void> (*run)(std::uint64_t count);
};

inline constexpr std::uint64_t kOperationBatch = 32;

[[nodiscard]] std::span<const Operation> operations();

}  // namespace vmbusd::bench
