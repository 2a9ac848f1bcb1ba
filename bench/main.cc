// vmbus-bench: measures vmbusd's data path.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "base/log.h"
#include "bench/instructions.h"
#include "bench/operations.h"

namespace vmbusd::bench {
namespace {

constexpr int kSkipped = 77;  // as meson takes it

int report(const Error& error) {
  fmt::print(stderr, "vmbus-bench: {}\n", describe(error));
  return error.code == Errc::kUnsupported ? kSkipped : 1;
}

struct InstructionsOptions {
  std::string check;
  std::string write;
  bool json = false;
};

int instructions(const InstructionsOptions& options) {
  const Result<InstructionTable> table = count_instructions();
  if (!table) return report(table.error());
  if (options.json) {
    fmt::print("{}\n", nlohmann::json(*table).dump(2));
  } else {
    for (const Operation& operation : operations()) {
      fmt::print("{:24} {:6}  {}\n", operation.name, table->at(operation.name), operation.what);
    }
  }
  if (!options.write.empty()) {
    if (const Result<void> written = write_table(options.write, *table); !written) {
      return report(written.error());
    }
  }
  if (options.check.empty()) return 0;
  const Result<InstructionTable> expected = read_table(options.check);
  if (!expected) return report(expected.error());
  return check_table(*table, *expected) ? 0 : 1;
}

int main(int argc, char** argv) {
  CLI::App app("Measures vmbusd's data path.");
  app.require_subcommand(1);

  InstructionsOptions instruction_options;
  CLI::App* const instruction_command = app.add_subcommand(
      "instructions", "User-space instructions per operation, counted by valgrind's callgrind");
  instruction_command->add_option("--check", instruction_options.check,
                                  "Fail where an operation takes over 5 % more than this table says");
  instruction_command->add_option("--write", instruction_options.write, "Write the table to this file");
  instruction_command->add_flag("--json", instruction_options.json, "Print JSON");
  CLI::App* const run_command =
      app.add_subcommand("run-operations", "What `instructions` runs under valgrind")->group("");

  CLI11_PARSE(app, argc, argv);
  if (instruction_command->parsed()) return instructions(instruction_options);
  if (run_command->parsed()) {
    const Result<void> run = run_operations();
    return run ? 0 : report(run.error());
  }
  return 0;
}

}  // namespace
}  // namespace vmbusd::bench

int main(int argc, char** argv) {
  return vmbusd::bench::main(argc, argv);
}
