#include "daemon/disk_image.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace vmbusd::daemon {

namespace {

// Has the disk use O_DIRECT. Some file systems refuse it at open, some at each read, and some want larger
// blocks than the guest is to see. Says why not, and leaves the disk as it was; empty on success.
std::string use_direct(const std::string& path, int flags, storvsp::DiskConfig& disk) {
  UniqueFd direct(::open(path.c_str(), flags | O_DIRECT));
  if (!direct) return std::strerror(errno);
  std::swap(disk.fd, direct);
  const Result<void> checked = storvsp::check_disk(disk);
  if (checked) return {};
  std::swap(disk.fd, direct);
  return describe(checked.error());
}

// An open file description lock, so it passes to the worker process with the descriptor, and a program that
// uses the same kind (QEMU does) sees it. Returns an errno value; a file system without locks is no failure.
int lock_image(int fd, bool read_only) {
  struct flock lock {};
  lock.l_type = read_only ? F_RDLCK : F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (::fcntl(fd, F_OFD_SETLK, &lock) == 0) return 0;
  return errno == EAGAIN || errno == EACCES ? errno : 0;
}

}  // namespace

std::string open_disk_image(const ImageConfig& image, const LogScope& log, storvsp::DiskConfig& disk) {
  const int flags = (disk.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC;
  // Through the page cache first, so that "no such file" is not mistaken for a refused O_DIRECT.
  UniqueFd fd(::open(image.path.c_str(), flags));
  if (!fd) {
    const bool refused = errno == EACCES || errno == EROFS || errno == EPERM;
    return fmt::format("cannot open {} for {}: {}{}", image.path, disk.read_only ? "reading" : "writing",
                       std::strerror(errno),
                       refused && !disk.read_only ? "; give permission or set readonly = true" : "");
  }
  disk.fd = std::move(fd);
  if (image.direct != DirectIo::kOff) {
    const std::string refused = use_direct(image.path, flags, disk);
    if (!refused.empty() && image.direct == DirectIo::kOn) {
      return fmt::format("{} cannot be used with O_DIRECT: {}; set direct = \"auto\" or \"off\"", image.path,
                         refused);
    }
    if (!refused.empty()) {
      log.info("LUN {} goes through the host's page cache, no O_DIRECT on {}: {}", disk.lun, image.path,
               refused);
    }
  }
  if (lock_image(disk.fd.get(), disk.read_only) != 0) {
    return fmt::format("{} is in use: another program (a VM or another vmbusd) holds a lock on it",
                       image.path);
  }
  if (const Result<void> checked = storvsp::check_disk(disk); !checked) {
    return fmt::format("{}: {}", image.path, describe(checked.error()));
  }
  return {};
}

}  // namespace vmbusd::daemon
