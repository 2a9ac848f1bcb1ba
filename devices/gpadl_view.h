// Guest memory of a GPADL as the host sees it.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "partition/guest_memory.h"
#include "ringbuffer/ring_memory.h"
#include "vmbus/server.h"

namespace vmbusd::devices {

// The concatenation of a GPADL's ranges as one linear buffer of host memory pieces. Valid while the GPADL is
// lent and guest memory is not changed. Immutable, so any thread may use it. Content is guest-controlled.
class GpadlView {
 public:
  // Errc::kBadGpadl where a page is not in (writable) guest memory.
  [[nodiscard]] static Result<GpadlView> make(const partition::GuestMemory& memory,
                                              const vmbus::Gpadl& gpadl);

  [[nodiscard]] std::uint64_t size() const { return size_; }
  // The longest contiguous piece that starts at `offset` (< size()), at most `length` bytes.
  [[nodiscard]] std::span<std::byte> piece(std::uint64_t offset, std::uint64_t length) const;
  // Copies; [offset, offset + size) must lie inside.
  void copy_in(std::uint64_t offset, std::span<const std::byte> bytes) const;
  void copy_out(std::uint64_t offset, std::span<std::byte> bytes) const;

 private:
  struct Piece {
    std::uint64_t offset;  // in the buffer
    std::byte* host;       // guest-controlled
    std::uint64_t size;
  };
  std::vector<Piece> pieces_;  // by offset; pages that follow each other in the host's memory are one
  std::uint64_t size_ = 0;
};

// The two rings of a ring GPADL.
struct RingPair {
  ring::RingMemory incoming;
  ring::RingMemory outgoing;
};

// `incoming_pages` as OPENCHANNEL has it. Errc::kBadGpadl where the GPADL is not one page-aligned range, a
// page is missing from guest memory or a ring has less than two pages.
[[nodiscard]] Result<RingPair> make_rings(const partition::GuestMemory& memory, const vmbus::Gpadl& gpadl,
                                          std::uint32_t incoming_pages);

}  // namespace vmbusd::devices
