#include "partition/attach_client.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "base/assert.h"
#include "partition/attach_status.h"
#include "partition/seqpacket.h"

namespace vmbusd::partition {

namespace {

// A daemon that lives answers Hello at once; one that serves another VMM on this socket may never.
constexpr int kHelloTimeoutMs = 10'000;

// Sizes are exact: a later minor version adds types, it does not lengthen messages.
template <typename Message>
bool read_exact(const Datagram& datagram, std::size_t fds, Message& out) {
  return datagram.size == sizeof out && datagram.fds.size() == fds && read_wire(datagram.bytes(), out);
}

template <typename Message>
Message make_message(AttachType type, std::uint64_t cookie) {
  Message message{};
  message.header = {type, sizeof message, cookie};
  return message;
}

tl::unexpected<Error> broken(const char* text) {
  return fail(Errc::kProtocol, text);
}

}  // namespace

struct AttachClient::Impl {
  Impl(UniqueFd connection, AttachClientEvents& client_events, const AttachHelloReply& hello)
      : socket(std::move(connection)),
        events(client_events),
        message_connections(hello.message_connections),
        features(hello.features) {}

  // A request that waits for its answer; lives on the requester's stack.
  struct Pending {
    std::optional<AttachReply> reply;
  };

  template <typename Message>
  Result<void> request(Message& message, std::span<const int> fds = {});
  Result<void> wait_for_reply(std::unique_lock<std::mutex>& lock, std::uint64_t cookie, Pending& waiting);
  Result<void> reply(std::uint64_t cookie, const Result<void>& outcome);
  void receive_until_closed();
  Result<void> receive(Datagram datagram);
  Result<void> receive_reply(const Datagram& datagram);
  Result<void> receive_doorbell(const AttachHeader& header, Datagram& datagram);
  Result<void> receive_host_message(const Datagram& datagram);
  Result<void> receive_signal_event(const Datagram& datagram);
  Result<void> receive_recovery_area(Datagram& datagram);

  const UniqueFd socket;
  AttachClientEvents& events;
  const std::array<std::uint32_t, 4> message_connections;
  const std::uint64_t features;

  std::mutex mutex;  // of all below but the thread
  std::condition_variable answered;
  std::map<std::uint64_t, Pending*> pending;
  std::vector<std::uint64_t> host_messages;  // cookies not answered yet, at most kMaxHostMessages
  std::uint64_t next_cookie = 1;
  std::string error_text;
  bool closed = false;    // no answer will come any more
  bool stopping = false;  // by us

