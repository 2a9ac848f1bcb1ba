// What operators ask of a guest, through vmbusd, and a user-space guest that answers as hv_utils does.
#include <signal.h>
#include <cstring>

#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "devices/integration/session.h"
#include "devices/integration/status.h"
#include "devices/integration/utf16.h"
#include "tests/catch.h"
#include "tests/daemon/http_client.h"
#include "tests/daemon/running_daemon.h"
#include "tests/devices/integration/answers.h"
#include "tests/guest/host.h"

namespace vmbusd::daemon {
namespace {

using namespace integration;
using Json = nlohmann::json;

// A guest's end of one component's channel.
class Service {
 public:
  Service(guest::BusClient& bus, std::span<const vmbus::OfferChannel> offers, const Guid& interface_type) {
    const auto offer = std::find_if(offers.begin(), offers.end(), [&](const vmbus::OfferChannel& each) {
      return each.interface_type == interface_type;
    });
    REQUIRE(offer != offers.end());
    CHECK((offer->flags & vmbus::kOfferNamedPipeMode) != 0);
    // As hv_utils: four pages each way, and the control pages. [linux: hv_util.c, HV_UTIL_RING_SEND_SIZE]
    channel_ = guest::must(
        guest::GuestChannel::open(bus, *offer, {.to_host_pages = 4, .from_host_pages = 4, .target_vp = 0}));
  }

  // The host's next message.
  [[nodiscard]] Bytes receive() {
    const auto deadline = guest::Clock::now() + guest::kPatience;
    while (guest::Clock::now() < deadline) {
      if (const ring::Packet* const packet = guest::must(channel_->from_host().next())) {
        CHECK(packet->type == ring::PacketType::kInband);
        CHECK_FALSE(packet->completion_requested());
        id_ = packet->transaction_id;
        Bytes message(packet->payload_size);
        channel_->from_host().read_payload(*packet, 0, message);
        guest::must(channel_->flush());
        return message;
      }
      (void)guest::must(channel_->wait());
    }
    FAIL("the host sends nothing");
    return {};
  }
  void send(const Bytes& message) {
    REQUIRE(guest::must(channel_->to_host().write({.transaction_id = id_, .payload = message})));
    guest::must(channel_->flush());
  }
  void negotiate(Version message) { send(chosen(receive(), {3, 0}, message)); }
  [[nodiscard]] guest::GuestChannel& channel() { return *channel_; }

 private:
  std::unique_ptr<guest::GuestChannel> channel_;
  std::uint64_t id_ = 0;
};

class Host {
 public:
  explicit Host(const std::string& more = "")
      : daemon_(directory_,
                "control_socket = 'control.sock'\n[[partition]]\nname = 'demo'\n"
                "socket = 'demo.sock'\nio_threads = 1\n" +
                    more) {
    REQUIRE(daemon_.wait_until_ready());
    std::string error_text;
    child_ =
        guest::must(guest::ChildPartition::attach({.socket_path = directory_.path("demo.sock")}, error_text));
    bus_ = std::make_unique<guest::BusClient>(*child_);
    guest::must(bus_->contact(vmbus::Version::k5_3));
    offers_ = guest::must(bus_->request_offers());
  }
  ~Host() { CHECK((daemon_.log().find("ended unexpectedly") != std::string::npos) == killed_); }

  [[nodiscard]] Service open(const Guid& interface_type) { return {*bus_, offers_, interface_type}; }
  // Ends the worker process, and waits for another to serve.
  void kill_worker() {
    killed_ = true;
    const pid_t worker = daemon_.worker_pid();
    ::kill(worker, SIGKILL);
    REQUIRE(daemon_.worker_pid(worker) > 0);
    REQUIRE(eventually([&] { return partition()["worker_answers"] == true; }));
  }
  [[nodiscard]] RunningDaemon& daemon() { return daemon_; }
  [[nodiscard]] std::size_t offers() const { return offers_.size(); }
  [[nodiscard]] HttpAnswer ask(const std::string& method, const std::string& target,
                               const std::string& body = "") const {
    return daemon::ask(directory_.path("control.sock"), method, target, body);
  }
  // The same while the guest has to answer.
  [[nodiscard]] std::future<HttpAnswer> asking(const std::string& target, const std::string& body) const {
    return std::async(std::launch::async, [=, this] { return ask("POST", target, body); });
  }
  [[nodiscard]] Json partition() const { return Json::parse(ask("GET", "/v1/partitions/demo").body); }
  [[nodiscard]] bool health_becomes(const char* health) const {
    return eventually([&] { return partition()["guest"]["health"] == health; });
  }

