// Helpers for structures that cross a trust or machine boundary.
#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

namespace vmbusd {

static_assert(std::endian::native == std::endian::little, "VMBus structures are little-endian");

// True for a struct that may be copied to and from the wire as it is: fixed size, no padding that would carry
// host stack bytes to the guest.
template <typename T, std::size_t Size>
inline constexpr bool kIsWire = std::is_trivially_copyable_v<T>&& std::is_standard_layout_v<T>&&
                                    std::has_unique_object_representations_v<T> &&
                                sizeof(T) == Size;

// A pointer, span or smart pointer has no padding either, but its bytes are a host address.
template <typename T>
inline constexpr bool kHoldsAddress = std::is_pointer_v<T> || requires {
  typename T::element_type;
};

template <typename T>
concept WireStruct =
    std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T> && !kHoldsAddress<T>;

// A big-endian integer of a SCSI or network structure. A byte array inside, so alignment is 1 and a forgotten
// byte swap does not compile.
template <std::unsigned_integral T>
class BigEndian {
 public:
  constexpr BigEndian() = default;
  constexpr BigEndian(T value) {
    *this = value;
  }  // NOLINT(google-explicit-constructor): reads as the integer
  constexpr BigEndian& operator=(T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      bytes_[i] = static_cast<std::uint8_t>(value >> (8 * (sizeof(T) - 1 - i)));
    }
    return *this;
  }
  constexpr operator T() const {  // NOLINT(google-explicit-constructor)
    T value = 0;
    for (const std::uint8_t byte : bytes_) value = static_cast<T>((value << 8) | byte);
    return value;
  }

 private:
  std::array<std::uint8_t, sizeof(T)> bytes_{};
};

using BigEndian16 = BigEndian<std::uint16_t>;
using BigEndian32 = BigEndian<std::uint32_t>;
using BigEndian64 = BigEndian<std::uint64_t>;

template <WireStruct T>
[[nodiscard]] std::span<const std::byte> wire_bytes(const T& value) {
  return std::as_bytes(std::span<const T, 1>(&value, 1));
}

template <WireStruct T>
[[nodiscard]] std::span<std::byte> wire_bytes_writable(T& value) {
  return std::as_writable_bytes(std::span<T, 1>(&value, 1));
}

// Copies a T out of `bytes`; false where they are too few. Longer input is fine: peers pad.
template <WireStruct T>
[[nodiscard]] bool read_wire(std::span<const std::byte> bytes, T& out) {
  if (bytes.size() < sizeof(T)) return false;
  std::memcpy(&out, bytes.data(), sizeof(T));
  return true;
}

}  // namespace vmbusd
