// Opens what is behind a NIC.
#pragma once

#include <string>

#include "daemon/config.h"

namespace vmbusd::daemon {

// Fills `nic.fds` with what `source` names: a TAP's queues, a socket to a peer, descriptors that vmbusd was
// started with. On failure a sentence for the operator; empty on success, also for back ends without
// descriptors.
[[nodiscard]] std::string open_nic_source(const NicSource& source, netvsp::NicConfig& nic);

}  // namespace vmbusd::daemon
