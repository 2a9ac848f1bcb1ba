// JSON between the processes of vmbusd, read without trust.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/guid.h"
#include "netvsp/mac_address.h"

namespace vmbusd::daemon {

using Json = nlohmann::json;

// Whatever its texts hold: bytes that are no UTF-8 are replaced.
[[nodiscard]] inline std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Reads members of one object; ok() is false once one was absent, of another type or out of range.
class ObjectReader {
 public:
  explicit ObjectReader(const Json& json) : json_(json), ok_(json.is_object()) {}

  [[nodiscard]] bool ok() const { return ok_; }
  // What was read makes no sense to the caller.
  void refuse() { ok_ = false; }
  [[nodiscard]] std::string text(const char* key) {
    const Json* member = find(key);
    if (member != nullptr && member->is_string()) return member->get_ref<const std::string&>();
    ok_ = false;
    return {};
  }
  // The same for what operators get to see on terminals: nothing that moves a cursor, not endless.
  [[nodiscard]] std::string shown_text(const char* key, std::size_t size_max = kShownBytesMax) {
    std::string shown = text(key);
    if (shown.size() > size_max) {
      while (size_max > 0 && (static_cast<unsigned char>(shown[size_max]) & 0xc0) == 0x80) --size_max;
      shown.resize(size_max);
    }
    for (std::size_t i = 0; i < shown.size(); ++i) {
      const auto byte = static_cast<unsigned char>(shown[i]);
      // U+0080 to U+009F, each two bytes of UTF-8.
      const bool c1 = i > 0 && shown[i - 1] == '\xc2' && byte < 0xa0;
      if (c1) shown[i - 1] = '?';
      if (c1 || byte < 0x20 || byte == 0x7f) shown[i] = '?';
    }
    return shown;
  }
  static constexpr std::size_t kShownBytesMax = 256;

  [[nodiscard]] std::uint32_t integer(const char* key, std::uint32_t min, std::uint32_t max) {
    const Json* member = find(key);
    if (member != nullptr && member->is_number_unsigned()) {
      const auto value = member->get<std::uint64_t>();
      if (value >= min && value <= max) return static_cast<std::uint32_t>(value);
    }
    ok_ = false;
    return min;
  }
  [[nodiscard]] bool boolean(const char* key) {
    const Json* member = find(key);
    if (member != nullptr && member->is_boolean()) return member->get<bool>();
    ok_ = false;
    return false;
  }
  [[nodiscard]] std::uint64_t integer64(const char* key) {
    const Json* member = find(key);
    if (member != nullptr && member->is_number_unsigned()) return member->get<std::uint64_t>();
    ok_ = false;
    return 0;
  }
  // null is what was left open. Here and below.
  [[nodiscard]] std::optional<bool> boolean_or_null(const char* key) {
    const Json* member = find(key);
    if (member != nullptr && member->is_null()) return std::nullopt;
    return boolean(key);
  }
  [[nodiscard]] std::optional<Guid> guid(const char* key) { return parsed<Guid>(key); }
  [[nodiscard]] std::optional<netvsp::MacAddress> mac(const char* key) {
    return parsed<netvsp::MacAddress>(key);
  }
  // The member, to be read by a reader of its own; not ok() where it is no object.
  [[nodiscard]] ObjectReader object(const char* key) {
    static const Json nothing;
    const Json* member = find(key);
    if (member == nullptr || !member->is_object()) ok_ = false;
    return ObjectReader(member == nullptr ? nothing : *member);
  }
  // Calls `read` with a reader for each element; not ok() where there are more than `size_max`.
  template <typename Read>
  void array(const char* key, std::size_t size_max, Read&& read) {
    const Json* member = find(key);
    if (member == nullptr || !member->is_array() || member->size() > size_max) {
      ok_ = false;
      return;
    }
    for (const Json& element : *member) {
      ObjectReader reader(element);
      read(reader);
      if (!reader.ok()) ok_ = false;
    }
  }

 private:
  template <typename T>
  [[nodiscard]] std::optional<T> parsed(const char* key) {
    const Json* member = find(key);
    if (member != nullptr && member->is_null()) return std::nullopt;
    const std::optional<T> value = T::parse(text(key));
    if (!value) ok_ = false;
    return value;
  }
  [[nodiscard]] const Json* find(const char* key) const {
    if (!json_.is_object()) return nullptr;
    const auto found = json_.find(key);
    return found == json_.end() ? nullptr : &*found;
  }

  const Json& json_;
  bool ok_;
};

}  // namespace vmbusd::daemon
