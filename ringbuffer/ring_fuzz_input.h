// What the fuzz targets of both ring directions take out of their input.
#pragma once

#include <cstdint>

#include "fuzz/fuzz_target.h"

namespace vmbusd::ring {

struct RingInput : fuzz::Input {
  using fuzz::Input::Input;
  std::uint16_t half() { return static_cast<std::uint16_t>(byte() | byte() << 8); }
  // Every third value is any number at all; the rest are indices as a ring can have them.
  std::uint32_t index(std::uint32_t ring_size) {
    const std::uint16_t value = half();
    return value % 3 == 0 ? std::uint32_t{half()} << 16 | value : std::uint32_t{value} * 8 % ring_size;
  }
};

}  // namespace vmbusd::ring
