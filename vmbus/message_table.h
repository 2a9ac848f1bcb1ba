// The one list of the messages that a guest may send: how long, since when, in which phase, who handles it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vmbus/protocol.h"

namespace vmbusd::vmbus {

class ServerCore;

// Where a connection stands, as a set: rules name the phases that allow a message.
enum class Phase : std::uint8_t {
  kDisconnected = 1,
  kConnected = 2,        // version agreed
  kOffersRequested = 4,  // and the guest knows the offers
  kDisconnecting = 8,    // closing the channels of a connection that ended
};

// A message as it came in; `bytes` is a private copy.
struct Received {
  std::uint32_t connection_id;
  std::span<const std::byte> bytes;
};

struct MessageRule {
  MessageType type;
  const char* name;       // as the catalogue has it, for logs
  std::size_t bytes_min;  // longer is padding
  Version since;          // least negotiated version; kNone: also without a connection
  std::uint32_t feature;  // that must be granted; 0: none
  std::uint8_t phases;    // Phase bits
  // Null only where `feature` is one that we never grant.
  void (*handle)(ServerCore& core, const Received& received);
};

// In the order of their numbers.
[[nodiscard]] std::span<const MessageRule> message_rules();
// Null for numbers that no guest may send.
[[nodiscard]] const MessageRule* find_message_rule(MessageType type);

// Why a message is refused, static text; null where `rule` allows it.
[[nodiscard]] const char* refuse_message(const MessageRule& rule, std::size_t bytes, Phase phase,
                                         Version version);

}  // namespace vmbusd::vmbus
