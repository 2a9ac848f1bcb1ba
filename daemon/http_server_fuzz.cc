// Fuzz target of the control socket: whatever a client sends, in pieces of any size, each answer is a whole
// HTTP response with JSON or metrics in it, and the connection ends when the client has said its last word.
// Behind it stands the control API with no partition; where one would be added, its body is read and no more.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/log.h"
#include "base/temporary_directory.h"
#include "daemon/control_api.h"
#include "daemon/http_server.h"
#include "fuzz/fuzz_target.h"

namespace vmbusd::daemon {
namespace {

using fuzz::promise;

class Fixture {
 public:
  Fixture() {
    log_set_level(LogLevel::kError);
    auto listening =
        HttpServer::listen(context_, {.path = directory_.path("socket"), .given = {}, .group = std::nullopt},
                           [this](const HttpRequest& request, HttpServer::Respond respond) {
                             handle(request, std::move(respond));
                           });
    promise(listening.has_value(), "the server listens");
    server_ = std::move(*listening);
  }

  // What the server answers to `bytes`, which come in pieces of `piece` bytes.
  std::string talk(std::string_view bytes, std::size_t piece) {
    requests_ = 0;
    const UniqueFd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    directory_.path("socket").copy(address.sun_path, sizeof address.sun_path - 1);
    promise(::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
            "connected");
    std::string answer;
    bool open = true;
    while (open && !bytes.empty()) {
      const std::string_view part = bytes.substr(0, piece);
      const ssize_t sent = ::send(client.get(), part.data(), part.size(), MSG_NOSIGNAL);
      if (sent > 0) bytes.remove_prefix(static_cast<std::size_t>(sent));
      open = take(client.get(), answer);
    }
    ::shutdown(client.get(), SHUT_WR);
    // Each turn takes something off the socket or ends it.
    for (std::size_t turn = 0; open; ++turn) {
      promise(turn < 10'000, "the connection ends with its client");
      open = take(client.get(), answer);
    }
    return answer;
  }
  [[nodiscard]] std::size_t requests() const { return requests_; }

 private:
  void handle(const HttpRequest& request, HttpServer::Respond respond) {
    ++requests_;
    promise(request.body.size() <= HttpServer::kBodyBytesMax, "bodies are bounded");
    promise(request.target.size() <= HttpServer::kHeaderBytesMax, "targets are bounded");
    if (request.method == "POST" && request.target == "/v1/partitions") {
      if (parse_partition(request.body, "/etc/vmbusd").problems.empty()) {
        return respond({409, "{\"error\":\"none is added here\"}\n"});
      }
    }
    api_.handle(request, std::move(respond));
  }

  static Config some_config() {
    Config config;
    config.control_socket = "/run/vmbusd/control.sock";
    return config;
  }

  // Lets the server work; false once it has closed the connection.
  bool take(int socket, std::string& answer) {
    context_.restart();
    context_.poll();
    std::array<char, 4096> buffer;
    for (;;) {
      const ssize_t got = ::recv(socket, buffer.data(), buffer.size(), 0);
      if (got < 0) return errno == EAGAIN;
      if (got == 0) return false;
      answer.append(buffer.data(), static_cast<std::size_t>(got));
    }
  }

  TemporaryDirectory directory_;
  boost::asio::io_context context_;
  EventLog events_{context_, std::chrono::milliseconds(0)};
  PartitionSet partitions_{context_, LogLevel::kError, events_, {[] {}, [] {}, [] {}}};
  Config own_ = some_config();
  ControlApi api_{partitions_, events_, own_, "/etc/vmbusd",
                  [] { return std::vector<std::string>{"it is unreadable"}; }};
  std::unique_ptr<HttpServer> server_;
  std::size_t requests_ = 0;
};

// Takes one response off the front of `answer`.
void check_response(std::string_view& answer) {
  constexpr std::string_view kStatus = "HTTP/1.1 ";
  promise(answer.starts_with(kStatus), "an answer is an HTTP response");
  const std::size_t header_end = answer.find("\r\n\r\n");
  promise(header_end != std::string_view::npos, "a response's header ends");
  const std::string_view header = answer.substr(0, header_end + 2);
  unsigned status = 0;
  std::from_chars(header.data() + kStatus.size(), header.data() + header.size(), status);
  promise(status >= 200 && status <= 499, "it is done or refused");
  answer.remove_prefix(header_end + 4);

  constexpr std::string_view kLength = "Content-Length: ";
  const std::size_t at = header.find(kLength);
  std::size_t length = 0;
  if (at != std::string_view::npos) {
    std::from_chars(header.data() + at + kLength.size(), header.data() + header.size(), length);
  }
  promise(length <= answer.size(), "a response's body is whole");
  const std::string_view body = answer.substr(0, length);
  answer.remove_prefix(length);
  promise((status == 204) == body.empty(), "what has nothing to say says so");
  if (header.find("application/json") != std::string_view::npos) {
    promise(nlohmann::json::accept(body), "the body is JSON");
  }
}

}  // namespace
}  // namespace vmbusd::daemon

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmbusd::daemon;
  static Fixture fixture;
  if (size == 0) return 0;
  // The first byte says how the rest is cut.
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string answers = fixture.talk(bytes, 1 + std::size_t{data[0]} * data[0]);
  std::string_view left = answers;
  std::size_t responses = 0;
  for (; !left.empty(); ++responses) check_response(left);
  promise(responses >= fixture.requests() && responses <= fixture.requests() + 1,
          "one answer to each request, and one to what is none");
  return 0;
}
