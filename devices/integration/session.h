// What all integration components have in common: agreeing on versions, then one question at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/result.h"
#include "devices/integration/protocol.h"

namespace vmbusd::integration {

// The largest message; the guest answers in the same buffer. Linux reads into two pages or less.
inline constexpr std::size_t kMessageBytesMax = 4096;
inline constexpr std::size_t kHeaderBytes = sizeof(PipeHeader) + sizeof(MessageHeader);
inline constexpr std::size_t kBodyBytesMax = kMessageBytesMax - kHeaderBytes;

// The protocol of one open channel, without I/O.
//
//   kNew -- negotiate() --> kNegotiating -- receive() --> kReady: request(), receive(), request(), ...
//                                                    \--> kRefused: the guest knows none of the versions
//
// Linux reads one packet for each interrupt of these channels and keeps one request in hand, so nothing is
// sent while an answer is outstanding. [linux: hv_util.c, util_probe; hv_kvp.c, kvp_transaction]
class Session {
 public:
  enum class State : std::uint8_t { kNew, kNegotiating, kReady, kRefused };

  // `versions`: of the component's messages, oldest first; static storage.
  Session(MessageType type, std::span<const Version> versions) : type_(type), versions_(versions) {}

  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] bool outstanding() const { return outstanding_; }
  // Of the component's messages, once it is ready.
  [[nodiscard]] Version version() const { return version_; }

  // The message to send; valid until the next call of any method. In state kNew.
  [[nodiscard]] std::span<const std::byte> negotiate();
  // The same for a question; in state kReady, while none is outstanding. `body`: 1 to kBodyBytesMax bytes.
  [[nodiscard]] std::span<const std::byte> request(std::span<const std::byte> body);

  struct Answer {
    std::uint32_t status;             // HRESULT
    std::span<const std::byte> body;  // in what was received
  };
  // Takes a message of the guest's, at most kMessageBytesMax bytes, a private copy. Empty where it answers
  // the negotiation: see state(). Errc::kBadMessage where nothing of the sort was asked: it has no effect.
  [[nodiscard]] Result<std::optional<Answer>> receive(std::span<const std::byte> message);

 private:
  [[nodiscard]] std::span<const std::byte> compose(MessageType type, std::span<const std::byte> body);
  void take_versions(std::span<const std::byte> body);

  MessageType type_;
  std::span<const Version> versions_;
  State state_ = State::kNew;
  bool outstanding_ = false;
  std::uint8_t transaction_id_ = 0;  // of the message sent last
  Version framework_{};
  Version version_{};
  std::array<std::byte, kMessageBytesMax> message_{};
};

}  // namespace vmbusd::integration
