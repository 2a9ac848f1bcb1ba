#include "partition/attach_server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <string>
#include <utility>

#include "base/assert.h"
#include "partition/attach_status.h"

namespace vmbusd::partition {

namespace {

constexpr std::uint16_t kTakeUpMinor = 1;  // brought kFeatureTakeUp

constexpr std::uint32_t kConnectionIdMask = 0xffffff;  // [TLFS: HV_CONNECTION_ID]

// What a request is answered.
struct Outcome {
  AttachStatus status = AttachStatus::kOk;
  std::int32_t os_error = 0;
  std::string text;
};

Outcome refuse(AttachStatus status, std::string text) {
  return {status, 0, std::move(text)};
}

// Before each datagram that save() writes; a size of 0 ends them.
struct SavedDatagram {
  FdKey fd;  // beside it, 0: none
  std::uint64_t size;
};
static_assert(WireStruct<SavedDatagram>);
// Behind them.
struct SavedCounts {
  std::uint64_t guest_messages;
};
static_assert(WireStruct<SavedCounts>);

// One row for each message that a VMM may send.
struct RequestRule {
  AttachType type;
  const char* name;
  std::size_t size;
  std::size_t fds;
  bool answered;
};
constexpr RequestRule kRequestRules[] = {
    {AttachType::kHello, "Hello", sizeof(AttachHello), 0, true},
    {AttachType::kMemoryAdd, "MemoryAdd", sizeof(AttachMemory), 1, true},
    {AttachType::kMemoryRemove, "MemoryRemove", sizeof(AttachMemory), 0, true},
    {AttachType::kVpInterrupt, "VpInterrupt", sizeof(AttachVpInterrupt), 1, true},
    {AttachType::kSynicState, "SynicState", sizeof(AttachSynicState), 0, true},
    {AttachType::kGuestMessage, "GuestMessage", sizeof(AttachGuestMessage), 0, false},
    {AttachType::kReset, "Reset", sizeof(AttachReset), 0, true},
    {AttachType::kDoorbellKept, "DoorbellKept", sizeof(AttachDoorbell), 1, true},
    {AttachType::kTakeUp, "TakeUp", sizeof(AttachTakeUp), 1, true},
    {AttachType::kReply, "Reply", sizeof(AttachReply), 0, false},
};

const RequestRule* rule_of(AttachType type) {
  const auto* found = std::find_if(std::begin(kRequestRules), std::end(kRequestRules),
                                   [type](const RequestRule& rule) { return rule.type == type; });
  return found == std::end(kRequestRules) ? nullptr : found;
}

template <typename Message>
Message make_message(AttachType type, std::uint64_t cookie) {
  Message message{};
  message.header = {type, sizeof message, cookie};
  return message;
}

// The caller compared the size with the rule's.
template <typename Message>
Message read_message(std::span<const std::byte> bytes) {
  Message message{};
  VMBUSD_ASSERT(read_wire(bytes, message));
  return message;
}

// Whether `fd` is an eventfd, as far as need be. /proc/self/fd would tell for sure, but a sandboxed worker
// has no /proc: an eventfd is an anonymous inode (no file type) that refuses to read fewer than 8 bytes. What
// else does so, such as a timerfd, cannot be written: it raises no interrupt and does no harm. [linux:
// fs/eventfd.c, eventfd_read]
bool is_eventfd(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0 || (status.st_mode & S_IFMT) != 0) return false;
  std::uint32_t too_short = 0;
  return ::read(fd, &too_short, sizeof too_short) < 0 && errno == EINVAL;
}

// What makes of the VMM's descriptor an eventfd for the worker, or refuses it.
// io_uring reads and writes an eventfd in the submitter's context only where it does not block, and one that
// blocks would stop the worker. [linux: io_uring/rw.c, loop_rw_iter]
Outcome take_eventfd(int fd) {
  if (!is_eventfd(fd)) return refuse(AttachStatus::kInvalid, "the descriptor is not an eventfd");
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags >= 0 && ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0) return {};
  return {AttachStatus::kFailed, errno, "cannot make the eventfd non-blocking"};
}

}  // namespace

