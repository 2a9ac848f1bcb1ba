#include "ringbuffer/ring_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/assert.h"

namespace vmbusd::ring {
namespace {

std::atomic<std::uint32_t> mappings_in_use{0};

bool take_mappings(std::uint32_t count) {
  // Relaxed: a budget, which orders nothing.
  std::uint32_t used = mappings_in_use.load(std::memory_order_relaxed);
  do {
    if (count > RingMemory::kMaxMappings - used) return false;
  } while (!mappings_in_use.compare_exchange_weak(used, used + count, std::memory_order_relaxed));
  return true;
}

void give_mappings(std::uint32_t count) {
  mappings_in_use.fetch_sub(count, std::memory_order_relaxed);
}

bool follows_in_file(const RingMemory::MappedPage& page, const RingMemory::MappedPage& next) {
  return page.fd == next.fd && page.offset + static_cast<off_t>(kPageSize) == next.offset;
}

// The number of pages, from `first` on, that one mapping covers.
std::size_t run_length(std::span<const RingMemory::MappedPage> pages, std::size_t first) {
  std::size_t count = 1;
  while (first + count < pages.size() && follows_in_file(pages[first + count - 1], pages[first + count]))
    ++count;
  return count;
}

void assert_size(std::uint64_t size) {
  VMBUSD_ASSERT(size >= kPageSize && size % kPageSize == 0 && size <= RingMemory::kMaxSize);
}

}  // namespace

RingMemory RingMemory::plain(ControlPage* control, std::byte* data, std::uint32_t size) {
  assert_size(size);
  RingMemory memory;
  memory.control_ = control;
  memory.linear_ = data;
  memory.size_ = size;
  memory.linear_limit_ = size;
  return memory;
}

RingMemory RingMemory::mirrored(ControlPage* control, std::byte* data, std::uint32_t size) {
  RingMemory memory = plain(control, data, size);
  memory.linear_limit_ = 2 * size;
  return memory;
}

RingMemory RingMemory::segmented(ControlPage* control, std::vector<std::byte*> pages) {
  assert_size(std::uint64_t{pages.size()} * kPageSize);
  RingMemory memory;
  memory.control_ = control;
  memory.size_ = static_cast<std::uint32_t>(pages.size() * kPageSize);
  memory.pages_ = std::move(pages);
  return memory;
}

Result<RingMemory> RingMemory::make_mirrored(ControlPage* control, std::span<const MappedPage> pages) {
  const std::size_t size = pages.size() * kPageSize;
  assert_size(size);
  std::uint32_t mappings = 0;
  for (std::size_t page = 0; page < pages.size(); page += run_length(pages, page)) mappings += 2;
  if (!take_mappings(mappings)) return fail(Errc::kLimit, "the ring's pages need too many mappings");

  void* const reservation =
      ::mmap(nullptr, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reservation == MAP_FAILED) {
    const int error = errno;
    give_mappings(mappings);
    return fail_os(error, "cannot reserve addresses for a ring");
  }
  // From here on the result owns the reservation, so that returning an error undoes all.
  RingMemory memory =
      mirrored(control, static_cast<std::byte*>(reservation), static_cast<std::uint32_t>(size));
  memory.owned_ = memory.linear_;
  memory.mappings_ = mappings;

  for (std::size_t page = 0; page < pages.size();) {
    const std::size_t run = run_length(pages, page);
    for (std::byte* const half : {memory.linear_, memory.linear_ + size}) {
      if (::mmap(half + page * kPageSize, run * kPageSize, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_FIXED | MAP_POPULATE, pages[page].fd, pages[page].offset) == MAP_FAILED) {
        return fail_os(errno, "cannot map a ring's pages");
      }
    }
    page += run;
  }
  return memory;
}

RingMemory RingMemory::best(ControlPage* control, std::span<const MappedPage> pages) {
  if (Result<RingMemory> memory = make_mirrored(control, pages)) return std::move(*memory);
  const auto follows_in_host = [](const MappedPage& page, const MappedPage& next) {
    return page.host + kPageSize == next.host;
  };
  const bool contiguous =
      std::adjacent_find(pages.begin(), pages.end(), [&](const MappedPage& page, const MappedPage& next) {
        return !follows_in_host(page, next);
      }) == pages.end();
  if (contiguous) {
    return plain(control, pages.front().host, static_cast<std::uint32_t>(pages.size() * kPageSize));
  }
  std::vector<std::byte*> hosts(pages.size());
  std::transform(pages.begin(), pages.end(), hosts.begin(), [](const MappedPage& page) { return page.host; });
  return segmented(control, std::move(hosts));
}

RingMemory::RingMemory(RingMemory&& other) noexcept {
  *this = std::move(other);
}

RingMemory& RingMemory::operator=(RingMemory&& other) noexcept {
  if (this == &other) return *this;
  unmap();
  control_ = std::exchange(other.control_, nullptr);
  linear_ = std::exchange(other.linear_, nullptr);
  size_ = std::exchange(other.size_, 0);
  linear_limit_ = std::exchange(other.linear_limit_, 0);
  pages_ = std::exchange(other.pages_, {});
  owned_ = std::exchange(other.owned_, nullptr);
  mappings_ = std::exchange(other.mappings_, 0);
  return *this;
}

RingMemory::~RingMemory() {
  unmap();
}

void RingMemory::unmap() {
  if (owned_ == nullptr) return;
  ::munmap(owned_, 2 * std::size_t{size_});
  give_mappings(mappings_);
}

std::byte* RingMemory::view_in_page(std::uint32_t offset, std::size_t size) const {
  const std::uint32_t wrapped = ring_advance(offset, 0, size_);
  const bool fits =
      linear_ != nullptr ? wrapped + size <= linear_limit_ : wrapped % kPageSize + size <= kPageSize;
  return fits ? address(wrapped) : nullptr;
}

std::uint64_t RingMemory::load_wrapped_word(std::uint32_t offset) const {
  return load_shared_word(address(ring_advance(offset, 0, size_)));
}

template <typename Copy>
void RingMemory::for_each_piece(std::uint32_t offset, std::size_t size, Copy copy) const {
  offset = ring_advance(offset, 0, size_);
  for (std::size_t done = 0; done < size;) {
    const std::size_t contiguous = linear_ != nullptr ? size_ - offset : kPageSize - offset % kPageSize;
    const std::size_t piece = std::min(size - done, contiguous);
    copy(address(offset), done, piece);
    done += piece;
    offset = ring_advance(offset, static_cast<std::uint32_t>(piece), size_);
  }
}

void RingMemory::copy_out_pieces(std::uint32_t offset, std::span<std::byte> bytes) const {
  for_each_piece(offset, bytes.size(), [bytes](const std::byte* ring, std::size_t at, std::size_t size) {
    copy_from_shared(bytes.data() + at, ring, size);
  });
}

void RingMemory::copy_in_pieces(std::uint32_t offset, std::span<const std::byte> bytes) {
  for_each_piece(offset, bytes.size(), [bytes](std::byte* ring, std::size_t at, std::size_t size) {
    std::memcpy(ring, bytes.data() + at, size);
  });
}

}  // namespace vmbusd::ring
