#include "vmm/memory_map.h"

namespace vmbusd::vmm {

std::vector<E820Entry> e820_map(std::uint64_t memory_size) {
  const std::uint64_t low_size = low_memory_size(memory_size);
  std::vector<E820Entry> map = {
      {0, kExtendedBiosDataGpa, kE820Ram},
      {kExtendedBiosDataGpa, kLowMemoryEnd - kExtendedBiosDataGpa, kE820Reserved},
      {kAcpiGpa, kHighMemoryGpa - kAcpiGpa, kE820Reserved},
      {kHighMemoryGpa, low_size - kHighMemoryGpa, kE820Ram},
  };
  if (memory_size > low_size) map.push_back({kHoleEnd, memory_size - low_size, kE820Ram});
  return map;
}

}  // namespace vmbusd::vmm
