// A NIC that the guest signals by its monitor page, as DPDK does. Its first message is enough for that.
#include <chrono>
#include <thread>

#include "netvsp/nvsp.h"
#include "tests/guest/host.h"

namespace vmbusd::guest {
namespace {

using namespace std::chrono_literals;

constexpr const char* kConfig =
    "[[partition]]\nname = 'one'\nsocket = 'one.sock'\n"
    "heartbeat = false\nshutdown = false\ntimesync = false\nkvp = false\nvss = false\n"
    "[[partition.nic]]\nname = 'nic0'\nbackend = 'loopback'\nmonitor = true\n";

// Writes an INIT and signals; true where the host completes it.
bool answered(GuestChannel& channel, std::uint64_t id) {
  const netvsp::NvspInit init{netvsp::NvspType::kInit, netvsp::NvspVersion::k61, netvsp::NvspVersion::k61};
  std::array<std::byte, netvsp::kNvspMessageSize> message{};
  const auto bytes = wire_bytes(init);
  std::copy(bytes.begin(), bytes.end(), message.begin());
  REQUIRE(must(
      channel.to_host().write({.completion_requested = true, .transaction_id = id, .payload = message})));
  // flush() and wait() signal where the ring's rules say so; nothing else wakes the host.
  if (!must(channel.wait())) return false;
  const auto packet = must(channel.from_host().next());
  return packet && packet->type == ring::PacketType::kCompletion && packet->transaction_id == id;
}

TEST_CASE("a guest signals a monitored NIC without a hypercall", "[guest]") {
  const TemporaryDirectory directory;
  daemon::RunningDaemon daemon(directory, kConfig);
  REQUIRE(daemon.wait_until_ready());
  std::string error_text;
  const auto child = must(ChildPartition::attach({.socket_path = directory.path("one.sock")}, error_text));
  BusClient bus(*child);
  must(bus.contact(vmbus::Version::k5_3));
  const std::vector<vmbus::OfferChannel> offers = must(bus.request_offers());
  REQUIRE(offers.size() == 1);
  CHECK(offers[0].monitor_flags == vmbus::kMonitorAllocated);
  REQUIRE(offers[0].monitor_id == 0);
  const auto channel = must(GuestChannel::open(bus, offers[0]));
  CHECK(bus.monitor_page().parameters[0].connection_id == offers[0].connection_id);
  CHECK(bus.monitor_page().latency[0] == 1000);
  for (std::uint64_t id = 1; id <= 10; ++id) {
    std::this_thread::sleep_for(20ms);  // so that the host sleeps
    CHECK(answered(*channel, id));
  }
  // A guest that wants to be looked for seldom waits longer, and one that sets all bits breaks nothing.
  bus.monitor_page().latency[0] = 0xffff;
  bus.monitor_page().triggers.fill({0xffffffff, 0xffffffff});
  std::this_thread::sleep_for(20ms);
  CHECK(answered(*channel, 11));
  must(channel->reopen());
  CHECK(answered(*channel, 12));
  must(channel->close());
  must(bus.unload());
  CHECK(bus.monitor_page().parameters[0].connection_id == 0);
  CHECK(daemon::is_alive(daemon.pid()));
  CHECK(daemon.log().find("ended unexpectedly") == std::string::npos);
}

}  // namespace
}  // namespace vmbusd::guest
