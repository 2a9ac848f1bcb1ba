#include "partition/take_up_record.h"

#include <fcntl.h>

#include <cerrno>
#include <utility>

namespace vmbusd::partition {

// The lock is held while it sends, which does not wait: the order here is that of the socket.
Result<void> TakeUpRecord::post_guest_message(AttachClient& client, std::uint32_t vp,
                                              std::uint32_t connection_id, std::uint32_t message_type,
                                              std::span<const std::uint8_t> payload) {
  const std::lock_guard lock(mutex_);
  VMBUSD_CHECK(client.post_guest_message(vp, connection_id, message_type, payload));
  if (messages_.size() == kMessagesMax) messages_.pop_front();
  messages_.push_back({vp, connection_id, message_type, {payload.begin(), payload.end()}});
  ++posted_;
  return {};
}

Result<void> TakeUpRecord::doorbell_attached(std::uint32_t connection_id, int eventfd) {
  UniqueFd copy(::fcntl(eventfd, F_DUPFD_CLOEXEC, 0));
  if (!copy) return fail_os(errno, "no descriptor left for a doorbell");
  const std::lock_guard lock(mutex_);
  doorbells_.insert_or_assign(connection_id, std::move(copy));
  return {};
}

void TakeUpRecord::doorbell_detached(std::uint32_t connection_id) {
  const std::lock_guard lock(mutex_);
  doorbells_.erase(connection_id);
}

void TakeUpRecord::recovery_area(UniqueFd file) {
  const std::lock_guard lock(mutex_);
  area_ = std::move(file);
}

bool TakeUpRecord::complete() const {
  const std::lock_guard lock(mutex_);
  return static_cast<bool>(area_);
}

Result<void> TakeUpRecord::give(AttachClient& client) const {
  // Copies, as the client's thread may want the lock while this one waits for an answer.
  std::map<std::uint32_t, UniqueFd> doorbells;
  UniqueFd area;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, eventfd] : doorbells_) {
      doorbells[id].reset(::fcntl(eventfd.get(), F_DUPFD_CLOEXEC, 0));
      if (!doorbells[id]) return fail_os(errno, "no descriptor left to give back a doorbell");
    }
    area.reset(::fcntl(area_.get(), F_DUPFD_CLOEXEC, 0));
  }
  if (!area) return fail(Errc::kWrongState, "there is no recovery area");
  for (const auto& [id, eventfd] : doorbells) VMBUSD_CHECK(client.keep_doorbell(id, eventfd.get()));
  return client.take_up(area.get());
}

Result<void> TakeUpRecord::taken_up(AttachClient& client, std::uint64_t guest_messages) {
  const std::lock_guard lock(mutex_);
  if (guest_messages > posted_ || posted_ - guest_messages > messages_.size()) {
    return fail(Errc::kProtocol, "the daemon has counted other messages than the guest has posted");
  }
  for (std::size_t i = messages_.size() - (posted_ - guest_messages); i < messages_.size(); ++i) {
    const Message& message = messages_[i];
    VMBUSD_CHECK(
        client.post_guest_message(message.vp, message.connection_id, message.message_type, message.payload));
  }
  return {};
}

void TakeUpRecord::forget_doorbells() {
  const std::lock_guard lock(mutex_);
  doorbells_.clear();
}

void TakeUpRecord::start_over() {
  const std::lock_guard lock(mutex_);
  doorbells_.clear();
  area_.reset();
  messages_.clear();
  posted_ = 0;
}

}  // namespace vmbusd::partition
