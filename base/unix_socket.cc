#include "base/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace vmbusd {

namespace {

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty()) return fail(Errc::kConfig, "the socket's path is empty");
  if (path.size() >= sizeof address.sun_path) {
    return fail(Errc::kConfig, "the socket's path is longer than 107 bytes");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<UniqueFd> make_socket(int type) {
  UniqueFd socket(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!socket) return fail_os(errno, "cannot make a Unix socket");
  return socket;
}

int bind_to(int socket, const sockaddr_un& address) {
  return ::bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
}

int connect_to(int socket, const sockaddr_un& address) {
  for (;;) {
    if (::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return 0;
    if (errno != EINTR) return errno;
  }
}

}  // namespace

Result<UniqueFd> listen_unix(const std::string& path, int type, int backlog) {
  VMBUSD_TRY(const sockaddr_un address, address_of(path));
  VMBUSD_TRY(UniqueFd socket, make_socket(type));
  // bind() gives the file the socket's own mode less the umask, so there is no moment at which others may
  // connect [linux: net/unix/af_unix.c, unix_bind_bsd].
  if (::fchmod(socket.get(), S_IRUSR | S_IWUSR) != 0) return fail_os(errno, "cannot set the socket's mode");
  int error = bind_to(socket.get(), address);
  if (error == EADDRINUSE) {
    VMBUSD_TRY(const UniqueFd probe, make_socket(type));
    // Only a socket that nobody listens on refuses; any other file or error stays as it is.
    if (connect_to(probe.get(), address) != ECONNREFUSED) {
      return fail_os(EADDRINUSE, "cannot bind the socket");
    }
    struct stat status {};
    if (::lstat(path.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) {
      return fail_os(EADDRINUSE, "cannot bind the socket");
    }
    if (::unlink(path.c_str()) != 0) return fail_os(errno, "cannot remove the stale socket");
    error = bind_to(socket.get(), address);
  }
  if (error != 0) return fail_os(error, "cannot bind the socket");
  if (::listen(socket.get(), backlog) != 0) return fail_os(errno, "cannot listen on the socket");
  return socket;
}

Result<UniqueFd> connect_unix(const std::string& path, int type) {
  VMBUSD_TRY(const sockaddr_un address, address_of(path));
  VMBUSD_TRY(UniqueFd socket, make_socket(type));
  const int error = connect_to(socket.get(), address);
  if (error != 0) return fail_os(error, "cannot connect to the socket");
  return socket;
}

}  // namespace vmbusd
