#include "daemon/disk_image.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <thread>
#include <utility>

#include "storvsp/file_disk.h"
#include "storvsp/kept_record.h"

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

// What a program does with an image, as QEMU numbers it. Each holds a shared lock on a byte for what it does,
// and on another for what it does not let others do; the locks of those that do not get along are found by
// asking whether one could lock alone. [qemu: block/file-posix.c, raw_apply_lock_bytes;
// include/block/block-common.h, BLK_PERM]
constexpr int kConsistentRead = 0;
constexpr int kWrite = 1;
constexpr int kResize = 3;
constexpr off_t kDoesBase = 100;
constexpr off_t kForbidsBase = 200;

struct flock lock_of_byte(off_t byte, short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

// Takes the locks of an image that is used so. False where another program is in the way; a file system
// without locks is no failure.
bool lock_image(int fd, bool read_only) {
  const auto take = [fd](off_t byte) {
    struct flock lock = lock_of_byte(byte, F_RDLCK);
    return ::fcntl(fd, F_OFD_SETLK, &lock) == 0 || (errno != EAGAIN && errno != EACCES);
  };
  return take(kDoesBase + kConsistentRead) && (read_only || take(kDoesBase + kWrite)) &&
         take(kForbidsBase + kWrite) && take(kForbidsBase + kResize);
}

// Open file description locks, so they pass to the worker process with the descriptor, and QEMU sees them.
// True where another program is in the way; a file system without locks is no failure.
bool image_in_use(int fd, bool read_only) {
  const auto held_by_another = [fd](off_t byte) {
    struct flock lock = lock_of_byte(byte, F_WRLCK);
    return ::fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  };
  static constexpr std::array kUses = {kConsistentRead, kWrite};
  static constexpr std::array kForbidden = {kWrite, kResize};
  const std::span<const int> does = std::span(kUses).first(read_only ? 1 : 2);
  const std::span<const int> forbids = kForbidden;
  // First all, then the question: of two that start at once at least one sees the other.
  if (!lock_image(fd, read_only)) return true;
  return std::any_of(does.begin(), does.end(),
                     [&](int what) { return held_by_another(kForbidsBase + what); }) ||
         std::any_of(forbids.begin(), forbids.end(),
                     [&](int what) { return held_by_another(kDoesBase + what); });
}

// What a supervisor lends of an image to its workers, each by a byte of its own, and the byte that it holds
// itself. Beyond what QEMU and any file use; unlike theirs, for this host only.
constexpr off_t kLentBase = off_t{1} << 62;
constexpr off_t kKeeperByte = kLentBase - 1;
constexpr auto kLeftBehindTime = std::chrono::seconds(20);
constexpr auto kLeftBehindPoll = std::chrono::milliseconds(5);

// Whether workers have accesses to the image, or the kernel for them, whose supervisor is gone: they follow.
bool left_behind(int fd) {
  struct flock keeper = lock_of_byte(kKeeperByte, F_WRLCK);
  struct flock lent = lock_of_byte(kLentBase, F_WRLCK);
  lent.l_len = 0;  // and all behind it
  return ::fcntl(fd, F_OFD_GETLK, &keeper) == 0 && keeper.l_type == F_UNLCK &&
         ::fcntl(fd, F_OFD_GETLK, &lent) == 0 && lent.l_type != F_UNLCK;
}

// False where it stays in use by others.
bool take_image(int fd, bool read_only, bool restarted) {
  const auto until = std::chrono::steady_clock::now() + kLeftBehindTime;
  while (image_in_use(fd, read_only)) {
    if (!restarted || !left_behind(fd) || std::chrono::steady_clock::now() >= until) return false;
    std::this_thread::sleep_for(kLeftBehindPoll);
  }
  struct flock keeper = lock_of_byte(kKeeperByte, F_RDLCK);
  ::fcntl(fd, F_OFD_SETLK, &keeper);  // a file system without locks is no failure
  return true;
}

// Why the kernel cannot poll for what the file's device completes; empty where it can.
std::string polling_refused(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_DIRECT) == 0) return "there is no O_DIRECT on it";
  struct stat status {};
  if (::fstat(fd, &status) != 0) return std::strerror(errno);
  const dev_t device = S_ISBLK(status.st_mode) ? status.st_rdev : status.st_dev;
  // [linux: Documentation/ABI/stable/sysfs-block, io_poll] A partition's queue is its disk's.
  for (const char* const queue : {"queue", "../queue"}) {
    std::ifstream file(fmt::format("/sys/dev/block/{}:{}/{}/io_poll", major(device), minor(device), queue));
    char polls = 0;
    if (file >> polls) return polls == '1' ? "" : "its device has no queues for that (io_poll is 0 in sysfs)";
  }
  return "which device it is on cannot be told";
}

