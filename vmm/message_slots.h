// The producer's side of a SynIC message page, for hypervisors where that is guest memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/wire.h"

namespace vmbusd::vmm {

inline constexpr std::size_t kMessagePageSize = 4096;
inline constexpr std::size_t kSintCount = 16;
inline constexpr std::size_t kMessagePayloadMax = 240;

// What a slot begins with. [TLFS: HV_MESSAGE_HEADER]
struct MessageHeader {
  std::uint32_t type;  // 0: the slot is free
  std::uint8_t payload_size;
  std::uint8_t flags;  // kMessagePending
  std::uint16_t reserved;
  std::uint64_t sender;
};
static_assert(kIsWire<MessageHeader, 16>);
static_assert(offsetof(MessageHeader, payload_size) == 4 && offsetof(MessageHeader, flags) == 5 &&
              offsetof(MessageHeader, sender) == 8);

inline constexpr std::uint8_t kMessagePending = 1u << 0;
inline constexpr std::uint32_t kMessageTypeNone = 0;

// One VP's message page: 16 slots of 256 bytes, slot n for SINT n. The guest frees a slot by writing type 0,
// and then, where it sees the pending flag, writes EOM; the hypervisor passes that on, and the waiting
// message is tried again. [TLFS: SynIC message delivery; reference: hypervisor-backends 0.3]
//
//   producer (here)            guest
//   post(): type != 0          reads the message
//   pending = 1                type = 0
//   type == 0 ? take it        full barrier
//             : wait for EOM   pending ? write EOM
//
// Either the producer sees the slot free or the guest sees the flag, so no message is left behind. Not
// thread-safe; must be the only producer of the SINTs that it is used for.
class MessageSlots {
 public:
  // The page, 4096 bytes, 8-aligned, guest-controlled; nullptr while the guest has none.
  void set_page(std::byte* page) { page_ = page; }
  [[nodiscard]] std::byte* page() const { return page_; }

  // Writes the message where the slot is free. `sint` < kSintCount, `type` != 0, payload <=
  // kMessagePayloadMax.
  [[nodiscard]] bool post(std::uint32_t sint, std::uint32_t type, std::span<const std::uint8_t> payload);
  // The same, but a busy slot gets the pending flag first. False: an EOM follows, provided that whoever calls
  // this listens for it already.
  [[nodiscard]] bool post_or_mark_pending(std::uint32_t sint, std::uint32_t type,
                                          std::span<const std::uint8_t> payload);

 private:
  std::byte* page_ = nullptr;
};

}  // namespace vmbusd::vmm
