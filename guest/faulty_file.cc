#include "guest/faulty_file.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/mount.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/assert.h"

namespace vmbusd::guest {

namespace {

constexpr std::uint64_t kFileNode = 2;  // the root's is FUSE_ROOT_ID
constexpr const char* kFileName = "disk";
constexpr std::uint32_t kTransferBytes = 128 << 10;
// The least that the kernel accepts: a write's data and the headers before them.
constexpr std::size_t kRequestBytes = kTransferBytes + 4096;

template <typename T>
T read_at(const std::vector<std::byte>& bytes, std::size_t offset) {
  T value{};
  VMBUSD_ASSERT(offset + sizeof value <= bytes.size());
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

fuse_attr attributes_of(std::uint64_t node, std::uint64_t file_bytes) {
  fuse_attr attributes{};
  attributes.ino = node;
  attributes.nlink = 1;
  attributes.blksize = 4096;
  attributes.mode = node == kFileNode ? S_IFREG | 0666 : S_IFDIR | 0755;
  attributes.size = node == kFileNode ? file_bytes : 0;
  attributes.blocks = attributes.size / 512;
  return attributes;
}

}  // namespace

std::unique_ptr<FaultyFile> FaultyFile::create(std::uint64_t bytes) {
  std::unique_ptr<FaultyFile> file(new FaultyFile(bytes));
  if (!file->mount()) return nullptr;
  file->wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  VMBUSD_ASSERT(file->wake_);
  file->thread_ = std::thread([served = file.get()] { served->serve(); });
  return file;
}

// Nowhere in the host's tree, so that it is gone with its descriptor.
bool FaultyFile::mount() {
  device_.reset(::open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  const UniqueFd context(static_cast<int>(::syscall(SYS_fsopen, "fuse", FSOPEN_CLOEXEC)));
  if (!device_ || !context) return false;
  const std::string device = std::to_string(device_.get());
  const std::pair<const char*, const char*> options[] = {
      {"fd", device.c_str()}, {"rootmode", "40000"}, {"user_id", "0"}, {"group_id", "0"}};
  for (const auto& [key, value] : options) {
    if (::syscall(SYS_fsconfig, context.get(), FSCONFIG_SET_STRING, key, value, 0) != 0) return false;
  }
  // A worker process may be another user's.
  if (::syscall(SYS_fsconfig, context.get(), FSCONFIG_SET_FLAG, "allow_other", nullptr, 0) != 0 ||
      ::syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return false;
  }
  mount_.reset(static_cast<int>(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, 0)));
  return static_cast<bool>(mount_);
}

FaultyFile::~FaultyFile() {
  if (thread_.joinable()) vanish();
}

std::string FaultyFile::path() const {
  return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(mount_.get()) + "/" + kFileName;
}

void FaultyFile::fail_with(int error) {
  const std::lock_guard lock(mutex_);
  error_ = error;
}

void FaultyFile::write_at_most(std::uint32_t bytes) {
  const std::lock_guard lock(mutex_);
  written_max_ = bytes;
}

void FaultyFile::hold() {
  const std::lock_guard lock(mutex_);
  holding_ = true;
}

void FaultyFile::release() {
  const std::lock_guard lock(mutex_);
  holding_ = false;
  for (const Request& request : std::exchange(held_, {})) move(request);
}

std::size_t FaultyFile::held() const {
  const std::lock_guard lock(mutex_);
  return held_.size();
}

void FaultyFile::vanish() {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    stopping_ = true;
    held_.clear();
  }
  const std::uint64_t one = 1;
  VMBUSD_ASSERT(::write(wake_.get(), &one, sizeof one) == sizeof one);
  thread_.join();
  device_.reset();  // the kernel ends the file system with it
}

void FaultyFile::serve() {
  for (;;) {
    pollfd sources[] = {{device_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    if (::poll(sources, std::size(sources), -1) < 0) continue;
    if (sources[1].revents != 0) return;
    Request request{std::vector<std::byte>(kRequestBytes)};
    const ssize_t got = ::read(device_.get(), request.bytes.data(), request.bytes.size());
    if (got < static_cast<ssize_t>(sizeof(fuse_in_header))) continue;  // it was taken back meanwhile
    request.bytes.resize(static_cast<std::size_t>(got));
    const std::lock_guard lock(mutex_);
    handle(request);
  }
}

// [linux: include/uapi/linux/fuse.h]
void FaultyFile::handle(const Request& request) {
  const auto header = read_at<fuse_in_header>(request.bytes, 0);
  switch (header.opcode) {
    case FUSE_INIT: {
      fuse_init_out out{};
      out.major = FUSE_KERNEL_VERSION;
      out.minor = FUSE_KERNEL_MINOR_VERSION;
      out.max_write = kTransferBytes;
      out.max_background = 64;
      out.congestion_threshold = 64;
      // No FUSE_ASYNC_DIO: by that, short writes would come to vmbusd as EIO. [linux: fs/fuse/file.c,
      // fuse_get_res_by_io]
      return answer(header.unique, 0, &out, sizeof out);
    }
    case FUSE_LOOKUP: {
      const auto* const name = reinterpret_cast<const char*>(request.bytes.data() + sizeof header);
      if (std::strcmp(name, kFileName) != 0) return answer(header.unique, ENOENT);
      fuse_entry_out out{};
      out.nodeid = kFileNode;
      out.attr_valid = out.entry_valid = 3600;
      out.attr = attributes_of(kFileNode, content_.size());
      return answer(header.unique, 0, &out, sizeof out);
    }
    case FUSE_GETATTR: {
      fuse_attr_out out{};
      out.attr_valid = 3600;
      out.attr = attributes_of(header.nodeid, content_.size());
      return answer(header.unique, 0, &out, sizeof out);
    }
    case FUSE_OPEN: {
      fuse_open_out out{};
      out.open_flags = FOPEN_DIRECT_IO;  // each operation comes here, whatever was read before
      return answer(header.unique, 0, &out, sizeof out);
    }
    case FUSE_READ:
    case FUSE_WRITE:
      if (!holding_) return move(request);
      held_.push_back(request);
      return;
    case FUSE_FSYNC:
    case FUSE_FLUSH:
    case FUSE_RELEASE:
      return answer(header.unique, 0);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:  // whoever waits goes on waiting
      return;             // without an answer
    default:
      return answer(header.unique, ENOSYS);
  }
}

void FaultyFile::move(const Request& request) {
  const auto header = read_at<fuse_in_header>(request.bytes, 0);
  if (error_ != 0) return answer(header.unique, error_);
  const auto inside = [this](std::uint64_t offset, std::uint32_t size) {
    const std::uint64_t left = offset < content_.size() ? content_.size() - offset : 0;
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(size, left));
  };
  if (header.opcode == FUSE_READ) {
    const auto in = read_at<fuse_read_in>(request.bytes, sizeof header);
    const std::uint32_t size = inside(in.offset, in.size);
    return answer(header.unique, 0, content_.data() + (size == 0 ? 0 : in.offset), size);
  }
  const auto in = read_at<fuse_write_in>(request.bytes, sizeof header);
  fuse_write_out out{};
  out.size = inside(in.offset, written_max_ == 0 ? in.size : std::min(in.size, written_max_));
  const std::byte* const data = request.bytes.data() + sizeof header + sizeof in;
  std::copy_n(data, out.size, content_.data() + (out.size == 0 ? 0 : in.offset));
  answer(header.unique, 0, &out, sizeof out);
}

void FaultyFile::answer(std::uint64_t unique, int error, const void* body, std::size_t size) {
  fuse_out_header header{};
  header.len = static_cast<std::uint32_t>(sizeof header + size);
  header.error = -error;
  header.unique = unique;
  iovec pieces[] = {{&header, sizeof header}, {const_cast<void*>(body), size}};  // writev() only reads
  // Fails where nobody waits for it any more.
  static_cast<void>(::writev(device_.get(), pieces, size == 0 ? 1 : 2) < 0);
}

}  // namespace vmbusd::guest
