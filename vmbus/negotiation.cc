#include "vmbus/negotiation.h"

#include <algorithm>
#include <array>
#include <bit>

namespace vmbusd::vmbus {
namespace {

// 0.13 is not among them: its guests signal through the interrupt page alone, which nobody here scans.
constexpr std::array kVersionsServed = {Version::k1_1, Version::k2_4, Version::k3_0, Version::k4_0,
                                        Version::k4_1, Version::k5_0, Version::k5_1, Version::k5_2,
                                        Version::k5_3, Version::k6_0};

bool monitor_pages_valid(const InitiateContact& message, const std::function<bool(Gpn)>& page_exists) {
  const std::uint64_t to_child = message.parent_to_child_monitor_gpa;
  const std::uint64_t to_parent = message.child_to_parent_monitor_gpa;
  if (to_child == 0 && to_parent == 0) return true;
  return to_child != 0 && to_parent != 0 && to_child % kPageBytes == 0 && to_parent % kPageBytes == 0 &&
         page_exists(to_child / kPageBytes) && page_exists(to_parent / kPageBytes);
}

}  // namespace

ContactOutcome negotiate(const ContactRequest& request, std::uint32_t vp_count,
                         const std::function<bool(Gpn)>& page_exists) {
  const InitiateContact& message = request.message;
  const Version version = message.version;
  ContactOutcome outcome;

  // An answer must always come, since Linux waits for it without bound: where the VP is no good, on VP 0.
  const bool names_vp = version >= Version::k3_0;
  if (names_vp && message.target_vp < vp_count) outcome.target_vp = message.target_vp;

  const auto refuse = [&outcome](const char* reason) {
    outcome.refusal = reason;
    return outcome;
  };
  if (std::find(kVersionsServed.begin(), kVersionsServed.end(), version) == kVersionsServed.end()) {
    return refuse("version not served");
  }
  const std::uint32_t connection_id =
      version >= Version::k5_0 ? kMessageConnectionFrom5 : kMessageConnectionBelow5;
  if (request.connection_id != connection_id) return refuse("version posted to the wrong connection id");
  if (names_vp && message.target_vp >= vp_count) return refuse("target VP does not exist");
  if (version >= Version::k5_0 && message.target.sint != kMessageSint) return refuse("SINT is not 2");
  if (version >= Version::k5_1 && message.target.vtl != 0) return refuse("VTL is not 0");

  // Hyper-V reports these as supported with a failure state; Linux reads only "supported", and would go on
  // with a connection that does not work. [linux: connection.c, vmbus_negotiate_version]
  if (!monitor_pages_valid(message, page_exists)) {
    if (version >= Version::k2_4) outcome.state = ConnectionState::kFailed;
    return refuse("monitor pages: one only, not page-aligned, or outside guest memory");
  }
  if (version < Version::k2_4) {
    const auto page = std::bit_cast<std::uint64_t>(message.target);
    if (page % kPageBytes != 0 || !page_exists(page / kPageBytes)) {
      return refuse("interrupt page outside guest memory");
    }
    outcome.interrupt_page = page;
  }
  outcome.monitor_page = message.child_to_parent_monitor_gpa;
  outcome.version = version;
  return outcome;
}

}  // namespace vmbusd::vmbus
