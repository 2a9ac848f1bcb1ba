// VMBUSD_ASSERT: an invariant of ours, checked in release builds too. Never for anything that a guest, a VMM,
// an operator or the host can cause.
#pragma once

namespace vmbusd {
[[noreturn]] void assertion_failed(const char* condition, const char* file, int line);
}  // namespace vmbusd

#define VMBUSD_ASSERT(condition)                       \
  (static_cast<bool>(condition) ? static_cast<void>(0) \
                                : ::vmbusd::assertion_failed(#condition, __FILE__, __LINE__))
