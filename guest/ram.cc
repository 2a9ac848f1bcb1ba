#include "guest/ram.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/assert.h"

namespace vmbusd::guest {

Pages::Pages(Pages&& other) noexcept
    : ram_(std::exchange(other.ram_, nullptr)), gpns_(std::exchange(other.gpns_, {})) {}

Pages& Pages::operator=(Pages&& other) noexcept {
  if (this == &other) return *this;
  release();
  ram_ = std::exchange(other.ram_, nullptr);
  gpns_ = std::exchange(other.gpns_, {});
  return *this;
}

std::byte* Pages::host(std::size_t page) const {
  return ram_->host(gpa(page));
}

void Pages::write(std::size_t offset, std::span<const std::byte> from) const {
  VMBUSD_ASSERT(offset + from.size() <= bytes());
  while (!from.empty()) {
    const std::size_t size = std::min(from.size(), kPageSize - offset % kPageSize);
    std::memcpy(host(offset / kPageSize) + offset % kPageSize, from.data(), size);
    from = from.subspan(size);
    offset += size;
  }
}

void Pages::read(std::size_t offset, std::span<std::byte> into) const {
  VMBUSD_ASSERT(offset + into.size() <= bytes());
  while (!into.empty()) {
    const std::size_t size = std::min(into.size(), kPageSize - offset % kPageSize);
    std::memcpy(into.data(), host(offset / kPageSize) + offset % kPageSize, size);
    into = into.subspan(size);
    offset += size;
  }
}

void Pages::release() {
  if (!gpns_.empty()) ram_->give(gpns_);
  gpns_.clear();
}

Result<std::unique_ptr<Ram>> Ram::create(std::uint64_t bytes) {
  VMBUSD_ASSERT(bytes % kPageSize == 0 && bytes != 0);
  UniqueFd fd(::memfd_create("guest-ram", MFD_CLOEXEC));
  if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return fail_os(errno, "cannot create guest memory");
  }
  void* const base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (base == MAP_FAILED) return fail_os(errno, "cannot map guest memory");
  return std::unique_ptr<Ram>(new Ram(std::move(fd), static_cast<std::byte*>(base), bytes));
}

Ram::Ram(UniqueFd fd, std::byte* base, std::uint64_t bytes)
    : fd_(std::move(fd)), base_(base), used_(bytes / kPageSize) {
  used_[0] = true;
}

Ram::~Ram() {
  ::munmap(base_, size());
}

Result<Pages> Ram::take(std::size_t count, Layout layout) {
  const std::lock_guard lock(mutex_);
  std::vector<Gpn> gpns = layout == Layout::kContiguous ? find_contiguous(count) : find_scattered(count);
  if (gpns.size() != count) return fail(Errc::kMemory, "guest memory is used up");
  for (const Gpn gpn : gpns) {
    used_[gpn] = true;
    std::memset(base_ + gpn * kPageSize, 0, kPageSize);
  }
  return Pages(*this, std::move(gpns));
}

std::vector<Gpn> Ram::find_contiguous(std::size_t count) const {
  std::vector<Gpn> run;
  for (Gpn gpn = 0; gpn < used_.size() && run.size() < count; ++gpn) {
    if (used_[gpn]) {
      run.clear();
    } else {
      run.push_back(gpn);
    }
  }
  return run;
}

// In falling order, so that no page follows the one before it.
std::vector<Gpn> Ram::find_scattered(std::size_t count) const {
  std::vector<Gpn> found;
  for (Gpn gpn = used_.size(); gpn-- > 0 && found.size() < count;) {
    if (!used_[gpn]) found.push_back(gpn);
  }
  return found;
}

void Ram::give(std::span<const Gpn> gpns) {
  const std::lock_guard lock(mutex_);
  for (const Gpn gpn : gpns) used_[gpn] = false;
}

}  // namespace vmbusd::guest
