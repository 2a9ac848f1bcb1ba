// A directory that is removed with all in it. For tests and benchmarks.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/assert.h"

namespace vmbusd {

class TemporaryDirectory {
 public:
  // In `parent`, under a name that is not in use.
  explicit TemporaryDirectory(const std::filesystem::path& parent = std::filesystem::temp_directory_path()) {
    std::string pattern = parent / "vmbusd-XXXXXX";
    if (::mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  // Empty where it could not be made; errno is mkdtemp's then.
  [[nodiscard]] const std::string& path() const { return path_; }
  // Of a file in it, which must have been made.
  [[nodiscard]] std::string path(const std::string& name) const {
    VMBUSD_ASSERT(!path_.empty());
    return path_ + "/" + name;
  }

 private:
  std::string path_;
};

}  // namespace vmbusd
