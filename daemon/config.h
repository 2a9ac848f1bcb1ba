// The configuration file of vmbusd: what it says, and what is wrong with it. vmbusd.toml(5) is its manual.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "daemon/nbd_address.h"
#include "daemon/sandbox.h"
#include "devices/integration/integration.h"
#include "netvsp/nic.h"
#include "storvsp/controller.h"

namespace vmbusd::daemon {

inline constexpr std::size_t kConfigFileBytesMax = 1
                                                   << 20;  // thousands of disks; guards against a wrong path
inline constexpr std::size_t kPartitionsMax = 256;         // one worker process each
inline constexpr std::size_t kDevicesMax = 64;  // per partition; each is at least one VMBus channel
inline constexpr std::uint32_t kIoThreadsMax = 64;
inline constexpr std::uint32_t kPollUsMax = 10'000;
inline constexpr std::uint32_t kPollUsDefault = 50;
inline constexpr std::uint32_t kNiceMax = 19;
inline constexpr std::uint32_t kDiskOperationsMax = 100'000'000;  // a second
inline constexpr std::uint32_t kBurstMsMax = 10'000;
inline constexpr std::size_t kProblemsMax = 100;  // reported for one file

enum class DirectIo : std::uint8_t {
  kAuto,  // page cache only where the file system refuses O_DIRECT
  kOn,
  kOff,
};

// What is behind one disk.
struct ImageConfig {
  std::uint32_t line = 0;  // where its table begins in the file, for problems that show later; so below
  std::string definition;  // what its table says, as JSON, without its limits: equal where nothing else has
                           // changed; so below
  bool plugged = false;    // it came at run time, and no file has it; so below
  std::string path;        // absolute; empty for a disk without an image
  DirectIo direct = DirectIo::kAuto;
  std::string reservations;  // absolute path of the file that keeps them; empty: none
  NbdAddress nbd;            // DiskConfig::Backend::kNbd only
};

struct ScsiConfig {
  std::uint32_t line = 0;
  std::string definition;  // without its disks
  bool plugged = false;
  storvsp::ControllerConfig controller;  // channels 0: as many as the partition has I/O threads
  std::vector<ImageConfig> images;  // images[i] is behind controller.disks[i], which has no descriptor yet
};

// What is behind one NIC; which of them, netvsp::NicConfig::backend says.
struct NicSource {
  std::string tap;          // kTap: interface name; made where it does not exist
  bool any_queues = false;  // kTap: nic.queues is not asked for; an interface with a single queue will do
  std::string socket;       // kStream: absolute path of the peer's listening Unix socket
  std::vector<int> fds;     // kTap, kStream: in place of these, descriptors that vmbusd was started with
};

struct NicConfig {
  std::uint32_t line = 0;
  std::string definition;
  bool plugged = false;
  netvsp::NicConfig nic;  // without descriptors yet
  NicSource source;
};

struct PartitionConfig {
  std::uint32_t line = 0;
  std::string definition;  // without its devices
  std::string name;
  std::string socket;            // absolute
  std::uint32_t io_threads = 0;  // 0: chosen by the host's CPUs
  std::uint32_t poll_us = kPollUsDefault;
  std::uint32_t nice = 0;  // of the worker process, to kNiceMax; 0: vmbusd's own
  integration::Config integration;
  std::vector<ScsiConfig> scsi;
  std::vector<NicConfig> nics;
};

struct Config {
  std::string control_socket;          // absolute; empty: none
  std::string socket_group;            // whose members may use it too; empty: none
  std::string worker_user = "nobody";  // whom workers become where vmbusd is root
  SeccompAction seccomp = SeccompAction::kKill;
  std::vector<PartitionConfig> partitions;
};

struct ConfigProblem {
  std::uint32_t line;  // from 1; 0: the file as a whole
  std::string key;     // "partition.scsi.disk.lun"; empty for problems of syntax
  std::string text;    // one line, what is wrong and what is accepted
};

struct ParsedConfig {
  Config config;  // to be used only where `problems` is empty
  std::vector<ConfigProblem> problems;
};

// Everything that the text alone can tell, as many problems as there are (up to kProblemsMax), in the order
// of lines. Relative paths are taken from `directory`.
[[nodiscard]] ParsedConfig parse_config(std::string_view text, std::string_view directory);

// One partition as JSON, an object with the keys of a [[partition]] table, for those that come at run time;
// `config` has just that one then. Nothing has a line.
[[nodiscard]] ParsedConfig parse_partition(std::string_view json, std::string_view directory);

// The same for a device of a partition that is there: `json` has the keys of a table [[partition.scsi]],
// [[partition.nic]], or [[partition.scsi.disk]] of `controller`. `config` has one partition then, with it
// alone.
[[nodiscard]] ParsedConfig parse_controller(std::string_view json, const std::string& partition,
                                            std::string_view directory);
[[nodiscard]] ParsedConfig parse_nic(std::string_view json, const std::string& partition,
                                     std::string_view directory);
[[nodiscard]] ParsedConfig parse_disk(std::string_view json, const std::string& partition,
                                      const std::string& controller, std::string_view directory);
// What can change of a disk while its guest uses it: `json` has some of the keys iops, rate and burst; those
// it has not keep their value in `limits`. iops = 0 and rate = 0 take a limit away.
[[nodiscard]] std::vector<ConfigProblem> parse_limits(std::string_view json, storvsp::DiskLimits& limits);
// A number for what a device is, of its definition and what else tells it from others; never 0.
[[nodiscard]] std::uint64_t incarnation_of(std::string_view text);
// "10G" as bytes; empty where it is none or out of bounds.
[[nodiscard]] std::optional<std::uint64_t> parse_size(std::string_view text);

// What the host says to it, without opening an image or needing a privilege: files that do not exist or are
// of the wrong kind, sockets' directories, one image behind two disks. What cannot be seen for want of
// permission is taken to be right.
[[nodiscard]] std::vector<ConfigProblem> check_host(const Config& config);

// The file's text; error texts are for "cannot read FILE: ...".
[[nodiscard]] Result<std::string> read_config_file(const std::string& path);

// All of the above: reads, parses and checks a file. Relative paths in it are taken from its directory.
[[nodiscard]] ParsedConfig load_config(const std::string& path);
// Of a file that exists; absolute, without symbolic links.
[[nodiscard]] std::string directory_of(const std::string& path);

// "FILE:LINE: KEY: TEXT", without what is empty or 0.
[[nodiscard]] std::string format_problem(std::string_view file, const ConfigProblem& problem);

}  // namespace vmbusd::daemon
