#include <array>
#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "devices/integration/heartbeat.h"
#include "devices/integration/kvp.h"
#include "devices/integration/shutdown.h"
#include "devices/integration/time_sync.h"
#include "devices/integration/utf16.h"
#include "devices/integration/vss.h"
#include "tests/catch.h"

namespace vmbusd::integration {
namespace {

using namespace std::chrono_literals;

constexpr TimePoint kStart{1000s};

template <typename Body>
Body body_of(std::span<const std::byte> bytes) {
  Body body{};
  REQUIRE(read_wire(bytes, body));
  REQUIRE(bytes.size() == sizeof body);
  return body;
}

TEST_CASE("a guest that answers its heartbeat is well", "[integration]") {
  StatusBoard board;
  LogScope log("test");
  Heartbeat heartbeat(board, log);
  CHECK(heartbeat.due() == kNever);
  CHECK(heartbeat.next(kStart).empty());
  heartbeat.ready({3, 0}, kStart);
  CHECK(Heartbeat::health(board.get(), kStart) == Health::kUnknown);

  HeartbeatBody body = body_of<HeartbeatBody>(heartbeat.next(kStart));
  CHECK(body.sequence == 0);
  CHECK(heartbeat.due() == kStart + Heartbeat::kLostAfter);
  ++body.sequence;
  heartbeat.answered(kStatusOk, wire_bytes(body), kStart + 1ms);
  CHECK(Heartbeat::health(board.get(), kStart + 1ms) == Health::kOk);
  CHECK(heartbeat.due() == kStart + Heartbeat::kInterval);
  CHECK(heartbeat.next(kStart + 1999ms).empty());
  CHECK(body_of<HeartbeatBody>(heartbeat.next(kStart + 2s)).sequence == 1);

  SECTION("one that stops answering is lost, and comes back") {
    heartbeat.tick(kStart + 11s);
    CHECK(heartbeat.due() == kStart + 12s);
    CHECK(Heartbeat::health(board.get(), kStart + 10s) == Health::kOk);
    CHECK(Heartbeat::health(board.get(), kStart + 11s) == Health::kLost);
    heartbeat.tick(kStart + 12s);
    CHECK(heartbeat.due() == kNever);
    heartbeat.answered(kStatusOk, wire_bytes(body), kStart + 60s);
    CHECK(Heartbeat::health(board.get(), kStart + 60s) == Health::kOk);
    CHECK(heartbeat.due() <= kStart + 60s);
  }
  SECTION("an answer without a number is none") {
    heartbeat.answered(kStatusOk, wire_bytes(body).first(7), kStart + 20s);
    CHECK(Heartbeat::health(board.get(), kStart + 20s) == Health::kLost);
  }
  SECTION("without its driver nobody knows") {
    heartbeat.closed();
    CHECK(Heartbeat::health(board.get(), kStart + 2s) == Health::kUnknown);
  }
}

struct Asked {
  LogScope log{"test"};
  StatusBoard board;
  Shutdown shutdown{board, log};
  std::optional<std::string> outcome;