struct AttachServer::Impl {
  Impl(AttachServerEvents& server_events, std::span<const std::uint32_t> connections, LogScope& log_scope)
      : events(server_events), log(log_scope) {
    VMBUSD_ASSERT(connections.size() <= message_connections.size());
    std::copy(connections.begin(), connections.end(), message_connections.begin());
  }

  Result<void> receive(std::span<const std::byte> bytes, std::vector<UniqueFd> fds);
  Result<void> broken(const AttachHeader& header, bool answered, const std::string& text,
                      AttachStatus status = AttachStatus::kMalformed);
  void hello(const AttachHello& message);
  Result<void> request(const AttachHeader& header, std::span<const std::byte> bytes,
                       std::vector<UniqueFd> fds);
  void memory_add(const AttachMemory& message, UniqueFd fd);
  void memory_remove(const AttachMemory& message);
  void vp_interrupt(const AttachVpInterrupt& message, UniqueFd fd);
  void synic_state(const AttachSynicState& message);
  void reset(const AttachReset& message);
  void doorbell_kept(const AttachDoorbell& message, const UniqueFd& fd);
  void take_up(const AttachTakeUp& message, UniqueFd area);
  void tell_recovery_area(std::uint32_t flags);
  [[nodiscard]] bool can_be_taken_up() const { return (features & kFeatureTakeUp) != 0; }
  // Whether the VMM may still give back what another daemon left.
  [[nodiscard]] bool may_give_back() const;
  Result<void> guest_message(const AttachGuestMessage& message);
  Result<void> vmm_replied(const AttachReply& message);

  Outcome map_region(const AttachMemory& message, UniqueFd fd);
  Outcome unmap_region(const AttachMemory& message);
  Outcome set_event_page(const AttachSynicState& message);

  // Has `change` run by events.change_partition and answers the request with its outcome.
  void change(std::uint64_t cookie, bool drain, std::function<Outcome()> change);
  // Answers a request that request() counted.
  void finish(std::uint64_t cookie, const Outcome& outcome);
  void answer(std::uint64_t cookie, const Outcome& outcome);
  void doorbell(AttachType type, std::uint32_t connection_id, std::span<const int> fds, Done done);
  void send_host_messages();
  template <typename Message>
  void send(const Message& message, std::span<const int> fds = {}) {
    if (restoring) {
      // What the VMM was told before it is told no more; a refusal is none that it knows.
      if constexpr (requires { message.status; }) refused_in_restore |= message.status != AttachStatus::kOk;
      return;
    }
    if (!closed) events.send(wire_bytes(message), fds);
  }

  AttachServerEvents& events;
  LogScope& log;
  std::array<std::uint32_t, 4> message_connections{};
  std::optional<Partition> partition;
  bool closed = false;
  bool restoring = false;
  bool refused_in_restore = false;
  AttachHello accepted_hello{};
  std::uint64_t features = 0;        // in force
  std::uint64_t guest_messages = 0;  // so far
  bool take_up_asked = false;
  std::array<AttachSynicState, kMaxVps> synic_states{};  // the latest that gave the VP an event flags page

  std::uint64_t next_cookie = 1;
  std::unordered_map<std::uint64_t, Done> doorbells;   // with the VMM, by cookie; at most kMaxPending
  std::vector<std::uint64_t> host_messages_sent;       // with the VMM; at most kMaxHostMessages
  std::deque<AttachHostMessage> host_messages_queued;  // at most kMaxQueuedMessages

  std::uint32_t requests_open = 0;  // of the VMM, not answered yet; at most kMaxVmmRequests
  bool resetting = false;
  // Closures that outlive us find it gone: the connection can end while a change waits for its drain.
  std::shared_ptr<Impl*> self = std::make_shared<Impl*>(this);
};

