// A network namespace for tests that make interfaces.
#pragma once

#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "base/fd.h"
#include "tests/catch.h"

namespace vmbusd::netvsp {

// The calling thread is in a fresh network namespace while this lives.
class NetworkNamespace {
 public:
  NetworkNamespace() : before_(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)) {
    usable_ = before_ && ::unshare(CLONE_NEWNET) == 0 && ::access("/dev/net/tun", R_OK | W_OK) == 0;
  }
  ~NetworkNamespace() {
    if (before_) static_cast<void>(::setns(before_.get(), CLONE_NEWNET));
  }
  NetworkNamespace(const NetworkNamespace&) = delete;
  NetworkNamespace& operator=(const NetworkNamespace&) = delete;
  [[nodiscard]] bool usable() const { return usable_; }

 private:
  UniqueFd before_;
  bool usable_ = false;
};

#define NEED_NAMESPACE()                                                              \
  const NetworkNamespace network;                                                     \
  if (!network.usable()) {                                                            \
    WARN("no network namespace or no /dev/net/tun for this user: nothing is tested"); \
    return;                                                                           \
  }

// ip link set NAME up, or down
inline void set_interface(const std::string& name, bool up) {
  const UniqueFd control(::socket(AF_INET, SOCK_DGRAM, 0));
  ifreq request{};
  name.copy(request.ifr_name, IFNAMSIZ - 1);
  REQUIRE(::ioctl(control.get(), SIOCGIFFLAGS, &request) == 0);
  const int flags = request.ifr_flags | IFF_NOARP;
  request.ifr_flags = static_cast<short>(up ? flags | IFF_UP : flags & ~IFF_UP);
  REQUIRE(::ioctl(control.get(), SIOCSIFFLAGS, &request) == 0);
}

// ip link del NAME
inline void remove_interface(const std::string& name) {
  struct {
    nlmsghdr header;
    ifinfomsg link;
  } message{};
  message.header.nlmsg_len = sizeof message;
  message.header.nlmsg_type = RTM_DELLINK;
  message.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  message.link.ifi_index = static_cast<int>(::if_nametoindex(name.c_str()));
  REQUIRE(message.link.ifi_index != 0);
  const UniqueFd netlink(::socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
  REQUIRE(::send(netlink.get(), &message, sizeof message, 0) == sizeof message);
  char answer[1024];
  REQUIRE(::recv(netlink.get(), answer, sizeof answer, 0) > 0);
}

}  // namespace vmbusd::netvsp
