// Fuzz target of the daemon's half of the attach protocol: the input is a list of actions of a VMM that lies
// and of a daemon that finishes its changes when it likes. Around the server stands a model of what each may
// see; a server that breaks a promise aborts.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/log.h"
#include "fuzz/fuzz_target.h"
#include "partition/attach_server.h"

namespace vmbusd::partition {
namespace {

using fuzz::promise;

constexpr std::array<std::uint32_t, 2> kConnections = {1, 4};
constexpr std::uint64_t kMemfdPages = 8;

struct Input : fuzz::Input {
  using fuzz::Input::Input;
  // Mostly small, now and then one of those that wrap.
  std::uint64_t pages(std::uint32_t count) {
    constexpr std::array<std::uint64_t, 4> kExtremes = {~0ull, 1ull << 40, ~0ull / kPageSize, 1ull << 63};
    const std::uint32_t value = below(count + 8);
    if (value < count) return value * kPageSize;
    return value < count + 4 ? kExtremes[value - count] * kPageSize : kExtremes[value - count - 4];
  }
};

template <typename Message>
Message make(AttachType type, std::uint64_t cookie) {
  Message message{};
  message.header = {type, sizeof message, cookie};
  return message;
}

class World final : public AttachServerEvents {
 public:
  void run(Input input);

  // AttachServerEvents: what the daemon and the VMM see.
  void send(std::span<const std::byte> bytes, std::span<const int> fds) override;
  void attached(Partition& partition) override;
  void change_partition(bool drain, std::function<void()> change, std::function<void()> done) override;
  bool region_lent(std::uint64_t, std::uint64_t) const override { return lent_; }
  void guest_message(std::uint32_t vp, std::uint32_t connection_id, std::uint32_t message_type,
                     std::span<const std::byte> payload) override;
  void reset(std::function<void()> done) override;
  int area_for_vmm() const override { return memfd_.get(); }
  bool doorbell_kept(std::uint32_t connection_id, int eventfd) override;
  Result<void> take_up(UniqueFd area) override;

 private:
  struct Change {
    std::function<void()> change;
    std::function<void()> done;
  };

  void act(Input& input);
  void vmm_acts(Input& input);
  void daemon_acts(Input& input);
  void vmm_replies(Input& input);
  template <typename Message>
  void vmm_sends(Input& input, Message message, bool answered);
  void finish_changes();
  void finish_reset();
  void deliver_messages();
  void close();
  void check_partition();
  UniqueFd some_fd(Input& input) const;
  template <typename Message>
  Message sent_as(std::span<const std::byte> bytes) {
    promise(bytes.size() == sizeof(Message), "a datagram has its type's size");
    Message message{};
    promise(read_wire(bytes, message), "a datagram can be read");
    return message;
  }

  UniqueFd memfd_{::memfd_create("fuzz", MFD_CLOEXEC)};
  UniqueFd eventfd_{::eventfd(0, EFD_CLOEXEC)};
  LogScope log_{"fuzz"};
  AttachServer server_{*this, kConnections, log_};

  std::uint32_t vps_ = 0;  // 0 before Hello
  bool closed_ = false;
  bool resetting_ = false;
  bool hold_ = false;    // changes
  bool lent_ = false;    // all of the guest's memory
  bool keeps_ = false;   // the VMM, what it may give back to another daemon
  bool spoken_ = false;  // the guest
  bool take_up_asked_ = false;
  std::deque<Change> changes_;  // held
  std::function<void()> reset_done_;

