#include "daemon/http_server.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <boost/optional.hpp>
#include <cerrno>
#include <chrono>
#include <list>
#include <utility>

#include "base/fd.h"
#include "base/log.h"
#include "base/unix_socket.h"

namespace vmbusd::daemon {

namespace {

namespace http = boost::beast::http;
using boost::system::error_code;
using Local = boost::asio::local::stream_protocol;
using Stream = boost::beast::basic_stream<Local>;
using namespace std::chrono_literals;

constexpr auto kReadTime = 30s;  // for a request, from the moment that its connection waits for it
constexpr auto kWriteTime = 10s;
constexpr int kBacklog = 64;

const LogScope kLog("control");

// Root and vmbusd's own user, and who is in the group. [socket(7): SO_PEERCRED, SO_PEERGROUPS]
bool may_connect(int socket, std::optional<gid_t> group) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
  if (peer.uid == 0 || peer.uid == ::geteuid()) return true;
  if (!group) return false;
  if (peer.gid == *group) return true;
  std::array<gid_t, 1024> groups;
  size = sizeof groups;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &size) != 0) return false;
  const auto end = groups.begin() + size / sizeof(gid_t);
  return std::find(groups.begin(), end, *group) != end;
}

// One connection: reads a request, has it answered, and again. Owned by the server's list; a handler that
// answers late keeps it too.
class Session : public std::enable_shared_from_this<Session> {
 public:
  using Ended = std::function<void(Session&)>;

  Session(Local::socket socket, const HttpServer::Handler& handler, Ended ended)
      : stream_(std::move(socket)), handler_(handler), ended_(std::move(ended)) {}

  // Whether it is the client that is waited for.
  [[nodiscard]] bool waits_for_client() const { return waits_for_client_; }

  void read() {
    waits_for_client_ = true;
    parser_.emplace();
    parser_->header_limit(HttpServer::kHeaderBytesMax);
    parser_->body_limit(HttpServer::kBodyBytesMax);
    stream_.expires_after(kReadTime);
    http::async_read(stream_, buffer_, *parser_,
                     [self = shared_from_this()](error_code error, std::size_t) { self->received(error); });
  }

  // Ends it, whatever it does. No call of `ended` follows.
  void close() {
    ended_ = nullptr;
    closed_ = true;
    stream_.close();
  }

 private:
  void received(error_code error) {
    if (closed_) return;
    if (error == http::error::body_limit) return refuse(413, "the request is too large");
    if (error == http::error::header_limit || error == http::error::buffer_overflow) {
      return refuse(431, "the request's header is too large");
    }
    const bool malformed = error.category() == make_error_code(http::error::bad_method).category() &&
                           error != http::error::end_of_stream && error != http::error::partial_message;
    if (malformed) return refuse(400, "not an HTTP request");
    if (error) return end();
    waits_for_client_ = false;
    stream_.expires_never();
    const auto& message = parser_->get();
    keep_alive_ = message.keep_alive();
    HttpRequest request;
    request.method = std::string(message.method_string());
    request.target = std::string(message.target());
    request.body = message.body();
    handler_(request,
             [self = shared_from_this()](HttpResponse response) { self->answer(std::move(response)); });
  }

  void refuse(unsigned status, const char* text) {
    keep_alive_ = false;
    HttpResponse response;
    response.status = status;
    response.body = std::string("{\"error\":\"") + text + "\"}\n";
    answer(std::move(response));
  }

  void answer(HttpResponse response) {
    if (closed_) return;
    response_ = {};
    response_.version(11);
    response_.result(response.status);
    response_.set(http::field::server, "vmbusd/" VMBUSD_VERSION);
    response_.set(http::field::cache_control, "no-store");
    if (!response.body.empty()) response_.set(http::field::content_type, response.content_type);
    if (!response.allow.empty()) response_.set(http::field::allow, response.allow);
    response_.keep_alive(keep_alive_);
    response_.body() = std::move(response.body);
    // A response without content says so by its status [RFC 9110: 204 No Content].
    if (response_.result() != http::status::no_content) response_.prepare_payload();
    waits_for_client_ = true;
    stream_.expires_after(kWriteTime);
    http::async_write(stream_, response_, [self = shared_from_this()](error_code error, std::size_t) {
      if (self->closed_) return;
      if (error || !self->keep_alive_) return self->end();
      self->read();
    });
  }

