#include "daemon/service_notify.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "base/fd.h"

namespace vmbusd::daemon {

namespace {

std::optional<std::uint64_t> number_in(const char* variable) {
  const char* const text = std::getenv(variable);
  if (text == nullptr) return std::nullopt;
  const std::string_view digits(text);
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  constexpr std::uint64_t kMax = INT64_MAX;
  if (error != std::errc() || end != digits.data() + digits.size() || number > kMax) return std::nullopt;
  return number;
}

}  // namespace

ServiceNotifier::ServiceNotifier() {
  if (const char* path = std::getenv("NOTIFY_SOCKET"); path != nullptr) socket_path_ = path;
  ::unsetenv("NOTIFY_SOCKET");
  const std::optional<std::uint64_t> allowed_us = number_in("WATCHDOG_USEC");
  const std::optional<std::uint64_t> pid = number_in("WATCHDOG_PID");
  const bool ours = !pid || *pid == static_cast<std::uint64_t>(::getpid());
  if (allowed_us && *allowed_us >= 2 && ours) watchdog_interval_ = std::chrono::microseconds(*allowed_us / 2);
  ::unsetenv("WATCHDOG_USEC");
  ::unsetenv("WATCHDOG_PID");
}

void ServiceNotifier::notify(std::string_view state) const {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket_path_.size() < 2 || socket_path_.size() >= sizeof address.sun_path) return;
  if (socket_path_.front() != '/' && socket_path_.front() != '@') return;
  socket_path_.copy(address.sun_path, socket_path_.size());
  if (socket_path_.front() == '@') address.sun_path[0] = '\0';  // abstract
  const UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket) return;
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + socket_path_.size());
  (void)::sendto(socket.get(), state.data(), state.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
                 reinterpret_cast<const sockaddr*>(&address), size);
}

}  // namespace vmbusd::daemon
