#include "vmm/attachment.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

namespace vmbusd::vmm {

namespace {

std::uint32_t attach_flags(const SynicState& state) {
  return (state.enabled ? partition::kSynicEnabled : 0u) |
         (state.has_message_page ? partition::kSynicMessagePage : 0u) |
         (state.has_event_page ? partition::kSynicEventPage : 0u);
}

}  // namespace

Attachment::Attachment(std::uint32_t vcpus, LogScope& log, std::chrono::seconds reconnect_time)
    : vcpus_(vcpus),
      log_(log),
      reconnect_time_(reconnect_time),
      give_up_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

// The client first: its thread calls into all the rest until it has ended. It finds no client any more then.
Attachment::~Attachment() {
  close();
  if (reconnect_thread_.joinable()) reconnect_thread_.join();
  Client last;
  {
    const std::lock_guard lock(mutex_);
    link_ = Link::kLost;
    last = std::move(client_);
  }
  if (last != nullptr) last->stop();
}

Result<void> Attachment::connect(const std::string& socket_path, const GuestRam& ram,
                                 bool event_flags_in_guest_memory, std::string& error_text) {
  const auto blame = [&](const char* what, const Error& error, const std::string& daemons_words) {
    error_text = fmt::format("--attach {}: {}: {}", socket_path, what, describe(error));
    if (!daemons_words.empty()) error_text += fmt::format(" ({})", daemons_words);
    return tl::unexpected(error);
  };
  socket_path_ = socket_path;
  ram_ = &ram;
  features_ = (event_flags_in_guest_memory ? 0 : partition::kFeatureSignalByMessage) |
              (reconnect_time_.count() != 0 ? partition::kFeatureTakeUp : 0);
  std::string daemons_words;
  const Result<Client> connected = connect_client(daemons_words);
  if (!connected) return blame("cannot attach to vmbusd", connected.error(), daemons_words);
  {
    const std::lock_guard lock(mutex_);
    client_ = *connected;
    // It may have ended meanwhile.
    if (link_ == Link::kNone) link_ = Link::kUp;
    reconnects_ = ((*connected)->features() & partition::kFeatureTakeUp) != 0;
  }
  if (const Result<void> given = give_memory(**connected); !given) {
    return blame("vmbusd does not take the guest's memory", given.error(), (*connected)->error_text());
  }
  if (reconnects_) reconnect_thread_ = std::thread([this] { reconnect_when_away(); });
  return {};
}

Result<Attachment::Client> Attachment::connect_client(std::string& error_text) {
  const partition::AttachClient::Options options{
      .socket_path = socket_path_, .vp_count = vcpus_, .features = features_, .give_up = give_up_.get()};
  VMBUSD_TRY(std::unique_ptr<partition::AttachClient> client,
             partition::AttachClient::connect(options, *this, error_text));
  return Client(std::move(client));
}

Result<void> Attachment::give_memory(partition::AttachClient& client) const {
  for (const GuestRam::Region& region : ram_->regions()) {
    VMBUSD_CHECK(client.add_memory(region.gpa, region.size, ram_->fd(), region.offset, true));
  }
  return {};
}

Result<void> Attachment::give_interrupts(partition::AttachClient& client, Machine& machine) const {
  for (std::uint32_t vp = 0; vp < vcpus_; ++vp) {
    const int eventfd = machine.sint_interrupt(vp, kVmbusSint);
    if (eventfd >= 0) VMBUSD_CHECK(client.set_vp_interrupt(vp, kVmbusSint, eventfd));
  }
  return {};
}

Attachment::Client Attachment::client() {
  const std::lock_guard lock(mutex_);
  return link_ == Link::kUp ? client_ : nullptr;
}

Attachment::Client Attachment::wait_for_client(const Client& ended) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return closing_ || (link_ != Link::kAway && (link_ != Link::kUp || ended == nullptr || client_ != ended));
  });
  return link_ == Link::kUp && !closing_ ? client_ : nullptr;
}

bool Attachment::lost() const {
  const std::lock_guard lock(mutex_);
  return link_ == Link::kAway || link_ == Link::kLost;
}

