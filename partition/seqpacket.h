// A connected SOCK_SEQPACKET socket that carries datagrams with file descriptors.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace vmbusd::partition {

struct Datagram {
  static constexpr std::size_t kMaxBytes = 512;
  std::array<std::byte, kMaxBytes> buffer;
  std::size_t size = 0;
  // Close-on-exec. One that is empty stands for all those that this process had no number left for.
  std::vector<UniqueFd> fds;

  [[nodiscard]] std::span<const std::byte> bytes() const { return std::span(buffer).first(size); }
};

// Binds and listens at `path` (mode 0600 unless the umask says less); a stale socket file that nobody listens
// on is replaced, one in use is an error.
[[nodiscard]] Result<UniqueFd> listen_seqpacket(const std::string& path);
[[nodiscard]] Result<UniqueFd> connect_seqpacket(const std::string& path);

// Sends one datagram. With `wait` false, a full socket is Errc::kLimit and nothing was sent. Never raises
// SIGPIPE.
[[nodiscard]] Result<void> send_datagram(int socket, std::span<const std::byte> bytes,
                                         std::span<const int> fds = {}, bool wait = true);
// Receives one datagram; empty where none is there and the socket does not block. Errc::kClosed at end of
// stream; Errc::kProtocol where it was truncated (too long, or more descriptors than the protocol has).
[[nodiscard]] Result<std::optional<Datagram>> receive_datagram(int socket, bool wait);

}  // namespace vmbusd::partition
