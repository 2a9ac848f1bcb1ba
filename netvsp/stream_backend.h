// A stream socket as back end, in QEMU's framing: each frame behind its length, u32 big-endian. passt speaks
// it and gives a guest the host's network without privilege.
#pragma once

#include "base/fd.h"
#include "base/result.h"
#include "netvsp/backend.h"

namespace vmbusd::netvsp {

// Errc::kConfig: not a connected SOCK_STREAM socket.
[[nodiscard]] Result<void> prepare_stream(int fd);

// `fd`: prepared, or none: one follows by replace(). Checksums are completed and large sends cut up in
// software.
[[nodiscard]] Backend make_stream_backend(UniqueFd fd);

}  // namespace vmbusd::netvsp