Result<void> AttachServer::Impl::receive(std::span<const std::byte> bytes, std::vector<UniqueFd> fds) {
  if (closed) return fail(Errc::kClosed, "the connection is over");
  AttachHeader header{};
  if (!read_wire(bytes, header)) return fail(Errc::kProtocol, "a datagram shorter than its header");
  const RequestRule* const rule = rule_of(header.type);
  if (rule == nullptr) {
    return broken(header, true,
                  fmt::format("no message from a VMM has type {}", static_cast<std::uint32_t>(header.type)));
  }
  if (header.size != bytes.size() || bytes.size() != rule->size) {
    return broken(header, rule->answered,
                  fmt::format("{} has {} bytes; got {}, and {} in its header", rule->name, rule->size,
                              bytes.size(), header.size));
  }
  if (fds.size() != rule->fds) {
    return broken(
        header, rule->answered,
        fmt::format("{} carries {} descriptors; {} came with it", rule->name, rule->fds, fds.size()));
  }
  if (header.type == AttachType::kHello) {
    hello(read_message<AttachHello>(bytes));
    return {};
  }
  if (!partition) {
    if (!rule->answered) return fail(Errc::kProtocol, "a message before Hello");
    answer(header.cookie, refuse(AttachStatus::kState, fmt::format("{} before Hello", rule->name)));
    return {};
  }
  return request(header, bytes, std::move(fds));
}

Result<void> AttachServer::Impl::broken(const AttachHeader& header, bool answered, const std::string& text,
                                        AttachStatus status) {
  if (answered) {
    answer(header.cookie, refuse(status, text));
  } else {
    log.guest("the VMM broke the attach protocol: {}", text);
  }
  return fail(Errc::kProtocol, "the VMM broke the attach protocol");
}

void AttachServer::Impl::hello(const AttachHello& message) {
  auto reply = make_message<AttachHelloReply>(AttachType::kHelloReply, message.header.cookie);
  reply.major = kAttachMajor;
  reply.minor = kAttachMinor;
  const auto refuse_hello = [&](AttachStatus status, const std::string& text) {
    reply.status = status;
    reply.text = to_text_field(text);
    log.guest("Hello refused: {}", text);
    send(reply);
  };
  if (partition) return refuse_hello(AttachStatus::kState, "a second Hello on this connection");
  if (message.magic != kAttachMagic) {
    return refuse_hello(AttachStatus::kInvalid,
                        fmt::format("the magic number is {:#x}, not {:#x}", message.magic, kAttachMagic));
  }
  if (message.major != kAttachMajor) {
    return refuse_hello(AttachStatus::kVersion,
                        fmt::format("the VMM speaks version {}.{} of the attach protocol, vmbusd {}.{}",
                                    message.major, message.minor, kAttachMajor, kAttachMinor));
  }
  if (message.vp_count == 0) return refuse_hello(AttachStatus::kInvalid, "a partition without VPs");
  if (message.vp_count > kMaxVps) {
    return refuse_hello(AttachStatus::kLimit,
                        fmt::format("{} VPs; vmbusd serves at most {}", message.vp_count, kMaxVps));
  }
  reply.minor = std::min(message.minor, kAttachMinor);
  // Events are raised through the event flags page alone, so that is not asked of the VMM.
  const bool lasts = message.minor >= kTakeUpMinor && events.area_for_vmm() >= 0;
  reply.features = features = message.features & (lasts ? kFeatureTakeUp : 0);
  reply.message_connections = message_connections;
  partition.emplace(message.vp_count);
  accepted_hello = message;
  send(reply);
  events.attached(*partition);
  if (can_be_taken_up()) tell_recovery_area(0);
}

