// An Ethernet address.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace vmbusd::netvsp {

struct MacAddress {
  std::array<std::uint8_t, 6> bytes{};

  friend constexpr auto operator<=>(const MacAddress&, const MacAddress&) = default;

  // Broadcast included.
  [[nodiscard]] constexpr bool multicast() const { return (bytes[0] & 1) != 0; }
  // Whether a NIC can have it for its own.
  [[nodiscard]] constexpr bool valid_unicast() const { return !multicast() && *this != MacAddress{}; }
  // The bytes in order from bit 0 up: for compares and atomics.
  [[nodiscard]] constexpr std::uint64_t value() const {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i) value |= std::uint64_t{bytes[i]} << (8 * i);
    return value;
  }

  // "02:1a:4b:00:c3:9d", either case; empty where `text` is anything else.
  [[nodiscard]] static std::optional<MacAddress> parse(std::string_view text);
  // A locally administered unicast address, the same for the same names at every start.
  [[nodiscard]] static MacAddress derive(std::string_view partition, std::string_view name);

  [[nodiscard]] std::string to_string() const;
};

}  // namespace vmbusd::netvsp