  std::thread thread;  // receives
};

template <typename Message>
Result<void> AttachClient::Impl::request(Message& message, std::span<const int> fds) {
  // The receiving thread would wait for an answer that only it can receive.
  VMBUSD_ASSERT(std::this_thread::get_id() != thread.get_id());
  Pending waiting;
  std::unique_lock lock(mutex);
  const std::uint64_t cookie = next_cookie++;
  message.header.cookie = cookie;
  pending.emplace(cookie, &waiting);
  lock.unlock();
  // Datagrams are atomic, so senders need no lock; the daemon always reads on, so this ends.
  const Result<void> sent = send_datagram(socket.get(), wire_bytes(message), fds);
  lock.lock();
  if (!sent) {
    pending.erase(cookie);
    return sent;
  }
  return wait_for_reply(lock, cookie, waiting);
}

Result<void> AttachClient::Impl::wait_for_reply(std::unique_lock<std::mutex>& lock, std::uint64_t cookie,
                                                Pending& waiting) {
  answered.wait(lock, [&] { return waiting.reply.has_value() || closed; });
  pending.erase(cookie);
  if (!waiting.reply) return fail(Errc::kClosed, "the daemon closed the connection");
  if (waiting.reply->status == AttachStatus::kOk) return {};
  error_text = from_text_field(waiting.reply->text);
  return tl::unexpected(error_of(waiting.reply->status, waiting.reply->os_error));
}

Result<void> AttachClient::Impl::reply(std::uint64_t cookie, const Result<void>& outcome) {
  auto message = make_message<AttachReply>(AttachType::kReply, cookie);
  if (!outcome) {
    message.status = AttachStatus::kFailed;
    message.os_error = outcome.error().os_error;
    message.text = to_text_field(outcome.error().text);
  }
  return send_datagram(socket.get(), wire_bytes(message));
}

void AttachClient::Impl::receive_until_closed() {
  Result<void> outcome;
  while (outcome) {
    Result<std::optional<Datagram>> datagram = receive_datagram(socket.get(), true);
    // Waiting, it comes back with a datagram or with an error.
    outcome = datagram ? receive(std::move(**datagram)) : tl::unexpected(datagram.error());
  }
  bool by_us = false;
  {
    const std::lock_guard lock(mutex);
    closed = true;
    by_us = stopping;
  }
  answered.notify_all();
  // What the VMM sends from here on is to fail rather than to fill the socket.
  ::shutdown(socket.get(), SHUT_RDWR);
  if (!by_us) events.disconnected(outcome.error());
}

Result<void> AttachClient::Impl::receive(Datagram datagram) {
  AttachHeader header{};
  if (!read_wire(datagram.bytes(), header) || header.size != datagram.size) {
    return broken("the daemon sent a datagram of the wrong size");
  }
  switch (header.type) {
    case AttachType::kReply:
      return receive_reply(datagram);
    case AttachType::kDoorbellAttach:
    case AttachType::kDoorbellDetach:
      return receive_doorbell(header, datagram);
    case AttachType::kHostMessage:
      return receive_host_message(datagram);
    case AttachType::kSignalEvent:
      return receive_signal_event(datagram);
    case AttachType::kRecoveryArea:
      return receive_recovery_area(datagram);
    default:
      return broken("the daemon sent a message of unknown type");
  }
}

Result<void> AttachClient::Impl::receive_reply(const Datagram& datagram) {
  AttachReply message{};
  if (!read_exact(datagram, 0, message)) return broken("the daemon sent a malformed Reply");
  {
    const std::lock_guard lock(mutex);
    const auto found = pending.find(message.header.cookie);
    if (found == pending.end() || found->second->reply) {
      return broken("the daemon answered what was not asked");
    }
    found->second->reply = message;
  }
  answered.notify_all();
  return {};
}

Result<void> AttachClient::Impl::receive_doorbell(const AttachHeader& header, Datagram& datagram) {
  const bool attach = header.type == AttachType::kDoorbellAttach;
  AttachDoorbell message{};
  if (!read_exact(datagram, attach ? 1 : 0, message)) return broken("the daemon sent a malformed Doorbell");
  if (!attach) return reply(header.cookie, events.doorbell_detach(message.connection_id));
  if (!datagram.fds[0]) return reply(header.cookie, fail_os(EMFILE, "no descriptor left for a doorbell"));
  const Result<void> outcome = events.doorbell_attach(message.connection_id, std::move(datagram.fds[0]));
  return reply(header.cookie, outcome);
}

Result<void> AttachClient::Impl::receive_host_message(const Datagram& datagram) {
  AttachHostMessage message{};
  if (!read_exact(datagram, 0, message) || message.payload_size > message.payload.size()) {
    return broken("the daemon sent a malformed HostMessage");
  }
  {
    const std::lock_guard lock(mutex);
    if (host_messages.size() >= kMaxHostMessages) return broken("the daemon sent too many HostMessages");
    host_messages.push_back(message.header.cookie);
  }
  events.host_message(message.header.cookie, message.vp, message.sint, message.message_type,
                      std::span(message.payload).first(message.payload_size));
  return {};
}

Result<void> AttachClient::Impl::receive_signal_event(const Datagram& datagram) {
  AttachSignalEvent message{};
  if (!read_exact(datagram, 0, message)) return broken("the daemon sent a malformed SignalEvent");
  if ((features & kFeatureSignalByMessage) == 0) {
    return broken("the daemon sent a SignalEvent without its feature");
  }
  events.signal_event(message.vp, message.sint, message.flag);
  return {};
}

Result<void> AttachClient::Impl::receive_recovery_area(Datagram& datagram) {
  AttachRecoveryArea message{};
  if (!read_exact(datagram, 1, message)) return broken("the daemon sent a malformed RecoveryArea");
  if ((features & kFeatureTakeUp) == 0) return broken("the daemon sent a RecoveryArea without its feature");
  // Without a descriptor left for it there is none.
  events.recovery_area(std::move(datagram.fds[0]), (message.flags & kRecoveryTakenUp) != 0,
                       message.guest_messages);
  return {};
}

Result<std::unique_ptr<AttachClient>> AttachClient::connect(const Options& options,
                                                            AttachClientEvents& events,
                                                            std::string& error_text) {
  error_text.clear();
  VMBUSD_TRY(UniqueFd socket, connect_seqpacket(options.socket_path));
  auto hello = make_message<AttachHello>(AttachType::kHello, 0);
  hello.magic = kAttachMagic;
  hello.major = kAttachMajor;
  hello.minor = kAttachMinor;
  hello.features = options.features;
  hello.vp_count = options.vp_count;
  VMBUSD_CHECK(send_datagram(socket.get(), wire_bytes(hello)));

  std::array<pollfd, 2> readable = {{{socket.get(), POLLIN, 0}, {options.give_up, POLLIN, 0}}};
  const int ready = ::poll(readable.data(), readable.size(), kHelloTimeoutMs);
  if (readable[1].revents != 0) return fail(Errc::kClosed, "not waited for any longer");
  if (ready == 0) return fail(Errc::kClosed, "the daemon does not answer; it may be serving another VMM");
  VMBUSD_TRY(const std::optional<Datagram> datagram, receive_datagram(socket.get(), true));
  AttachHelloReply reply{};
  if (!datagram || !read_exact(*datagram, 0, reply) || reply.header.type != AttachType::kHelloReply ||
      reply.header.size != sizeof reply) {
    return broken("what listens there does not speak the attach protocol");
  }
  if (reply.status != AttachStatus::kOk) {
    error_text = from_text_field(reply.text);
    return tl::unexpected(error_of(reply.status, 0));
  }
  if (reply.major != kAttachMajor || (reply.features & ~options.features) != 0) {
    return broken("the daemon answered Hello with what was not asked for");
  }

  auto impl = std::make_unique<Impl>(std::move(socket), events, reply);
  // As a member, not a copy in the thread's closure: the requester compares its id.
  impl->thread = std::thread([&state = *impl] { state.receive_until_closed(); });
  return std::unique_ptr<AttachClient>(new AttachClient(std::move(impl)));
}

AttachClient::AttachClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

AttachClient::~AttachClient() {
  stop();
}

void AttachClient::stop() {
  if (!impl_->thread.joinable()) return;
  VMBUSD_ASSERT(std::this_thread::get_id() != impl_->thread.get_id());
  close();
  impl_->thread.join();
}

void AttachClient::close() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  ::shutdown(impl_->socket.get(), SHUT_RDWR);
}

