// vmbusd started with its sockets, by a service manager or by --fd.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/unix_socket.h"
#include "tests/catch.h"
#include "tests/daemon/http_client.h"
#include "tests/daemon/running_daemon.h"
#include "tests/guest/host.h"

namespace vmbusd::daemon {
namespace {

constexpr const char* kConfig = "[[partition]]\nname = 'demo'\nsocket = 'own.sock'\nio_threads = 1\n";

// High enough to become any descriptor of another process.
UniqueFd given_socket(const std::string& path, int type) {
  const UniqueFd made = guest::must(listen_unix(path, type, 8));
  return UniqueFd(::fcntl(made.get(), F_DUPFD_CLOEXEC, 100));
}

class Given {
 public:
  [[nodiscard]] std::vector<int> fds() const { return {control_.get(), attach_.get()}; }

  // Serves by both, and leaves their files alone.
  void check(const StartedWith& with) const {
    RunningDaemon daemon(directory_, kConfig, with);
    REQUIRE(daemon.wait_until_ready());
    CHECK(ask(directory_.path("control.sock"), "GET", "/v1/version").status == 200);
    {
      std::string error_text;
      auto child = guest::ChildPartition::attach({.socket_path = directory_.path("attach.sock")}, error_text);
      INFO(error_text);
      CHECK(child.has_value());
    }
    CHECK(::access(directory_.path("own.sock").c_str(), F_OK) != 0);
    daemon.signal(SIGTERM);
    CHECK(daemon.wait() == 0);
    CHECK(::access(directory_.path("control.sock").c_str(), F_OK) == 0);
    CHECK(::access(directory_.path("attach.sock").c_str(), F_OK) == 0);
  }

  // A partition that is removed and comes again is attached to by the same socket.
  void check_again(const StartedWith& with) const {
    const RunningDaemon daemon(directory_, kConfig, with);
    const std::string control = directory_.path("control.sock");
    const std::string socket = directory_.path("attach.sock");
    for (int i = 0; i < 2; ++i) {
      CHECK(ask(control, "DELETE", "/v1/partitions/demo").status == 204);
      CHECK(ask(control, "POST", "/v1/reload").status == 204);
      std::string error_text;
      auto child = guest::ChildPartition::attach({.socket_path = socket}, error_text);
      INFO(error_text);
      CHECK(child.has_value());
    }
  }

 private:
  TemporaryDirectory directory_;
  UniqueFd control_ = given_socket(directory_.path("control.sock"), SOCK_STREAM);
  UniqueFd attach_ = given_socket(directory_.path("attach.sock"), SOCK_SEQPACKET);
};

TEST_CASE("vmbusd serves by the sockets that it is given", "[daemon][sockets]") {
  const Given given;
  SECTION("as a service manager does") {
    given.check({.environment = {"LISTEN_FDS=2", "LISTEN_FDNAMES=control:attach.demo"},
                 .fds = given.fds(),
                 .shell = "export LISTEN_PID=$$"});
  }
  SECTION("by --fd") {
    given.check({.arguments = {"--fd", "control=3", "--fd", "attach.demo=4"}, .fds = given.fds()});
  }
  SECTION("again and again") {
    given.check_again({.arguments = {"--fd", "control=3", "--fd", "attach.demo=4"}, .fds = given.fds()});
  }
}

TEST_CASE("sockets of another process's are left alone", "[daemon][sockets]") {
  const TemporaryDirectory directory;
  RunningDaemon daemon(directory, kConfig, {.environment = {"LISTEN_PID=1", "LISTEN_FDS=x"}});
  CHECK(daemon.wait_until_ready());
}

TEST_CASE("what is no socket of its kind is refused", "[daemon][sockets]") {
  const TemporaryDirectory directory;
  const UniqueFd stream = given_socket(directory.path("stream.sock"), SOCK_STREAM);
  const UniqueFd connected = guest::must(connect_unix(directory.path("stream.sock"), SOCK_STREAM));
  const UniqueFd quiet(::fcntl(connected.get(), F_DUPFD_CLOEXEC, 100));
  struct Case {
    const char* rule;
    StartedWith with;
    const char* said;
  };
  const std::vector<int> fds = {stream.get(), quiet.get()};
  const Case kCases[] = {
      {"a name that is none", {{"--fd", "ctl=3"}, {}, fds, {}}, "--fd ctl=3 has a name that is none"},
      {"a partition without a name", {{"--fd", "attach.=3"}, {}, fds, {}}, "has a name that is none"},
      {"of another type", {{"--fd", "attach.demo=3"}, {}, fds, {}}, "of type SOCK_SEQPACKET"},
      {"on which nobody listens", {{"--fd", "control=4"}, {}, fds, {}}, "is no listening Unix socket"},
      {"that is not open", {{"--fd", "control=9"}, {}, fds, {}}, "is no listening Unix socket"},
      {"that is no number", {{"--fd", "control=x"}, {}, fds, {}}, "not of the form NAME=NUMBER"},
      {"given twice", {{"--fd", "control=3", "--fd", "control=3"}, {}, fds, {}}, "is given twice"},
      {"without a name of the service manager's",
       {{}, {"LISTEN_FDS=1"}, fds, "export LISTEN_PID=$$"},
       "socket \"\" of LISTEN_FDS has a name that is none"},
      {"counted by what is no number",
       {{}, {"LISTEN_FDS=many"}, fds, "export LISTEN_PID=$$"},
       "LISTEN_FDS is no number"},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      RunningDaemon daemon(directory, kConfig, c.with);
      CHECK(daemon.wait() == 2);
      INFO(daemon.log());
      CHECK(daemon.log().find(c.said) != std::string::npos);
    }
  }
}

}  // namespace
}  // namespace vmbusd::daemon
