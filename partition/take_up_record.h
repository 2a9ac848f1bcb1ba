// What a VMM keeps so that a daemon which was restarted can take up its guest. Used by vmbus-vmm and by the
// user-space child partition.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "partition/attach_client.h"

namespace vmbusd::partition {

// One for a VMM, over all its connections. Any thread.
//
// A guest's messages that the daemon died before it read are lost with the socket, so the latest are kept
// until a daemon says how many it has acted on.
class TakeUpRecord {
 public:
  // As AttachClient::post_guest_message().
  [[nodiscard]] Result<void> post_guest_message(AttachClient& client, std::uint32_t vp,
                                                std::uint32_t connection_id, std::uint32_t message_type,
                                                std::span<const std::uint8_t> payload);
  // What the daemon asks of a VMM. A copy of the eventfd is kept; Errc::kOs where there cannot be one.
  [[nodiscard]] Result<void> doorbell_attached(std::uint32_t connection_id, int eventfd);
  void doorbell_detached(std::uint32_t connection_id);
  void recovery_area(UniqueFd file);

  // Whether there is anything to be taken up.
  [[nodiscard]] bool complete() const;
  // Gives it all to the daemon that comes after another, behind memory and interrupts.
  [[nodiscard]] Result<void> give(AttachClient& client) const;
  // That has acted on so many messages: posts the others to it, in their order, before any new one.
  // Errc::kProtocol where that cannot be.
  [[nodiscard]] Result<void> taken_up(AttachClient& client, std::uint64_t guest_messages);

  // The guest is reset: its doorbells are void.
  void forget_doorbells();
  // For a connection on which nothing is taken up.
  void start_over();

 private:
  struct Message {
    std::uint32_t vp;
    std::uint32_t connection_id;
    std::uint32_t message_type;
    std::vector<std::uint8_t> payload;
  };
  // More than a socket holds unread: each takes some 800 bytes of 208 KiB. [linux: net.core.wmem_default]
  static constexpr std::size_t kMessagesMax = 1024;

  mutable std::mutex mutex_;  // of all below
  std::map<std::uint32_t, UniqueFd> doorbells_;
  UniqueFd area_;
  std::deque<Message> messages_;  // the latest
  std::uint64_t posted_ = 0;      // in all
};

}  // namespace vmbusd::partition
