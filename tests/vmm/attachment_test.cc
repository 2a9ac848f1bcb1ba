// The VMM's attach half against a daemon that is played by the test, datagram by datagram.
#include "vmm/attachment.h"

#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <future>
#include <string>

#include "partition/seqpacket.h"
#include "tests/catch.h"
#include "tests/vmm/fake_machine.h"
#include "vmm/memory_map.h"

namespace vmbusd::vmm {

namespace {

using partition::AttachType;
using namespace std::chrono_literals;

constexpr std::uint32_t kVcpus = 2;
constexpr auto kPatience = 20s;  // how long a thread may take where the machine is busy

class Daemon {
 public:
  Daemon() {
    folder_ = (std::filesystem::temp_directory_path() / "vmm-attach-XXXXXX").string();
    REQUIRE(::mkdtemp(folder_.data()) != nullptr);
    listener_ = partition::listen_seqpacket(path()).value();
  }
  ~Daemon() { std::filesystem::remove_all(folder_); }
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  [[nodiscard]] std::string path() const { return folder_ + "/socket"; }

  void accept() { socket_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)); }
  void close() { socket_.reset(); }
  void leave() {
    listener_.reset();
    socket_.reset();
  }
  void come_back() { listener_ = partition::listen_seqpacket(path()).value(); }

  template <WireStruct T>
  void send(const T& message, std::span<const int> fds = {}) {
    REQUIRE(partition::send_datagram(socket_.get(), wire_bytes(message), fds));
  }
  // The next datagram, which must be a T of type `type`.
  template <WireStruct T>
  T expect(AttachType type) {
    const auto datagram = partition::receive_datagram(socket_.get(), true);
    REQUIRE(datagram);
    REQUIRE(datagram->has_value());
    T message{};
    REQUIRE((*datagram)->size == sizeof message);
    REQUIRE(read_wire((*datagram)->bytes(), message));
    REQUIRE(message.header.type == type);
    return message;
  }
  void reply(std::uint64_t cookie) {
    send(partition::AttachReply{.header = {AttachType::kReply, sizeof(partition::AttachReply), cookie},
                                .status = {},
                                .os_error = 0,
                                .text = {}});
  }
  // Takes a request and answers that all is well.
  template <WireStruct T>
  T serve(AttachType type) {
    const T message = expect<T>(type);
    reply(message.header.cookie);
    return message;
  }
  void serve_hello() {
    features_ = expect<partition::AttachHello>(AttachType::kHello).features & partition::kFeatureTakeUp;
    partition::AttachHelloReply hello{};
    hello.header = {AttachType::kHelloReply, sizeof hello, 0};
    hello.major = partition::kAttachMajor;
    hello.minor = partition::kAttachMinor;
    hello.features = features_;
    hello.message_connections = {1, 4, 0, 0};
    send(hello);
    if (features_ != 0) tell_recovery_area(0, 0);
  }
  // A memfd stands for it: what is given back is its inode.
  void tell_recovery_area(std::uint32_t flags, std::uint64_t guest_messages) {
    area_.reset(::memfd_create("area", MFD_CLOEXEC));
    const int fd = area_.get();
    send(
        partition::AttachRecoveryArea{
            {AttachType::kRecoveryArea, sizeof(partition::AttachRecoveryArea), 0}, guest_messages, flags, 0},
        std::span(&fd, 1));
  }
  [[nodiscard]] ino_t area() const { return inode_of(area_.get()); }
  [[nodiscard]] static ino_t inode_of(int fd) {
    struct stat status {};
    REQUIRE(::fstat(fd, &status) == 0);
    return status.st_ino;
  }
  // Takes a request with a descriptor, which it returns, and answers that all is well.
  template <WireStruct T>
  UniqueFd serve_fd(AttachType type, T& message) {
    auto datagram = partition::receive_datagram(socket_.get(), true);
    REQUIRE(datagram);
    REQUIRE((*datagram)->fds.size() == 1);
    REQUIRE(read_wire((*datagram)->bytes(), message));
    REQUIRE(message.header.type == type);
    reply(message.header.cookie);
    return std::move((*datagram)->fds[0]);
  }
  void post(std::uint64_t cookie, std::uint32_t vp, std::uint8_t mark) {
    partition::AttachHostMessage message{};
    message.header = {AttachType::kHostMessage, sizeof message, cookie};
    message.vp = vp;
    message.sint = kVmbusSint;
    message.message_type = 1;
    message.payload_size = 1;
    message.payload[0] = mark;
    send(message);
  }
  [[nodiscard]] std::uint64_t expect_done() {
    return expect<partition::AttachReply>(AttachType::kReply).header.cookie;
  }

