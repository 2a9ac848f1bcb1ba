// What a driver needs of its open channel, however that reaches the host.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "guest/ram.h"
#include "ringbuffer/incoming_ring.h"
#include "ringbuffer/outgoing_ring.h"

namespace vmbusd::guest {

// What should take milliseconds is waited for so long; sanitizers and busy machines are slow.
inline constexpr std::chrono::seconds kPatience{30};

// One thread.
class DriverChannel {
 public:
  virtual ~DriverChannel() = default;

  [[nodiscard]] virtual ring::OutgoingRing& to_host() = 0;
  [[nodiscard]] virtual ring::IncomingRing& from_host() = 0;
  // Publishes what was written and read, and rings the doorbell where the rules say so.
  [[nodiscard]] virtual Result<void> flush() = 0;
  // Sleeps until the host signals, at most `patience`; true where there is something to read. A signal that
  // finds nothing (room in the other ring) ends the sleep, too.
  [[nodiscard]] virtual Result<bool> wait(std::chrono::milliseconds patience) = 0;

  [[nodiscard]] virtual Ram& ram() = 0;
  // A GPADL over whole pages, for the device to use beside the rings.
  [[nodiscard]] virtual Result<std::uint32_t> lend(std::span<const Gpn> pages) = 0;
};

}  // namespace vmbusd::guest
