#include "devices/bus.h"

#include <sys/socket.h>

#include <array>
#include <memory>
#include <optional>
#include <utility>

#include "base/fd.h"
#include "tests/catch.h"

namespace vmbusd::devices {
namespace {

TEST_CASE("who looks at a bus is answered though its VMM goes before it said a word", "[bus]") {
  Result<std::unique_ptr<io::Worker>> worker = io::Worker::create({.name = "control"});
  REQUIRE(worker.has_value());
  std::array<int, 2> pair{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) == 0);
  UniqueFd ours(pair[0]);
  UniqueFd vmm(pair[1]);

  std::unique_ptr<Bus> bus;
  std::optional<BusStatus> seen;
  (*worker)->post([&] {
    bus = std::make_unique<Bus>(Bus::Config{"demo", {}, {worker->get()}}, **worker, std::move(ours), [&] {
      bus.reset();
      (*worker)->stop();
    });
    vmm.reset();
    bus->shut_down();
    CHECK(bus->look([&](BusStatus status) { seen = std::move(status); }));
    CHECK_FALSE(bus->look([](BusStatus) {}));
  });
  (*worker)->run();
  REQUIRE(seen.has_value());
  CHECK(seen->vp_count == 0);
  CHECK(seen->channels.empty());
}

}  // namespace
}  // namespace vmbusd::devices
