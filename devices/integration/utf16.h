// The texts of key-value exchange: UTF-16LE in fields of fixed size on the wire, UTF-8 here.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace vmbusd::integration {

// What stands in the first `size_bytes` of a guest's field, or in all of it, up to a NUL. What is no
// character becomes U+FFFD, what would move a terminal's cursor '?'. At most 3 bytes for each 2 of the field.
[[nodiscard]] std::string text_of_field(std::span<const std::uint8_t> field, std::uint32_t size_bytes);

// Writes UTF-8 and a NUL; the bytes that they take. Empty where `text` is not UTF-8, holds a NUL or does not
// fit; the field is undefined then.
[[nodiscard]] std::optional<std::uint32_t> write_field(std::string_view text, std::span<std::uint8_t> field);

}  // namespace vmbusd::integration
