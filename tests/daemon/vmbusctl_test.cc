// vmbusctl against a running vmbusd, as a shell uses it.
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/daemon/running_daemon.h"

namespace vmbusd::daemon {
namespace {

TEST_CASE("an operator looks and changes", "[daemon][vmbusctl]") {
  const TemporaryDirectory directory;
  const std::string socket = directory.path("control.sock");
  RunningDaemon daemon(directory,
                       "control_socket = 'control.sock'\n[[partition]]\nname = 'demo'\nsocket = "
                       "'demo.sock'\n[[partition.nic]]\nname = 'nic0'\nbackend = 'loopback'\n");
  REQUIRE(daemon.wait_until_ready());
  const auto run = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"--socket", socket});
    return run_program(VMBUSCTL_EXE, arguments);
  };

  const Finished status = run({"status"});
  CHECK(status.status == 0);
  CHECK(status.output.find("demo ") != std::string::npos);
  CHECK(nlohmann::json::parse(run({"status", "--json"}).output)["partitions"][0]["name"] == "demo");

  CHECK(run({"inspect", "demo/nic0/link_up"}).output == "true\n");
  CHECK(run({"link", "demo/nic0", "down"}).status == 0);
  CHECK(run({"inspect", "demo/nic0/link_up"}).output == "false\n");
  CHECK(run({"inspect", "demo/nic0"}).output.find("link_reason: switched off\n") != std::string::npos);
  CHECK(nlohmann::json::parse(run({"--json", "inspect", "demo"}).output)["devices"].size() == 1);

  CHECK(run({"add", "name=g2", "socket=g2.sock", "scsi.name=s", "scsi.disk.lun=0", "scsi.disk.backend=null",
             "scsi.disk.size=1G"})
            .status == 0);
  CHECK(run({"inspect", "g2/s/disks/0/backend"}).output == "null\n");
  CHECK(run({"top", "-n", "1", "-d", "0.1"}).output.starts_with("CHANNEL"));
  CHECK(run({"events"}).output.find(" demo/nic0 link-switched: down\n") != std::string::npos);
  CHECK(run({"events", "--json"}).output.starts_with("{"));
  CHECK(run({"config", "dump"}).output.find("[[partition.scsi.disk]]") != std::string::npos);
  CHECK(nlohmann::json::parse(run({"config", "dump", "--json"}).output)["partition"].size() == 2);
  CHECK(run({"config"}).status == 2);
  CHECK(run({"metrics"}).output.find("vmbusd_partition_serving{partition=\"g2\"} 1") != std::string::npos);
  CHECK(run({"add", "g2/s", "disk", "lun=4", "backend=null", "size=2G"}).status == 0);
  CHECK(run({"inspect", "g2/s/disks/1/lun"}).output == "4\n");
  CHECK(run({"set", "g2/s/4", "iops=500", "rate=100M"}).status == 0);
  CHECK(run({"set", "g2/s/4", "rate=0"}).status == 0);
  CHECK(run({"resize", "g2/s/4", "3G"}).status == 0);
  const std::string dump = run({"config", "dump"}).output;
  CHECK(dump.find("iops = 500\n") != std::string::npos);
  CHECK(dump.find("rate = ") == std::string::npos);
  CHECK(dump.find("size = \"3G\"\n") != std::string::npos);
  CHECK(run({"add", "g2", "nic", "name=n", "backend=null"}).status == 0);
  CHECK(run({"add", "g2", "scsi", "name=t", "disk.lun=0", "disk.backend=null", "disk.size=1G"}).status == 0);
  CHECK(run({"remove", "g2/n"}).status == 0);
  CHECK(run({"remove", "g2/t"}).status == 0);
  CHECK(run({"remove", "g2/s/4"}).status == 0);
  CHECK(run({"events"}).output.find(" g2/s/4 device-removed\n") != std::string::npos);
  CHECK(run({"remove", "g2"}).status == 0);

  CHECK(run({"log-level"}).output == "info\n");
  CHECK(run({"log-level", "warning"}).status == 0);
  CHECK(run({"log-level"}).output == "warning\n");
  CHECK(run({"reload"}).status == 0);

  SECTION("what vmbusd refuses is said with its words") {
    const Finished refused = run({"add", "name=g3", "soket=x"});
    CHECK(refused.status == 1);
    CHECK(refused.output.find("unknown key (did you mean \"socket\"?)") != std::string::npos);
    CHECK(run({"inspect", "none"}).status == 1);
    CHECK(run({"inspect", "demo/nic0/none"}).status == 1);
    CHECK(run({"remove", "none"}).status == 1);
    CHECK(run({"remove", "demo/none"}).status == 1);
    CHECK(run({"remove", "demo/none/0"}).status == 1);
    CHECK(run({"resize", "demo/none/0"}).status == 1);
    CHECK(run({"add", "demo/none", "disk", "lun=0", "path=x"}).status == 1);
    const std::vector<std::vector<std::string>> of_guests = {{"shutdown", "demo", "--reboot"},
                                                             {"freeze", "demo", "--timeout", "60"},
                                                             {"thaw", "demo"},
                                                             {"key", "demo", "role", "web"},
                                                             {"key", "demo", "role", "--delete"}};
    for (const std::vector<std::string>& command : of_guests) {
      INFO(command[0]);
      const Finished nobody = run(command);
      CHECK(nobody.status == 1);
      CHECK(nobody.output == "vmbusctl: no guest with a driver for it is running\n");
    }
  }
  SECTION("what is no command is refused before vmbusd hears of it") {
    CHECK(run({"fly"}).status == 2);
    CHECK(run({}).status == 2);
    CHECK(run({"link", "demo/nic0", "sideways"}).status == 2);
    CHECK(run({"inspect", "de mo"}).status == 2);
    CHECK(run({"add", "name"}).status == 2);
    CHECK(run({"add", "demo", "disk", "lun=0"}).status == 2);
    CHECK(run({"add", "demo", "tape"}).status == 2);
    CHECK(run({"remove", "demo/a/b/c"}).status == 2);
    CHECK(run({"remove", "demo/"}).status == 2);
    CHECK(run({"set", "demo/nic0", "iops=5"}).status == 2);
    CHECK(run({"shutdown", "demo", "--reboot", "--hibernate"}).status == 2);
    CHECK(run({"freeze", "demo", "--timeout", "601"}).status == 2);
    CHECK(run({"key", "demo", "role"}).status == 2);
    CHECK(run({"key", "demo", "role", "web", "--delete"}).status == 2);
  }
}

TEST_CASE("a vmbusd that is not there is told from one that refuses", "[daemon][vmbusctl]") {
  const Finished finished = run_program(VMBUSCTL_EXE, {"--socket", "/nonexistent/control.sock", "status"});
  CHECK(finished.status == 3);
  CHECK(finished.output.find("cannot reach vmbusd at /nonexistent/control.sock") != std::string::npos);
}

}  // namespace
}  // namespace vmbusd::daemon
