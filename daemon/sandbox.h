// What a partition's worker process takes from itself before it meets its guest.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace vmbusd::daemon {

// What happens to a worker that makes a system call which none of its threads needs.
enum class SeccompAction : std::uint8_t {
  kKill,
  kTrap,  // it says which, then it is killed
  kLog,   // the kernel's audit log says which, and it is made
  kNone,  // no filter at all
};

// Sanitizers' run-time libraries need /proc, a symbolizer, address space without bound and system calls that
// change with each release; what counts covered lines writes files as a process ends. Workers of such builds
// are not confined.
#if defined(VMBUSD_COVERAGE) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kInstrumented = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
inline constexpr bool kInstrumented = true;
#else
inline constexpr bool kInstrumented = false;
#endif
#else
inline constexpr bool kInstrumented = false;
#endif

struct UserIds {
  uid_t user = 0;
  gid_t group = 0;

  friend bool operator==(const UserIds&, const UserIds&) = default;
};

struct SandboxConfig {
  std::optional<UserIds> user;  // whom a worker becomes that is root; empty: it stays who it is
  SeccompAction seccomp = SeccompAction::kKill;
  std::uint64_t own_bytes_max = 0;  // memory of its own, beside its guest's; 0: any

  friend bool operator==(const SandboxConfig&, const SandboxConfig&) = default;
};

// By name or number; a number need not be anyone's, and is its group's too then. Empty where there is none.
[[nodiscard]] std::optional<UserIds> find_user(const std::string& name);

// Takes from the calling process, for good: its user where that is root, every capability, the view of the
// file system and of the network, the means to gain anything by executing a file, core dumps, and the system
// calls that a worker does not need. Threads that are started later lose more (see system_call_filter.h).
// What is open stays open. Nobody can attach a debugger but root.
//
// Call while the process has one thread. io_uring instances are made before: afterwards there is no way.
//
// What this host or this user does not allow is left out and told, a sentence each. An error where the filter
// that is asked for cannot be had.
[[nodiscard]] Result<std::vector<std::string>> enter_sandbox(const SandboxConfig& config);

}  // namespace vmbusd::daemon
