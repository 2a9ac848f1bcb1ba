// The VMM's half against the daemon's over a real socket, and against daemons that misbehave.
#include "partition/attach_client.h"

#include <poll.h>
#include <sys/socket.h>

#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>

#include "partition/attach_server.h"
#include "partition/seqpacket.h"
#include "tests/catch.h"
#include "tests/partition/descriptors.h"
#include "tests/partition/temporary_folder.h"

using namespace vmbusd;
using namespace vmbusd::partition;
using namespace vmbusd::test;
using namespace std::chrono_literals;

namespace {

constexpr auto kPatience = 20s;  // reached only by a test that fails
constexpr std::array<std::uint32_t, 2> kConnections = {1, 4};

// One connection served by an AttachServer on a thread of its own, the daemon's control thread.
class ServingDaemon final : public AttachServerEvents {
 public:
  explicit ServingDaemon(const std::string& path) : listening_(*listen_seqpacket(path)) {
    thread_ = std::thread([this] { serve(); });
  }
  ~ServingDaemon() {
    call([this] { stopping_ = true; });
    thread_.join();
  }

  // Runs `function` on the control thread and waits for it. Catch's assertions are for the test's thread
  // only.
  void call(std::function<void()> function) {
    std::promise<void> done;
    {
      const std::lock_guard lock(mutex_);
      functions_.push_back([&] {
        function();
        done.set_value();
      });
    }
    const std::uint64_t one = 1;
    static_cast<void>(::write(wake_.get(), &one, sizeof one) == sizeof one);
    done.get_future().wait();
  }

  // Control thread only.
  AttachServer& server() { return *server_; }
  std::vector<std::uint32_t> guest_messages;  // types

  void send(std::span<const std::byte> bytes, std::span<const int> fds) override {
    static_cast<void>(send_datagram(socket_.get(), bytes, fds));
  }
  void attached(Partition&) override {}
  void change_partition(bool, std::function<void()> change, std::function<void()> done) override {
    change();
    done();
  }
  void guest_message(std::uint32_t, std::uint32_t, std::uint32_t type, std::span<const std::byte>) override {
    guest_messages.push_back(type);
  }
  bool region_lent(std::uint64_t, std::uint64_t) const override { return false; }
  void reset(std::function<void()> done) override {
    // Channels are closed first, which waits for the VMM's answers.
    server_->doorbell_detach(0x2001, [done](const Result<void>&) { done(); });
  }

 private:
  void serve() {
    while (!stopping_) {
      std::array<pollfd, 3> entries{pollfd{wake_.get(), POLLIN, 0}, pollfd{listening_.get(), POLLIN, 0},
                                    pollfd{socket_.get(), POLLIN, 0}};
      ::poll(entries.data(), entries.size(), -1);
      if (entries[0].revents != 0) run_functions();
      if (entries[1].revents != 0) {
        socket_ = UniqueFd(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        server_ = std::make_unique<AttachServer>(*this, kConnections, log_);
      }
      if (entries[2].revents != 0) receive();
    }
  }
  void receive() {
    Result<std::optional<Datagram>> datagram = receive_datagram(socket_.get(), true);
    if (datagram) {
      Datagram& taken = **datagram;
      if (server_->receive(taken.bytes(), std::move(taken.fds))) return;
    }
    server_->disconnected();
    socket_.reset();
  }
  void run_functions() {
    std::uint64_t ignored = 0;
    static_cast<void>(::read(wake_.get(), &ignored, sizeof ignored) == sizeof ignored);
    std::vector<std::function<void()>> functions;
    {
      const std::lock_guard lock(mutex_);
      functions.swap(functions_);
    }
    for (const std::function<void()>& function : functions) function();
  }

  UniqueFd listening_;
  UniqueFd wake_{make_eventfd()};
  UniqueFd socket_;
  LogScope log_{"test"};
  std::unique_ptr<AttachServer> server_;
  std::mutex mutex_;
  std::vector<std::function<void()>> functions_;
  bool stopping_ = false;
  std::thread thread_;
};

// Records what the daemon asks for.
class FakeVmm final : public AttachClientEvents {
 public:
  Result<void> doorbell_attach(std::uint32_t connection_id, UniqueFd eventfd) override {
    const std::lock_guard lock(mutex_);
    if (connection_id == 0x2bad) return fail_os(EEXIST, "cannot attach the eventfd");
    doorbells_.emplace_back(std::move(eventfd));
    return {};
  }
  Result<void> doorbell_detach(std::uint32_t) override { return {}; }
  void host_message(std::uint64_t cookie, std::uint32_t, std::uint32_t, std::uint32_t type,
                    std::span<const std::uint8_t> payload) override {
    const std::lock_guard lock(mutex_);
    cookies_.push_back(cookie);
    messages_.emplace_back(type, payload.size());
    changed_.notify_all();
  }
  void signal_event(std::uint32_t, std::uint32_t, std::uint32_t) override {}
  void disconnected(const Error& reason) override {
    const std::lock_guard lock(mutex_);
    ++disconnects_;
    reason_ = reason;
    changed_.notify_all();
  }