Result<void> AttachServer::Impl::request(const AttachHeader& header, std::span<const std::byte> bytes,
                                         std::vector<UniqueFd> fds) {
  switch (header.type) {
    case AttachType::kGuestMessage:
      return guest_message(read_message<AttachGuestMessage>(bytes));
    case AttachType::kReply:
      return vmm_replied(read_message<AttachReply>(bytes));
    default:
      break;
  }
  if (requests_open >= kMaxVmmRequests) {
    return broken(header, true, fmt::format("more than {} requests at once", kMaxVmmRequests),
                  AttachStatus::kLimit);
  }
  ++requests_open;
  if (std::any_of(fds.begin(), fds.end(), [](const UniqueFd& fd) { return !fd; })) {
    finish(header.cookie, {AttachStatus::kFailed, EMFILE,
                           "vmbusd's worker process has no descriptor left; raise RLIMIT_NOFILE"});
    return {};
  }
  switch (header.type) {
    case AttachType::kMemoryAdd:
      memory_add(read_message<AttachMemory>(bytes), std::move(fds[0]));
      break;
    case AttachType::kMemoryRemove:
      memory_remove(read_message<AttachMemory>(bytes));
      break;
    case AttachType::kVpInterrupt:
      vp_interrupt(read_message<AttachVpInterrupt>(bytes), std::move(fds[0]));
      break;
    case AttachType::kSynicState:
      synic_state(read_message<AttachSynicState>(bytes));
      break;
    case AttachType::kReset:
      reset(read_message<AttachReset>(bytes));
      break;
    case AttachType::kDoorbellKept:
      doorbell_kept(read_message<AttachDoorbell>(bytes), fds[0]);
      break;
    case AttachType::kTakeUp:
      take_up(read_message<AttachTakeUp>(bytes), std::move(fds[0]));
      break;
    default:
      VMBUSD_ASSERT(false);  // kRequestRules has no other
  }
  return {};
}

void AttachServer::Impl::memory_add(const AttachMemory& message, UniqueFd fd) {
  const std::uint64_t cookie = message.header.cookie;
  if (!GuestMemory::valid_range(message.gpa, message.size)) {
    return finish(cookie, refuse(AttachStatus::kInvalid,
                                 fmt::format("region {:#x}+{:#x} is empty, not page aligned, or above 2^52",
                                             message.gpa, message.size)));
  }
  if (message.offset % kPageSize != 0) {
    return finish(cookie, refuse(AttachStatus::kInvalid,
                                 fmt::format("offset {:#x} is not page aligned", message.offset)));
  }
  if ((message.flags & ~kMemoryWritable) != 0) {
    return finish(cookie, refuse(AttachStatus::kInvalid, fmt::format("unknown flags {:#x}", message.flags)));
  }
  // std::function wants a copyable closure.
  const auto shared_fd = std::make_shared<UniqueFd>(std::move(fd));
  change(cookie, false, [this, message, shared_fd] { return map_region(message, std::move(*shared_fd)); });
}

Outcome AttachServer::Impl::map_region(const AttachMemory& message, UniqueFd fd) {
  GuestMemory& memory = partition->memory();
  if (const GuestMemory::Region* other = memory.overlapped(message.gpa, message.size)) {
    return refuse(AttachStatus::kOverlap, fmt::format("region {:#x}+{:#x} overlaps {:#x}+{:#x}", message.gpa,
                                                      message.size, other->gpa, other->size));
  }
  const bool writable = (message.flags & kMemoryWritable) != 0;
  const Result<void> added = memory.add(message.gpa, message.size, std::move(fd), message.offset, writable);
  if (added) {
    events.keep_fd(memory_fd_key(message.gpa), memory.find(message.gpa / kPageSize)->fd.get());
    return {};
  }
  const Error& error = added.error();
  switch (error.code) {
    case Errc::kUnsupported:
      return refuse(AttachStatus::kNotShareable, error.text);
    case Errc::kMemory:
      return refuse(AttachStatus::kInvalid, error.text);
    case Errc::kLimit:
      return refuse(AttachStatus::kLimit, fmt::format("more than {} regions", kMaxRegions));
    default:
      return {AttachStatus::kFailed, error.os_error, describe(error)};
  }
}

void AttachServer::Impl::memory_remove(const AttachMemory& message) {
  // Nothing in flight is to be disturbed for a region that is not there.
  const auto regions = partition->memory().regions();
  const bool there = std::any_of(regions.begin(), regions.end(), [&](const GuestMemory::Region& region) {
    return region.gpa == message.gpa && region.size == message.size;
  });
  if (!there) return finish(message.header.cookie, unmap_region(message));
  change(message.header.cookie, true, [this, message] { return unmap_region(message); });
}

