// What fuzz targets share.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>

namespace vmbusd::fuzz {

// Ends the program, as a find, where what the target is held to does not hold.
inline void promise(bool kept, const char* text) {
  if (kept) return;
  std::fprintf(stderr, "broken promise: %s\n", text);
  std::abort();
}

// Bytes of the input; zeros when they are used up.
class Input {
 public:
  explicit Input(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  std::uint8_t byte() {
    if (bytes_.empty()) return 0;
    const std::uint8_t value = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return value;
  }
  // Small numbers, so that actions meet: 0..count-1.
  std::uint32_t below(std::uint32_t count) { return byte() % count; }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace vmbusd::fuzz
