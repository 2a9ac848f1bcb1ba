// Choices out of the bytes of a fuzz input.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fuzz/fuzz_target.h"

namespace vmbusd::storvsp {

class FuzzInput : public fuzz::Input {
 public:
  using fuzz::Input::Input;

  // 0 <= value < bound <= 65536.
  std::size_t below(std::size_t bound) {
    std::size_t value = byte();
    if (bound > 256) value = value << 8 | byte();
    return value % bound;
  }
  std::uint64_t word() {
    std::uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return value;
  }
};

}  // namespace vmbusd::storvsp
