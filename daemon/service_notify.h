// The service manager's notification protocol. [systemd: sd_notify(3)]
#pragma once

#include <string>
#include <string_view>

namespace vmbusd::daemon {

class ServiceNotifier {
 public:
  // Takes NOTIFY_SOCKET out of the environment, so that no child process speaks for us.
  ServiceNotifier();

  // Sends lines such as "READY=1"; nothing where no service manager listens or it cannot be reached.
  void notify(std::string_view state) const;

 private:
  std::string socket_path_;
};

}  // namespace vmbusd::daemon
