// RNDIS control messages: a request's bytes in, the reply's bytes out. No I/O, no guest memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "netvsp/nic_state.h"
#include "netvsp/oid.h"
#include "netvsp/rndis.h"

namespace vmbusd::netvsp {

// The longest request that is read. Linux keeps its requests inside a page.
inline constexpr std::size_t kControlRequestMax = 4096;
// The longest message that we send; each fits into one sub-allocation of the receive buffer.
inline constexpr std::size_t kControlMessageMax = sizeof(RndisQueryComplete) + kOidAnswerMax;

struct ControlOutcome {
  bool well_formed = true;     // false: nothing was done; the NVSP completion says so
  std::size_t reply_size = 0;  // 0: the request has no reply
  std::uint32_t changes = 0;   // k*Changed
  bool halted = false;         // the driver goes away: no more data
};

// Handles `request`, a private copy, and writes the reply to `reply` (at least kControlMessageMax bytes).
[[nodiscard]] ControlOutcome handle_control(NicState& state, const CounterSource& counters,
                                            std::span<const std::byte> request, std::span<std::byte> reply);

// Writes an INDICATE_STATUS to `out` (at least kControlMessageMax bytes; `data` at most kOidAnswerMax);
// returns its size.
[[nodiscard]] std::size_t make_indication(RndisStatus status, std::span<const std::byte> data,
                                          std::span<std::byte> out);

}  // namespace vmbusd::netvsp
