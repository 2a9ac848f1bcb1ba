#include "daemon/key_values.h"

#include <string>
#include <vector>

#include "tests/catch.h"

namespace vmbusd::daemon {
namespace {

TEST_CASE("words make tables as TOML would", "[daemon][vmbusctl]") {
  struct Case {
    const char* rule;
    std::vector<std::string> words;
    const char* json;
  };
  const std::vector<Case> cases = {
      {"no words", {}, "{}"},
      {"text, number, boolean",
       {"name=g1", "io_threads=2", "a=true", "b=false"},
       R"({"a":true,"b":false,"io_threads":2,"name":"g1"})"},
      {"quotes make text", {"name=\"7\""}, R"({"name":"7"})"},
      {"a value may hold anything", {"path=/a=b.c"}, R"({"path":"/a=b.c"})"},
      {"an empty value is text", {"name="}, R"({"name":""})"},
      {"a key that is there begins the next table",
       {"scsi.name=a", "scsi.name=b"},
       R"({"scsi":[{"name":"a"},{"name":"b"}]})"},
      {"a table's tables are the last one's",
       {"scsi.name=a", "scsi.disk.lun=0", "scsi.disk.lun=1", "scsi.name=b", "scsi.disk.lun=0"},
       R"({"scsi":[{"disk":[{"lun":0},{"lun":1}],"name":"a"},{"disk":[{"lun":0}],"name":"b"}]})"},
  };
  for (const Case& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      const KeyValues parsed = parse_key_values(c.words);
      CHECK(parsed.problem.empty());
      CHECK(parsed.json == c.json);
    }
  }
}

TEST_CASE("words that are no keys and values are refused", "[daemon][vmbusctl]") {
  const std::vector<std::vector<std::string>> cases = {
      {"name"},
      {"=x"},
      {".a=1"},
      {"a.=1"},
      {"a..b=1"},
      {"a.b.c.d.e=1"},
      {"name=a", "name=b"},
      {"a=1", "a.b=1"},
      {"a.b=1", "a=1"},
  };
  for (const std::vector<std::string>& words : cases) {
    INFO(words.back());
    CHECK_FALSE(parse_key_values(words).problem.empty());
  }
}

}  // namespace
}  // namespace vmbusd::daemon
