#include "partition/attach_server.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <string>

#include "tests/catch.h"
#include "tests/partition/descriptors.h"

using namespace vmbusd;
using namespace vmbusd::partition;
using namespace vmbusd::test;

namespace {

constexpr std::uint64_t kPage = kPageSize;
constexpr std::array<std::uint32_t, 2> kConnections = {1, 4};
constexpr std::uint32_t kVps = 4;
constexpr std::uint64_t kRamPages = 16;  // of the region that attach_with_memory() adds at 0

// A daemon that records what the server asks of it.
class FakeDaemon final : public AttachServerEvents {
 public:
  struct Sent {
    std::vector<std::byte> bytes;
    std::size_t fds;
  };
  struct Change {
    bool drain;
    std::function<void()> change;
    std::function<void()> done;
  };

  void send(std::span<const std::byte> bytes, std::span<const int> fds) override {
    sent.push_back({{bytes.begin(), bytes.end()}, fds.size()});
  }
  void attached(Partition& partition) override { attached_to = &partition; }
  void change_partition(bool drain, std::function<void()> change, std::function<void()> done) override {
    changes.push_back({drain, std::move(change), std::move(done)});
    if (!hold_changes) finish_changes();
  }
  void guest_message(std::uint32_t vp, std::uint32_t connection_id, std::uint32_t message_type,
                     std::span<const std::byte> payload) override {
    ++guest_messages;
    last_vp = vp;
    last_connection = connection_id;
    last_type = message_type;
    last_payload.assign(payload.begin(), payload.end());
  }
  void reset(std::function<void()> done) override { reset_done = std::move(done); }
  bool region_lent(std::uint64_t, std::uint64_t) const override { return lent; }
  bool lent = false;
  int area_for_vmm() const override { return area.get(); }
  bool doorbell_kept(std::uint32_t connection_id, int) override { return connection_id == 0x2001; }
  Result<void> take_up(UniqueFd given) override {
    given_area = std::move(given);
    return {};
  }
  UniqueFd area;
  UniqueFd given_area;

  void finish_changes() {
    for (Change& change : std::exchange(changes, {})) {
      change.change();
      change.done();
    }
  }
  // The oldest datagram not looked at yet.
  template <typename Message>
  Message take() {
    REQUIRE_FALSE(sent.empty());
    Message message{};
    REQUIRE(sent.front().bytes.size() == sizeof message);
    std::memcpy(&message, sent.front().bytes.data(), sizeof message);
    sent.pop_front();
    CHECK(message.header.size == sizeof message);
    return message;
  }

  std::deque<Sent> sent;
  std::vector<Change> changes;
  bool hold_changes = false;
  Partition* attached_to = nullptr;
  std::function<void()> reset_done;
  int guest_messages = 0;
  std::uint32_t last_vp = 0;
  std::uint32_t last_connection = 0;
  std::uint32_t last_type = 0;
  std::vector<std::byte> last_payload;
};

template <typename Message>
Message make(AttachType type, std::uint64_t cookie = 7) {
  Message message{};
  message.header = {type, sizeof message, cookie};
  return message;
}

AttachHello make_hello() {
  auto hello = make<AttachHello>(AttachType::kHello);
  hello.magic = kAttachMagic;
  hello.major = kAttachMajor;
  hello.minor = kAttachMinor;
  hello.vp_count = kVps;
  return hello;
}

AttachMemory make_memory(AttachType type, std::uint64_t gpa, std::uint64_t size, std::uint64_t offset = 0,
                         std::uint32_t flags = kMemoryWritable) {
  auto message = make<AttachMemory>(type);
  message.gpa = gpa;
  message.size = size;
  message.offset = offset;
  message.flags = type == AttachType::kMemoryAdd ? flags : 0;
  return message;
}

AttachSynicState make_synic(std::uint32_t vp, std::uint32_t flags, std::uint64_t event_page) {
  auto message = make<AttachSynicState>(AttachType::kSynicState);
  message.vp = vp;
  message.flags = flags;
  message.event_page_gpa = event_page;
  return message;
}

constexpr std::uint32_t kSynicOn = kSynicEnabled | kSynicMessagePage | kSynicEventPage;

class Fixture {
 public:
  template <typename Message>
  Result<void> receive(const Message& message, std::vector<UniqueFd> fds = {}) {
    return server.receive(wire_bytes(message), std::move(fds));
  }
  template <typename Message>
  Result<void> receive(const Message& message, UniqueFd fd) {
    std::vector<UniqueFd> fds;
    fds.push_back(std::move(fd));
    return server.receive(wire_bytes(message), std::move(fds));
  }
  // A request that is answered at once; its answer.
  template <typename Message>
  AttachReply ask(const Message& message, UniqueFd fd = {}) {
    std::vector<UniqueFd> fds;
    if (fd) fds.push_back(std::move(fd));
    REQUIRE(receive(message, std::move(fds)).has_value());
    const auto reply = daemon.take<AttachReply>();
    CHECK(reply.header.type == AttachType::kReply);
    CHECK(reply.header.cookie == message.header.cookie);
    CHECK(daemon.sent.empty());
    // Words for every refusal, none otherwise.
    CHECK((reply.status == AttachStatus::kOk) == (reply.text[0] == '\0'));
    CHECK(reply.text.back() == '\0');
    return reply;
  }
  void attach() {
    REQUIRE(receive(make_hello()).has_value());
    REQUIRE(daemon.take<AttachHelloReply>().status == AttachStatus::kOk);
  }
  void attach_with_memory() {
    attach();
    REQUIRE(ask(make_memory(AttachType::kMemoryAdd, 0, kRamPages * kPage), make_memfd(kRamPages * kPage))
                .status == AttachStatus::kOk);
  }
  AttachStatus set_event_page(std::uint32_t vp, std::uint64_t gpa) {
    return ask(make_synic(vp, kSynicOn, gpa)).status;
  }

