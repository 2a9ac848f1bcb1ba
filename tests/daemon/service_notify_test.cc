#include "daemon/service_notify.h"

#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <string>

#include "tests/catch.h"

namespace vmbusd::daemon {
namespace {

std::optional<std::chrono::microseconds> interval_with(const char* usec, const std::string& pid) {
  ::setenv("WATCHDOG_USEC", usec, 1);
  if (pid.empty()) {
    ::unsetenv("WATCHDOG_PID");
  } else {
    ::setenv("WATCHDOG_PID", pid.c_str(), 1);
  }
  return ServiceNotifier().watchdog_interval();
}

TEST_CASE("the watchdog is fed twice in its time", "[daemon]") {
  CHECK(interval_with("30000000", "") == std::chrono::seconds(15));
  CHECK(interval_with("30000000", std::to_string(::getpid())) == std::chrono::seconds(15));
  CHECK(::getenv("WATCHDOG_USEC") == nullptr);
  CHECK(::getenv("WATCHDOG_PID") == nullptr);
  CHECK_FALSE(interval_with("30000000", "1"));
  CHECK_FALSE(interval_with("0", ""));
  CHECK_FALSE(interval_with("1", ""));
  CHECK_FALSE(interval_with("soon", ""));
  CHECK_FALSE(interval_with("99999999999999999999", ""));
}

}  // namespace
}  // namespace vmbusd::daemon
