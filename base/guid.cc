#include "base/guid.h"

#include <fmt/core.h>

namespace vmbusd {

namespace {

// FNV-1a. Not for secrets: only has to spread names.
std::uint64_t hash(std::uint64_t state, std::string_view text) {
  for (const char c : text) {
    state ^= static_cast<std::uint8_t>(c);
    state *= 0x100000001b3;
  }
  return state;
}

}  // namespace

Guid Guid::derive(std::string_view scope, std::string_view name) {
  constexpr std::uint64_t kFnvOffset = 0xcbf29ce484222325;
  const std::string_view separator("\0", 1);
  std::uint64_t low = hash(hash(hash(kFnvOffset, scope), separator), name);
  std::uint64_t high = hash(hash(hash(low ^ 0x9e3779b97f4a7c15, name), separator), scope);
  Guid guid;
  for (std::size_t i = 0; i < 8; ++i) {
    guid.bytes[i] = static_cast<std::uint8_t>(low >> (8 * i));
    guid.bytes[8 + i] = static_cast<std::uint8_t>(high >> (8 * i));
  }
  guid.bytes[7] = static_cast<std::uint8_t>((guid.bytes[7] & 0x0f) | 0x80);  // version 8: vendor specific
  guid.bytes[8] = static_cast<std::uint8_t>((guid.bytes[8] & 0x3f) | 0x80);  // RFC 4122 variant
  return guid;
}

std::string Guid::to_string() const {
  return fmt::format(
      "{:02x}{:02x}{:02x}{:02x}-{:02x}{:02x}-{:02x}{:02x}-{:02x}{:02x}-{:02x}{:02x}{:02x}{:02x}{:02x}{:02x}",
      bytes[3], bytes[2], bytes[1], bytes[0], bytes[5], bytes[4], bytes[7], bytes[6], bytes[8], bytes[9],
      bytes[10], bytes[11], bytes[12], bytes[13], bytes[14], bytes[15]);
}

}  // namespace vmbusd
