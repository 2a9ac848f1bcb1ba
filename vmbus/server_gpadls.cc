// GPADL messages, and the release of what the guest takes back.
#include <algorithm>

#include "base/assert.h"
#include "vmbus/server_core.h"

namespace vmbusd::vmbus {

void ServerCore::on_gpadl_header(const GpadlHeader& message, const Received& received) {
  // Also for a rescinded channel, until its relid is released: the guest may not have heard yet.
  if (find_told(message.relid) == nullptr) {
    answer_gpadl(message.relid, message.gpadl, fail(Errc::kBadGpadl, "relid is not offered"));
    return;
  }
  answer_gpadl(message.relid, message.gpadl, gpadls_.begin(message, received.bytes.subspan(sizeof message)));
}

void ServerCore::on_gpadl_body(const GpadlBody& message, const Received& received) {
  const std::optional<Relid> relid = gpadls_.assembling(message.gpadl);
  if (!relid) {  // the rest of one that was refused, mostly
    log_.guest("GPADL_BODY dropped: no GPADL {:#x} awaits one", message.gpadl);
    return;
  }
  answer_gpadl(*relid, message.gpadl, gpadls_.append(message.gpadl, received.bytes.subspan(sizeof message)));
}

// `complete`: nothing to say yet where false.
void ServerCore::answer_gpadl(Relid relid, GpadlId id, const Result<bool>& complete) {
  if (complete && !*complete) return;
  Status status = Status::kSuccess;
  if (!complete) {
    log_.guest("GPADL {:#x} of relid {} refused: {}", id, relid, describe(complete.error()));
    status =
        complete.error().code == Errc::kLimit ? Status::kInsufficientResources : Status::kInvalidParameter;
  }
  tell(GpadlCreated{.relid = relid, .gpadl = id, .status = status});
}

void ServerCore::on_gpadl_teardown(const GpadlTeardown& message) {
  Channel* const channel = find_told(message.relid);
  const std::optional<GpadlTable::State> state = gpadls_.state(message.relid, message.gpadl);
  if (channel == nullptr || !state) {
    log_.guest("GPADL_TEARDOWN dropped: relid {} has no GPADL {:#x}", message.relid, message.gpadl);
    return;
  }
  if (*state == GpadlTable::State::kAssembling) {
    gpadls_.erase(message.relid, message.gpadl);
    tell(GpadlTorndown{.gpadl = message.gpadl});
    return;
  }
  if (*state != GpadlTable::State::kLive) {
    log_.guest("GPADL_TEARDOWN dropped: GPADL {:#x} is being torn down", message.gpadl);
    return;
  }
  gpadls_.want_release(message.relid, message.gpadl, true);
  // Guests close a channel before they take its ring back; for one that did not, this closes it.
  if (channel->running() && channel->opened.ring_gpadl == message.gpadl) stop(*channel);
  if (channel->queued_open && channel->queued_open->ring_gpadl == message.gpadl) {
    cancel_queued_open(*channel);
  }
  advance(*channel);
}

// Asks the device to let go of what is wanted back; not while the channel is closing.
void ServerCore::release_wanted(Relid relid) {
  for (std::shared_ptr<const Gpadl>& gpadl : gpadls_.take_wanted(relid)) {
    queue_.emplace_back(Release{std::move(gpadl)});
  }
}

void ServerCore::gpadl_released(Relid relid, GpadlId gpadl) {
  Channel* const channel = find_channel(relid);
  VMBUSD_ASSERT(channel != nullptr);
  VMBUSD_ASSERT(gpadls_.state(relid, gpadl) == GpadlTable::State::kReleasing);
  if (gpadls_.erase(relid, gpadl)) tell(GpadlTorndown{.gpadl = gpadl});
  advance(*channel);
  advance_connection();
  deliver();
}

std::shared_ptr<const Gpadl> ServerCore::find_gpadl(Relid relid, GpadlId gpadl) const {
  return gpadls_.live(relid, gpadl);
}

std::vector<std::shared_ptr<const Gpadl>> ServerCore::gpadls_of(Relid relid) const {
  return gpadls_.live(relid);
}

bool ServerCore::holds_pages(Gpn first, std::uint64_t count) const {
  const auto holds = [first, count](std::uint64_t gpa) {
    const Gpn page = gpa / kPageBytes;
    return gpa != 0 && page >= first && page - first < count;
  };
  if (holds(interrupt_page_)) return true;
  const bool monitoring = std::any_of(channels_.begin(), channels_.end(), [](const auto& entry) {
    return entry.second.monitor_id && entry.second.run_state != RunState::kClosed;
  });
  if (monitoring && holds(monitor_page_)) return true;
  return gpadls_.holds(first, count);
}

}  // namespace vmbusd::vmbus
