// The MC146818 clock in the part that a kernel reads at boot: time and date of the host, in UTC. It has no
// alarm, and setting it has no effect.
#pragma once

#include <cstdint>
#include <ctime>

namespace vmbusd::vmm {

// Not thread-safe: its owner locks.
class Rtc {
 public:
  void select(std::uint8_t index) { index_ = index & 0x7f; }  // bit 7 masks NMIs
  // The selected register at `now`, seconds since the epoch.
  [[nodiscard]] std::uint8_t read(std::time_t now) const;

 private:
  std::uint8_t index_ = 0;
};

}  // namespace vmbusd::vmm
