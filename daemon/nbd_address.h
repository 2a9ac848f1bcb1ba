// Where an NBD server is, and how it is reached.
#pragma once

#include <sys/socket.h>

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"

namespace vmbusd::daemon {

struct NbdAddress {
  std::string socket;       // absolute path of a Unix socket; empty: by TCP
  std::string host;         // name or number, where `socket` is empty
  std::string port;         // number, the same
  std::string export_name;  // may be empty: the server's default
  std::string uri;          // all of that, as it was written
};

inline constexpr std::size_t kExportNameBytesMax = 255;
inline constexpr std::string_view kNbdAddressAccepted =
    "\"nbd+unix:///EXPORT?socket=/PATH\" or \"nbd://HOST:PORT/EXPORT\"";

// A URI as libnbd, nbdkit and QEMU take it [NBD URI specification]: nbd://host[:port][/export] or
// nbd+unix:///[export]?socket=path, percent-encoded. Empty for anything else, TLS (nbds) among it.
[[nodiscard]] std::optional<NbdAddress> parse_nbd_address(std::string_view uri);

// One way to a server.
struct SocketAddress {
  sockaddr_storage address{};
  socklen_t size = 0;
};

// All ways, in the order to try them; a host's name is looked up, which may take the resolver's time. Empty:
// there is none, and `problem` says why.
[[nodiscard]] std::vector<SocketAddress> resolve(const NbdAddress& address, std::string& problem);

// A socket that is connected or, where the answer is EINPROGRESS, becomes so: connecting() tells. 0 or a
// positive errno. Never blocks.
[[nodiscard]] int begin_connecting(const SocketAddress& address, UniqueFd& socket);
// Waits for `time` at most: EINPROGRESS where that was too short; else 0, or the errno of what went wrong.
[[nodiscard]] int connecting(int socket, std::chrono::milliseconds time);

}  // namespace vmbusd::daemon