Result<void> Attachment::bind(Machine& machine) {
  Client daemon = wait_for_client();
  {
    const std::lock_guard lock(mutex_);
    machine_ = &machine;
  }
  while (daemon != nullptr) {
    const Result<void> given = give_interrupts(*daemon, machine);
    // A daemon that went away meanwhile has been complained about. One that comes may know of some only.
    if (given || given.error().code != Errc::kClosed) return given;
    daemon = wait_for_client(daemon);
  }
  return {};
}

void Attachment::unbind() {
  // Whoever takes up the guest needs its machine.
  const Client daemon = wait_for_client();
  std::vector<std::uint64_t> dropped;
  {
    const std::lock_guard lock(mutex_);
    machine_ = nullptr;
    doorbells_.clear();
    for (std::deque<HostMessage>& queue : waiting_) {
      for (const HostMessage& message : queue) dropped.push_back(message.cookie);
      queue.clear();
    }
  }
  record_.forget_doorbells();
  answer(dropped);
  if (daemon != nullptr) {
    const Result<void> reset = daemon->reset();
    if (!reset && reset.error().code != Errc::kClosed) {
      log_.error("vmbusd did not reset: {}", describe(reset.error()));
    }
    // The next one knows of no guest.
    if (!reset && reset.error().code == Errc::kClosed) (void)wait_for_client(daemon);
  } else if (seek_daemon()) {
    (void)wait_for_client();
  }
  for (std::uint32_t vp = 0; vp < vcpus_; ++vp) tell_synic_state(vp, {});
}

// The guest that lost its devices is gone: the one that comes can have them, by a daemon that is there again.
bool Attachment::seek_daemon() {
  const std::lock_guard lock(mutex_);
  if (link_ != Link::kLost || !reconnects_ || closing_) return false;
  link_ = Link::kAway;
  changed_.notify_all();
  return true;
}

void Attachment::close() {
  Client daemon;
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    daemon = client_;
  }
  const std::uint64_t one = 1;
  (void)!::write(give_up_.get(), &one, sizeof one);
  changed_.notify_all();
  if (daemon != nullptr) daemon->close();
}

std::uint16_t Attachment::post(std::uint32_t vp, const PostedMessage& message) {
  Client daemon;
  {
    const std::lock_guard lock(mutex_);
    // The guest tries again, for minutes. [linux: drivers/hv/connection.c, vmbus_post_msg]
    if (link_ == Link::kAway) return kHvInsufficientBuffers;
    if (link_ == Link::kUp) daemon = client_;
  }
  if (daemon == nullptr || !daemon->serves_message_connection(message.connection_id())) {
    return kHvInvalidConnectionId;
  }
  const Result<void> posted = record_.post_guest_message(*daemon, vp, message.connection_id(),
                                                         message.input.message_type, message.payload());
  if (posted) return kHvSuccess;
  const bool busy =
      posted.error().code == Errc::kLimit || (daemon->features() & partition::kFeatureTakeUp) != 0;
  return busy ? kHvInsufficientBuffers : kHvInvalidConnectionId;
}

void Attachment::synic_change(std::uint32_t vp, Vcpu& vcpu, const SynicState& state) {
  SynicState& told = told_[vp];
  // While the event flags move, the daemon must not set one in the old page: it would be lost.
  const bool event_page_goes =
      told.has_event_page && !(state.has_event_page && state.event_page_gpa == told.event_page_gpa);
  if (event_page_goes) {
    SynicState without = told;
    without.has_event_page = false;
    without.event_page_gpa = 0;
    tell_synic_state(vp, without);
  }
  vcpu.complete_synic_change();
  tell_synic_state(vp, state);
  post_waiting(vp);  // perhaps there is a message page now
}

void Attachment::tell_synic_state(std::uint32_t vp, const SynicState& state) {
  if (told_[vp] == state) return;
  told_[vp] = state;
  Client daemon = wait_for_client();
  while (daemon != nullptr) {
    const Result<void> told =
        daemon->set_synic_state(vp, attach_flags(state), state.has_message_page ? state.message_page_gpa : 0,
                                state.has_event_page ? state.event_page_gpa : 0);
    if (told) return;
    if (told.error().code != Errc::kClosed) {
      return log_.guest("vmbusd refuses the SynIC pages of VP {}: {}", vp, describe(told.error()));
    }
    // One that did not answer may not have heard it.
    daemon = wait_for_client(daemon);
  }
}

