#include "vmm/message_slots.h"

#include <atomic>
#include <cstring>

#include "base/assert.h"

namespace vmbusd::vmm {

namespace {

constexpr std::size_t kSlotSize = 256;

std::atomic_ref<std::uint32_t> type_of(std::byte* slot) {
  return std::atomic_ref(*reinterpret_cast<std::uint32_t*>(slot + offsetof(MessageHeader, type)));
}

std::atomic_ref<std::uint8_t> flags_of(std::byte* slot) {
  return std::atomic_ref(*reinterpret_cast<std::uint8_t*>(slot + offsetof(MessageHeader, flags)));
}

}  // namespace

bool MessageSlots::post(std::uint32_t sint, std::uint32_t type, std::span<const std::uint8_t> payload) {
  VMBUSD_ASSERT(sint < kSintCount && type != kMessageTypeNone && payload.size() <= kMessagePayloadMax);
  if (page_ == nullptr) return false;
  std::byte* const slot = page_ + sint * kSlotSize;  // guest-controlled
  // acquire: pairs with the guest's store of type 0 after it read the message (vmbus_signal_eom), so that
  // this message does not overwrite the one it is reading.
  if (type_of(slot).load(std::memory_order_acquire) != kMessageTypeNone) return false;
  const MessageHeader header{kMessageTypeNone, static_cast<std::uint8_t>(payload.size()), 0, 0, 0};
  std::memcpy(slot + offsetof(MessageHeader, payload_size), &header.payload_size, sizeof header.payload_size);
  // Atomic: the guest may still be about to read the flags of the message before.
  flags_of(slot).store(header.flags, std::memory_order_relaxed);
  constexpr std::size_t kBehindFlags = offsetof(MessageHeader, flags) + sizeof header.flags;
  std::memcpy(slot + kBehindFlags, reinterpret_cast<const std::byte*>(&header) + kBehindFlags,
              sizeof header - kBehindFlags);
  if (!payload.empty()) std::memcpy(slot + sizeof header, payload.data(), payload.size());
  // release: pairs with the guest's load of the type before it reads the rest (vmbus_on_msg_dpc).
  type_of(slot).store(type, std::memory_order_release);
  return true;
}

bool MessageSlots::post_or_mark_pending(std::uint32_t sint, std::uint32_t type,
                                        std::span<const std::uint8_t> payload) {
  if (post(sint, type, payload)) return true;
  if (page_ == nullptr) return false;
  // seq_cst, a full barrier on x86: the flag is visible before the type is read again. Pairs with the guest's
  // barrier between its store of type 0 and its load of the flag (vmbus_signal_eom).
  flags_of(page_ + sint * kSlotSize).fetch_or(kMessagePending, std::memory_order_seq_cst);
  return post(sint, type, payload);
}

}  // namespace vmbusd::vmm