  FakeDaemon daemon;
  LogScope log{"test"};
  AttachServer server{daemon, kConnections, log};
};

std::string text_of(const std::array<char, kAttachTextSize>& text) {
  return text.data();
}

// Bytes of a well-formed message of the type, filled with what is valid where that is easy.
std::vector<std::byte> bytes_of(AttachType type, std::size_t size) {
  std::vector<std::byte> bytes(size);
  const AttachHeader header{type, static_cast<std::uint32_t>(size), 9};
  std::memcpy(bytes.data(), &header, std::min(size, sizeof header));
  return bytes;
}

std::vector<UniqueFd> some_fds(std::size_t count) {
  std::vector<UniqueFd> fds;
  for (std::size_t i = 0; i < count; ++i) fds.push_back(make_eventfd());
  return fds;
}

struct Request {
  const char* name;
  AttachType type;
  std::size_t size;
  std::size_t fds;
  bool answered;
};
constexpr Request kRequests[] = {
    {"Hello", AttachType::kHello, 40, 0, true},
    {"MemoryAdd", AttachType::kMemoryAdd, 48, 1, true},
    {"MemoryRemove", AttachType::kMemoryRemove, 48, 0, true},
    {"VpInterrupt", AttachType::kVpInterrupt, 24, 1, true},
    {"SynicState", AttachType::kSynicState, 40, 0, true},
    {"GuestMessage", AttachType::kGuestMessage, 272, 0, false},
    {"Reset", AttachType::kReset, 16, 0, true},
    {"Reply", AttachType::kReply, 128, 0, false},
};

}  // namespace

TEST_CASE("a message of the wrong form ends the connection, with an answer where it has one",
          "[partition][attach]") {
  struct Case {
    const char* rule;
    int extra_bytes;
    int extra_in_header;
    int extra_fds;
  };
  static constexpr Case kCases[] = {
      {"one byte short", -1, -1, 0},
      {"one byte long", 1, 1, 0},
      {"header says one more", 0, 1, 0},
      {"header says one less", 0, -1, 0},
      {"one descriptor too many", 0, 0, 1},
      {"one descriptor too few", 0, 0, -1},
      {"header says 4 GiB less one", 0, ~0, 0},
  };
  for (const Request& request : kRequests) {
    for (const Case& c : kCases) {
      if (c.extra_fds < 0 && request.fds == 0) continue;
      DYNAMIC_SECTION(request.name << ": " << c.rule) {
        const std::ptrdiff_t open_before = count_open_fds();
        Fixture fixture;
        fixture.attach();
        std::vector<std::byte> bytes = bytes_of(request.type, request.size + c.extra_bytes);
        const auto size =
            c.extra_in_header == ~0 ? ~0u : static_cast<std::uint32_t>(request.size + c.extra_in_header);
        std::memcpy(bytes.data() + offsetof(AttachHeader, size), &size, sizeof size);
        const Result<void> received = fixture.server.receive(bytes, some_fds(request.fds + c.extra_fds));
        REQUIRE_FALSE(received.has_value());
        CHECK(received.error().code == Errc::kProtocol);
        // A Reset cut short has no cookie to answer to.
        const bool answered = request.answered && bytes.size() >= sizeof(AttachHeader);
        REQUIRE(fixture.daemon.sent.size() == (answered ? 1 : 0));
        if (answered) {
          const auto reply = fixture.daemon.take<AttachReply>();
          CHECK(reply.status == AttachStatus::kMalformed);
          CHECK(reply.header.cookie == 9);
          CHECK(text_of(reply.text).find(request.name) == 0);
        }
        CHECK(count_open_fds() == open_before);
      }
    }
  }
}

TEST_CASE("what no VMM sends ends the connection", "[partition][attach]") {
  struct Case {
    const char* rule;
    AttachType type;
    std::size_t size;
  };
  static constexpr Case kCases[] = {
      {"shorter than a header", AttachType::kReset, 15},
      {"type 0", AttachType{0}, 16},
      {"type past the last", AttachType{8}, 16},
      {"type of all ones", AttachType{~0u}, 16},
      {"HelloReply, the daemon's", AttachType::kHelloReply, sizeof(AttachHelloReply)},
      {"DoorbellAttach, the daemon's", AttachType::kDoorbellAttach, sizeof(AttachDoorbell)},
      {"HostMessage, the daemon's", AttachType::kHostMessage, sizeof(AttachHostMessage)},
      {"SignalEvent, the daemon's", AttachType::kSignalEvent, sizeof(AttachSignalEvent)},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Fixture fixture;
      fixture.attach();
      CHECK_FALSE(fixture.server.receive(bytes_of(c.type, c.size), {}).has_value());
    }
  }
}

TEST_CASE("nothing but Hello is served before Hello", "[partition][attach]") {
  for (const Request& request : kRequests) {
    if (request.type == AttachType::kHello) continue;
    DYNAMIC_SECTION(request.name) {
      Fixture fixture;
      const Result<void> received =
          fixture.server.receive(bytes_of(request.type, request.size), some_fds(request.fds));
      // Answered where there is an answer, so that the VMM's author finds the mistake.
      CHECK(received.has_value() == request.answered);
      REQUIRE(fixture.daemon.sent.size() == (request.answered ? 1 : 0));
      if (request.answered) CHECK(fixture.daemon.take<AttachReply>().status == AttachStatus::kState);
      CHECK(fixture.server.partition() == nullptr);
      fixture.attach();
    }
  }
}

