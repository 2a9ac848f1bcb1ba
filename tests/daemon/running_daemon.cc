#include "tests/daemon/running_daemon.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/assert.h"

namespace vmbusd::daemon {

namespace {

std::string contents_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

pid_t spawn(const char* program, std::vector<std::string> arguments, std::vector<std::string> environment,
            const std::string& log_path, const std::vector<int>& fds = {}) {
  std::vector<char*> argv;
  arguments.insert(arguments.begin(), program);
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::vector<char*> envp;
  for (char** variable = environ; *variable != nullptr; ++variable) envp.push_back(*variable);
  for (std::string& variable : environment) envp.push_back(variable.data());
  envp.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  VMBUSD_ASSERT(::posix_spawn_file_actions_init(&actions) == 0);
  ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                     0600);
  ::posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  int next = STDERR_FILENO + 1;
  for (const int fd : fds) {
    // Above those that they become, so that none takes another's place.
    VMBUSD_ASSERT(fd >= STDERR_FILENO + 1 + static_cast<int>(fds.size()));
    ::posix_spawn_file_actions_adddup2(&actions, fd, next++);
  }
  ::posix_spawn_file_actions_addclosefrom_np(&actions, next);
  pid_t pid = -1;
  VMBUSD_ASSERT(::posix_spawn(&pid, program, &actions, nullptr, argv.data(), envp.data()) == 0);
  ::posix_spawn_file_actions_destroy(&actions);
  return pid;
}

}  // namespace

Finished run_program(const char* program, const std::vector<std::string>& arguments) {
  const TemporaryDirectory directory;
  const std::string log_path = directory.path("log");
  const pid_t pid = spawn(program, arguments, {}, log_path);
  int status = 0;
  VMBUSD_ASSERT(::waitpid(pid, &status, 0) == pid);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, contents_of(log_path)};
}

Finished run_vmbusd(const std::vector<std::string>& arguments) {
  return run_program(VMBUSD_EXE, arguments);
}

RunningDaemon::RunningDaemon(const TemporaryDirectory& directory, const std::string& config,
                             const StartedWith& with) {
  static int count = 0;
  const std::string own = std::to_string(++count);  // one directory may serve several daemons
  config_path_ = directory.path("vmbusd" + own + ".toml");
  std::ofstream(config_path_) << config;
  log_path_ = directory.path("log" + own);

  const std::string notify_path = directory.path("notify" + own);
  notifications_.reset(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  VMBUSD_ASSERT(notify_path.size() < sizeof address.sun_path);
  notify_path.copy(address.sun_path, notify_path.size());
  VMBUSD_ASSERT(::bind(notifications_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
                0);

  std::vector<std::string> arguments = {"--config", config_path_};
  arguments.insert(arguments.end(), with.arguments.begin(), with.arguments.end());
  std::vector<std::string> environment = with.environment;
  environment.push_back("NOTIFY_SOCKET=" + notify_path);
  const char* program = VMBUSD_EXE;
  if (!with.shell.empty()) {
    program = "/bin/sh";
    arguments.insert(arguments.begin(), {"-c", with.shell + "; exec \"$0\" \"$@\"", VMBUSD_EXE});
  }
  pid_ = spawn(program, arguments, environment, log_path_, with.fds);
}

RunningDaemon::~RunningDaemon() {
  if (pid_ <= 0) return;
#ifdef VMBUSD_COVERAGE
  // Which lines have run is written as a process ends in order.
  ::kill(pid_, SIGTERM);
  if (wait()) return;
#endif
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

bool RunningDaemon::wait_for_notification(const std::string& state) {
  for (;;) {
    pollfd readable{notifications_.get(), POLLIN, 0};
    constexpr auto kPatienceMs = std::chrono::milliseconds(kPatience).count();
    if (::poll(&readable, 1, static_cast<int>(kPatienceMs)) != 1) return false;
    std::array<char, 512> buffer;
    const ssize_t got = ::recv(notifications_.get(), buffer.data(), buffer.size(), 0);
    if (got > 0 && std::string(buffer.data(), static_cast<std::size_t>(got)).starts_with(state)) return true;
  }
}

bool RunningDaemon::wait_until_ready() {
  // Logged when the notification's own descriptor is closed again, which matters to those who count.
  return wait_for_notification("READY=1") && wait_for_log("ready: ");
}

pid_t RunningDaemon::worker_pid(pid_t previous) const {
  const std::string children =
      "/proc/" + std::to_string(pid_) + "/task/" + std::to_string(pid_) + "/children";
  pid_t worker = -1;
  const bool found = eventually([&] {
    std::ifstream file(children);
    return static_cast<bool>(file >> worker) && worker != previous;
  });
  return found ? worker : -1;
}

void RunningDaemon::signal(int number) const {
  ::kill(pid_, number);
}

std::optional<int> RunningDaemon::wait() {
  int status = 0;
  if (!eventually([&] { return ::waitpid(pid_, &status, WNOHANG) == pid_; })) return std::nullopt;
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::string RunningDaemon::log() const {
  return contents_of(log_path_);
}

bool RunningDaemon::wait_for_log(const std::string& text) const {
  return eventually([&] { return log().find(text) != std::string::npos; });
}

std::size_t open_descriptors(pid_t pid) {
  // A worker does not let its own user look.
  std::error_code refused;
  const std::filesystem::directory_iterator entries("/proc/" + std::to_string(pid) + "/fd", refused);
  return static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
}

bool is_alive(pid_t pid) {
  // "PID (NAME) STATE ...": one that only waits to be reaped by whoever has adopted it is dead.
  const std::string status = contents_of("/proc/" + std::to_string(pid) + "/stat");
  const std::size_t name_end = status.rfind(") ");
  return name_end != std::string::npos && status[name_end + 2] != 'Z';
}

}  // namespace vmbusd::daemon
