// A client of the control socket for tests: small, and willing to send what no good client would.
#pragma once

#include <string>

#include "base/fd.h"

namespace vmbusd::daemon {

struct HttpAnswer {
  int status = 0;  // 0: no answer
  std::string header;
  std::string body;
};

[[nodiscard]] UniqueFd connect_control(const std::string& socket);
// Sends `bytes` as they are and reads up to the end of the stream.
[[nodiscard]] HttpAnswer send_and_read(const std::string& socket, const std::string& bytes);
// One request on a connection of its own.
[[nodiscard]] HttpAnswer ask(const std::string& socket, const std::string& method, const std::string& target,
                             const std::string& body = "");

}  // namespace vmbusd::daemon
