// Tries from inside a worker's sandbox what a guest that took the worker over would try.
#include "daemon/sandbox.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "base/thread_role.h"
#include "tests/catch.h"

namespace vmbusd::daemon {
namespace {

constexpr UserIds kNobody{65534, 65534};
constexpr UserIds kOrdinary{65533, 65533};  // nobody's, too

// Exit statuses of a process in the sandbox; others are errno values.
constexpr int kDone = 0;
constexpr int kNoSandbox = 200;
constexpr int kPartlySandboxed = 201;
constexpr int kNotRoot = 202;

enum class Starter : std::uint8_t { kAsWeAre, kOrdinaryUser };

// Runs `inside` in a process that has entered the sandbox; its wait status.
int run_inside(Starter starter, SeccompAction seccomp, const std::function<int()>& inside) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    if (starter == Starter::kOrdinaryUser) {
      if (::geteuid() != 0) ::_exit(kNotRoot);
      ::setgroups(0, nullptr);
      ::setresgid(kOrdinary.group, kOrdinary.group, kOrdinary.group);
      ::setresuid(kOrdinary.user, kOrdinary.user, kOrdinary.user);
    }
    SandboxConfig config;
    config.user = kNobody;
    config.seccomp = seccomp;
    const auto missing = enter_sandbox(config);
    if (!missing) ::_exit(kNoSandbox);
    // With the filter everything is refused that is to be; without it, what this host has must be complete.
    if (seccomp == SeccompAction::kNone && !missing->empty()) ::_exit(kPartlySandboxed);
    ::_exit(inside());
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return status;
}

bool ends_with(int status, int exit_status) {
  return WIFEXITED(status) && WEXITSTATUS(status) == exit_status;
}
bool refused_by_the_filter(int status) {
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS;
}
// By its number or by the kernel: a few calls that glibc makes for nothing are not killed for.
bool refused_in_words(int status) {
  return WIFEXITED(status) && WEXITSTATUS(status) != kDone && WEXITSTATUS(status) < kNoSandbox;
}

// Another partition's worker: a process in a sandbox of its own, with something worth reading.
volatile std::uint64_t secret = 0;

class Neighbour {
 public:
  explicit Neighbour(Starter starter) : pid_(::fork()) {
    if (pid_ != 0) {
      std::array<char, 1> ready{};
      ends_[1].reset();
      REQUIRE(::read(ends_[0].get(), ready.data(), 1) == 1);
      return;
    }
    secret = 0x5ec2e7;
    run_here(starter);
  }
  ~Neighbour() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Neighbour(const Neighbour&) = delete;
  Neighbour& operator=(const Neighbour&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  [[noreturn]] void run_here(Starter starter) {
    if (starter == Starter::kOrdinaryUser) ::setresuid(kOrdinary.user, kOrdinary.user, kOrdinary.user);
    SandboxConfig config;
    config.user = kNobody;
    config.seccomp = SeccompAction::kNone;
    static_cast<void>(enter_sandbox(config).has_value());
    static_cast<void>(::write(ends_[1].get(), "r", 1) == 1);
    for (;;) ::pause();
  }
  static std::array<UniqueFd, 2> make_pipe() {
    std::array<int, 2> ends{};
    REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
  }

  std::array<UniqueFd, 2> ends_ = make_pipe();
  pid_t pid_;
};

int errno_unless(bool done) {
  return done ? kDone : errno;
}

int connect_to(int family, const sockaddr* address, socklen_t size) {
  const UniqueFd fd(::socket(family, SOCK_STREAM, 0));
  return errno_unless(fd && ::connect(fd.get(), address, size) == 0);
}

// A socket that any process of the host's network namespace can reach.
constexpr std::string_view kAbstractName{"\0vmbusd-sandbox-test", 20};

sockaddr_un abstract_address() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  kAbstractName.copy(address.sun_path, kAbstractName.size());
  return address;
}
constexpr socklen_t kAbstractSize = offsetof(sockaddr_un, sun_path) + kAbstractName.size();

struct Surroundings {
  pid_t neighbour;
  int program;  // an open file that can be executed
};

struct Attempt {
  const char* what;
  // Whether it is refused without the filter too, by what the process has lost.
  bool refused_without_filter;
  int (*make)(const Surroundings&);  // kDone or an errno value
  bool killed = true;                // by the filter; else it answers, as glibc tries this too
};

constexpr Attempt kAttempts[] = {
    {"open a file", true,
     [](const Surroundings&) { return errno_unless(::open("/etc/passwd", O_RDONLY) >= 0); }, false},
    {"make a file", true,
     [](const Surroundings&) { return errno_unless(::open("/new", O_WRONLY | O_CREAT, 0600) >= 0); }, false},
    {"open another's memory", true,
     [](const Surroundings& s) {
       const std::string path = "/proc/" + std::to_string(s.neighbour) + "/mem";
       return errno_unless(::open(path.c_str(), O_RDWR) >= 0);
     },
     false},
    {"open a file the old way", true,
     [](const Surroundings&) { return errno_unless(::syscall(SYS_open, "/etc/passwd", O_RDONLY) >= 0); }},
    {"read another's memory", true,
     [](const Surroundings& s) {
       std::uint64_t copy = 0;
       const iovec to{&copy, sizeof copy};
       const iovec from{const_cast<std::uint64_t*>(&secret), sizeof secret};
       return errno_unless(::process_vm_readv(s.neighbour, &to, 1, &from, 1, 0) >= 0);
     }},
    {"write another's memory", true,
     [](const Surroundings& s) {
       std::uint64_t value = 0;
       const iovec from{&value, sizeof value};
       const iovec to{const_cast<std::uint64_t*>(&secret), sizeof secret};
       return errno_unless(::process_vm_writev(s.neighbour, &from, 1, &to, 1, 0) >= 0);
     }},
    {"trace another", true,
     [](const Surroundings& s) {
       return errno_unless(::ptrace(PTRACE_ATTACH, s.neighbour, nullptr, nullptr) == 0);
     }},
    {"take another's descriptor", true,
     [](const Surroundings& s) {
       const auto process = static_cast<int>(::syscall(SYS_pidfd_open, s.neighbour, 0));
       return errno_unless(process >= 0 && ::syscall(SYS_pidfd_getfd, process, 0, 0) >= 0);
     }},
    {"end another", false,  // before Linux 6.12, which lets Landlock refuse it
     [](const Surroundings& s) { return errno_unless(::kill(s.neighbour, SIGTERM) == 0); }},
    {"end another's thread", false,
     [](const Surroundings& s) {
       return errno_unless(::syscall(SYS_tgkill, s.neighbour, s.neighbour, SIGTERM) == 0);
     }},
    {"reach the network", true,
     [](const Surroundings&) {
       sockaddr_in address{};
       address.sin_family = AF_INET;
       address.sin_port = htons(9);
       address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
       return connect_to(AF_INET, reinterpret_cast<const sockaddr*>(&address), sizeof address);
     }},
    {"reach an abstract socket", true,
     [](const Surroundings&) {
       const sockaddr_un address = abstract_address();
       return connect_to(AF_UNIX, reinterpret_cast<const sockaddr*>(&address), kAbstractSize);
     }},
    {"make a socket", false,
     [](const Surroundings&) { return errno_unless(::socket(AF_UNIX, SOCK_STREAM, 0) >= 0); }},
    {"execute a path", true,
     [](const Surroundings&) {
       std::array<char*, 1> none{};
       return errno_unless(::execve("/bin/true", none.data(), none.data()) == 0);
     }},
    {"execute a descriptor", true,
     [](const Surroundings& s) {
       std::array<char*, 1> none{};
       return errno_unless(::syscall(SYS_execveat, s.program, "", none.data(), none.data(), AT_EMPTY_PATH) ==
                           0);
     }},
    {"make memory executable", false,
     [](const Surroundings&) {
       void* const code = ::mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
       return errno_unless(code != MAP_FAILED);
     }},
    {"make a process", false,
     [](const Surroundings&) { return errno_unless(::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) >= 0); }},
    {"mount", true,
     [](const Surroundings&) { return errno_unless(::mount("x", "/", "tmpfs", 0, nullptr) == 0); }},
    {"unmount", true, [](const Surroundings&) { return errno_unless(::umount2("/", MNT_DETACH) == 0); }},
    {"become root", true, [](const Surroundings&) { return errno_unless(::setresuid(0, 0, 0) == 0); }},
    {"take namespaces", false,
     [](const Surroundings&) { return errno_unless(::unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0); }},
    {"raise a limit", true,
     [](const Surroundings&) {
       constexpr rlimit kCore = {RLIM_INFINITY, RLIM_INFINITY};
       return errno_unless(::setrlimit(RLIMIT_CORE, &kCore) == 0);
     }},
    {"allow core dumps", false,
     [](const Surroundings&) { return errno_unless(::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0); }},
    {"make an io_uring", false,
     [](const Surroundings&) {
       std::array<std::uint32_t, 30> parameters{};
       return errno_unless(::syscall(SYS_io_uring_setup, 4, parameters.data()) >= 0);
     }},
    {"load a program into the kernel", false,
     [](const Surroundings&) {
       bpf_attr attributes{};
       attributes.map_type = BPF_MAP_TYPE_ARRAY;
       attributes.key_size = attributes.value_size = 4;
       attributes.max_entries = 1;
       return errno_unless(::syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes) >= 0);
     }},
    {"use a terminal", false,
     [](const Surroundings&) { return errno_unless(::syscall(SYS_ioctl, 0, 0x5412, "x") == 0); }},
};

