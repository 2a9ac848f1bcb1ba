// A TAP device as back end: a descriptor per queue, virtio_net_hdr before each frame.
#pragma once

#include <memory>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "netvsp/backend.h"

namespace vmbusd::netvsp {

// Checks a TAP's descriptor and makes it ready for io_uring: non-blocking, little-endian headers of 10 bytes.
// Errc::kConfig: no TAP, or without IFF_VNET_HDR; Errc::kOs: the kernel refuses.
[[nodiscard]] Result<void> prepare_tap(int fd);

// `fds`: prepared, of one device; may be empty, then `queues` of them follow by replace().
[[nodiscard]] Backend make_tap_backend(std::vector<UniqueFd> fds, std::uint32_t queues,
                                       std::shared_ptr<TapSteering> steering);

}  // namespace vmbusd::netvsp
