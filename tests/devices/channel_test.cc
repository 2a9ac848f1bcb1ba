#include "devices/channel.h"

#include <sys/eventfd.h>

#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "devices/gpadl_view.h"
#include "tests/catch.h"
#include "tests/devices/test_memory.h"
#include "tests/io/on_worker.h"

namespace vmbusd::devices {
namespace {

using namespace std::chrono_literals;

// Answers each packet by a completion that echoes its payload; "later" holds the answer back as an operation
// in flight.
class EchoHandler final : public ChannelHandler {
 public:
  struct Log {
    std::atomic<int> packets{0};
    std::atomic<int> stops{0};
    std::atomic<bool> hold{false};
  };
  explicit EchoHandler(Log& log) : log_(log) {}

  void start(Channel& channel) override { channel_ = &channel; }
  Result<bool> service(std::uint32_t budget) override {
    bool worked = false;
    for (std::uint32_t i = 0; i < budget; ++i) {
      VMBUSD_TRY(const ring::Packet* const packet, channel_->incoming().next());
      if (!packet) break;
      worked = true;
      ++log_.packets;
      if (log_.hold) {
        channel_->begin_op();
        continue;
      }
      std::array<std::byte, 64> payload{};
      const std::size_t size = std::min<std::size_t>(packet->payload_size, payload.size());
      channel_->incoming().read_payload(*packet, 0, std::span(payload).first(size));
      VMBUSD_CHECK(channel_->outgoing().write({.type = ring::PacketType::kCompletion,
                                               .transaction_id = packet->transaction_id,
                                               .payload = std::span(payload).first(size)}));
    }
    return worked;
  }
  Result<void> recover() override { return {}; }
  void stop() override { ++log_.stops; }

 private:
  Log& log_;
  Channel* channel_ = nullptr;
};

// A guest's end of a channel whose host end runs on a worker of its own.
struct Fixture {
  static constexpr std::uint64_t kPages = 32;
  static constexpr std::uint32_t kFlag = 5;
  static constexpr vmbus::Gpn kEventPage = 20;

  // Of a monitored channel: id 33 of the page.
  static constexpr vmbus::Gpn kMonitorPage = 21;
  static constexpr std::uint8_t kMonitorId = 33;

  explicit Fixture(bool monitored = false, bool recovered = false) {
    guest.add_to(partition.memory());
    interrupt.reset(eventfd(0, EFD_NONBLOCK));
    partition.vp(1).interrupt = UniqueFd(dup(interrupt.get()));
    partition.vp(1).event_flags =
        reinterpret_cast<std::uint32_t*>(partition.memory().translate_writable(kEventPage * 4096, 256));
    worker = std::move(*io::Worker::create({.name = "test"}));
    RingPair host = rings();
    RingPair guest_side = rings();
    to_host.emplace(std::move(guest_side.incoming));
    from_host.emplace(std::move(guest_side.outgoing));
    doorbell.reset(eventfd(0, EFD_NONBLOCK));
    Channel::Config config{
        .name = "test/echo", .relid = kFlag, .sub_channel_index = 0, .target_vp = 1, .event_flag = kFlag};
    if (monitored) config.monitor.emplace(guest.page(kMonitorPage), kMonitorId, 0x2005);
    config.recovered = recovered;
    channel = std::make_unique<Channel>(std::move(config), partition, *worker, std::move(host.incoming),
                                        std::move(host.outgoing), std::make_unique<EchoHandler>(log),
                                        UniqueFd(dup(doorbell.get())), region);
    worker->start();
  }
  ~Fixture() {
    if (running) stop();
    worker->stop();
  }

  RingPair rings() {
    return std::move(*make_rings(partition.memory(),
                                 vmbus::Gpadl{1, kFlag, {{8 * 4096, 0, {1, 2, 3, 4, 5, 6, 7, 8}}}}, 4));
  }
  template <typename Function>
  auto on_worker(Function function) {
    return io::on_worker(*worker, std::move(function));
  }
  [[nodiscard]] bool start() {
    running = on_worker([this] { return channel->start().has_value(); });
    return running;
  }
  void stop() {
    std::promise<void> stopped;
    worker->post([&] { channel->stop([&] { stopped.set_value(); }); });
    stopped.get_future().get();
    running = false;
  }
  void send(std::uint64_t id) {
    const std::array<std::byte, 16> payload{std::byte{1}, std::byte{2}};
    REQUIRE(to_host->write({.completion_requested = true, .transaction_id = id, .payload = payload}).value());
    if (to_host->commit().value()) ring_doorbell();
  }
  void ring_doorbell() { REQUIRE(eventfd_write(doorbell.get(), 1) == 0); }
  // The transaction id of the next completion; 0 where none comes in time.
  std::uint64_t receive() {
    for (int i = 0; i < 2000; ++i) {
      const auto packet = from_host->next();
      REQUIRE(packet.has_value());
      if (*packet) {
        (void)from_host->release();
        return (*packet)->transaction_id;
      }
      std::this_thread::sleep_for(1ms);
    }
    return 0;
  }
  template <typename Condition>
  bool wait_for(Condition condition) {
    for (int i = 0; i < 2000 && !condition(); ++i) std::this_thread::sleep_for(1ms);
    return condition();
  }

