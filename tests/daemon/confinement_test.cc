// Worker processes of a running vmbusd, seen from outside.
#include <fstream>
#include <map>
#include <string>

#include "base/temporary_directory.h"
#include "daemon/sandbox.h"
#include "tests/catch.h"
#include "tests/daemon/running_daemon.h"

namespace vmbusd::daemon {
namespace {

constexpr const char* kPartition = "[[partition]]\nname = 'a'\nsocket = 'a.sock'\n";

// "CapEff" -> "0000000000000000"
std::map<std::string, std::string> status_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  std::map<std::string, std::string> status;
  std::string line;
  while (std::getline(file, line)) {
    const std::size_t colon = line.find(":\t");
    if (colon != std::string::npos) status[line.substr(0, colon)] = line.substr(colon + 2);
  }
  return status;
}

bool has_sandbox() {
  if (kInstrumented) WARN("built with sanitizers or for coverage, so that there is no sandbox: not tested");
  return !kInstrumented;
}

TEST_CASE("a worker that serves has given up its rights", "[daemon][sandbox]") {
  if (!has_sandbox()) return;
  const TemporaryDirectory directory;
  RunningDaemon daemon(directory, std::string("worker_user = '61234'\n") + kPartition);
  REQUIRE(daemon.wait_until_ready());
  std::map<std::string, std::string> status = status_of(daemon.worker_pid());
  for (const char* const set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}) {
    INFO(set);
    CHECK(status[set] == "0000000000000000");
  }
  CHECK(status["NoNewPrivs"] == "1");
  CHECK(status["Seccomp"] == "2");
  const bool is_root = status_of(daemon.pid())["Uid"].starts_with("0\t");
  if (is_root && status["Uid"].starts_with("0\t")) {
    WARN("root may not become another user here: not tested");
  } else if (is_root) {
    CHECK(status["Uid"] == "61234\t61234\t61234\t61234");
    CHECK(status["Gid"] == "61234\t61234\t61234\t61234");
    CHECK(status["Groups"].find_first_not_of(' ') == std::string::npos);
  }
}

TEST_CASE("there is a filter unless it is not wanted", "[daemon][sandbox]") {
  if (!has_sandbox()) return;
  const TemporaryDirectory directory;
  RunningDaemon daemon(directory, std::string("seccomp = 'none'\n") + kPartition);
  REQUIRE(daemon.wait_until_ready());
  CHECK(status_of(daemon.worker_pid())["Seccomp"] == "0");
}

TEST_CASE("a worker's user must be there", "[daemon][sandbox]") {
  const TemporaryDirectory directory;
  RunningDaemon daemon(directory, std::string("worker_user = 'no-such-user'\n") + kPartition);
  if (!status_of(daemon.pid())["Uid"].starts_with("0\t")) return;  // others' workers stay who they are
  CHECK(daemon.wait() == 1);
  CHECK(daemon.log().find("there is no user no-such-user for worker processes to be") != std::string::npos);
}

}  // namespace
}  // namespace vmbusd::daemon
