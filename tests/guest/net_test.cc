// Frames from the guest's side, against vmbusd.
#include <algorithm>
#include <set>

#include "guest/net_client.h"
#include "netvsp/frame.h"
#include "tests/guest/host.h"

namespace vmbusd::guest {
namespace {

using netvsp::MacAddress;

constexpr MacAddress kMac{{0x02, 0, 0, 0, 0, 0x0a}};

// A running vmbusd whose only partition has two NICs: nic0 receives what it sends, nic1 receives 60-byte
// frames that its back end makes.
class NetHost {
 public:
  // `queues`: channels that nic0 may have, and VPs.
  explicit NetHost(std::uint32_t queues = 1) {
    daemon_ = std::make_unique<daemon::RunningDaemon>(
        directory_,
        "[[partition]]\nname = 'one'\nsocket = 'one.sock'\n"
        "[[partition.nic]]\nname = 'nic0'\nbackend = 'loopback'\nmac = '02:00:00:00:00:0a'\nqueues = " +
            std::to_string(queues) +
            "\n"
            "[[partition.nic]]\nname = 'nic1'\nbackend = 'null'\nreceive_bytes = 60\n");
    const bool ready = daemon_->wait_until_ready();
    INFO(daemon_->log());
    REQUIRE(ready);
    std::string error_text;
    child_ = must(
        ChildPartition::attach({.socket_path = directory_.path("one.sock"), .vp_count = queues}, error_text));
  }
  ~NetHost() {
    INFO(daemon_->log());
    CHECK(daemon::is_alive(daemon_->pid()));
    CHECK(daemon_->log().find("ended unexpectedly") == std::string::npos);
  }
  [[nodiscard]] ChildPartition& child() { return *child_; }

 private:
  TemporaryDirectory directory_;
  std::unique_ptr<daemon::RunningDaemon> daemon_;
  std::unique_ptr<ChildPartition> child_;
};

// A driver that has come as far as its NIC.
class NetDriver {
 public:
  NetDriver(NetHost& host, std::size_t nic, const NetClient::Options& options) : bus(host.child()) {
    must(bus.contact(vmbus::Version::k5_3));
    std::vector<vmbus::OfferChannel> nics;
    for (const vmbus::OfferChannel& offer : must(bus.request_offers())) {
      if (offer.interface_type == vmbus::kClassNetwork) nics.push_back(offer);
    }
    REQUIRE(nics.size() == 2);
    channel = must(GuestChannel::open(bus, nics[nic], {.to_host_pages = 32, .from_host_pages = 32}));
    net = std::make_unique<NetClient>(*channel);
    must(net->initialize(options));
  }

