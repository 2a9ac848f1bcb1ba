#include "storvsp/file_disk.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/assert.h"
#include "base/log.h"
#include "io/polled_ring.h"
#include "storvsp/bounce_pool.h"

namespace vmbusd::storvsp {
namespace {

constexpr std::uint32_t kSmallestBlock = 512;
constexpr std::uint32_t kLargestBlock = 4096;  // that a guest can be told

// The smallest read that O_DIRECT takes at offset 0; 0 where none of a guest's block sizes works.
std::uint32_t smallest_direct_read(int fd) {
  alignas(kLargestBlock) static thread_local std::byte buffer[kLargestBlock];
  for (std::uint32_t size = kSmallestBlock; size <= kLargestBlock; size *= 2) {
    if (::pread(fd, buffer, size, 0) >= 0) return size;
    if (errno != EINVAL) break;
  }
  return 0;
}

// O_DIRECT's rules for a regular file; those of a block device are known without.
Result<void> probe_direct_file(int fd, FileProbe& probe) {
#ifdef STATX_DIOALIGN
  struct statx extended {};
  // Linux 6.1 and later, where the file system knows.
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &extended) == 0 &&
      (extended.stx_mask & STATX_DIOALIGN) != 0 && extended.stx_dio_offset_align != 0) {
    probe.logical_block_bytes = std::max(kSmallestBlock, std::uint32_t{extended.stx_dio_offset_align});
    probe.memory_alignment = std::max<std::uint32_t>(1, extended.stx_dio_mem_align);
    return {};
  }
#endif
  const std::uint32_t size = smallest_direct_read(fd);
  if (size == 0) return fail_os(errno, "cannot read the file with O_DIRECT");
  probe.logical_block_bytes = size;
  probe.memory_alignment = size;
  return {};
}

Result<void> probe_block_device(int fd, FileProbe& probe) {
  int logical = 0;
  unsigned int physical = 0;
  int read_only = 0;
  unsigned short rotational = 0;
  if (::ioctl(fd, BLKGETSIZE64, &probe.size_bytes) != 0)
    return fail_os(errno, "cannot get the device's size");
  if (::ioctl(fd, BLKSSZGET, &logical) != 0) return fail_os(errno, "cannot get the device's block size");
  probe.physical_block_bytes = static_cast<std::uint32_t>(logical);
  if (::ioctl(fd, BLKPBSZGET, &physical) == 0) probe.physical_block_bytes = physical;
  if (::ioctl(fd, BLKROGET, &read_only) == 0 && read_only != 0) probe.writable = false;
  if (::ioctl(fd, BLKROTATIONAL, &rotational) == 0) probe.rotational = rotational != 0;
  // A misaligned start is refused after the check for support. What it reads as afterwards, no device says.
  // [linux: block/ioctl.c, blk_ioctl_discard]
  std::uint64_t misaligned[2] = {1, 1};
  probe.discards = probe.writable && ::ioctl(fd, BLKDISCARD, misaligned) != 0 && errno == EINVAL;
  // Also without O_DIRECT, so that one configuration serves both.
  probe.logical_block_bytes = static_cast<std::uint32_t>(logical);
  if (probe.direct) probe.memory_alignment = static_cast<std::uint32_t>(logical);
#ifdef STATX_DIOALIGN
  struct statx extended {};
  if (probe.direct && ::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &extended) == 0 &&
      (extended.stx_mask & STATX_DIOALIGN) != 0 && extended.stx_dio_mem_align != 0) {
    probe.memory_alignment = extended.stx_dio_mem_align;
  }
#endif
  return {};
}

// Whether the file system cannot be asked to do only what needs no waiting. io_uring tries that first and has
// a thread of its own do the rest; but a file system that has poll() is not asked whether it can, and FUSE,
// which cannot, waits in the submitter's place, and with it all channels of that worker. [linux:
// io_uring/rw.c, io_file_supports_nowait]
bool may_block(int fd) {
  char byte = 0;
  const iovec buffer = {&byte, sizeof byte};
  // Refused before anything else is looked at, O_DIRECT's alignment included.
  return ::preadv2(fd, &buffer, 1, 0, RWF_NOWAIT) < 0 && errno == EOPNOTSUPP;
}

// Punching a hole behind the end gives back nothing and tells whether the file system can.
bool can_punch_holes(int fd, std::uint64_t size_bytes) {
  const std::uint64_t behind = (size_bytes + kLargestBlock - 1) / kLargestBlock * kLargestBlock;
  return ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(behind),
                     kLargestBlock) == 0;
}

