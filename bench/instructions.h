// Instructions per operation, as callgrind counts them: they repeat to within a few of a thousand, whatever
// else the machine does.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/result.h"

namespace vmbusd::bench {

using InstructionTable = std::map<std::string, std::uint64_t>;

// Runs this program under valgrind, which is to call run_operations(). Errc::kUnsupported where there is no
// valgrind.
[[nodiscard]] Result<InstructionTable> count_instructions();
// Misses of a first-level data cache as large as this machine's, which callgrind simulates for both ends on
// one thread: lines that guest and host hand each other across processors are not among them.
struct Misses {
  double reads = 0;
  double writes = 0;
};
using MissTable = std::map<std::string, Misses>;
[[nodiscard]] Result<MissTable> count_misses();
// What runs there: each operation with two counts, so that the difference holds no set-up.
[[nodiscard]] Result<void> run_operations();

// A table of lines "name instructions"; '#' begins a comment.
[[nodiscard]] Result<InstructionTable> read_table(const std::string& path);
[[nodiscard]] Result<void> write_table(const std::string& path, const InstructionTable& table);

// What a count may grow by before it is taken for a regression.
inline constexpr std::uint64_t kGrowthPercentMax = 5;
// Whether every operation is in both tables, and has not grown. Says on standard output what is wrong.
[[nodiscard]] bool check_table(const InstructionTable& measured, const InstructionTable& expected);

}  // namespace vmbusd::bench
