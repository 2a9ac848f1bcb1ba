#include "storvsp/bounce_pool.h"

namespace vmbusd::storvsp {

Result<void> BouncePool::reserve(std::uint32_t buffer_bytes) {
  VMBUSD_CHECK(memory_.reserve(kBuffers * std::size_t{buffer_bytes}));
  for (std::size_t i = 0; i < kBuffers; ++i) give_back(memory_.data() + i * buffer_bytes);
  return {};
}

}  // namespace vmbusd::storvsp