  void ask(ShutdownAction action = ShutdownAction::kPowerOff) {
    shutdown.request(action, kStart, [this](std::string problem) { outcome = std::move(problem); });
  }
};

TEST_CASE("a guest is asked to shut down", "[integration]") {
  Asked asked;
  asked.shutdown.ready({3, 2}, kStart);
  CHECK(asked.shutdown.next(kStart).empty());

  SECTION("in the words of what is wanted") {
    struct Case {
      ShutdownAction action;
      std::uint32_t flags;
    };
    constexpr Case kCases[] = {
        {ShutdownAction::kPowerOff, 1}, {ShutdownAction::kReboot, 3}, {ShutdownAction::kHibernate, 5}};
    for (const Case& c : kCases) {
      asked.ask(c.action);
      CHECK(body_of<ShutdownBody>(asked.shutdown.next(kStart)).flags == c.flags);
      CHECK_FALSE(asked.outcome.has_value());
      asked.shutdown.answered(kStatusOk, {}, kStart);
      CHECK(asked.outcome == "");
      asked.outcome.reset();
    }
  }
  SECTION("once at a time") {
    asked.ask();
    asked.ask();
    CHECK(asked.outcome == "the guest is being asked already");
    CHECK_FALSE(asked.shutdown.next(kStart).empty());
    CHECK(asked.shutdown.next(kStart).empty());
  }
  SECTION("and may refuse") {
    asked.ask();
    CHECK_FALSE(asked.shutdown.next(kStart).empty());
    asked.shutdown.answered(kStatusFail, {}, kStart);
    CHECK(asked.outcome == "the guest refuses, status 0x80004005");
  }
  SECTION("and may not answer in time") {
    asked.ask();
    CHECK_FALSE(asked.shutdown.next(kStart).empty());
    CHECK(asked.shutdown.due() == kStart + Shutdown::kAnswerTime);
    asked.shutdown.tick(kStart + 9s);
    CHECK_FALSE(asked.outcome.has_value());
    asked.shutdown.tick(kStart + 10s);
    CHECK(asked.outcome == "the guest does not answer within 10 s");
    asked.shutdown.answered(kStatusOk, {}, kStart + 11s);
    CHECK(asked.shutdown.due() == kNever);
  }
  SECTION("and may be gone before it answers") {
    asked.ask();
    asked.shutdown.closed();
    CHECK(asked.outcome == "the guest closed its shutdown channel");
  }
}

TEST_CASE("a guest is not asked for what its driver does not know", "[integration]") {
  Asked asked;
  asked.ask();
  CHECK(asked.outcome == "the guest's driver has not answered yet which versions of shutdown it knows");
  asked.shutdown.ready({3, 1}, kStart);
  asked.ask(ShutdownAction::kHibernate);
  CHECK(asked.outcome == "the guest's driver is too old to hibernate the guest");
  asked.outcome.reset();
  asked.ask(ShutdownAction::kReboot);
  CHECK_FALSE(asked.outcome.has_value());

  Asked older;
  older.shutdown.ready({3, 0}, kStart);
  older.ask(ShutdownAction::kReboot);
  CHECK(older.outcome == "the guest's driver is too old to restart the guest");
}

TEST_CASE("the guest's clock is set once, then told the time", "[integration]") {
  // 2026-11-23 20:00:00 UTC, in units of 100 ns since 1601.
  constexpr std::uint64_t kExpected = 134399520000000000;
  TimeSync::WallClock::time_point wall{std::chrono::seconds(1795478400)};
  LogScope log("test");
  StatusBoard board;
  TimeSync sync(board, log, [&] { return wall; });
  CHECK(sync.next(kStart).empty());
  sync.ready({3, 0}, kStart);
  TimeSyncBody body = body_of<TimeSyncBody>(sync.next(kStart));
  CHECK(body.parent_time == kExpected);
  CHECK(body.flags == kTimeSyncSet);
  CHECK(sync.due() == kNever);
  sync.answered(kStatusOk, {}, kStart + 1s);
  CHECK(sync.due() == kStart + 6s);
  CHECK(sync.next(kStart + 5s).empty());

  wall += 6s;
  body = body_of<TimeSyncBody>(sync.next(kStart + 6s));
  CHECK(body.parent_time == kExpected + 60'000'000);
  CHECK(body.flags == kTimeSyncSample);
  sync.answered(kStatusOk, {}, kStart + 6s);

  // The host slept for an hour: its steady clock stood.
  wall += 1h + 6s;
  CHECK(body_of<TimeSyncBody>(sync.next(kStart + 12s)).flags == kTimeSyncSet);
  sync.answered(kStatusOk, {}, kStart + 12s);
  wall += 6s;
  CHECK(body_of<TimeSyncBody>(sync.next(kStart + 18s)).flags == kTimeSyncSample);
}

// A daemon with two facts and one key, as hv_kvp_daemon answers.
struct Daemon {
  std::vector<KeyValue> facts = {{"OSName", "Debian"}, {"NetworkAddressIPv4", "192.0.2.7;"}};
  std::vector<KeyValue> keys = {{"k", "v"}};