TEST_CASE("what a VMM can keep is told to those that can keep it", "[partition][attach]") {
  struct Case {
    const char* rule;
    std::uint16_t minor;
    std::uint64_t features;
    bool area;
    bool told;
  };
  static constexpr Case kCases[] = {
      {"asked for", 1, kFeatureTakeUp, true, true},
      {"beside what nobody knows", 9, ~0ull, true, true},
      {"not asked for", 1, 0, true, false},
      {"by a version that has it not", 0, kFeatureTakeUp, true, false},
      {"nothing to keep", 1, kFeatureTakeUp, false, false},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Fixture fixture;
      if (c.area) fixture.daemon.area = make_memfd(kPage);
      auto hello = make_hello();
      hello.minor = c.minor;
      hello.features = c.features;
      REQUIRE(fixture.receive(hello).has_value());
      CHECK(fixture.daemon.take<AttachHelloReply>().features == (c.told ? kFeatureTakeUp : 0));
      REQUIRE(fixture.daemon.sent.size() == (c.told ? 1 : 0));
      CHECK(fixture.server.can_be_taken_up() == c.told);
      auto doorbell = make<AttachDoorbell>(AttachType::kDoorbellKept);
      doorbell.connection_id = 0x2001;
      const AttachStatus wanted = c.told ? AttachStatus::kOk : AttachStatus::kState;
      if (c.told) {
        CHECK(fixture.daemon.sent.front().fds == 1);
        const auto told = fixture.daemon.take<AttachRecoveryArea>();
        CHECK(told.flags == 0);
        CHECK(told.guest_messages == 0);
      }
      CHECK(fixture.ask(doorbell, make_eventfd()).status == wanted);
      CHECK(fixture.ask(make<AttachTakeUp>(AttachType::kTakeUp), make_memfd(kPage)).status == wanted);
      CHECK(static_cast<bool>(fixture.daemon.given_area) == c.told);
      // Not twice.
      CHECK(fixture.ask(make<AttachTakeUp>(AttachType::kTakeUp), make_memfd(kPage)).status ==
            AttachStatus::kState);
    }
  }
}

TEST_CASE("a daemon that takes a guest up tells how much the guest was heard", "[partition][attach]") {
  Fixture fixture;
  fixture.daemon.area = make_memfd(kPage);
  auto hello = make_hello();
  hello.features = kFeatureTakeUp;
  REQUIRE(fixture.receive(hello).has_value());
  auto message = make<AttachGuestMessage>(AttachType::kGuestMessage, 0);
  message.connection_id = 1;
  for (int i = 0; i < 3; ++i) REQUIRE(fixture.receive(message).has_value());
  SerialWriter saved;
  fixture.server.save(saved);

  Fixture next;
  next.daemon.area = make_memfd(kPage);
  SerialReader in(saved.bytes());
  REQUIRE(next.server.restore(in, [](FdKey) { return UniqueFd(); }).has_value());
  CHECK(in.at_end());
  CHECK(next.daemon.sent.empty());
  next.server.taken_up();
  const auto told = next.daemon.take<AttachRecoveryArea>();
  CHECK(told.flags == kRecoveryTakenUp);
  CHECK(told.guest_messages == 3);
  // Too late for what belongs before it.
  CHECK(next.ask(make<AttachTakeUp>(AttachType::kTakeUp), make_memfd(kPage)).status == AttachStatus::kState);
}

TEST_CASE("Hello agrees on version, features and VPs", "[partition][attach]") {
  struct Case {
    const char* rule;
    std::uint32_t magic;
    std::uint16_t major;
    std::uint16_t minor;
    std::uint64_t features;
    std::uint32_t vp_count;
    AttachStatus status;
    const char* words;
  };
  static constexpr Case kCases[] = {
      {"accepted", kAttachMagic, 1, 0, 0, 1, AttachStatus::kOk, ""},
      {"most VPs", kAttachMagic, 1, 0, 0, kMaxVps, AttachStatus::kOk, ""},
      {"later minor version", kAttachMagic, 1, 9, 0, 1, AttachStatus::kOk, ""},
      {"features that nobody knows", kAttachMagic, 1, 0, ~0ull, 1, AttachStatus::kOk, ""},
      {"not our magic", 0x564d4241, 1, 0, 0, 1, AttachStatus::kInvalid, "magic"},
      {"later major version", kAttachMagic, 2, 3, 0, 1, AttachStatus::kVersion, "2.3"},
      {"later major version, ours", kAttachMagic, 2, 3, 0, 1, AttachStatus::kVersion, "vmbusd 1.1"},
      {"major version 0", kAttachMagic, 0, 9, 0, 1, AttachStatus::kVersion, "0.9"},
      {"no VP", kAttachMagic, 1, 0, 0, 0, AttachStatus::kInvalid, "VPs"},
      {"one VP too many", kAttachMagic, 1, 0, 0, kMaxVps + 1, AttachStatus::kLimit, "65 VPs"},
      {"VP count of all ones", kAttachMagic, 1, 0, 0, ~0u, AttachStatus::kLimit, "at most 64"},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Fixture fixture;
      auto hello = make_hello();
      hello.magic = c.magic;
      hello.major = c.major;
      hello.minor = c.minor;
      hello.features = c.features;
      hello.vp_count = c.vp_count;
      REQUIRE(fixture.receive(hello).has_value());
      const auto reply = fixture.daemon.take<AttachHelloReply>();
      CHECK(reply.header.type == AttachType::kHelloReply);
      CHECK(reply.header.cookie == hello.header.cookie);
      CHECK(reply.status == c.status);
      CHECK(text_of(reply.text).find(c.words) != std::string::npos);
      CHECK(reply.major == 1);
      CHECK(reply.minor == (c.status == AttachStatus::kOk ? std::min<std::uint16_t>(c.minor, 1) : 1));
      CHECK(reply.features == 0);
      const bool accepted = c.status == AttachStatus::kOk;
      CHECK(fixture.daemon.attached_to == fixture.server.partition());
      CHECK((fixture.server.partition() != nullptr) == accepted);
      const std::array<std::uint32_t, 4> connections =
          accepted ? std::array<std::uint32_t, 4>{1, 4, 0, 0} : std::array<std::uint32_t, 4>{};
      CHECK(reply.message_connections == connections);
    }
  }
}

