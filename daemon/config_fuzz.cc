// Fuzz target of the configuration file's reader: whatever the text, each problem can be printed on one line
// and names a line that is there, and a configuration without problems keeps the bounds that the rest of the
// daemon builds on, and can be written out and read again.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>

#include "daemon/command_socket.h"
#include "daemon/commands.h"
#include "daemon/config.h"
#include "daemon/config_text.h"
#include "fuzz/fuzz_target.h"

namespace vmbusd::daemon {
namespace {

using fuzz::promise;

void check_problem(const ConfigProblem& problem, std::size_t lines) {
  promise(problem.line >= 1 && problem.line <= lines + 1, "a problem names a line of the file");
  const std::string line = format_problem("f.toml", problem);
  const bool printable = std::none_of(
      line.begin(), line.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
  promise(printable, "a problem is one printable line");
  promise(line.size() < 4096, "a problem is short");
}

void check_controller(const storvsp::ControllerConfig& controller) {
  std::set<std::uint8_t> luns;
  for (const storvsp::DiskConfig& disk : controller.disks) {
    promise(disk.lun < storvsp::kMaxLuns && luns.insert(disk.lun).second, "LUNs are in range, each once");
    promise(disk.vendor.size() <= 8 && disk.product.size() <= 16 && disk.revision.size() <= 4 &&
                disk.serial.size() <= 36,
            "INQUIRY's texts fit");
    const bool null = disk.backend == storvsp::DiskConfig::Backend::kNull;
    promise(null == (disk.size_bytes != 0), "a size for disks without an image only");
  }
  promise(encode(controller).text.size() <= kCommandBytesMax, "a controller fits into one command");
}

void check_config(const Config& config) {
  promise(!config.partitions.empty() || !config.control_socket.empty(), "something is served");
  promise(config.control_socket.empty() || config.control_socket.starts_with('/'),
          "the socket has its place");
  promise(config.partitions.size() <= kPartitionsMax, "partitions are bounded");
  std::set<std::string> names;
  std::set<std::string> sockets;
  for (const PartitionConfig& partition : config.partitions) {
    promise(!partition.name.empty() && names.insert(partition.name).second, "partitions' names differ");
    promise(partition.socket.starts_with('/') && sockets.insert(partition.socket).second, "sockets differ");
    promise(partition.io_threads <= kIoThreadsMax && partition.poll_us <= kPollUsMax &&
                partition.nice <= kNiceMax,
            "numbers are in range");
    std::set<std::string> devices;
    for (const ScsiConfig& scsi : partition.scsi) {
      promise(devices.insert(scsi.controller.name).second, "devices' names differ");
      promise(scsi.images.size() == scsi.controller.disks.size(), "each disk has its image");
      check_controller(scsi.controller);
    }
  }
}

void check_text(const Config& config) {
  const std::string text = to_toml(to_table(config));
  const ParsedConfig again = parse_config(text, "/elsewhere");
  promise(again.problems.empty(), "what was written out is accepted");
  promise(to_toml(to_table(again.config)) == text, "what was written out is read as what it was");
}

}  // namespace
}  // namespace vmbusd::daemon

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmbusd::daemon;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const ParsedConfig parsed = parse_config(text, "/etc/vmbusd");
  const auto lines = static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
  for (const ConfigProblem& problem : parsed.problems) check_problem(problem, lines);
  promise(parsed.problems.size() <= kProblemsMax, "problems are bounded");
  if (parsed.problems.empty()) {
    check_config(parsed.config);
    check_text(parsed.config);
  }
  const ParsedConfig one = parse_partition(text, "/etc/vmbusd");
  for (const ConfigProblem& problem : one.problems) {
    const std::string line = format_problem("f.json", problem);
    promise(problem.line == 0 && line.size() < 4096, "a problem of JSON is short and has no line");
  }
  if (one.problems.empty()) {
    promise(one.config.partitions.size() == 1, "one partition comes");
    check_config(one.config);
    check_text(one.config);
  }
  return 0;
}
