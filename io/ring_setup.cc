#include "io/ring_setup.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

namespace vmbusd::io {

namespace {

// The last two are not known to a kernel before 5.18.
constexpr std::uint8_t kAllowedRegistrations[] = {
    IORING_REGISTER_ENABLE_RINGS,
    IORING_REGISTER_RING_FDS,
    IORING_UNREGISTER_RING_FDS,
};
constexpr std::size_t kNewRegistrations = 2;

// liburing 2.3 declares functions for these two but its library does not export them. 0 or an errno value.
int register_with(const io_uring& ring, unsigned what, const void* argument, std::size_t count) {
  return ::syscall(__NR_io_uring_register, ring.ring_fd, what, argument, count) == 0 ? 0 : errno;
}

}  // namespace

Result<void> restrict_ring(const io_uring& ring, std::span<const std::uint8_t> opcodes,
                           std::uint8_t entry_flags) {
  std::vector<io_uring_restriction> allowed;
  for (const std::uint8_t opcode : opcodes) {
    io_uring_restriction& next = allowed.emplace_back();
    next.opcode = IORING_RESTRICTION_SQE_OP;
    next.sqe_op = opcode;
  }
  if (entry_flags != 0) {
    io_uring_restriction& next = allowed.emplace_back();
    next.opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    next.sqe_flags = entry_flags;
  }
  for (const std::uint8_t registration : kAllowedRegistrations) {
    io_uring_restriction& next = allowed.emplace_back();
    next.opcode = IORING_RESTRICTION_REGISTER_OP;
    next.register_op = registration;
  }
  int refused = register_with(ring, IORING_REGISTER_RESTRICTIONS, allowed.data(), allowed.size());
  if (refused == EINVAL) {
    refused =
        register_with(ring, IORING_REGISTER_RESTRICTIONS, allowed.data(), allowed.size() - kNewRegistrations);
  }
  if (refused != 0) return fail_os(refused, "io_uring takes no restrictions");
  return {};
}

bool enable_ring(const io_uring& ring) {
  return register_with(ring, IORING_REGISTER_ENABLE_RINGS, nullptr, 0) == 0;
}

bool may_pass(int error) {
  return error == EINTR || error == EAGAIN || error == EBUSY || error == ENOMEM || error == ETIME;
}

}  // namespace vmbusd::io