TEST_CASE("a second Hello is refused, the first stands", "[partition][attach]") {
  Fixture fixture;
  fixture.attach();
  REQUIRE(fixture.receive(make_hello()).has_value());
  CHECK(fixture.daemon.take<AttachHelloReply>().status == AttachStatus::kState);
  CHECK(fixture.server.partition()->vp_count() == kVps);
}

TEST_CASE("a refused Hello may be tried again", "[partition][attach]") {
  Fixture fixture;
  auto hello = make_hello();
  hello.major = 2;
  REQUIRE(fixture.receive(hello).has_value());
  CHECK(fixture.daemon.take<AttachHelloReply>().status == AttachStatus::kVersion);
  fixture.attach();
}

TEST_CASE("MemoryAdd is checked field by field", "[partition][attach]") {
  struct Case {
    const char* rule;
    AttachMemory message;
    UniqueFd (*make_fd)();
    AttachStatus status;
    const char* words;
  };
  constexpr auto kAdd = AttachType::kMemoryAdd;
  constexpr auto kSomeRam = [] { return make_memfd(4 * kPage); };
  constexpr std::uint64_t kFree = kRamPages * kPage;  // the region at 0 ends here
  static const Case kCases[] = {
      {"good", make_memory(kAdd, kFree, kPage), kSomeRam, AttachStatus::kOk, ""},
      {"good with offset", make_memory(kAdd, kFree, kPage, 3 * kPage), kSomeRam, AttachStatus::kOk, ""},
      {"good, read-only", make_memory(kAdd, kFree, kPage, 0, 0), kSomeRam, AttachStatus::kOk, ""},
      {"empty", make_memory(kAdd, kFree, 0), kSomeRam, AttachStatus::kInvalid, "empty"},
      {"address not aligned", make_memory(kAdd, kFree + 8, kPage), kSomeRam, AttachStatus::kInvalid,
       "aligned"},
      {"size not aligned", make_memory(kAdd, kFree, kPage + 8), kSomeRam, AttachStatus::kInvalid, "aligned"},
      {"offset not aligned", make_memory(kAdd, kFree, kPage, 8), kSomeRam, AttachStatus::kInvalid, "offset"},
      {"wraps", make_memory(kAdd, 0 - kPage, 2 * kPage), kSomeRam, AttachStatus::kInvalid, "2^52"},
      {"offset wraps", make_memory(kAdd, kFree, 2 * kPage, 0 - kPage), kSomeRam, AttachStatus::kInvalid,
       "offset"},
      {"unknown flag", make_memory(kAdd, kFree, kPage, 0, 2), kSomeRam, AttachStatus::kInvalid, "flags"},
      {"past the descriptor's end", make_memory(kAdd, kFree, 5 * kPage), kSomeRam, AttachStatus::kInvalid,
       "beyond the end"},
      {"overlaps", make_memory(kAdd, kFree - kPage, 2 * kPage), kSomeRam, AttachStatus::kOverlap,
       "overlaps 0x0+0x10000"},
      {"pipe", make_memory(kAdd, kFree, kPage), [] { return make_pipe_end(); }, AttachStatus::kNotShareable,
       "not shareable"},
      {"read-only memfd to be written", make_memory(kAdd, kFree, kPage),
       [] { return make_read_only_memfd(kPage); }, AttachStatus::kNotShareable, "not open for"},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Fixture fixture;
      fixture.attach_with_memory();
      const std::ptrdiff_t open_before = count_open_fds();
      const AttachReply reply = fixture.ask(c.message, c.make_fd());
      CHECK(reply.status == c.status);
      CHECK(text_of(reply.text).find(c.words) != std::string::npos);
      const bool accepted = c.status == AttachStatus::kOk;
      CHECK(fixture.server.partition()->memory().regions().size() == (accepted ? 2 : 1));
      CHECK(count_open_fds() == open_before + (accepted ? 1 : 0));
    }
  }
}

TEST_CASE("a request whose descriptor was lost on the way is refused, and the connection stays",
          "[partition][attach]") {
  Fixture fixture;
  fixture.attach_with_memory();
  auto interrupt = make<AttachVpInterrupt>(AttachType::kVpInterrupt);
  interrupt.sint = kVmbusSint;
  std::vector<UniqueFd> lost(1);
  REQUIRE(fixture.receive(make_memory(AttachType::kMemoryAdd, kRamPages * kPage, kPage), std::move(lost))
              .has_value());
  lost = std::vector<UniqueFd>(1);
  REQUIRE(fixture.receive(interrupt, std::move(lost)).has_value());
  for (int i = 0; i < 2; ++i) {
    const auto reply = fixture.daemon.take<AttachReply>();
    CHECK(reply.status == AttachStatus::kFailed);
    CHECK(reply.os_error == EMFILE);
    CHECK(text_of(reply.text).find("no descriptor left") != std::string::npos);
  }
  CHECK(fixture.daemon.attached_to->memory().regions().size() == 1);
  CHECK(fixture.ask(interrupt, make_eventfd()).status == AttachStatus::kOk);
}

