// The socket pair between the supervisor and a partition's worker process: datagrams of text with
// descriptors.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace vmbusd::daemon {

inline constexpr std::size_t kCommandBytesMax = 128 * 1024;  // a controller with all its disks takes a third
inline constexpr std::size_t kCommandFdsMax = 250;           // the kernel's own bound is 253 (SCM_MAX_FD)

struct CommandDatagram {
  std::string text;
  std::vector<UniqueFd> fds;  // close-on-exec
};

// Both ends close-on-exec and non-blocking.
[[nodiscard]] Result<std::pair<UniqueFd, UniqueFd>> make_command_sockets();

// Errc::kLimit where the socket is full and nothing was sent, Errc::kClosed where the peer is gone.
[[nodiscard]] Result<void> send_command(int socket, std::string_view text, std::span<const int> fds = {});
// Empty where nothing is there, Errc::kClosed at the end, Errc::kProtocol where it was longer than the
// bounds.
[[nodiscard]] Result<std::optional<CommandDatagram>> receive_command(int socket);

}  // namespace vmbusd::daemon
