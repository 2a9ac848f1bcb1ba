#include "partition/attach_status.h"

#include <algorithm>

namespace vmbusd::partition {

Error error_of(AttachStatus status, std::int32_t os_error) {
  switch (status) {
    case AttachStatus::kMalformed:
      return {Errc::kProtocol, 0, "refused as malformed"};
    case AttachStatus::kVersion:
      return {Errc::kUnsupported, 0, "the peer speaks another version of the attach protocol"};
    case AttachStatus::kState:
      return {Errc::kWrongState, 0, "refused in this state"};
    case AttachStatus::kInvalid:
      return {Errc::kBadMessage, 0, "a field is out of its range"};
    case AttachStatus::kOverlap:
      return {Errc::kMemory, 0, "the region overlaps another"};
    case AttachStatus::kNotShareable:
      return {Errc::kMemory, 0, "the memory is not shareable"};
    case AttachStatus::kNotFound:
      return {Errc::kBadMessage, 0, "no such region, VP or connection id"};
    case AttachStatus::kLimit:
      return {Errc::kLimit, 0, "too many regions, VPs, connections or requests"};
    case AttachStatus::kOk:
    case AttachStatus::kFailed:
      break;
  }
  return {Errc::kOs, std::max(os_error, 0), "the peer's system refused"};
}

std::array<char, kAttachTextSize> to_text_field(std::string_view text) {
  std::array<char, kAttachTextSize> field{};
  std::copy_n(text.begin(), std::min(text.size(), field.size() - 1), field.begin());
  return field;
}

std::string from_text_field(const std::array<char, kAttachTextSize>& field) {
  std::string text(field.begin(), std::find(field.begin(), field.end(), '\0'));
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return text;
}

}  // namespace vmbusd::partition
