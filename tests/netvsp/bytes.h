// Bytes as tests write them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "base/wire.h"

namespace vmbusd::netvsp {

using Bytes = std::vector<std::byte>;

// "02 00 ff" as bytes; white space between them is free.
[[nodiscard]] inline Bytes hex(std::string_view text) {
  const auto digit = [](char c) -> unsigned {
    if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
    return static_cast<unsigned>(c - 'a' + 10);
  };
  Bytes bytes;
  bool half = false;
  for (const char c : text) {
    if (c == ' ' || c == '\n') continue;
    if (half) {
      bytes.back() = static_cast<std::byte>(static_cast<unsigned>(bytes.back()) << 4 | digit(c));
    } else {
      bytes.push_back(static_cast<std::byte>(digit(c)));
    }
    half = !half;
  }
  return bytes;
}

inline void append(Bytes& bytes, std::span<const std::byte> more) {
  bytes.insert(bytes.end(), more.begin(), more.end());
}

template <WireStruct T>
[[nodiscard]] Bytes bytes_of(const T& value) {
  const auto view = wire_bytes(value);
  return Bytes(view.begin(), view.end());
}

template <WireStruct T>
[[nodiscard]] T read_at(std::span<const std::byte> bytes, std::size_t offset = 0) {
  T value{};
  if (offset <= bytes.size() && bytes.size() - offset >= sizeof value) {
    std::memcpy(&value, bytes.data() + offset, sizeof value);
  }
  return value;
}

// ASCII as UTF-16LE.
[[nodiscard]] inline Bytes wide(std::string_view text) {
  Bytes bytes;
  for (const char c : text) {
    bytes.push_back(static_cast<std::byte>(c));
    bytes.push_back(std::byte{0});
  }
  return bytes;
}

}  // namespace vmbusd::netvsp
