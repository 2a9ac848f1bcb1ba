// An NBD server for tests: nbdkit on a Unix socket, to be killed and started again.
#pragma once

#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/fd.h"

namespace vmbusd {

// Invalid where nobody listens at `path`.
inline UniqueFd connect_unix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return {};
  return fd;
}

class NbdServer {
 public:
  // What nbdkit is asked for beside its socket: filters, plugin, parameters.
  explicit NbdServer(std::vector<std::string> arguments) : arguments_(std::move(arguments)) {
    char directory[] = "/tmp/vmbusd-nbd-XXXXXX";
    VMBUSD_ASSERT(::mkdtemp(directory) != nullptr);
    directory_ = directory;
    start();
  }
  ~NbdServer() {
    kill();
    ::unlink(file().c_str());
    ::rmdir(directory_.c_str());
  }
  NbdServer(const NbdServer&) = delete;
  NbdServer& operator=(const NbdServer&) = delete;

  [[nodiscard]] std::string socket() const { return directory_ + "/socket"; }
  // A place for what the file plugin serves.
  [[nodiscard]] std::string file() const { return directory_ + "/file"; }
  void set_arguments(std::vector<std::string> arguments) { arguments_ = std::move(arguments); }

  void start() {
    std::vector<std::string> words = {"nbdkit", "--foreground", "--exit-with-parent", "--unix", socket()};
    words.insert(words.end(), arguments_.begin(), arguments_.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    VMBUSD_ASSERT(::posix_spawnp(&pid_, "nbdkit", nullptr, nullptr, argv.data(), environ) == 0);
    // Slow machines take their time; a server that ended shows.
    while (!connect_unix(socket())) {
      VMBUSD_ASSERT(::waitpid(pid_, nullptr, WNOHANG) == 0);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  // As a power cut: what it has in flight is over or was never done.
  void kill() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(std::exchange(pid_, 0), nullptr, 0);
    ::unlink(socket().c_str());
  }
  void pause() const { ::kill(pid_, SIGSTOP); }
  void go_on() const { ::kill(pid_, SIGCONT); }

 private:
  std::string directory_;
  std::vector<std::string> arguments_;
  pid_t pid_ = 0;
};

}  // namespace vmbusd
