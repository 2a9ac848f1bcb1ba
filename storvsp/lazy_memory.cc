#include "storvsp/lazy_memory.h"

#include <sys/mman.h>

#include <cerrno>

namespace vmbusd::storvsp {

LazyMemory::~LazyMemory() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Result<void> LazyMemory::reserve(std::size_t size_bytes) {
  void* const memory =
      ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return fail_os(errno, "cannot reserve memory");
  data_ = static_cast<std::byte*>(memory);
  size_ = size_bytes;
  return {};
}

}  // namespace vmbusd::storvsp
