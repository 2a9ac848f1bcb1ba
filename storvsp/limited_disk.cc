#include "storvsp/limited_disk.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/assert.h"

namespace vmbusd::storvsp {
namespace {

using io::Clock;

// What `amount` takes of the time at so many a second. An amount is at most kMaxTransferBytes, so this does
// not overflow.
Clock::duration cost_of(std::uint64_t amount, std::uint64_t a_second) {
  constexpr std::uint64_t kSecond = std::chrono::nanoseconds(std::chrono::seconds(1)).count();
  return std::chrono::nanoseconds(amount * kSecond / a_second);
}

class LimitedQueue final : public DiskQueue, private io::Timer {
 public:
  LimitedQueue(LimitedDisk& disk, std::unique_ptr<DiskQueue> queue, io::Worker& worker)
      : disk_(disk), queue_(std::move(queue)), worker_(worker) {}
  ~LimitedQueue() override { VMBUSD_ASSERT(waiting_.empty() && !timer_hook.is_linked()); }

  void submit(DiskRequest& request) noexcept override {
    if (cancelled_) return request.disk_done(ECANCELED);
    if (waiting_.empty()) {
      const Clock::time_point now = Clock::now();
      due_of_first_ = disk_.begin_of(request.io, now);
      if (due_of_first_ <= now) return queue_->submit(request);
      worker_.arm(*this, due_of_first_);
    }
    waiting_.push_back(request);
  }

  void abort(DiskRequest& request) noexcept override {
    const auto found = std::find_if(waiting_.begin(), waiting_.end(),
                                    [&](const DiskRequest& waiting) { return &waiting == &request; });
    if (found == waiting_.end()) return queue_->abort(request);
    // Where it was the first, the next has its time.
    waiting_.erase(found);
    if (waiting_.empty()) worker_.disarm(*this);
    request.disk_done(ECANCELED);
  }

  void limits_changed() noexcept override {
    if (waiting_.empty()) return;
    due_of_first_ = disk_.begin_of(waiting_.front().io, Clock::now());
    worker_.arm(*this, due_of_first_);
  }

  void cancel() noexcept override {
    cancelled_ = true;
    worker_.disarm(*this);
    while (!waiting_.empty()) {
      DiskRequest& request = waiting_.front();
      waiting_.pop_front();
      request.disk_done(ECANCELED);
    }
    queue_->cancel();
  }

 private:
  using List =
      bi::list<DiskRequest, bi::member_hook<DiskRequest, DiskRequest::Hook, &DiskRequest::queue_hook>,
               bi::constant_time_size<false>>;

  // io::Timer. What ends inside may submit and abort others.
  void expired() noexcept override {
    const Clock::time_point now = Clock::now();
    while (!waiting_.empty() && due_of_first_ <= now) {
      DiskRequest& request = waiting_.front();
      waiting_.pop_front();
      if (!waiting_.empty()) due_of_first_ = disk_.begin_of(waiting_.front().io, now);
      queue_->submit(request);
    }
    if (!waiting_.empty()) worker_.arm(*this, due_of_first_);
  }

  void completed(DiskRequest& /*request*/, std::int32_t /*result*/) noexcept override {
    VMBUSD_ASSERT(false);  // requests complete in the queue behind
  }

  LimitedDisk& disk_;
  std::unique_ptr<DiskQueue> queue_;
  io::Worker& worker_;
  List waiting_;
  Clock::time_point due_of_first_;
  bool cancelled_ = false;
};

}  // namespace

LimitedDisk::LimitedDisk(std::shared_ptr<Disk> disk, const DiskLimits& limits)
    : disk_(std::move(disk)),
      limits_(limits),
      operations_(std::chrono::milliseconds(limits.burst_ms)),
      bytes_(std::chrono::milliseconds(limits.burst_ms)) {}

std::unique_ptr<DiskQueue> LimitedDisk::open_queue(io::Worker& worker) {
  return limit(disk_->open_queue(worker), worker);
}

std::unique_ptr<DiskQueue> LimitedDisk::limit(std::unique_ptr<DiskQueue> queue, io::Worker& worker) {
  return std::make_unique<LimitedQueue>(*this, std::move(queue), worker);
}

void LimitedDisk::set_limits(const DiskLimits& limits) {
  limits_ = limits;
  operations_.reset(std::chrono::milliseconds(limits.burst_ms));
  bytes_.reset(std::chrono::milliseconds(limits.burst_ms));
}

Clock::time_point LimitedDisk::begin_of(const DiskIo& io, Clock::time_point now) {
  Clock::time_point begin = now;
  if (limits_.operations != 0) begin = std::max(begin, operations_.take(now, cost_of(1, limits_.operations)));
  const bool moves = io.op == DiskOp::kRead || io.op == DiskOp::kWrite;
  if (moves && limits_.bytes != 0)
    begin = std::max(begin, bytes_.take(now, cost_of(io.length, limits_.bytes)));
  return begin;
}

}  // namespace vmbusd::storvsp
