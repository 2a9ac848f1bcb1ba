#include "daemon/nbd_keeper.h"

#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <string>
#include <vector>

#include "daemon/nbd_address.h"
#include "tests/catch.h"
#include "tests/storvsp/nbd_server.h"

namespace vmbusd::daemon {
namespace {

using namespace std::chrono_literals;

TEST_CASE("an NBD server's address is a URI", "[daemon][nbd]") {
  struct Case {
    const char* uri;
    NbdAddress expected;
  };
  const Case good[] = {
      {"nbd://host", {"", "host", "10809", "", ""}},
      {"nbd://host/", {"", "host", "10809", "", ""}},
      {"nbd://host:1234/disk", {"", "host", "1234", "disk", ""}},
      {"nbd://[fe80::1%25eth0]:1/d", {"", "fe80::1%25eth0", "1", "d", ""}},
      {"nbd://[::1]/a/b", {"", "::1", "10809", "a/b", ""}},
      {"nbd://127.0.0.1/a%20b", {"", "127.0.0.1", "10809", "a b", ""}},
      {"nbd+unix:///?socket=/run/nbd.sock", {"/run/nbd.sock", "", "", "", ""}},
      {"nbd+unix://?socket=/run/nbd.sock", {"/run/nbd.sock", "", "", "", ""}},
      {"nbd+unix:///disk?socket=/run/a%25b", {"/run/a%b", "", "", "disk", ""}},
  };
  for (const auto& [uri, expected] : good) {
    INFO(uri);
    const auto parsed = parse_nbd_address(uri);
    REQUIRE(parsed.has_value());
    CHECK(parsed->socket == expected.socket);
    CHECK(parsed->host == expected.host);
    CHECK(parsed->port == expected.port);
    CHECK(parsed->export_name == expected.export_name);
  }
  const std::string bad[] = {
      "",
      "nbd",
      "nbd://",
      "nbd:///disk",
      "nbds://host/disk",
      "nbd:unix:/run/nbd.sock",
      "nbd://host:/disk",
      "nbd://host:0/disk",
      "nbd://host:65536/disk",
      "nbd://host:1a/disk",
      "nbd://[::1/disk",
      "nbd://[::1]x/disk",
      "nbd://user@host/disk",
      "nbd://host/disk?socket=/run/nbd.sock",
      "nbd://host/disk#part",
      "nbd://host/a%2",
      "nbd://host/a%0g",
      "nbd://host/a%00b",
      "nbd+unix:///disk",
      "nbd+unix:///disk?socket=",
      "nbd+unix:///disk?socket=relative",
      "nbd+unix://host/disk?socket=/run/nbd.sock",
      "nbd+unix:///disk?socket=/" + std::string(107, 'a'),
      "nbd://host/" + std::string(256, 'a'),
  };
  for (const std::string& uri : bad) {
    INFO(uri);
    CHECK(!parse_nbd_address(uri).has_value());
  }
}

struct Fixture {
  explicit Fixture(const std::string& path)
      : keeper(context, *parse_nbd_address("nbd+unix:///?socket=" + path), "test",
               [this](int socket) { sockets.push_back(::dup(socket)); }) {}
  ~Fixture() {
    keeper.stop();
    for (const int socket : sockets) ::close(socket);
  }
  [[nodiscard]] bool connected(std::size_t count) {
    const auto deadline = std::chrono::steady_clock::now() + 20s;
    while (sockets.size() < count && std::chrono::steady_clock::now() < deadline) {
      context.restart();
      context.run_for(10ms);
    }
    return sockets.size() == count;
  }

  boost::asio::io_context context;
  std::vector<int> sockets;
  NbdKeeper keeper;
};

TEST_CASE("a keeper connects when that is wanted, also to a server that is away for a while",
          "[daemon][nbd]") {
  NbdServer server({"memory", "1M"});
  Fixture fixture(server.socket());
  storvsp::NbdExport found;
  REQUIRE(fixture.keeper.probe(found).empty());
  CHECK(found.size_bytes == 1u << 20);
  CHECK(fixture.sockets.empty());
  fixture.keeper.wanted();
  REQUIRE(fixture.connected(1));
  server.kill();
  fixture.keeper.wanted();
  fixture.context.restart();
  fixture.context.run_for(300ms);
  CHECK(fixture.sockets.size() == 1);
  server.start();
  CHECK(fixture.connected(2));
}

TEST_CASE("what a dead worker had is over when its server has closed the connection", "[daemon][nbd]") {
  const NbdServer server({"memory", "1M"});
  Fixture fixture(server.socket());
  storvsp::NbdExport found;
  REQUIRE(fixture.keeper.probe(found).empty());
  CHECK(fixture.keeper.ended());
  fixture.keeper.wanted();
  REQUIRE(fixture.connected(1));
  CHECK(!fixture.keeper.ended());
  server.pause();
  fixture.keeper.worker_died();
  CHECK(!fixture.keeper.ended());
  server.go_on();
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  while (!fixture.keeper.ended() && std::chrono::steady_clock::now() < deadline) ::usleep(1000);
  CHECK(fixture.keeper.ended());
}

TEST_CASE("an NBD server that cannot be had is told of", "[daemon][nbd]") {
  storvsp::NbdExport found;
  SECTION("nobody listens") {
    Fixture fixture("/nonexistent/socket");
    CHECK(
        fixture.keeper.probe(found) ==
        "cannot connect to the NBD server at /nonexistent/socket: No such file or directory; start it first");
  }
  SECTION("the export is not there") {
    const NbdServer server(
        {"--filter=exportname", "memory", "1M", "exportname=disk", "exportname-strict=true"});
    Fixture fixture(server.socket());
    CHECK(fixture.keeper.probe(found).find("does not serve export") != std::string::npos);
  }
}

}  // namespace
}  // namespace vmbusd::daemon
