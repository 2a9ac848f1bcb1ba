#include "devices/integration/utf16.h"

#include <algorithm>

namespace vmbusd::integration {

namespace {

constexpr char32_t kReplacement = 0xfffd;

bool is_high_surrogate(char32_t unit) {
  return unit >= 0xd800 && unit < 0xdc00;
}
bool is_low_surrogate(char32_t unit) {
  return unit >= 0xdc00 && unit < 0xe000;
}
bool is_control(char32_t character) {
  return character < 0x20 || (character >= 0x7f && character < 0xa0);
}

void append(std::string& text, char32_t character) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | ((character >> shift) & 0x3f)); };
  if (character < 0x80) {
    text += static_cast<char>(character);
  } else if (character < 0x800) {
    text += static_cast<char>(0xc0 | character >> 6);
    text += tail(0);
  } else if (character < 0x10000) {
    text += static_cast<char>(0xe0 | character >> 12);
    text += tail(6);
    text += tail(0);
  } else {
    text += static_cast<char>(0xf0 | character >> 18);
    text += tail(12);
    text += tail(6);
    text += tail(0);
  }
}

// The character that `text` begins with, which is not empty, taken off it. Empty where there is none.
std::optional<char32_t> take(std::string_view& text) {
  const auto lead = static_cast<unsigned char>(text.front());
  std::size_t size = 1;
  char32_t character = lead;
  char32_t smallest = 0;  // of this length
  if (lead >= 0xf0 && lead < 0xf8) {
    size = 4, character = lead & 0x07, smallest = 0x10000;
  } else if (lead >= 0xe0) {
    size = 3, character = lead & 0x0f, smallest = 0x800;
  } else if (lead >= 0xc0) {
    size = 2, character = lead & 0x1f, smallest = 0x80;
  }
  if (size > text.size() || (lead >= 0x80 && lead < 0xc0) || lead >= 0xf8) return std::nullopt;
  for (std::size_t i = 1; i < size; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if ((byte & 0xc0) != 0x80) return std::nullopt;
    character = character << 6 | (byte & 0x3f);
  }
  const bool surrogate = is_high_surrogate(character) || is_low_surrogate(character);
  if (character < smallest || character > 0x10ffff || surrogate) return std::nullopt;
  text.remove_prefix(size);
  return character;
}

}  // namespace

std::string text_of_field(std::span<const std::uint8_t> field, std::uint32_t size_bytes) {
  const std::size_t units = std::min<std::size_t>(field.size(), size_bytes) / 2;
  const auto unit_at = [&](std::size_t i) {
    return static_cast<char32_t>(field[2 * i] | field[2 * i + 1] << 8);
  };
  std::string text;
  for (std::size_t i = 0; i < units && unit_at(i) != 0; ++i) {
    char32_t character = unit_at(i);
    if (is_high_surrogate(character) && i + 1 < units && is_low_surrogate(unit_at(i + 1))) {
      character = 0x10000 + ((character - 0xd800) << 10) + (unit_at(++i) - 0xdc00);
    } else if (is_high_surrogate(character) || is_low_surrogate(character)) {
      character = kReplacement;
    }
    append(text, is_control(character) ? U'?' : character);
  }
  return text;
}

std::optional<std::uint32_t> write_field(std::string_view text, std::span<std::uint8_t> field) {
  std::uint32_t size = 0;
  const auto put = [&](char32_t unit) {
    if (size + 2 > field.size()) return false;
    field[size++] = static_cast<std::uint8_t>(unit);
    field[size++] = static_cast<std::uint8_t>(unit >> 8);
    return true;
  };
  while (!text.empty()) {
    const std::optional<char32_t> character = take(text);
    if (!character || *character == 0) return std::nullopt;
    if (*character < 0x10000) {
      if (!put(*character)) return std::nullopt;
      continue;
    }
    const char32_t rest = *character - 0x10000;
    if (!put(0xd800 + (rest >> 10)) || !put(0xdc00 + (rest & 0x3ff))) return std::nullopt;
  }
  if (!put(0)) return std::nullopt;
  return size;
}

}  // namespace vmbusd::integration
