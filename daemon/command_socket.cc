#include "daemon/command_socket.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/assert.h"

namespace vmbusd::daemon {

namespace {
constexpr std::size_t kControlBytes = CMSG_SPACE(kCommandFdsMax * sizeof(int));
}  // namespace

Result<std::pair<UniqueFd, UniqueFd>> make_command_sockets() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()) != 0) {
    return fail_os(errno, "cannot make a socket pair");
  }
  return std::pair(UniqueFd(ends[0]), UniqueFd(ends[1]));
}

Result<void> send_command(int socket, std::string_view text, std::span<const int> fds) {
  VMBUSD_ASSERT(text.size() <= kCommandBytesMax && fds.size() <= kCommandFdsMax);
  iovec part{const_cast<char*>(text.data()), text.size()};  // sendmsg does not write through it
  alignas(cmsghdr) std::array<std::byte, kControlBytes> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  while (::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    switch (errno) {
      case EINTR:
        continue;
      case EAGAIN:
        return fail(Errc::kLimit, "the socket is full");
      case EPIPE:
      case ECONNRESET:
        return fail(Errc::kClosed, "the other process is gone");
      default:
        return fail_os(errno, "cannot send");
    }
  }
  return {};
}

Result<std::optional<CommandDatagram>> receive_command(int socket) {
  CommandDatagram datagram;
  datagram.text.resize(kCommandBytesMax);
  iovec part{datagram.text.data(), datagram.text.size()};
  alignas(cmsghdr) std::array<std::byte, kControlBytes> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    if (errno == EAGAIN) return std::optional<CommandDatagram>();
    if (errno == ECONNRESET) return fail(Errc::kClosed, "the other process is gone");
    return fail_os(errno, "cannot receive");
  }
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    std::vector<int> fds((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    std::memcpy(fds.data(), CMSG_DATA(header), fds.size() * sizeof(int));
    for (const int fd : fds) datagram.fds.emplace_back(fd);
  }
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    return fail(Errc::kProtocol, "datagram longer than the protocol has");
  }
  // Both sides send text always, so that nothing at all is the end of the stream.
  if (got == 0) return fail(Errc::kClosed, "the other process is gone");
  datagram.text.resize(static_cast<std::size_t>(got));
  return std::optional(std::move(datagram));
}

}  // namespace vmbusd::daemon
