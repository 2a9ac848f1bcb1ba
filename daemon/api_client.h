// One request to a running vmbusd by its control socket.
#pragma once

#include <string>
#include <tl/expected.hpp>

namespace vmbusd::daemon {

struct ApiAnswer {
  unsigned status = 0;  // of HTTP
  std::string body;
};

// Blocks until the answer is there, a minute at most. The error is text for the operator.
[[nodiscard]] tl::expected<ApiAnswer, std::string> ask_vmbusd(const std::string& socket,
                                                              const std::string& method,
                                                              const std::string& target,
                                                              const std::string& body);

}  // namespace vmbusd::daemon
