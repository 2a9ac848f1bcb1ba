#include "daemon/worker_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/log_format.h"
#include "daemon/command_socket.h"
#include "daemon/options.h"

namespace vmbusd::daemon {

namespace {

using boost::asio::posix::descriptor_base;
using boost::system::error_code;

constexpr int kWorkerSocketFd = 3;  // in the worker process

const char* level_name(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "info";
}

class SpawnSetup {
 public:
  explicit SpawnSetup(int worker_socket) {
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawnattr_init(&attributes_);
    ::posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_adddup2(&actions_, STDIN_FILENO, STDOUT_FILENO);  // of which it makes no use
    ::posix_spawn_file_actions_adddup2(&actions_, worker_socket, kWorkerSocketFd);
    // Whatever the supervisor's parent left open is none of the worker's business.
    ::posix_spawn_file_actions_addclosefrom_np(&actions_, kWorkerSocketFd + 1);
    // A process group of its own, so that a terminal's Ctrl-C reaches the supervisor only, which drains.
    ::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETPGROUP);
    ::posix_spawnattr_setpgroup(&attributes_, 0);
  }
  ~SpawnSetup() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }
  SpawnSetup(const SpawnSetup&) = delete;
  SpawnSetup& operator=(const SpawnSetup&) = delete;

  [[nodiscard]] const posix_spawn_file_actions_t* actions() const { return &actions_; }
  [[nodiscard]] const posix_spawnattr_t* attributes() const { return &attributes_; }

 private:
  posix_spawn_file_actions_t actions_{};
  posix_spawnattr_t attributes_{};
};

}  // namespace

bool lost_memory(int status) {
  return WIFEXITED(status) && WEXITSTATUS(status) == kExitLostMemory;
}

std::string describe_wait_status(int status) {
  if (WIFSIGNALED(status)) {
    return fmt::format("killed by signal {} ({})", WTERMSIG(status), ::strsignal(WTERMSIG(status)));
  }
  if (lost_memory(status)) {
    return fmt::format(
        "exited with status {}: guest memory that the VMM lent is not there any more; it has cut its file "
        "short, or the host has no page left for it",
        kExitLostMemory);
  }
  return fmt::format("exited with status {}", WEXITSTATUS(status));
}

Result<std::shared_ptr<WorkerProcess>> WorkerProcess::spawn(boost::asio::io_context& context,
                                                            const std::string& program, const LogScope& log,
                                                            LogLevel log_level, Events events) {
  VMBUSD_TRY(auto sockets, make_command_sockets());
  // The first argument is what ps and top show.
  std::string title = fmt::format("vmbusd: {}", log.subject());
  std::string fd_option = fmt::format("--partition-worker={}", kWorkerSocketFd);
  std::string level_option = fmt::format("--log-level={}", level_name(log_level));
  std::string format_option = "--log-format=json";
  // Not where it is the default: an older program, which upgrade() may bring, does not know it.
  char* const format = log_format() == LogFormat::kJson ? format_option.data() : nullptr;
  const std::array<char*, 5> arguments = {title.data(), fd_option.data(), level_option.data(), format,
                                          nullptr};

  const SpawnSetup setup(sockets.second.get());
  pid_t pid = -1;
  const int refused =
      ::posix_spawn(&pid, program.c_str(), setup.actions(), setup.attributes(), arguments.data(), environ);
  if (refused != 0) return fail_os(refused, "cannot start a worker process");
  // glibc 2.36 declares pidfd_open() without C linkage.
  UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process) {
    const int os_error = errno;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return fail_os(os_error, "cannot watch the worker process");
  }

  std::shared_ptr<WorkerProcess> worker(new WorkerProcess(context, log, std::move(events)));
  worker->pid_ = pid;
  error_code ignored;
  worker->socket_.assign(sockets.first.release(), ignored);
  worker->process_.assign(process.release(), ignored);
  worker->wait_for_reports();
  worker->wait_for_death();
  return worker;
}

void WorkerProcess::send(const EncodedCommand& command) {
  CommandDatagram datagram{command.text, {}};
  for (const int fd : command.fds) {
    // A duplicate: by the time the socket takes it, the number may be another file's.
    datagram.fds.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!datagram.fds.back()) return distrust(Error{Errc::kOs, errno, "cannot hold a descriptor for it"});
  }
  outgoing_.push_back(std::move(datagram));
  flush();
}

void WorkerProcess::flush() {
  while (!outgoing_.empty() && !flushing_ && socket_.is_open()) {
    const CommandDatagram& next = outgoing_.front();
    std::vector<int> fds;
    for (const UniqueFd& fd : next.fds) fds.push_back(fd.get());
    const Result<void> sent = send_command(socket_.native_handle(), next.text, fds);
    if (!sent && sent.error().code == Errc::kLimit) {
      flushing_ = true;
      socket_.async_wait(descriptor_base::wait_write, [self = shared_from_this()](error_code error) {
        if (error) return;
        self->flushing_ = false;
        self->flush();
      });
      return;
    }
    if (!sent && sent.error().code != Errc::kClosed) return distrust(sent.error());
    outgoing_.pop_front();  // sent, or for a process that is about to be reaped
  }
}

void WorkerProcess::wait_for_reports() {
  socket_.async_wait(descriptor_base::wait_read, [self = shared_from_this()](error_code error) {
    if (!error) self->read_reports();
  });
}

void WorkerProcess::read_reports() {
  // Bounded: a worker that talks without end must not keep the supervisor from the other partitions.
  constexpr int kReportsPerTurn = 16;
  for (int i = 0; i < kReportsPerTurn; ++i) {
    Result<std::optional<CommandDatagram>> datagram = receive_command(socket_.native_handle());
    if (!datagram) {
      if (datagram.error().code != Errc::kClosed) return distrust(datagram.error());
      return closed_socket();
    }
    if (!*datagram) break;
    Result<Report> report = decode_report(**std::move(datagram));
    if (!report) return distrust(report.error());
    if (events_.report) events_.report(*report);
  }
  wait_for_reports();
}

// What it said before it died; bounded by the socket's buffer, to which nobody adds.
void WorkerProcess::read_last_reports() {
  for (;;) {
    Result<std::optional<CommandDatagram>> datagram = receive_command(socket_.native_handle());
    if (!datagram || !*datagram) return;
    Result<Report> report = decode_report(**std::move(datagram));
    if (report && events_.report) events_.report(*report);
  }
}

void WorkerProcess::closed_socket() {
  // It is exiting, or of no use any more.
  grace_.expires_after(std::chrono::seconds(5));
  grace_.async_wait([self = shared_from_this()](error_code error) {
    if (!error) self->kill();
  });
}

void WorkerProcess::distrust(const Error& error) {
  log_.error("ending worker process {}: {}", pid_, describe(error));
  kill();
}

void WorkerProcess::wait_for_death() {
  process_.async_wait(descriptor_base::wait_read, [self = shared_from_this()](error_code error) {
    if (error) return;
    int status = 0;
    if (::waitpid(self->pid_, &status, WNOHANG) != self->pid_) return self->wait_for_death();
    self->read_last_reports();
    error_code ignored;
    self->socket_.close(ignored);
    self->process_.close(ignored);
    self->grace_.cancel();
    self->outgoing_.clear();
    const Events events = std::exchange(self->events_, {});
    if (events.died) events.died(status);
  });
}

void WorkerProcess::kill() {
  // Once it has been reaped, the number may be another process's.
  if (process_.is_open()) ::kill(pid_, SIGKILL);
}

}  // namespace vmbusd::daemon
