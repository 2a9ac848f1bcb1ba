#include "partition/seqpacket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/assert.h"
#include "base/unix_socket.h"
#include "partition/attach_protocol.h"

namespace vmbusd::partition {

namespace {

// Attached VMMs waiting to be accepted; a partition takes one at a time.
constexpr int kBacklog = 8;

union ControlBuffer {
  cmsghdr align;  // for the alignment that CMSG_FIRSTHDR assumes
  std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> bytes;
};

// For callers that may wait on a socket that may not.
Result<void> wait_for(int socket, short events) {
  pollfd entry{socket, events, 0};
  while (::poll(&entry, 1, -1) < 0) {
    if (errno != EINTR) return fail_os(errno, "cannot poll the socket");
  }
  return {};
}

bool is_closed(int error) {
  return error == EPIPE || error == ECONNRESET || error == ENOTCONN;
}

}  // namespace

Result<UniqueFd> listen_seqpacket(const std::string& path) {
  return listen_unix(path, SOCK_SEQPACKET, kBacklog);
}

Result<UniqueFd> connect_seqpacket(const std::string& path) {
  return connect_unix(path, SOCK_SEQPACKET);
}

Result<void> send_datagram(int socket, std::span<const std::byte> bytes, std::span<const int> fds,
                           bool wait) {
  // An empty datagram reads as the end of the stream.
  VMBUSD_ASSERT(!bytes.empty() && bytes.size() <= Datagram::kMaxBytes && fds.size() <= kMaxFds);
  // sendmsg() does not write through iov_base.
  iovec vector{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  ControlBuffer control{};
  if (!fds.empty()) {
    message.msg_control = control.bytes.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  for (;;) {
    // A SOCK_SEQPACKET datagram is taken whole or not at all.
    if (::sendmsg(socket, &message, MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT)) >= 0) return {};
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (!wait) return fail(Errc::kLimit, "the socket is full");
      VMBUSD_CHECK(wait_for(socket, POLLOUT));
      continue;
    }
    if (is_closed(errno)) return fail(Errc::kClosed, "the peer closed the connection");
    return fail_os(errno, "cannot send");
  }
}

Result<std::optional<Datagram>> receive_datagram(int socket, bool wait) {
  Datagram datagram;
  iovec vector{datagram.buffer.data(), datagram.buffer.size()};
  ControlBuffer control{};
  msghdr message{};
  ssize_t received = 0;
  for (;;) {
    message = {};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes.data();
    message.msg_controllen = control.bytes.size();
    received = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | (wait ? 0 : MSG_DONTWAIT));
    if (received >= 0) break;
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (!wait) return std::nullopt;
      VMBUSD_CHECK(wait_for(socket, POLLIN));
      continue;
    }
    if (is_closed(errno)) return fail(Errc::kClosed, "the peer closed the connection");
    return fail_os(errno, "cannot receive");
  }
  // Descriptors first: whatever is wrong with the datagram, those that came with it are ours to close.
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      datagram.fds.emplace_back(fd);
    }
  }
  if (received == 0) return fail(Errc::kClosed, "the peer closed the connection");
  if ((message.msg_flags & MSG_TRUNC) != 0) return fail(Errc::kProtocol, "the datagram is too long");
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    // There was room for kMaxFds: with fewer, the kernel gave up for want of numbers, not of room.
    if (datagram.fds.size() >= kMaxFds) {
      return fail(Errc::kProtocol, "the datagram carries too many descriptors");
    }
    datagram.fds.emplace_back();
  }
  datagram.size = static_cast<std::size_t>(received);
  return datagram;
}

}  // namespace vmbusd::partition
