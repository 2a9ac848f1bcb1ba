#include "daemon/api_client.h"

#include <sys/socket.h>
#include <sys/time.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include "base/log.h"
#include "base/unix_socket.h"

namespace vmbusd::daemon {

namespace http = boost::beast::http;

tl::expected<ApiAnswer, std::string> ask_vmbusd(const std::string& socket, const std::string& method,
                                                const std::string& target, const std::string& body) {
  constexpr timeval kPatience{60, 0};  // a partition's removal takes up to 15 seconds
  constexpr std::uint64_t kBodyBytesMax = 64 << 20;
  Result<UniqueFd> connected = connect_unix(socket, SOCK_STREAM);
  if (!connected) return tl::unexpected(describe(connected.error()));
  for (const int option : {SO_RCVTIMEO, SO_SNDTIMEO}) {
    (void)::setsockopt(connected->get(), SOL_SOCKET, option, &kPatience, sizeof kPatience);
  }
  boost::asio::io_context context;
  boost::asio::local::stream_protocol::socket stream(context);
  boost::system::error_code error;
  stream.assign(boost::asio::local::stream_protocol(), connected->release(), error);

  http::request<http::string_body> request;
  request.version(11);
  request.method_string(method);
  request.target(target);
  request.set(http::field::host, "vmbusd");
  request.keep_alive(false);
  request.body() = body;
  if (!body.empty()) request.set(http::field::content_type, "application/json");
  request.prepare_payload();
  if (!error) http::write(stream, request, error);
  boost::beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(kBodyBytesMax);
  if (!error) http::read(stream, buffer, parser, error);
  // Who is not let in is cut off without a word.
  if (error == http::error::end_of_stream || error == boost::asio::error::connection_reset ||
      error == boost::asio::error::broken_pipe) {
    return tl::unexpected(
        std::string("it hung up; your user is neither root, nor vmbusd's, nor in its socket_group"));
  }
  if (error) return tl::unexpected(error.message());
  return ApiAnswer{parser.get().result_int(), std::move(parser.get().body())};
}

}  // namespace vmbusd::daemon
