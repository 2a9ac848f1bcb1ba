// What the host makes of an INITIATE_CONTACT. No state: the same request always gets the same outcome.
#pragma once

#include <cstdint>
#include <functional>

#include "vmbus/protocol.h"
#include "vmbus/server.h"

namespace vmbusd::vmbus {

// We grant no optional feature of 6.0; none is always a right answer.
inline constexpr std::uint32_t kFeaturesGranted = 0;

struct ContactRequest {
  InitiateContact message;
  std::uint32_t connection_id;  // that it was posted to
};

struct ContactOutcome {
  Version version = Version::kNone;  // kNone: refused
  std::uint32_t target_vp = 0;       // takes the host's messages, this answer included
  std::uint64_t interrupt_page = 0;  // GPA, below 2.4 only
  std::uint64_t monitor_page = 0;    // GPA of the one by which the guest signals; 0: it has none
  ConnectionState state = ConnectionState::kOk;
  const char* refusal = nullptr;  // why, static text
};

// `page_exists` tells whether a GPN lies in guest memory.
[[nodiscard]] ContactOutcome negotiate(const ContactRequest& request, std::uint32_t vp_count,
                                       const std::function<bool(Gpn)>& page_exists);

}  // namespace vmbusd::vmbus
