// Reads the headers of a kernel file, bzImage or ELF vmlinux, and says what of it goes where. No I/O but
// pread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "vmm/boot_protocol.h"

namespace vmbusd::vmm {

struct KernelImage {
  enum class Format : std::uint8_t { kBzImage, kElf };
  struct Segment {
    std::uint64_t file_offset;
    std::uint64_t file_size;
    std::uint64_t gpa;
    std::uint64_t memory_size;  // >= file_size; the rest is zero
  };

  Format format;
  std::vector<Segment> segments;
  std::uint64_t entry;             // 64-bit entry point
  std::uint64_t gpa;               // of the lowest byte that the kernel takes
  std::uint64_t end;               // the first byte behind what it needs before it looks at the memory map
  std::uint64_t initrd_end_max;    // the initrd must end at or below this address
  std::uint64_t command_line_max;  // bytes, without the terminating zero
  SetupHeader setup;               // to pass on in the zero page
};

// A kernel's headers lie within this much of its file's beginning.
inline constexpr std::size_t kKernelHeadSize = 64 * 1024;
inline constexpr std::size_t kElfSegmentsMax = 64;

// `head` is the file's first kKernelHeadSize bytes, or all of it where it is smaller. Every segment of the
// answer lies inside the file and inside [kHighMemoryGpa, ram_end). Errc::kConfig says what is wrong.
[[nodiscard]] Result<KernelImage> parse_kernel(std::span<const std::byte> head, std::uint64_t file_size,
                                               std::uint64_t ram_end);

}  // namespace vmbusd::vmm
