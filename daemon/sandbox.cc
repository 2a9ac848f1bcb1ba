#include "daemon/sandbox.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <pwd.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <ctime>

#include "base/fd.h"
#include "daemon/system_call_filter.h"

namespace vmbusd::daemon {

namespace {

// Mounts, devices of the network, System V and POSIX message queues, the host's name, the view of cgroups.
// Not process ids: a namespace for those holds for children only, of which there are none, and keeps the
// kernel from making threads.
constexpr int kNamespaces = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;

// More than a partition at all its bounds has: memory, eventfds of VPs and channels, disks, queues (see
// docs/quotas.md).
constexpr rlim_t kDescriptorsMax = 16384;

std::string why(const char* what) {
  return fmt::format("{}: {}", what, std::strerror(errno));
}

// Leaves the process in a file system that is empty and cannot be written to. In a mount namespace of its
// own.
bool enter_empty_root() {
  // Any directory will do that is there for sure; it is hidden in this namespace only.
  constexpr const char* kPlace = "/proc";
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
  if (::mount("vmbusd", kPlace, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,nr_inodes=1,mode=0555") !=
      0) {
    return false;
  }
  // The old root ends up on top of the new one, and is taken off with all that is mounted in it.
  // [linux: pivot_root(2), "pivot_root(".", ".")"]
  if (::chdir(kPlace) != 0 || ::syscall(SYS_pivot_root, ".", ".") != 0) return false;
  if (::umount2(".", MNT_DETACH) != 0 || ::chdir("/") != 0) return false;
  return ::mount(nullptr, "/", nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
                 nullptr) == 0;
}

void limit(__rlimit_resource resource, rlim_t max) {
  rlimit now{};
  if (::getrlimit(resource, &now) != 0 || now.rlim_max <= max) return;
  now = {std::min(now.rlim_cur, max), max};
  ::setrlimit(resource, &now);  // to lower a limit needs nothing
}

void set_limits(const SandboxConfig& config) {
  limit(RLIMIT_CORE, 0);
  limit(RLIMIT_NOFILE, kDescriptorsMax);
  if (config.own_bytes_max != 0) limit(RLIMIT_DATA, config.own_bytes_max);
}

bool become(const UserIds& ids) {
  return ::setgroups(0, nullptr) == 0 && ::setresgid(ids.group, ids.group, ids.group) == 0 &&
         ::setresuid(ids.user, ids.user, ids.user) == 0;
}

// What executing a file could give back. Fails where the process may not, and then has little to lose.
void drop_bounding_set() {
  for (int capability = 0; ::prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability) {
    ::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
  }
}

Result<void> drop_capabilities() {
  drop_bounding_set();
  ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  constexpr std::array<__user_cap_data_struct, 2> kNone{};
  if (::syscall(SYS_capset, &header, kNone.data()) != 0) return fail_os(errno, "cannot give up capabilities");
  return {};
}

// A rule set that handles each way to reach a file and allows none: what no mount namespace hides is out of
// reach all the same.
// [linux: Documentation/userspace-api/landlock.rst]
bool forbid_paths() {
  const long abi = ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  if (abi < 0) return false;
  // Later ones than the headers have; a kernel takes no bit that it does not know.
  constexpr std::uint64_t kFsRefer = 1u << 13;     // ABI 2, Linux 5.19
  constexpr std::uint64_t kFsTruncate = 1u << 14;  // ABI 3, Linux 6.2
  constexpr std::uint64_t kFsIoctlDev = 1u << 15;  // ABI 5, Linux 6.10
  constexpr std::uint64_t kNetBindConnect = 3;     // ABI 4, Linux 6.7: TCP
  constexpr std::uint64_t kScopeSocketSignal = 3;  // ABI 6, Linux 6.12: abstract Unix sockets, signals
  struct {
    std::uint64_t file_system;
    std::uint64_t network;
    std::uint64_t scope;
  } handled{LANDLOCK_ACCESS_FS_MAKE_SYM * 2 - 1, 0, 0};
  std::size_t size = sizeof handled.file_system;
  if (abi >= 2) handled.file_system |= kFsRefer;
  if (abi >= 3) handled.file_system |= kFsTruncate;
  if (abi >= 4) {
    handled.network = kNetBindConnect;
    size = 2 * sizeof(std::uint64_t);
  }
  if (abi >= 5) handled.file_system |= kFsIoctlDev;
  if (abi >= 6) {
    handled.scope = kScopeSocketSignal;
    size = sizeof handled;
  }
  const UniqueFd rules(static_cast<int>(::syscall(SYS_landlock_create_ruleset, &handled, size, 0)));
  return rules && ::syscall(SYS_landlock_restrict_self, rules.get(), 0) == 0;
}

// Takes the process's view of the host. Tells what it could not.
void enter_namespaces(int flags, std::string& problem) {
  if (::unshare(flags | kNamespaces) != 0) {
    problem = why("no namespaces of its own");
  } else if (!enter_empty_root()) {
    problem = why("no empty file system");
  } else {
    problem.clear();
  }
}

}  // namespace

std::optional<UserIds> find_user(const std::string& name) {
  if (const passwd* const found = ::getpwnam(name.c_str())) return UserIds{found->pw_uid, found->pw_gid};
  uid_t number = 0;
  const char* const end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data(), end, number);
  // The last one means "leave it as it is" to the kernel.
  if (error != std::errc() || stop != end || number == static_cast<uid_t>(-1)) return std::nullopt;
  if (const passwd* const found = ::getpwuid(number)) return UserIds{found->pw_uid, found->pw_gid};
  return UserIds{number, number};
}

Result<std::vector<std::string>> enter_sandbox(const SandboxConfig& config) {
  std::vector<std::string> problems;
  if (kInstrumented) {
    problems.emplace_back("built with sanitizers or for coverage, so not at all");
    return problems;
  }
  int parent_death_signal = 0;
  ::prctl(PR_GET_PDEATHSIG, &parent_death_signal, 0, 0, 0);
  const bool was_root = ::geteuid() == 0;
  ::tzset();  // the log's time: /etc/localtime is out of reach in a moment

  std::string no_namespaces = "no namespaces of its own";
  if (was_root) enter_namespaces(0, no_namespaces);
  set_limits(config);
  if (was_root && config.user) {
    drop_bounding_set();
    if (!become(*config.user)) problems.push_back(why("it stays root"));
  }
  // An ordinary user has the right to namespaces in a user namespace, if at all. Nobody is mapped into it:
  // what comes with it is given up again right away.
  if (!no_namespaces.empty()) enter_namespaces(CLONE_NEWUSER, no_namespaces);
  if (!no_namespaces.empty()) problems.push_back(no_namespaces);

  VMBUSD_CHECK(drop_capabilities());
  // A change of credentials has cleared it.
  ::prctl(PR_SET_PDEATHSIG, parent_death_signal, 0, 0, 0);
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return fail_os(errno, "cannot set no_new_privs");
  if (::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) return fail_os(errno, "cannot forbid core dumps");
  if (!forbid_paths()) problems.push_back(why("no Landlock rules"));
  VMBUSD_CHECK(filter_system_calls(config.seccomp));
  return problems;
}

}  // namespace vmbusd::daemon
