// Guest RAM as the daemon sees it: regions of guest-physical addresses, mapped from the VMM's descriptors.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace vmbusd::partition {

inline constexpr std::uint64_t kPageSize = 4096;  // of VMBus, whatever the guest's own is
using Gpn = std::uint64_t;                        // guest page number: GPA / kPageSize

// Changed by the control thread only, and only while every I/O worker of the partition is parked
// (io::park_all), so look-ups take no lock and no atomic. What is looked up is guest-controlled memory: it
// can change at any time.
class GuestMemory {
 public:
  struct Region {
    std::uint64_t gpa;
    std::uint64_t size;
    std::byte* host;  // guest-controlled
    UniqueFd fd;
    std::uint64_t offset;  // of the region in fd
    bool writable;
  };

  GuestMemory() = default;
  ~GuestMemory();
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;

  // Whether [gpa, gpa + size) can be a region at all: page aligned, not empty, inside the address space.
  [[nodiscard]] static bool valid_range(std::uint64_t gpa, std::uint64_t size);
  // The lowest region that shares a byte with this valid range, nullptr where there is none.
  [[nodiscard]] const Region* overlapped(std::uint64_t gpa, std::uint64_t size) const;

  // Maps `size` bytes of `fd` at `gpa`. All values page aligned. Errc::kMemory where it overlaps a region,
  // wraps or is beyond the descriptor's end, Errc::kUnsupported where it cannot be mapped shared (`fd` must
  // be shared memory: memfd, hugetlbfs, a file), Errc::kLimit where kMaxRegions are there.
  [[nodiscard]] Result<void> add(std::uint64_t gpa, std::uint64_t size, UniqueFd fd, std::uint64_t offset,
                                 bool writable);
  // Exactly a region that was added. The caller made sure that nothing uses it.
  [[nodiscard]] Result<void> remove(std::uint64_t gpa, std::uint64_t size);
  void clear();

  [[nodiscard]] std::span<const Region> regions() const { return regions_; }

  // The host address of [gpa, gpa + size), nullptr where that is not wholly inside one region. `size` may be
  // 0.
  [[nodiscard]] std::byte* translate(std::uint64_t gpa, std::uint64_t size) const {
    for (const Region& region : regions_) {
      if (gpa >= region.gpa && gpa - region.gpa < region.size && size <= region.size - (gpa - region.gpa)) {
        return region.host + (gpa - region.gpa);
      }
    }
    return nullptr;
  }
  // The same for a place that the daemon is going to write.
  [[nodiscard]] std::byte* translate_writable(std::uint64_t gpa, std::uint64_t size) const {
    for (const Region& region : regions_) {
      if (gpa >= region.gpa && gpa - region.gpa < region.size && size <= region.size - (gpa - region.gpa)) {
        return region.writable ? region.host + (gpa - region.gpa) : nullptr;
      }
    }
    return nullptr;
  }
  // The region that holds the page, for those who map it anew; nullptr where there is none.
  [[nodiscard]] const Region* find(Gpn page) const;

 private:
  std::vector<Region> regions_;  // at most kMaxRegions, sorted by gpa
};

}  // namespace vmbusd::partition
