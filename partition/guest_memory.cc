#include "partition/guest_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>

#include "partition/attach_protocol.h"

// The thread sanitizer's; null in other builds.
extern "C" [[gnu::weak]] void AnnotateBenignRaceSized(const char* file, int line,
                                                      const volatile void* address, std::size_t size,
                                                      const char* what);

namespace vmbusd::partition {

namespace {

// No x86 processor addresses more; keeps sums of addresses and sizes far from wrapping.
constexpr std::uint64_t kGpaEnd = std::uint64_t{1} << 52;

bool page_aligned(std::uint64_t value) {
  return value % kPageSize == 0;
}

// [begin, begin + size) lies below `end`.
bool fits(std::uint64_t begin, std::uint64_t size, std::uint64_t end) {
  return begin <= end && size <= end - begin;
}

// Maps what was checked before.
Result<std::byte*> map(int fd, std::uint64_t offset, std::uint64_t size, bool writable) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return fail_os(errno, "cannot examine the memory's descriptor");
  // A character device may map something of its own (/dev/zero: fresh memory for each mapping), sockets and
  // eventfds nothing.
  if (!S_ISREG(status.st_mode)) {
    return fail(Errc::kUnsupported, "the memory is neither a memfd nor a file, so it is not shareable");
  }
  // A page beyond the end would be SIGBUS later.
  if (status.st_size < 0 || !fits(offset, size, static_cast<std::uint64_t>(status.st_size))) {
    return fail(Errc::kMemory, "the region ends beyond the end of its descriptor");
  }
  struct statfs filesystem {};
  if (::fstatfs(fd, &filesystem) != 0) return fail_os(errno, "cannot examine the memory's file system");
  if (filesystem.f_type == HUGETLBFS_MAGIC) {
    // The kernel rounds a mapping's length up to its huge page, but unmaps whole ones only.
    const auto huge_page = static_cast<std::uint64_t>(filesystem.f_bsize);
    if (huge_page == 0 || offset % huge_page != 0 || size % huge_page != 0) {
      return fail(Errc::kMemory, "the region is not aligned to its huge page size");
    }
  }
  // A memfd that shrinks under the mapping would be SIGBUS too. Only memfds made with MFD_ALLOW_SEALING
  // take the seal; for the rest the VMM's word has to do, and it can hurt its own partition's worker only.
  static_cast<void>(::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));

  const int protection = PROT_READ | (writable ? PROT_WRITE : 0);
  void* const address =
      ::mmap(nullptr, size, protection, MAP_SHARED | MAP_NORESERVE, fd, static_cast<off_t>(offset));
  if (address == MAP_FAILED) {
    switch (errno) {
      case EACCES:
        return fail(Errc::kUnsupported, "the memory's descriptor is not open for reading and writing");
      case EPERM:
        return fail(Errc::kUnsupported, "the memory is sealed against shared mappings");
      case ENODEV:
        return fail(Errc::kUnsupported, "the memory's file system has no shared mappings");
      default:
        return fail_os(errno, "cannot map the memory");
    }
  }
  // A core dump of the daemon holds no guest's data, and a child that it might start inherits none. Both
  // cannot fail for a mapping of a regular file made just now; nothing depends on them.
  static_cast<void>(::madvise(address, size, MADV_DONTDUMP));
  static_cast<void>(::madvise(address, size, MADV_DONTFORK));
  // A guest that lends the same pages to two devices has two workers write there at once. It can tear its own
  // bytes only, so that is no race of ours.
  if (AnnotateBenignRaceSized != nullptr) {
    AnnotateBenignRaceSized(__FILE__, __LINE__, address, size, "guest memory");
  }
  return static_cast<std::byte*>(address);
}

}  // namespace

GuestMemory::~GuestMemory() {
  clear();
}

bool GuestMemory::valid_range(std::uint64_t gpa, std::uint64_t size) {
  return page_aligned(gpa) && page_aligned(size) && size != 0 && fits(gpa, size, kGpaEnd);
}

const GuestMemory::Region* GuestMemory::overlapped(std::uint64_t gpa, std::uint64_t size) const {
  for (const Region& region : regions_) {
    if (gpa < region.gpa + region.size && region.gpa < gpa + size) return &region;
  }
  return nullptr;
}

Result<void> GuestMemory::add(std::uint64_t gpa, std::uint64_t size, UniqueFd fd, std::uint64_t offset,
                              bool writable) {
  if (!valid_range(gpa, size)) {
    return fail(Errc::kMemory, "the region is empty, not page aligned, or above the address space");
  }
  // off_t is signed, and offset + size must not wrap.
  if (!page_aligned(offset) || !fits(offset, size, std::uint64_t{1} << 62)) {
    return fail(Errc::kMemory, "the region's offset is not page aligned, or too large");
  }
  if (overlapped(gpa, size) != nullptr) return fail(Errc::kMemory, "the region overlaps another");
  if (regions_.size() >= kMaxRegions) return fail(Errc::kLimit, "too many regions");
  VMBUSD_TRY(std::byte* const host, map(fd.get(), offset, size, writable));
  const auto after = std::find_if(regions_.begin(), regions_.end(),
                                  [gpa](const Region& region) { return region.gpa > gpa; });
  regions_.insert(after, Region{gpa, size, host, std::move(fd), offset, writable});
  return {};
}

Result<void> GuestMemory::remove(std::uint64_t gpa, std::uint64_t size) {
  const auto found = std::find_if(regions_.begin(), regions_.end(), [&](const Region& region) {
    return region.gpa == gpa && region.size == size;
  });
  if (found == regions_.end()) return fail(Errc::kMemory, "no region begins there with that size");
  ::munmap(found->host, found->size);
  regions_.erase(found);
  return {};
}

void GuestMemory::clear() {
  for (const Region& region : regions_) ::munmap(region.host, region.size);
  regions_.clear();
}

const GuestMemory::Region* GuestMemory::find(Gpn page) const {
  if (page >= kGpaEnd / kPageSize) return nullptr;
  const std::uint64_t gpa = page * kPageSize;
  for (const Region& region : regions_) {
    if (gpa >= region.gpa && gpa - region.gpa < region.size) return &region;
  }
  return nullptr;
}

}  // namespace vmbusd::partition
