#include "vmm/attachment.h"

#include <fmt/format.h>

#include <utility>

namespace vmbusd::vmm {

namespace {

std::uint32_t attach_flags(const SynicState& state) {
  return (state.enabled ? partition::kSynicEnabled : 0u) |
         (state.has_message_page ? partition::kSynicMessagePage : 0u) |
         (state.has_event_page ? partition::kSynicEventPage : 0u);
}

}  // namespace

Attachment::Attachment(std::uint32_t vcpus, LogScope& log) : vcpus_(vcpus), log_(log) {}

// The client first: its thread calls into all the rest until it has ended. It finds no client any more then,
// as reset() clears the pointer before it ends the thread.
Attachment::~Attachment() {
  {
    const std::lock_guard lock(mutex_);
    lost_ = true;
  }
  client_.reset();
}

Result<void> Attachment::connect(const std::string& socket_path, const GuestRam& ram,
                                 bool event_flags_in_guest_memory, std::string& error_text) {
  const auto blame = [&](const char* what, const Error& error, const std::string& daemons_words) {
    error_text = fmt::format("--attach {}: {}: {}", socket_path, what, describe(error));
    if (!daemons_words.empty()) error_text += fmt::format(" ({})", daemons_words);
    return tl::unexpected(error);
  };
  const partition::AttachClient::Options options{
      .socket_path = socket_path,
      .vp_count = vcpus_,
      .features = event_flags_in_guest_memory ? 0 : partition::kFeatureSignalByMessage,
  };
  std::string daemons_words;
  Result<std::unique_ptr<partition::AttachClient>> connected =
      partition::AttachClient::connect(options, *this, daemons_words);
  if (!connected) return blame("cannot attach to vmbusd", connected.error(), daemons_words);
  partition::AttachClient& client = **connected;
  {
    const std::lock_guard lock(mutex_);
    client_ = std::move(*connected);
  }
  for (const GuestRam::Region& region : ram.regions()) {
    const Result<void> added = client.add_memory(region.gpa, region.size, ram.fd(), region.offset, true);
    if (!added) return blame("vmbusd does not take the guest's memory", added.error(), client.error_text());
  }
  return {};
}

partition::AttachClient* Attachment::client() {
  const std::lock_guard lock(mutex_);
  return lost_ ? nullptr : client_.get();
}

bool Attachment::lost() const {
  const std::lock_guard lock(mutex_);
  return lost_;
}

Result<void> Attachment::bind(Machine& machine) {
  {
    const std::lock_guard lock(mutex_);
    machine_ = &machine;
  }
  partition::AttachClient* const daemon = client();
  if (daemon == nullptr) return {};
  for (std::uint32_t vp = 0; vp < vcpus_; ++vp) {
    const int eventfd = machine.sint_interrupt(vp, kVmbusSint);
    if (eventfd < 0) continue;
    const Result<void> told = daemon->set_vp_interrupt(vp, kVmbusSint, eventfd);
    // A daemon that went away meanwhile has been complained about.
    if (!told && told.error().code != Errc::kClosed) return told;
  }
  return {};
}

void Attachment::unbind() {
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
  answer(dropped);
  if (partition::AttachClient* const daemon = client(); daemon != nullptr) {
    const Result<void> reset = daemon->reset();
    if (!reset && reset.error().code != Errc::kClosed) {
      log_.error("vmbusd did not reset: {}", describe(reset.error()));
    }
  }
  for (std::uint32_t vp = 0; vp < vcpus_; ++vp) tell_synic_state(vp, {});
}

void Attachment::close() {
  if (partition::AttachClient* const daemon = client(); daemon != nullptr) daemon->close();
}

std::uint16_t Attachment::post(std::uint32_t vp, const PostedMessage& message) {
  partition::AttachClient* const daemon = client();
  if (daemon == nullptr || !daemon->serves_message_connection(message.connection_id())) {
    return kHvInvalidConnectionId;
  }
  const Result<void> posted =
      daemon->post_guest_message(vp, message.connection_id(), message.input.message_type, message.payload());
  if (posted) return kHvSuccess;
  return posted.error().code == Errc::kLimit ? kHvInsufficientBuffers : kHvInvalidConnectionId;
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
  partition::AttachClient* const daemon = client();
  if (daemon == nullptr) return;
  const Result<void> told =
      daemon->set_synic_state(vp, attach_flags(state), state.has_message_page ? state.message_page_gpa : 0,
                              state.has_event_page ? state.event_page_gpa : 0);
  if (!told && told.error().code != Errc::kClosed) {
    log_.guest("vmbusd refuses the SynIC pages of VP {}: {}", vp, describe(told.error()));
  }
}

Result<void> Attachment::doorbell_attach(std::uint32_t connection_id, UniqueFd eventfd) {
  const std::lock_guard lock(mutex_);
  if (machine_ == nullptr) return fail(Errc::kWrongState, "the guest is being reset");
  VMBUSD_CHECK(machine_->attach_doorbell(connection_id, std::move(eventfd)));
  doorbells_.insert(connection_id);
  return {};
}

Result<void> Attachment::doorbell_detach(std::uint32_t connection_id) {
  const std::lock_guard lock(mutex_);
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

void Attachment::disconnected(const Error& reason) {
  const std::lock_guard lock(mutex_);
  lost_ = true;
  if (machine_ != nullptr) {
    for (const std::uint32_t connection_id : doorbells_) (void)machine_->detach_doorbell(connection_id);
  }
  doorbells_.clear();
  for (std::deque<HostMessage>& queue : waiting_) queue.clear();
  log_.error("vmbusd is gone ({}); the guest runs on, its VMBus devices do not answer any more",
             describe(reason));
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
  partition::AttachClient* const daemon = client();
  if (daemon == nullptr) return;
  for (const std::uint64_t cookie : cookies) daemon->host_message_done(cookie);
}

}  // namespace vmbusd::vmm