  // False where it has none of that index.
  [[nodiscard]] bool fill(KvpEnumerateBody& body) const {
    const auto& pool = body.header.pool == KvpPool::kAuto ? facts : keys;
    if (body.index >= pool.size()) return false;
    body.entry.type = kKvpString;
    body.entry.key_size = write_field(pool[body.index].key, body.entry.key).value();
    body.entry.value_size = write_field(pool[body.index].value, body.entry.value).value();
    return true;
  }
  // Answers until nothing is asked; how often that was.
  int answer_all(Kvp& kvp, TimePoint now) const {
    for (int asked = 0;; ++asked) {
      const auto question = kvp.next(now);
      if (question.empty()) return asked;
      auto body = body_of<KvpEnumerateBody>(question);
      CHECK(body.header.operation == KvpOperation::kEnumerate);
      constexpr std::uint32_t kNoMore = 0x80070103;
      const std::uint32_t status = fill(body) ? kStatusOk : kNoMore;
      kvp.answered(status, wire_bytes(body), now);
    }
  }
};

TEST_CASE("a guest's facts and keys are asked for again and again", "[integration]") {
  StatusBoard board;
  LogScope log("test");
  Kvp kvp(board, log);
  Daemon daemon;
  kvp.ready({4, 0}, kStart);
  CHECK(daemon.answer_all(kvp, kStart) == 5);
  CHECK(board.get().facts == daemon.facts);
  CHECK(board.get().keys == daemon.keys);
  CHECK(kvp.due() == kStart + Kvp::kInterval);

  daemon.keys.clear();
  CHECK(daemon.answer_all(kvp, kStart + 7s) == 0);
  CHECK(daemon.answer_all(kvp, kStart + 8s) == 4);
  CHECK(board.get().keys.empty());

  SECTION("as many as there may be, from a guest that has them without end") {
    KvpEnumerateBody endless{};
    int asked = 0;
    while (!kvp.next(kStart + 16s).empty()) {
      kvp.answered(kStatusOk, wire_bytes(endless), kStart + 16s);
      ++asked;
    }
    CHECK(asked == 2 * Kvp::kEntriesMax);
    CHECK(board.get().facts.size() == Kvp::kEntriesMax);
  }
  SECTION("an answer that is cut short is none") {
    const auto question = body_of<KvpEnumerateBody>(kvp.next(kStart + 16s));
    kvp.answered(kStatusOk, wire_bytes(question).first(2579), kStart + 16s);
    CHECK(board.get().facts.empty());
    CHECK(body_of<KvpEnumerateBody>(kvp.next(kStart + 16s)).header.pool == KvpPool::kGuest);
  }
  SECTION("nothing is known of a guest whose driver is gone") {
    kvp.closed();
    CHECK(board.get().facts.empty());
  }
}

TEST_CASE("keys are written between questions", "[integration]") {
  StatusBoard board;
  LogScope log("test");
  Kvp kvp(board, log);
  std::vector<std::string> outcomes;
  const auto write = [&](const std::string& key, const std::optional<std::string>& value) {
    kvp.write(key, value, kStart, [&](std::string problem) { outcomes.push_back(std::move(problem)); });
  };
  write("k", "v");
  REQUIRE(outcomes.size() == 1);
  CHECK(outcomes[0] == "no daemon for keys is running in the guest; Linux's is hv_kvp_daemon");
  kvp.ready({4, 0}, kStart);
  auto question = body_of<KvpEnumerateBody>(kvp.next(kStart));
  write("key", "gr\u00fc\u00dfe");
  write("k", "v");
  REQUIRE(outcomes.size() == 2);
  CHECK(outcomes[1] == "the guest is being asked already");
  CHECK(Daemon().fill(question));
  kvp.answered(kStatusOk, wire_bytes(question), kStart);

  const auto set = body_of<KvpSetBody>(kvp.next(kStart));
  CHECK(set.header.operation == KvpOperation::kSet);
  CHECK(set.header.pool == KvpPool::kExternal);
  CHECK(set.entry.type == kKvpString);
  CHECK(text_of_field(set.entry.key, set.entry.key_size) == "key");
  CHECK(text_of_field(set.entry.value, set.entry.value_size) == "gr\u00fc\u00dfe");
  kvp.answered(kStatusOk, {}, kStart);
  CHECK(outcomes.back().empty());
  // The round goes on where it was.
  CHECK(body_of<KvpEnumerateBody>(kvp.next(kStart)).index == 1);
  kvp.answered(kStatusFail, {}, kStart);

  write("key", std::nullopt);
  const auto forget = body_of<KvpDeleteBody>(kvp.next(kStart));
  CHECK(forget.header.operation == KvpOperation::kDelete);
  CHECK(text_of_field(forget.key, forget.key_size) == "key");
  kvp.answered(kStatusFail, {}, kStart);
  CHECK(outcomes.back() == "the guest refuses, status 0x80004005");

  for (const auto& [key, value] : {std::pair<std::string, std::string>{"", "v"},
                                   {std::string(256, 'k'), "v"},
                                   {"k", std::string(1024, 'v')},
                                   {"\xff", "v"}}) {
    write(key, value);
    CHECK(outcomes.back() == "the key or the value is not text of the size that a guest takes");
  }
  write(std::string(255, 'k'), std::string(1023, 'v'));
  CHECK(body_of<KvpSetBody>(kvp.next(kStart)).entry.value_size == 2048);
  kvp.tick(kStart + 10s);
  CHECK(outcomes.back() == "the guest does not answer within 10 s");
}

// What a Vss asks next, or nothing.
std::optional<VssOperation> asks(Vss& vss, TimePoint now) {
  vss.tick(now);
  const auto question = vss.next(now);
  if (question.empty()) return std::nullopt;
  return body_of<VssBody>(question).operation;
}

struct Frozen {
  LogScope log{"test"};
  StatusBoard board;
  Vss vss{board, log};
  std::array<std::byte, 8> kept;
  std::optional<std::string> frozen;
  std::optional<std::string> thawed;

