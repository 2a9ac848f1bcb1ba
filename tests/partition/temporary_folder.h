// A folder that goes with its object.
#pragma once

#include <array>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/catch.h"

namespace vmbusd::test {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::array<char, 32> name{"/tmp/vmbusd_test_XXXXXX"};
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder_ = name.data();
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  [[nodiscard]] std::string path(const char* name) const { return folder_ + "/" + name; }

 private:
  std::string folder_;
};

}  // namespace vmbusd::test
