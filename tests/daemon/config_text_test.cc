#include "daemon/config_text.h"

#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <utility>

#include "tests/catch.h"

namespace vmbusd::daemon {
namespace {

// Every key of every kind of table, with a value that is not its default.
constexpr const char* kAll = R"(control_socket = "control.sock"
socket_group = "users"
worker_user = "worker"
seccomp = "log"

[[partition]]
name = "demo"
socket = "demo.sock"
io_threads = 2
poll_us = 20
nice = 5
heartbeat = false
shutdown = false
timesync = false
kvp = false
vss = false

[[partition.scsi]]
name = "scsi0"
instance = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
channels = 8

[[partition.scsi.disk]]
lun = 0
path = "a \"quoted\"\t\\ and \u007f é.img"
direct = "on"
reservations = "a.reservations"
readonly = true
poll = true
iops = 5000
rate = "1536K"
burst = 0
discard = false
cache = "unsafe"
block_size = 4096
physical_block_size = 8192
vendor = "ACME"
product = "Anvil"
revision = "2.1"
serial = "A\\1"
identity = "6ba7b811-9dad-11d1-80b4-00c04fd430c8"

[[partition.scsi.disk]]
lun = 1
nbd = "nbd+unix:///a%20b?socket=/run/%25.sock"
reconnect_delay = 120

[[partition.scsi.disk]]
lun = 63
backend = "null"
size = "3T"

[[partition.scsi]]
name = "empty"

[[partition.nic]]
name = "tap"
instance = "6ba7b812-9dad-11d1-80b4-00c04fd430c8"
backend = "tap"
tap = "tap0"
queues = 8
mac = "02:1a:4b:00:c3:9d"
mtu = 9000
link_speed_mbps = 40000
check_source_mac = true
monitor = true
friendly_name = "uplink"

[[partition.nic]]
name = "any-queues"
backend = "tap"
tap = "tap1"

[[partition.nic]]
name = "given"
backend = "tap"
fds = [4, 5]

[[partition.nic]]
name = "stream"
backend = "stream"
socket = "passt.sock"

[[partition.nic]]
name = "given-stream"
backend = "stream"
fds = [6]

[[partition.nic]]
name = "null"
backend = "null"
queues = 2
receive_bytes = 1514

[[partition.nic]]
name = "loopback"
backend = "loopback"

[[partition]]
name = "bare"
socket = "/run/bare.sock"
)";

constexpr const char* kDirectory = "/etc/vmbusd";

Config parsed(const std::string& text, const std::string& directory) {
  ParsedConfig parsed = parse_config(text, directory);
  for (const ConfigProblem& problem : parsed.problems) UNSCOPED_INFO(format_problem("f.toml", problem));
  REQUIRE(parsed.problems.empty());
  return std::move(parsed.config);
}

using TableAndKey = std::set<std::string>;  // "partition.scsi.disk.lun"

TableAndKey keys_in(const std::string& text) {
  TableAndKey keys;
  std::istringstream lines(text);
  std::string line;
  std::string table;
  while (std::getline(lines, line)) {
    line.erase(0, line.find_first_not_of(' '));
    if (line.starts_with("[[")) table = line.substr(2, line.find(']') - 2) + ".";
    if (const std::size_t equals = line.find(" = "); equals != std::string::npos)
      keys.insert(table + line.substr(0, equals));
  }
  return keys;
}

// What the reader says that it accepts, asked by a key that it does not.
TableAndKey keys_accepted() {
  std::string text;
  std::istringstream lines(std::string("zzz = 1\n") + kAll);
  for (std::string line; std::getline(lines, line);)
    text += line + (line.starts_with("[[") ? "\nzzz = 1\n" : "\n");
  TableAndKey keys;
  for (const ConfigProblem& problem : parse_config(text, kDirectory).problems) {
    const std::string table = problem.key.substr(0, problem.key.size() - 3);
    std::istringstream words(problem.text.substr(problem.text.find("accepted: ") + 10));
    for (std::string word; std::getline(words >> std::ws, word, ',');) keys.insert(table + word);
  }
  for (const char* const tables : {"partition", "partition.scsi", "partition.scsi.disk", "partition.nic"})
    keys.erase(tables);
  return keys;
}

TEST_CASE("what was written out is read as what it was", "[daemon][config]") {
  const Config config = parsed(kAll, kDirectory);
  const std::string text = to_toml(to_table(config));
  INFO(text);
  // Paths are absolute, so it does not matter where the file is.
  const Config again = parsed(text, "/elsewhere");
  CHECK(to_toml(to_table(again)) == text);
  CHECK(again.partitions[0].definition == config.partitions[0].definition);
  CHECK(again.partitions[0].scsi[0].images[0].path == "/etc/vmbusd/a \"quoted\"\t\\ and \x7f é.img");
  CHECK(again.partitions[0].scsi[0].controller.disks[0].limits.bytes == 1536 * 1024);
  CHECK(again.partitions[0].nics[1].source.any_queues);
}

TEST_CASE("every key that is accepted is written out", "[daemon][config]") {
  const TableAndKey accepted = keys_accepted();
  REQUIRE(accepted.contains("partition.scsi.disk.lun"));
  CHECK(keys_in(to_toml(to_table(parsed(kAll, kDirectory)))) == accepted);
}

TEST_CASE("a table's definition is what it says, not how", "[daemon][config]") {
  const Config terse = parsed("[[partition]]\nname = 'a'\nsocket = 's'\n", "/run");
  const Config wordy = parsed("# a\n[[partition]]\nsocket = '/run/s'\nname = \"a\"\npoll_us = 50\n", "/etc");
  const Config other = parsed("[[partition]]\nname = 'a'\nsocket = 's'\npoll_us = 51\n", "/run");
  CHECK(terse.partitions[0].definition == wordy.partitions[0].definition);
  CHECK(terse.partitions[0].definition != other.partitions[0].definition);
}

}  // namespace
}  // namespace vmbusd::daemon
