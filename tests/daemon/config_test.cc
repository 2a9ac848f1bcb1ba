#include "daemon/config.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/temporary_directory.h"
#include "tests/catch.h"

namespace vmbusd::daemon {
namespace {

std::vector<std::string> lines_of(const std::vector<ConfigProblem>& problems) {
  std::vector<std::string> lines;
  for (const ConfigProblem& problem : problems) lines.push_back(format_problem("f.toml", problem));
  return lines;
}

constexpr std::string_view kWhole = R"([[partition]]
name = "demo"
socket = "/run/vmbusd/demo.sock"
io_threads = 2
poll_us = 20
nice = 7
shutdown = false
vss = false

[[partition.scsi]]
name = "scsi0"
channels = 8
instance = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"

[[partition.scsi.disk]]
lun = 7
path = "/images/a.img"
readonly = true
direct = "off"
cache = "writethrough"
iops = 5000
rate = "200M"
burst = 250
reservations = "a.reservations"
block_size = 4096
physical_block_size = 8192
vendor = "ACME"
product = "Anvil"
revision = "2.1"
serial = "A0001"
identity = "6ba7b811-9dad-11d1-80b4-00c04fd430c8"

[[partition.scsi.disk]]
lun = 8
backend = "null"
size = "10G"

[[partition.nic]]
name = "nic0"
backend = "tap"
tap = "vmtap0"
queues = 4
mac = "02:1A:4b:00:c3:9d"
mtu = 9000
link_speed_mbps = 25000
check_source_mac = true
friendly_name = "uplink"

[[partition.nic]]
name = "nic1"
backend = "stream"
socket = "passt.sock"

[[partition.nic]]
name = "nic2"
backend = "null"
receive_bytes = 1514
monitor = true

[[partition.nic]]
name = "nic3"
backend = "tap"
fds = [4, 5]

[[partition]]
name = "other"
socket = "other.sock"
)";

TEST_CASE("workers' confinement is as written, and strict where nothing is", "[daemon]") {
  const Config plain = parse_config(kWhole, "/").config;
  CHECK(plain.worker_user == "nobody");
  CHECK(plain.seccomp == SeccompAction::kKill);
  const Config changed =
      parse_config("worker_user = \"guest-io\"\nseccomp = \"log\"\n" + std::string(kWhole), "/").config;
  CHECK(changed.worker_user == "guest-io");
  CHECK(changed.seccomp == SeccompAction::kLog);
}

TEST_CASE("every key is read", "[daemon]") {
  const ParsedConfig parsed = parse_config(kWhole, "/etc/vmbusd");
  CHECK(lines_of(parsed.problems) == std::vector<std::string>{});
  REQUIRE(parsed.config.partitions.size() == 2);
  const PartitionConfig& demo = parsed.config.partitions[0];
  CHECK(demo.name == "demo");
  CHECK(demo.socket == "/run/vmbusd/demo.sock");
  CHECK(demo.io_threads == 2);
  CHECK(demo.poll_us == 20);
  CHECK(demo.nice == 7);
  CHECK(demo.integration == integration::Config{"demo", true, false, true, true, false});
  REQUIRE(demo.scsi.size() == 1);
  const storvsp::ControllerConfig& controller = demo.scsi[0].controller;
  CHECK(controller.partition == "demo");
  CHECK(controller.name == "scsi0");
  CHECK(controller.channels == 8);
  CHECK(controller.instance == Guid::parse("6ba7b810-9dad-11d1-80b4-00c04fd430c8"));
  REQUIRE(controller.disks.size() == 2);
  REQUIRE(demo.scsi[0].images.size() == 2);
  const storvsp::DiskConfig& disk = controller.disks[0];
  CHECK(disk.lun == 7);
  CHECK(demo.scsi[0].images[0].path == "/images/a.img");
  CHECK(demo.scsi[0].images[0].direct == DirectIo::kOff);
  CHECK(demo.scsi[0].images[0].line == 15);
  CHECK(disk.read_only);
  CHECK(disk.cache == storvsp::CacheMode::kWritethrough);
  CHECK(disk.limits == storvsp::DiskLimits{5000, 200 << 20, 250});
  CHECK(demo.scsi[0].images[0].reservations == "/etc/vmbusd/a.reservations");
  CHECK(disk.logical_block_bytes == 4096);
  CHECK(disk.physical_block_bytes == 8192);
  CHECK(disk.vendor == "ACME");
  CHECK(disk.product == "Anvil");
  CHECK(disk.revision == "2.1");
  CHECK(disk.serial == "A0001");
  CHECK(disk.identity == Guid::parse("6ba7b811-9dad-11d1-80b4-00c04fd430c8"));
  CHECK(controller.disks[1].backend == storvsp::DiskConfig::Backend::kNull);
  CHECK(controller.disks[1].size_bytes == std::uint64_t{10} << 30);
}

TEST_CASE("every key of a NIC is read", "[daemon]") {
  using Backend = netvsp::NicConfig::Backend;
  const ParsedConfig parsed = parse_config(kWhole, "/etc/vmbusd");
  REQUIRE(parsed.config.partitions.size() == 2);
  REQUIRE(parsed.config.partitions[0].nics.size() == 4);
  const NicConfig& tap = parsed.config.partitions[0].nics[0];
  CHECK(tap.nic.partition == "demo");
  CHECK(tap.nic.name == "nic0");
  CHECK(tap.nic.backend == Backend::kTap);
  CHECK(tap.source.tap == "vmtap0");
  CHECK(tap.nic.queues == 4);
  CHECK_FALSE(tap.source.any_queues);
  CHECK(tap.nic.mac == netvsp::MacAddress{{0x02, 0x1a, 0x4b, 0x00, 0xc3, 0x9d}});
  CHECK(tap.nic.mtu == 9000);
  CHECK(tap.nic.link_speed_mbps == 25000);
  CHECK(tap.nic.check_source_mac);
  CHECK(tap.nic.friendly_name == "uplink");
  const NicConfig& stream = parsed.config.partitions[0].nics[1];
  CHECK(stream.nic.backend == Backend::kStream);
  CHECK(stream.source.socket == "/etc/vmbusd/passt.sock");
  CHECK_FALSE(stream.nic.mac.has_value());
  CHECK(stream.nic.mtu == 1500);
  const NicConfig& null = parsed.config.partitions[0].nics[2];
  CHECK(null.nic.backend == Backend::kNull);
  CHECK(null.nic.null_receive_bytes == 1514);
  CHECK(null.nic.monitored);
  CHECK_FALSE(tap.nic.monitored);
  const NicConfig& adopted = parsed.config.partitions[0].nics[3];
  CHECK(adopted.source.fds == std::vector<int>{4, 5});
  CHECK(adopted.nic.queues == 2);
}

TEST_CASE("a TAP has queues for several VPs unless a number is given", "[daemon]") {
  const ParsedConfig parsed = parse_config(
      "[[partition]]\nname='a'\nsocket='a.sock'\n"
      "[[partition.nic]]\nname='n'\nbackend='tap'\ntap='t'\n[[partition.nic]]\nname='m'\nbackend='null'\n",
      "/etc/vmbusd");
  REQUIRE(parsed.problems.empty());
  const NicConfig& tap = parsed.config.partitions[0].nics[0];
  CHECK(tap.nic.queues == 8);
  CHECK(tap.source.any_queues);
  CHECK(parsed.config.partitions[0].nics[1].nic.queues == 1);
}

TEST_CASE("what is left out has its default", "[daemon]") {
  const ParsedConfig parsed = parse_config(
      "[[partition]]\nname='a'\nsocket='a.sock'\n[[partition.scsi]]\nname='s'\n"
      "[[partition.scsi.disk]]\nlun=0\npath='d.img'\n",
      "/etc/vmbusd");
  REQUIRE(parsed.problems.empty());
  const PartitionConfig& partition = parsed.config.partitions[0];
  CHECK(partition.socket == "/etc/vmbusd/a.sock");
  CHECK(partition.io_threads == 0);
  CHECK(partition.poll_us == 50);
  CHECK(partition.nice == 0);
  const ScsiConfig& scsi = partition.scsi[0];
  CHECK_FALSE(scsi.controller.instance.has_value());
  CHECK(scsi.controller.channels == 0);
  CHECK(scsi.images[0].path == "/etc/vmbusd/d.img");
  CHECK(scsi.images[0].direct == DirectIo::kAuto);
  CHECK_FALSE(scsi.controller.disks[0].read_only);
  CHECK(scsi.controller.disks[0].logical_block_bytes == 0);
  CHECK(scsi.controller.disks[0].serial.empty());
  CHECK_FALSE(scsi.controller.disks[0].limits.any());
  CHECK(scsi.images[0].reservations.empty());
}

// One partition "a" with the given keys below, from line 4 on.
std::string partition_with(std::string_view lines) {
  return std::string("[[partition]]\nname = \"a\"\nsocket = \"/a.sock\"\n") + std::string(lines);
}
// One disk with the given keys, from line 9 on.
std::string disk_with(std::string_view lines) {
  return partition_with(
             "[[partition.scsi]]\nname = \"s\"\n[[partition.scsi.disk]]\nlun = 0\npath = \"/d\"\n") +
         std::string(lines);
}

struct ProblemCase {
  const char* rule;
  std::string text;
  std::vector<std::string> problems;
};

TEST_CASE("each mistake is told with file, line, key and what is accepted", "[daemon]") {
  const std::vector<ProblemCase> cases = {
      {"empty file",
       "",
       {"f.toml:1: partition: is missing; accepted: at least one table begun by [[partition]], or "
        "control_socket for those to come"}},
      {"no TOML", "[[partition]]\nname = \n", {"?f.toml:2: not TOML: "}},
      {"key that begins with no key's character", "[[=]]\n", {"?f.toml:1: not TOML: "}},
      {"nothing but an opening bracket", "[", {"?f.toml:1: not TOML: "}},
      {"character beyond ASCII behind a key", "[a\xc2\xa4=\n", {"?f.toml:1: not TOML: "}},
      {"partition is a table",
       "[partition]\nname = \"a\"\n",
       {"f.toml:1: partition: is a table; accepted: tables, each begun by [[partition]]"}},
      {"partition has values",
       "partition = [1]\n",
       {"f.toml:1: partition: is an integer; accepted: tables, each begun by [[partition]]"}},
      {"required keys",
       "\n[[partition]]\n",
       {"f.toml:2: partition.name: is missing; accepted: 1 to 64 of the characters A-Z a-z 0-9 . _ -",
        "f.toml:2: partition.socket: is missing; accepted: a path of at most 107 bytes"}},
      {"name with a slash",
       "[[partition]]\nname = \"a/b\"\nsocket = \"/s\"\n",
       {"f.toml:2: partition.name: \"a/b\" is not accepted; accepted: 1 to 64 of the characters A-Z a-z 0-9 "
        ". _ -"}},
      {"name of 65 characters",
       "[[partition]]\nname = \"" + std::string(65, 'n') + "\"\nsocket = \"/s\"\n",
       {"?f.toml:2: partition.name: \"nnn"}},
      {"control characters are not echoed",
       "[[partition]]\nname = \"a\\u001bb\"\nsocket = \"/s\"\n",
       {"f.toml:2: partition.name: \"a?b\" is not accepted; accepted: 1 to 64 of the characters A-Z a-z 0-9 "
        ". _ -"}},
      {"socket path of 108 bytes",
       "[[partition]]\nname = \"a\"\nsocket = \"/" + std::string(107, 's') + "\"\n",
       {"?f.toml:3: partition.socket: \"/sss"}},
      {"empty socket path",
       "[[partition]]\nname = \"a\"\nsocket = \"\"\n",
       {"f.toml:3: partition.socket: \"\" is not accepted; accepted: a path of at most 107 bytes"}},
      {"zero threads",
       partition_with("io_threads = 0\n"),
       {"f.toml:4: partition.io_threads: 0 is not accepted; accepted: an integer from 1 to 64"}},
      {"too many threads",
       partition_with("io_threads = 65\n"),
       {"f.toml:4: partition.io_threads: 65 is not accepted; accepted: an integer from 1 to 64"}},
      {"negative time",
       partition_with("poll_us = -1\n"),
       {"f.toml:4: partition.poll_us: -1 is not accepted; accepted: an integer from 0 to 10000"}},
      {"integer of 64 bits",
       partition_with("poll_us = 4294967296\n"),
       {"f.toml:4: partition.poll_us: 4294967296 is not accepted; accepted: an integer from 0 to 10000"}},
      {"nicer than there is",
       partition_with("nice = 20\n"),
       {"f.toml:4: partition.nice: 20 is not accepted; accepted: an integer from 0 to 19"}},
      {"wrong type",
       partition_with("io_threads = \"two\"\n"),
       {"f.toml:4: partition.io_threads: is a string; accepted: an integer from 1 to 64"}},
      {"floating point",
       partition_with("io_threads = 2.0\n"),
       {"f.toml:4: partition.io_threads: is a floating-point number; accepted: an integer from 1 to 64"}},
      {"unknown key near a known one",
       partition_with("io_thread = 2\n"),
       {"f.toml:4: partition.io_thread: unknown key (did you mean \"io_threads\"?); accepted: heartbeat, "
        "io_threads, kvp, name, nic, nice, poll_us, scsi, shutdown, socket, timesync, vss"}},
      {"unknown key",
       partition_with("colour = 2\n"),
       {"f.toml:4: partition.colour: unknown key; accepted: heartbeat, io_threads, kvp, name, nic, "
        "nice, poll_us, scsi, shutdown, socket, timesync, vss"}},
      {"unknown key at the top",
       partition_with("[log]\nlevel = \"debug\"\n"),
       {"f.toml:4: log: unknown key; accepted: control_socket, partition, seccomp, socket_group, "
        "worker_user"}},
      {"unknown action of the filter",
       "seccomp = \"abort\"\n" + partition_with(""),
       {"f.toml:1: seccomp: \"abort\" is not accepted; accepted: \"kill\", \"trap\", \"log\", \"none\""}},
      {"worker without a user",
       "worker_user = \"\"\n" + partition_with(""),
       {"f.toml:1: worker_user: \"\" is not accepted; accepted: 1 to 64 printable ASCII characters"}},
      {"two partitions of one name",
       partition_with("[[partition]]\nname = \"a\"\nsocket = \"/b\"\n"),
       {"f.toml:5: partition.name: the name \"a\" is taken by the table at line 1"}},
      {"two partitions on one socket",
       partition_with("[[partition]]\nname = \"b\"\nsocket = \"/a.sock\"\n"),
       {"f.toml:6: partition.socket: the socket \"/a.sock\" is taken by the table at line 1"}},
      {"two devices of one name",
       partition_with("[[partition.scsi]]\nname = \"s\"\n[[partition.scsi]]\nname = \"s\"\n"),
       {"f.toml:7: partition.scsi.name: the device name \"s\" is taken by the table at line 4"}},
      {"GUID that is none",
       partition_with("[[partition.scsi]]\nname = \"s\"\ninstance = \"6ba7b810\"\n"),
       {"f.toml:6: partition.scsi.instance: \"6ba7b810\" is not accepted; accepted: a GUID such as "
        "\"6ba7b810-9dad-11d1-80b4-00c04fd430c8\""}},
      {"a controller without channels",
       partition_with("[[partition.scsi]]\nname = \"s\"\nchannels = 0\n"),
       {"f.toml:6: partition.scsi.channels: 0 is not accepted; accepted: an integer from 1 to 64"}},
      {"two devices of one instance",
       partition_with(
           "[[partition.scsi]]\nname = \"s\"\ninstance = \"6ba7b810-9dad-11d1-80b4-00c04fd430c8\"\n"
           "[[partition.scsi]]\nname = \"t\"\ninstance = \"6BA7B810-9dad-11d1-80b4-00c04fd430c8\"\n"),
       {"f.toml:9: partition.scsi.instance: the instance 6ba7b810-9dad-11d1-80b4-00c04fd430c8 is taken by "
        "the "
        "table at line 4"}},
      {"LUN out of range",
       partition_with("[[partition.scsi]]\nname = \"s\"\n[[partition.scsi.disk]]\nlun = 64\npath = \"/d\"\n"),
       {"f.toml:7: partition.scsi.disk.lun: 64 is not accepted; accepted: an integer from 0 to 63"}},
      {"disk without LUN and path",
       partition_with("[[partition.scsi]]\nname = \"s\"\n[[partition.scsi.disk]]\n"),
       {"f.toml:6: partition.scsi.disk.lun: is missing; accepted: an integer from 0 to 63",
        "f.toml:6: partition.scsi.disk.path: is missing; accepted: the path of a raw image or a block "
        "device"}},
      {"LUN taken",
       disk_with("[[partition.scsi.disk]]\nlun = 0\npath = \"/e\"\n"),
       {"f.toml:10: partition.scsi.disk.lun: LUN 0 is taken by the table at line 6"}},
      {"path with a NUL",
       partition_with(
           "[[partition.scsi]]\nname = \"s\"\n[[partition.scsi.disk]]\nlun = 0\npath = \"/d\\u0000e\"\n"),
       {"f.toml:8: partition.scsi.disk.path: \"/d?e\" is not accepted; accepted: the path of a raw image or "
        "a "
        "block device"}},
      {"boolean as a string",
       disk_with("readonly = \"yes\"\n"),
       {"f.toml:9: partition.scsi.disk.readonly: is a string; accepted: true, false"}},
      {"misspelt boolean",
       disk_with("read_only = true\n"),
       {"f.toml:9: partition.scsi.disk.read_only: unknown key (did you mean \"readonly\"?); accepted: "
        "backend, "
        "block_size, burst, cache, direct, discard, identity, iops, lun, nbd, path, physical_block_size, "
        "poll, "
        "product, "
        "rate, readonly, reservations, revision, serial, vendor"}},
      {"unknown word",
       disk_with("direct = \"yes\"\n"),
       {"f.toml:9: partition.scsi.disk.direct: \"yes\" is not accepted; accepted: \"auto\", \"on\", "
        "\"off\""}},
      {"polled through the page cache",
       disk_with("direct = \"off\"\npoll = true\n"),
       {"f.toml:10: partition.scsi.disk.poll: needs O_DIRECT; accepted: true with direct = \"on\" or "
        "\"auto\""}},
      {"unknown cache mode",
       disk_with("cache = \"none\"\n"),
       {"f.toml:9: partition.scsi.disk.cache: \"none\" is not accepted; accepted: \"writeback\", "
        "\"writethrough\", \"unsafe\""}},
      {"an export beside an image",
       disk_with("nbd = \"nbd://localhost/e\"\n"),
       {"f.toml:9: partition.scsi.disk.nbd: stands beside an image; accepted: one of path and nbd, or "
        "backend = \"nbd\""}},
      {"an export over TLS",
       partition_with("[[partition.scsi]]\nname = \"s\"\n[[partition.scsi.disk]]\nlun = 0\n"
                      "nbd = \"nbds://host/e\"\n"),
       {"f.toml:8: partition.scsi.disk.nbd: \"nbds://host/e\" is not accepted; accepted: "
        "\"nbd+unix:///EXPORT?socket=/PATH\" or \"nbd://HOST:PORT/EXPORT\""}},
      {"no export",
       partition_with("[[partition.scsi]]\nname = \"s\"\n[[partition.scsi.disk]]\nlun = 0\n"
                      "backend = \"nbd\"\n"),
       {"f.toml:6: partition.scsi.disk.nbd: is missing; accepted: "
        "\"nbd+unix:///EXPORT?socket=/PATH\" or \"nbd://HOST:PORT/EXPORT\""}},
      {"no time to reconnect",
       partition_with("[[partition.scsi]]\nname = \"s\"\n[[partition.scsi.disk]]\nlun = 0\n"
                      "nbd = \"nbd://host/e\"\nreconnect_delay = 0\n"),
       {"f.toml:9: partition.scsi.disk.reconnect_delay: 0 is not accepted; accepted: an integer from 1 to "
        "86400"}},
      {"no operations",
       disk_with("iops = 0\n"),
       {"f.toml:9: partition.scsi.disk.iops: 0 is not accepted; accepted: an integer from 1 to 100000000"}},
      {"rate without a unit",
       disk_with("rate = \"100\"\n"),
       {"f.toml:9: partition.scsi.disk.rate: \"100\" is not accepted; accepted: bytes a second with a binary "
        "suffix, such as \"512K\", \"100M\", \"2G\""}},
      {"block size",
       disk_with("block_size = 1024\n"),
       {"f.toml:9: partition.scsi.disk.block_size: 1024 is not accepted; accepted: 512, 4096"}},
      {"physical block below the logical one",
       disk_with("block_size = 4096\nphysical_block_size = 512\n"),
       {"f.toml:10: partition.scsi.disk.physical_block_size: is smaller than block_size; accepted: the same "
        "or "
        "larger"}},
      {"vendor of 9 characters",
       disk_with("vendor = \"ACMEACMEA\"\n"),
       {"f.toml:9: partition.scsi.disk.vendor: \"ACMEACMEA\" is not accepted; accepted: 1 to 8 printable "
        "ASCII "
        "characters"}},
      {"serial beyond ASCII",
       disk_with("serial = \"\u00e9\"\n"),
       {"f.toml:9: partition.scsi.disk.serial: \"\u00e9\" is not accepted; accepted: 1 to 36 printable ASCII "
        "characters"}},
      {"size of an image",
       disk_with("size = \"1G\"\n"),
       {"f.toml:9: partition.scsi.disk.size: unknown key; accepted: backend, block_size, burst, cache, "
        "direct, "
        "discard, "
        "identity, iops, "
        "lun, nbd, path, physical_block_size, poll, product, rate, readonly, reservations, revision, serial, "
        "vendor"}},
      {"size of nothing",
       partition_with(
           "[[partition.scsi]]\nname = \"s\"\n[[partition.scsi.disk]]\nlun = 0\nbackend = \"null\"\n"
           "size = \"0G\"\n"),
       {"f.toml:9: partition.scsi.disk.size: \"0G\" is not accepted; accepted: bytes with a binary suffix, "
        "such as "
        "\"512M\", \"10G\", \"2T\", up to \"1024T\""}},
      {"size beyond bounds",
       partition_with(
           "[[partition.scsi]]\nname = \"s\"\n[[partition.scsi.disk]]\nlun = 0\nbackend = \"null\"\n"
           "size = \"1025T\"\n"),
       {"f.toml:9: partition.scsi.disk.size: \"1025T\" is not accepted; accepted: bytes with a binary "
        "suffix, such "
        "as \"512M\", \"10G\", \"2T\", up to \"1024T\""}},
      {"NIC without a back end",
       partition_with("[[partition.nic]]\nname = \"n\"\n"),
       {"f.toml:4: partition.nic.backend: is missing; accepted: \"tap\", \"stream\", \"null\", "
        "\"loopback\""}},
      {"NIC of a controller's name",
       partition_with(
           "[[partition.scsi]]\nname = \"n\"\n[[partition.nic]]\nname = \"n\"\nbackend = \"null\"\n"),
       {"f.toml:7: partition.nic.name: the device name \"n\" is taken by the table at line 4"}},
      {"multicast MAC address",
       partition_with("[[partition.nic]]\nname = \"n\"\nbackend = \"null\"\nmac = \"01:00:5e:00:00:01\"\n"),
       {"f.toml:7: partition.nic.mac: \"01:00:5e:00:00:01\" is not accepted; accepted: a unicast MAC address "
        "such "
        "as \"02:1a:4b:00:c3:9d\""}},
      {"interface name of 16 characters",
       partition_with("[[partition.nic]]\nname = \"n\"\nbackend = \"tap\"\ntap = \"abcdefghijklmnop\"\n"),
       {"f.toml:7: partition.nic.tap: \"abcdefghijklmnop\" is not accepted; accepted: an interface name: 1 "
        "to 15 of "
        "the characters A-Z a-z 0-9 . _ -"}},
      {"one TAP behind two NICs",
       partition_with("[[partition.nic]]\nname = \"n\"\nbackend = \"tap\"\ntap = \"t\"\n"
                      "[[partition.nic]]\nname = \"m\"\nbackend = \"tap\"\ntap = \"t\"\n"),
       {"f.toml:11: partition.nic.tap: the interface \"t\" is taken by the table at line 4"}},
      {"descriptor of standard error",
       partition_with("[[partition.nic]]\nname = \"n\"\nbackend = \"tap\"\nfds = [2]\n"),
       {"f.toml:7: partition.nic.fds: is something else; accepted: an array of 1 to 64 integers, numbers of "
        "descriptors from 3 on, each once"}},
      {"key of another back end",
       partition_with("[[partition.nic]]\nname = \"n\"\nbackend = \"loopback\"\ntap = \"t\"\n"),
       {"f.toml:7: partition.nic.tap: unknown key; accepted: backend, check_source_mac, friendly_name, "
        "instance, "
        "link_speed_mbps, mac, monitor, mtu, name, queues"}},
      {"several at once, by line",
       "[[partition]]\nname = \"a b\"\nsocket = 3\npoll_us = -1\nx = 1\n",
       {"f.toml:2: partition.name: \"a b\" is not accepted; accepted: 1 to 64 of the characters A-Z a-z 0-9 "
        ". _ -",
        "f.toml:3: partition.socket: is an integer; accepted: a path of at most 107 bytes",
        "f.toml:4: partition.poll_us: -1 is not accepted; accepted: an integer from 0 to 10000",
        "f.toml:5: partition.x: unknown key; accepted: heartbeat, io_threads, kvp, name, nic, "
        "nice, poll_us, scsi, shutdown, socket, timesync, vss"}},
  };
  for (const ProblemCase& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      const std::vector<std::string> found = lines_of(parse_config(c.text, "/").problems);
      REQUIRE(found.size() == c.problems.size());
      for (std::size_t i = 0; i < found.size(); ++i) {
        // "?" begins a text that is given in part, where the rest is the TOML parser's or too long to be
        // shown.
        const bool part = c.problems[i].front() == '?';
        if (part) CHECK(found[i].substr(0, c.problems[i].size() - 1) == c.problems[i].substr(1));
        if (!part) CHECK(found[i] == c.problems[i]);
      }
    }
  }
}

