// Hypercalls that reach the VMM: HvPostMessage, and HvSignalEvent on connections that nobody attached.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <variant>

#include "base/wire.h"
#include "vmm/guest_ram.h"
#include "vmm/hypervisor.h"

namespace vmbusd::vmm {

// [TLFS: Hypercall Status Codes]
inline constexpr std::uint16_t kHvSuccess = 0;
inline constexpr std::uint16_t kHvInvalidHypercallCode = 2;
inline constexpr std::uint16_t kHvInvalidHypercallInput = 3;
inline constexpr std::uint16_t kHvInvalidAlignment = 4;
inline constexpr std::uint16_t kHvInvalidParameter = 5;
inline constexpr std::uint16_t kHvInvalidConnectionId = 0x12;
inline constexpr std::uint16_t kHvInsufficientBuffers = 0x13;

inline constexpr std::uint32_t kConnectionIdMask = 0x00ffffff;

// The input block of HvPostMessage. [TLFS: HvCallPostMessage]
struct PostMessageInput {
  std::uint32_t connection_id;
  std::uint32_t reserved;
  std::uint32_t message_type;
  std::uint32_t payload_size;
  std::array<std::uint8_t, 240> payload;
};
static_assert(kIsWire<PostMessageInput, 256>);

// A message that the guest posted, copied out of its memory and checked: payload_size <= 240, type and
// reserved bits as the TLFS wants them.
struct PostedMessage {
  PostMessageInput input;

  [[nodiscard]] std::uint32_t connection_id() const { return input.connection_id & kConnectionIdMask; }
  [[nodiscard]] std::span<const std::uint8_t> payload() const {
    return std::span(input.payload).first(input.payload_size);
  }
};

// Either a message to forward, or the status that the guest gets at once.
using DecodedHypercall = std::variant<PostedMessage, std::uint16_t>;

[[nodiscard]] DecodedHypercall decode_hypercall(const HypercallExit& exit, const GuestRam& ram);

}  // namespace vmbusd::vmm
