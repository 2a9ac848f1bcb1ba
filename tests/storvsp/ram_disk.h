// A disk in memory that a test can hold back and make fail.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/assert.h"
#include "storvsp/disk.h"

namespace vmbusd::storvsp {

class RamDisk final : public Disk {
 public:
  explicit RamDisk(const DiskGeometry& geometry) : medium(geometry.size_bytes), geometry_(geometry) {}

  [[nodiscard]] const DiskGeometry& geometry() const override { return geometry_; }
  [[nodiscard]] std::unique_ptr<DiskQueue> open_queue(io::Worker& /*worker*/) override {
    auto queue = std::make_unique<Queue>(*this);
    queue_ = queue.get();
    return queue;
  }

  // Completes what `hold` held back, oldest last. The worker's thread.
  void release_held() {
    while (!queue_->held.empty()) {
      DiskRequest& request = queue_->held.back();
      queue_->held.pop_back();
      queue_->perform(request);
    }
  }

  std::vector<std::byte> medium;
  std::atomic<bool> hold{false};
  std::atomic<bool> stubborn{false};  // what is held cannot be aborted
  std::atomic<int> error{0};          // errno of the operations from now on
  std::atomic<int> operations{0};     // that reached the disk, held ones included
  std::atomic<int> cancels{0};

 private:
  using List =
      bi::list<DiskRequest, bi::member_hook<DiskRequest, DiskRequest::Hook, &DiskRequest::queue_hook>>;

  struct Queue final : DiskQueue {
    explicit Queue(RamDisk& of) : disk(of) {}

    void submit(DiskRequest& request) noexcept override {
      ++disk.operations;
      if (disk.hold) {
        held.push_back(request);
      } else {
        perform(request);
      }
    }
    void abort(DiskRequest& request) noexcept override {
      if (disk.stubborn || !request.queue_hook.is_linked()) return;
      held.erase(held.iterator_to(request));
      request.disk_done(ECANCELED);
    }
    void cancel() noexcept override {
      ++disk.cancels;
      while (!held.empty()) {
        DiskRequest& request = held.front();
        held.pop_front();
        request.disk_done(ECANCELED);
      }
    }
    void completed(DiskRequest& /*request*/, std::int32_t /*result*/) noexcept override {
      VMBUSD_ASSERT(false);
    }

    void perform(DiskRequest& request) noexcept {
      const DiskIo& io = request.io;
      if (disk.error != 0) return request.disk_done(disk.error);
      if (io.op > DiskOp::kFlush) return provision(request);
      std::size_t total = 0;
      for (const iovec& buffer : request.buffers) {
        if (io.op == DiskOp::kFlush) break;
        VMBUSD_ASSERT(io.offset + total + buffer.iov_len <= disk.medium.size());
        std::byte* const at = disk.medium.data() + io.offset + total;
        if (io.op == DiskOp::kRead) {
          std::memcpy(buffer.iov_base, at, buffer.iov_len);
        } else {
          std::memcpy(at, buffer.iov_base, buffer.iov_len);
        }
        total += buffer.iov_len;
      }
      VMBUSD_ASSERT(io.op == DiskOp::kFlush || total == io.length);
      request.disk_done(0);
    }

    void provision(DiskRequest& request) noexcept {
      const DiskIo& io = request.io;
      if (io.op == DiskOp::kKeep) return request.disk_done(EOPNOTSUPP);
      VMBUSD_ASSERT(io.offset < disk.medium.size() && io.length <= disk.medium.size() - io.offset);
      if (io.op == DiskOp::kMap) {
        request.extent = {disk.medium.size() - io.offset, true};
      } else {
        std::memset(disk.medium.data() + io.offset, 0, io.length);
      }
      request.disk_done(0);
    }

    RamDisk& disk;
    List held;
  };

  DiskGeometry geometry_;
  Queue* queue_ = nullptr;  // the one that was opened last
};

}  // namespace vmbusd::storvsp