Result<void> Attachment::doorbell_attach(std::uint32_t connection_id, UniqueFd eventfd) {
  const std::lock_guard lock(mutex_);
  if (machine_ == nullptr) return fail(Errc::kWrongState, "the guest is being reset");
  const bool kept = (features_ & partition::kFeatureTakeUp) != 0;
  if (kept) VMBUSD_CHECK(record_.doorbell_attached(connection_id, eventfd.get()));
  const Result<void> attached = machine_->attach_doorbell(connection_id, std::move(eventfd));
  if (!attached && kept && !doorbells_.contains(connection_id)) record_.doorbell_detached(connection_id);
  VMBUSD_CHECK(attached);
  doorbells_.insert(connection_id);
  return {};
}

Result<void> Attachment::doorbell_detach(std::uint32_t connection_id) {
  const std::lock_guard lock(mutex_);
  record_.doorbell_detached(connection_id);
  if (machine_ == nullptr) return {};  // it rings no more and goes with the machine
  VMBUSD_CHECK(machine_->detach_doorbell(connection_id));
  doorbells_.erase(connection_id);
  return {};
}

void Attachment::host_message(std::uint64_t cookie, std::uint32_t vp, std::uint32_t sint,
                              std::uint32_t message_type, std::span<const std::uint8_t> payload) {
  bool queued = false;
  {
    const std::lock_guard lock(mutex_);
    if (machine_ != nullptr && vp < vcpus_ && sint == kVmbusSint) {
      waiting_[vp].push_back({cookie, message_type, {payload.begin(), payload.end()}});
      queued = true;
    }
  }
  if (queued) {
    post_waiting(vp);
  } else {
    answer(std::span(&cookie, 1));  // dropped, as by the reset that is going on
  }
}

void Attachment::signal_event(std::uint32_t vp, std::uint32_t sint, std::uint32_t flag) {
  const std::lock_guard lock(mutex_);
  if (machine_ == nullptr || vp >= vcpus_) return;
  const Result<void> signalled = machine_->signal_event(vp, sint, flag);
  if (!signalled)
    log_.guest("cannot signal event flag {} of VP {}: {}", flag, vp, describe(signalled.error()));
}

void Attachment::recovery_area(UniqueFd file, bool taken_up, std::uint64_t guest_messages) {
  const std::lock_guard lock(mutex_);
  // What a daemon is to take up is in the area of the one before.
  const bool awaited = link_ == Link::kAway && gives_back_;
  if (awaited && !taken_up) return;
  record_.recovery_area(std::move(file));
  if (!awaited) return;
  if (const Result<void> posted = record_.taken_up(*client_, guest_messages); !posted) {
    log_.error("vmbusd cannot have all that the guest has posted: {}", describe(posted.error()));
    client_ended_ = true;
    return changed_.notify_all();
  }
  link_ = Link::kUp;
  changed_.notify_all();
}

void Attachment::disconnected(const Error& reason) {
  {
    const std::lock_guard lock(mutex_);
    // Of an attempt to reconnect, which sees it by itself, or has been given up.
    if (link_ == Link::kAway || link_ == Link::kLost) {
      client_ended_ = true;
      return changed_.notify_all();
    }
    for (std::deque<HostMessage>& queue : waiting_) queue.clear();
    const bool comes_back = reconnects_ && !closing_ && record_.complete();
    link_ = comes_back ? Link::kAway : Link::kLost;
    if (comes_back) {
      log_.warning("vmbusd is gone ({}); the guest's devices wait for it to come back, {} s at most",
                   describe(reason), reconnect_time_.count());
    } else {
      lose();
      log_.error("vmbusd is gone ({}); the guest runs on, its VMBus devices do not answer any more",
                 describe(reason));
    }
  }
  changed_.notify_all();
}

// The doorbells ring nobody any more.
void Attachment::lose() {
  if (machine_ != nullptr) {
    for (const std::uint32_t connection_id : doorbells_) (void)machine_->detach_doorbell(connection_id);
  }
  doorbells_.clear();
}

// Reconnecting.

