#include "daemon/nbd_address.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

namespace vmbusd::daemon {

namespace {

constexpr std::string_view kTcpScheme = "nbd://";
constexpr std::string_view kUnixScheme = "nbd+unix://";
constexpr std::string_view kDefaultPort = "10809";  // [IANA: nbd]
constexpr std::size_t kHostBytesMax = 253;

int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Without control characters, which neither names nor paths have for a good reason.
std::optional<std::string> decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      if (text.size() - i < 3 || digit(text[i + 1]) < 0 || digit(text[i + 2]) < 0) return std::nullopt;
      c = static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
      i += 2;
    }
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return std::nullopt;
    out += c;
  }
  return out;
}

bool is_port(std::string_view text) {
  unsigned port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  return error == std::errc() && end == text.data() + text.size() && port >= 1 && port <= 65535;
}

// "host", "host:port", "[address]", "[address]:port"
bool parse_authority(std::string_view text, NbdAddress& address) {
  address.port = kDefaultPort;
  std::size_t colon = text.find(':');
  if (text.starts_with('[')) {
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos) return false;
    address.host = text.substr(1, end - 1);
    colon = end + 1 == text.size() ? std::string_view::npos : end + 1;
    if (colon != std::string_view::npos && text[colon] != ':') return false;
  } else {
    address.host = text.substr(0, colon);
  }
  if (colon != std::string_view::npos) address.port = text.substr(colon + 1);
  const auto good = [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '-' || c == '_' || c == ':' || c == '%';
  };
  return !address.host.empty() && address.host.size() <= kHostBytesMax &&
         std::all_of(address.host.begin(), address.host.end(), good) && is_port(address.port);
}

// A server's host that fails without a word is noticed within.
void watch_peer(int socket) {
  constexpr int kOn = 1;
  constexpr int kIdleS = 5;
  constexpr int kIntervalS = 2;
  constexpr unsigned kUnansweredMs = 15'000;
  ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &kOn, sizeof kOn);
  ::setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &kOn, sizeof kOn);
  ::setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &kIdleS, sizeof kIdleS);
  ::setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &kIntervalS, sizeof kIntervalS);
  ::setsockopt(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUnansweredMs, sizeof kUnansweredMs);
}

}  // namespace

std::optional<NbdAddress> parse_nbd_address(std::string_view uri) {
  NbdAddress address;
  address.uri = uri;
  const bool local = uri.starts_with(kUnixScheme);
  if (!local && !uri.starts_with(kTcpScheme)) return std::nullopt;
  uri.remove_prefix(local ? kUnixScheme.size() : kTcpScheme.size());
  if (uri.find('#') != std::string_view::npos) return std::nullopt;

  std::string_view query;
  if (const std::size_t mark = uri.find('?'); mark != std::string_view::npos) {
    query = uri.substr(mark + 1);
    uri = uri.substr(0, mark);
  }
  const std::size_t slash = uri.find('/');
  const std::string_view authority = uri.substr(0, slash);
  const auto name = decoded(slash == std::string_view::npos ? std::string_view() : uri.substr(slash + 1));
  if (!name || name->size() > kExportNameBytesMax) return std::nullopt;

  address.export_name = *name;
  if (!local) {
    if (!query.empty() || !parse_authority(authority, address)) return std::nullopt;
    return address;
  }
  constexpr std::string_view kSocket = "socket=";
  if (!authority.empty() || !query.starts_with(kSocket)) return std::nullopt;
  const auto path = decoded(query.substr(kSocket.size()));
  if (!path || !path->starts_with('/') || path->size() >= sizeof(sockaddr_un{}.sun_path)) return std::nullopt;
  address.socket = *path;
  return address;
}

std::vector<SocketAddress> resolve(const NbdAddress& address, std::string& problem) {
  std::vector<SocketAddress> found;
  if (!address.socket.empty()) {
    sockaddr_un path{};
    path.sun_family = AF_UNIX;
    address.socket.copy(path.sun_path, sizeof path.sun_path - 1);
    std::memcpy(&found.emplace_back().address, &path, sizeof path);
    found.back().size = sizeof path;
    return found;
  }
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int refused = ::getaddrinfo(address.host.c_str(), address.port.c_str(), &hints, &list);
  if (refused != 0) {
    problem = refused == EAI_SYSTEM ? std::strerror(errno) : ::gai_strerror(refused);
    return found;
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owned(list, &::freeaddrinfo);
  for (const addrinfo* each = list; each != nullptr; each = each->ai_next) {
    if (each->ai_addrlen > sizeof(sockaddr_storage)) continue;
    std::memcpy(&found.emplace_back().address, each->ai_addr, each->ai_addrlen);
    found.back().size = each->ai_addrlen;
  }
  return found;
}

int begin_connecting(const SocketAddress& address, UniqueFd& socket) {
  const int family = address.address.ss_family;
  socket = UniqueFd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return errno;
  if (family != AF_UNIX) watch_peer(socket.get());
  const auto* const to = reinterpret_cast<const sockaddr*>(&address.address);
  return ::connect(socket.get(), to, address.size) == 0 ? 0 : errno;
}

int connecting(int socket, std::chrono::milliseconds time) {
  pollfd poll{socket, POLLOUT, 0};
  const int ready = ::poll(&poll, 1, static_cast<int>(time.count()));
  if (ready == 0 || (ready < 0 && errno == EINTR)) return EINPROGRESS;
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
  return error;
}

}  // namespace vmbusd::daemon