// The extent at `offset` of a regular file. Blocks of which a part is there count as mapped.
int find_extent(int fd, const DiskGeometry& geometry, std::uint64_t offset, DiskExtent& extent) {
  const std::uint64_t block = geometry.logical_block_bytes;
  const std::uint64_t left = geometry.size_bytes - offset;
  const off_t data = ::lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0 && errno == ENXIO) {
    extent = {left, false};
    return 0;
  }
  if (data < 0 && errno != EINVAL && errno != EOPNOTSUPP) return errno;
  if (data < 0) {  // the file system does not know
    extent = {left, true};
    return 0;
  }
  const std::uint64_t hole_bytes = (static_cast<std::uint64_t>(data) - offset) / block * block;
  if (hole_bytes != 0) {
    extent = {std::min(hole_bytes, left), false};
    return 0;
  }
  const off_t hole = ::lseek(fd, data, SEEK_HOLE);
  if (hole < 0 && errno != ENXIO) return errno;
  const std::uint64_t mapped = hole < 0 ? left : static_cast<std::uint64_t>(hole) - offset;
  extent = {std::min((mapped + block - 1) / block * block, left), true};
  return 0;
}

int discard_device(int fd, std::uint64_t offset, std::uint64_t length) {
  std::uint64_t range[2] = {offset, length};
  while (::ioctl(fd, BLKDISCARD, range) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

}  // namespace

Result<FileProbe> probe_file(int fd) {
  FileProbe probe;
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) return fail_os(errno, "cannot get the file's status flags");
  if ((flags & O_ACCMODE) == O_WRONLY || (flags & O_PATH) != 0) {
    return fail(Errc::kConfig, "the file is not open for reading");
  }
  probe.direct = (flags & O_DIRECT) != 0;
  probe.writable = (flags & O_ACCMODE) == O_RDWR;

  struct stat status {};
  if (::fstat(fd, &status) != 0) return fail_os(errno, "cannot examine the file");
  if (S_ISBLK(status.st_mode)) {
    probe.block_device = true;
    probe.device = status.st_rdev;
    VMBUSD_CHECK(probe_block_device(fd, probe));
  } else if (S_ISREG(status.st_mode)) {
    probe.device = status.st_dev;
    probe.inode = status.st_ino;
    probe.size_bytes = static_cast<std::uint64_t>(status.st_size);
    probe.discards = probe.discard_zeroes = probe.writable && can_punch_holes(fd, probe.size_bytes);
    probe.may_block = may_block(fd);
    if (probe.direct) VMBUSD_CHECK(probe_direct_file(fd, probe));
    // Smaller writes make the file system read first.
    const auto unit = static_cast<std::uint64_t>(status.st_blksize);
    probe.physical_block_bytes = std::max(probe.logical_block_bytes, kLargestBlock);
    if (std::has_single_bit(unit) && unit < probe.physical_block_bytes) {
      probe.physical_block_bytes = std::max(probe.logical_block_bytes, static_cast<std::uint32_t>(unit));
    }
  } else {
    return fail(Errc::kConfig, "neither a regular file nor a block device");
  }
  return probe;
}

// Life of a request in here, each arrow one list to the next:
//
//   submit -> [bounce_waiting_] -> [backlog_] -> in_flight_ -> disk_done
//                                      ^             |
//                                      +-------------+   short transfer, EINTR, EAGAIN
class FileQueue final : public DiskQueue, private io::Pollable {
 public:
  FileQueue(FileDisk& disk, io::Worker& worker)
      : disk_(disk), worker_(worker), polled_ring_(disk.options_.poll ? worker.polled_ring() : nullptr) {
    if (disk.probe_.memory_alignment > 1 || disk.probe_.direct) {
      bounce_ready_ = bounce_.reserve(disk.options_.max_transfer_bytes).has_value();
    }
  }

