// Unix sockets by their paths.
#pragma once

#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace vmbusd {

// Both: `type` is SOCK_STREAM or SOCK_SEQPACKET; close-on-exec, blocking.

// The file has mode 0600. A socket that was left by a process that is gone is replaced. Errc::kConfig: no
// path, or one of more than 107 bytes; Errc::kOs, EADDRINUSE: somebody listens there, or the file is no
// socket.
[[nodiscard]] Result<UniqueFd> listen_unix(const std::string& path, int type, int backlog);
[[nodiscard]] Result<UniqueFd> connect_unix(const std::string& path, int type);

}  // namespace vmbusd