TEST_CASE("regions are bounded in number, and the refusal says by how many", "[partition][attach]") {
  Fixture fixture;
  fixture.attach();
  for (std::uint64_t i = 0; i < kMaxRegions; ++i) {
    REQUIRE(fixture.ask(make_memory(AttachType::kMemoryAdd, i * kPage, kPage), make_memfd(kPage)).status ==
            AttachStatus::kOk);
  }
  const AttachReply reply =
      fixture.ask(make_memory(AttachType::kMemoryAdd, kMaxRegions * kPage, kPage), make_memfd(kPage));
  CHECK(reply.status == AttachStatus::kLimit);
  CHECK(text_of(reply.text).find("64") != std::string::npos);
}

TEST_CASE("MemoryRemove wants exactly what was added", "[partition][attach]") {
  struct Case {
    const char* rule;
    std::uint64_t gpa;
    std::uint64_t size;
    AttachStatus status;
  };
  static constexpr Case kCases[] = {
      {"the region", 0, kRamPages * kPage, AttachStatus::kOk},
      {"its first page", 0, kPage, AttachStatus::kNotFound},
      {"its end", kPage, (kRamPages - 1) * kPage, AttachStatus::kNotFound},
      {"more than it", 0, (kRamPages + 1) * kPage, AttachStatus::kNotFound},
      {"beside it", kRamPages * kPage, kPage, AttachStatus::kNotFound},
      {"nothing", 0, 0, AttachStatus::kNotFound},
      {"a range that wraps", 0 - kPage, 2 * kPage, AttachStatus::kNotFound},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Fixture fixture;
      fixture.attach_with_memory();
      CHECK(fixture.ask(make_memory(AttachType::kMemoryRemove, c.gpa, c.size)).status == c.status);
      CHECK(fixture.server.partition()->memory().regions().empty() == (c.status == AttachStatus::kOk));
    }
  }
}

TEST_CASE("memory is drained before it goes, and only then answered", "[partition][attach]") {
  Fixture fixture;
  fixture.attach_with_memory();
  REQUIRE(fixture.set_event_page(1, 2 * kPage) == AttachStatus::kOk);
  fixture.daemon.hold_changes = true;
  const auto remove = make_memory(AttachType::kMemoryRemove, 0, kRamPages * kPage);
  REQUIRE(fixture.receive(remove).has_value());
  REQUIRE(fixture.daemon.changes.size() == 1);
  CHECK(fixture.daemon.changes[0].drain);
  CHECK(fixture.daemon.sent.empty());
  CHECK(fixture.server.partition()->memory().regions().size() == 1);

  SECTION("then it is gone, event pages in it too") {
    fixture.daemon.finish_changes();
    CHECK(fixture.daemon.take<AttachReply>().status == AttachStatus::kOk);
    CHECK(fixture.server.partition()->memory().regions().empty());
    CHECK(fixture.server.partition()->vp(1).event_flags == nullptr);
  }
  SECTION("what the guest has lent stays") {
    fixture.daemon.lent = true;
    fixture.daemon.finish_changes();
    CHECK(fixture.daemon.take<AttachReply>().status == AttachStatus::kState);
    CHECK(fixture.server.partition()->memory().regions().size() == 1);
    CHECK(fixture.server.partition()->vp(1).event_flags != nullptr);
  }
  SECTION("asked twice, the second finds nothing") {
    REQUIRE(fixture.receive(remove).has_value());
    fixture.daemon.finish_changes();
    CHECK(fixture.daemon.take<AttachReply>().status == AttachStatus::kOk);
    CHECK(fixture.daemon.take<AttachReply>().status == AttachStatus::kNotFound);
  }
  SECTION("an event page asked for meanwhile finds no memory") {
    REQUIRE(fixture.receive(make_synic(2, kSynicOn, 0)).has_value());
    fixture.daemon.finish_changes();
    CHECK(fixture.daemon.take<AttachReply>().status == AttachStatus::kOk);
    CHECK(fixture.daemon.take<AttachReply>().status == AttachStatus::kInvalid);
    CHECK(fixture.server.partition()->vp(2).event_flags == nullptr);
  }
}

TEST_CASE("only removal drains", "[partition][attach]") {
  Fixture fixture;
  fixture.attach_with_memory();
  fixture.daemon.hold_changes = true;
  REQUIRE(
      fixture.receive(make_memory(AttachType::kMemoryAdd, 1 << 20, kPage), make_memfd(kPage)).has_value());
  REQUIRE(fixture.receive(make_synic(0, kSynicOn, 0)).has_value());
  auto interrupt = make<AttachVpInterrupt>(AttachType::kVpInterrupt);
  interrupt.sint = kVmbusSint;
  REQUIRE(fixture.receive(interrupt, make_eventfd()).has_value());
  REQUIRE(fixture.daemon.changes.size() == 3);
  for (const FakeDaemon::Change& change : fixture.daemon.changes) CHECK_FALSE(change.drain);
}