TEST_CASE("problems of one file are bounded", "[daemon]") {
  std::string text = "[[partition]]\nname = \"a\"\nsocket = \"/s\"\n";
  for (int i = 0; i < 1000; ++i) text += "k" + std::to_string(i) + " = 1\n";
  CHECK(parse_config(text, "/").problems.size() == kProblemsMax);
}

class Images {
 public:
  // Makes a file of `size` bytes and returns its path.
  std::string file(const std::string& name, off_t size) {
    std::ofstream(directory_.path(name)).flush();
    REQUIRE(::truncate(directory_.path(name).c_str(), size) == 0);
    return directory_.path(name);
  }
  [[nodiscard]] std::string path(const std::string& name) const { return directory_.path(name); }

 private:
  TemporaryDirectory directory_;
};

std::string two_disks(const std::string& first, const std::string& second, const char* keys = "") {
  return "[[partition]]\nname='a'\nsocket='/tmp/a.sock'\n[[partition.scsi]]\nname='s'\n"
         "[[partition.scsi.disk]]\nlun=0\npath='" +
         first + "'\n" + keys + "[[partition.scsi.disk]]\nlun=1\npath='" + second + "'\n" + keys;
}

std::vector<std::string> host_problems(const std::string& text) {
  const ParsedConfig parsed = parse_config(text, "/");
  REQUIRE(parsed.problems.empty());
  return lines_of(check_host(parsed.config));
}

