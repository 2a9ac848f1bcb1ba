// Memory that is reserved at once and taken from the system page by page, when first touched.
#pragma once

#include <cstddef>

#include "base/result.h"

namespace vmbusd::storvsp {

class LazyMemory {
 public:
  LazyMemory() = default;
  ~LazyMemory();
  LazyMemory(const LazyMemory&) = delete;
  LazyMemory& operator=(const LazyMemory&) = delete;

  // Once. `size_bytes` > 0. Zeroed, page aligned. Errc::kOs where the kernel refuses.
  [[nodiscard]] Result<void> reserve(std::size_t size_bytes);
  // nullptr before reserve().
  [[nodiscard]] std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace vmbusd::storvsp
