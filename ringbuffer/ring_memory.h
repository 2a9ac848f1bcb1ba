// The memory of one ring, whatever its pages look like in the host's address space.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "ringbuffer/protocol.h"

namespace vmbusd::ring {

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
  // `size` bytes of data at `data`, a multiple of 4096.
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
  // refuses (huge pages cannot be mapped by 4 KiB, too many maps): use plain() or segmented() then.
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

  // Copies between private memory and the ring; `offset` < size(), `bytes.size()` <= size(); wraps.
  void copy_out(std::uint32_t offset, std::span<std::byte> bytes) const;
  void copy_in(std::uint32_t offset, std::span<const std::byte> bytes);

 private:
  ControlPage* control_ = nullptr;
  std::byte* linear_ = nullptr;  // plain and mirrored
  std::uint32_t size_ = 0;
  std::uint32_t linear_limit_ =
      0;  // accesses that end at or before this take one copy: size_ or 2 * size_; 0: segmented
  std::vector<std::byte*> pages_;  // segmented
  std::byte* owned_ = nullptr;     // make_mirrored's reservation
  std::size_t owned_size_ = 0;
};

}  // namespace vmbusd::ring
