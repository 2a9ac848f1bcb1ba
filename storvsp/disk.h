// The back-end interface: what a LUN needs of a disk.
#pragma once

#include <sys/uio.h>

#include <boost/intrusive/list.hpp>
#include <cstdint>
#include <memory>
#include <span>

#include "io/worker.h"

namespace vmbusd::storvsp {

namespace bi = boost::intrusive;

struct DiskGeometry {
  std::uint64_t size_bytes = 0;             // a multiple of logical_block_bytes
  std::uint32_t logical_block_bytes = 512;  // unit of addressing: all offsets and lengths are multiples
  std::uint32_t physical_block_bytes = 512;
  bool rotational = false;
  bool discards = false;        // kDiscard gives space back
  bool discard_zeroes = false;  // and what was discarded reads as zeros
};

enum class DiskOp : std::uint8_t {
  kRead,
  kWrite,
  kFlush,
  kDiscard,  // the contents are not needed any more
  kZero,     // reads as zeros from here on; EOPNOTSUPP where only writing zeros does it
  kMap,      // finds out whether there is anything at `offset`: DiskExtent
  kKeep,     // keeps what is in the buffers beside the medium, durably, in place of what was kept before
};

// What to do with the medium.
struct DiskIo {
  DiskOp op = DiskOp::kFlush;
  bool fua = false;          // kWrite: on the medium before it completes
  std::uint64_t offset = 0;  // bytes
  // Bytes, > 0 for all but kFlush and kMap. kRead and kWrite: at most kMaxTransferBytes; kKeep: at most
  // KeptRecord::kBytesMax, in one buffer.
  std::uint32_t length = 0;
  bool unmap = false;  // kZero: may give the space back
};

// What kMap finds.
struct DiskExtent {
  std::uint64_t length = 0;  // bytes from DiskIo::offset on of which `mapped` is true; whole blocks, > 0
  bool mapped = true;        // false: nothing there, reads as zeros
};

class DiskQueue;

// One operation on its way through a DiskQueue. Owned by whoever submits it; stays until disk_done(). One
// worker thread.
class DiskRequest : public io::IoOp {
 public:
  using Hook = bi::list_member_hook<bi::link_mode<bi::safe_link>>;

  DiskRequest(const DiskRequest&) = delete;
  DiskRequest& operator=(const DiskRequest&) = delete;

  // The submitter's: set before DiskQueue::submit().
  DiskIo io;
  // kRead and kWrite: guest memory or our own, io.length bytes in all. The queue changes the entries while it
  // works.
  std::span<iovec> buffers;
  DiskExtent extent;  // kMap's answer

  // The operation is over: 0, or a positive errno. Called once, on the worker, perhaps inside submit(). After
  // it the queue does not touch the request any more.
  virtual void disk_done(int error) noexcept = 0;

  void complete(std::int32_t result, std::uint32_t cqe_flags) noexcept final;

  // The queue's, from submit() to disk_done().
  DiskQueue* queue = nullptr;
  Hook queue_hook;  // in one of the queue's lists
  std::uint32_t bytes_done = 0;
  std::uint32_t retries = 0;  // in a row without progress
  bool cancelled = false;     // not to be tried again
  bool polled = false;        // handed to the worker's polled ring last
  std::byte* bounce = nullptr;
  iovec bounce_vector{};

 protected:
  DiskRequest() = default;
  ~DiskRequest() = default;
};

// One channel's access to one disk: operations of different queues do not wait for each other. Opened and
// used by one worker thread; destroyed by any, after cancel() and with nothing in flight.
class DiskQueue {
 public:
  virtual ~DiskQueue() = default;

  // Takes any number of operations: what cannot start yet waits in the queue, its owner's pool is the bound.
  virtual void submit(DiskRequest& request) noexcept = 0;
  // `request` was submitted and is not done: ends it early, with ECANCELED, where that is possible; else it
  // completes as it will. May call its disk_done(), and no other's.
  virtual void abort(DiskRequest& request) noexcept = 0;
  // For good: ends early what can be ended, with ECANCELED; what the kernel has begun completes as it will.
  // Memory that buffers name is not touched by the daemon itself any more (the kernel still may, until
  // disk_done, and libnbd, which writes zeros where a server says that there are some).
  virtual void cancel() noexcept = 0;
  // The disk's limits have changed: what waits for its time, waits for another now.
  virtual void limits_changed() noexcept {}

  // For DiskRequest: the CQE of an SQE that had `request` as its IoOp.
  virtual void completed(DiskRequest& request, std::int32_t result) noexcept = 0;
};

inline void DiskRequest::complete(std::int32_t result, std::uint32_t /*cqe_flags*/) noexcept {
  queue->completed(*this, result);
}

// The medium. Shared by the channels of a controller, on any worker: what changes it runs while all workers
// are parked.
class Disk {
 public:
  virtual ~Disk() = default;

  [[nodiscard]] virtual const DiskGeometry& geometry() const = 0;
  // Worker thread of `worker`. The disk outlives the queue.
  [[nodiscard]] virtual std::unique_ptr<DiskQueue> open_queue(io::Worker& worker) = 0;
  // The medium has grown to this, a multiple of the block. Control thread, all workers being parked. For
  // disks that can be made larger while they are in use.
  virtual void grow(std::uint64_t size_bytes) { (void)size_bytes; }
};

}  // namespace vmbusd::storvsp