bool AttachClient::serves_message_connection(std::uint32_t connection_id) const {
  const auto& ids = impl_->message_connections;
  return connection_id != 0 && std::find(ids.begin(), ids.end(), connection_id) != ids.end();
}

std::uint64_t AttachClient::features() const {
  return impl_->features;
}

Result<void> AttachClient::add_memory(std::uint64_t gpa, std::uint64_t size, int fd, std::uint64_t offset,
                                      bool writable) {
  auto message = make_message<AttachMemory>(AttachType::kMemoryAdd, 0);
  message.gpa = gpa;
  message.size = size;
  message.offset = offset;
  message.flags = writable ? kMemoryWritable : 0;
  return impl_->request(message, std::span(&fd, 1));
}

Result<void> AttachClient::remove_memory(std::uint64_t gpa, std::uint64_t size) {
  auto message = make_message<AttachMemory>(AttachType::kMemoryRemove, 0);
  message.gpa = gpa;
  message.size = size;
  return impl_->request(message);
}

Result<void> AttachClient::set_vp_interrupt(std::uint32_t vp, std::uint32_t sint, int eventfd) {
  auto message = make_message<AttachVpInterrupt>(AttachType::kVpInterrupt, 0);
  message.vp = vp;
  message.sint = sint;
  return impl_->request(message, std::span(&eventfd, 1));
}

Result<void> AttachClient::set_synic_state(std::uint32_t vp, std::uint32_t flags,
                                           std::uint64_t message_page_gpa, std::uint64_t event_page_gpa) {
  auto message = make_message<AttachSynicState>(AttachType::kSynicState, 0);
  message.vp = vp;
  message.flags = flags;
  message.message_page_gpa = message_page_gpa;
  message.event_page_gpa = event_page_gpa;
  return impl_->request(message);
}

Result<void> AttachClient::reset() {
  auto message = make_message<AttachReset>(AttachType::kReset, 0);
  return impl_->request(message);
}

Result<void> AttachClient::keep_doorbell(std::uint32_t connection_id, int eventfd) {
  auto message = make_message<AttachDoorbell>(AttachType::kDoorbellKept, 0);
  message.connection_id = connection_id;
  return impl_->request(message, std::span(&eventfd, 1));
}

Result<void> AttachClient::take_up(int recovery_area) {
  auto message = make_message<AttachTakeUp>(AttachType::kTakeUp, 0);
  return impl_->request(message, std::span(&recovery_area, 1));
}

Result<void> AttachClient::post_guest_message(std::uint32_t vp, std::uint32_t connection_id,
                                              std::uint32_t message_type,
                                              std::span<const std::uint8_t> payload) {
  if (payload.size() > kMaxMessagePayload) {
    return fail(Errc::kBadMessage, "the message's payload is longer than 240 bytes");
  }
  if (!serves_message_connection(connection_id)) {
    return fail(Errc::kBadMessage, "the daemon does not serve this message connection");
  }
  auto message = make_message<AttachGuestMessage>(AttachType::kGuestMessage, 0);
  message.vp = vp;
  message.connection_id = connection_id;
  message.message_type = message_type;
  message.payload_size = static_cast<std::uint32_t>(payload.size());
  std::copy(payload.begin(), payload.end(), message.payload.begin());
  return send_datagram(impl_->socket.get(), wire_bytes(message), {}, false);
}

void AttachClient::host_message_done(std::uint64_t cookie) {
  {
    const std::lock_guard lock(impl_->mutex);
    auto& waiting = impl_->host_messages;
    const auto found = std::find(waiting.begin(), waiting.end(), cookie);
    VMBUSD_ASSERT(found != waiting.end());
    waiting.erase(found);
  }
  // A connection that is over shows on the receiving thread.
  static_cast<void>(impl_->reply(cookie, {}));
}

std::string AttachClient::error_text() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->error_text;
}

}  // namespace vmbusd::partition
