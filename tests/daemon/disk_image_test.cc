#include "daemon/disk_image.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "base/temporary_directory.h"
#include "tests/catch.h"

namespace vmbusd::daemon {
namespace {

class Image {
 public:
  explicit Image(std::size_t bytes = 1 << 20) {
    std::ofstream(directory_.path("d.img")) << std::string(bytes, 'x');
    config_.path = directory_.path("d.img");
  }

  // What there is to complain of; `disk` has the descriptor where it is nothing.
  [[nodiscard]] std::string open(storvsp::DiskConfig& disk, DirectIo direct = DirectIo::kOff) {
    config_.direct = direct;
    return open_disk_image(config_, log_, disk);
  }
  [[nodiscard]] const std::string& path() const { return config_.path; }
  // In a file of that name beside the image, or at that absolute path. Its path.
  std::string keep_reservations(const std::string& name) {
    config_.reservations = name.front() == '/' ? name : directory_.path(name);
    return config_.reservations;
  }

 private:
  TemporaryDirectory directory_;
  ImageConfig config_;
  LogScope log_{"test"};
};

storvsp::DiskConfig read_only_disk() {
  storvsp::DiskConfig disk;
  disk.read_only = true;
  return disk;
}

int flags_of(const storvsp::DiskConfig& disk) {
  return ::fcntl(disk.fd.get(), F_GETFL);
}

TEST_CASE("an image is opened as the disk uses it", "[daemon]") {
  Image image;
  storvsp::DiskConfig reader = read_only_disk();
  REQUIRE(image.open(reader) == "");
  CHECK((flags_of(reader) & (O_ACCMODE | O_DIRECT)) == O_RDONLY);
  CHECK((::fcntl(reader.fd.get(), F_GETFD) & FD_CLOEXEC) != 0);
  reader.fd.reset();
  storvsp::DiskConfig writer;
  REQUIRE(image.open(writer) == "");
  CHECK((flags_of(writer) & (O_ACCMODE | O_DIRECT)) == O_RDWR);
}

// [linux: Documentation/ABI/stable/sysfs-block, io_poll] '\0' where the device under the path is not known.
char sysfs_io_poll(const std::string& path) {
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  const std::string device =
      "/sys/dev/block/" + std::to_string(major(status.st_dev)) + ":" + std::to_string(minor(status.st_dev));
  char polls = 0;
  if (!(std::ifstream(device + "/queue/io_poll") >> polls))
    std::ifstream(device + "/../queue/io_poll") >> polls;
  return polls;
}

TEST_CASE("a disk is polled only where its device can be", "[daemon]") {
  Image image;
  storvsp::DiskConfig disk = read_only_disk();
  disk.poll = true;
  CHECK(image.open(disk, DirectIo::kOff) ==
        image.path() + " cannot be polled: there is no O_DIRECT on it; set poll = false");
  storvsp::DiskConfig plain = read_only_disk();
  if (!image.open(plain, DirectIo::kOn).empty()) return;
  const std::string said = image.open(disk, DirectIo::kOn);
  switch (sysfs_io_poll(image.path())) {
    case '1':
      CHECK(said == "");
      break;
    case '0':
      CHECK(said == image.path() +
                        " cannot be polled: its device has no queues for that (io_poll is 0 in sysfs); "
                        "set poll = false");
      break;
    default:
      CHECK(said ==
            image.path() + " cannot be polled: which device it is on cannot be told; set poll = false");
  }
}

TEST_CASE("O_DIRECT is used where it can be", "[daemon]") {
  Image image;
  storvsp::DiskConfig automatic;
  REQUIRE(image.open(automatic, DirectIo::kAuto) == "");
  const bool possible = (flags_of(automatic) & O_DIRECT) != 0;
  automatic.fd.reset();
  // The temporary directory's file system decides; what may not be is an answer that differs from auto's.
  storvsp::DiskConfig demanded;
  CHECK(image.open(demanded, DirectIo::kOn).empty() == possible);
}

TEST_CASE("an image smaller than a block is refused", "[daemon]") {
  for (const std::size_t bytes : {0, 700}) {
    Image image(bytes);
    storvsp::DiskConfig disk;
    disk.logical_block_bytes = 4096;
    CHECK(image.open(disk, DirectIo::kAuto).starts_with(image.path() + ": "));
  }
}

TEST_CASE("readers share an image, a writer has it alone", "[daemon]") {
  const std::string in_use = " is in use: another program (a VM or another vmbusd) holds a lock on it";
  Image image;
  storvsp::DiskConfig first = read_only_disk();
  storvsp::DiskConfig second = read_only_disk();
  storvsp::DiskConfig writer;
  REQUIRE(image.open(first) == "");
  CHECK(image.open(second) == "");
  CHECK(image.open(writer) == image.path() + in_use);
  first.fd.reset();
  second.fd.reset();
  REQUIRE(image.open(writer) == "");
  CHECK(image.open(first) == image.path() + in_use);
  // A duplicate, such as the worker process has, keeps the lock.
  const UniqueFd duplicate(::dup(writer.fd.get()));
  writer.fd.reset();
  CHECK(image.open(first) == image.path() + in_use);
}

// Another program's lock on one byte.
UniqueFd locked_byte(const std::string& path, off_t byte, short type = F_RDLCK) {
  UniqueFd fd(::open(path.c_str(), O_RDWR));
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  REQUIRE(::fcntl(fd.get(), F_OFD_SETLK, &lock) == 0);
  return fd;
}

struct ForeignLock {
  const char* rule;
  off_t byte;
  bool reader;  // may open it
  bool writer;
};
// What QEMU 7.2 locks. [qemu: block/file-posix.c, raw_apply_lock_bytes]
constexpr ForeignLock kForeignLocks[] = {
    {"another reads", 100, true, true},
    {"another writes", 101, false, false},
    {"another writes what is there already", 102, true, true},
    {"another may resize", 103, false, false},
    {"another lets nobody read", 200, false, false},
    {"another lets nobody write", 201, true, false},
    {"another lets nobody resize", 203, true, true},
    {"a byte of no meaning", 300, true, true},
};

TEST_CASE("an image that QEMU uses is left alone, and the other way round", "[daemon]") {
  for (const ForeignLock& c : kForeignLocks) {
    DYNAMIC_SECTION(c.rule) {
      Image image;
      const UniqueFd other = locked_byte(image.path(), c.byte);
      storvsp::DiskConfig reader = read_only_disk();
      CHECK(image.open(reader).empty() == c.reader);
      reader.fd.reset();
      storvsp::DiskConfig writer;
      CHECK(image.open(writer).empty() == c.writer);
    }
  }
  SECTION("a writer's locks") {
    Image image;
    storvsp::DiskConfig writer;
    REQUIRE(image.open(writer) == "");
    const UniqueFd asker(::open(image.path().c_str(), O_RDWR));
    for (off_t byte = 90; byte < 210; ++byte) {
      struct flock lock {};
      lock.l_type = F_WRLCK;
      lock.l_whence = SEEK_SET;
      lock.l_start = byte;
      lock.l_len = 1;
      REQUIRE(::fcntl(asker.get(), F_OFD_GETLK, &lock) == 0);
      const bool ours = byte == 100 || byte == 101 || byte == 201 || byte == 203;
      CHECK((lock.l_type == F_RDLCK) == ours);
    }
  }
}

TEST_CASE("the file of reservations is made, and one disk's alone", "[daemon]") {
  Image image;
  Image other;
  const std::string path = image.keep_reservations("d.reservations");
  storvsp::DiskConfig disk;
  REQUIRE(image.open(disk) == "");
  REQUIRE(disk.reservations);
  CHECK((::fcntl(disk.reservations.get(), F_GETFL) & O_ACCMODE) == O_RDWR);
  CHECK((::fcntl(disk.reservations.get(), F_GETFD) & FD_CLOEXEC) != 0);
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 07777) == 0600);
  // It shares no image with the first.
  other.keep_reservations(path);
  storvsp::DiskConfig second;
  CHECK(other.open(second) ==
        path + " is in use: another disk, perhaps of another vmbusd, keeps its reservations there");
  disk.reservations.reset();
  CHECK(other.open(second).empty());
}

