// vmbusd as it is called from a shell.
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "tests/catch.h"
#include "tests/daemon/running_daemon.h"

namespace vmbusd::daemon {
namespace {

TEST_CASE("questions are answered with status 0", "[daemon]") {
  CHECK(run_vmbusd({"--version"}).output.starts_with("vmbusd 0."));
  CHECK(run_vmbusd({"--version"}).status == 0);
  const Finished help = run_vmbusd({"--help"});
  CHECK(help.status == 0);
  for (const char* option : {"--config", "--check-config", "--log-level", "--version"}) {
    CHECK(help.output.find(option) != std::string::npos);
  }
  CHECK(help.output.find("partition-worker") == std::string::npos);
}

TEST_CASE("a wrong command line has status 2 and a word on it", "[daemon]") {
  CHECK(run_vmbusd({}).status == 2);
  CHECK(run_vmbusd({}).output.find("--config FILE is required") != std::string::npos);
  CHECK(run_vmbusd({"--confg", "x"}).status == 2);
  CHECK(run_vmbusd({"--config"}).status == 2);
  CHECK(run_vmbusd({"--config", "x", "--log-level", "loud"}).output.find("warning") != std::string::npos);
  CHECK(run_vmbusd({"--partition-worker", "77"}).status == 2);
}

TEST_CASE("a configuration file that cannot be read has status 2", "[daemon]") {
  const Finished absent = run_vmbusd({"--config", "/nonexistent/x.toml", "--check-config"});
  CHECK(absent.status == 2);
  CHECK(absent.output == "/nonexistent/x.toml: cannot open: No such file or directory\n");
}

TEST_CASE("--check-config tells all that is wrong, or OK", "[daemon]") {
  const TemporaryDirectory directory;
  const std::string file = directory.path("c.toml");
  std::ofstream(directory.path("d.img")) << std::string(4096, 'x');
  std::ofstream(file) << "[[partition]]\nname = 'a'\nsocket = 'a.sock'\n[[partition.scsi]]\nname = 's'\n"
                         "[[partition.scsi.disk]]\nlun = 0\npath = 'd.img'\n";
  const Finished good = run_vmbusd({"--config", file, "--check-config"});
  CHECK(good.output == file + ": OK\n");
  CHECK(good.status == 0);
  CHECK(::access(directory.path("a.sock").c_str(), F_OK) != 0);

  std::ofstream(file) << "[[partition]]\nname = 'a'\nsocket = 3\nthreads = 1\n";
  const Finished bad = run_vmbusd({"--config", file, "--check-config"});
  CHECK(bad.status == 2);
  CHECK(bad.output == file + ":3: partition.socket: is an integer; accepted: a path of at most 107 bytes\n" +
                          file +
                          ":4: partition.threads: unknown key; accepted: heartbeat, io_threads, kvp, name, "
                          "nic, nice, poll_us, scsi, "
                          "shutdown, socket, timesync, vss\n");
}

constexpr const char* kOnePartition = "[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\nio_threads = 1\n";

TEST_CASE("each line of the log is JSON where that is asked for, workers' lines too", "[daemon]") {
  const TemporaryDirectory directory;
  RunningDaemon daemon(directory, kOnePartition,
                       {.arguments = {"--log-format", "json", "--log-level", "debug"}});
  REQUIRE(daemon.wait_for_notification("READY=1"));
  ::kill(daemon.worker_pid(), SIGTERM);  // it says that it goes
  REQUIRE(daemon.wait_for_log("exited with status 0"));
  daemon.signal(SIGTERM);
  REQUIRE(daemon.wait() == 0);
  std::istringstream lines(daemon.log());
  std::size_t count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    INFO(line);
    const auto json = nlohmann::json::parse(line, nullptr, false);
    REQUIRE(json.is_object());
    CHECK(json["time"].get<std::string>().ends_with("Z"));
    CHECK(json["level"].is_string());
    CHECK(json["subject"].is_string());
    CHECK(json["message"].is_string());
  }
  CHECK(count >= 3);
}

TEST_CASE("lines have priorities where the journal reads them, and nowhere else", "[daemon]") {
  const TemporaryDirectory directory;
  // The line that every build logs.
  const auto line = [&](const std::string& stream) {
    RunningDaemon daemon(directory, kOnePartition, {.shell = "export JOURNAL_STREAM=" + stream});
    REQUIRE(daemon.wait_for_notification("READY=1"));
    REQUIRE(daemon.wait_for_log("ready: 1 partition(s)"));
    std::istringstream lines(daemon.log());
    std::string found;
    while (std::getline(lines, found) && found.find("ready: 1 partition(s)") == std::string::npos) continue;
    return found;
  };
  CHECK(line("$(stat -L -c %d:%i /dev/stderr)").starts_with("<6>info: "));
  CHECK(line("1:1").starts_with("20"));
}

TEST_CASE("the example configuration passes the check", "[daemon]") {
  // It names an image and a socket beside it.
  const TemporaryDirectory directory;
  const std::string file = directory.path("one-guest.toml");
  std::ofstream(file) << std::ifstream(VMBUSD_EXAMPLES "/one-guest.toml").rdbuf();
  std::ofstream(directory.path("disk.img")) << std::string(4096, 'x');
  const Finished checked = run_vmbusd({"--config", file, "--check-config"});
  CHECK(checked.output == file + ": OK\n");
  CHECK(checked.status == 0);
}

}  // namespace
}  // namespace vmbusd::daemon