TEST_CASE("an image that is not there or of the wrong kind is told", "[daemon]") {
  Images images;
  const std::string good = images.file("good", 4096);
  const std::string key = ": partition.scsi.disk.path: ";
  CHECK(host_problems(two_disks(good, images.path("absent"))) ==
        std::vector<std::string>{"f.toml:9" + key + "cannot use " + images.path("absent") +
                                 ": No such file or directory"});
  CHECK(host_problems(two_disks(good, images.path("."))) ==
        std::vector<std::string>{"f.toml:9" + key + images.path(".") +
                                 " is neither; accepted: the path of a raw image or a block device"});
  CHECK(host_problems(two_disks(good, images.file("odd", 700))) ==
        std::vector<std::string>{"f.toml:9" + key + images.path("odd") +
                                 " has 700 bytes; accepted: a multiple of 512, not 0"});
  CHECK(host_problems(two_disks(good, images.file("empty", 0))) ==
        std::vector<std::string>{"f.toml:9" + key + images.path("empty") +
                                 " has 0 bytes; accepted: a multiple of 512, not 0"});
}

TEST_CASE("one image is behind one disk, unless all only read it", "[daemon]") {
  Images images;
  const std::string image = images.file("image", 4096);
  const std::string link = images.path("link");
  REQUIRE(::symlink(image.c_str(), link.c_str()) == 0);
  CHECK(host_problems(two_disks(image, link)) ==
        std::vector<std::string>{"f.toml:9: partition.scsi.disk.path: " + link +
                                 " is the image of the disk at line 6 too; accepted: one disk per image, or "
                                 "readonly = true on all of them"});
  CHECK(host_problems(two_disks(image, link, "readonly = true\n")).empty());
  CHECK(host_problems(two_disks(image, images.file("second", 4096))).empty());
}

