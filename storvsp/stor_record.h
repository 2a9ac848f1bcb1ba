// What a storage channel keeps in its recovery region, so that another worker process can take it up: the
// requests in hand, each in a slot that is its packet's only copy, and the little state there is beside them.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "ringbuffer/gpa_direct.h"
#include "storvsp/vstor.h"

namespace vmbusd::storvsp {

inline constexpr std::size_t kLunSlots = 64;

// One request. Written in an order such that a process that dies anywhere leaves one of the states below; by
// one thread, and read when that is dead, so the order in the program is all that matters.
struct alignas(64) StorSlot {
  // Values of `answered`; all others are a count of commits: the one that hands the answer to the guest.
  static constexpr std::uint64_t kFree = 0;
  static constexpr std::uint64_t kInHand = ~std::uint64_t{0};  // to be done again
  static constexpr std::uint64_t kAnswering =
      ~std::uint64_t{0} - 1;  // `packet` is neither request nor answer
  static constexpr std::uint64_t kWaiting =
      ~std::uint64_t{0} - 2;  // `packet` is the answer; the ring is full

  std::uint64_t answered;
  std::uint64_t
      taken;  // the count of releases that takes the packet from the guest: until then it has it still
  std::uint64_t transaction_id;
  std::uint64_t sequence;  // of arrival
  std::uint32_t segments;  // of the guest's buffer; a long list stands elsewhere in the region
  std::uint8_t answer_size;
  std::uint8_t answer_wanted;  // bool
  std::uint8_t compared;       // bool: a COMPARE AND WRITE that has compared, and only writes
  std::uint8_t reserved;
  vstor::SrbPacket packet;  // the guest's; becomes the answer
  static constexpr std::size_t kShortSegments = 5;
  std::array<ring::GpaSegment, kShortSegments> short_segments;

  void mark(std::uint64_t value) {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    std::atomic_ref(answered).store(value, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
};
static_assert(sizeof(StorSlot) == 192);

// What commands have changed of a LUN.
struct LunRecord {
  std::uint64_t key;         // of the registered nexus, where `registered`
  std::uint32_t generation;  // of its registrations
  std::uint32_t attention;   // UnitAttention bits
  std::uint8_t registered;
  std::uint8_t reservation;  // ReservationType; 0: none
  std::uint8_t unit_reserved;
  std::uint8_t write_cache;
  std::uint8_t kept;  // APTPL
  std::array<std::uint8_t, 3> reserved;
  std::uint64_t incarnation;  // DiskConfig's; 0: no disk
  std::uint64_t size_bytes;
  friend bool operator==(const LunRecord&, const LunRecord&) = default;
};

// What stands behind a LUN, by numbers that no other file or device of this host has.
struct MediumRecord {
  std::uint64_t device;
  std::uint64_t inode;
  std::uint64_t size_bytes;  // 0: no such LUN
};

struct SessionRecord {
  std::uint16_t version;
  std::uint8_t state;
  std::uint8_t sub_channels_created;
};

// At the region's begin; the slots follow, then the long lists of segments, `segments_max` a slot.
struct alignas(64) StorRecord {
  std::uint32_t slots;
  std::uint32_t segments_max;
  SessionRecord session;
  // Of a primary channel: changes of LUNs that the guest is to hear of; one notice will do for all.
  std::uint32_t notices_due;
  // Of a primary channel, for all of the controller's:
  std::array<LunRecord, kLunSlots> luns;
  std::array<MediumRecord, kLunSlots> media;
  std::array<std::uint32_t, kLunSlots> resets;  // of each LUN that are in hand, on whatever channel
};

}  // namespace vmbusd::storvsp
