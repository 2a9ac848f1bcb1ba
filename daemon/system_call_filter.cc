#include "daemon/system_call_filter.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include "base/assert.h"
#include "base/log.h"
#include "base/thread_role.h"

namespace vmbusd::daemon {

namespace {

// A system call that is allowed, where there is `compare` only if that argument is so.
struct Rule {
  int call;
  std::optional<scmp_arg_cmp> compare = std::nullopt;
};

constexpr scmp_arg_cmp argument_is(unsigned index, std::uint64_t value) {
  return {index, SCMP_CMP_EQ, value, 0};
}
// The kernel takes an int, whatever the rest of the register holds.
constexpr scmp_arg_cmp int_is(unsigned index, std::uint32_t value) {
  return {index, SCMP_CMP_MASKED_EQ, UINT32_MAX, value};
}
constexpr scmp_arg_cmp has_bits(unsigned index, std::uint64_t bits) {
  return {index, SCMP_CMP_MASKED_EQ, bits, bits};
}
constexpr scmp_arg_cmp lacks_bits(unsigned index, std::uint64_t bits) {
  return {index, SCMP_CMP_MASKED_EQ, bits, 0};
}
constexpr Rule ioctl_rule(unsigned long request) {
  return {SCMP_SYS(ioctl), int_is(1, static_cast<std::uint32_t>(request))};
}
constexpr Rule fcntl_rule(int command) {
  return {SCMP_SYS(fcntl), int_is(1, static_cast<std::uint32_t>(command))};
}

// What glibc needs on any thread, to log a line and to end it, and what a disk's helper thread calls.
constexpr Rule kHelperRules[] = {
    {SCMP_SYS(futex)},
    {SCMP_SYS(read)},
    {SCMP_SYS(write)},
    {SCMP_SYS(writev)},
    {SCMP_SYS(close)},
    {SCMP_SYS(lseek)},
    {SCMP_SYS(pread64)},
    {SCMP_SYS(pwrite64)},
    {SCMP_SYS(fallocate)},
    {SCMP_SYS(fdatasync)},
    ioctl_rule(BLKDISCARD),
    // Of a descriptor. A filter cannot see whether the path beside the flag is empty indeed.
    {SCMP_SYS(fstat)},
    {SCMP_SYS(newfstatat), has_bits(3, AT_EMPTY_PATH)},
    {SCMP_SYS(statx), has_bits(2, AT_EMPTY_PATH)},
    // Memory, none of which can be executed.
    {SCMP_SYS(brk)},
    {SCMP_SYS(mmap), lacks_bits(2, PROT_EXEC)},
    {SCMP_SYS(mprotect), lacks_bits(2, PROT_EXEC)},
    {SCMP_SYS(mremap)},
    {SCMP_SYS(munmap)},
    {SCMP_SYS(madvise)},
    {SCMP_SYS(msync)},
    // Time, where the vDSO has none.
    {SCMP_SYS(clock_gettime)},
    {SCMP_SYS(clock_nanosleep)},
    {SCMP_SYS(nanosleep)},
    {SCMP_SYS(gettimeofday)},
    {SCMP_SYS(restart_syscall)},
    {SCMP_SYS(sched_yield)},
    {SCMP_SYS(sched_getaffinity)},  // malloc() asks how many arenas are worth having
    {SCMP_SYS(getrandom)},
    // A thread's own affairs. Signals: its own, as abort() sends.
    {SCMP_SYS(getpid)},
    {SCMP_SYS(gettid)},
    {SCMP_SYS(rseq)},
    {SCMP_SYS(set_robust_list)},
    {SCMP_SYS(sigaltstack)},
    {SCMP_SYS(rt_sigaction)},
    {SCMP_SYS(rt_sigprocmask)},
    {SCMP_SYS(rt_sigreturn)},
    {SCMP_SYS(prctl), int_is(0, PR_SET_NAME)},
    {SCMP_SYS(prctl), int_is(0, PR_SET_NO_NEW_PRIVS)},
    {SCMP_SYS(seccomp)},  // takes, and never gives
    {SCMP_SYS(exit)},
    {SCMP_SYS(exit_group)},
};
// An I/O thread's besides: it starts disks' helpers, whose filter comes on top of its own.
constexpr Rule kIoRules[] = {
    {SCMP_SYS(io_uring_enter)},
    {SCMP_SYS(io_uring_register)},  // what the ring's own restrictions leave
    {SCMP_SYS(clone), has_bits(0, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD)},
    // Policies without a right to run before others. [io/turn_taking.h]
    {SCMP_SYS(sched_setscheduler), int_is(1, SCHED_OTHER)},
    {SCMP_SYS(sched_setscheduler), int_is(1, SCHED_BATCH)},
    // What libnbd calls on sockets that are connected: no address goes in or comes out.
    {SCMP_SYS(recvfrom), argument_is(4, 0)},
    {SCMP_SYS(sendto), argument_is(4, 0)},
    fcntl_rule(F_GETFD),
    fcntl_rule(F_SETFD),
    fcntl_rule(F_GETFL),
    fcntl_rule(F_SETFL),
    ioctl_rule(TUNSETQUEUE),
    ioctl_rule(TUNSETOFFLOAD),
    ioctl_rule(TUNGETIFF),
};
// The control thread's besides: descriptors come in, and are looked at.
constexpr Rule kControlRules[] = {
    // Sockets that others have made.
    {SCMP_SYS(recvmsg)},
    {SCMP_SYS(sendmsg)},
    {SCMP_SYS(shutdown)},
    {SCMP_SYS(getsockopt)},
    {SCMP_SYS(getpeername)},
    {SCMP_SYS(poll)},
    {SCMP_SYS(ppoll)},
    // Descriptors that need no path.
    {SCMP_SYS(eventfd2)},
    {SCMP_SYS(memfd_create)},
    {SCMP_SYS(ftruncate)},
    {SCMP_SYS(fstatfs)},
    fcntl_rule(F_DUPFD_CLOEXEC),
    fcntl_rule(F_ADD_SEALS),
    fcntl_rule(F_GET_SEALS),
    // What a disk is, and what a TAP is to be.
    {SCMP_SYS(preadv2)},
    ioctl_rule(BLKGETSIZE64),
    ioctl_rule(BLKSSZGET),
    ioctl_rule(BLKPBSZGET),
    ioctl_rule(BLKROGET),
    ioctl_rule(BLKROTATIONAL),
    ioctl_rule(TUNSETVNETHDRSZ),
    ioctl_rule(TUNSETVNETLE),
};

// What glibc asks for without needing it, and is refused in words.
constexpr std::pair<int, std::uint16_t> kAnswered[] = {
    // Its flags no filter can see; clone() is asked next.
    {SCMP_SYS(clone3), ENOSYS},
    // free() looks up vm.overcommit_memory when an arena shrinks first. [glibc: check_may_shrink_heap]
    {SCMP_SYS(openat), EACCES},
};

SeccompAction chosen = SeccompAction::kNone;  // written before there are other threads

std::uint32_t libseccomp_action(SeccompAction action) {
  switch (action) {
    case SeccompAction::kTrap:
      return SCMP_ACT_TRAP;
    case SeccompAction::kLog:
      return SCMP_ACT_LOG;
    default:
      return SCMP_ACT_KILL_PROCESS;
  }
}

// Filters the calling thread. `rules`: what is allowed; everything else is `action`'s.
Result<void> load(SeccompAction action, std::initializer_list<std::span<const Rule>> rules) {
  const std::unique_ptr<std::remove_pointer_t<scmp_filter_ctx>, decltype(&::seccomp_release)> filter(
      ::seccomp_init(libseccomp_action(action)), &::seccomp_release);
  if (!filter) return fail(Errc::kOs, "cannot make a filter of system calls");
  int refused = 0;
  for (const auto& [call, error] : kAnswered) {
    if (refused == 0) refused = ::seccomp_rule_add_exact(filter.get(), SCMP_ACT_ERRNO(error), call, 0);
  }
  for (const std::span<const Rule> some : rules) {
    for (const Rule& rule : some) {
      if (refused != 0) break;
      refused = rule.compare
                    ? ::seccomp_rule_add_exact(filter.get(), SCMP_ACT_ALLOW, rule.call, 1, *rule.compare)
                    : ::seccomp_rule_add_exact(filter.get(), SCMP_ACT_ALLOW, rule.call, 0);
    }
  }
  // Signals to this process only.
  if (refused == 0) {
    refused = ::seccomp_rule_add_exact(filter.get(), SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
                                       argument_is(0, static_cast<std::uint64_t>(::getpid())));
  }
  // A tree instead of a list; without it the filter is right too.
  static_cast<void>(::seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2));
  if (refused == 0) refused = ::seccomp_load(filter.get());
  if (refused != 0) {
    return fail_os(-refused, "cannot filter system calls; seccomp = \"none\" does without");
  }
  return {};
}

void filter_thread(ThreadRole role) {
  const Result<void> loaded =
      role == ThreadRole::kIo ? load(chosen, {kHelperRules, kIoRules}) : load(chosen, {kHelperRules});
  // The process has such a filter already, so that nothing but want of memory is left.
  VMBUSD_ASSERT(loaded.has_value());
}

// Appends to a line of a signal handler.
void append(std::span<char>& rest, std::string_view text) {
  const std::size_t size = std::min(text.size(), rest.size());
  std::memcpy(rest.data(), text.data(), size);
  rest = rest.subspan(size);
}

void append(std::span<char>& rest, unsigned number) {
  std::array<char, 10> digits{};
  std::size_t count = 0;
  do {
    digits[digits.size() - ++count] = static_cast<char>('0' + number % 10);
    number /= 10;
  } while (number != 0);
  append(rest, {digits.data() + digits.size() - count, count});
}

// Of kTrap. On the thread that made the call, anywhere in the code: nothing but what is async-signal-safe.
void trapped(int, siginfo_t* info, void*) {
  std::array<char, 128> line{};
  std::span<char> rest(line);
  append(rest, "error vmbusd: forbidden system call ");
  append(rest, static_cast<unsigned>(info->si_syscall));
  append(rest, "; ending this worker process\n");
  static_cast<void>(::write(STDERR_FILENO, line.data(), line.size() - rest.size()) < 0);
  // The default action from here on, which the supervisor logs.
  struct sigaction by_default {};
  by_default.sa_handler = SIG_DFL;
  ::sigaction(SIGSYS, &by_default, nullptr);
  ::raise(SIGSYS);
}

}  // namespace

Result<void> filter_system_calls(SeccompAction action) {
  if (action == SeccompAction::kNone) return {};
  if (action == SeccompAction::kTrap) {
    struct sigaction trap {};
    trap.sa_sigaction = &trapped;
    trap.sa_flags = SA_SIGINFO | SA_NODEFER;
    if (::sigaction(SIGSYS, &trap, nullptr) != 0) return fail_os(errno, "cannot handle SIGSYS");
  }
  chosen = action;
  set_thread_hook(&filter_thread);
  return load(action, {kHelperRules, kIoRules, kControlRules});
}

}  // namespace vmbusd::daemon