TEST_CASE("reservations need a directory, and a file of their own", "[daemon]") {
  Images images;
  const std::string first = images.file("first", 4096);
  const std::string second = images.file("second", 4096);
  const std::string absent = "reservations = '" + images.path("x/y") + "'\n";
  const auto one = [&](const std::string& keys) {
    return "[[partition]]\nname='a'\nsocket='/tmp/a.sock'\n[[partition.scsi]]\nname='s'\n"
           "[[partition.scsi.disk]]\nlun=0\npath='" +
           first + "'\n" + keys;
  };
  const std::string key = "f.toml:6: partition.scsi.disk.reservations: ";
  CHECK(host_problems(one(absent)) ==
        std::vector<std::string>{key + "cannot use directory " + images.path("x") +
                                 ": No such file or directory"});
  CHECK(host_problems(one("reservations = '" + images.path(".") + "'\n")) ==
        std::vector<std::string>{key + images.path(".") + " is not a regular file"});
  CHECK(host_problems(one("reservations = '" + images.path("new") + "'\n")).empty());
  const ParsedConfig shared = parse_config(two_disks(first, second, "reservations = 'r'\n"), "/");
  CHECK(
      lines_of(shared.problems) ==
      std::vector<std::string>{"f.toml:13: partition.scsi.disk.reservations: the file \"/r\" is taken by the "
                               "table at line 6"});
}

