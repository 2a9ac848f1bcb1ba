#include "bench/instructions.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include <fmt/format.h>

#include "bench/counted.h"
#include "bench/operations.h"
#include "bench/running_host.h"

namespace vmbusd::bench {
namespace {

constexpr std::uint64_t kFewer = 8 * kOperationBatch;
constexpr std::uint64_t kMore = 40 * kOperationBatch;

// The name of a count in callgrind's output.
std::string count_name(const Operation& operation, std::uint64_t count) {
  return fmt::format("{}:{}", operation.name, count);
}

// What callgrind writes of one count: its events, in the order of kEvents where it simulates caches.
using Totals = std::map<std::string, std::vector<std::uint64_t>>;
constexpr std::size_t kInstructions = 0;
constexpr std::size_t kReadMisses = 4;  // of the first-level data cache
constexpr std::size_t kWriteMisses = 5;
constexpr const char* kEvents = "events: Ir Dr Dw I1mr D1mr D1mw ";

Result<void> run_callgrind(const std::string& output, bool caches) {
  const std::string out_option = "--callgrind-out-file=" + output;
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  const std::vector<const char*> words = {"valgrind",
                                          "-q",
                                          "--tool=callgrind",
                                          "--collect-atstart=no",
                                          "--combine-dumps=yes",
                                          caches ? "--cache-sim=yes" : "--cache-sim=no",
                                          out_option.c_str(),
                                          self.c_str(),
                                          "run-operations",
                                          nullptr};
  const pid_t child = ::fork();
  if (child < 0) return fail_os(errno, "cannot start a process");
  if (child == 0) {
    ::execvp(words[0], const_cast<char* const*>(words.data()));
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return fail_os(errno, "cannot wait for a process");
  }
  if (!WIFEXITED(status)) return fail(Errc::kOs, "valgrind was killed");
  if (WEXITSTATUS(status) == 127) return fail(Errc::kUnsupported, "there is no valgrind");
  if (WEXITSTATUS(status) != 0) return fail(Errc::kOs, "the operations failed under valgrind");
  return {};
}

// The totals of callgrind's dumps, by the name that write_count() gave each.
Result<Totals> read_dumps(const std::string& path, bool caches) {
  std::ifstream file(path);
  Totals totals;
  bool events_known = !caches;
  std::string name;
  const std::string name_prefix = "desc: Trigger: Client Request: ";
  const std::string total_prefix = "totals: ";
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name_prefix)) name = line.substr(name_prefix.size());
    if (line.starts_with(kEvents)) events_known = true;
    if (line.starts_with(total_prefix) && !name.empty()) {
      std::istringstream words(line.substr(total_prefix.size()));
      // Events at the end that never happened are left out.
      std::vector<std::uint64_t>& counts = totals[name];
      for (std::uint64_t count = 0; words >> count;) counts.push_back(count);
      counts.resize(std::max(counts.size(), kWriteMisses + 1));
      name.clear();
    }
  }
  if (totals.empty() || !events_known) return fail(Errc::kOs, "callgrind wrote no counts");
  return totals;
}

// Runs all operations; there are both counts of each.
Result<Totals> count(bool caches) {
  const TemporaryDirectory directory("/tmp");
  if (directory.path().empty()) return fail_os(errno, "cannot make a temporary folder");
  const std::string output = directory.path() + "/callgrind.out";
  VMBUSD_CHECK(run_callgrind(output, caches));
  VMBUSD_TRY(Totals totals, read_dumps(output, caches));
  for (const Operation& operation : operations()) {
    const auto fewer = totals.find(count_name(operation, kFewer));
    const auto more = totals.find(count_name(operation, kMore));
    if (fewer == totals.end() || more == totals.end() ||
        more->second[kInstructions] < fewer->second[kInstructions]) {
      return fail(Errc::kOs, "callgrind's counts are not what was asked for");
    }
  }
  return totals;
}

}  // namespace

Result<void> run_operations() {
  for (const Operation& operation : operations()) {
    for (const std::uint64_t count : {kFewer, kMore}) {
      VMBUSD_CHECK(operation.run(count));
      write_count(count_name(operation, count).c_str());
    }
  }
  return {};
}

Result<InstructionTable> count_instructions() {
  VMBUSD_TRY(const Totals totals, count(false));
  InstructionTable table;
  for (const Operation& operation : operations()) {
    const auto& fewer = totals.at(count_name(operation, kFewer));
    const auto& more = totals.at(count_name(operation, kMore));
    table[operation.name] = (more[kInstructions] - fewer[kInstructions]) / (kMore - kFewer);
  }
  return table;
}

Result<MissTable> count_misses() {
  VMBUSD_TRY(const Totals totals, count(true));
  MissTable table;
  for (const Operation& operation : operations()) {
    const auto& fewer = totals.at(count_name(operation, kFewer));
    const auto& more = totals.at(count_name(operation, kMore));
    const auto each = [&](std::size_t event) {
      return (static_cast<double>(more[event]) - static_cast<double>(fewer[event])) / (kMore - kFewer);
    };
    table[operation.name] = {each(kReadMisses), each(kWriteMisses)};
  }
  return table;
}

Result<InstructionTable> read_table(const std::string& path) {
  std::ifstream file(path);
  if (!file) return fail_os(errno, "cannot read the table of instructions");
  InstructionTable table;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string name;
    std::uint64_t count = 0;
    if (!(words >> name)) continue;
    if (!(words >> count))
      return fail(Errc::kConfig, "the table of instructions has a line without a number");
    table[name] = count;
  }
  return table;
}

Result<void> write_table(const std::string& path, const InstructionTable& table) {
  std::ofstream file(path);
  file << "# User-space instructions per operation, by `vmbus-bench instructions --write FILE` (g++ 12, "
          "-O2).\n"
          "# A test fails when one has grown by more than 5 %; write the table anew when one has shrunk.\n";
  for (const Operation& operation : operations()) {
    file << fmt::format("{:24} {:6}  # {}\n", operation.name, table.at(operation.name), operation.what);
  }
  if (!file.flush()) return fail_os(errno, "cannot write the table of instructions");
  return {};
}

bool check_table(const InstructionTable& measured, const InstructionTable& expected) {
  bool good = true;
  for (const auto& [name, count] : measured) {
    const auto found = expected.find(name);
    if (found == expected.end()) {
      fmt::print("{} is not in the table\n", name);
      good = false;
    } else if (count * 100 > found->second * (100 + kGrowthPercentMax)) {
      fmt::print("{} has grown from {} to {} instructions\n", name, found->second, count);
      good = false;
    }
  }
  for (const auto& [name, count] : expected) {
    if (measured.contains(name)) continue;
    fmt::print("{} is in the table, but is no operation\n", name);
    good = false;
  }
  return good;
}

}  // namespace vmbusd::bench
