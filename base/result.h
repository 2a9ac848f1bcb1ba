// Result<T>, the way every fallible function in this code base reports failure.
#pragma once

#include <cstdint>
#include <tl/expected.hpp>
#include <utility>

namespace vmbusd {

// Who is at fault decides what happens next; see the table in docs/threat-model.md.
enum class Errc : std::uint8_t {
  kBadPacket,    // guest: a ring packet's framing is malformed
  kRingCorrupt,  // guest: a shared ring index cannot be trusted
  kBadGpadl,     // guest: GPADL unknown, malformed or outside guest memory
  kBadMessage,   // guest: a control message is malformed
  kWrongState,   // guest or VMM: a request that this state does not allow
  kUnsupported,  // peer asked for something that we do not do
  kLimit,        // a documented bound is reached
  kProtocol,     // VMM: the attach protocol was broken
  kMemory,       // a guest memory region is missing, overlaps or cannot be shared
  kOs,           // host: a system call failed; os_error says how
  kClosed,       // the peer closed the connection
  kConfig,       // operator: configuration or command line
};

// Cheap to copy and free to make: `text` has static storage. Text that needs composing (configuration, API)
// is built where the operator is answered.
struct Error {
  Errc code;
  int os_error;      // errno value, 0 where no system call was involved
  const char* text;  // static, one clause, no full stop
};

template <typename T>
using Result = tl::expected<T, Error>;

[[nodiscard]] inline tl::unexpected<Error> fail(Errc code, const char* text) {
  return tl::unexpected<Error>(Error{code, 0, text});
}

// `os_error` is an errno value, positive.
[[nodiscard]] inline tl::unexpected<Error> fail_os(int os_error, const char* text) {
  return tl::unexpected<Error>(Error{Errc::kOs, os_error, text});
}

}  // namespace vmbusd

#define VMBUSD_CONCAT_(a, b) a##b
#define VMBUSD_CONCAT(a, b) VMBUSD_CONCAT_(a, b)

// VMBUSD_TRY(const auto page, map(gpa)): binds the value, or returns the error from the enclosing function.
#define VMBUSD_TRY(decl, expr)                                             \
  auto VMBUSD_CONCAT(try_result_, __LINE__) = (expr);                      \
  if (!VMBUSD_CONCAT(try_result_, __LINE__))                               \
    return ::tl::unexpected(VMBUSD_CONCAT(try_result_, __LINE__).error()); \
  decl = std::move(*VMBUSD_CONCAT(try_result_, __LINE__))

// The same for Result<void>.
#define VMBUSD_CHECK(expr)                                          \
  do {                                                              \
    auto try_result_ = (expr);                                      \
    if (!try_result_) return ::tl::unexpected(try_result_.error()); \
  } while (false)
