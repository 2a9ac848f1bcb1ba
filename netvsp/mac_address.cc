#include "netvsp/mac_address.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/guid.h"

namespace vmbusd::netvsp {

std::optional<MacAddress> MacAddress::parse(std::string_view text) {
  MacAddress address;
  if (text.size() != address.bytes.size() * 3 - 1) return std::nullopt;
  const auto digit = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  for (std::size_t i = 0; i < address.bytes.size(); ++i) {
    const int high = digit(text[i * 3]);
    const int low = digit(text[i * 3 + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    if (i + 1 < address.bytes.size() && text[i * 3 + 2] != ':') return std::nullopt;
    address.bytes[i] = static_cast<std::uint8_t>(high << 4 | low);
  }
  return address;
}

MacAddress MacAddress::derive(std::string_view partition, std::string_view name) {
  const Guid guid = Guid::derive(partition, name);
  MacAddress address;
  // The end of a derived GUID is all hash, without version and variant bits.
  std::copy(guid.bytes.end() - 6, guid.bytes.end(), address.bytes.begin());
  address.bytes[0] = static_cast<std::uint8_t>((address.bytes[0] & 0xfc) | 0x02);
  return address;
}

std::string MacAddress::to_string() const {
  return fmt::format("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2], bytes[3],
                     bytes[4], bytes[5]);
}

}  // namespace vmbusd::netvsp
