#include "daemon/disk_image.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace vmbusd::daemon {

namespace {

// Reads one block as the disk will. Some file systems take O_DIRECT at open and refuse each read. Returns an
// errno value, 0 for success.
int try_direct_read(int fd) {
  constexpr std::size_t kBlock = 4096;  // the coarsest alignment that a file system or device asks for
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  const std::unique_ptr<void, Free> block(std::aligned_alloc(kBlock, kBlock));
  if (!block) return ENOMEM;
  return ::pread(fd, block.get(), kBlock, 0) < 0 ? errno : 0;
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
  if (image.direct != DirectIo::kOff) {
    UniqueFd direct(::open(image.path.c_str(), flags | O_DIRECT));
    const int refused = direct ? try_direct_read(direct.get()) : errno;
    if (refused == 0) {
      fd = std::move(direct);
    } else if (image.direct == DirectIo::kOn) {
      return fmt::format("{} cannot be opened with O_DIRECT: {}; set direct = \"auto\" or \"off\"",
                         image.path, std::strerror(refused));
    } else {
      log.info("LUN {} goes through the host's page cache: no O_DIRECT on {}: {}", disk.lun, image.path,
               std::strerror(refused));
    }
  }
  if (lock_image(fd.get(), disk.read_only) != 0) {
    return fmt::format("{} is in use: another program (a VM or another vmbusd) holds a lock on it",
                       image.path);
  }
  disk.fd = std::move(fd);
  if (const Result<void> checked = storvsp::check_disk(disk); !checked) {
    return fmt::format("{}: {}", image.path, describe(checked.error()));
  }
  return {};
}

}  // namespace vmbusd::daemon
