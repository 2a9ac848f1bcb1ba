#include "daemon/nic_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace vmbusd::daemon {

namespace {

std::string explain_tap_error(const NicSource& source, const netvsp::NicConfig& nic, int os_error) {
  const std::string refused = fmt::format("cannot open TAP {}: {}", source.tap, std::strerror(os_error));
  const char* const multi_queue = nic.queues > 1 ? " multi_queue" : "";
  switch (os_error) {
    case EPERM:
      return fmt::format(
          "{}; run vmbusd with CAP_NET_ADMIN, or make the interface for its user: ip tuntap add {} mode tap "
          "user "
          "USER vnet_hdr{}",
          refused, source.tap, multi_queue);
    case EINVAL:
      return fmt::format("{}; it is there and of another kind, wanted: mode tap vnet_hdr{}", refused,
                         multi_queue);
    case EBUSY:
      return fmt::format("{}; another program uses it", refused);
    default:
      return refused;
  }
}

// One more queue of the interface, which is made with the first. Returns an errno value.
int open_tap_queue(const std::string& name, bool multi_queue, netvsp::NicConfig& nic) {
  UniqueFd fd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return errno;
  ifreq request{};
  name.copy(request.ifr_name, IFNAMSIZ - 1);
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  if (multi_queue) request.ifr_flags |= IFF_MULTI_QUEUE;
  if (::ioctl(fd.get(), TUNSETIFF, &request) != 0) return errno;
  nic.fds.push_back(std::move(fd));
  return 0;
}

std::optional<SourceProblem> open_tap(const NicSource& source, netvsp::NicConfig& nic) {
  const bool multi_queue = nic.queues > 1;
  for (std::uint32_t i = 0; i < nic.queues; ++i) {
    int refused = open_tap_queue(source.tap, multi_queue, nic);
    // It is there and has a single queue, most likely. [linux: tun_set_iff]
    if (refused == EINVAL && i == 0 && multi_queue && source.any_queues &&
        open_tap_queue(source.tap, false, nic) == 0) {
      nic.queues = 1;
      refused = 0;
    }
    if (refused != 0) return SourceProblem{explain_tap_error(source, nic, refused), false, refused == EBUSY};
  }
  return std::nullopt;
}

std::optional<SourceProblem> connect_stream(const NicSource& source, netvsp::NicConfig& nic) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  source.socket.copy(address.sun_path, sizeof address.sun_path - 1);  // the configuration's bound is the same
  // A peer that does not accept must not hold up the other partitions: EAGAIN where its backlog is full.
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const int refused = errno;
    return SourceProblem{
        fmt::format("cannot connect to {}: {}; start what listens there, such as passt --socket",
                    source.socket, std::strerror(refused)),
        refused == ENOENT || refused == ECONNREFUSED || refused == EAGAIN};
  }
  nic.fds.push_back(std::move(fd));
  return std::nullopt;
}

std::optional<SourceProblem> adopt(const NicSource& source, netvsp::NicConfig& nic) {
  for (const int fd : source.fds) {
    // A duplicate: where two NICs name one descriptor, the second fails on its own.
    UniqueFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (!own) return SourceProblem{fmt::format("descriptor {} was not given to vmbusd", fd)};
    nic.fds.push_back(std::move(own));
  }
  return std::nullopt;
}

std::optional<SourceProblem> open_any(const NicSource& source, netvsp::NicConfig& nic) {
  if (!source.fds.empty()) return adopt(source, nic);
  if (!source.tap.empty()) return open_tap(source, nic);
  if (!source.socket.empty()) return connect_stream(source, nic);
  return std::nullopt;
}

}  // namespace

std::optional<SourceProblem> open_nic_source(const NicSource& source, netvsp::NicConfig& nic) {
  std::optional<SourceProblem> problem = open_any(source, nic);
  if (problem) nic.fds.clear();
  return problem;
}

bool interface_is_there(const netvsp::NicConfig& nic) {
  if (nic.backend != netvsp::NicConfig::Backend::kTap || nic.fds.empty()) return true;
  ifreq request{};
  return ::ioctl(nic.fds.front().get(), TUNGETIFF, &request) == 0;
}

}  // namespace vmbusd::daemon
