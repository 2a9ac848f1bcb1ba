// The checks of a configuration that look at the host.
#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <tuple>

#include "base/fd.h"
#include "base/log.h"
#include "daemon/config.h"

namespace vmbusd::daemon {

namespace {

std::string parent_directory(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// What tells that two paths lead to one image: the device a node stands for, else the file.
using Identity = std::tuple<bool, std::uint64_t, std::uint64_t>;
Identity identity_of(const struct stat& status) {
  if (S_ISBLK(status.st_mode)) return {true, status.st_rdev, 0};
  return {false, status.st_dev, status.st_ino};
}

class HostChecker {
 public:
  std::vector<ConfigProblem> check(const Config& config) {
    for (const PartitionConfig& partition : config.partitions) {
      check_socket(partition);
      for (const ScsiConfig& scsi : partition.scsi) {
        for (std::size_t i = 0; i < scsi.images.size(); ++i)
          check_image(scsi.images[i], scsi.controller.disks[i]);
      }
    }
    return std::move(problems_);
  }

 private:
  struct FirstUse {
    std::uint32_t line;
    bool read_only;
  };

  void add(std::uint32_t line, const char* key, std::string text) {
    if (problems_.size() < kProblemsMax) problems_.push_back({line, key, std::move(text)});
  }

  void check_socket(const PartitionConfig& partition) {
    constexpr const char* kKey = "partition.socket";
    if (partition.socket.empty()) return;  // no more than a device of one
    const std::string directory = parent_directory(partition.socket);
    struct stat status {};
    if (::stat(directory.c_str(), &status) != 0) {
      if (errno == EACCES) return;
      add(partition.line, kKey, fmt::format("cannot use directory {}: {}", directory, std::strerror(errno)));
    } else if (!S_ISDIR(status.st_mode)) {
      add(partition.line, kKey, fmt::format("{} is not a directory", directory));
    } else if (::lstat(partition.socket.c_str(), &status) == 0 && !S_ISSOCK(status.st_mode)) {
      add(partition.line, kKey, fmt::format("{} exists and is not a socket", partition.socket));
    }
  }

  void check_reservations(const ImageConfig& image) {
    if (image.reservations.empty()) return;
    constexpr const char* kKey = "partition.scsi.disk.reservations";
    const std::string directory = parent_directory(image.reservations);
    struct stat status {};
    if (::stat(directory.c_str(), &status) != 0) {
      if (errno == EACCES) return;
      add(image.line, kKey, fmt::format("cannot use directory {}: {}", directory, std::strerror(errno)));
    } else if (::stat(image.reservations.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
      add(image.line, kKey, fmt::format("{} is not a regular file", image.reservations));
    }
  }

  // As for images; an export that goes by two names is not found.
  void check_export(const ImageConfig& image, const storvsp::DiskConfig& disk) {
    const NbdAddress& nbd = image.nbd;
    const auto [first, fresh] = exports_.emplace(std::tuple(nbd.socket, nbd.host, nbd.port, nbd.export_name),
                                                 FirstUse{image.line, disk.read_only});
    if (fresh || (first->second.read_only && disk.read_only)) return;
    add(image.line, "partition.scsi.disk.nbd",
        fmt::format("is the export of the disk at line {} too; accepted: one disk per export, or readonly = "
                    "true on all of them",
                    first->second.line));
  }

  void check_image(const ImageConfig& image, const storvsp::DiskConfig& disk) {
    if (disk.backend == storvsp::DiskConfig::Backend::kNbd) check_export(image, disk);
    if (disk.backend != storvsp::DiskConfig::Backend::kFile) return;
    check_reservations(image);
    constexpr const char* kKey = "partition.scsi.disk.path";
    struct stat status {};
    if (::stat(image.path.c_str(), &status) != 0) {
      if (errno != EACCES) {
        add(image.line, kKey, fmt::format("cannot use {}: {}", image.path, std::strerror(errno)));
      }
      return;
    }
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
      add(image.line, kKey,
          fmt::format("{} is neither; accepted: the path of a raw image or a block device", image.path));
      return;
    }
    constexpr std::uint32_t kLeastBlock = 512;
    const std::uint32_t block = std::max(disk.logical_block_bytes, kLeastBlock);
    if (S_ISREG(status.st_mode) && (status.st_size == 0 || status.st_size % block != 0)) {
      add(image.line, kKey,
          fmt::format("{} has {} bytes; accepted: a multiple of {}, not 0", image.path, status.st_size,
                      block));
    }
    // A reader beside a writer is refused too: its guest caches what the other changes.
    const auto [first, fresh] = images_.emplace(identity_of(status), FirstUse{image.line, disk.read_only});
    if (!fresh && !(first->second.read_only && disk.read_only)) {
      add(image.line, kKey,
          fmt::format(
              "{} is the image of the disk at line {} too; accepted: one disk per image, or readonly = "
              "true on all of them",
              image.path, first->second.line));
    }
  }

  std::vector<ConfigProblem> problems_;
  std::map<Identity, FirstUse> images_;
  std::map<std::tuple<std::string, std::string, std::string, std::string>, FirstUse> exports_;
};

}  // namespace

std::vector<ConfigProblem> check_host(const Config& config) {
  return HostChecker().check(config);
}

Result<std::string> read_config_file(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return fail_os(errno, "cannot open");
  std::string text;
  std::array<char, 16384> chunk;
  for (;;) {
    const ssize_t got = ::read(file.get(), chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_os(errno, "cannot read");
    if (got == 0) return text;
    text.append(chunk.data(), static_cast<std::size_t>(got));
    if (text.size() > kConfigFileBytesMax)
      return fail(Errc::kConfig, "larger than 1 MiB, so no configuration file");
  }
}

std::string directory_of(const std::string& path) {
  const std::unique_ptr<char, decltype(&::free)> file(::realpath(path.c_str(), nullptr), &::free);
  return parent_directory(file ? file.get() : path);
}

ParsedConfig load_config(const std::string& path) {
  const Result<std::string> text = read_config_file(path);
  if (!text) return {{}, {{0, "", describe(text.error())}}};
  ParsedConfig parsed = parse_config(*text, directory_of(path));
  if (parsed.problems.empty()) parsed.problems = check_host(parsed.config);
  return parsed;
}

}  // namespace vmbusd::daemon