  [[nodiscard]] bool wait_for_messages(std::size_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [&] { return messages_.size() >= count; });
  }
  // The code of disconnected(); kConfig, which it never is, where it did not come.
  [[nodiscard]] Errc wait_for_disconnect() {
    std::unique_lock lock(mutex_);
    const bool came = changed_.wait_for(lock, kPatience, [&] { return disconnects_ != 0; });
    return came ? reason_.code : Errc::kConfig;
  }
  [[nodiscard]] int disconnects() {
    const std::lock_guard lock(mutex_);
    return disconnects_;
  }
  [[nodiscard]] std::size_t doorbells() {
    const std::lock_guard lock(mutex_);
    return doorbells_.size();
  }
  [[nodiscard]] std::vector<std::uint64_t> take_cookies() {
    const std::lock_guard lock(mutex_);
    return std::exchange(cookies_, {});
  }
  [[nodiscard]] std::vector<std::pair<std::uint32_t, std::size_t>> messages() {
    const std::lock_guard lock(mutex_);
    return messages_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<UniqueFd> doorbells_;
  std::vector<std::uint64_t> cookies_;
  std::vector<std::pair<std::uint32_t, std::size_t>> messages_;
  int disconnects_ = 0;
  Error reason_{};
};

std::unique_ptr<AttachClient> connect(const std::string& path, AttachClientEvents& events,
                                      std::uint32_t vp_count = 2) {
  std::string text;
  Result<std::unique_ptr<AttachClient>> client =
      AttachClient::connect({.socket_path = path, .vp_count = vp_count}, events, text);
  REQUIRE(client.has_value());
  return std::move(*client);
}

struct AttachedPair {
  TemporaryFolder folder;
  FakeVmm vmm;
  ServingDaemon daemon{folder.path("attach.sock")};
  std::unique_ptr<AttachClient> client = connect(folder.path("attach.sock"), vmm);
};

// A daemon that does what the test says, good or bad.
class ScriptedDaemon {
 public:
  using Script = std::function<void(int socket)>;

