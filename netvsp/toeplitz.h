// The Toeplitz hash that receive-side scaling steers by, unfolded for hashing a byte at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "netvsp/ndis.h"

namespace vmbusd::netvsp {

// Addresses and ports of an IPv6 flow, the longest input.
inline constexpr std::size_t kToeplitzInputMax = 36;

// What one byte of the input adds, by its value: the hash is the XOR over all bytes. [0] is 0.
using ToeplitzBytes = std::array<std::uint32_t, 256>;

// For byte `index` of the input, below kToeplitzInputMax. [NDIS: RSS hashing functions]
[[nodiscard]] ToeplitzBytes unfold_toeplitz_key(const std::array<std::uint8_t, kRssKeySize>& key,
                                                std::size_t index);

}  // namespace vmbusd::netvsp
