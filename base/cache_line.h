// For what one thread writes often and another must not wait for.
#pragma once

#include <cstddef>

namespace vmbusd {

// Objects aligned to it share no line with others. The standard's hardware_destructive_interference_size is
// not in clang 14, and g++ warns of it in headers.
inline constexpr std::size_t kCacheLineBytes = 64;

}  // namespace vmbusd
