// The Toeplitz hash that receive-side scaling steers by.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "netvsp/frame.h"
#include "netvsp/ndis.h"

namespace vmbusd::netvsp {

// A key, unfolded for hashing a byte at a time. [NDIS: RSS hashing functions]
class ToeplitzHash {
 public:
  // Addresses and ports of an IPv6 flow.
  static constexpr std::size_t kInputMax = 36;

  ToeplitzHash() = default;
  explicit ToeplitzHash(const std::array<std::uint8_t, kRssKeySize>& key);

  // `input.size()` <= kInputMax.
  [[nodiscard]] std::uint32_t hash(std::span<const std::byte> input) const;
  // Of a frame's flow, over the fields that `hash_info` (kHash*) asks for; empty where it asks for none of
  // this frame's.
  [[nodiscard]] std::optional<std::uint32_t> hash_frame(std::span<const std::byte> head,
                                                        const FrameLayout& layout,
                                                        std::uint32_t hash_info) const;

 private:
  // 32 bits of the key from each bit of the input on.
  std::array<std::array<std::uint32_t, 8>, kInputMax> windows_{};
};

}  // namespace vmbusd::netvsp
