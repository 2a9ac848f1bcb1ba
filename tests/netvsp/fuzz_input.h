// Takes a fuzzer's bytes apart.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace vmbusd::netvsp {

// Past the end everything is zero.
class FuzzInput {
 public:
  FuzzInput(const std::uint8_t* data, std::size_t size) : left_(data, size) {}

  [[nodiscard]] bool empty() const { return left_.empty(); }
  template <typename T>
  T take() {
    T value{};
    const std::size_t size = std::min(sizeof value, left_.size());
    std::memcpy(&value, left_.data(), size);
    left_ = left_.subspan(size);
    return value;
  }
  // 0..bound - 1
  std::uint32_t below(std::uint32_t bound) { return take<std::uint16_t>() % bound; }
  // At most `size` bytes.
  std::vector<std::byte> bytes(std::size_t size) {
    size = std::min(size, left_.size());
    std::vector<std::byte> out(size);
    if (size != 0) std::memcpy(out.data(), left_.data(), size);
    left_ = left_.subspan(size);
    return out;
  }
  std::vector<std::byte> rest() { return bytes(left_.size()); }

 private:
  std::span<const std::uint8_t> left_;
};

}  // namespace vmbusd::netvsp