  BusClient bus;
  std::unique_ptr<GuestChannel> channel;
  std::unique_ptr<NetClient> net;
};

bool equal(std::span<const std::byte> one, std::span<const std::byte> other) {
  return std::equal(one.begin(), one.end(), other.begin(), other.end());
}

std::vector<std::byte> frame_of(std::size_t size, std::uint32_t seed) {
  std::vector<std::byte> frame = random_bytes(size, seed);
  std::memcpy(frame.data(), kMac.bytes.data(), kMac.bytes.size());
  netvsp::store_be16(frame, netvsp::kEtherType, 0x88b5);  // IEEE 802: for local experiments
  return frame;
}

TEST_CASE("what the guest sends into a loop comes back as it was", "[guest]") {
  NetHost host;
  NetDriver driver(host, 0, {});
  CHECK(driver.net->mac() == kMac);
  std::multiset<std::vector<std::byte>> expected;
  // The loop loses what finds no receive buffer; it has 32 armed.
  constexpr std::uint32_t kInFlightMax = 16;
  std::uint32_t made = 0;
  // Three times as many as there are sections.
  const std::uint32_t count = 3 * driver.net->sections();
  while (driver.net->statistics().received < count) {
    while (made < count && made - driver.net->statistics().received < kInFlightMax) {
      const std::vector<std::byte> frame = frame_of(14 + made % 1501, made);
      REQUIRE(must(driver.net->send(frame)));
      expected.insert(frame);
      ++made;
    }
    must(driver.net->wait());
    (void)must(driver.net->poll([&](std::span<const std::byte> bytes) {
      const auto found = expected.find({bytes.begin(), bytes.end()});
      REQUIRE(found != expected.end());
      expected.erase(found);
    }));
  }
  CHECK(expected.empty());
  CHECK(driver.net->statistics().completed == count);
  CHECK(driver.net->statistics().refused == 0);
  must(driver.channel->close());
}

TEST_CASE("each channel of a NIC sends and receives for itself", "[guest]") {
  constexpr std::uint32_t kChannels = 4;
  constexpr std::uint32_t kFrames = 40;  // on each channel in each of two rounds
  constexpr std::uint32_t kInFlightMax = 8;
  NetHost host(kChannels);
  NetDriver driver(host, 0, {});
  // More than there are: the host says how many.
  REQUIRE(must(driver.net->create_sub_channels(100)) == kChannels - 1);
  std::vector<std::unique_ptr<GuestChannel>> channels;
  std::vector<std::unique_ptr<NetQueue>> others;
  std::vector<NetQueue*> queues;
  for (std::uint32_t vp = 1; vp < kChannels; ++vp) {
    const vmbus::OfferChannel offer = must(driver.bus.wait_offer());
    CHECK(offer.sub_channel_index == vp);
    channels.push_back(must(GuestChannel::open(
        driver.bus, offer, {.to_host_pages = 32, .from_host_pages = 32, .target_vp = vp})));
    others.push_back(std::make_unique<NetQueue>(*channels.back()));
    queues.push_back(others.back().get());
  }
  const std::uint32_t sections = driver.net->sections();
  must(driver.net->use_sub_channels(queues));
  queues.insert(queues.begin(), driver.net.get());
  for (const NetQueue* const queue : queues) CHECK(queue->sections() == sections / kChannels);

  // The loop gives a frame back on the channel that it came by: one by one, then on all at once.
  const auto exchange = [](NetQueue& queue, std::uint32_t until, std::uint32_t seed) {
    while (queue.in_flight() < kInFlightMax && queue.statistics().sent < until) {
      REQUIRE(must(queue.send(frame_of(60 + seed, seed))));
    }
    must(queue.wait());
    (void)must(queue.poll(
        [&](std::span<const std::byte> frame) { REQUIRE(equal(frame, frame_of(60 + seed, seed))); }));
    return queue.statistics().received == until && queue.in_flight() == 0;
  };
  for (std::uint32_t i = 0; i < kChannels; ++i) {
    while (!exchange(*queues[i], kFrames, i)) {
    }
  }
  for (bool over = false; !over;) {
    over = true;
    for (std::uint32_t i = 0; i < kChannels; ++i) {
      if (queues[i]->statistics().received < 2 * kFrames || queues[i]->in_flight() != 0)
        over &= exchange(*queues[i], 2 * kFrames, i);
    }
  }
  for (const NetQueue* const queue : queues) {
    CHECK(queue->statistics().completed == 2 * kFrames);
    CHECK(queue->statistics().refused == 0);
  }
  for (const auto& channel : channels) must(channel->close());
  must(driver.channel->close());
}

TEST_CASE("a NIC of one queue gives no sub-channels", "[guest]") {
  NetHost host;
  NetDriver driver(host, 0, {});
  CHECK(must(driver.net->create_sub_channels(3)) == 0);
  must(driver.channel->close());
}

TEST_CASE("a large send comes back as segments with their headers complete", "[guest]") {
  NetHost host;
  NetDriver driver(host, 0, {});
  constexpr std::uint32_t kMss = 1000;
  constexpr std::uint32_t kPayload = 10 * kMss + 1;
  std::vector<std::byte> frame = frame_of(54 + kPayload, 1);
  netvsp::store_be16(frame, netvsp::kEtherType, netvsp::kEtherTypeIpv4);
  frame[14] = std::byte{0x45};
  frame[14 + 6] = frame[14 + 7] = std::byte{0};  // no fragment
  frame[14 + 9] = std::byte{6};                  // TCP
  frame[34 + 12] = std::byte{0x50};              // header of 20 bytes
  const Pages pages = must(host.child().ram().take(3, Layout::kScattered));
  pages.write(0, frame);
  REQUIRE(must(driver.net->send_large(pages, static_cast<std::uint32_t>(frame.size()), kMss)));
  std::uint32_t payload = 0;
  while (driver.net->statistics().received < 11 || driver.net->in_flight() != 0) {
    must(driver.net->wait());
    (void)must(driver.net->poll([&](std::span<const std::byte> bytes) {
      CHECK(netvsp::load_be16(bytes, 14 + 2) == bytes.size() - 14);
      payload += static_cast<std::uint32_t>(bytes.size()) - 54;
    }));
  }
  CHECK(payload == kPayload);
  must(driver.channel->close());
}

TEST_CASE("a flood of received frames ends with the channel, which opens again", "[guest]") {
  NetHost host;
  NetDriver driver(host, 1, {.receive_pages = 64, .send_pages = 16});
  while (driver.net->statistics().received < 10000) {
    must(driver.net->wait());
    (void)must(driver.net->poll([](std::span<const std::byte> bytes) { REQUIRE(bytes.size() == 60); }));
  }
  must(driver.channel->close());
  must(driver.bus.unload());
  NetDriver again(host, 1, {});
  REQUIRE(must(again.net->send(frame_of(60, 1))));
  while (again.net->in_flight() != 0) {
    must(again.net->wait());
    (void)must(again.net->poll([](std::span<const std::byte>) {}));
  }
  must(again.channel->close());
}

}  // namespace
}  // namespace vmbusd::guest