 private:
  std::string folder_;
  UniqueFd listener_;
  UniqueFd socket_;
  UniqueFd area_;
  std::uint64_t features_ = 0;
};

// A guest of two VPs, connected and bound to a machine.
struct Guest {
  LogScope log{"test"};
  GuestRam ram = GuestRam::create(4 * kGiB, false).value();
  FakeMachine machine{kVcpus};
  Daemon daemon;
  Attachment attachment;

  explicit Guest(std::chrono::seconds reconnect_time = 0s) : attachment(kVcpus, log, reconnect_time) {
    std::string error_text;
    auto connected = std::async(std::launch::async,
                                [&] { return attachment.connect(daemon.path(), ram, true, error_text); });
    daemon.accept();
    daemon.serve_hello();
    const auto low = daemon.serve<partition::AttachMemory>(AttachType::kMemoryAdd);
    const auto high = daemon.serve<partition::AttachMemory>(AttachType::kMemoryAdd);
    REQUIRE(connected.get());
    CHECK(low.gpa == 0);
    CHECK(low.size == 3 * kGiB);
    CHECK(high.gpa == 4 * kGiB);
    CHECK(high.offset == 3 * kGiB);
    REQUIRE(attachment.bind(machine));
  }
  void unbind() {
    auto unbound = std::async(std::launch::async, [this] { attachment.unbind(); });
    daemon.serve<partition::AttachReset>(AttachType::kReset);
    unbound.get();
  }
  void wait_for_attempts(int attempts) {
    std::unique_lock lock(machine.mutex);
    REQUIRE(machine.changed.wait_for(lock, kPatience, [&] { return machine.attempts >= attempts; }));
  }
  void free_slot() {
    const std::lock_guard lock(machine.mutex);
    machine.slot_busy = false;
  }
};

PostedMessage message_to(std::uint32_t connection_id) {
  PostedMessage message{};
  message.input.connection_id = connection_id;
  message.input.message_type = 1;
  message.input.payload_size = 2;
  message.input.payload[0] = 0xab;
  return message;
}

}  // namespace

TEST_CASE("what the guest posts reaches the daemon", "[vmm]") {
  Guest guest;
  CHECK(guest.attachment.post(1, message_to(4)) == kHvSuccess);
  const auto message = guest.daemon.expect<partition::AttachGuestMessage>(AttachType::kGuestMessage);
  CHECK(message.vp == 1);
  CHECK(message.connection_id == 4);
  CHECK(message.payload_size == 2);
  CHECK(message.payload[0] == 0xab);
  CHECK(guest.attachment.post(0, message_to(7)) == kHvInvalidConnectionId);
}

