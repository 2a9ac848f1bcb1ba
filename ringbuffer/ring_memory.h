// The memory of one ring, whatever its pages look like in the host's address space.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/result.h"
#include "ringbuffer/protocol.h"

namespace vmbusd::ring {

// What a ring's control page holds, to be shown to people: guest-controlled, unchecked, and each word of
// another moment.
struct RingView {
  std::uint32_t size = 0;  // bytes of data
  std::uint32_t write_index = 0;
  std::uint32_t read_index = 0;
  std::uint32_t interrupt_mask = 0;
  std::uint32_t pending_send_size = 0;
};

// A control page and `size` bytes of data, which wrap. Three kinds of data area, one interface:
//
//   plain       pages follow each other in the host's memory          an access that wraps takes two copies
//   mirrored    ... and are mapped a second time right behind          no access wraps
//   segmented   any pages (huge page backing, no descriptor to map)    a copy per page
//
// plain and mirrored differ only in `linear_limit_`, so both cost one compare. Does not own a mapping unless
// make_mirrored made it. All content is guest-controlled. One thread at a time per direction.
class RingMemory {
 public:
  // So that twice a ring's size fits 32 bits. A guest lends less than this in all (vmbus::ServerLimits).
  static constexpr std::uint32_t kMaxSize = 0x7ffff000;
  // Mappings that all mirrored rings of the process may take together, so that guests which scatter their
  // pages cannot use up what the process needs (vm.max_map_count is 65530 unless set).
  static constexpr std::uint32_t kMaxMappings = 16384;

  // `size` bytes of data at `data`, a multiple of 4096, at most kMaxSize.
  [[nodiscard]] static RingMemory plain(ControlPage* control, std::byte* data, std::uint32_t size);
  // `data` is mapped twice, 2 * size bytes. The caller owns the mapping.
  [[nodiscard]] static RingMemory mirrored(ControlPage* control, std::byte* data, std::uint32_t size);
  // The data pages in ring order, 4096 bytes each.
  [[nodiscard]] static RingMemory segmented(ControlPage* control, std::vector<std::byte*> pages);

  // A data page and where it stands in a shareable descriptor.
  struct MappedPage {
    std::byte* host;
    int fd;
    off_t offset;  // bytes, of the page in fd
  };
  // Maps the pages twice, back to back, in a reservation that the result owns. Errc::kOs where the kernel
  // refuses (huge pages cannot be mapped by 4 KiB), Errc::kLimit where it would take the process beyond
  // kMaxMappings: use plain() or segmented() then.
  [[nodiscard]] static Result<RingMemory> make_mirrored(ControlPage* control,
                                                        std::span<const MappedPage> pages);
  // The best kind for these pages: mirrored, else plain where the host addresses are contiguous, else
  // segmented.
  [[nodiscard]] static RingMemory best(ControlPage* control, std::span<const MappedPage> pages);

  RingMemory() = default;
  RingMemory(RingMemory&& other) noexcept;
  RingMemory& operator=(RingMemory&& other) noexcept;
  RingMemory(const RingMemory&) = delete;
  RingMemory& operator=(const RingMemory&) = delete;
  ~RingMemory();

  [[nodiscard]] std::uint32_t size() const { return size_; }
  [[nodiscard]] ControlPage* control() const { return control_; }  // guest-controlled
  // For those who look on.
  [[nodiscard]] RingView look() const;

  // Below, an `offset` of size() or more, but less than 2 * size(), stands for the one that is size() less.

  // Copies between private memory and the ring; `bytes.size()` <= size(); wraps. What copy_out() gave stays
  // what it is: the compiler cannot go back to the ring for it.
  void copy_out(std::uint32_t offset, std::span<std::byte> bytes) const;
  void copy_in(std::uint32_t offset, std::span<const std::byte> bytes);

  // One word, loaded once; `offset` is a multiple of 8, so that no word wraps by itself.
  [[nodiscard]] std::uint64_t load_word(std::uint32_t offset) const;

  // Where the `size` bytes at `offset` stand as one run of host memory; nullptr where they do not.
  [[nodiscard]] std::byte* view(std::uint32_t offset, std::size_t size) const;  // guest-controlled
  // Where the data stands as one run at linear(0); false: segmented.
  [[nodiscard]] bool is_linear() const { return linear_ != nullptr; }
  [[nodiscard]] std::byte* linear(std::uint32_t offset) const {
    return linear_ + offset;
  }  // guest-controlled

 private:
  // `offset` < size().
  [[nodiscard]] std::byte* address(std::uint32_t offset) const {
    return linear_ != nullptr ? linear_ + offset : pages_[offset / kPageSize] + offset % kPageSize;
  }
  [[nodiscard]] std::byte* view_in_page(std::uint32_t offset, std::size_t size) const;
  [[nodiscard]] std::uint64_t load_wrapped_word(std::uint32_t offset) const;
  // Calls copy(host address, place in the caller's bytes, size) for each contiguous piece of the range.
  template <typename Copy>
  void for_each_piece(std::uint32_t offset, std::size_t size, Copy copy) const;
  void copy_out_pieces(std::uint32_t offset, std::span<std::byte> bytes) const;
  void copy_in_pieces(std::uint32_t offset, std::span<const std::byte> bytes);
  void unmap();

