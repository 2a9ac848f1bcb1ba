// vmbus-bench: measures vmbusd's data path.

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/log.h"
#include "bench/idle_bench.h"
#include "bench/instructions.h"
#include "bench/neighbours_bench.h"
#include "bench/network_bench.h"
#include "bench/operations.h"
#include "bench/storage_bench.h"
#include "bench/wakeup_bench.h"

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
  bool caches = false;
};

int misses(bool json) {
  const Result<MissTable> table = count_misses();
  if (!table) return report(table.error());
  nlohmann::json rows;
  for (const Operation& operation : operations()) {
    const Misses& each = table->at(operation.name);
    rows[operation.name] = {{"read_misses", each.reads}, {"write_misses", each.writes}};
    if (!json)
      fmt::print("{:24} {:6.2f} {:6.2f}  {}\n", operation.name, each.reads, each.writes, operation.what);
  }
  if (json) fmt::print("{}\n", rows.dump(2));
  return 0;
}

int instructions(const InstructionsOptions& options, bool json) {
  if (options.caches) return misses(json);
  const Result<InstructionTable> table = count_instructions();
  if (!table) return report(table.error());
  if (json) {
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

int ring(const std::string& program, const std::string& filter, std::uint32_t repetitions, bool json) {
  std::vector<std::string> words = {program};
  if (!filter.empty()) words.push_back("--benchmark_filter=" + filter);
  if (json) words.emplace_back("--benchmark_format=json");
  if (repetitions > 1) {
    words.push_back(fmt::format("--benchmark_repetitions={}", repetitions));
    words.emplace_back("--benchmark_enable_random_interleaving=true");
    words.emplace_back("--benchmark_report_aggregates_only=true");
  }
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  return benchmark::RunSpecifiedBenchmarks() == 0 ? 1 : 0;
}

int print(const Result<nlohmann::json>& rows, bool json) {
  if (!rows) return report(rows.error());
  if (json) fmt::print("{}\n", rows->dump(2));
  return 0;
}

// The one of the same build, else the one in PATH.
std::string default_vmbusd() {
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe");
  const std::filesystem::path built = self.parent_path().parent_path() / "daemon" / "vmbusd";
  return std::filesystem::exists(built) ? built.string() : "vmbusd";
}

int main(int argc, char** argv) {
  CLI::App app("Measures vmbusd's data path.");
  app.require_subcommand(1);
  bool json = false;
  std::string vmbusd = default_vmbusd();
  const auto common = [&](CLI::App* command) {
    command->add_flag("--json", json, "Print JSON");
    return command;
  };
  const auto with_daemon = [&](CLI::App* command) {
    command->add_option("--vmbusd", vmbusd, "The vmbusd to measure")->capture_default_str();
    return common(command);
  };

  const auto halt_poll = [](CLI::App* command, std::uint32_t& us) {
    command
        ->add_option("--halt-poll", us, "Microseconds that the guest's halted processor polls, as KVM's does")
        ->capture_default_str();
  };

  const auto poll = [](CLI::App* command, std::uint32_t& us) {
    command->add_option("--poll-us", us, "poll_us of the partition")->capture_default_str();
  };

  InstructionsOptions instruction_options;
  CLI::App* const instruction_command = common(
      app.add_subcommand("instructions", "User-space instructions per operation, counted by callgrind"));
  instruction_command->add_option("--check", instruction_options.check,
                                  "Fail where an operation takes over 5 % more than this table says");
  instruction_command->add_option("--write", instruction_options.write, "Write the table to this file");
  instruction_command
      ->add_flag("--caches", instruction_options.caches,
                 "Misses of a simulated first-level data cache instead")
      ->excludes("--check")
      ->excludes("--write");
  CLI::App* const run_command =
      app.add_subcommand("run-operations", "What `instructions` runs under valgrind")->group("");

  std::string filter;
  std::uint32_t repetitions = 1;
  CLI::App* const ring_command = common(app.add_subcommand("ring", "Time of the ring alone"));
  ring_command->add_option("--filter", filter, "Only benchmarks that match this expression");
  ring_command->add_option("--repetitions", repetitions, "Repeat interleaved, and print medians");

  StorageOptions storage;
  CLI::App* const storage_command = with_daemon(app.add_subcommand(
      "storage", "Reads of a user-space guest's, beside fio with io_uring on the same file"));
  storage_command->add_option("--directory", storage.directory, "Where the file is made")
      ->capture_default_str();
  CLI::Option* const no_file =
      storage_command->add_flag("!--no-file", storage.file, "Without the file and fio");
  storage_command->add_flag("!--no-null", storage.null, "Without the null back end")->excludes(no_file);
  storage_command->add_flag("!--cached", storage.direct, "Without O_DIRECT, for file systems that lack it");
  storage_command->add_option("--rounds", storage.rounds, "Interleaved runs of each")->capture_default_str();
  storage_command->add_option("--seconds", storage.seconds, "Of each run")->capture_default_str();
  halt_poll(storage_command, storage.halt_poll_us);
  poll(storage_command, storage.poll_us);
  storage_command
      ->add_option("--channels", storage.channels, "Each on a processor of the guest's, and fio's jobs")
      ->check(CLI::Range(1, 4))
      ->capture_default_str();
  storage_command->add_option("--bs", storage.block_bytes, "Bytes of a read, multiples of 4096")
      ->delimiter(',');
  storage_command->add_option("--qd", storage.depths, "Reads in flight")->delimiter(',');

  NetworkOptions network;
  CLI::App* const network_command =
      with_daemon(app.add_subcommand("network", "Frames of a user-space guest's, without a medium"));
  network_command->add_option("--rounds", network.rounds, "Runs of each")->capture_default_str();
  network_command->add_option("--seconds", network.seconds, "Of each run")->capture_default_str();
  halt_poll(network_command, network.halt_poll_us);
  poll(network_command, network.poll_us);
  network_command->add_option("--channels", network.channels, "Each on a processor of the guest's")
      ->check(CLI::Range(1, 4))
      ->capture_default_str();

  WakeupOptions wakeup;
  CLI::App* const wakeup_command =
      with_daemon(app.add_subcommand("wakeup", "How long a doorbell and an interrupt take to a sleeper"));
  wakeup_command->add_option("--rounds", wakeup.rounds, "Interleaved runs of each")->capture_default_str();
  wakeup_command->add_option("--requests", wakeup.requests, "In each run")->capture_default_str();

  NeighboursOptions neighbours;
  CLI::App* const neighbours_command = with_daemon(app.add_subcommand(
      "neighbours",
      "What guests notice of a hostile one, a dead disk and a VMM that stands still beside them"));
  neighbours_command->add_option("--guests", neighbours.guests, "Beside those three")->capture_default_str();
  neighbours_command->add_option("--rounds", neighbours.rounds, "Of calm and trouble")->capture_default_str();
  neighbours_command->add_option("--seconds", neighbours.seconds, "Of each half")->capture_default_str();
  neighbours_command
      ->add_option("--think", neighbours.think_us, "Microseconds between two commands of a guest's")
      ->capture_default_str();

  std::uint32_t channels = 16;
  double seconds = 5;
  CLI::App* const idle_command =
      with_daemon(app.add_subcommand("idle", "What open channels cost while nothing happens"));
  idle_command->add_option("--channels", channels, "Open ones")->capture_default_str();
  idle_command->add_option("--seconds", seconds, "To look")->capture_default_str();

  CLI11_PARSE(app, argc, argv);
  if (instruction_command->parsed()) return instructions(instruction_options, json);
  if (run_command->parsed()) {
    const Result<void> run = run_operations();
    return run ? 0 : report(run.error());
  }
  if (ring_command->parsed()) return ring(argv[0], filter, repetitions, json);
  storage.vmbusd = network.vmbusd = wakeup.vmbusd = neighbours.vmbusd = vmbusd;
  if (storage_command->parsed()) return print(measure_storage(storage, json), json);
  if (network_command->parsed()) return print(measure_network(network, json), json);
  if (wakeup_command->parsed()) return print(measure_wakeup(wakeup, json), json);
  if (neighbours_command->parsed()) return print(measure_neighbours(neighbours, json), json);
  const Result<nlohmann::json> idle = measure_idle(vmbusd, channels, seconds);
  if (idle && !json) {
    fmt::print("{} open channels, {} s: {} system calls, {} context switches, {} s of CPU\n",
               (*idle)["channels"].dump(), seconds, (*idle)["system_calls"].dump(),
               (*idle)["context_switches"].dump(), (*idle)["cpu_seconds"].dump());
    fmt::print("memory of the worker's own: {} KiB, and {} KiB for these channels\n",
               (*idle)["partition_kib"].dump(), (*idle)["channels_kib"].dump());
  }
  return print(idle, json);
}

}  // namespace
}  // namespace vmbusd::bench

int main(int argc, char** argv) {
  return vmbusd::bench::main(argc, argv);
}
