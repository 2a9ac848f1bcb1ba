#include "daemon/service_notify.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <cstdlib>

#include "base/fd.h"

namespace vmbusd::daemon {

ServiceNotifier::ServiceNotifier() {
  if (const char* path = std::getenv("NOTIFY_SOCKET"); path != nullptr) socket_path_ = path;
  ::unsetenv("NOTIFY_SOCKET");
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
