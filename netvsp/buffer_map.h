// A buffer that the guest lent by a GPADL, for access by offset on the data path.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "devices/gpadl_view.h"

namespace vmbusd::netvsp {

// Immutable. As GpadlView, whose look-up it spares: most pages are found in a table.
class BufferMap {
 public:
  BufferMap() = default;
  explicit BufferMap(devices::GpadlView view) : view_(std::move(view)) {
    for (std::uint64_t offset = 0; offset < view_.size(); offset += kBlock) {
      const std::uint64_t size = std::min<std::uint64_t>(kBlock, view_.size() - offset);
      const std::span<std::byte> piece = view_.piece(offset, size);
      blocks_.push_back(piece.size() == size ? piece.data() : nullptr);
    }
  }

  [[nodiscard]] std::uint64_t size() const { return view_.size(); }
  // A contiguous piece that starts at `offset` (< size()), at most `length` bytes and inside the buffer; what
  // follows may be contiguous with it.
  [[nodiscard]] std::span<std::byte> piece(std::uint64_t offset, std::uint64_t length) const {
    std::byte* const block = blocks_[offset / kBlock];
    const std::uint64_t in_block = offset % kBlock;
    if (block == nullptr) [[unlikely]] {
      return view_.piece(offset, length);
    }
    const std::uint64_t left = std::min(kBlock - in_block, view_.size() - offset);
    return {block + in_block, std::min(length, left)};
  }

 private:
  static constexpr std::uint64_t kBlock = 4096;

  devices::GpadlView view_;
  std::vector<std::byte*> blocks_;  // guest-controlled memory; nullptr: not contiguous, ask view_
};

}  // namespace vmbusd::netvsp
