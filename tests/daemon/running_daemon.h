// A vmbusd under test: started as a process of its own, watched through what any operator has.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/temporary_directory.h"

namespace vmbusd::daemon {

// How long a test waits for what should take milliseconds; sanitizers and busy machines are slow.
inline constexpr std::chrono::seconds kPatience{30};

struct Finished {
  int status = -1;     // exit status, -1 where it was killed
  std::string output;  // standard output and standard error
};

// Runs a program to its end.
[[nodiscard]] Finished run_program(const char* program, const std::vector<std::string>& arguments);
// That is vmbusd.
[[nodiscard]] Finished run_vmbusd(const std::vector<std::string>& arguments);

// How vmbusd is started, beside its configuration.
struct StartedWith {
  std::vector<std::string> arguments = {};
  std::vector<std::string> environment = {};  // "NAME=value"
  std::vector<int> fds = {};                  // become its descriptors from 3 on
  std::string shell = {};                     // run by the shell that becomes vmbusd
};

class RunningDaemon {
 public:
  // Starts vmbusd on `config` (written to a file in `directory`), with a service manager's socket.
  RunningDaemon(const TemporaryDirectory& directory, const std::string& config, const StartedWith& with = {});
  ~RunningDaemon();  // kills what still runs
  RunningDaemon(const RunningDaemon&) = delete;
  RunningDaemon& operator=(const RunningDaemon&) = delete;

  // The next notification that begins with `state` ("READY=1"); false after kPatience.
  [[nodiscard]] bool wait_for_notification(const std::string& state);
  [[nodiscard]] bool wait_until_ready();
  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] const std::string& config_path() const { return config_path_; }
  // The only child of vmbusd, once there is one that is not `previous`.
  [[nodiscard]] pid_t worker_pid(pid_t previous = -1) const;
  void signal(int number) const;
  // Waits for the end; empty after kPatience.
  [[nodiscard]] std::optional<int> wait();
  [[nodiscard]] std::string log() const;
  // Waits until the log has `text`.
  [[nodiscard]] bool wait_for_log(const std::string& text) const;

 private:
  std::string config_path_;
  std::string log_path_;
  UniqueFd notifications_;
  pid_t pid_ = -1;
};

// 0 where the kernel does not say: root alone is told of workers.
[[nodiscard]] std::size_t open_descriptors(pid_t pid);
[[nodiscard]] bool is_alive(pid_t pid);

// Calls `done` until it says true; false after kPatience.
template <typename Done>
[[nodiscard]] bool eventually(Done&& done) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!done()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    struct timespec pause {
      0, 5'000'000
    };
    ::nanosleep(&pause, nullptr);
  }
  return true;
}

}  // namespace vmbusd::daemon
