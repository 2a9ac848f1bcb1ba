// What both halves of the attach protocol make of an answer's status and text.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "partition/attach_protocol.h"

namespace vmbusd::partition {

// The error that a requester reports for an answer other than kOk. A status unknown to us (a later minor
// version's) counts as kFailed.
[[nodiscard]] Error error_of(AttachStatus status, std::int32_t os_error);

// Cut where it does not fit; always NUL-terminated, the rest of the field zeroed.
[[nodiscard]] std::array<char, kAttachTextSize> to_text_field(std::string_view text);
// The peer's words, fit for a log or a terminal: ends at the first NUL, control characters and anything but
// ASCII become '?'.
[[nodiscard]] std::string from_text_field(const std::array<char, kAttachTextSize>& field);

}  // namespace vmbusd::partition