  ControlPage* control_ = nullptr;
  std::byte* linear_ = nullptr;  // plain and mirrored
  std::uint32_t size_ = 0;
  // Accesses that end at or before this take one copy: size_ (plain), 2 * size_ (mirrored), 0 (segmented).
  std::uint32_t linear_limit_ = 0;
  std::vector<std::byte*> pages_;  // segmented
  std::byte* owned_ = nullptr;     // make_mirrored's reservation, 2 * size_ bytes
  std::uint32_t mappings_ = 0;     // in owned_, counted against kMaxMappings
};

// The guest may change `from` at any time. The barrier makes the compiler take what was copied for unknown
// from here on: it can neither drop the copy and load again from the ring nor load twice.
inline void copy_from_shared(std::byte* to, const std::byte* from, std::size_t size) {
  if (size != 0) std::memcpy(to, from, size);
  asm volatile("" : : "r"(to) : "memory");
}

// Relaxed: the index that told of the word's packet orders the access.
inline std::uint64_t load_shared_word(const std::byte* from) {
  return std::atomic_ref<const std::uint64_t>(*reinterpret_cast<const std::uint64_t*>(from))
      .load(std::memory_order_relaxed);
}

inline RingView RingMemory::look() const {
  const auto load = [this](std::uint32_t ControlPage::*field) {
    return std::atomic_ref<std::uint32_t>(control_->*field).load(std::memory_order_relaxed);
  };
  return {size_, load(&ControlPage::write_index), load(&ControlPage::read_index),
          load(&ControlPage::interrupt_mask), load(&ControlPage::pending_send_size)};
}

inline std::byte* RingMemory::view(std::uint32_t offset, std::size_t size) const {
  if (offset + size <= linear_limit_) [[likely]] {
    return linear_ + offset;
  }
  return view_in_page(offset, size);
}

inline void RingMemory::copy_out(std::uint32_t offset, std::span<std::byte> bytes) const {
  if (offset + bytes.size() <= linear_limit_) [[likely]] {
    copy_from_shared(bytes.data(), linear_ + offset, bytes.size());
  } else {
    copy_out_pieces(offset, bytes);
  }
}

inline void RingMemory::copy_in(std::uint32_t offset, std::span<const std::byte> bytes) {
  if (offset + bytes.size() <= linear_limit_) [[likely]] {
    if (!bytes.empty()) std::memcpy(linear_ + offset, bytes.data(), bytes.size());
  } else {
    copy_in_pieces(offset, bytes);
  }
}

inline std::uint64_t RingMemory::load_word(std::uint32_t offset) const {
  if (offset + sizeof(std::uint64_t) <= linear_limit_) [[likely]] {
    return load_shared_word(linear_ + offset);
  }
  return load_wrapped_word(offset);
}

// What a shared index may hold. [linux: hv_ringbuffer_write keeps both 8-aligned and below ring_datasize]
[[nodiscard]] inline constexpr bool valid_index(std::uint32_t index, std::uint32_t ring_size) {
  return index < ring_size && index % kPacketAlign == 0;
}

// Bytes from `from` on to `to` in a ring; both valid indices.
[[nodiscard]] inline constexpr std::uint32_t ring_distance(std::uint32_t from, std::uint32_t to,
                                                           std::uint32_t ring_size) {
  return to >= from ? to - from : to + ring_size - from;
}

// `position` + `bytes` with one wrap; `position` < `ring_size`, `bytes` <= `ring_size`. Sizes of rings are
// no powers of two, so this compares.
[[nodiscard]] inline constexpr std::uint32_t ring_advance(std::uint32_t position, std::uint32_t bytes,
                                                          std::uint32_t ring_size) {
  const std::uint32_t next = position + bytes;
  return next >= ring_size ? next - ring_size : next;
}

// Of the bytes from `from` on to `to`, how many come before the ring's end, its last word not among them: a
// packet inside them ends at an index that needs no wrap.
[[nodiscard]] inline constexpr std::uint32_t ring_run(std::uint32_t from, std::uint32_t to,
                                                      std::uint32_t ring_size) {
  return (to >= from ? to : ring_size - kPacketAlign) - from;
}

// Room for packets when `readable` bytes are used: 8 bytes stay free, so that full differs from empty.
[[nodiscard]] inline constexpr std::uint32_t ring_free(std::uint32_t readable, std::uint32_t ring_size) {
  return ring_size - readable - kPacketAlign;
}

}  // namespace vmbusd::ring
