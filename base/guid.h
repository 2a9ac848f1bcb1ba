// GUIDs in Windows' mixed-endian binary form.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/wire.h"

namespace vmbusd {

// 16 bytes as they stand on the wire: u32, u16, u16 little-endian, then 8 bytes in order. Alignment is 1, so
// it can stand at any offset of a wire struct.
struct Guid {
  std::array<std::uint8_t, 16> bytes{};

  friend constexpr auto operator<=>(const Guid&, const Guid&) = default;

  // Parses "f8615163-df3e-46c5-913f-f2d2f965ed0e", either case; empty where `text` is anything else.
  [[nodiscard]] static constexpr std::optional<Guid> parse(std::string_view text);
  // For constants: an ill-formed text does not compile.
  [[nodiscard]] static consteval Guid literal(std::string_view text) { return parse(text).value(); }
  // A stable GUID (RFC 4122 version 8 layout) that differs for every (scope, name), so that a device keeps
  // its identity over restarts without the operator choosing one.
  [[nodiscard]] static Guid derive(std::string_view scope, std::string_view name);

  [[nodiscard]] std::string to_string() const;
};
static_assert(kIsWire<Guid, 16> && alignof(Guid) == 1);

constexpr std::optional<Guid> Guid::parse(std::string_view text) {
  // Where the byte for each pair of digits goes.
  constexpr std::array<std::uint8_t, 16> kOrder = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
  if (text.size() != 36) return std::nullopt;
  Guid guid;
  std::size_t digit = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (i == 8 || i == 13 || i == 18 || i == 23) {
      if (c != '-') return std::nullopt;
      continue;
    }
    int value = 0;
    if (c >= '0' && c <= '9') {
      value = c - '0';
    } else if (c >= 'a' && c <= 'f') {
      value = c - 'a' + 10;
    } else if (c >= 'A' && c <= 'F') {
      value = c - 'A' + 10;
    } else {
      return std::nullopt;
    }
    std::uint8_t& byte = guid.bytes[kOrder[digit / 2]];
    byte = static_cast<std::uint8_t>(byte << 4 | value);
    ++digit;
  }
  return guid;
}

}  // namespace vmbusd