TEST_CASE("a file of something else is not taken for reservations", "[daemon]") {
  Image image;
  const std::string path = image.keep_reservations("notes");
  std::ofstream(path) << "dear diary";
  storvsp::DiskConfig disk;
  CHECK(image.open(disk) ==
        path + " holds something other than reservations; give the disk a file of its own");
  CHECK(!disk.reservations);
}

TEST_CASE("an image that cannot be opened is told with its path", "[daemon]") {
  storvsp::DiskConfig disk;
  ImageConfig image;
  image.path = "/nonexistent/d.img";
  CHECK(open_disk_image(image, LogScope("test"), disk) ==
        "cannot open /nonexistent/d.img for writing: No such file or directory");
}

TEST_CASE("an image that was lent is returned with the last use of it", "[daemon]") {
  Image image;
  storvsp::DiskConfig disk;
  REQUIRE(image.open(disk) == "");
  const int own = disk.fd.get();
  Result<UniqueFd> lent = lend_image(own, 7);
  REQUIRE(lent.has_value());
  CHECK(::fcntl(lent->get(), F_GETFL) == flags_of(disk));
  CHECK_FALSE(image_returned(own, 7));
  CHECK(image_returned(own, 8));
  UniqueFd copy(::dup(lent->get()));
  lent->reset();
  CHECK_FALSE(image_returned(own, 7));
  copy.reset();
  CHECK(image_returned(own, 7));
}

}  // namespace
}  // namespace vmbusd::daemon
