#include "guest/child_partition.h"

#include <algorithm>
#include <cerrno>
#include <thread>

#include "partition/partition.h"

namespace vmbusd::guest {

Result<std::unique_ptr<ChildPartition>> ChildPartition::attach(const Options& options,
                                                               std::string& error_text) {
  VMBUSD_TRY(std::unique_ptr<Ram> ram, Ram::create(options.memory_bytes));
  std::unique_ptr<ChildPartition> child(new ChildPartition(options, std::move(ram)));
  for (std::uint32_t vp = 0; vp < options.vp_count; ++vp) {
    VMBUSD_TRY(std::unique_ptr<VirtualProcessor> created, VirtualProcessor::create(*child->ram_));
    child->vps_.push_back(std::move(created));
  }
  VMBUSD_CHECK(child->connect(error_text));
  Result<void> handed_over = child->hand_over();
  if (handed_over) handed_over = child->enable_synic();
  if (!handed_over) error_text = child->client_->error_text();
  VMBUSD_CHECK(handed_over);
  return child;
}

Result<void> ChildPartition::connect(std::string& error_text) {
  const partition::AttachClient::Options client = {
      .socket_path = options_.socket_path,
      .vp_count = options_.vp_count,
      .features = options_.take_up ? partition::kFeatureTakeUp : 0,
  };
  VMBUSD_TRY(client_, partition::AttachClient::connect(client, *this, error_text));
  return {};
}

Result<void> ChildPartition::reattach(std::string& error_text) {
  client_.reset();
  disconnected_ = false;
  taken_up_ = false;
  reattaching_ = true;
  VMBUSD_CHECK(connect(error_text));
  Result<void> given = hand_over();
  if (given) given = record_.give(*client_);
  if (!given) error_text = client_->error_text();
  VMBUSD_CHECK(given);
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, kPatience, [this] { return taken_up_ || disconnected_; });
  return taken_up_ ? Result<void>{} : fail(Errc::kClosed, "the daemon did not take up the guest");
}

Result<void> ChildPartition::hand_over() {
  VMBUSD_CHECK(client_->add_memory(0, ram_->size(), ram_->fd(), 0, true));
  for (std::uint32_t index = 0; index < vp_count(); ++index) {
    VMBUSD_CHECK(client_->set_vp_interrupt(index, partition::kVmbusSint, vps_[index]->interrupt_fd()));
  }
  return {};
}

Result<void> ChildPartition::enable_synic() {
  for (std::uint32_t index = 0; index < vp_count(); ++index) {
    const VirtualProcessor& vp = *vps_[index];
    VMBUSD_CHECK(client_->set_synic_state(
        index, partition::kSynicEnabled | partition::kSynicMessagePage | partition::kSynicEventPage,
        vp.message_page_gpa(), vp.event_page_gpa()));
  }
  return {};
}

ChildPartition::~ChildPartition() {
  disconnect();
}

void ChildPartition::disconnect() {
  client_.reset();
  for (const auto& vp : vps_) vp->close();
}

Result<void> ChildPartition::post_message(std::uint32_t connection_id, std::span<const std::byte> payload,
                                          std::uint32_t vp) {
  const auto deadline = Clock::now() + kPatience;
  const std::span<const std::uint8_t> bytes(reinterpret_cast<const std::uint8_t*>(payload.data()),
                                            payload.size());
  for (;;) {
    const Result<void> posted =
        record_.post_guest_message(*client_, vp, connection_id, 1 /* VMBus, both ways */, bytes);
    if (posted || posted.error().code != Errc::kLimit) return posted;
    if (Clock::now() > deadline) return fail_os(ETIMEDOUT, "the host's message queue stays full");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

Result<VirtualProcessor::Message> ChildPartition::take_message(std::uint32_t vp, Clock::time_point deadline) {
  std::optional<VirtualProcessor::Message> message = vps_.at(vp)->take_message(deadline);
  if (!message) {
    if (disconnected_ || !client_) return fail(Errc::kClosed, "the host closed the connection");
    return fail_os(ETIMEDOUT, "the host sent no message");
  }
  if (client_) client_->host_message_done(message->cookie);
  return std::move(*message);
}

Doorbell ChildPartition::doorbell(std::uint32_t connection_id) const {
  const std::lock_guard lock(mutex_);
  const auto found = doorbells_.find(connection_id);
  return found == doorbells_.end() ? nullptr : found->second;
}

std::size_t ChildPartition::doorbells() const {
  const std::lock_guard lock(mutex_);
  return doorbells_.size();
}

Result<void> ChildPartition::reset() {
  resetting_ = true;
  const Result<void> done = client_->reset();
  resetting_ = false;
  for (const auto& vp : vps_) {
    // Of the old guest; each had its slot, which is free again.
    while (const auto message = vp->take_message(Clock::time_point())) {
      client_->host_message_done(message->cookie);
    }
  }
  VMBUSD_CHECK(done);
  return enable_synic();
}

Result<void> ChildPartition::doorbell_attach(std::uint32_t connection_id, UniqueFd eventfd) {
  if (options_.take_up) VMBUSD_CHECK(record_.doorbell_attached(connection_id, eventfd.get()));
  const std::lock_guard lock(mutex_);
  const bool added =
      doorbells_.emplace(connection_id, std::make_shared<const UniqueFd>(std::move(eventfd))).second;
  if (!added) return fail(Errc::kWrongState, "the connection id has a doorbell");
  return {};
}

Result<void> ChildPartition::doorbell_detach(std::uint32_t connection_id) {
  record_.doorbell_detached(connection_id);
  const std::lock_guard lock(mutex_);
  if (doorbells_.erase(connection_id) == 0)
    return fail(Errc::kWrongState, "the connection id has no doorbell");
  return {};
}

void ChildPartition::host_message(std::uint64_t cookie, std::uint32_t vp, std::uint32_t /*sint*/,
                                  std::uint32_t message_type, std::span<const std::uint8_t> payload) {
  if (vp >= vps_.size()) return;  // never answered, so that a test sees the host stall
  if (resetting_) return client_->host_message_done(cookie);
  const std::span<const std::byte> bytes = std::as_bytes(payload);
  vps_[vp]->push_message({cookie, message_type, {bytes.begin(), bytes.end()}});
}

// Not negotiated: event flags are guest memory here.
void ChildPartition::signal_event(std::uint32_t, std::uint32_t, std::uint32_t) {}

void ChildPartition::recovery_area(UniqueFd file, bool taken_up, std::uint64_t guest_messages) {
  if (reattaching_ && !taken_up) return;  // what it wants is in the one before
  record_.recovery_area(std::move(file));
  if (!reattaching_ || !record_.taken_up(*client_, guest_messages)) return;
  reattaching_ = false;
  const std::lock_guard lock(mutex_);
  taken_up_ = true;
  changed_.notify_all();
}

void ChildPartition::disconnected(const Error&) {
  {
    const std::lock_guard lock(mutex_);
    disconnected_ = true;
    changed_.notify_all();
  }
  if (options_.take_up) return;  // its guest waits
  for (const auto& vp : vps_) vp->close();
}

}  // namespace vmbusd::guest