TEST_CASE("a socket needs a directory and a free name", "[daemon]") {
  Images images;
  const std::string file = images.file("file", 0);
  const std::string begin = "[[partition]]\nname='a'\nsocket='";
  CHECK(host_problems(begin + images.path("x/y.sock") + "'\n") ==
        std::vector<std::string>{"f.toml:1: partition.socket: cannot use directory " + images.path("x") +
                                 ": No such file or directory"});
  CHECK(host_problems(begin + file + "'\n") ==
        std::vector<std::string>{"f.toml:1: partition.socket: " + file + " exists and is not a socket"});
}

TEST_CASE("a file that is no configuration is not read whole", "[daemon]") {
  Images images;
  CHECK(read_config_file(images.path("absent")).error().os_error == ENOENT);
  CHECK(read_config_file(images.file("big", kConfigFileBytesMax + 1)).error().code == Errc::kConfig);
  CHECK(read_config_file(images.file("small", 10)).value().size() == 10);
}

TEST_CASE("devices of a partition that is there are read alone", "[daemon]") {
  const ParsedConfig disk =
      parse_disk(R"({"lun": 5, "path": "a.img", "iops": 7})", "demo", "scsi0", "/images");
  REQUIRE(disk.problems.empty());
  const ScsiConfig& scsi = disk.config.partitions.front().scsi.front();
  CHECK(scsi.controller.name == "scsi0");
  CHECK(scsi.controller.partition == "demo");
  CHECK(scsi.controller.disks.front().limits.operations == 7);
  CHECK(scsi.images.front().path == "/images/a.img");
  CHECK(disk.config.partitions.front().socket.empty());
  CHECK(parse_nic(R"({"name": "n", "backend": "null"})", "demo", "/").problems.empty());
  CHECK(parse_controller(R"({"name": "s"})", "demo", "/").problems.empty());
  for (const char* const wrong : {"[]", "7", "", "{\"lun\": 5}", "{\"lun\": 99, \"path\": \"a\"}",
                                  "{\"name\": 5}", "{\"lun\": null}"}) {
    INFO(wrong);
    CHECK(!parse_disk(wrong, "demo", "scsi0", "/").problems.empty());
    CHECK(!parse_nic(wrong, "demo", "/").problems.empty());
    CHECK(!parse_controller(wrong, "demo", "/").problems.empty());
  }
}

TEST_CASE("limits change by what is given", "[daemon]") {
  storvsp::DiskLimits limits{100, 200, 300};
  CHECK(parse_limits("{}", limits).empty());
  CHECK(limits == storvsp::DiskLimits{100, 200, 300});
  CHECK(parse_limits(R"({"iops": 5, "burst": 0})", limits).empty());
  CHECK(limits == storvsp::DiskLimits{5, 200, 0});
  CHECK(parse_limits(R"({"rate": "1M", "iops": 0})", limits).empty());
  CHECK(limits == storvsp::DiskLimits{0, 1u << 20, 0});
  CHECK(parse_limits(R"({"rate": 0})", limits).empty());
  CHECK(limits == storvsp::DiskLimits{0, 0, 0});
  for (const char* const wrong : {"[]", R"({"rate": 7})", R"({"rate": "7"})", R"({"iops": -1})",
                                  R"({"iops": "many"})", R"({"cache": "unsafe"})"}) {
    INFO(wrong);
    CHECK(!parse_limits(wrong, limits).empty());
  }
}

}  // namespace
}  // namespace vmbusd::daemon
