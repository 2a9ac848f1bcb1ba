#include "tests/daemon/http_client.h"

#include <sys/socket.h>

#include <array>
#include <cstdlib>

#include "base/unix_socket.h"

namespace vmbusd::daemon {

UniqueFd connect_control(const std::string& socket) {
  auto connected = connect_unix(socket, SOCK_STREAM);
  return connected ? *std::move(connected) : UniqueFd();
}

HttpAnswer send_and_read(const std::string& socket, const std::string& bytes) {
  const UniqueFd connection = connect_control(socket);
  std::string sent = bytes;
  while (!sent.empty()) {
    const ssize_t put = ::send(connection.get(), sent.data(), sent.size(), MSG_NOSIGNAL);
    if (put <= 0) break;  // it has heard enough
    sent.erase(0, static_cast<std::size_t>(put));
  }
  std::string got;
  std::array<char, 4096> chunk;
  for (;;) {
    const ssize_t size = ::recv(connection.get(), chunk.data(), chunk.size(), 0);
    if (size <= 0) break;
    got.append(chunk.data(), static_cast<std::size_t>(size));
  }
  const std::size_t end = got.find("\r\n\r\n");
  if (end == std::string::npos || !got.starts_with("HTTP/1.1 ")) return {};
  return {std::atoi(got.c_str() + 9), got.substr(0, end), got.substr(end + 4)};
}

HttpAnswer ask(const std::string& socket, const std::string& method, const std::string& target,
               const std::string& body) {
  return send_and_read(socket, method + " " + target +
                                   " HTTP/1.1\r\nHost: vmbusd\r\nConnection: close\r\nContent-Length: " +
                                   std::to_string(body.size()) + "\r\n\r\n" + body);
}

}  // namespace vmbusd::daemon