  ~FileQueue() override {
    VMBUSD_ASSERT(in_flight_.empty() && backlog_.empty() && bounce_waiting_.empty());
    // The last request's end may have come before its post() was over, which still uses queue and worker.
    while (posting_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
    VMBUSD_ASSERT(!poll_hook.is_linked());
  }

  void submit(DiskRequest& request) noexcept override {
    request.queue = this;
    request.bytes_done = 0;
    request.retries = 0;
    request.cancelled = false;
    if (cancelled_) return request.disk_done(ECANCELED);
    if (disk_.options_.ignore_flush) {
      if (request.io.op == DiskOp::kFlush) return request.disk_done(0);
      request.io.fua = false;
    }
    if (request.io.op > DiskOp::kFlush) return submit_aside(request);
    if (request.io.op != DiskOp::kFlush && needs_bounce(request)) return bounce(request);
    start(request);
  }

  void abort(DiskRequest& request) noexcept override {
    request.cancelled = true;
    for (List* const list : {&bounce_waiting_, &backlog_}) {
      const auto found =
          std::find_if(list->begin(), list->end(), [&](const DiskRequest& r) { return &r == &request; });
      if (found == list->end()) continue;
      list->erase(found);
      return finish(request, ECANCELED);
    }
    cancel_in_kernel(request);
  }

  void cancel() noexcept override {
    cancelled_ = true;
    for (List* const list : {&bounce_waiting_, &backlog_}) {
      while (!list->empty()) {
        DiskRequest& request = list->front();
        list->pop_front();
        finish(request, ECANCELED);
      }
    }
    worker_.deactivate(*this);
    for (DiskRequest& request : in_flight_) cancel_in_kernel(request);
  }

 private:
  using List =
      bi::list<DiskRequest, bi::member_hook<DiskRequest, DiskRequest::Hook, &DiskRequest::queue_hook>,
               bi::constant_time_size<false>>;

  // Transient conditions in a row that are taken as such; then they are errors.
  static constexpr std::uint32_t kRetriesMax = 32;

  static io::IoOp& cancel_result_ignored() {
    class Ignored final : public io::IoOp {
      void complete(std::int32_t /*result*/, std::uint32_t /*cqe_flags*/) noexcept override {}
    };
    static Ignored op;  // stateless, and may be completed after the queue is gone
    return op;
  }

  // io_uring has fallocate, but neither discards of devices (before Linux 6.12) nor lseek. What is kept is
  // several calls.
  void submit_aside(DiskRequest& request) noexcept {
    const bool device = disk_.probe_.block_device;
    if (request.io.op == DiskOp::kMap && device) {
      request.extent = {disk_.geometry_.size_bytes - request.io.offset, true};
      return request.disk_done(0);
    }
    if (request.io.op == DiskOp::kZero || (request.io.op == DiskOp::kDiscard && !device)) {
      return start(request);
    }
    in_flight_.push_back(request);
    posting_.fetch_add(1, std::memory_order_relaxed);
    // That thread goes on while others are parked for grow().
    disk_.blocking_calls_.post([this, &request, geometry = disk_.geometry_] {
      const int error = call(request, geometry);
      worker_.post([this, &request, error] { completed(request, -error); });
      // release: pairs with the acquire in the destructor.
      posting_.fetch_sub(1, std::memory_order_release);
    });
  }

  // On the disk's thread.
  [[nodiscard]] int call(DiskRequest& request, const DiskGeometry& geometry) const noexcept {
    const int fd = disk_.fd_.get();
    const DiskIo& io = request.io;
    switch (io.op) {
      case DiskOp::kMap:
        return find_extent(fd, geometry, io.offset, request.extent);
      case DiskOp::kKeep:
        return disk_.kept_.replace({static_cast<const std::byte*>(request.buffers[0].iov_base), io.length});
      default:
        return discard_device(fd, io.offset, io.length);
    }
  }

  // What io_uring has queued but not begun ends early. A request that finds no SQE here, or that is polled
  // for, just takes its time.
  void cancel_in_kernel(DiskRequest& request) noexcept {
    if (request.polled) return;
    io_uring_sqe* const sqe = worker_.sqe(cancel_result_ignored());
    if (sqe != nullptr) io_uring_prep_cancel(sqe, static_cast<io::IoOp*>(&request), 0);
  }

  bool needs_bounce(const DiskRequest& request) const {
    if (!disk_.probe_.direct) return false;
    // A chunk of a longer vector could end inside a block.
    if (request.buffers.size() > IOV_MAX) return true;
    const std::uintptr_t mask = disk_.probe_.memory_alignment - 1;
    std::uintptr_t bits = 0;
    for (const iovec& buffer : request.buffers) {
      bits |= reinterpret_cast<std::uintptr_t>(buffer.iov_base) | buffer.iov_len;
    }
    return (bits & mask) != 0;
  }

  void bounce(DiskRequest& request) noexcept {
    if (!bounce_ready_) return request.disk_done(ENOMEM);
    request.bounce = bounce_.take();
    if (request.bounce == nullptr) {
      bounce_waiting_.push_back(request);
      return;
    }
    if (request.io.op == DiskOp::kWrite) {
      std::byte* to = request.bounce;
      for (const iovec& buffer : request.buffers) {
        std::memcpy(to, buffer.iov_base, buffer.iov_len);
        to += buffer.iov_len;
      }
    }
    start(request);
  }

  // Whether no device has to split it. One that must be split is not to be polled for: Linux refuses the
  // split to what must not wait, as polled operations must not there, and 6.1 tries again for ever. [linux:
  // block/blk-merge.c, bio_split_rw; io_uring/io_uring.c, io_wq_submit_work]
  static bool in_one_piece(const DiskRequest& request) {
    constexpr std::uint64_t kPageBytes = 4096;  // every device takes as much at once
    if (request.bounce != nullptr || request.buffers.size() != 1) return false;
    const iovec& buffer = request.buffers.front();
    const auto begin = reinterpret_cast<std::uintptr_t>(buffer.iov_base);
    const std::uint64_t offset = request.io.offset + request.bytes_done;
    return begin % kPageBytes + buffer.iov_len <= kPageBytes &&
           offset % kPageBytes + buffer.iov_len <= kPageBytes;
  }

  // Where there is room. A write that is to be durable ends with a flush of the device, which nobody polls
  // for.
  io_uring_sqe* take_sqe(DiskRequest& request) noexcept {
    const DiskIo& io = request.io;
    request.polled = polled_ring_ != nullptr &&
                     (io.op == DiskOp::kRead || (io.op == DiskOp::kWrite && !io.fua)) && disk_.polls() &&
                     in_one_piece(request);
    return request.polled ? polled_ring_->sqe(request) : worker_.sqe(request);
  }

  // Hands what is left of the request to the kernel.
  void start(DiskRequest& request) noexcept {
    io_uring_sqe* const sqe = take_sqe(request);
    if (sqe == nullptr) {
      backlog_.push_back(request);
      worker_.activate(*this);
      return;
    }
    prepare(*sqe, request);
    in_flight_.push_back(request);
  }

  // On a device, too, where the kernel makes of it what the device has for zeros. [linux: block/fops.c,
  // blkdev_fallocate]
  static int fallocate_mode(const DiskIo& io) {
    const bool hole = io.op == DiskOp::kDiscard || io.unmap;
    return FALLOC_FL_KEEP_SIZE | (hole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
  }

  void prepare(io_uring_sqe& sqe, DiskRequest& request) const {
    const int fd = disk_.fd_.get();
    const DiskIo& io = request.io;
    if (io.op == DiskOp::kFlush) {
      io_uring_prep_fsync(&sqe, fd, IORING_FSYNC_DATASYNC);
      return;
    }
    if (io.op > DiskOp::kFlush) {
      io_uring_prep_fallocate(&sqe, fd, fallocate_mode(io), io.offset, io.length);
      return;
    }
    std::span<iovec> buffers = request.buffers;
    if (request.bounce != nullptr) {
      request.bounce_vector = {request.bounce + request.bytes_done, io.length - request.bytes_done};
      buffers = {&request.bounce_vector, 1};
    }
    const std::uint64_t offset = io.offset + request.bytes_done;
    const bool read = io.op == DiskOp::kRead;
    if (buffers.size() == 1) {  // spares the kernel the copy of the vector
      const auto length = static_cast<unsigned>(buffers[0].iov_len);
      if (read) {
        io_uring_prep_read(&sqe, fd, buffers[0].iov_base, length, offset);
      } else {
        io_uring_prep_write(&sqe, fd, buffers[0].iov_base, length, offset);
      }
    } else {
      const auto count = static_cast<unsigned>(std::min<std::size_t>(buffers.size(), IOV_MAX));
      if (read) {
        io_uring_prep_readv(&sqe, fd, buffers.data(), count, offset);
      } else {
        io_uring_prep_writev(&sqe, fd, buffers.data(), count, offset);
      }
    }
    if (io.fua) sqe.rw_flags = RWF_DSYNC;
    if (disk_.probe_.may_block && !request.polled) sqe.flags |= IOSQE_ASYNC;
  }

  void completed(DiskRequest& request, std::int32_t result) noexcept override {
    in_flight_.erase(in_flight_.iterator_to(request));
    if (result < 0) return failed(request, -result);
    if (request.io.op >= DiskOp::kFlush) return finish(request, 0);

    const auto moved = static_cast<std::uint32_t>(result);
    const std::uint32_t left = request.io.length - request.bytes_done;
    VMBUSD_ASSERT(moved <= left);
    if (moved == left) return finish(request, 0);
    // The end of the file inside the disk: somebody cut it.
    if (moved == 0) return finish(request, EIO);
    if (!advance(request, moved)) return failed(request, EAGAIN);
    restart(request);
  }

  // Transient conditions are tried again, a bounded number of times in a row.
  void failed(DiskRequest& request, int error) noexcept {
    if (error == EOPNOTSUPP && request.polled) {
      disk_.stop_polling();
      return restart(request);
    }
    if (error == EOPNOTSUPP && request.io.op == DiskOp::kZero && request.io.unmap) {
      request.io.unmap = false;  // zeros that take space, then
      return restart(request);
    }
    const bool transient = error == EINTR || error == EAGAIN;
    if (!transient || ++request.retries > kRetriesMax) return finish(request, error);
    restart(request);
  }

  void restart(DiskRequest& request) noexcept {
    if (cancelled_ || request.cancelled) return finish(request, ECANCELED);
    start(request);
  }

  // Past `moved` bytes, as far as a new operation may start there. False where that is no progress.
  bool advance(DiskRequest& request, std::uint32_t moved) const {
    if (disk_.probe_.direct) moved -= moved % disk_.probe_.logical_block_bytes;
    if (moved == 0) return false;
    request.bytes_done += moved;
    request.retries = 0;
    if (request.bounce != nullptr) return true;
    while (moved >= request.buffers.front().iov_len) {
      moved -= static_cast<std::uint32_t>(request.buffers.front().iov_len);
      request.buffers = request.buffers.subspan(1);
    }
    iovec& first = request.buffers.front();
    first.iov_base = static_cast<std::byte*>(first.iov_base) + moved;
    first.iov_len -= moved;
    return true;
  }

  void finish(DiskRequest& request, int error) noexcept {
    if (request.bounce != nullptr) {
      if (request.io.op == DiskOp::kRead && error == 0 && !cancelled_) {
        const std::byte* from = request.bounce;
        for (const iovec& buffer : request.buffers) {
          std::memcpy(buffer.iov_base, from, buffer.iov_len);
          from += buffer.iov_len;
        }
      }
      bounce_.give_back(std::exchange(request.bounce, nullptr));
      if (!bounce_waiting_.empty() && !cancelled_) {
        DiskRequest& next = bounce_waiting_.front();
        bounce_waiting_.pop_front();
        bounce(next);
      }
    }
    request.disk_done(error);
  }

  // io::Pollable: active while requests wait for SQEs.
  bool poll() noexcept override {
    bool worked = false;
    while (!backlog_.empty()) {
      DiskRequest& request = backlog_.front();
      io_uring_sqe* const sqe = take_sqe(request);
      if (sqe == nullptr) return true;
      backlog_.pop_front();
      prepare(*sqe, request);
      in_flight_.push_back(request);
      worked = true;
    }
    worker_.deactivate(*this);
    return worked;
  }
  bool prepare_sleep() noexcept override { return backlog_.empty(); }
  void woken() noexcept override {}

  FileDisk& disk_;
  io::Worker& worker_;
  io::PolledRing* const polled_ring_;  // nullptr: there is none, or no use for it
  List bounce_waiting_;
  List backlog_;
  List in_flight_;
  std::atomic<std::uint32_t> posting_{0};  // blocking calls that have not posted their outcome
  BouncePool bounce_;
  bool bounce_ready_ = false;
  bool cancelled_ = false;
};

FileDisk::FileDisk(UniqueFd fd, const FileProbe& probe, const DiskGeometry& geometry, const Options& options,
                   KeptRecord kept)
    : fd_(std::move(fd)),
      probe_(probe),
      geometry_(geometry),
      options_(options),
      polls_(options.poll),
      kept_(std::move(kept)) {}

void FileDisk::stop_polling() {
  if (!polls_.exchange(false, std::memory_order_relaxed)) return;
  LogScope(options_.subject).warning("not polled any more: the kernel cannot poll this file or its device");
}

std::unique_ptr<DiskQueue> FileDisk::open_queue(io::Worker& worker) {
  return std::make_unique<FileQueue>(*this, worker);
}

}  // namespace vmbusd::storvsp
