#include "storvsp/bounce_pool.h"

#include <algorithm>

namespace vmbusd::storvsp {

Result<void> BouncePool::reserve(std::uint32_t buffer_bytes, std::size_t count) {
  count = std::clamp<std::size_t>(count, 1, kBuffersMax);
  VMBUSD_CHECK(memory_.reserve(count * buffer_bytes));
  for (std::size_t i = 0; i < count; ++i) give_back(memory_.data() + i * buffer_bytes);
  return {};
}

}  // namespace vmbusd::storvsp
