#include "daemon/given_sockets.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <optional>
#include <utility>

namespace vmbusd::daemon {

namespace {

constexpr int kFirst = 3;  // [systemd: sd_listen_fds(3), SD_LISTEN_FDS_START]
constexpr int kCountMax = 1024;
constexpr std::string_view kAttach = "attach.";

std::optional<int> number_in(std::string_view text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::string taken_variable(const char* name) {
  const char* const value = std::getenv(name);
  std::string text = value == nullptr ? "" : value;
  ::unsetenv(name);
  return text;
}

int socket_option(int fd, int option) {
  int value = -1;
  socklen_t size = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

}  // namespace

Result<void> GivenSockets::take_from_environment(std::string& subject) {
  const std::string pid = taken_variable("LISTEN_PID");
  const std::string count_text = taken_variable("LISTEN_FDS");
  const std::string names = taken_variable("LISTEN_FDNAMES");
  if (pid != std::to_string(::getpid())) return {};
  subject = "LISTEN_FDS";
  const std::optional<int> count = number_in(count_text);
  if (!count || *count < 0 || *count > kCountMax) return fail(Errc::kConfig, "is no number of sockets");
  std::string_view left = names;
  for (int fd = kFirst; fd < kFirst + *count; ++fd) {
    const std::string_view name = left.substr(0, left.find(':'));
    left.remove_prefix(std::min(left.size(), name.size() + 1));
    subject = "socket \"" + std::string(name) + "\" of LISTEN_FDS";
    VMBUSD_CHECK(add(name, fd));
  }
  return {};
}

Result<void> GivenSockets::add(std::string_view name, int fd) {
  const bool attach = name.starts_with(kAttach) && name.size() > kAttach.size();
  if (!attach && name != "control")
    return fail(Errc::kConfig, "has a name that is none; accepted: control, attach.PARTITION");
  if (sockets_.contains(name)) return fail(Errc::kConfig, "is given twice");
  const int type = attach ? SOCK_SEQPACKET : SOCK_STREAM;
  const bool good = fd > STDERR_FILENO && socket_option(fd, SO_DOMAIN) == AF_UNIX &&
                    socket_option(fd, SO_TYPE) == type && socket_option(fd, SO_ACCEPTCONN) == 1;
  if (!good)
    return fail(Errc::kConfig, attach ? "is no listening Unix socket of type SOCK_SEQPACKET"
                                      : "is no listening Unix socket of type SOCK_STREAM");
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 || ::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
    return fail_os(errno, "cannot be used");
  sockets_.emplace(name, UniqueFd(fd));
  return {};
}

UniqueFd GivenSockets::duplicate(const std::string& name) const {
  const auto found = sockets_.find(name);
  if (found == sockets_.end()) return {};
  return UniqueFd(::fcntl(found->second.get(), F_DUPFD_CLOEXEC, 0));
}

}  // namespace vmbusd::daemon
