// The header in front of every frame of a TAP opened with IFF_VNET_HDR. Wire struct and constants only.
// Facts from [linux: include/uapi/linux/virtio_net.h; virtio 1.2: 5.1.6 Device Operation].
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/wire.h"

namespace vmbusd::netvsp {

inline constexpr std::uint8_t kVirtioNeedsChecksum =
    1;                                               // the sum from checksum_start is to be stored at +offset
inline constexpr std::uint8_t kVirtioDataValid = 2;  // the sums were checked and are good

inline constexpr std::uint8_t kVirtioGsoNone = 0;
inline constexpr std::uint8_t kVirtioGsoTcpIpv4 = 1;
inline constexpr std::uint8_t kVirtioGsoTcpIpv6 = 4;
inline constexpr std::uint8_t kVirtioGsoEcn = 0x80;  // beside a type: CWR is set on the first segment

struct VirtioNetHeader {
  std::uint8_t flags;
  std::uint8_t gso_type;
  std::uint16_t header_length;
  std::uint16_t gso_size;
  std::uint16_t checksum_start;
  std::uint16_t checksum_offset;
};
static_assert(kIsWire<VirtioNetHeader, 10>);
static_assert(offsetof(VirtioNetHeader, header_length) == 2 && offsetof(VirtioNetHeader, gso_size) == 4 &&
              offsetof(VirtioNetHeader, checksum_start) == 6 &&
              offsetof(VirtioNetHeader, checksum_offset) == 8);

}  // namespace vmbusd::netvsp