class Listener {
 public:
  Listener() : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const sockaddr_un address = abstract_address();
    REQUIRE(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), kAbstractSize) == 0);
    REQUIRE(::listen(fd_.get(), 8) == 0);
  }

 private:
  UniqueFd fd_;
};

bool has_sandbox() {
  if (kInstrumented) WARN("built with sanitizers or for coverage, so that there is no sandbox: not tested");
  return !kInstrumented;
}

void try_all(Starter starter) {
  if (!has_sandbox()) return;
  const Neighbour neighbour(starter);
  const Listener listener;
  const UniqueFd program(::open("/bin/true", O_RDONLY));
  const Surroundings surroundings{neighbour.pid(), program.get()};
  for (const Attempt& attempt : kAttempts) {
    DYNAMIC_SECTION(attempt.what << ", with the filter") {
      const int status =
          run_inside(starter, SeccompAction::kKill, [&] { return attempt.make(surroundings); });
      if (ends_with(status, kNotRoot)) {
        WARN("not root, so that no other user can be tried");
        return;
      }
      INFO("status " << status);
      CHECK((attempt.killed ? refused_by_the_filter(status) : ends_with(status, EACCES)));
    }
    if (!attempt.refused_without_filter) continue;
    DYNAMIC_SECTION(attempt.what << ", without the filter") {
      const int status =
          run_inside(starter, SeccompAction::kNone, [&] { return attempt.make(surroundings); });
      if (ends_with(status, kNotRoot) || ends_with(status, kPartlySandboxed)) {
        WARN("no namespaces or no Landlock here: not tested");
        return;
      }
      INFO("status " << status);
      CHECK(refused_in_words(status));
    }
  }
}