  // `kept`: what a worker process that died left.
  explicit Frozen(std::byte left = std::byte{0}) : kept{left} {
    vss.keep(kept, true);
    vss.ready({5, 0}, kStart);
  }
  void freeze() {
    vss.freeze(30s, kStart, [this](std::string problem) { frozen = std::move(problem); });
  }
  void thaw(TimePoint now) {
    vss.thaw(now, [this](std::string problem) { thawed = std::move(problem); });
  }
  void ask(VssOperation operation, TimePoint now, std::uint32_t status = kStatusOk) {
    CHECK(asks(vss, now) == operation);
    vss.answered(status, {}, now);
  }
  void become_frozen() {
    freeze();
    ask(VssOperation::kHotBackup, kStart);
    ask(VssOperation::kFreeze, kStart);
    CHECK(frozen == "");
    CHECK(board.get().freeze == FreezeState::kFrozen);
  }
  void become_thawed(TimePoint now) {
    ask(VssOperation::kThaw, now);
    ask(VssOperation::kBackupComplete, now);
    CHECK(asks(vss, now) == std::nullopt);
    CHECK(vss.due() == kNever);
    CHECK(board.get().freeze == FreezeState::kThawed);
  }
};

TEST_CASE("a thaw follows every freeze", "[integration]") {
  Frozen guest;
  SECTION("when it is asked for") {
    guest.become_frozen();
    CHECK(guest.vss.due() == kStart + 30s);
    CHECK(asks(guest.vss, kStart + 29s) == std::nullopt);
    guest.thaw(kStart + 29s);
    guest.become_thawed(kStart + 29s);
    CHECK(guest.thawed == "");
  }
  SECTION("when its time is over, and who thaws then is told") {
    guest.become_frozen();
    guest.become_thawed(kStart + 30s);
    guest.thaw(kStart + 31s);
    CHECK(guest.thawed == "the guest was thawed before: its time was over, or its worker process died");
    guest.thaw(kStart + 31s);
    CHECK(guest.thawed == "the guest is not frozen");
  }
  SECTION("while that goes on, too") {
    guest.become_frozen();
    CHECK(asks(guest.vss, kStart + 30s) == VssOperation::kThaw);
    guest.thaw(kStart + 30s);
    guest.vss.answered(kStatusOk, {}, kStart + 30s);
    guest.ask(VssOperation::kBackupComplete, kStart + 30s);
    CHECK(guest.thawed == "the guest was thawed before: its time was over, or its worker process died");
  }
  SECTION("when the guest failed to freeze, without its daemon for ever") {
    guest.freeze();
    guest.ask(VssOperation::kHotBackup, kStart);
    guest.ask(VssOperation::kFreeze, kStart, kStatusFail);
    CHECK(guest.frozen->find("hv_vss_daemon") != std::string::npos);
    guest.ask(VssOperation::kThaw, kStart, kStatusFail);
    guest.ask(VssOperation::kBackupComplete, kStart);
    CHECK(guest.board.get().freeze == FreezeState::kThawed);
  }
  SECTION("when it froze too late") {
    guest.freeze();
    guest.ask(VssOperation::kHotBackup, kStart);
    CHECK(asks(guest.vss, kStart) == VssOperation::kFreeze);
    guest.vss.tick(kStart + 30s);
    CHECK(guest.frozen == "the guest did not freeze in the time that it had");
    guest.vss.answered(kStatusOk, {}, kStart + 31s);
    guest.become_thawed(kStart + 31s);
  }
  SECTION("again, where it refuses") {
    guest.become_frozen();
    guest.thaw(kStart + 1s);
    guest.ask(VssOperation::kThaw, kStart + 1s, kStatusFail);
    CHECK(guest.vss.due() == kStart + 6s);
    CHECK(asks(guest.vss, kStart + 5s) == std::nullopt);
    guest.ask(VssOperation::kThaw, kStart + 6s, kStatusFail);
    CHECK(asks(guest.vss, kStart + 11s) == VssOperation::kThaw);
    CHECK(guest.thawed->find("goes on being asked") != std::string::npos);
    guest.vss.answered(kStatusOk, {}, kStart + 11s);
    guest.ask(VssOperation::kBackupComplete, kStart + 11s);
    CHECK(guest.board.get().freeze == FreezeState::kThawed);
  }
  SECTION("at once, while it is being frozen") {
    guest.freeze();
    CHECK(asks(guest.vss, kStart) == VssOperation::kHotBackup);
    guest.thaw(kStart);
    CHECK(guest.frozen == "the guest was thawed before it was frozen");
    guest.vss.answered(kStatusOk, {}, kStart);
    guest.become_thawed(kStart);
    CHECK(guest.thawed == "");
  }
}

TEST_CASE("who follows a worker process that died thaws what it left frozen", "[integration]") {
  Frozen first;
  first.freeze();
  first.ask(VssOperation::kHotBackup, kStart);
  CHECK(first.kept[0] == std::byte{0});
  CHECK(asks(first.vss, kStart) == VssOperation::kFreeze);
  CHECK(first.kept[0] != std::byte{0});

  Frozen next(first.kept[0]);
  CHECK(next.board.get().freeze == FreezeState::kThawing);
  next.become_thawed(kStart);
  CHECK(next.kept[0] == std::byte{0});
  next.thaw(kStart);
  CHECK(next.thawed == "the guest was thawed before: its time was over, or its worker process died");

  Frozen after(next.kept[0]);
  CHECK(asks(after.vss, kStart) == std::nullopt);
}

TEST_CASE("what cannot be frozen or thawed is refused in words", "[integration]") {
  Frozen guest;
  SECTION("nothing is frozen") {
    guest.thaw(kStart);
    CHECK(guest.thawed == "the guest is not frozen");
  }
  SECTION("it is frozen") {
    guest.become_frozen();
    guest.freeze();
    CHECK(guest.frozen == "the guest is frozen already");
  }
  SECTION("the guest cannot") {
    guest.freeze();
    guest.ask(VssOperation::kHotBackup, kStart, kStatusFail);
    CHECK(guest.frozen == "the guest cannot freeze, status 0x80004005");
    CHECK(asks(guest.vss, kStart) == std::nullopt);
    CHECK(guest.vss.due() == kNever);
  }
  SECTION("the guest's driver goes") {
    guest.become_frozen();
    guest.thaw(kStart);
    guest.vss.closed();
    CHECK(guest.thawed == "the guest closed its channel for freezing");
    CHECK(guest.board.get().freeze == FreezeState::kThawed);
  }
}

}  // namespace
}  // namespace vmbusd::integration