  std::uint64_t next_cookie_ = 1;
  std::set<std::uint64_t> owed_;      // answers, by the VMM's cookies
  std::set<std::uint64_t> asked_;     // by the daemon, doorbells
  std::set<std::uint64_t> messages_;  // by the daemon, HostMessages
  std::size_t doorbells_waiting_ = 0;
  std::uint32_t next_sequence_ = 0;   // of the host's messages, in their payload
  std::uint32_t least_sequence_ = 0;  // of the next that may be sent
  std::uint32_t messages_end_ = 0;    // all before are sent in the end, but for those that were dropped
};

void World::run(Input input) {
  promise(::ftruncate(memfd_.get(), kMemfdPages * kPageSize) == 0, "the target's own memfd");
  while (!input.empty() && !closed_) {
    act(input);
    check_partition();
  }
  // With time, everything is answered.
  finish_reset();
  finish_changes();
  promise(closed_ || owed_.empty(), "each request is answered");
  deliver_messages();
  close();
  promise(doorbells_waiting_ == 0, "each doorbell request is done with");
}

void World::act(Input& input) {
  if (input.below(3) == 0) {
    daemon_acts(input);
  } else {
    vmm_acts(input);
  }
}

void World::vmm_acts(Input& input) {
  // Those that came later have values of their own, so that older inputs mean what they meant.
  constexpr std::uint32_t kLater = 252;
  const std::uint32_t act = input.byte();
  switch (act < kLater ? act % 9 : act) {
    case kLater:
    case kLater + 1: {
      auto message = make<AttachDoorbell>(AttachType::kDoorbellKept, 0);
      message.connection_id = 0x2000 | input.byte();
      return vmm_sends(input, message, true);
    }
    case kLater + 2:
    case kLater + 3:
      return vmm_sends(input, make<AttachTakeUp>(AttachType::kTakeUp, 0), true);
    case 0: {
      auto message = make<AttachHello>(AttachType::kHello, 0);
      message.magic = kAttachMagic ^ (input.below(8) == 7 ? 1 : 0);
      message.major = static_cast<std::uint16_t>(input.below(8) == 7 ? 2 : kAttachMajor);
      message.minor = input.byte();
      message.vp_count = input.below(kMaxVps + 3);
      message.features = input.byte();
      return vmm_sends(input, message, true);
    }
    case 1:
    case 2: {
      auto message = make<AttachMemory>(AttachType::kMemoryAdd, 0);
      message.gpa = input.pages(12);
      message.size = input.pages(5);
      message.offset = input.below(4) == 0 ? input.pages(8) : 0;
      message.flags = input.below(8) == 7 ? input.byte() : kMemoryWritable;
      return vmm_sends(input, message, true);
    }
    case 3: {
      auto message = make<AttachMemory>(AttachType::kMemoryRemove, 0);
      message.gpa = input.pages(12);
      message.size = input.pages(5);
      return vmm_sends(input, message, true);
    }
    case 4: {
      auto message = make<AttachVpInterrupt>(AttachType::kVpInterrupt, 0);
      message.vp = input.below(vps_ + 2);
      message.sint = input.below(8) == 7 ? input.byte() : kVmbusSint;
      return vmm_sends(input, message, true);
    }
    case 5: {
      auto message = make<AttachSynicState>(AttachType::kSynicState, 0);
      message.vp = input.below(vps_ + 2);
      message.flags = input.below(8) == 7 ? input.byte() : input.below(8);
      message.event_page_gpa = input.pages(12);
      return vmm_sends(input, message, true);
    }
    case 6: {
      auto message = make<AttachGuestMessage>(AttachType::kGuestMessage, 0);
      message.vp = input.below(vps_ + 1);
      message.connection_id = kConnections[input.below(2)] ^ (input.below(16) == 15 ? 2 : 0);
      message.payload_size = input.below(16) == 15 ? 241 : input.below(241);
      return vmm_sends(input, message, false);
    }
    case 7:
      return vmm_sends(input, make<AttachReset>(AttachType::kReset, 0), true);
    default:
      return vmm_replies(input);
  }
}

void World::vmm_replies(Input& input) {
  const std::uint32_t kind = input.below(16);
  std::set<std::uint64_t>& from = kind % 2 == 0 ? asked_ : messages_;
  auto message = make<AttachReply>(AttachType::kReply, ~std::uint64_t{0});
  const bool known = kind != 15 && !from.empty();
  if (known) {
    message.header.cookie = *std::next(from.begin(), input.below(static_cast<std::uint32_t>(from.size())));
    from.erase(message.header.cookie);
  }
  message.status = static_cast<AttachStatus>(input.below(12));
  message.text.fill(static_cast<char>(input.byte()));
  const bool attached = vps_ != 0;
  if (server_.receive(wire_bytes(message), {})) {
    promise(known && attached, "only what was asked is answered");
  } else {
    promise(!known || !attached, "a good answer is taken");
    close();
  }
}

template <typename Message>
void World::vmm_sends(Input& input, Message message, bool answered) {
  const std::uint64_t cookie = next_cookie_++;
  message.header.cookie = cookie;
  std::vector<std::byte> bytes(sizeof message);
  std::memcpy(bytes.data(), &message, sizeof message);
  std::vector<UniqueFd> fds;
  const AttachType type = message.header.type;
  if (type == AttachType::kMemoryAdd || type == AttachType::kVpInterrupt ||
      type == AttachType::kDoorbellKept || type == AttachType::kTakeUp) {
    fds.push_back(some_fd(input));
  }
  // Now and then something is wrong with it as a whole.
  bool broken = true;
  switch (input.below(32)) {
    case 31:
      bytes.resize(input.byte());
      broken = bytes.size() != sizeof message;
      break;
    case 30:
      bytes[4] ^= std::byte{1};  // the size in the header
      break;
    case 29:
      fds.push_back(some_fd(input));
      break;
    case 28:
      bytes[0] ^= std::byte{0x30};  // to a type that nobody sends, so it may want an answer
      answered = true;
      break;
    default:
      broken = false;
  }
  const bool owed = answered && bytes.size() >= sizeof(AttachHeader);
  if (owed) owed_.insert(cookie);
  const bool was_attached = vps_ != 0;
  const Result<void> received = server_.receive(bytes, std::move(fds));
  if (received) {
    promise(!broken, "what is malformed ends the connection");
    promise(was_attached || answered, "nothing without an answer is taken before Hello");
    return;
  }
  promise(received.error().code == Errc::kProtocol, "the VMM is told to have broken the protocol");
  // Of a well-formed message only one too many ends the connection, or one without an answer.
  promise(broken || !answered || owed_.size() >= kMaxVmmRequests, "a refusal is no end");
  close();
}

void World::daemon_acts(Input& input) {
  if (vps_ == 0) return;
  switch (input.below(8)) {
    case 0: {
      const std::uint32_t moods = input.below(4);
      hold_ = (moods & 1) != 0;
      lent_ = (moods & 2) != 0;
      return;
    }
    case 1:
      return finish_changes();
    case 2:
      return finish_reset();
    case 3:
    case 4: {
      ++doorbells_waiting_;
      const auto done = [this, called = false](const Result<void>&) mutable {
        promise(!std::exchange(called, true), "a doorbell request is done once");
        --doorbells_waiting_;
      };
      const std::uint32_t id = input.below(16) == 15 ? 1 << 24 : 0x2000 | input.byte();
      if (input.below(2) == 0) {
        server_.doorbell_attach(id, eventfd_.get(), done);
      } else {
        server_.doorbell_detach(id, done);
      }
      return;
    }
    case 5: {
      const std::uint32_t sequence = next_sequence_++;
      const std::uint32_t vp = input.below(vps_ + 1);
      const Result<void> queued = server_.host_message(vp, 1, wire_bytes(sequence));
      promise(queued.has_value() == (vp < vps_), "a message for a VP is taken");
      if (queued && !resetting_) messages_end_ = next_sequence_;
      return;
    }
    case 6:
      messages_end_ = 0;
      return server_.drop_host_messages();
    default:
      // An I/O worker signals.
      const std::uint32_t vp = input.below(vps_);
      static_cast<void>(server_.partition()->set_event_flag(vp, input.byte() * 8u % kEventFlagsPerSint));
      return;
  }
}

void World::send(std::span<const std::byte> bytes, std::span<const int> fds) {
  promise(!closed_, "nothing is sent on a connection that is over");
  AttachHeader header{};
  promise(read_wire(bytes, header) && header.size == bytes.size(), "a datagram has its header's size");
  const bool carries = header.type == AttachType::kDoorbellAttach || header.type == AttachType::kRecoveryArea;
  promise(fds.size() == (carries ? 1 : 0), "an eventfd with an attachment, a file with what is to be kept");
  switch (header.type) {
    case AttachType::kHelloReply:
    case AttachType::kReply: {
      promise(owed_.erase(header.cookie) == 1, "each request is answered once");
      const bool hello = header.type == AttachType::kHelloReply;
      const auto text = hello ? sent_as<AttachHelloReply>(bytes).text : sent_as<AttachReply>(bytes).text;
      const AttachStatus status =
          hello ? sent_as<AttachHelloReply>(bytes).status : sent_as<AttachReply>(bytes).status;
      promise(text.back() == '\0', "words end with a NUL");
      promise((text[0] == '\0') == (status == AttachStatus::kOk), "a refusal has words");
      if (hello && status == AttachStatus::kOk) {
        const auto reply = sent_as<AttachHelloReply>(bytes);
        keeps_ = reply.features == kFeatureTakeUp;
        promise(reply.features == 0 || (keeps_ && reply.minor >= 1), "only what is served is in force");
      }
      return;
    }
    case AttachType::kRecoveryArea: {
      const auto message = sent_as<AttachRecoveryArea>(bytes);
      promise(keeps_ && !spoken_, "what is to be kept comes once, after Hello, to who wants it");
      promise(message.guest_messages == 0 && message.flags == 0, "nothing was taken up here");
      return;
    }
    case AttachType::kDoorbellAttach:
    case AttachType::kDoorbellDetach:
      promise(vps_ != 0, "nothing is asked before Hello");
      promise(asked_.insert(header.cookie).second && !messages_.contains(header.cookie), "cookies differ");
      promise(sent_as<AttachDoorbell>(bytes).connection_id < 1 << 24, "connection ids have 24 bits");
      return;
    case AttachType::kHostMessage: {
      const auto message = sent_as<AttachHostMessage>(bytes);
      promise(!resetting_, "a guest that is reset gets no message");
      promise(messages_.insert(header.cookie).second && !asked_.contains(header.cookie), "cookies differ");
      promise(messages_.size() <= kMaxHostMessages, "the VMM holds a bounded number of messages");
      promise(message.vp < vps_ && message.sint == kVmbusSint, "a message is for a VP");
      std::uint32_t sequence = 0;
      promise(message.payload_size == sizeof sequence, "a message is whole");
      std::memcpy(&sequence, message.payload.data(), sizeof sequence);
      promise(sequence >= least_sequence_, "messages keep their order");
      least_sequence_ = sequence + 1;
      return;
    }
    default:
      promise(false, "the daemon sends its own types only");
  }
}

void World::attached(Partition& partition) {
  promise(vps_ == 0, "a partition is attached once");
  vps_ = partition.vp_count();
  promise(vps_ >= 1 && vps_ <= kMaxVps && &partition == server_.partition(), "a partition has VPs");
}

void World::change_partition(bool, std::function<void()> change, std::function<void()> done) {
  changes_.push_back({std::move(change), std::move(done)});
  promise(changes_.size() <= kMaxVmmRequests, "changes that wait are bounded");
  if (!hold_) finish_changes();
}

void World::guest_message(std::uint32_t vp, std::uint32_t connection_id, std::uint32_t,
                          std::span<const std::byte> payload) {
  promise(vp < vps_ && payload.size() <= kMaxMessagePayload, "a guest message is in bounds");
  promise(connection_id == 1 || connection_id == 4, "a guest message is on a connection that is served");
  promise(!resetting_, "a guest that is reset says nothing");
  spoken_ = true;
}

bool World::doorbell_kept(std::uint32_t connection_id, int eventfd) {
  promise(keeps_ && !spoken_ && !take_up_asked_, "doorbells come back before the guest speaks");
  promise(::fcntl(eventfd, F_GETFL) >= 0 && (::fcntl(eventfd, F_GETFL) & O_NONBLOCK) != 0,
          "a doorbell does not block");
  return connection_id != 0x2000;
}

Result<void> World::take_up(UniqueFd area) {
  promise(keeps_ && !spoken_ && !take_up_asked_, "a guest is taken up once, before it speaks");
  promise(static_cast<bool>(area), "there is something to take it up from");
  if (::fcntl(area.get(), F_GET_SEALS) < 0) return fail(Errc::kProtocol, "it is no file in memory");
  take_up_asked_ = true;
  return {};
}

void World::reset(std::function<void()> done) {
  promise(!resetting_, "one reset at a time");
  resetting_ = true;
  messages_end_ = 0;
  reset_done_ = std::move(done);
}

void World::finish_changes() {
  while (!changes_.empty()) {
    const Change next = std::move(changes_.front());
    changes_.pop_front();
    const std::size_t regions = server_.partition()->memory().regions().size();
    next.change();
    promise(!lent_ || server_.partition()->memory().regions().size() >= regions, "lent memory stays");
    next.done();
  }
}

void World::finish_reset() {
  if (!reset_done_) return;
  // In the order in which the daemon would do it: what waits was asked before.
  finish_changes();
  const bool held = std::exchange(hold_, false);
  std::exchange(reset_done_, nullptr)();
  hold_ = held;
  resetting_ = false;
}

// The guest takes all messages that it can get.
void World::deliver_messages() {
  if (closed_) return;
  while (!messages_.empty()) {
    const std::uint64_t cookie = *messages_.begin();
    messages_.erase(messages_.begin());
    const auto reply = make<AttachReply>(AttachType::kReply, cookie);
    promise(server_.receive(wire_bytes(reply), {}).has_value(), "a good answer is taken");
  }
  promise(least_sequence_ >= messages_end_, "each message that was not dropped is sent");
}

void World::close() {
  if (closed_) return;
  server_.disconnected();
  closed_ = true;
}

// What the data path relies on.
void World::check_partition() {
  Partition* const partition = server_.partition();
  promise((partition != nullptr) == (vps_ != 0), "a partition is there from Hello on");
  if (partition == nullptr) return;
  const GuestMemory& memory = partition->memory();
  promise(memory.regions().size() <= kMaxRegions, "regions are bounded");
  std::uint64_t end = 0;
  for (const GuestMemory::Region& region : memory.regions()) {
    promise(GuestMemory::valid_range(region.gpa, region.size), "a region is a valid range");
    promise(region.gpa >= end, "regions are sorted and do not overlap");
    end = region.gpa + region.size;
    // Mapped from end to end: a read of what is not would be SIGSEGV or SIGBUS.
    static_cast<void>(*static_cast<volatile std::byte*>(region.host));
    static_cast<void>(*static_cast<volatile std::byte*>(region.host + region.size - 1));
  }
  for (std::uint32_t vp = 0; vp < vps_; ++vp) {
    const std::uint32_t* const flags = partition->vp(vp).event_flags;
    if (flags == nullptr) continue;
    const auto* const place = reinterpret_cast<const std::byte*>(flags);
    const auto regions = memory.regions();
    promise(std::any_of(regions.begin(), regions.end(),
                        [&](const GuestMemory::Region& region) {
                          return region.writable && place >= region.host &&
                                 place + kEventFlagsPerSint / 8 <= region.host + region.size;
                        }),
            "event flags lie in writable memory");
  }
}

UniqueFd World::some_fd(Input& input) const {
  const std::uint32_t kind = input.below(16);
  return UniqueFd(::dup(kind == 15 ? STDIN_FILENO : kind % 2 == 0 ? memfd_.get() : eventfd_.get()));
}

}  // namespace
}  // namespace vmbusd::partition

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmbusd;
  static const bool quiet = [] {
    log_init(LogLevel::kError);
    return true;
  }();
  static_cast<void>(quiet);
  // The lowest free descriptor is the same afterwards, or one leaked.
  const UniqueFd before(::dup(STDERR_FILENO));
  const int lowest = ::dup(STDERR_FILENO);
  ::close(lowest);
  partition::World().run(partition::Input({data, size}));
  const UniqueFd after(::dup(STDERR_FILENO));
  partition::promise(after.get() == lowest, "no descriptor leaks");
  return 0;
}