Outcome AttachServer::Impl::unmap_region(const AttachMemory& message) {
  GuestMemory& memory = partition->memory();
  const GuestMemory::Region* const region = memory.overlapped(message.gpa, message.size);
  if (!GuestMemory::valid_range(message.gpa, message.size) || region == nullptr ||
      region->gpa != message.gpa || region->size != message.size) {
    return refuse(AttachStatus::kNotFound,
                  fmt::format("no region was added as {:#x}+{:#x}", message.gpa, message.size));
  }
  if (events.region_lent(message.gpa, message.size)) {
    return refuse(AttachStatus::kState, "the guest has lent memory of the region to open channels");
  }
  const std::less_equal<const std::byte*> not_above;
  for (std::uint32_t index = 0; index < partition->vp_count(); ++index) {
    std::uint32_t*& flags = partition->vp(index).event_flags;
    const auto* const place = reinterpret_cast<const std::byte*>(flags);
    if (flags != nullptr && not_above(region->host, place) &&
        not_above(place + 1, region->host + region->size)) {
      flags = nullptr;
    }
  }
  VMBUSD_ASSERT(memory.remove(message.gpa, message.size).has_value());
  events.drop_fd(memory_fd_key(message.gpa));
  return {};
}

void AttachServer::Impl::vp_interrupt(const AttachVpInterrupt& message, UniqueFd fd) {
  const std::uint64_t cookie = message.header.cookie;
  if (message.vp >= partition->vp_count()) {
    return finish(cookie, refuse(AttachStatus::kNotFound,
                                 fmt::format("VP {} of {}", message.vp, partition->vp_count())));
  }
  if (message.sint != kVmbusSint) {
    return finish(cookie, refuse(AttachStatus::kInvalid,
                                 fmt::format("SINT {}; VMBus uses SINT {}", message.sint, kVmbusSint)));
  }
  if (const Outcome taken = take_eventfd(fd.get()); taken.status != AttachStatus::kOk) {
    return finish(cookie, taken);
  }
  const auto shared_fd = std::make_shared<UniqueFd>(std::move(fd));
  change(cookie, false, [this, vp = message.vp, shared_fd] {
    partition->vp(vp).interrupt = std::move(*shared_fd);
    events.keep_fd(interrupt_fd_key(vp), partition->vp(vp).interrupt.get());
    return Outcome{};
  });
}

void AttachServer::Impl::synic_state(const AttachSynicState& message) {
  const std::uint64_t cookie = message.header.cookie;
  if (message.vp >= partition->vp_count()) {
    return finish(cookie, refuse(AttachStatus::kNotFound,
                                 fmt::format("VP {} of {}", message.vp, partition->vp_count())));
  }
  if ((message.flags & ~(kSynicEnabled | kSynicMessagePage | kSynicEventPage)) != 0) {
    return finish(cookie, refuse(AttachStatus::kInvalid, fmt::format("unknown flags {:#x}", message.flags)));
  }
  change(cookie, false, [this, message] { return set_event_page(message); });
}

// The message page is the VMM's business: HostMessage names a VP.
Outcome AttachServer::Impl::set_event_page(const AttachSynicState& message) {
  // Whatever comes: the page that was is no longer the VP's.
  std::uint32_t*& flags = partition->vp(message.vp).event_flags;
  flags = nullptr;
  constexpr std::uint32_t kActive = kSynicEnabled | kSynicEventPage;
  if ((message.flags & kActive) != kActive) return {};
  if (message.event_page_gpa % kPageSize != 0) {
    return refuse(AttachStatus::kInvalid,
                  fmt::format("event flags page {:#x} is not page aligned", message.event_page_gpa));
  }
  std::byte* const page = partition->memory().translate_writable(message.event_page_gpa, kPageSize);
  if (page == nullptr) {
    return refuse(AttachStatus::kInvalid,
                  fmt::format("event flags page {:#x} is not in writable memory", message.event_page_gpa));
  }
  constexpr std::size_t kSintFlagsBytes = kEventFlagsPerSint / 8;
  flags = reinterpret_cast<std::uint32_t*>(page + kVmbusSint * kSintFlagsBytes);
  synic_states[message.vp] = message;
  return {};
}

