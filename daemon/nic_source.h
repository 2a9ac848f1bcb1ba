// Opens what is behind a NIC.
#pragma once

#include <optional>
#include <string>

#include "daemon/config.h"

namespace vmbusd::daemon {

struct SourceProblem {
  std::string text;             // a sentence for the operator
  bool peer_is_absent = false;  // nobody listens at the socket (yet)
  bool in_use = false;          // another program has the TAP
};

// Fills `nic.fds`, which is empty, with what `source` names: a TAP's queues, a socket to a peer, descriptors
// that vmbusd was started with. Nothing for back ends without descriptors. Never blocks. Empty on success;
// `nic.fds` stays empty otherwise.
[[nodiscard]] std::optional<SourceProblem> open_nic_source(const NicSource& source, netvsp::NicConfig& nic);

// Whether nic.fds still lead to an interface; true for back ends without.
[[nodiscard]] bool interface_is_there(const netvsp::NicConfig& nic);

}  // namespace vmbusd::daemon