TEST_CASE("VpInterrupt is checked field by field", "[partition][attach]") {
  struct Case {
    const char* rule;
    std::uint32_t vp;
    std::uint32_t sint;
    UniqueFd (*make_fd)();
    AttachStatus status;
  };
  static const Case kCases[] = {
      {"good", 0, 2, [] { return make_eventfd(); }, AttachStatus::kOk},
      {"last VP", kVps - 1, 2, [] { return make_eventfd(); }, AttachStatus::kOk},
      {"one VP too far", kVps, 2, [] { return make_eventfd(); }, AttachStatus::kNotFound},
      {"VP of all ones", ~0u, 2, [] { return make_eventfd(); }, AttachStatus::kNotFound},
      {"another SINT", 0, 3, [] { return make_eventfd(); }, AttachStatus::kInvalid},
      {"pipe", 0, 2, [] { return make_pipe_end(); }, AttachStatus::kInvalid},
      {"memfd", 0, 2, [] { return make_memfd(kPage); }, AttachStatus::kInvalid},
      {"file", 0, 2, [] { return open_path("/proc/self/exe", O_RDONLY); }, AttachStatus::kInvalid},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Fixture fixture;
      fixture.attach();
      auto message = make<AttachVpInterrupt>(AttachType::kVpInterrupt);
      message.vp = c.vp;
      message.sint = c.sint;
      CHECK(fixture.ask(message, c.make_fd()).status == c.status);
      if (c.status != AttachStatus::kOk) return;
      const UniqueFd& interrupt = fixture.server.partition()->vp(c.vp).interrupt;
      REQUIRE(interrupt);
      CHECK((::fcntl(interrupt.get(), F_GETFL) & O_NONBLOCK) != 0);
    }
  }
}

TEST_CASE("SynicState is checked field by field", "[partition][attach]") {
  struct Case {
    const char* rule;
    std::uint32_t vp;
    std::uint32_t flags;
    std::uint64_t event_page;
    AttachStatus status;
    bool takes_events;
  };
  constexpr std::uint64_t kReadOnly = 1 << 20;
  static constexpr Case kCases[] = {
      {"first page of memory", 0, kSynicOn, 0, AttachStatus::kOk, true},
      {"last page of memory", kVps - 1, kSynicOn, (kRamPages - 1) * kPage, AttachStatus::kOk, true},
      {"event page only", 0, kSynicEnabled | kSynicEventPage, kPage, AttachStatus::kOk, true},
      {"SynIC disabled", 0, kSynicMessagePage | kSynicEventPage, kPage, AttachStatus::kOk, false},
      {"SynIC disabled, page nonsense", 0, kSynicEventPage, ~0ull, AttachStatus::kOk, false},
      {"no event page", 0, kSynicEnabled | kSynicMessagePage, kPage, AttachStatus::kOk, false},
      {"all off", 0, 0, 0, AttachStatus::kOk, false},
      {"one VP too far", kVps, kSynicOn, 0, AttachStatus::kNotFound, false},
      {"unknown flag", 0, kSynicOn | 8, 0, AttachStatus::kInvalid, false},
      {"page not aligned", 0, kSynicOn, 8, AttachStatus::kInvalid, false},
      {"page past memory", 0, kSynicOn, kRamPages * kPage, AttachStatus::kInvalid, false},
      {"page at the top", 0, kSynicOn, 0 - kPage, AttachStatus::kInvalid, false},
      {"page in read-only memory", 0, kSynicOn, kReadOnly, AttachStatus::kInvalid, false},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Fixture fixture;
      fixture.attach_with_memory();
      REQUIRE(fixture.ask(make_memory(AttachType::kMemoryAdd, kReadOnly, kPage, 0, 0), make_memfd(kPage))
                  .status == AttachStatus::kOk);
      CHECK(fixture.ask(make_synic(c.vp, c.flags, c.event_page)).status == c.status);
      Partition& partition = *fixture.server.partition();
      const std::uint32_t vp = std::min(c.vp, kVps - 1);
      CHECK((partition.vp(vp).event_flags != nullptr) == c.takes_events);
      if (!c.takes_events) return;
      // SINT 2 has the third block of 256 bytes. [TLFS: SynIC event flags page]
      static_cast<void>(partition.set_event_flag(vp, 9));
      CHECK(*partition.memory().translate(c.event_page + 2 * 256 + 1, 1) == std::byte{2});
    }
  }
}

TEST_CASE("a refused event page leaves the VP without one", "[partition][attach]") {
  Fixture fixture;
  fixture.attach_with_memory();
  REQUIRE(fixture.set_event_page(0, kPage) == AttachStatus::kOk);
  CHECK(fixture.set_event_page(0, 1ull << 40) == AttachStatus::kInvalid);
  CHECK(fixture.server.partition()->vp(0).event_flags == nullptr);
}