void AttachServer::Impl::reset(const AttachReset& message) {
  const std::uint64_t cookie = message.header.cookie;
  if (resetting) return finish(cookie, refuse(AttachStatus::kState, "a reset is under way"));
  resetting = true;
  host_messages_queued.clear();
  events.reset([weak = std::weak_ptr<Impl*>(self), cookie] {
    const auto alive = weak.lock();
    if (!alive) return;
    Impl& impl = **alive;
    impl.change(cookie, false, [&impl] {
      for (std::uint32_t vp = 0; vp < impl.partition->vp_count(); ++vp) {
        impl.partition->vp(vp).event_flags = nullptr;
      }
      impl.host_messages_queued.clear();
      impl.resetting = false;
      return Outcome{};
    });
  });
}

bool AttachServer::Impl::may_give_back() const {
  return can_be_taken_up() && guest_messages == 0 && !resetting && !take_up_asked;
}

void AttachServer::Impl::doorbell_kept(const AttachDoorbell& message, const UniqueFd& fd) {
  const std::uint64_t cookie = message.header.cookie;
  if (!may_give_back()) return finish(cookie, refuse(AttachStatus::kState, "DoorbellKept at the wrong time"));
  if (const Outcome taken = take_eventfd(fd.get()); taken.status != AttachStatus::kOk) {
    return finish(cookie, taken);
  }
  if (!events.doorbell_kept(message.connection_id, fd.get())) {
    return finish(cookie,
                  refuse(AttachStatus::kNotFound,
                         fmt::format("no channel of vmbusd's has connection {:#x}", message.connection_id)));
  }
  finish(cookie, {});
}

void AttachServer::Impl::take_up(const AttachTakeUp& message, UniqueFd area) {
  if (!may_give_back()) {
    return finish(message.header.cookie, refuse(AttachStatus::kState, "TakeUp at the wrong time"));
  }
  if (const Result<void> begins = events.take_up(std::move(area)); !begins) {
    return finish(message.header.cookie, refuse(AttachStatus::kInvalid, begins.error().text));
  }
  take_up_asked = true;
  finish(message.header.cookie, {});
}

void AttachServer::Impl::tell_recovery_area(std::uint32_t flags) {
  auto message = make_message<AttachRecoveryArea>(AttachType::kRecoveryArea, 0);
  message.guest_messages = guest_messages;
  message.flags = flags;
  const int area = events.area_for_vmm();
  send(message, std::span(&area, 1));
}

Result<void> AttachServer::Impl::guest_message(const AttachGuestMessage& message) {
  const char* lie = nullptr;
  if (message.vp >= partition->vp_count()) lie = "GuestMessage from a VP that is not there";
  if (message.payload_size > message.payload.size()) lie = "GuestMessage with more than 240 bytes";
  const auto& ids = message_connections;
  if (message.connection_id == 0 || std::find(ids.begin(), ids.end(), message.connection_id) == ids.end()) {
    lie = "GuestMessage on a connection that is not served";
  }
  if (lie != nullptr) {
    log.guest("the VMM broke the attach protocol: {}", lie);
    return fail(Errc::kProtocol, lie);
  }
  ++guest_messages;
  // Of the guest that is being reset: the one that comes starts anew.
  if (resetting) return {};
  events.guest_message(message.vp, message.connection_id, message.message_type,
                       std::as_bytes(std::span(message.payload)).first(message.payload_size));
  return {};
}

Result<void> AttachServer::Impl::vmm_replied(const AttachReply& message) {
  const std::uint64_t cookie = message.header.cookie;
  const auto sent = std::find(host_messages_sent.begin(), host_messages_sent.end(), cookie);
  if (sent != host_messages_sent.end()) {
    host_messages_sent.erase(sent);
    if (message.status != AttachStatus::kOk) {
      log.guest("the VMM did not deliver a message to the guest: {}", from_text_field(message.text));
    }
    send_host_messages();
    return {};
  }
  const auto found = doorbells.find(cookie);
  if (found == doorbells.end()) {
    log.guest("the VMM broke the attach protocol: it answered what was not asked");
    return fail(Errc::kProtocol, "the VMM answered what was not asked");
  }
  const Done done = std::move(found->second);
  doorbells.erase(found);
  if (message.status == AttachStatus::kOk) {
    done({});
  } else {
    log.guest("the VMM refused a doorbell: {}", from_text_field(message.text));
    done(tl::unexpected(error_of(message.status, message.os_error)));
  }
  return {};
}

