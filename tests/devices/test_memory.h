// Guest memory for tests: one memfd, mapped by the test as the guest and by GuestMemory as the host.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "base/assert.h"
#include "base/fd.h"
#include "partition/guest_memory.h"

namespace vmbusd::devices {

class TestMemory {
 public:
  // `pages` of RAM from guest page 0 on.
  explicit TestMemory(std::uint64_t pages)
      : size_(pages * partition::kPageSize), fd_(memfd_create("test-memory", MFD_CLOEXEC)) {
    VMBUSD_ASSERT(fd_ && ftruncate(fd_.get(), static_cast<off_t>(size_)) == 0);
    void* const mapped = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    VMBUSD_ASSERT(mapped != MAP_FAILED);
    guest_ = static_cast<std::byte*>(mapped);
  }
  ~TestMemory() { munmap(guest_, size_); }
  TestMemory(const TestMemory&) = delete;
  TestMemory& operator=(const TestMemory&) = delete;

  [[nodiscard]] std::byte* page(partition::Gpn page) const { return guest_ + page * partition::kPageSize; }
  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] UniqueFd fd() const { return UniqueFd(dup(fd_.get())); }
  void add_to(partition::GuestMemory& memory, bool writable = true) const {
    VMBUSD_ASSERT(memory.add(0, size_, fd(), 0, writable).has_value());
  }

 private:
  std::uint64_t size_;
  UniqueFd fd_;
  std::byte* guest_;
};

}  // namespace vmbusd::devices
