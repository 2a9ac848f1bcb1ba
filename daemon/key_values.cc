#include "daemon/key_values.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

namespace vmbusd::daemon {

namespace {

using Json = nlohmann::json;

constexpr std::size_t kDepthMax = 4;

Json value_of(std::string_view text) {
  if (text == "true") return true;
  if (text == "false") return false;
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (!text.empty() && error == std::errc() && end == text.data() + text.size()) return number;
  if (text.size() >= 2 && text.front() == '"' && text.back() == '"') text = text.substr(1, text.size() - 2);
  return std::string(text);
}

// False where the key is no key, or one table is taken for a value or the other way round.
bool insert(Json& root, std::string_view key, std::string_view value) {
  Json* table = &root;
  for (std::size_t depth = 0; depth < kDepthMax; ++depth) {
    const std::size_t dot = key.find('.');
    const std::string word(key.substr(0, dot));
    if (word.empty()) return false;
    if (dot == std::string_view::npos) return table->emplace(word, value_of(value)).second;
    key.remove_prefix(dot + 1);
    Json& tables = (*table)[word];
    if (tables.is_null()) tables = Json::array({Json::object()});
    if (!tables.is_array()) return false;
    // The last word of the key decides, so that a table's own tables do not begin the next.
    const bool last = key.find('.') == std::string_view::npos;
    if (last && tables.back().contains(std::string(key))) tables.push_back(Json::object());
    table = &tables.back();
  }
  return false;
}

}  // namespace

KeyValues parse_key_values(const std::vector<std::string>& words) {
  Json root = Json::object();
  for (const std::string& word : words) {
    const std::size_t equals = word.find('=');
    if (equals == std::string::npos || equals == 0) {
      return {"", fmt::format("{} is not of the form KEY=VALUE", word)};
    }
    if (!insert(root, std::string_view(word).substr(0, equals), std::string_view(word).substr(equals + 1))) {
      return {"", fmt::format("{}: this key is no key here, or is given twice", word.substr(0, equals))};
    }
  }
  return {root.dump(-1, ' ', false, Json::error_handler_t::replace), ""};
}

}  // namespace vmbusd::daemon