  TestMemory guest{kPages};
  partition::Partition partition{2};
  UniqueFd interrupt;
  UniqueFd doorbell;
  std::unique_ptr<io::Worker> worker;
  EchoHandler::Log log;
  std::shared_ptr<RecoveryRegion> region = std::make_shared<RecoveryRegion>(*RecoveryRegion::make_private());
  std::optional<ring::OutgoingRing> to_host;
  std::optional<ring::IncomingRing> from_host;
  std::unique_ptr<Channel> channel;
  bool running = false;
};

TEST_CASE("a channel answers packets and signals its VP", "[devices]") {
  Fixture f;
  REQUIRE(f.start());
  for (std::uint64_t id = 1; id <= 100; ++id) {
    f.send(id);
    REQUIRE(f.receive() == id);
  }
  const auto* const flags = reinterpret_cast<const std::uint32_t*>(f.guest.page(Fixture::kEventPage));
  CHECK(flags[0] == 1u << Fixture::kFlag);
  eventfd_t interrupts = 0;
  REQUIRE(eventfd_read(f.interrupt.get(), &interrupts) == 0);
  // Nobody cleared the flag, so one write was enough for all.
  CHECK(interrupts == 1);
}

// What a channel notes at the begin of its region.
struct DeadRecord {
  std::uint64_t releases;
  std::uint64_t commits;
  std::uint32_t read_index;
  std::uint32_t write_index;
  std::uint32_t next_read_index;
  std::uint32_t next_write_index;
};

// The host's end until it died: it has taken a packet of the guest's, 7, and written one of its own, 42.
struct DeadHost {
  explicit DeadHost(Fixture& f)
      : memory(f.rings()), incoming(std::move(memory.incoming)), outgoing(std::move(memory.outgoing)) {
    REQUIRE(incoming.attach().has_value());
    REQUIRE(outgoing.attach().has_value());
    f.send(7);
    REQUIRE(incoming.next().value() != nullptr);
    REQUIRE(outgoing.write({.transaction_id = 42}).value());
    record = reinterpret_cast<DeadRecord*>(f.region->bytes().data());
    *record = {100, 200, 0, 0, incoming.read_position(), outgoing.write_position()};
  }
  RingPair memory;
  ring::IncomingRing incoming;
  ring::OutgoingRing outgoing;
  DeadRecord* record;
};

TEST_CASE("a turn of which nothing was published is done again", "[devices][recovery]") {
  Fixture f(false, true);
  DeadHost dead(f);
  REQUIRE(f.start());
  CHECK(f.receive() == 7);
  CHECK(f.log.packets == 1);
}

TEST_CASE("a turn of which half was published is published to its end", "[devices][recovery]") {
  Fixture f(false, true);
  DeadHost dead(f);
  (void)dead.incoming.release();
  REQUIRE(f.start());
  CHECK(f.receive() == 42);
  f.stop();
  CHECK(f.log.packets == 0);
  CHECK(dead.record->releases == 101);
  CHECK(dead.record->commits == 201);
}

TEST_CASE("a turn that was published and not counted is counted", "[devices][recovery]") {
  Fixture f(false, true);
  DeadHost dead(f);
  (void)dead.incoming.release();
  REQUIRE(dead.outgoing.commit().has_value());
  REQUIRE(f.start());
  CHECK(f.receive() == 42);
  f.stop();
  CHECK(f.log.packets == 0);
  CHECK(dead.record->releases == 101);
  CHECK(dead.record->commits == 201);
}

TEST_CASE("what cannot have been written is not published", "[devices][recovery]") {
  Fixture f(false, true);
  DeadHost dead(f);
  (void)dead.incoming.release();
  dead.record->next_write_index = GENERATE(4u, 3u * 4096, 0xfffffff8u);  // misaligned, outside, far outside
  CHECK_FALSE(f.start());
  f.running = true;  // for it to be stopped
}

TEST_CASE("packets that were there before the channel opened are served", "[devices]") {
  Fixture f;
  f.send(7);
  REQUIRE(f.start());
  CHECK(f.receive() == 7);
}

TEST_CASE("an idle channel unmasks, and its worker sleeps", "[devices]") {
  Fixture f;
  REQUIRE(f.start());
  f.send(1);
  REQUIRE(f.receive() == 1);
  const auto* const control = reinterpret_cast<const ring::ControlPage*>(f.guest.page(1));
  REQUIRE(f.wait_for(
      [&] { return std::atomic_ref(const_cast<ring::ControlPage*>(control)->interrupt_mask).load() == 0; }));
  std::this_thread::sleep_for(20ms);  // lets the turn that went to sleep end
  const std::uint64_t turns = f.worker->stats().turns;
  std::this_thread::sleep_for(50ms);
  CHECK(f.worker->stats().turns == turns);
  f.send(2);
  CHECK(f.receive() == 2);
}

TEST_CASE("a monitored channel is served without a doorbell, and not polled when it is closed", "[devices]") {
  Fixture f(true);
  auto& page = *reinterpret_cast<vmbus::MonitorPage*>(f.guest.page(Fixture::kMonitorPage));
  const std::atomic_ref pending(page.triggers[Fixture::kMonitorId / 32].pending);
  constexpr std::uint32_t kBit = 1u << Fixture::kMonitorId % 32;
  REQUIRE(f.start());
  CHECK(page.parameters[Fixture::kMonitorId].connection_id == 0x2005);
  for (std::uint64_t id = 1; id <= 20; ++id) {
    std::this_thread::sleep_for(2ms);  // long enough for the worker to sleep
    const std::array<std::byte, 16> payload{};
    REQUIRE(
        f.to_host->write({.completion_requested = true, .transaction_id = id, .payload = payload}).value());
    if (f.to_host->commit().value()) pending.fetch_or(kBit);
    REQUIRE(f.receive() == id);
  }
  CHECK(f.channel->stats().doorbells > 10);
  // Bits for nothing do no harm.
  for (int i = 0; i < 100; ++i) {
    pending.store(0xffffffff);
    std::this_thread::sleep_for(50us);
  }
  CHECK(f.wait_for([&] { return pending.load() == ~kBit; }));

  // While it is paused, and for good once it has stopped, nobody looks.
  std::promise<void> paused;
  f.worker->post([&] { f.channel->pause([&] { paused.set_value(); }); });
  paused.get_future().get();
  const auto worker_sleeps = [&] {
    std::this_thread::sleep_for(20ms);
    const std::uint64_t turns = f.worker->stats().turns;
    std::this_thread::sleep_for(50ms);
    return f.worker->stats().turns == turns;
  };
  CHECK(worker_sleeps());
  f.worker->post([&] { f.channel->resume(); });
  f.send(77);
  pending.fetch_or(kBit);
  CHECK(f.receive() == 77);
  f.stop();
  CHECK(worker_sleeps());
  CHECK(page.parameters[Fixture::kMonitorId].connection_id == 0);
  CHECK((pending.load() & kBit) == 0);
}

TEST_CASE("indices out of range refuse the channel", "[devices]") {
  Fixture f;
  reinterpret_cast<ring::ControlPage*>(f.guest.page(1))->write_index = 3 * 4096;
  CHECK_FALSE(f.start());
}

TEST_CASE("a guest that breaks its ring loses the channel only", "[devices]") {
  Fixture f;
  REQUIRE(f.start());
  reinterpret_cast<ring::ControlPage*>(f.guest.page(1))->write_index = 13;
  f.ring_doorbell();
  REQUIRE(f.wait_for([&] { return f.log.stops == 1; }));
  // A broken channel takes doorbells in silence, and closes.
  f.ring_doorbell();
  f.stop();
  CHECK(f.log.stops == 1);
  CHECK(f.on_worker([] { return true; }));
}

TEST_CASE("stop waits for operations in flight", "[devices]") {
  Fixture f;
  REQUIRE(f.start());
  f.log.hold = true;
  f.send(1);
  f.send(2);
  REQUIRE(f.wait_for([&] { return f.log.packets == 2; }));
  std::atomic<bool> stopped = false;
  f.worker->post([&] { f.channel->stop([&] { stopped = true; }); });
  f.on_worker([&] {
    f.channel->end_op();
    return true;
  });
  CHECK_FALSE(f.on_worker([&] { return stopped.load(); }));
  f.on_worker([&] {
    f.channel->end_op();
    return true;
  });
  CHECK(f.wait_for([&] { return stopped.load(); }));
  f.running = false;
}

TEST_CASE("pause waits for operations, holds packets back and resumes", "[devices]") {
  Fixture f;
  REQUIRE(f.start());
  f.log.hold = true;
  f.send(1);
  REQUIRE(f.wait_for([&] { return f.log.packets == 1; }));
  f.log.hold = false;
  std::atomic<bool> paused = false;
  f.worker->post([&] { f.channel->pause([&] { paused = true; }); });
  CHECK_FALSE(f.on_worker([&] { return paused.load(); }));
  f.on_worker([&] {
    f.channel->end_op();
    return true;
  });
  REQUIRE(f.wait_for([&] { return paused.load(); }));
  f.send(2);
  f.ring_doorbell();
  std::this_thread::sleep_for(10ms);
  CHECK(f.log.packets == 1);
  f.worker->post([&] { f.channel->resume(); });
  CHECK(f.receive() == 2);
}

TEST_CASE("a retargeted channel signals its new VP", "[devices]") {
  Fixture f;
  REQUIRE(f.start());
  f.on_worker([&] {
    f.channel->retarget(0);  // VP 0 has no event page: nothing to signal, nothing to crash
    return true;
  });
  f.send(1);
  CHECK(f.receive() == 1);
  f.on_worker([&] {
    f.channel->retarget(1);
    return true;
  });
  const auto* const flags = reinterpret_cast<const std::uint32_t*>(f.guest.page(Fixture::kEventPage));
  CHECK((std::atomic_ref(const_cast<std::uint32_t&>(flags[0])).load() & 1u << Fixture::kFlag) != 0);
}

}  // namespace
}  // namespace vmbusd::devices