TEST_CASE("a daemon that does not read makes the guest wait, not the VMM", "[vmm]") {
  Guest guest;
  std::uint16_t status = kHvSuccess;
  // Far more than a socket holds.
  for (int i = 0; i < 100'000 && status == kHvSuccess; ++i) status = guest.attachment.post(0, message_to(1));
  CHECK(status == kHvInsufficientBuffers);
}

TEST_CASE("messages to a busy slot wait in order", "[vmm]") {
  Guest guest;
  guest.machine.one_at_a_time = true;
  guest.daemon.post(101, 0, 'a');
  guest.daemon.post(102, 0, 'b');
  guest.daemon.post(103, 0, 'c');
  CHECK(guest.daemon.expect_done() == 101);
  guest.wait_for_attempts(3);
  guest.free_slot();
  static_cast<MachineEvents&>(guest.attachment).message_slot_free(0, kVmbusSint);
  CHECK(guest.daemon.expect_done() == 102);
  guest.free_slot();
  static_cast<MachineEvents&>(guest.attachment).message_slot_free(0, kVmbusSint);
  CHECK(guest.daemon.expect_done() == 103);
  const std::lock_guard lock(guest.machine.mutex);
  REQUIRE(guest.machine.posted.size() == 3);
  CHECK(guest.machine.posted[1].payload == std::vector<std::uint8_t>{'b'});
  CHECK(guest.machine.posted[2].payload == std::vector<std::uint8_t>{'c'});
}

TEST_CASE("a message to a VP that is not there is dropped and answered", "[vmm]") {
  Guest guest;
  guest.daemon.post(7, kVcpus, 'x');
  CHECK(guest.daemon.expect_done() == 7);
  const std::lock_guard lock(guest.machine.mutex);
  CHECK(guest.machine.posted.empty());
}

TEST_CASE("a message page that appears takes what waits", "[vmm]") {
  Guest guest;
  {
    const std::lock_guard lock(guest.machine.mutex);
    guest.machine.slot_busy = true;
  }
  guest.daemon.post(5, 1, 'm');
  guest.wait_for_attempts(1);
  guest.free_slot();
  const SynicState state{.enabled = true, .has_message_page = true, .message_page_gpa = 0x5000};
  auto changed =
      std::async(std::launch::async, [&] { guest.attachment.synic_change(1, guest.machine.vcpu(1), state); });
  const auto told = guest.daemon.serve<partition::AttachSynicState>(AttachType::kSynicState);
  changed.get();
  CHECK(told.vp == 1);
  CHECK(told.flags == (partition::kSynicEnabled | partition::kSynicMessagePage));
  CHECK(told.message_page_gpa == 0x5000);
  CHECK(guest.daemon.expect_done() == 5);
}

TEST_CASE("the daemon lets go of an event page before it moves", "[vmm]") {
  Guest guest;
  const auto change = [&](std::uint64_t gpa) {
    const SynicState state{.enabled = true, .has_event_page = true, .event_page_gpa = gpa};
    return std::async(std::launch::async,
                      [&guest, state] { guest.attachment.synic_change(0, guest.machine.vcpu(0), state); });
  };
  auto& vcpu = static_cast<FakeVcpu&>(guest.machine.vcpu(0));
  auto first = change(0x6000);
  guest.daemon.serve<partition::AttachSynicState>(AttachType::kSynicState);
  first.get();
  CHECK(vcpu.synic_changes == 1);

  auto second = change(0x7000);
  const auto without = guest.daemon.expect<partition::AttachSynicState>(AttachType::kSynicState);
  CHECK(without.flags == partition::kSynicEnabled);
  CHECK(vcpu.synic_changes == 1);  // not before the daemon answers
  guest.daemon.reply(without.header.cookie);
  const auto moved = guest.daemon.serve<partition::AttachSynicState>(AttachType::kSynicState);
  second.get();
  CHECK(vcpu.synic_changes == 2);
  CHECK(moved.event_page_gpa == 0x7000);

  auto same = change(0x7000);
  same.get();  // nothing to tell
  CHECK(vcpu.synic_changes == 3);
}

TEST_CASE("doorbells come and go as the daemon asks", "[vmm]") {
  Guest guest;
  const UniqueFd eventfd(::eventfd(0, EFD_CLOEXEC));
  const int fd = eventfd.get();
  partition::AttachDoorbell doorbell{{AttachType::kDoorbellAttach, sizeof doorbell, 11}, 0x2001, 0};
  guest.daemon.send(doorbell, std::span(&fd, 1));
  CHECK(guest.daemon.expect<partition::AttachReply>(AttachType::kReply).status ==
        partition::AttachStatus::kOk);
  doorbell.header.cookie = 12;
  guest.daemon.send(doorbell, std::span(&fd, 1));
  CHECK(guest.daemon.expect<partition::AttachReply>(AttachType::kReply).status !=
        partition::AttachStatus::kOk);
  doorbell.header = {AttachType::kDoorbellDetach, sizeof doorbell, 13};
  guest.daemon.send(doorbell);
  CHECK(guest.daemon.expect<partition::AttachReply>(AttachType::kReply).status ==
        partition::AttachStatus::kOk);
  const std::lock_guard lock(guest.machine.mutex);
  CHECK(guest.machine.doorbells.empty());
}

TEST_CASE("a reset answers what waits and then asks the daemon to start over", "[vmm]") {
  Guest guest;
  {
    const std::lock_guard lock(guest.machine.mutex);
    guest.machine.slot_busy = true;
  }
  guest.daemon.post(21, 0, 'x');
  guest.wait_for_attempts(1);
  auto unbound = std::async(std::launch::async, [&] { guest.attachment.unbind(); });
  CHECK(guest.daemon.expect_done() == 21);
  const auto reset = guest.daemon.expect<partition::AttachReset>(AttachType::kReset);
  // What the daemon asks while it resets meets no machine, and succeeds.
  guest.daemon.send(
      partition::AttachDoorbell{{AttachType::kDoorbellDetach, sizeof(partition::AttachDoorbell), 22}, 5, 0});
  CHECK(guest.daemon.expect<partition::AttachReply>(AttachType::kReply).status ==
        partition::AttachStatus::kOk);
  guest.daemon.post(23, 0, 'y');
  CHECK(guest.daemon.expect_done() == 23);
  guest.daemon.reply(reset.header.cookie);
  unbound.get();

  // The guest's next life.
  REQUIRE(guest.attachment.bind(guest.machine));
  guest.free_slot();
  guest.daemon.post(24, 0, 'z');
  CHECK(guest.daemon.expect_done() == 24);
}

TEST_CASE("the guest outlives the daemon", "[vmm]") {
  Guest guest;
  const UniqueFd eventfd(::eventfd(0, EFD_CLOEXEC));
  const int fd = eventfd.get();
  const partition::AttachDoorbell doorbell{{AttachType::kDoorbellAttach, sizeof doorbell, 11}, 0x2001, 0};
  guest.daemon.send(doorbell, std::span(&fd, 1));
  CHECK(guest.daemon.expect_done() == 11);
  CHECK_FALSE(guest.attachment.lost());
  guest.daemon.close();
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!guest.attachment.lost() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(1ms);
  REQUIRE(guest.attachment.lost());
  CHECK(guest.attachment.post(0, message_to(1)) == kHvInvalidConnectionId);
  const SynicState state{.enabled = true, .has_message_page = true, .message_page_gpa = 0x5000};
  guest.attachment.synic_change(0, guest.machine.vcpu(0), state);
  guest.attachment.unbind();
  const std::lock_guard lock(guest.machine.mutex);
  CHECK(guest.machine.doorbells.empty());
}

TEST_CASE("a daemon that comes back is given what it needs, and what the last one had not read", "[vmm]") {
  Guest guest(60s);
  const UniqueFd eventfd(::eventfd(0, EFD_CLOEXEC));
  const int fd = eventfd.get();
  const partition::AttachDoorbell doorbell{{AttachType::kDoorbellAttach, sizeof doorbell, 11}, 0x2001, 0};
  guest.daemon.send(doorbell, std::span(&fd, 1));
  CHECK(guest.daemon.expect_done() == 11);
  for (const std::uint32_t connection : {1, 4, 1}) {
    REQUIRE(guest.attachment.post(0, message_to(connection)) == kHvSuccess);
  }
  const ino_t kept = guest.daemon.area();
  guest.daemon.close();
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!guest.attachment.lost() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(1ms);
  CHECK(guest.attachment.post(0, message_to(1)) == kHvInsufficientBuffers);
  // A VP that changes its SynIC waits.
  const SynicState state{.enabled = true, .has_message_page = true, .message_page_gpa = 0x5000};
  auto changed =
      std::async(std::launch::async, [&] { guest.attachment.synic_change(1, guest.machine.vcpu(1), state); });

  guest.daemon.accept();
  guest.daemon.serve_hello();
  guest.daemon.serve<partition::AttachMemory>(AttachType::kMemoryAdd);
  guest.daemon.serve<partition::AttachMemory>(AttachType::kMemoryAdd);
  partition::AttachDoorbell given{};
  (void)guest.daemon.serve_fd(AttachType::kDoorbellKept, given);
  CHECK(given.connection_id == 0x2001);
  partition::AttachTakeUp take_up{};
  CHECK(Daemon::inode_of(guest.daemon.serve_fd(AttachType::kTakeUp, take_up).get()) == kept);
  guest.daemon.tell_recovery_area(partition::kRecoveryTakenUp, 1);
  // The second and the third, before anything else.
  const auto second = guest.daemon.expect<partition::AttachGuestMessage>(AttachType::kGuestMessage);
  CHECK(second.connection_id == 4);
  const auto third = guest.daemon.expect<partition::AttachGuestMessage>(AttachType::kGuestMessage);
  CHECK(third.connection_id == 1);
  guest.daemon.serve<partition::AttachSynicState>(AttachType::kSynicState);
  changed.get();
  CHECK_FALSE(guest.attachment.lost());
  CHECK(guest.attachment.post(0, message_to(4)) == kHvSuccess);
  const std::lock_guard lock(guest.machine.mutex);
  CHECK(guest.machine.doorbells.contains(0x2001));
}

TEST_CASE("a guest that is reset while no daemon is there is attached anew", "[vmm]") {
  Guest guest(60s);
  auto unbound = std::async(std::launch::async, [&] { guest.attachment.unbind(); });
  guest.daemon.expect<partition::AttachReset>(AttachType::kReset);
  guest.daemon.close();
  guest.daemon.accept();
  guest.daemon.serve_hello();
  guest.daemon.serve<partition::AttachMemory>(AttachType::kMemoryAdd);
  guest.daemon.serve<partition::AttachMemory>(AttachType::kMemoryAdd);
  unbound.get();
  REQUIRE(guest.attachment.bind(guest.machine));
  CHECK(guest.attachment.post(0, message_to(1)) == kHvSuccess);
  guest.daemon.expect<partition::AttachGuestMessage>(AttachType::kGuestMessage);
}

TEST_CASE("a daemon that does not come back, or not with the guest, is waited for in vain", "[vmm]") {
  Guest guest(1s);
  const UniqueFd eventfd(::eventfd(0, EFD_CLOEXEC));
  const int fd = eventfd.get();
  const partition::AttachDoorbell doorbell{{AttachType::kDoorbellAttach, sizeof doorbell, 11}, 0x2001, 0};
  guest.daemon.send(doorbell, std::span(&fd, 1));
  CHECK(guest.daemon.expect_done() == 11);
  guest.daemon.leave();
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (guest.attachment.post(0, message_to(1)) == kHvInsufficientBuffers &&
         std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(1ms);
  CHECK(guest.attachment.post(0, message_to(1)) == kHvInvalidConnectionId);
  CHECK(guest.attachment.lost());
  {
    const std::lock_guard lock(guest.machine.mutex);
    CHECK(guest.machine.doorbells.empty());
  }
  // The guest that comes next has it again.
  guest.daemon.come_back();
  auto unbound = std::async(std::launch::async, [&] { guest.attachment.unbind(); });
  guest.daemon.accept();
  guest.daemon.serve_hello();
  guest.daemon.serve<partition::AttachMemory>(AttachType::kMemoryAdd);
  guest.daemon.serve<partition::AttachMemory>(AttachType::kMemoryAdd);
  unbound.get();
  CHECK_FALSE(guest.attachment.lost());
  REQUIRE(guest.attachment.bind(guest.machine));
  CHECK(guest.attachment.post(0, message_to(1)) == kHvSuccess);
}

TEST_CASE("a VMM that leaves waits for no daemon", "[vmm]") {
  Guest guest(3600s);
  guest.daemon.close();
  guest.attachment.close();
  guest.attachment.unbind();
}

TEST_CASE("a socket where nobody listens is named", "[vmm]") {
  LogScope log("test");
  const GuestRam ram = GuestRam::create(kMemorySizeMin, false).value();
  Attachment attachment(1, log);
  std::string error_text;
  CHECK_FALSE(attachment.connect("/nonexistent/socket", ram, true, error_text));
  CHECK(error_text.find("--attach /nonexistent/socket: ") == 0);
  CHECK(error_text.find("No such file") != std::string::npos);
}

TEST_CASE("without a daemon the guest's messages have no connection", "[vmm]") {
  LogScope log("test");
  FakeMachine machine(1);
  Attachment attachment(1, log);
  REQUIRE(attachment.bind(machine));
  CHECK(attachment.post(0, message_to(1)) == kHvInvalidConnectionId);
  const SynicState state{.enabled = true};
  attachment.synic_change(0, machine.vcpu(0), state);
  CHECK(static_cast<FakeVcpu&>(machine.vcpu(0)).synic_changes == 1);
  attachment.unbind();
}

}  // namespace vmbusd::vmm