void AttachServer::Impl::change(std::uint64_t cookie, bool drain, std::function<Outcome()> change) {
  const auto outcome = std::make_shared<Outcome>();
  const std::weak_ptr<Impl*> weak = self;
  events.change_partition(
      drain,
      [weak, outcome, change = std::move(change)] {
        if (weak.lock()) *outcome = change();
      },
      [weak, outcome, cookie] {
        if (const auto alive = weak.lock()) (*alive)->finish(cookie, *outcome);
      });
}

void AttachServer::Impl::finish(std::uint64_t cookie, const Outcome& outcome) {
  VMBUSD_ASSERT(requests_open > 0);
  --requests_open;
  answer(cookie, outcome);
}

void AttachServer::Impl::answer(std::uint64_t cookie, const Outcome& outcome) {
  auto message = make_message<AttachReply>(AttachType::kReply, cookie);
  message.status = outcome.status;
  message.os_error = outcome.os_error;
  message.text = to_text_field(outcome.text);
  if (outcome.status != AttachStatus::kOk) log.guest("refused to the VMM: {}", outcome.text);
  send(message);
}

void AttachServer::Impl::doorbell(AttachType type, std::uint32_t connection_id, std::span<const int> fds,
                                  Done done) {
  if ((connection_id & ~kConnectionIdMask) != 0) {
    return done(fail(Errc::kBadMessage, "a connection id has 24 bits"));
  }
  if (!partition) return done(fail(Errc::kWrongState, "no VMM is attached"));
  if (closed) return done(fail(Errc::kClosed, "the VMM closed the connection"));
  if (doorbells.size() >= kMaxPending) return done(fail(Errc::kLimit, "too many doorbells wait for the VMM"));
  const std::uint64_t cookie = next_cookie++;
  doorbells.emplace(cookie, std::move(done));
  auto message = make_message<AttachDoorbell>(type, cookie);
  message.connection_id = connection_id;
  send(message, fds);
}

void AttachServer::Impl::send_host_messages() {
  while (!host_messages_queued.empty() && host_messages_sent.size() < kMaxHostMessages) {
    AttachHostMessage message = host_messages_queued.front();
    host_messages_queued.pop_front();
    message.header.cookie = next_cookie++;
    host_messages_sent.push_back(message.header.cookie);
    send(message);
  }
}

AttachServer::AttachServer(AttachServerEvents& events, std::span<const std::uint32_t> message_connections,
                           LogScope& log)
    : impl_(std::make_unique<Impl>(events, message_connections, log)) {}

AttachServer::~AttachServer() = default;

Result<void> AttachServer::receive(std::span<const std::byte> bytes, std::vector<UniqueFd> fds) {
  return impl_->receive(bytes, std::move(fds));
}

bool AttachServer::settled() const {
  return impl_->requests_open == 0 && !impl_->resetting && impl_->doorbells.empty() &&
         impl_->host_messages_sent.empty() && impl_->host_messages_queued.empty();
}

void AttachServer::save(SerialWriter& out) const {
  VMBUSD_ASSERT(settled() && impl_->partition);
  const auto put = [&out](const auto& message, FdKey key) {
    out.put(SavedDatagram{key, sizeof message});
    out.put(message);
  };
  put(impl_->accepted_hello, 0);
  Partition& partition = *impl_->partition;
  for (const GuestMemory::Region& region : partition.memory().regions()) {
    auto message = make_message<AttachMemory>(AttachType::kMemoryAdd, 0);
    message.gpa = region.gpa;
    message.size = region.size;
    message.offset = region.offset;
    message.flags = region.writable ? kMemoryWritable : 0;
    put(message, memory_fd_key(region.gpa));
  }
  for (std::uint32_t index = 0; index < partition.vp_count(); ++index) {
    const Partition::Vp& vp = partition.vp(index);
    if (vp.interrupt) {
      auto message = make_message<AttachVpInterrupt>(AttachType::kVpInterrupt, 0);
      message.vp = index;
      message.sint = kVmbusSint;
      put(message, interrupt_fd_key(index));
    }
    if (vp.event_flags != nullptr) put(impl_->synic_states[index], 0);
  }
  out.put(SavedDatagram{0, 0});
  out.put(SavedCounts{impl_->guest_messages});
}

