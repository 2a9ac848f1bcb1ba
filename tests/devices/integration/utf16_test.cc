#include "devices/integration/utf16.h"

#include <array>
#include <string>
#include <vector>

#include "tests/catch.h"

namespace vmbusd::integration {
namespace {

std::vector<std::uint8_t> field_of(std::u16string_view text) {
  std::vector<std::uint8_t> field;
  for (const char16_t unit : text) {
    field.push_back(static_cast<std::uint8_t>(unit));
    field.push_back(static_cast<std::uint8_t>(unit >> 8));
  }
  return field;
}

TEST_CASE("a guest's texts become UTF-8 that can be shown", "[integration]") {
  struct Case {
    const char* rule;
    std::u16string units;
    std::uint32_t size_bytes;
    std::string text;
  };
  const Case kCases[] = {
      {"ends with a NUL", std::u16string(u"ab\0cd", 5), 10, "ab"},
      {"has no NUL", u"ab", 4, "ab"},
      {"claims more than there is", u"ab", 0xffffffff, "ab"},
      {"claims less", u"abcd", 4, "ab"},
      {"claims half a character", u"abc", 5, "ab"},
      {"is empty", u"", 0, ""},
      {"has characters of all lengths", u"a\u00fc\u20ac\U0001f600", 100, "a\u00fc\u20ac\U0001f600"},
      {"has half a pair at its end", std::u16string(u"a") + char16_t{0xd83d}, 4, "a\ufffd"},
      {"has halves in the wrong order", {char16_t{0xde00}, char16_t{0xd83d}, u'a'}, 6, "\ufffd\ufffda"},
      {"moves a cursor", u"a\x1b[2J\x7f\u009b\n", 100, "a?[2J???"},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      CHECK(text_of_field(field_of(c.units), c.size_bytes) == c.text);
    }
  }
}

TEST_CASE("texts for a guest are written whole or not at all", "[integration]") {
  std::array<std::uint8_t, 8> field{};
  CHECK(write_field("abc", field) == 8);
  CHECK(text_of_field(field, 8) == "abc");
  CHECK(write_field("", field) == 2);
  CHECK(write_field("\u20ac", field) == 4);
  CHECK(text_of_field(field, 4) == "\u20ac");
  CHECK(write_field("\U0001f600", field) == 6);
  CHECK(text_of_field(field, 6) == "\U0001f600");
  for (const std::string& refused :
       {std::string("abcd"), std::string("\U0001f600ab"), std::string("a\0b", 3), std::string("\xff"),
        std::string("\xc3"), std::string("\x80"), std::string("\xc0\x80"), std::string("\xe0\x80\x80"),
        std::string("\xed\xa0\x80"), std::string("\xf4\x90\x80\x80"), std::string("\xf0\x80\x80\x80"),
        std::string("\xc3\x28")}) {
    CHECK_FALSE(write_field(refused, field).has_value());
  }
}

}  // namespace
}  // namespace vmbusd::integration