// Opens, or makes, the file that keeps a disk's reservations. Alone, as two disks would undo each other's.
std::string open_reservations(const std::string& path, UniqueFd& file, bool restarted) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR));
  if (!fd) return fmt::format("cannot open {} for writing: {}", path, std::strerror(errno));
  struct flock lock = lock_of_byte(0, F_WRLCK);
  const auto in_use = [&] {
    return ::fcntl(fd.get(), F_OFD_SETLK, &lock) != 0 && (errno == EAGAIN || errno == EACCES);
  };
  // A worker that is ending closes it behind the image.
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(restarted ? 2 : 0);
  bool used = in_use();
  while (used && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(kLeftBehindPoll);
    used = in_use();
  }
  if (used) {
    return fmt::format("{} is in use: another disk, perhaps of another vmbusd, keeps its reservations there",
                       path);
  }
  if (!storvsp::KeptRecord::fits(fd.get())) {
    return fmt::format("{} holds something other than reservations; give the disk a file of its own", path);
  }
  // So that a file which is new outlasts the host's failure, as what is in it will.
  const UniqueFd directory(
      ::open(std::filesystem::path(path).parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory) ::fsync(directory.get());
  file = std::move(fd);
  return {};
}

}  // namespace

std::string open_disk_image(const ImageConfig& image, const LogScope& log, storvsp::DiskConfig& disk,
                            bool restarted) {
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
  if (disk.poll) {
    if (const std::string refused = polling_refused(disk.fd.get()); !refused.empty()) {
      return fmt::format("{} cannot be polled: {}; set poll = false", image.path, refused);
    }
  }
  if (!take_image(disk.fd.get(), disk.read_only, restarted)) {
    return fmt::format("{} is in use: another program (a VM or another vmbusd) holds a lock on it",
                       image.path);
  }
  if (const Result<void> checked = storvsp::check_disk(disk); !checked) {
    return fmt::format("{}: {}", image.path, describe(checked.error()));
  }
  return image.reservations.empty() ? std::string()
                                    : open_reservations(image.reservations, disk.reservations, restarted);
}

namespace {
off_t lent_byte(std::uint32_t number) {
  return kLentBase + (static_cast<off_t>(::getpid()) << 32) + number;
}
}  // namespace

std::string image_identity(int image) {
  struct stat status {};
  if (::fstat(image, &status) != 0) return {};
  if (S_ISBLK(status.st_mode)) return fmt::format(" device {}", status.st_rdev);
  return fmt::format(" file {} {}", status.st_dev, status.st_ino);
}

Result<UniqueFd> lend_image(int image, std::uint32_t number) {
  const int flags = ::fcntl(image, F_GETFL);
  UniqueFd lent(
      ::open(fmt::format("/proc/self/fd/{}", image).c_str(), (flags & (O_ACCMODE | O_DIRECT)) | O_CLOEXEC));
  if (!lent) return fail_os(errno, "cannot open it once more");
  // The image stays locked where the supervisor dies before the last of that.
  if (!lock_image(lent.get(), (flags & O_ACCMODE) == O_RDONLY))
    return fail(Errc::kOs, "another program uses it");
  struct flock lock = lock_of_byte(lent_byte(number), F_RDLCK);
  if (::fcntl(lent.get(), F_OFD_SETLK, &lock) != 0) return fail_os(errno, "cannot lock it");
  return lent;
}

void unlock_image(int image) {
  struct flock lock = lock_of_byte(0, F_UNLCK);
  lock.l_len = 0;  // all
  ::fcntl(image, F_OFD_SETLK, &lock);
}

bool image_returned(int image, std::uint32_t number) {
  struct flock lock = lock_of_byte(lent_byte(number), F_WRLCK);
  return ::fcntl(image, F_OFD_GETLK, &lock) != 0 || lock.l_type == F_UNLCK;
}

Result<std::uint64_t> grow_image(int image, std::uint64_t size_bytes) {
  VMBUSD_TRY(const storvsp::FileProbe now, storvsp::probe_file(image));
  if (size_bytes == 0 || size_bytes == now.size_bytes) return now.size_bytes;
  if (size_bytes < now.size_bytes) return fail(Errc::kConfig, "it is larger than that already");
  if (now.block_device) return fail(Errc::kConfig, "a device does not grow by being asked");
  if (::ftruncate(image, static_cast<off_t>(size_bytes)) != 0) return fail_os(errno, "it does not grow");
  return size_bytes;
}

}  // namespace vmbusd::daemon