Result<void> AttachServer::restore(SerialReader& in, const std::function<UniqueFd(FdKey)>& take_fd) {
  impl_->restoring = true;
  for (;;) {
    VMBUSD_TRY(const SavedDatagram saved, in.get<SavedDatagram>());
    if (saved.size == 0) break;
    VMBUSD_TRY(const std::span<const std::byte> bytes, in.get_bytes(saved.size));
    AttachHeader header{};
    const bool whole = read_wire(bytes, header);
    if (!whole || (header.type != AttachType::kHello && header.type != AttachType::kMemoryAdd &&
                   header.type != AttachType::kVpInterrupt && header.type != AttachType::kSynicState)) {
      return fail(Errc::kProtocol, "a message of the VMM's that is no part of a partition's state");
    }
    std::vector<UniqueFd> fds;
    if (saved.fd != 0) {
      fds.push_back(take_fd(saved.fd));
      if (!fds.back()) return fail(Errc::kProtocol, "a descriptor of the VMM's was not kept");
    }
    VMBUSD_CHECK(impl_->receive(bytes, std::move(fds)));
    if (impl_->refused_in_restore)
      return fail(Errc::kProtocol, "a request of the VMM's would be refused now");
  }
  VMBUSD_TRY(const SavedCounts counts, in.get<SavedCounts>());
  impl_->guest_messages = counts.guest_messages;
  if (!impl_->partition || !settled())
    return fail(Errc::kProtocol, "no partition, or one that is not at rest");
  impl_->restoring = false;
  return {};
}

bool AttachServer::can_be_taken_up() const {
  return impl_->can_be_taken_up();
}

void AttachServer::taken_up() {
  if (impl_->can_be_taken_up()) impl_->tell_recovery_area(kRecoveryTakenUp);
}

void AttachServer::disconnected() {
  impl_->closed = true;
  impl_->host_messages_queued.clear();
  impl_->host_messages_sent.clear();
  // Each is free to ask anew, and is refused at once.
  const auto doorbells = std::exchange(impl_->doorbells, {});
  for (const auto& [cookie, done] : doorbells) done(fail(Errc::kClosed, "the VMM closed the connection"));
}

Partition* AttachServer::partition() {
  return impl_->partition ? &*impl_->partition : nullptr;
}

void AttachServer::doorbell_attach(std::uint32_t connection_id, int eventfd, Done done) {
  impl_->doorbell(AttachType::kDoorbellAttach, connection_id, std::span(&eventfd, 1), std::move(done));
}

void AttachServer::doorbell_detach(std::uint32_t connection_id, Done done) {
  impl_->doorbell(AttachType::kDoorbellDetach, connection_id, {}, std::move(done));
}

Result<void> AttachServer::host_message(std::uint32_t vp, std::uint32_t message_type,
                                        std::span<const std::byte> payload) {
  VMBUSD_ASSERT(payload.size() <= kMaxMessagePayload);
  if (!impl_->partition) return fail(Errc::kWrongState, "no VMM is attached");
  if (impl_->closed) return fail(Errc::kClosed, "the VMM closed the connection");
  if (vp >= impl_->partition->vp_count()) return fail(Errc::kBadMessage, "no such VP");
  if (impl_->resetting) return {};  // the guest that it was for is gone
  if (impl_->host_messages_queued.size() >= kMaxQueuedMessages) {
    return fail(Errc::kLimit, "the guest does not take its messages");
  }
  auto message = make_message<AttachHostMessage>(AttachType::kHostMessage, 0);
  message.vp = vp;
  message.sint = kVmbusSint;
  message.message_type = message_type;
  message.payload_size = static_cast<std::uint32_t>(payload.size());
  std::copy(payload.begin(), payload.end(), std::as_writable_bytes(std::span(message.payload)).begin());
  impl_->host_messages_queued.push_back(message);
  impl_->send_host_messages();
  return {};
}

void AttachServer::drop_host_messages() {
  impl_->host_messages_queued.clear();
}

}  // namespace vmbusd::partition