  void end() {
    closed_ = true;
    stream_.close();
    if (ended_) std::exchange(ended_, nullptr)(*this);
  }

  Stream stream_;
  const HttpServer::Handler& handler_;  // outlives every session that is not closed
  Ended ended_;
  boost::beast::flat_buffer buffer_{HttpServer::kHeaderBytesMax + HttpServer::kBodyBytesMax};
  boost::optional<http::request_parser<http::string_body>> parser_;
  http::response<http::string_body> response_;
  bool keep_alive_ = false;
  bool waits_for_client_ = true;
  bool closed_ = false;
};

class Server final : public HttpServer {
 public:
  Server(boost::asio::io_context& context, UniqueFd listener, Options options, Handler handler)
      : options_(std::move(options)),
        handler_(std::move(handler)),
        acceptor_(context, Local(), listener.release()),
        pause_(context) {
    accept();
  }
  ~Server() override {
    // accept() and pause are called back with an error, which looks at nothing.
    error_code ignored;
    acceptor_.close(ignored);
    for (const auto& session : sessions_) session->close();
    if (!options_.path.empty() && ::unlink(options_.path.c_str()) != 0 && errno != ENOENT) {
      kLog.warning("cannot remove {}", options_.path);
    }
  }

 private:
  void accept() {
    acceptor_.async_accept([this](error_code error, Local::socket socket) {
      if (error == boost::asio::error::operation_aborted) return;
      if (error) {
        // Out of descriptors, as a rule: what waits goes on waiting.
        kLog.error("cannot accept a connection: {}", error.message());
        pause_.expires_after(1s);
        return pause_.async_wait([this](error_code stopped) {
          if (!stopped) accept();
        });
      }
      if (may_connect(socket.native_handle(), options_.group)) {
        begin(std::move(socket));
      } else {
        kLog.warning(
            "refused a connection: its user is neither root, nor vmbusd's own, nor in the socket's group");
      }
      accept();
    });
  }

  void begin(Local::socket socket) {
    if (sessions_.size() >= kConnectionsMax) {
      // The list is in order of coming, so this is about the oldest.
      const auto silent = std::find_if(sessions_.begin(), sessions_.end(),
                                       [](const auto& session) { return session->waits_for_client(); });
      if (silent == sessions_.end()) return;  // all are at work: this one must come again
      (*silent)->close();
      sessions_.erase(silent);
    }
    sessions_.push_back(std::make_shared<Session>(std::move(socket), handler_, [this](Session& ended) {
      sessions_.remove_if([&](const auto& session) { return session.get() == &ended; });
    }));
    sessions_.back()->read();
  }

  Options options_;
  Handler handler_;
  Local::acceptor acceptor_;
  boost::asio::steady_timer pause_;
  std::list<std::shared_ptr<Session>> sessions_;
};

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::listen(boost::asio::io_context& context, Options options,
                                                       Handler handler) {
  UniqueFd listener = std::move(options.given);
  if (listener) {
    options.path.clear();
  } else {
    VMBUSD_TRY(listener, listen_unix(options.path, SOCK_STREAM, kBacklog));
  }
  if (options.group && !options.path.empty()) {
    const bool opened = ::chown(options.path.c_str(), static_cast<uid_t>(-1), *options.group) == 0 &&
                        ::chmod(options.path.c_str(), S_IRUSR | S_IWUSR | S_IRGRP | S_IWGRP) == 0;
    if (!opened) {
      const int os_error = errno;
      ::unlink(options.path.c_str());
      return fail_os(os_error, "cannot give the socket to its group");
    }
  }
  return std::unique_ptr<HttpServer>(
      std::make_unique<Server>(context, std::move(listener), std::move(options), std::move(handler)));
}

}  // namespace vmbusd::daemon
