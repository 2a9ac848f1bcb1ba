// Cutting a large TCP packet into segments in software, for a side that does not take it whole.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "netvsp/frame.h"

namespace vmbusd::netvsp {

// Makes the headers of the segments of one frame; the caller copies the payload. Holds a private copy of the
// headers. As the kernel's segmentation does it: identification counts up, FIN and PSH only on the last
// segment, CWR only on the first. [linux: tcp_gso_segment, inet_gso_segment]
class TcpSegmenter {
 public:
  struct Segment {
    std::uint32_t payload_offset;  // from the frame's start
    std::uint32_t payload_size;
  };

  // `head` holds the headers up to layout.payload_offset, of a TCP frame of `frame_size` bytes;
  // layout.payload_offset <= frame_size and <= kFrameHeadMax, payload_max > 0.
  TcpSegmenter(std::span<const std::byte> head, const FrameLayout& layout, std::uint32_t frame_size,
               std::uint32_t payload_max);

  [[nodiscard]] std::uint32_t count() const { return count_; }  // at least 1
  [[nodiscard]] std::uint32_t header_size() const { return layout_.payload_offset; }
  [[nodiscard]] Segment segment(std::uint32_t index) const;
  // Writes the headers of segment `index` to `out` (header_size() bytes), its checksums complete.
  // `payload_sum`: over the segment's payload bytes.
  void write_header(std::uint32_t index, const ChecksumSum& payload_sum, std::span<std::byte> out) const;

 private:
  std::array<std::byte, kFrameHeadMax> head_;
  FrameLayout layout_;
  std::uint32_t frame_size_;
  std::uint32_t payload_max_;
  std::uint32_t count_;
};

}  // namespace vmbusd::netvsp
