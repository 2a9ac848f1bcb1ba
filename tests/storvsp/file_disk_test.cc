#include "storvsp/file_disk.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <linux/mount.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/assert.h"
#include "guest/faulty_file.h"
#include "storvsp/null_disk.h"
#include "tests/catch.h"
#include "tests/io/on_worker.h"

namespace vmbusd::storvsp {
namespace {

constexpr std::uint64_t kDiskBytes = 4u << 20;

// A nameless file in the current folder, whose file system most likely knows O_DIRECT. Invalid where it
// cannot be had.
UniqueFd temporary_file(int flags) {
  return UniqueFd(::open(std::filesystem::current_path().c_str(), O_TMPFILE | O_RDWR | flags, 0600));
}

UniqueFd memory_file(std::uint64_t size) {
  UniqueFd fd(::memfd_create("disk", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  VMBUSD_ASSERT(fd && ::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  return fd;
}

// A file of `size` bytes on a tmpfs that has room for `room`. Invalid without the privilege to mount one.
UniqueFd cramped_file(std::uint64_t size, const char* room) {
  const UniqueFd filesystem(static_cast<int>(::syscall(SYS_fsopen, "tmpfs", 0)));
  if (!filesystem) return UniqueFd();
  if (::syscall(SYS_fsconfig, filesystem.get(), FSCONFIG_SET_STRING, "size", room, 0) != 0 ||
      ::syscall(SYS_fsconfig, filesystem.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return UniqueFd();
  }
  const UniqueFd mount(static_cast<int>(::syscall(SYS_fsmount, filesystem.get(), 0, 0)));
  if (!mount) return UniqueFd();
  UniqueFd fd(::openat(mount.get(), "disk", O_RDWR | O_CREAT | O_EXCL, 0600));
  VMBUSD_ASSERT(fd && ::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  return fd;
}

class TestRequest final : public DiskRequest {
 public:
  void disk_done(int error) noexcept override { done.set_value(error); }
  std::promise<int> done;
  std::vector<iovec> vectors;
};

// Page-aligned memory, as a guest's is.
struct Buffer {
  explicit Buffer(std::size_t bytes)
      : size(bytes), data(static_cast<std::byte*>(std::aligned_alloc(4096, bytes))) {
    std::memset(data, 0, bytes);
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void fill(std::uint32_t seed) const {
    std::mt19937 random(seed);
    for (std::size_t i = 0; i < size; ++i) data[i] = static_cast<std::byte>(random());
  }

  std::size_t size;
  std::byte* data;
};

// A disk on a worker.
struct Fixture {
  explicit Fixture(UniqueFd fd, bool ignore_flush = false, std::uint32_t entries = 64, bool poll = false)
      : raw(::dup(fd.get())) {
    const FileProbe probe = probe_file(fd.get()).value();
    DiskGeometry geometry;
    geometry.size_bytes = probe.size_bytes;
    geometry.logical_block_bytes = probe.logical_block_bytes;
    direct = probe.direct;
    block_bytes = probe.logical_block_bytes;
    disk = std::make_unique<FileDisk>(std::move(fd), probe, geometry,
                                      FileDisk::Options{1u << 20, ignore_flush, poll, "test"});
    worker = std::move(*io::Worker::create({.name = "disk-test", .entries = entries, .polled_ring = poll}));
    worker->start();
    io::on_worker(*worker, [this] { queue = disk->open_queue(*worker); });
  }
  ~Fixture() {
    io::on_worker(*worker, [this] { queue->cancel(); });
    worker->stop();
  }

  // One operation from and to `pieces` of memory, to its end. The errno.
  int run(DiskIo io, const std::vector<iovec>& pieces) {
    TestRequest request;
    request.io = io;
    request.vectors = pieces;
    request.buffers = request.vectors;
    std::future<int> done = request.done.get_future();
    worker->post([&] { queue->submit(request); });
    return done.get();
  }
  int read(std::uint64_t offset, std::byte* to, std::uint32_t length) {
    return run({DiskOp::kRead, false, offset, length}, {{to, length}});
  }
  int write(std::uint64_t offset, std::byte* from, std::uint32_t length, bool fua = false) {
    return run({DiskOp::kWrite, fua, offset, length}, {{from, length}});
  }

  UniqueFd raw;
  bool direct = false;
  std::uint32_t block_bytes = 0;
  std::unique_ptr<FileDisk> disk;
  std::unique_ptr<io::Worker> worker;
  std::unique_ptr<DiskQueue> queue;
};

TEST_CASE("a probe tells what a descriptor can do", "[storvsp]") {
  SECTION("a file in memory") {
    const UniqueFd fd = memory_file(kDiskBytes);
    const FileProbe probe = probe_file(fd.get()).value();
    CHECK(probe.size_bytes == kDiskBytes);
    CHECK(probe.logical_block_bytes == 512);
    CHECK(probe.memory_alignment == 1);
    CHECK(probe.writable);
    CHECK(!probe.direct);
    CHECK(!probe.block_device);
  }
  SECTION("open for reading only") {
    const UniqueFd fd(::open("/proc/self/exe", O_RDONLY));
    CHECK(!probe_file(fd.get()).value().writable);
  }
  SECTION("O_DIRECT") {
    const UniqueFd fd = temporary_file(O_DIRECT);
    if (!fd) return;
    VMBUSD_ASSERT(::ftruncate(fd.get(), kDiskBytes) == 0);
    const FileProbe probe = probe_file(fd.get()).value();
    CHECK(probe.direct);
    CHECK(probe.logical_block_bytes >= 512);
    CHECK(probe.logical_block_bytes <= 4096);
    CHECK(probe.memory_alignment <= 4096);
  }
}

// A block device of 4 KiB blocks over a file in memory, gone with its descriptor. Invalid where there are no
// loop devices for us.
UniqueFd loop_device(std::uint64_t size, int flags) {
  const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
  if (!control) return UniqueFd();
  const UniqueFd file = memory_file(size);
  loop_config config{};
  config.fd = static_cast<std::uint32_t>(file.get());
  config.block_size = 4096;
  config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
  // Another process may take the free one first.
  for (int i = 0; i < 10; ++i) {
    const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) return UniqueFd();
    UniqueFd device(::open(("/dev/loop" + std::to_string(number)).c_str(), O_RDWR | O_CLOEXEC | flags));
    if (!device) return UniqueFd();
    if (::ioctl(device.get(), LOOP_CONFIGURE, &config) == 0) return device;
    if (errno != EBUSY) return UniqueFd();
  }
  return UniqueFd();
}

TEST_CASE("a block device is served by its own blocks, and discards", "[storvsp]") {
  UniqueFd device = loop_device(kDiskBytes, O_DIRECT);
  if (!device) {
    WARN("no loop device to be had: not tested");
    return;
  }
  const FileProbe probe = probe_file(device.get()).value();
  CHECK(probe.block_device);
  CHECK(probe.size_bytes == kDiskBytes);
  CHECK(probe.logical_block_bytes == 4096);
  CHECK(probe.physical_block_bytes >= 4096);
  CHECK(probe.writable);
  CHECK(probe.direct);
  CHECK(probe.memory_alignment > 1);
  CHECK(probe.discards);
  CHECK(!probe.discard_zeroes);  // what no device promises

  Fixture fixture(std::move(device));
  CHECK(fixture.disk->geometry().logical_block_bytes == 4096);
  const Buffer out(64 * 1024);
  const Buffer in(64 * 1024);
  out.fill(1);
  REQUIRE(fixture.write(8192, out.data, 64 * 1024) == 0);
  REQUIRE(fixture.run({DiskOp::kFlush}, {}) == 0);
  REQUIRE(fixture.read(8192, in.data, 64 * 1024) == 0);
  CHECK(std::memcmp(in.data, out.data, in.size) == 0);
  // A loop device passes it on as a hole.
  REQUIRE(fixture.run({DiskOp::kDiscard, false, 8192, 64 * 1024}, {}) == 0);
  REQUIRE(fixture.read(8192, in.data, 64 * 1024) == 0);
  CHECK(std::all_of(in.data, in.data + in.size, [](std::byte byte) { return byte == std::byte{}; }));
  CHECK(fixture.run({DiskOp::kDiscard, false, 0, 512}, {}) == EINVAL);  // not whole blocks
  // What of it is there the device does not say: all.
  TestRequest request;
  request.io = {DiskOp::kMap, false, 4096, 0};
  auto done = request.done.get_future();
  io::on_worker(*fixture.worker, [&] { fixture.queue->submit(request); });
  REQUIRE(done.get() == 0);
  CHECK(request.extent.length == kDiskBytes - 4096);
  CHECK(request.extent.mapped);
}

TEST_CASE("O_DIRECT's rules are tried out where the file system does not say them", "[storvsp]") {
  const auto file = guest::FaultyFile::create(kDiskBytes);
  if (file == nullptr) {
    WARN("no right to mount a file system in user space here: not tested");
    return;
  }
  const UniqueFd fd(::open(file->path().c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
  REQUIRE(fd);
  const FileProbe probe = probe_file(fd.get()).value();
  CHECK(probe.direct);
  CHECK(probe.logical_block_bytes == 512);
  CHECK(probe.memory_alignment == 512);
  CHECK(probe.may_block);
  for (const int error : {EIO, EINVAL}) {  // fails, and takes no block that a guest could have
    file->fail_with(error);
    const Result<FileProbe> refused = probe_file(fd.get());
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().os_error == error);
  }
}

TEST_CASE("a null disk has done everything at once", "[storvsp]") {
  const auto worker = std::move(*io::Worker::create({.name = "null"}));
  DiskGeometry geometry;
  geometry.size_bytes = kDiskBytes;
  NullDisk disk(geometry);
  CHECK(disk.geometry().size_bytes == kDiskBytes);
  const std::unique_ptr<DiskQueue> queue = disk.open_queue(*worker);
  for (const DiskOp op :
       {DiskOp::kRead, DiskOp::kWrite, DiskOp::kFlush, DiskOp::kDiscard, DiskOp::kZero, DiskOp::kMap}) {
    TestRequest request;
    request.io = {op, false, 8192, op == DiskOp::kFlush || op == DiskOp::kMap ? 0u : 4096u};
    queue->submit(request);
    queue->abort(request);  // comes too late
    CHECK(request.done.get_future().get() == 0);
    if (op == DiskOp::kMap) CHECK(request.extent.length == kDiskBytes - 8192);
  }
  queue->cancel();
}

TEST_CASE("a probe refuses what is no disk", "[storvsp]") {
  SECTION("a pipe") {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const UniqueFd reader(ends[0]);
    const UniqueFd writer(ends[1]);
    CHECK(probe_file(reader.get()).error().code == Errc::kConfig);
    CHECK(probe_file(writer.get()).error().code == Errc::kConfig);
  }
  SECTION("a character device") {
    const UniqueFd fd(::open("/dev/null", O_RDWR));
    CHECK(probe_file(fd.get()).error().code == Errc::kConfig);
  }
  SECTION("a folder") {
    const UniqueFd fd(::open("/", O_RDONLY | O_DIRECTORY));
    CHECK(probe_file(fd.get()).error().code == Errc::kConfig);
  }
  SECTION("a path only") {
    const UniqueFd fd(::open("/proc/self/exe", O_PATH));
    CHECK(probe_file(fd.get()).error().code == Errc::kConfig);
  }
  SECTION("no descriptor") {
    CHECK(probe_file(-1).error().code == Errc::kOs);
    CHECK(probe_file(-1).error().os_error == EBADF);
  }
}

TEST_CASE("what is written can be read", "[storvsp]") {
  UniqueFd fd = GENERATE(0, O_DIRECT) == 0 ? memory_file(0) : temporary_file(O_DIRECT);
  if (!fd) return;  // no O_DIRECT here
  REQUIRE(::ftruncate(fd.get(), kDiskBytes) == 0);
  Fixture fixture(std::move(fd));
  const Buffer out(64 * 1024);
  const Buffer in(64 * 1024);
  out.fill(1);
  CHECK(fixture.write(128 * 1024, out.data, 64 * 1024) == 0);
  CHECK(fixture.read(128 * 1024, in.data, 64 * 1024) == 0);
  CHECK(std::memcmp(in.data, out.data, in.size) == 0);
  SECTION("scattered") {
    std::vector<iovec> pieces;
    for (std::size_t i = 0; i < 16; ++i) pieces.push_back({out.data + (15 - i) * 4096, 4096});
    CHECK(fixture.run({DiskOp::kWrite, false, 0, 64 * 1024}, pieces) == 0);
    CHECK(fixture.read(0, in.data, 4096) == 0);
    CHECK(std::memcmp(in.data, out.data + 15 * 4096, 4096) == 0);
  }
  SECTION("FUA and flush") {
    CHECK(fixture.write(0, out.data, 4096, true) == 0);
    CHECK(fixture.run({DiskOp::kFlush, false, 0, 0}, {}) == 0);
  }
}

TEST_CASE("a vector that the kernel takes only in parts", "[storvsp]") {
  UniqueFd fd = GENERATE(0, O_DIRECT) == 0 ? memory_file(0) : temporary_file(O_DIRECT);
  if (!fd) return;
  REQUIRE(::ftruncate(fd.get(), kDiskBytes) == 0);
  Fixture fixture(std::move(fd));
  const Buffer out(1u << 20);
  const Buffer in(1u << 20);
  out.fill(2);
  std::vector<iovec> from;
  std::vector<iovec> to;
  for (std::size_t at = 0; at < out.size; at += 512) {
    from.push_back({out.data + at, 512});
    to.push_back({in.data + at, 512});
  }
  REQUIRE(from.size() > IOV_MAX);
  CHECK(fixture.run({DiskOp::kWrite, false, 4096, 1u << 20}, from) == 0);
  CHECK(fixture.run({DiskOp::kRead, false, 4096, 1u << 20}, to) == 0);
  CHECK(std::memcmp(in.data, out.data, in.size) == 0);
}

TEST_CASE("O_DIRECT with buffers that are not aligned", "[storvsp]") {
  UniqueFd fd = temporary_file(O_DIRECT);
  if (!fd) return;
  REQUIRE(::ftruncate(fd.get(), kDiskBytes) == 0);
  Fixture fixture(std::move(fd));
  const Buffer out(64 * 1024);
  const Buffer in(68 * 1024);
  out.fill(3);
  CHECK(fixture.write(4096, out.data + 1, 8192) == 0);
  CHECK(fixture.read(4096, in.data + 3, 8192) == 0);
  CHECK(std::memcmp(in.data + 3, out.data + 1, 8192) == 0);
  CHECK(in.data[2] == std::byte{});
  CHECK(in.data[3 + 8192] == std::byte{});
  SECTION("in odd pieces") {
    CHECK(fixture.run({DiskOp::kRead, false, 4096, 8192},
                      {{in.data, 1}, {in.data + 10, 8190}, {in.data + 9000, 1}}) == 0);
    CHECK(in.data[0] == out.data[1]);
    CHECK(std::memcmp(in.data + 10, out.data + 2, 8190) == 0);
    CHECK(in.data[9000] == out.data[8192]);
  }
  SECTION("more at a time than there are bounce buffers") {
    std::vector<std::unique_ptr<TestRequest>> requests;
    for (std::uint32_t i = 0; i < 16; ++i) {
      requests.push_back(std::make_unique<TestRequest>());
      requests.back()->vectors = {{in.data + 1 + i * 4096, 4096}};
      requests.back()->io = {DiskOp::kRead, false, 4096, 4096};
      requests.back()->buffers = requests.back()->vectors;
    }
    fixture.worker->post([&] {
      for (const auto& request : requests) fixture.queue->submit(*request);
    });
    for (std::uint32_t i = 0; i < 16; ++i) {
      CHECK(requests[i]->done.get_future().get() == 0);
      CHECK(std::memcmp(in.data + 1 + i * 4096, out.data + 1, 4096) == 0);
    }
  }
}

TEST_CASE("more operations than SQEs", "[storvsp]") {
  Fixture fixture(memory_file(kDiskBytes), false, 4);
  const Buffer out(1u << 20);
  out.fill(4);
  std::vector<std::unique_ptr<TestRequest>> requests;
  for (std::uint32_t i = 0; i < 256; ++i) {
    requests.push_back(std::make_unique<TestRequest>());
    requests.back()->vectors = {{out.data + i * 4096, 4096}};
    requests.back()->io = {DiskOp::kWrite, false, i * 4096, 4096};
    requests.back()->buffers = requests.back()->vectors;
  }
  fixture.worker->post([&] {
    for (const auto& request : requests) fixture.queue->submit(*request);
  });
  for (const auto& request : requests) CHECK(request->done.get_future().get() == 0);
  const Buffer in(1u << 20);
  CHECK(fixture.read(0, in.data, 1u << 20) == 0);
  CHECK(std::memcmp(in.data, out.data, in.size) == 0);
}

// Whether its device can be polled depends on the machine and its kernel; where not, the disk goes on
// without.
TEST_CASE("a polled disk does what others do", "[storvsp]") {
  UniqueFd fd = temporary_file(O_DIRECT);
  if (!fd) return;
  REQUIRE(::ftruncate(fd.get(), kDiskBytes) == 0);
  Fixture fixture(std::move(fd), false, 4, true);
  const Buffer out(1u << 20);
  const Buffer in(1u << 20);
  out.fill(5);
  // Writes of 4 KiB, many more than there are SQEs; every eighth is to be durable, and goes the other way.
  std::vector<std::unique_ptr<TestRequest>> requests;
  for (std::uint32_t i = 0; i < 256; ++i) {
    requests.push_back(std::make_unique<TestRequest>());
    requests.back()->vectors = {{out.data + i * 4096, 4096}};
    requests.back()->io = {DiskOp::kWrite, i % 8 == 0, i * 4096, 4096};
    requests.back()->buffers = requests.back()->vectors;
  }
  fixture.worker->post([&] {
    for (const auto& request : requests) fixture.queue->submit(*request);
  });
  for (const auto& request : requests) CHECK(request->done.get_future().get() == 0);
  CHECK(fixture.run({}, {}) == 0);  // a flush
  CHECK(fixture.read(0, in.data, 1u << 20) == 0);
  CHECK(std::memcmp(in.data, out.data, in.size) == 0);
  SECTION("with buffers that are not aligned") {
    CHECK(fixture.read(4096, in.data + 1, 8192) == 0);
    CHECK(std::memcmp(in.data + 1, out.data + 4096, 8192) == 0);
  }
  SECTION("zeros") {
    CHECK(fixture.run({DiskOp::kZero, false, 4096, 4096}, {}) == 0);
    CHECK(fixture.read(4096, in.data, 4096) == 0);
    CHECK(std::all_of(in.data, in.data + 4096, [](std::byte each) { return each == std::byte{}; }));
  }
  SECTION("cancelled with operations in flight") {
    std::vector<std::unique_ptr<TestRequest>> reads;
    for (std::uint32_t i = 0; i < 16; ++i) {
      reads.push_back(std::make_unique<TestRequest>());
      reads.back()->vectors = {{in.data + i * 4096, 4096}};
      reads.back()->io = {DiskOp::kRead, false, i * 4096, 4096};
      reads.back()->buffers = reads.back()->vectors;
    }
    fixture.worker->post([&] {
      for (const auto& read : reads) fixture.queue->submit(*read);
      fixture.queue->cancel();
    });
    for (const auto& read : reads) {
      const int error = read->done.get_future().get();
      CHECK((error == 0 || error == ECANCELED));
    }
  }
}

TEST_CASE("a file that knows no O_DIRECT is not polled for long", "[storvsp]") {
  Fixture fixture(memory_file(kDiskBytes), false, 4, true);
  CHECK(fixture.disk->polls());
  const Buffer buffer(4096);
  CHECK(fixture.read(0, buffer.data, 4096) == 0);
  CHECK(!fixture.disk->polls());
}

TEST_CASE("a file cut while it is served gives errors, not zeros", "[storvsp]") {
  UniqueFd fd = GENERATE(0, O_DIRECT) == 0 ? memory_file(0) : temporary_file(O_DIRECT);
  if (!fd) return;
  REQUIRE(::ftruncate(fd.get(), kDiskBytes) == 0);
  Fixture fixture(std::move(fd));
  REQUIRE(::ftruncate(fixture.raw.get(), 8192) == 0);
  const Buffer in(16384);
  CHECK(fixture.read(0, in.data, 8192) == 0);
  CHECK(fixture.read(4096, in.data, 8192) == EIO);
  CHECK(fixture.read(8192, in.data, 4096) == EIO);
}

TEST_CASE("no space left", "[storvsp]") {
  UniqueFd fd = cramped_file(kDiskBytes, "64k");
  if (!fd) return;  // not allowed to mount
  Fixture fixture(std::move(fd));
  const Buffer out(128 * 1024);
  out.fill(5);
  CHECK(fixture.write(0, out.data, 4096) == 0);
  // Begins with a short write.
  CHECK(fixture.write(4096, out.data, 128 * 1024) == ENOSPC);
  const Buffer in(4096);
  CHECK(fixture.read(0, in.data, 4096) == 0);
  CHECK(std::memcmp(in.data, out.data, 4096) == 0);
}

TEST_CASE("a file that must not be written", "[storvsp]") {
  UniqueFd fd = memory_file(kDiskBytes);
  REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE) == 0);
  Fixture fixture(std::move(fd));
  const Buffer out(4096);
  CHECK(fixture.write(0, out.data, 4096) == EPERM);
}

TEST_CASE("an unsafe cache does not flush", "[storvsp]") {
  Fixture fixture(memory_file(kDiskBytes), true);
  const std::uint64_t before = fixture.worker->stats().sqes;
  CHECK(fixture.run({DiskOp::kFlush, false, 0, 0}, {}) == 0);
  std::uint64_t after = 0;
  io::on_worker(*fixture.worker, [&] { after = fixture.worker->stats().sqes; });
  CHECK(after - before <= 1);  // the worker's own wake-up
}

TEST_CASE("cancelled queues end everything", "[storvsp]") {
  Fixture fixture(memory_file(kDiskBytes), false, 4);
  const Buffer out(1u << 20);
  std::vector<std::unique_ptr<TestRequest>> requests;
  for (std::uint32_t i = 0; i < 64; ++i) {
    requests.push_back(std::make_unique<TestRequest>());
    requests.back()->vectors = {{out.data + i * 4096, 4096}};
    requests.back()->io = {DiskOp::kWrite, false, i * 4096, 4096};
    requests.back()->buffers = requests.back()->vectors;
  }
  fixture.worker->post([&] {
    for (const auto& request : requests) fixture.queue->submit(*request);
    fixture.queue->cancel();
  });
  int cancelled = 0;
  for (const auto& request : requests) {
    const int error = request->done.get_future().get();
    CHECK((error == 0 || error == ECANCELED));
    cancelled += error == ECANCELED ? 1 : 0;
  }
  CHECK(cancelled >= 60);
  CHECK(fixture.write(0, out.data, 4096) == ECANCELED);
}

// The file's blocks of 512 bytes that the host keeps.
std::int64_t allocated(const UniqueFd& fd) {
  struct stat status {};
  VMBUSD_ASSERT(::fstat(fd.get(), &status) == 0);
  return status.st_blocks;
}

TEST_CASE("space is given back, and zeros are made", "[storvsp]") {
  for (const int flags : {0, O_DIRECT}) {
    DYNAMIC_SECTION((flags == 0 ? "through the page cache" : "directly")) {
      UniqueFd fd = temporary_file(flags);
      if (!fd || ::ftruncate(fd.get(), kDiskBytes) != 0) return;
      Fixture fixture(std::move(fd));
      const FileProbe probe = probe_file(fixture.raw.get()).value();
      CHECK(probe.discards);
      CHECK(probe.discard_zeroes);
      const Buffer data(1u << 20);
      data.fill(1);
      REQUIRE(fixture.write(0, data.data, 1u << 20) == 0);
      REQUIRE(fixture.run({DiskOp::kFlush}, {}) == 0);
      const std::int64_t before = allocated(fixture.raw);
      REQUIRE(before >= 2048);
      const Buffer read(64 << 10);
      const auto reads_zeros = [&](std::uint64_t offset) {
        REQUIRE(fixture.read(offset, read.data, 64 << 10) == 0);
        return std::all_of(read.data, read.data + read.size, [](std::byte b) { return b == std::byte{}; });
      };
      SECTION("a discard") {
        CHECK(fixture.run({DiskOp::kDiscard, false, 256 << 10, 256 << 10}, {}) == 0);
        CHECK(reads_zeros(256 << 10));
        CHECK(!reads_zeros(192 << 10));
        CHECK(!reads_zeros(512 << 10));
        CHECK(allocated(fixture.raw) <= before - 512);
      }
      SECTION("zeros that may be given back") {
        CHECK(fixture.run({DiskOp::kZero, false, 256 << 10, 256 << 10, true}, {}) == 0);
        CHECK(reads_zeros(256 << 10));
        CHECK(allocated(fixture.raw) <= before - 512);
      }
      SECTION("zeros that are kept") {
        const int error = fixture.run({DiskOp::kZero, false, 256 << 10, 256 << 10}, {});
        if (error == 0) {
          CHECK(reads_zeros(256 << 10));
          CHECK(allocated(fixture.raw) >= before);
        } else {
          CHECK(error == EOPNOTSUPP);
        }
      }
    }
  }
}

TEST_CASE("a discard ends inside the disk, whatever the file holds behind it", "[storvsp]") {
  Fixture fixture(memory_file(kDiskBytes));
  const Buffer data(8192);
  data.fill(1);
  REQUIRE(fixture.write(0, data.data, 8192) == 0);
  CHECK(fixture.run({DiskOp::kDiscard, false, 512, 1024}, {}) == 0);
  const Buffer read(8192);
  REQUIRE(fixture.read(0, read.data, 8192) == 0);
  CHECK(std::memcmp(read.data, data.data, 512) == 0);
  CHECK(std::all_of(read.data + 512, read.data + 1536, [](std::byte b) { return b == std::byte{}; }));
  CHECK(std::memcmp(read.data + 1536, data.data + 1536, 8192 - 1536) == 0);
}

TEST_CASE("a file that may not be changed cannot give space back", "[storvsp]") {
  const UniqueFd sealed = memory_file(kDiskBytes);
  REQUIRE(::fcntl(sealed.get(), F_ADD_SEALS, F_SEAL_WRITE) == 0);
  CHECK(!probe_file(sealed.get()).value().discards);
  const UniqueFd read_only(::open("/proc/self/exe", O_RDONLY));
  CHECK(!probe_file(read_only.get()).value().discards);
}

TEST_CASE("what is there is found", "[storvsp]") {
  Fixture fixture(memory_file(kDiskBytes));
  const Buffer data(8192);
  data.fill(1);
  // tmpfs keeps pages: 1 and 2, and 100 with one block of it written.
  REQUIRE(fixture.write(4096, data.data, 8192) == 0);
  REQUIRE(fixture.write(409600, data.data, 512) == 0);
  const auto find = [&](std::uint64_t offset) {
    TestRequest request;
    request.io = {DiskOp::kMap, false, offset, 0};
    std::future<int> done = request.done.get_future();
    fixture.worker->post([&] { fixture.queue->submit(request); });
    REQUIRE(done.get() == 0);
    return std::pair(request.extent.length, request.extent.mapped);
  };
  using Extent = std::pair<std::uint64_t, bool>;
  CHECK(find(0) == Extent(4096, false));
  CHECK(find(512) == Extent(3584, false));
  CHECK(find(4096) == Extent(8192, true));
  CHECK(find(8192) == Extent(4096, true));
  CHECK(find(12288) == Extent(409600 - 12288, false));
  CHECK(find(409600) == Extent(4096, true));
  CHECK(find(413696) == Extent(kDiskBytes - 413696, false));
}

}  // namespace
}  // namespace vmbusd::storvsp
