// The service manager's notification protocol. [systemd: sd_notify(3)]
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace vmbusd::daemon {

class ServiceNotifier {
 public:
  // Takes its variables out of the environment, so that no child process speaks for us.
  ServiceNotifier();

  // How often "WATCHDOG=1" is to be sent, half of what the service manager allows; empty: never.
  // [systemd: sd_watchdog_enabled(3)]
  [[nodiscard]] std::optional<std::chrono::microseconds> watchdog_interval() const {
    return watchdog_interval_;
  }

  // Sends lines such as "READY=1"; nothing where no service manager listens or it cannot be reached.
  void notify(std::string_view state) const;

 private:
  std::string socket_path_;
  std::optional<std::chrono::microseconds> watchdog_interval_;
};

}  // namespace vmbusd::daemon
