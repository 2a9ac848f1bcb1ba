#include "vmm/hypercall.h"

#include <cstring>

namespace vmbusd::vmm {

namespace {

// The control word. [TLFS: Hypercall Inputs]
constexpr std::uint64_t kCodeMask = 0xffff;

constexpr std::uint64_t kPostMessage = 0x005c;
constexpr std::uint64_t kSignalEvent = 0x005d;

constexpr std::uint64_t kPage = 4096;

DecodedHypercall decode_post_message(const HypercallExit& exit, const GuestRam& ram) {
  // Neither fast nor repeated, and without a variable header: nothing but the code is set.
  if ((exit.control & ~kCodeMask) != 0) return kHvInvalidHypercallInput;
  if (exit.input % 8 != 0) return kHvInvalidAlignment;
  if (exit.input % kPage + sizeof(PostMessageInput) > kPage) return kHvInvalidAlignment;
  const std::span<const std::byte> block = ram.at(exit.input, sizeof(PostMessageInput));  // guest-controlled
  if (block.empty()) return kHvInvalidParameter;
  PostedMessage message;
  std::memcpy(&message.input, block.data(), sizeof message.input);
  if (message.input.payload_size > message.input.payload.size()) return kHvInvalidParameter;
  // Types with bit 31 are the hypervisor's, 0 means an empty slot. [TLFS: HvCallPostMessage]
  if (message.input.message_type == 0 || (message.input.message_type & 0x80000000) != 0)
    return kHvInvalidParameter;
  if ((message.input.connection_id & ~kConnectionIdMask) != 0) return kHvInvalidConnectionId;
  return message;
}

}  // namespace

DecodedHypercall decode_hypercall(const HypercallExit& exit, const GuestRam& ram) {
  switch (exit.control & kCodeMask) {
    case kPostMessage:
      return decode_post_message(exit, ram);
    case kSignalEvent:
      // Had a doorbell been attached to the connection, the hypervisor would have rung it.
      return kHvInvalidConnectionId;
    default:
      return kHvInvalidHypercallCode;
  }
}

}  // namespace vmbusd::vmm
