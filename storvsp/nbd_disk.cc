#include "storvsp/nbd_disk.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/assert.h"
#include "storvsp/bounce_pool.h"

namespace vmbusd::storvsp {
namespace {

// Enough for any server, few enough to bound what a guest can have libnbd allocate.
constexpr std::size_t kOperationsMax = 64;
// Buffers of pages that do not follow each other are the rule, so there are more than a file needs.
constexpr std::uint32_t kBounceBytesMax = 32u << 20;

}  // namespace

// Life of a request in here, each arrow one list to the next:
//
//   submit -> [waiting_] -> an operation of the connection's -> disk_done
class NbdQueue final : public DiskQueue, private NbdOperation::Owner {
 public:
  NbdQueue(NbdDisk& disk, io::Worker& worker) : disk_(disk) {
    disk.connection_->join(worker);
    const std::uint32_t buffers = kBounceBytesMax / disk.options_.max_transfer_bytes;
    bounce_ready_ = bounce_.reserve(disk.options_.max_transfer_bytes, buffers).has_value();
    for (NbdOperation& operation : operations_) {
      operation.connection = disk.connection_.get();
      operation.owner = this;
      operation.worker = &worker;
      free_[free_count_++] = &operation;
    }
  }
  ~NbdQueue() override { VMBUSD_ASSERT(free_count_ == kOperationsMax && waiting_.empty()); }

  void submit(DiskRequest& request) noexcept override {
    request.queue = this;
    request.cancelled = false;
    if (cancelled_) return request.disk_done(ECANCELED);
    const NbdExport& server = disk_.connection_->expected();
    switch (request.io.op) {
      case DiskOp::kFlush:
        // A server without the command has nothing that it could write.
        if (disk_.options_.ignore_flush || !server.flushes) return request.disk_done(0);
        break;
      case DiskOp::kWrite:
        if (disk_.options_.ignore_flush) request.io.fua = false;
        break;
      case DiskOp::kDiscard:
        if (!server.trims) return request.disk_done(EOPNOTSUPP);
        break;
      case DiskOp::kZero:
        if (!server.zeroes) return request.disk_done(EOPNOTSUPP);
        break;
      case DiskOp::kMap:
        if (server.extents) break;
        request.extent = {disk_.geometry_.size_bytes - request.io.offset, true};
        return request.disk_done(0);
      case DiskOp::kKeep:
        return request.disk_done(EOPNOTSUPP);
      default:
        break;
    }
    if (!waiting_.empty() || !start(request)) waiting_.push_back(request);
  }

  void abort(DiskRequest& request) noexcept override {
    const auto waits = std::find_if(waiting_.begin(), waiting_.end(),
                                    [&](const DiskRequest& waiting) { return &waiting == &request; });
    if (waits != waiting_.end()) {
      waiting_.erase(waits);
      return request.disk_done(ECANCELED);
    }
    for (NbdOperation& operation : operations_) {
      if (operation.request == &request) operation.aborted.store(true, std::memory_order_relaxed);
    }
    disk_.connection_->aborted();
  }

  void cancel() noexcept override {
    cancelled_ = true;
    while (!waiting_.empty()) {
      DiskRequest& request = waiting_.front();
      waiting_.pop_front();
      request.disk_done(ECANCELED);
    }
    if (free_count_ == kOperationsMax) return;
    for (NbdOperation& operation : operations_) operation.aborted.store(true, std::memory_order_relaxed);
    disk_.connection_->aborted();
  }

 private:
  using List =
      bi::list<DiskRequest, bi::member_hook<DiskRequest, DiskRequest::Hook, &DiskRequest::queue_hook>,
               bi::constant_time_size<false>>;

  // False where it must wait for others to end.
  bool start(DiskRequest& request) noexcept {
    if (free_count_ == 0) return false;
    const bool moves = request.io.op == DiskOp::kRead || request.io.op == DiskOp::kWrite;
    std::byte* bounce = nullptr;
    if (moves && request.buffers.size() != 1) {
      if (!bounce_ready_) {
        request.disk_done(ENOMEM);
        return true;
      }
      bounce = bounce_.take();
      if (bounce == nullptr) return false;
    }
    NbdOperation& operation = *free_[--free_count_];
    operation.request = &request;
    operation.io = request.io;
    operation.bounce = bounce;
    operation.data =
        bounce != nullptr || !moves ? bounce : static_cast<std::byte*>(request.buffers.front().iov_base);
    operation.extent = {};
    operation.aborted.store(false, std::memory_order_relaxed);
    if (bounce != nullptr && request.io.op == DiskOp::kWrite) {
      for (const iovec& buffer : request.buffers) {
        std::memcpy(bounce, buffer.iov_base, buffer.iov_len);
        bounce += buffer.iov_len;
      }
    }
    disk_.connection_->submit(operation);
    return true;
  }

  void operation_done(NbdOperation& operation) noexcept override {
    DiskRequest& request = *std::exchange(operation.request, nullptr);
    const int error = operation.error;
    if (request.io.op == DiskOp::kMap && error == 0)
      request.extent = whole_blocks(request.io, operation.extent);
    if (operation.bounce != nullptr) {
      if (request.io.op == DiskOp::kRead && error == 0 && !cancelled_) {
        const std::byte* from = operation.bounce;
        for (const iovec& buffer : request.buffers) {
          std::memcpy(buffer.iov_base, from, buffer.iov_len);
          from += buffer.iov_len;
        }
      }
      bounce_.give_back(operation.bounce);
    }
    free_[free_count_++] = &operation;
    // In the order of their coming; each is begun at most once.
    while (!waiting_.empty() && !cancelled_) {
      DiskRequest& next = waiting_.front();
      waiting_.pop_front();
      if (start(next)) continue;
      waiting_.push_front(next);
      break;
    }
    request.disk_done(error);
  }

  // Blocks of which a part is there count as mapped.
  [[nodiscard]] DiskExtent whole_blocks(const DiskIo& io, DiskExtent extent) const {
    const std::uint64_t block = disk_.geometry_.logical_block_bytes;
    const std::uint64_t left = disk_.geometry_.size_bytes - io.offset;
    const std::uint64_t whole = std::min(extent.length, left) / block * block;
    return whole == 0 ? DiskExtent{block, true} : DiskExtent{whole, extent.mapped};
  }

  void completed(DiskRequest& /*request*/, std::int32_t /*result*/) noexcept override {
    VMBUSD_ASSERT(false);  // the connection polls a socket, nothing else
  }

  NbdDisk& disk_;
  std::array<NbdOperation, kOperationsMax> operations_;
  std::array<NbdOperation*, kOperationsMax> free_{};
  std::size_t free_count_ = 0;
  List waiting_;
  BouncePool bounce_;
  bool bounce_ready_ = false;
  bool cancelled_ = false;
};

std::unique_ptr<DiskQueue> NbdDisk::open_queue(io::Worker& worker) {
  return std::make_unique<NbdQueue>(*this, worker);
}

}  // namespace vmbusd::storvsp