TEST_CASE("GuestMessage is checked field by field", "[partition][attach]") {
  struct Case {
    const char* rule;
    std::uint32_t vp;
    std::uint32_t connection_id;
    std::uint32_t payload_size;
    bool good;
  };
  static constexpr Case kCases[] = {
      {"good", 1, 1, 24, true},
      {"on the other connection", 0, 4, 24, true},
      {"empty", 0, 1, 0, true},
      {"longest", 0, 1, 240, true},
      {"one byte too long", 0, 1, 241, false},
      {"size of all ones", 0, 1, ~0u, false},
      {"one VP too far", kVps, 1, 24, false},
      {"connection not served", 0, 2, 24, false},
      {"connection 0, as in unused entries", 0, 0, 24, false},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Fixture fixture;
      fixture.attach();
      auto message = make<AttachGuestMessage>(AttachType::kGuestMessage, 0);
      message.vp = c.vp;
      message.connection_id = c.connection_id;
      message.message_type = 1;
      message.payload_size = c.payload_size;
      message.payload.fill(0x5a);
      // The VMM checks these itself, and there is no answer to say it in.
      CHECK(fixture.receive(message).has_value() == c.good);
      CHECK(fixture.daemon.sent.empty());
      REQUIRE(fixture.daemon.guest_messages == (c.good ? 1 : 0));
      if (!c.good) return;
      CHECK(fixture.daemon.last_vp == c.vp);
      CHECK(fixture.daemon.last_connection == c.connection_id);
      CHECK(fixture.daemon.last_type == 1);
      CHECK(fixture.daemon.last_payload == std::vector<std::byte>(c.payload_size, std::byte{0x5a}));
    }
  }
}

TEST_CASE("a doorbell is asked for and its answer passed on", "[partition][attach]") {
  Fixture fixture;
  fixture.attach();
  const UniqueFd eventfd = make_eventfd();
  std::optional<Result<void>> outcome;
  const auto done = [&](const Result<void>& result) { outcome = result; };

  SECTION("attached") {
    fixture.server.doorbell_attach(0x2003, eventfd.get(), done);
    CHECK(fixture.daemon.sent.front().fds == 1);
    const auto request = fixture.daemon.take<AttachDoorbell>();
    CHECK(request.header.type == AttachType::kDoorbellAttach);
    CHECK(request.connection_id == 0x2003);
    CHECK_FALSE(outcome.has_value());
    REQUIRE(fixture.receive(make<AttachReply>(AttachType::kReply, request.header.cookie)).has_value());
    REQUIRE(outcome.has_value());
    CHECK(outcome->has_value());
    // Once: the same answer again was not asked for.
    CHECK_FALSE(fixture.receive(make<AttachReply>(AttachType::kReply, request.header.cookie)).has_value());
  }
  SECTION("refused") {
    fixture.server.doorbell_detach(0x2003, done);
    CHECK(fixture.daemon.sent.front().fds == 0);
    const auto request = fixture.daemon.take<AttachDoorbell>();
    CHECK(request.header.type == AttachType::kDoorbellDetach);
    auto reply = make<AttachReply>(AttachType::kReply, request.header.cookie);
    reply.status = AttachStatus::kFailed;
    reply.os_error = ENOENT;
    reply.text.fill('\xff');  // no NUL, not UTF-8
    REQUIRE(fixture.receive(reply).has_value());
    REQUIRE(outcome.has_value());
    REQUIRE_FALSE(outcome->has_value());
    CHECK(outcome->error().os_error == ENOENT);
  }
  SECTION("the VMM goes away") {
    fixture.server.doorbell_detach(0x2003, done);
    fixture.daemon.sent.clear();
    fixture.server.disconnected();
    REQUIRE(outcome.has_value());
    CHECK(outcome->error().code == Errc::kClosed);
    outcome.reset();
    fixture.server.doorbell_detach(0x2004, done);
    REQUIRE(outcome.has_value());
    CHECK(outcome->error().code == Errc::kClosed);
    CHECK(fixture.daemon.sent.empty());
    CHECK_FALSE(fixture.receive(make<AttachReset>(AttachType::kReset)).has_value());
  }
  SECTION("a connection id has 24 bits") {
    fixture.server.doorbell_attach(1 << 24, eventfd.get(), done);
    REQUIRE(outcome.has_value());
    CHECK_FALSE(outcome->has_value());
    CHECK(fixture.daemon.sent.empty());
  }
}

TEST_CASE("doorbells that wait for the VMM are bounded", "[partition][attach]") {
  Fixture fixture;
  fixture.attach();
  std::size_t refused = 0;
  const auto done = [&](const Result<void>& result) {
    if (!result && result.error().code == Errc::kLimit) ++refused;
  };
  for (std::size_t i = 0; i < AttachServer::kMaxPending; ++i) fixture.server.doorbell_detach(1, done);
  CHECK(refused == 0);
  fixture.server.doorbell_detach(1, done);
  CHECK(refused == 1);
  CHECK(fixture.daemon.sent.size() == AttachServer::kMaxPending);
}

TEST_CASE("an answer to nothing ends the connection", "[partition][attach]") {
  Fixture fixture;
  fixture.attach();
  for (const std::uint64_t cookie : {std::uint64_t{0}, std::uint64_t{1}, ~std::uint64_t{0}}) {
    const Result<void> received = fixture.receive(make<AttachReply>(AttachType::kReply, cookie));
    REQUIRE_FALSE(received.has_value());
    CHECK(received.error().code == Errc::kProtocol);
  }
}

TEST_CASE("messages for the guest wait in order while 16 are with the VMM", "[partition][attach]") {
  Fixture fixture;
  fixture.attach();
  constexpr std::uint8_t kMessages = 20;
  for (std::uint8_t i = 0; i < kMessages; ++i) {
    const std::array<std::byte, 2> payload{std::byte{i}, std::byte{0xee}};
    REQUIRE(fixture.server.host_message(3, 1, payload).has_value());
  }
  REQUIRE(fixture.daemon.sent.size() == kMaxHostMessages);
  std::uint8_t next = 0;
  while (!fixture.daemon.sent.empty()) {
    const auto message = fixture.daemon.take<AttachHostMessage>();
    CHECK(message.vp == 3);
    CHECK(message.sint == kVmbusSint);
    CHECK(message.message_type == 1);
    CHECK(message.payload_size == 2);
    CHECK(message.payload[0] == next);
    CHECK(message.payload[2] == 0);
    ++next;
    auto reply = make<AttachReply>(AttachType::kReply, message.header.cookie);
    // One that the guest's reset dropped is as done as one delivered.
    if (next % 2 == 0) reply.status = AttachStatus::kFailed;
    REQUIRE(fixture.receive(reply).has_value());
  }
  CHECK(next == kMessages);
}