void Attachment::reconnect_when_away() {
  constexpr std::chrono::milliseconds kBetweenTries{100};
  constexpr int kTakeUpsMax = 3;  // that a daemon began and did not finish; each ends one of its workers
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return closing_ || link_ == Link::kAway; });
    const auto until = std::chrono::steady_clock::now() + reconnect_time_;
    std::string error_text = "it did not come back";
    for (int take_ups = 0; link_ == Link::kAway && !closing_ && take_ups < kTakeUpsMax &&
                           std::chrono::steady_clock::now() < until;) {
      lock.unlock();
      const Result<void> tried = try_to_reconnect(until, error_text);
      lock.lock();
      if (tried || link_ != Link::kAway) continue;
      if (tried.error().code == Errc::kClosed) ++take_ups;
      changed_.wait_for(lock, kBetweenTries, [this] { return closing_; });
    }
    if (closing_) return;
    if (link_ == Link::kUp) {
      log_.info("vmbusd is back, and the guest's devices with it");
      continue;
    }
    link_ = Link::kLost;
    lose();
    if (client_ != nullptr) client_->close();
    log_.error(
        "vmbusd does not serve the guest again ({}); its VMBus devices do not answer any more, unless it "
        "reboots and vmbusd is there",
        error_text);
    changed_.notify_all();
  }
}

// Errc::kClosed where there is a daemon that does not take up the guest; success says that link_ is kUp.
Result<void> Attachment::try_to_reconnect(std::chrono::steady_clock::time_point until,
                                          std::string& error_text) {
  Client before;
  Machine* machine = nullptr;
  {
    const std::lock_guard lock(mutex_);
    before = std::move(client_);
    machine = machine_;  // stays: unbind() waits for us
    gives_back_ = machine != nullptr;
  }
  if (before != nullptr) before->stop();  // after which it tells no more that it has ended
  {
    const std::lock_guard lock(mutex_);
    client_ended_ = false;
  }
  // Between two lives of the machine there is no guest to be taken up.
  if (machine == nullptr) record_.start_over();
  const Result<Client> connected = connect_client(error_text);
  if (!connected) {
    if (error_text.empty()) error_text = describe(connected.error());
    // Not served yet, or the socket's other end is on its way out.
    return fail(Errc::kWrongState, "vmbusd is not there");
  }
  partition::AttachClient& daemon = **connected;
  {
    const std::lock_guard lock(mutex_);
    client_ = *connected;
    if (closing_) return fail(Errc::kClosed, "the VMM ends");
  }
  error_text = "it does not take up the guest; its log says why";
  VMBUSD_CHECK(give_memory(daemon));
  if (machine != nullptr) {
    VMBUSD_CHECK(give_interrupts(daemon, *machine));
    VMBUSD_CHECK(record_.give(daemon));
  }
  std::unique_lock lock(mutex_);
  if (machine == nullptr) {
    link_ = client_ended_ ? Link::kAway : Link::kUp;
    changed_.notify_all();
  }
  changed_.wait_until(lock, until, [this] { return closing_ || link_ != Link::kAway || client_ended_; });
  if (link_ != Link::kUp) return fail(Errc::kClosed, "the daemon closed the connection");
  return {};
}

void Attachment::message_slot_free(std::uint32_t vp, std::uint32_t) {
  post_waiting(vp);
}

void Attachment::post_waiting(std::uint32_t vp) {
  std::vector<std::uint64_t> posted;
  {
    const std::lock_guard lock(mutex_);
    std::deque<HostMessage>& queue = waiting_[vp];
    while (machine_ != nullptr && !queue.empty()) {
      const HostMessage& message = queue.front();
      const Result<PostOutcome> outcome =
          machine_->post_message(vp, kVmbusSint, message.type, message.payload);
      if (outcome && *outcome == PostOutcome::kBusy) break;
      if (!outcome) log_.guest("message to VP {} is lost: {}", vp, describe(outcome.error()));
      posted.push_back(message.cookie);
      queue.pop_front();
    }
  }
  answer(posted);
}

void Attachment::answer(std::span<const std::uint64_t> cookies) {
  const Client daemon = client();
  if (daemon == nullptr) return;
  for (const std::uint64_t cookie : cookies) daemon->host_message_done(cookie);
}

}  // namespace vmbusd::vmm
