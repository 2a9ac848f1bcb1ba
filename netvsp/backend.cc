#include "netvsp/backend.h"

#include <algorithm>
#include <cstring>

namespace vmbusd::netvsp {

void TransmitFrame::complete(std::int32_t result, std::uint32_t) noexcept {
  queue->transmit_completed(*this, result);
}

void ReceiveBuffer::complete(std::int32_t result, std::uint32_t) noexcept {
  queue->receive_completed(*this, result);
}

void ReceiveBuffer::fill(std::span<const std::byte> frame) {
  if (frame.size() <= pieces[1].iov_len) [[likely]] {
    std::memcpy(pieces[1].iov_base, frame.data(), frame.size());
    return;
  }
  for (std::uint32_t i = 1; i <= piece_count && !frame.empty(); ++i) {
    const std::size_t size = std::min(frame.size(), pieces[i].iov_len);
    std::memcpy(pieces[i].iov_base, frame.data(), size);
    frame = frame.subspan(size);
  }
}

}  // namespace vmbusd::netvsp
