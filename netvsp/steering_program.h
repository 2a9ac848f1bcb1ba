// The program by which the kernel picks the queue for each frame that a TAP receives, and the table that it
// goes by. Loading it takes a privilege, changing the table takes the table's descriptor only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/fd.h"
#include "base/result.h"
#include "netvsp/ndis.h"
#include "netvsp/toeplitz.h"

namespace vmbusd::netvsp {

// The map's one value, which lies in memory that the kernel and a worker process share. All zero: every frame
// goes to queue 0.
struct SteeringTable {
  std::uint32_t hash_types;  // kHash* without the function: over which fields frames are hashed; 0: none is
  std::uint32_t entries;     // of `queues` that are in use; not 0 where there are hash types
  std::array<std::uint32_t, kRssIndirectionEntriesMax> queues;  // of the TAP, by hash modulo `entries`
  std::array<ToeplitzBytes, kToeplitzInputMax> toeplitz;        // of the guest's key
};
static_assert(std::is_trivially_copyable_v<SteeringTable> && std::is_standard_layout_v<SteeringTable>);

struct SteeringProgram {
  UniqueFd table;    // BPF map that can be mapped: a SteeringTable
  UniqueFd program;  // goes by it
};

// Errc::kOs, EPERM as a rule: unprivileged users may not load programs (kernel.unprivileged_bpf_disabled),
// and this one has neither CAP_BPF nor CAP_SYS_ADMIN.
[[nodiscard]] Result<SteeringProgram> load_steering_program();

// Has SteeringProgram::program steer what the TAP receives, in place of any other. `tap`: the descriptor of a
// queue that is attached. Holds until another replaces it or the interface goes, whoever closes what.
// Errc::kOs.
[[nodiscard]] Result<void> steer_tap(int tap, int program);
// Gives the choice back to the kernel.
void stop_steering_tap(int tap);

}  // namespace vmbusd::netvsp
