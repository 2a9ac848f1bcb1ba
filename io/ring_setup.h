// What all io_urings of a worker have in common.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <span>

#include "base/result.h"

namespace vmbusd::io {

// Has a ring that was made with IORING_SETUP_R_DISABLED do these operations and take these flags of entries
// only, for good; everything else the kernel refuses with EACCES, so that a process which may not open a file
// cannot have its io_uring open one (Linux 5.10).
[[nodiscard]] Result<void> restrict_ring(const io_uring& ring, std::span<const std::uint8_t> opcodes,
                                         std::uint8_t entry_flags);
// From now on it takes entries. False where the kernel refuses.
[[nodiscard]] bool enable_ring(const io_uring& ring);

// What io_uring_enter may answer without an invariant of ours being broken, which it is where the kernel
// refuses the ring as such: want of resources.
[[nodiscard]] bool may_pass(int error);

}  // namespace vmbusd::io
