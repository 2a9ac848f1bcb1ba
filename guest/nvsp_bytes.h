// NVSP messages as a driver sends them.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>

#include "netvsp/nvsp.h"

namespace vmbusd::guest {

using NvspBytes = std::array<std::byte, netvsp::kNvspMessageSize>;

// At the size of the union that drivers send, zeros behind the message.
template <typename Message>
NvspBytes nvsp_bytes(const Message& message) {
  static_assert(sizeof message <= netvsp::kNvspMessageSize);
  NvspBytes bytes{};
  std::memcpy(bytes.data(), &message, sizeof message);
  return bytes;
}

}  // namespace vmbusd::guest
