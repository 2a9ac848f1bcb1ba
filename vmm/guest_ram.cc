#include "vmm/guest_ram.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "vmm/memory_map.h"

namespace vmbusd::vmm {

Result<GuestRam> GuestRam::create(std::uint64_t size, bool hugepages) {
  const std::uint64_t unit = hugepages ? 2 * kMiB : kMiB;
  if (size < kMemorySizeMin || size > kMemorySizeMax || size % unit != 0) {
    return fail(Errc::kConfig, "guest memory size is out of range or not a multiple of its unit");
  }
  GuestRam ram;
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (hugepages ? MFD_HUGETLB | MFD_HUGE_2MB : 0u);
  ram.fd_.reset(::memfd_create("guest-ram", flags));
  if (!ram.fd_) return fail_os(errno, "cannot create the guest's memory");
  if (::ftruncate(ram.fd_.get(), static_cast<off_t>(size)) != 0) {
    return fail_os(errno, "cannot size the guest's memory");
  }
  if (::fcntl(ram.fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return fail_os(errno, "cannot seal the guest's memory");
  }
  void* const host = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd_.get(), 0);
  if (host == MAP_FAILED) {
    return fail_os(errno, hugepages
                              ? "cannot map the guest's memory; --hugepages wants as many pages of 2 MiB "
                                "(sysctl vm.nr_hugepages)"
                              : "cannot map the guest's memory");
  }
  ram.host_ = static_cast<std::byte*>(host);
  ram.size_ = size;
  // Both are wishes. Core dumps without guest secrets; large pages where shared memory may have them.
  (void)::madvise(host, size, MADV_DONTDUMP);
  (void)::madvise(host, size, MADV_HUGEPAGE);

  const std::uint64_t low_size = low_memory_size(size);
  ram.regions_[ram.region_count_++] = {0, low_size, ram.host_, 0};
  if (size > low_size) {
    ram.regions_[ram.region_count_++] = {kHoleEnd, size - low_size, ram.host_ + low_size, low_size};
  }
  return ram;
}

GuestRam::~GuestRam() {
  if (host_ != nullptr) ::munmap(host_, size_);
}

GuestRam::GuestRam(GuestRam&& other) noexcept
    : fd_(std::move(other.fd_)),
      host_(std::exchange(other.host_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      regions_(other.regions_),
      region_count_(std::exchange(other.region_count_, 0)) {}

std::span<std::byte> GuestRam::at(std::uint64_t gpa, std::uint64_t size) const {
  for (const Region& region : regions()) {
    if (gpa < region.gpa || gpa - region.gpa >= region.size) continue;
    const std::uint64_t offset = gpa - region.gpa;
    if (size > region.size - offset) return {};
    return {region.host + offset, size};
  }
  return {};
}

}  // namespace vmbusd::vmm