  ScriptedDaemon(const std::string& path, Script script)
      : listening_(*listen_seqpacket(path)), thread_([this, script = std::move(script)] {
          const UniqueFd socket(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
          script(socket.get());
          // Until the client has had enough.
          while (receive_datagram(socket.get(), true)) {
          }
        }) {}
  ~ScriptedDaemon() { thread_.join(); }

 private:
  UniqueFd listening_;
  std::thread thread_;
};

template <typename Message>
Message make(AttachType type, std::uint64_t cookie = 0) {
  Message message{};
  message.header = {type, sizeof message, cookie};
  return message;
}

AttachHelloReply accept_hello(int socket) {
  static_cast<void>(receive_datagram(socket, true));
  auto reply = make<AttachHelloReply>(AttachType::kHelloReply);
  reply.major = kAttachMajor;
  reply.message_connections = {1};
  return reply;
}

}  // namespace

TEST_CASE("a VMM attaches and hands over a partition", "[partition][attach]") {
  AttachedPair pair;
  AttachClient& client = *pair.client;
  CHECK(client.serves_message_connection(1));
  CHECK(client.serves_message_connection(4));
  CHECK_FALSE(client.serves_message_connection(2));
  CHECK_FALSE(client.serves_message_connection(0));
  CHECK(client.features() == 0);

  const UniqueFd ram = make_memfd(1 << 20);
  const UniqueFd interrupt = make_eventfd();
  REQUIRE(client.add_memory(0, 1 << 20, ram.get(), 0, true).has_value());
  REQUIRE(client.set_vp_interrupt(1, kVmbusSint, interrupt.get()).has_value());
  REQUIRE(client.set_synic_state(1, kSynicEnabled | kSynicEventPage, 0, 0x3000).has_value());
  std::uint32_t vps = 0;
  pair.daemon.call([&] {
    Partition& partition = *pair.daemon.server().partition();
    vps = partition.vp_count();
    const std::uint64_t one = 1;
    static_cast<void>(::write(partition.set_event_flag(1, 0).value_or(-1), &one, sizeof one) == sizeof one);
  });
  CHECK(vps == 2);
  // The flag stands in the VMM's own memory, and its eventfd was written.
  std::uint8_t flags = 0;
  REQUIRE(::pread(ram.get(), &flags, 1, 0x3200) == 1);
  CHECK(flags == 1);
  std::uint64_t counter = 0;
  REQUIRE(::read(interrupt.get(), &counter, sizeof counter) == sizeof counter);
  CHECK(counter == 1);

  CHECK(client.remove_memory(0, 1 << 20).has_value());
  CHECK(client.reset().has_value());
}

TEST_CASE("refusals come with the daemon's words", "[partition][attach]") {
  AttachedPair pair;
  AttachClient& client = *pair.client;
  CHECK(client.error_text().empty());
  const UniqueFd ram = make_memfd(1 << 20);
  REQUIRE(client.add_memory(0, 1 << 20, ram.get(), 0, true).has_value());

  const Result<void> overlapping = client.add_memory(0x1000, 0x1000, ram.get(), 0, true);
  REQUIRE_FALSE(overlapping.has_value());
  CHECK(overlapping.error().code == Errc::kMemory);
  CHECK(client.error_text() == "region 0x1000+0x1000 overlaps 0x0+0x100000");

  const UniqueFd pipe = make_pipe_end();
  CHECK(client.add_memory(1 << 20, 0x1000, pipe.get(), 0, true).error().code == Errc::kMemory);
  CHECK(client.error_text().find("not shareable") != std::string::npos);

  CHECK(client.set_synic_state(2, 0, 0, 0).error().code == Errc::kBadMessage);
  CHECK(client.error_text() == "VP 2 of 2");
  // And the connection goes on.
  CHECK(client.set_synic_state(1, 0, 0, 0).has_value());
}

TEST_CASE("requests of many threads are told apart", "[partition][attach]") {
  AttachedPair pair;
  const UniqueFd ram = make_memfd(1 << 20);
  REQUIRE(pair.client->add_memory(0, 1 << 20, ram.get(), 0, true).has_value());
  constexpr int kThreads = 4;
  std::vector<std::thread> threads;
  std::array<bool, kThreads> right{};
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      // Odd threads ask for what is refused.
      const std::uint64_t page = thread % 2 == 0 ? 0x1000 : 1ull << 40;
      bool all = true;
      for (int i = 0; i < 200; ++i) {
        all &= pair.client->set_synic_state(0, kSynicEnabled | kSynicEventPage, 0, page).has_value() ==
               (thread % 2 == 0);
      }
      right[static_cast<std::size_t>(thread)] = all;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const bool one : right) CHECK(one);
}

TEST_CASE("guest messages reach the daemon in order", "[partition][attach]") {
  AttachedPair pair;
  const std::array<std::uint8_t, kMaxMessagePayload + 1> payload{};
  for (std::uint32_t type = 1; type <= 3; ++type) {
    REQUIRE(pair.client->post_guest_message(0, 1, type, std::span(payload).first(type)).has_value());
  }
  CHECK(pair.client->post_guest_message(0, 1, 1, payload).error().code == Errc::kBadMessage);
  CHECK(pair.client->post_guest_message(0, 2, 1, {}).error().code == Errc::kBadMessage);
  // A request comes after them and is answered.
  REQUIRE(pair.client->set_synic_state(0, 0, 0, 0).has_value());
  std::vector<std::uint32_t> types;
  pair.daemon.call([&] { types = pair.daemon.guest_messages; });
  CHECK(types == std::vector<std::uint32_t>{1, 2, 3});
}

TEST_CASE("doorbells and messages reach the VMM", "[partition][attach]") {
  AttachedPair pair;
  const UniqueFd eventfd = make_eventfd();
  std::promise<Result<void>> attached;
  std::promise<Result<void>> refused;
  pair.daemon.call([&] {
    AttachServer& server = pair.daemon.server();
    server.doorbell_attach(0x2001, eventfd.get(),
                           [&](const Result<void>& result) { attached.set_value(result); });
    server.doorbell_attach(0x2bad, eventfd.get(),
                           [&](const Result<void>& result) { refused.set_value(result); });
  });
  CHECK(attached.get_future().get().has_value());
  const Result<void> refusal = refused.get_future().get();
  REQUIRE_FALSE(refusal.has_value());
  CHECK(refusal.error().os_error == EEXIST);
  CHECK(pair.vmm.doorbells() == 1);

  // 16 with the VMM; the rest when these are done.
  std::size_t queued = 0;
  pair.daemon.call([&] {
    const std::array<std::byte, 5> payload{};
    for (std::uint32_t type = 0; type < kMaxHostMessages + 2; ++type) {
      if (pair.daemon.server().host_message(1, type, payload)) ++queued;
    }
  });
  CHECK(queued == kMaxHostMessages + 2);
  CHECK(pair.vmm.wait_for_messages(kMaxHostMessages));
  for (const std::uint64_t cookie : pair.vmm.take_cookies()) pair.client->host_message_done(cookie);
  CHECK(pair.vmm.wait_for_messages(kMaxHostMessages + 2));
  for (const std::uint64_t cookie : pair.vmm.take_cookies()) pair.client->host_message_done(cookie);
  const auto messages = pair.vmm.messages();
  for (std::uint32_t type = 0; type < messages.size(); ++type) {
    CHECK(messages[type] == std::pair<std::uint32_t, std::size_t>(type, 5));
  }
}

TEST_CASE("a VMM that goes away is gone", "[partition][attach]") {
  AttachedPair pair;
  pair.client.reset();
  CHECK(pair.vmm.disconnects() == 0);  // it went by itself
  // The next one is served.
  FakeVmm next;
  const std::unique_ptr<AttachClient> client = connect(pair.folder.path("attach.sock"), next);
  CHECK(client->reset().has_value());
}

TEST_CASE("no attachment, and why", "[partition][attach]") {
  const TemporaryFolder folder;
  const std::string path = folder.path("attach.sock");
  FakeVmm vmm;
  std::string text = "left over";
  const AttachClient::Options options{.socket_path = path, .vp_count = 1};

  SECTION("no daemon") {
    const auto client = AttachClient::connect(options, vmm, text);
    REQUIRE_FALSE(client.has_value());
    CHECK(client.error().os_error == ENOENT);
    CHECK(text.empty());
  }
  SECTION("too many VPs") {
    ServingDaemon daemon(path);
    const auto client = AttachClient::connect({.socket_path = path, .vp_count = 65}, vmm, text);
    REQUIRE_FALSE(client.has_value());
    CHECK(client.error().code == Errc::kLimit);
    CHECK(text == "65 VPs; vmbusd serves at most 64");
  }
  SECTION("another version") {
    const ScriptedDaemon daemon(path, [](int socket) {
      auto reply = accept_hello(socket);
      reply.major = 9;
      reply.status = AttachStatus::kVersion;
      reply.text = {"the VMM speaks version 1.0, vmbusd 9.2"};
      static_cast<void>(send_datagram(socket, wire_bytes(reply)));
    });
    const auto client = AttachClient::connect(options, vmm, text);
    REQUIRE_FALSE(client.has_value());
    CHECK(client.error().code == Errc::kUnsupported);
    CHECK(text == "the VMM speaks version 1.0, vmbusd 9.2");
  }
  SECTION("a feature that was not asked for") {
    const ScriptedDaemon daemon(path, [](int socket) {
      auto reply = accept_hello(socket);
      reply.features = kFeatureSignalByMessage;
      static_cast<void>(send_datagram(socket, wire_bytes(reply)));
    });
    const auto client = AttachClient::connect(options, vmm, text);
    REQUIRE_FALSE(client.has_value());
    CHECK(client.error().code == Errc::kProtocol);
  }
  SECTION("something else listens there") {
    const ScriptedDaemon daemon(path, [](int socket) {
      static_cast<void>(send_datagram(socket, std::as_bytes(std::span("220 mail.example ESMTP"))));
    });
    const auto client = AttachClient::connect(options, vmm, text);
    REQUIRE_FALSE(client.has_value());
    CHECK(client.error().code == Errc::kProtocol);
  }
  SECTION("closed at once") {
    const ScriptedDaemon daemon(path, [](int socket) { ::shutdown(socket, SHUT_RDWR); });
    const auto client = AttachClient::connect(options, vmm, text);
    REQUIRE_FALSE(client.has_value());
    CHECK(client.error().code == Errc::kClosed);
  }
}

TEST_CASE("a daemon that breaks the protocol is left", "[partition][attach]") {
  struct Case {
    const char* rule;
    void (*script)(int socket);
  };
  static constexpr Case kCases[] = {
      {"shorter than a header",
       [](int socket) {
         const std::array<std::byte, 15> bytes{};
         static_cast<void>(send_datagram(socket, bytes));
       }},
      {"unknown type",
       [](int socket) {
         static_cast<void>(send_datagram(socket, wire_bytes(make<AttachReset>(AttachType{99}))));
       }},
      {"a VMM's message",
       [](int socket) {
         static_cast<void>(send_datagram(socket, wire_bytes(make<AttachReset>(AttachType::kReset))));
       }},
      {"size in the header too large",
       [](int socket) {
         auto message = make<AttachDoorbell>(AttachType::kDoorbellDetach);
         ++message.header.size;
         static_cast<void>(send_datagram(socket, wire_bytes(message)));
       }},
      {"answer to nothing",
       [](int socket) {
         static_cast<void>(send_datagram(socket, wire_bytes(make<AttachReply>(AttachType::kReply, 77))));
       }},
      {"doorbell without its eventfd",
       [](int socket) {
         static_cast<void>(
             send_datagram(socket, wire_bytes(make<AttachDoorbell>(AttachType::kDoorbellAttach))));
       }},
      {"detach with an eventfd",
       [](int socket) {
         const int fd = socket;  // any will do
         static_cast<void>(send_datagram(
             socket, wire_bytes(make<AttachDoorbell>(AttachType::kDoorbellDetach)), std::span(&fd, 1)));
       }},
      {"message longer than its payload",
       [](int socket) {
         auto message = make<AttachHostMessage>(AttachType::kHostMessage, 1);
         message.payload_size = 241;
         static_cast<void>(send_datagram(socket, wire_bytes(message)));
       }},
      {"more messages than agreed",
       [](int socket) {
         for (std::uint64_t cookie = 1; cookie <= kMaxHostMessages + 1; ++cookie) {
           static_cast<void>(
               send_datagram(socket, wire_bytes(make<AttachHostMessage>(AttachType::kHostMessage, cookie))));
         }
       }},
      {"SignalEvent without its feature",
       [](int socket) {
         static_cast<void>(
             send_datagram(socket, wire_bytes(make<AttachSignalEvent>(AttachType::kSignalEvent))));
       }},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      const TemporaryFolder folder;
      const std::string path = folder.path("attach.sock");
      FakeVmm vmm;
      const ScriptedDaemon daemon(path, [&](int socket) {
        static_cast<void>(send_datagram(socket, wire_bytes(accept_hello(socket))));
        c.script(socket);
      });
      const std::unique_ptr<AttachClient> client = connect(path, vmm);
      CHECK(vmm.wait_for_disconnect() == Errc::kProtocol);
      CHECK(client->reset().error().code == Errc::kClosed);
      CHECK(vmm.disconnects() == 1);
    }
  }
}

