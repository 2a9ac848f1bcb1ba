#include "io/polled_ring.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"
#include "io/ring_setup.h"

namespace vmbusd::io {

namespace {

constexpr std::uint8_t kAllowedOpcodes[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ,
                                            IORING_OP_WRITE};

// Between two looks, after polling found nothing: from what a fast device takes to what no user of a slow one
// notices.
constexpr std::chrono::microseconds kIntervalMin{20};
constexpr std::chrono::microseconds kIntervalMax{1000};

}  // namespace

Result<std::unique_ptr<PolledRing>> PolledRing::create(Worker& worker, std::uint32_t entries) {
  std::unique_ptr<PolledRing> ring(new PolledRing(worker));
  VMBUSD_CHECK(ring->set_up(entries));
  return ring;
}

Result<void> PolledRing::set_up(std::uint32_t entries) {
  io_uring_params params{};
  params.flags = IORING_SETUP_IOPOLL | IORING_SETUP_R_DISABLED;
  const int error = -io_uring_queue_init_params(entries, &ring_, &params);
  if (error != 0) return fail_os(error, "cannot create io_uring for polled devices");
  made_ = true;
  VMBUSD_CHECK(restrict_ring(ring_, kAllowedOpcodes, 0));
  // It has no single issuer, so any thread may.
  VMBUSD_ASSERT(enable_ring(ring_));
  return {};
}

PolledRing::~PolledRing() {
  VMBUSD_ASSERT(in_flight_ == 0);
  if (made_) io_uring_queue_exit(&ring_);
}

io_uring_sqe* PolledRing::sqe(IoOp& op) {
  // Each completion has its place in the ring, so none needs the kernel's memory.
  if (in_flight_ == *ring_.cq.kring_entries) return nullptr;
  io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
  if (entry == nullptr) return nullptr;
  std::memset(entry, 0, sizeof *entry);
  io_uring_sqe_set_data(entry, &op);
  ++in_flight_;
  worker_.disarm(*this);
  worker_.activate(*this);
  return entry;
}

bool PolledRing::poll() noexcept {
  // Hands over what is queued, and looks once at the devices' queues; never waits.
  const int result = io_uring_submit_and_get_events(&ring_);
  VMBUSD_ASSERT(result >= 0 || may_pass(-result));
  unsigned reaped = 0;
  unsigned head = 0;
  io_uring_cqe* cqe = nullptr;
  io_uring_for_each_cqe(&ring_, head, cqe) {
    ++reaped;
    --in_flight_;
    static_cast<IoOp*>(io_uring_cqe_get_data(cqe))->complete(cqe->res, cqe->flags);
  }
  io_uring_cq_advance(&ring_, reaped);
  if (reaped != 0) interval_ = kIntervalMin;
  if (in_flight_ == 0) worker_.deactivate(*this);
  return reaped != 0;
}

bool PolledRing::prepare_sleep() noexcept {
  interval_ = std::clamp(2 * interval_, kIntervalMin, kIntervalMax);
  worker_.arm(*this, worker_.now() + interval_);
  return true;
}

}  // namespace vmbusd::io