TEST_CASE("messages for the guest are bounded", "[partition][attach]") {
  Fixture fixture;
  CHECK(fixture.server.host_message(0, 1, {}).error().code == Errc::kWrongState);
  fixture.attach();
  CHECK(fixture.server.host_message(kVps, 1, {}).error().code == Errc::kBadMessage);
  const std::array<std::byte, kMaxMessagePayload> longest{};
  for (std::size_t i = 0; i < kMaxHostMessages + AttachServer::kMaxQueuedMessages; ++i) {
    REQUIRE(fixture.server.host_message(0, 1, longest).has_value());
  }
  CHECK(fixture.server.host_message(0, 1, longest).error().code == Errc::kLimit);
  fixture.server.drop_host_messages();
  CHECK(fixture.server.host_message(0, 1, longest).has_value());
  fixture.server.disconnected();
  CHECK(fixture.server.host_message(0, 1, longest).error().code == Errc::kClosed);
}

TEST_CASE("a reset is answered when all is closed and no guest memory is in use", "[partition][attach]") {
  auto fixture = std::make_unique<Fixture>();
  FakeDaemon& daemon = fixture->daemon;
  fixture->attach_with_memory();
  REQUIRE(fixture->set_event_page(2, kPage) == AttachStatus::kOk);
  for (std::uint32_t i = 0; i < kMaxHostMessages + 1; ++i) {
    REQUIRE(fixture->server.host_message(0, 1, {}).has_value());
  }
  const std::uint64_t first_message = daemon.take<AttachHostMessage>().header.cookie;
  daemon.sent.clear();
  REQUIRE(fixture->receive(make<AttachReset>(AttachType::kReset, 50)).has_value());
  REQUIRE(daemon.reset_done);
  CHECK(daemon.sent.empty());

  SECTION("done") {
    daemon.reset_done();
    const auto reply = daemon.take<AttachReply>();
    CHECK(reply.header.cookie == 50);
    CHECK(reply.status == AttachStatus::kOk);
    CHECK(fixture->server.partition()->vp(2).event_flags == nullptr);
    CHECK(fixture->server.partition()->memory().regions().size() == 1);
    // The guest may come anew.
    CHECK(fixture->set_event_page(2, kPage) == AttachStatus::kOk);
    auto message = make<AttachGuestMessage>(AttachType::kGuestMessage, 0);
    message.connection_id = 1;
    REQUIRE(fixture->receive(message).has_value());
    CHECK(daemon.guest_messages == 1);
  }
  SECTION("what waited for the old guest is dropped") {
    REQUIRE(fixture->receive(make<AttachReply>(AttachType::kReply, first_message)).has_value());
    REQUIRE(fixture->server.host_message(0, 1, {}).has_value());
    CHECK(daemon.sent.empty());
    auto message = make<AttachGuestMessage>(AttachType::kGuestMessage, 0);
    message.connection_id = 1;
    REQUIRE(fixture->receive(message).has_value());
    CHECK(daemon.guest_messages == 0);
  }
  SECTION("not twice at once") {
    CHECK(fixture->ask(make<AttachReset>(AttachType::kReset, 51)).status == AttachStatus::kState);
    daemon.reset_done();
    CHECK(daemon.take<AttachReply>().header.cookie == 50);
    REQUIRE(fixture->receive(make<AttachReset>(AttachType::kReset, 52)).has_value());
    daemon.reset_done();
    CHECK(daemon.take<AttachReply>().header.cookie == 52);
  }
  SECTION("the VMM goes away meanwhile") {
    fixture->server.disconnected();
    daemon.reset_done();
    CHECK(daemon.sent.empty());
  }
  SECTION("the server goes away meanwhile") {
    const std::function<void()> done = daemon.reset_done;
    fixture.reset();
    done();
  }
}

TEST_CASE("a change that outlives the server does nothing", "[partition][attach]") {
  auto fixture = std::make_unique<Fixture>();
  fixture->attach_with_memory();
  fixture->daemon.hold_changes = true;
  REQUIRE(fixture->receive(make_memory(AttachType::kMemoryRemove, 0, kRamPages * kPage)).has_value());
  const std::vector<FakeDaemon::Change> changes = std::move(fixture->daemon.changes);
  fixture.reset();
  REQUIRE(changes.size() == 1);
  changes[0].change();
  changes[0].done();
}

TEST_CASE("requests not answered yet are bounded", "[partition][attach]") {
  Fixture fixture;
  fixture.attach_with_memory();
  fixture.daemon.hold_changes = true;
  const auto remove = make_memory(AttachType::kMemoryRemove, 0, kRamPages * kPage);
  for (std::uint32_t i = 0; i < kMaxVmmRequests; ++i) REQUIRE(fixture.receive(remove).has_value());
  CHECK_FALSE(fixture.receive(remove).has_value());
  CHECK(fixture.daemon.take<AttachReply>().status == AttachStatus::kLimit);
  fixture.daemon.finish_changes();
  CHECK(fixture.daemon.sent.size() == kMaxVmmRequests);
}