 private:
  TemporaryDirectory directory_;
  RunningDaemon daemon_;
  bool killed_ = false;
  std::unique_ptr<guest::ChildPartition> child_;
  std::unique_ptr<guest::BusClient> bus_;
  std::vector<vmbus::OfferChannel> offers_;
};

constexpr const char* kShutdown = "/v1/partitions/demo/guest/shutdown";
constexpr const char* kPowerOff = R"({"action": "poweroff"})";

TEST_CASE("each component can be switched off", "[daemon][integration]") {
  const Host all;
  CHECK(all.offers() == kParts);
  const Host none("heartbeat = false\nshutdown = false\ntimesync = false\nkvp = false\nvss = false\n");
  CHECK(none.offers() == 0);
  CHECK(none.partition()["integration"]["shutdown"]["state"] == "off");
  const HttpAnswer answer = none.ask("POST", kShutdown, kPowerOff);
  CHECK(answer.status == 409);
  CHECK(answer.body.find("switched off in this partition's configuration") != std::string::npos);
}

TEST_CASE("a guest's heartbeat shows in its status and the metrics", "[daemon][integration]") {
  Host host;
  CHECK(host.partition()["guest"]["health"] == "unknown");
  CHECK(host.partition()["integration"]["heartbeat"]["state"] == "closed");
  Service heartbeat = host.open(vmbus::kClassHeartbeat);
  const Bytes negotiation = heartbeat.receive();
  CHECK(host.partition()["integration"]["heartbeat"]["state"] == "negotiating");
  heartbeat.send(chosen(negotiation, {3, 0}, {3, 0}));
  for (std::uint64_t beat = 0; beat < 2; ++beat) {
    Bytes message = heartbeat.receive();
    // Copied: its 64-bit number stands at no multiple of 8.
    HeartbeatBody body{};
    std::memcpy(&body, message.data() + kHeaderBytes, sizeof body);
    CHECK(body.sequence == beat);
    ++body.sequence;
    message = echoed(message);
    std::memcpy(message.data() + kHeaderBytes, &body, sizeof body);
    heartbeat.send(message);
  }
  CHECK(host.health_becomes("ok"));
  const Json part = host.partition()["integration"]["heartbeat"];
  CHECK(part["state"] == "ready");
  CHECK(part["version"] == "3.0");
  CHECK(part["channels"].size() == 1);
  CHECK(Json::parse(host.ask("GET", "/v1/partitions").body)["partitions"][0]["guest"]["health"] == "ok");
  const std::string metrics = host.ask("GET", "/metrics").body;
  CHECK(metrics.find("vmbusd_guest_heartbeat{partition=\"demo\"} 1") != std::string::npos);
  CHECK(metrics.find("integration/") == std::string::npos);
  guest::must(heartbeat.channel().close());
  CHECK(host.health_becomes("unknown"));
}

TEST_CASE("a guest is shut down when it says that it will", "[daemon][integration]") {
  Host host;
  CHECK(host.ask("POST", kShutdown, kPowerOff).body.find("no guest with a driver for it") !=
        std::string::npos);
  Service shutdown = host.open(vmbus::kClassShutdown);
  shutdown.negotiate({3, 2});
  REQUIRE(eventually([&] { return host.partition()["integration"]["shutdown"]["state"] == "ready"; }));

  SECTION("it accepts") {
    auto answer = host.asking(kShutdown, R"({"action": "reboot"})");
    Bytes message = shutdown.receive();
    // Linux ignores it where it is not whole. [linux: hv_util.c, shutdown_onchannelcallback]
    REQUIRE(message.size() >= kHeaderBytes + sizeof(ShutdownBody));
    CHECK(at<ShutdownBody>(message, kHeaderBytes).flags == (kShutdownForce | kShutdownRestart));
    shutdown.send(echoed(message));
    CHECK(answer.get().status == 204);
  }
  SECTION("it refuses") {
    auto answer = host.asking(kShutdown, R"({"action": "hibernate"})");
    shutdown.send(echoed(shutdown.receive(), kStatusFail));
    const HttpAnswer got = answer.get();
    CHECK(got.status == 409);
    CHECK(got.body.find("the guest refuses, status 0x80004005") != std::string::npos);
  }
  SECTION("it goes without a word") {
    auto answer = host.asking(kShutdown, kPowerOff);
    (void)shutdown.receive();
    guest::must(shutdown.channel().close());
    CHECK(answer.get().body.find("the guest closed its shutdown channel") != std::string::npos);
  }
  SECTION("after its driver came anew") {
    guest::must(shutdown.channel().reopen());
    shutdown.negotiate({3, 0});
    REQUIRE(eventually([&] { return host.partition()["integration"]["shutdown"]["version"] == "3.0"; }));
    CHECK(host.ask("POST", kShutdown, R"({"action": "reboot"})").body.find("too old") != std::string::npos);
    auto answer = host.asking(kShutdown, kPowerOff);
    shutdown.send(echoed(shutdown.receive()));
    CHECK(answer.get().status == 204);
  }
}

TEST_CASE("a question of a worker process that died is answered before there is another",
          "[daemon][integration]") {
  Host host;
  Service shutdown = host.open(vmbus::kClassShutdown);
  const auto is_ready = [&] { return host.partition()["integration"]["shutdown"]["state"] == "ready"; };
  shutdown.negotiate({3, 2});
  REQUIRE(eventually(is_ready));
  auto lost = host.asking(kShutdown, kPowerOff);
  REQUIRE(eventually([&] {
    const Json ring = host.partition()["integration"]["shutdown"]["channels"][0]["outgoing"];
    return ring["read_index"] != ring["write_index"];
  }));
  host.kill_worker();
  CHECK(lost.get().body.find("worker process died") != std::string::npos);
  Bytes message = shutdown.receive();
  CHECK(header_of(message).type == MessageType::kShutdown);
  shutdown.send(echoed(message));
  shutdown.negotiate({3, 2});
  REQUIRE(eventually(is_ready));
  auto answer = host.asking(kShutdown, kPowerOff);
  shutdown.send(echoed(shutdown.receive()));
  CHECK(answer.get().status == 204);
}

TEST_CASE("a guest's clock is set and sampled", "[daemon][integration]") {
  Host host;
  Service sync = host.open(vmbus::kClassTimeSync);
  sync.negotiate({3, 0});
  Bytes message = sync.receive();
  const auto unix_s = (at<TimeSyncBody>(message, kHeaderBytes).parent_time - kUnixEpoch) / 10'000'000;
  CHECK(unix_s <= static_cast<std::uint64_t>(std::time(nullptr)));
  CHECK(unix_s + 60 > static_cast<std::uint64_t>(std::time(nullptr)));
  CHECK(at<TimeSyncBody>(message, kHeaderBytes).flags == kTimeSyncSet);
  sync.send(echoed(message));
  message = sync.receive();
  CHECK(at<TimeSyncBody>(message, kHeaderBytes).flags == kTimeSyncSample);
}

constexpr const char* kFreeze = "/v1/partitions/demo/guest/freeze";
constexpr const char* kThaw = "/v1/partitions/demo/guest/thaw";
constexpr const char* kKeys = "/v1/partitions/demo/guest/keys";

// The next question, answered by an echo; its operation.
VssOperation answer(Service& vss) {
  Bytes message = vss.receive();
  vss.send(echoed(message));
  return at<VssBody>(message, kHeaderBytes).operation;
}

TEST_CASE("a guest is frozen until it is thawed", "[daemon][integration]") {
  Host host;
  CHECK(host.ask("POST", kThaw).status == 409);
  Service vss = host.open(vmbus::kClassVss);
  vss.negotiate({5, 0});
  const auto becomes = [&host](const char* key, const char* value) {
    return eventually([&] { return host.partition()["integration"]["vss"][key] == value; });
  };
  REQUIRE(becomes("state", "ready"));
  const auto freeze = [&](const char* time) {
    auto frozen = host.asking(kFreeze, time);
    CHECK(answer(vss) == VssOperation::kHotBackup);
    CHECK(answer(vss) == VssOperation::kFreeze);
    CHECK(frozen.get().status == 204);
  };

  SECTION("by its time") {
    freeze(R"({"timeout_s": 1})");
    CHECK(answer(vss) == VssOperation::kThaw);
    CHECK(answer(vss) == VssOperation::kBackupComplete);
    REQUIRE(becomes("freeze", "thawed"));
    CHECK(host.ask("POST", kThaw).body.find("its time was over") != std::string::npos);
  }
  SECTION("when that is asked for") {
    freeze(R"({"timeout_s": 600})");
    REQUIRE(becomes("freeze", "frozen"));
    CHECK(host.ask("GET", "/metrics").body.find("vmbusd_guest_frozen{partition=\"demo\"} 1") !=
          std::string::npos);
    auto thawed = host.asking(kThaw, "");
    CHECK(answer(vss) == VssOperation::kThaw);
    CHECK(answer(vss) == VssOperation::kBackupComplete);
    CHECK(thawed.get().status == 204);
  }
  SECTION("before vmbusd goes") {
    freeze(R"({"timeout_s": 600})");
    host.daemon().signal(SIGTERM);
    CHECK(answer(vss) == VssOperation::kThaw);
    CHECK(answer(vss) == VssOperation::kBackupComplete);
    CHECK(host.daemon().wait() == 0);
  }
  SECTION("when its worker process dies") {
    freeze(R"({"timeout_s": 600})");
    host.kill_worker();
    vss.negotiate({5, 0});
    CHECK(answer(vss) == VssOperation::kThaw);
    CHECK(answer(vss) == VssOperation::kBackupComplete);
    REQUIRE(becomes("freeze", "thawed"));
    CHECK(host.ask("POST", kThaw).body.find("its worker process died") != std::string::npos);
  }
  SECTION("or vmbusd goes without, where it does not answer") {
    freeze(R"({"timeout_s": 600})");
    host.daemon().signal(SIGTERM);
    CHECK(host.daemon().wait() == 0);
  }
}

TEST_CASE("a guest tells of itself and keeps keys", "[daemon][integration]") {
  Host host;
  Service kvp = host.open(vmbus::kClassKvp);
  kvp.negotiate({4, 0});
  const auto answer_entry = [&kvp](const std::string& key, const std::string& value) {
    Bytes message = echoed(kvp.receive());
    KvpValue& entry = at<KvpEnumerateBody>(message, kHeaderBytes).entry;
    entry.key_size = write_field(key, entry.key).value();
    entry.value_size = write_field(value, entry.value).value();
    kvp.send(message);
  };
  constexpr std::uint32_t kNoMore = 0x80070103;
  answer_entry("FullyQualifiedDomainName", "web1.example");
  answer_entry("OSName", "Debian GNU/Linux");
  answer_entry("OSMajorVersion", "12");
  answer_entry("NetworkAddressIPv4", "192.0.2.7;198.51.100.7;");
  answer_entry("NetworkAddressIPv6", "2001:db8::7;");
  kvp.send(echoed(kvp.receive(), kNoMore));
  answer_entry("role", "gr\u00fc\u00dfe");
  kvp.send(echoed(kvp.receive(), kNoMore));
  REQUIRE(eventually([&] { return host.partition()["guest"]["keys"].size() == 1; }));
  const Json guest = host.partition()["guest"];
  CHECK(guest["keys"]["role"] == "gr\u00fc\u00dfe");
  CHECK(guest["facts"]["OSName"] == "Debian GNU/Linux");
  const Json seen = Json::parse(host.ask("GET", "/v1/partitions").body)["partitions"][0]["guest"];
  CHECK(seen["name"] == "web1.example");
  CHECK(seen["os"] == "Debian GNU/Linux 12");
  CHECK(seen["addresses"] == Json::array({"192.0.2.7", "198.51.100.7", "2001:db8::7"}));

  auto kept = host.asking(kKeys, R"({"key": "role", "value": "web"})");
  Bytes message = kvp.receive();
  const KvpSetBody set = at<KvpSetBody>(message, kHeaderBytes);
  CHECK(set.header.operation == KvpOperation::kSet);
  CHECK(text_of_field(set.entry.value, set.entry.value_size) == "web");
  kvp.send(echoed(message));
  CHECK(kept.get().status == 204);
  auto forgotten = host.asking(kKeys, R"({"key": "role", "value": null})");
  message = kvp.receive();
  CHECK(at<KvpHeader>(message, kHeaderBytes).operation == KvpOperation::kDelete);
  kvp.send(echoed(message, kStatusFail));
  CHECK(forgotten.get().body.find("the guest refuses") != std::string::npos);
}

TEST_CASE("a guest that says what nobody asked for is not served", "[daemon][integration]") {
  Host host;
  Service shutdown = host.open(vmbus::kClassShutdown);
  shutdown.negotiate({3, 2});
  REQUIRE(eventually([&] { return host.partition()["integration"]["shutdown"]["state"] == "ready"; }));
  SECTION("a little is ignored") {
    shutdown.send(Bytes(8));
    shutdown.send(Bytes(kMessageBytesMax + 8));
    auto answer = host.asking(kShutdown, kPowerOff);
    shutdown.send(echoed(shutdown.receive()));
    CHECK(answer.get().status == 204);
  }
  SECTION("much ends the channel's service") {
    for (int i = 0; i < 64; ++i) shutdown.send(Bytes(40));
    CHECK(eventually([&] { return host.partition()["integration"]["shutdown"]["state"] == "closed"; }));
    CHECK(host.partition()["integration"]["shutdown"]["channels"][0]["state"] == "broken");
    CHECK(host.ask("POST", kShutdown, kPowerOff).status == 409);
  }
}

}  // namespace
}  // namespace vmbusd::daemon