TEST_CASE("a daemon that dies leaves no request waiting", "[partition][attach]") {
  const TemporaryFolder folder;
  const std::string path = folder.path("attach.sock");
  FakeVmm vmm;
  const ScriptedDaemon daemon(path, [](int socket) {
    static_cast<void>(send_datagram(socket, wire_bytes(accept_hello(socket))));
    static_cast<void>(receive_datagram(socket, true));  // takes the request and dies
    ::shutdown(socket, SHUT_RDWR);
  });
  const std::unique_ptr<AttachClient> client = connect(path, vmm);
  CHECK(client->reset().error().code == Errc::kClosed);
  CHECK(vmm.wait_for_disconnect() == Errc::kClosed);
  CHECK(client->post_guest_message(0, 1, 1, {}).error().code == Errc::kClosed);
}

TEST_CASE("a daemon that does not read makes the guest wait, not the VMM", "[partition][attach]") {
  const TemporaryFolder folder;
  const std::string path = folder.path("attach.sock");
  FakeVmm vmm;
  std::promise<void> full;
  const ScriptedDaemon daemon(path, [&](int socket) {
    static_cast<void>(send_datagram(socket, wire_bytes(accept_hello(socket))));
    full.get_future().wait();
  });
  const std::unique_ptr<AttachClient> client = connect(path, vmm);
  Result<void> posted;
  for (int i = 0; i < 1'000'000 && posted; ++i) posted = client->post_guest_message(0, 1, 1, {});
  full.set_value();
  REQUIRE_FALSE(posted.has_value());
  CHECK(posted.error().code == Errc::kLimit);
}
