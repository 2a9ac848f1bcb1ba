// Back ends without a medium, for benchmarks and tests.
#pragma once

#include <cstdint>

#include "netvsp/backend.h"

namespace vmbusd::netvsp {

// Transmits into the void. With `receive_bytes` != 0 it invents broadcast-free frames of that size as fast as
// they are taken, addressed to whatever `destination` says (6 bytes, in order from bit 0 up).
[[nodiscard]] Backend make_null_backend(std::uint32_t queues, std::uint32_t receive_bytes,
                                        std::uint64_t destination);

// Each queue receives what it transmits, header included, as two guests on one bridge do. What finds no
// receive buffer is lost.
[[nodiscard]] Backend make_loopback_backend(std::uint32_t queues);

}  // namespace vmbusd::netvsp
