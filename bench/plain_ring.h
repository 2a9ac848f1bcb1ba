// The straightforward way to write a VMBus ring, as the measure for ours: each packet loads both indices, is
// copied piece by piece around the end, and is published by itself. Right, but with neither a guest's lies
// nor signals to mind.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "ringbuffer/protocol.h"

namespace vmbusd::bench {

// One writer and one reader.
class PlainRing {
 public:
  PlainRing(ring::ControlPage* control, std::byte* data, std::uint32_t size)
      : control_(*control), data_(data), size_(size) {}

  // False where there is no room now.
  bool write(std::span<const std::byte> payload) {
    const std::uint32_t write_index = at(control_.write_index).load(std::memory_order_relaxed);
    const std::uint32_t read_index = at(control_.read_index).load(std::memory_order_acquire);
    const auto length =
        static_cast<std::uint32_t>(sizeof(ring::PacketDescriptor) + payload.size() + 7) / 8 * 8;
    const std::uint32_t used = (write_index + size_ - read_index) % size_;
    if (length + ring::kTrailerSize + ring::kPacketAlign > size_ - used) return false;
    const ring::PacketDescriptor descriptor = {.type = ring::PacketType::kInband,
                                               .data_offset8 = sizeof descriptor / 8,
                                               .length8 = static_cast<std::uint16_t>(length / 8),
                                               .flags = 0,
                                               .transaction_id = 0};
    const std::uint64_t trailer = std::uint64_t{write_index} << 32;
    copy_in(write_index, wire_bytes(descriptor));
    copy_in(write_index + sizeof descriptor, payload);
    copy_in(write_index + length, wire_bytes(trailer));
    at(control_.write_index).store((write_index + length + ring::kTrailerSize) % size_);
    return true;
  }

  // Copies the payload out; false where there is no packet.
  bool read(std::span<std::byte> payload) {
    const std::uint32_t read_index = at(control_.read_index).load(std::memory_order_relaxed);
    const std::uint32_t write_index = at(control_.write_index).load(std::memory_order_acquire);
    if (read_index == write_index) return false;
    ring::PacketDescriptor descriptor;
    copy_out(read_index, wire_bytes_writable(descriptor));
    copy_out(read_index + descriptor.data_offset8 * 8u, payload);
    at(control_.read_index).store((read_index + descriptor.length8 * 8u + ring::kTrailerSize) % size_);
    return true;
  }

 private:
  static std::atomic_ref<std::uint32_t> at(std::uint32_t& index) {
    return std::atomic_ref<std::uint32_t>(index);
  }
  void copy_in(std::uint32_t offset, std::span<const std::byte> bytes) {
    offset %= size_;
    const std::size_t first = std::min<std::size_t>(bytes.size(), size_ - offset);
    std::memcpy(data_ + offset, bytes.data(), first);
    std::memcpy(data_, bytes.data() + first, bytes.size() - first);
  }
  void copy_out(std::uint32_t offset, std::span<std::byte> bytes) const {
    offset %= size_;
    const std::size_t first = std::min<std::size_t>(bytes.size(), size_ - offset);
    std::memcpy(bytes.data(), data_ + offset, first);
    std::memcpy(bytes.data() + first, data_, bytes.size() - first);
  }

  ring::ControlPage& control_;
  std::byte* data_;
  std::uint32_t size_;
};

}  // namespace vmbusd::bench