TEST_CASE("from inside a worker everything else is out of reach", "[sandbox]") {
  try_all(Starter::kAsWeAre);
}

TEST_CASE("from inside a worker of an ordinary user's everything else is out of reach", "[sandbox]") {
  try_all(Starter::kOrdinaryUser);
}

TEST_CASE("what a worker does goes on in the sandbox", "[sandbox]") {
  if (!has_sandbox()) return;
  const UniqueFd file(::memfd_create("disk", MFD_CLOEXEC));
  REQUIRE(::ftruncate(file.get(), 8192) == 0);
  for (const Starter starter : {Starter::kAsWeAre, Starter::kOrdinaryUser}) {
    const int status = run_inside(starter, SeccompAction::kKill, [&] {
      const LogScope log("sandbox");
      log.info("a line from the control thread");
      std::vector<std::unique_ptr<std::array<char, 100'000>>> pieces;
      bool good = ::fcntl(file.get(), F_GETFL) >= 0;
      void* const mapped = ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
      good = good && mapped != MAP_FAILED;
      std::thread helper([&] {
        thread_started(ThreadRole::kHelper);
        log.info("a line from a helper");
        const auto memory = std::make_unique<std::array<char, 1 << 20>>();
        memory->fill(1);
        good = good && ::fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0;
        good = good && ::lseek(file.get(), 0, SEEK_HOLE) == 0;
      });
      helper.join();
      std::thread io([&] {
        thread_started(ThreadRole::kIo);
        const sched_param none{};
        good = good && ::pthread_setschedparam(::pthread_self(), SCHED_BATCH, &none) == 0;
        std::thread nested([] { thread_started(ThreadRole::kHelper); });
        nested.join();
      });
      io.join();
      // An arena that shrinks: memory of another thread's, more than it keeps.
      std::thread other([&] {
        for (int i = 0; i < 64; ++i) pieces.push_back(std::make_unique<std::array<char, 100'000>>());
        pieces.clear();
      });
      other.join();
      return good ? kDone : EINVAL;
    });
    if (!ends_with(status, kNotRoot)) CHECK(ends_with(status, kDone));
  }
}

TEST_CASE("other threads may do less than the control thread", "[sandbox]") {
  if (!has_sandbox()) return;
  const auto in_thread = [](ThreadRole role, const std::function<void()>& call) {
    return run_inside(Starter::kAsWeAre, SeccompAction::kKill, [&] {
      call();  // the control thread may
      std::thread thread([&] {
        thread_started(role);
        call();
      });
      thread.join();
      return kDone;
    });
  };
  const auto receive = [] { static_cast<void>(::recvmsg(-1, nullptr, 0)); };
  const auto enter_ring = [] { static_cast<void>(::syscall(SYS_io_uring_enter, -1, 0, 0, 0, nullptr, 0)); };
  CHECK(refused_by_the_filter(in_thread(ThreadRole::kIo, receive)));
  CHECK(refused_by_the_filter(in_thread(ThreadRole::kHelper, receive)));
  CHECK(refused_by_the_filter(in_thread(ThreadRole::kHelper, enter_ring)));
  CHECK(ends_with(in_thread(ThreadRole::kIo, enter_ring), kDone));
}

TEST_CASE("the filter's actions", "[sandbox]") {
  if (!has_sandbox()) return;
  const auto become_root = [] { return errno_unless(::setresuid(0, 0, 0) == 0); };
  SECTION("log lets the call through to what else is in its way") {
    const int status = run_inside(Starter::kAsWeAre, SeccompAction::kLog, become_root);
    CHECK(refused_in_words(status));
  }
  SECTION("trap says which call it was") {
    std::array<int, 2> ends{};
    REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
    const UniqueFd output(ends[0]);
    const UniqueFd input(ends[1]);
    const UniqueFd before(::dup(STDERR_FILENO));
    ::dup2(input.get(), STDERR_FILENO);
    const int status = run_inside(Starter::kAsWeAre, SeccompAction::kTrap, become_root);
    ::dup2(before.get(), STDERR_FILENO);
    CHECK(refused_by_the_filter(status));
    std::array<char, 256> text{};
    CHECK(::read(output.get(), text.data(), text.size() - 1) > 0);
    CHECK(std::string(text.data()).find("forbidden system call " + std::to_string(SYS_setresuid)) !=
          std::string::npos);
  }
}

TEST_CASE("a worker's death with its supervisor outlasts the change of user", "[sandbox]") {
  if (!has_sandbox()) return;
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    SandboxConfig config;
    config.user = kNobody;
    config.seccomp = SeccompAction::kNone;
    static_cast<void>(enter_sandbox(config).has_value());
    int signal = 0;
    ::prctl(PR_GET_PDEATHSIG, &signal, 0, 0, 0);
    ::_exit(signal);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  CHECK(ends_with(status, SIGKILL));
}

TEST_CASE("users are found by name and by number", "[sandbox]") {
  CHECK(find_user("root") == UserIds{0, 0});
  CHECK(find_user("0") == UserIds{0, 0});
  CHECK(find_user("61234567") == UserIds{61234567, 61234567});
  CHECK_FALSE(find_user("4294967295"));
  CHECK_FALSE(find_user("4294967296"));
  CHECK_FALSE(find_user("-1"));
  CHECK_FALSE(find_user("no-such-user"));
  CHECK_FALSE(find_user(""));
}

}  // namespace
}  // namespace vmbusd::daemon
