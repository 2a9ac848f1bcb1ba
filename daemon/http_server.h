// HTTP/1.1 on a Unix socket, for those who may tell vmbusd what to do.
#pragma once

#include <sys/types.h>

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace vmbusd::daemon {

struct HttpRequest {
  std::string method;  // "GET"
  std::string target;  // "/v1/partitions"
  std::string body;
};

struct HttpResponse {
  unsigned status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::string allow = {};  // with status 405: the methods that there are
};

// Bounds on what clients can make it hold: kConnectionsMax of them, each with one request of bounded size.
// Where one more comes, the oldest that is not being answered is cut off, so that slow clients hold nobody
// up. One thread, that of the io_context.
class HttpServer {
 public:
  static constexpr std::size_t kConnectionsMax = 32;
  static constexpr std::size_t kHeaderBytesMax = 8 << 10;
  static constexpr std::size_t kBodyBytesMax = 256 << 10;  // a partition with some 1000 disks
  static constexpr std::size_t kPathBytesMax = 107;        // sockaddr_un::sun_path without its NUL

  using Respond = std::function<void(HttpResponse)>;
  // Is to call `respond` once, at once or later.
  using Handler = std::function<void(const HttpRequest& request, Respond respond)>;

  struct Options {
    std::string path;
    UniqueFd given;  // in place of a socket at the path: listening, non-blocking
    // May connect beside root and vmbusd's own user; the file of a socket at the path is the group's too
    // then.
    std::optional<gid_t> group;
  };

  // A socket that was left by a process that is gone is replaced, one on which somebody listens is not.
  [[nodiscard]] static Result<std::unique_ptr<HttpServer>> listen(boost::asio::io_context& context,
                                                                  Options options, Handler handler);
  // Closes all connections, and removes the socket unless it was given.
  virtual ~HttpServer() = default;
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

 protected:
  HttpServer() = default;
};

}  // namespace vmbusd::daemon
