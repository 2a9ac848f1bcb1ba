// vmbusd where the kernel refuses io_uring, as container runtimes have it.
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <fstream>
#include <iterator>
#include <string>

#include "base/temporary_directory.h"
#include "tests/catch.h"

namespace vmbusd::daemon {
namespace {

// From here on io_uring_setup() fails with EPERM in this process and what it executes.
bool forbid_io_uring() {
  std::array<sock_filter, 4> rules = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog program = {rules.size(), rules.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST_CASE("a refused io_uring is told at the start, in one sentence with what to do", "[daemon]") {
  const TemporaryDirectory directory;
  const std::string config = directory.path("c.toml");
  const std::string log = directory.path("log");
  std::ofstream(config) << "[[partition]]\nname = 'a'\nsocket = 'a.sock'\n";
  const pid_t pid = ::fork();
  if (pid == 0) {
    const int output = ::open(log.c_str(), O_WRONLY | O_CREAT, 0600);
    if (output < 0 || ::dup2(output, STDERR_FILENO) < 0 || !forbid_io_uring()) ::_exit(77);
    ::execl(VMBUSD_EXE, "vmbusd", "--config", config.c_str(), nullptr);
    ::_exit(77);
  }
  int status = 0;
  REQUIRE(::waitpid(pid, &status, 0) == pid);
  REQUIRE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) {
    WARN("no seccomp filters here: not tested");
    return;
  }
  CHECK(WEXITSTATUS(status) == 1);
  std::ifstream file(log);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  INFO(text);
  CHECK(text.find("Operation not permitted; check sysctl kernel.io_uring_disabled") != std::string::npos);
  CHECK(std::count(text.begin(), text.end(), '\n') == 1);
}

}  // namespace
}  // namespace vmbusd::daemon
