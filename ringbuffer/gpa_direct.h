// Parsing of a GPA-direct packet's range list.
#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "ringbuffer/incoming_ring.h"
#include "ringbuffer/protocol.h"

namespace vmbusd::ring {

// One run of guest memory: part of a page, or pages that follow each other in guest-physical memory.
struct GpaSegment {
  std::uint64_t gpa;
  std::uint64_t size;  // bytes
};

struct GpaList {
  std::uint32_t segments;  // written to the caller's array
  std::uint64_t total_bytes;
};

// A physical address has 52 bits at most, so page numbers have 40 and no sum below overflows.
inline constexpr std::uint64_t kMaxPageNumber = (std::uint64_t{1} << 40) - 1;

// Reads the ranges of `packet` (type kGpaDirect) out of the ring, each word once, and writes their
// concatenation as segments into `out`, merging pages that follow each other. Errc::kBadPacket where ranges
// leave the extension, are empty, start beyond a page, are more than `max_ranges` or need more segments than
// `out` has; Errc::kLimit where they hold more than `max_bytes`. Page numbers are not checked against guest
// memory here, only that they are <= kMaxPageNumber.
[[nodiscard]] Result<GpaList> read_gpa_list(const IncomingRing& ring, const Packet& packet,
                                            std::uint32_t max_ranges, std::uint64_t max_bytes,
                                            std::span<GpaSegment> out);

}  // namespace vmbusd::ring
