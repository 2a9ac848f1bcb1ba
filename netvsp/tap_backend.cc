#include "netvsp/tap_backend.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <memory>
#include <mutex>
#include <utility>

#include "base/assert.h"
#include "netvsp/nic_state.h"
#include "netvsp/tap_steering.h"

namespace vmbusd::netvsp {

namespace {

// Reads in flight: what one turn can take from a busy TAP.
constexpr std::uint32_t kReadsMax = 32;

// One queue of a TAP.
//
// Reads are submitted as one chain of hard links (IOSQE_IO_HARDLINK): the kernel has exactly one of them
// waiting for a packet, and starts the next when it completes. So packets come in order, a packet wakes one
// read and not all of them, and a busy TAP gives up to kReadsMax packets for one system call. The next chain
// is submitted when the last is used up; packets wait in the TAP's queue meanwhile.
//
// A write to a TAP copies the frame before it completes, and never waits, so there is no back-pressure.
class TapQueue final : public BackendQueue {
 public:
  TapQueue(UniqueFd fd, std::uint32_t index, std::shared_ptr<TapSteering> steering)
      : fd_(std::move(fd)), index_(index), steering_(std::move(steering)) {
    select(false);
  }

  void attach(QueueUser& user, io::Worker& worker) override {
    VMBUSD_ASSERT(reads_ == 0 && writes_ == 0);
    user_ = &user;
    worker_ = &worker;
    attached_ = true;
    running_ = true;
    refresh();
    select(true);
  }

  void detach() override {
    attached_ = false;
    pause();
    select(false);
  }

  void pause() override {
    running_ = false;
    if (reads_ != 0) cancel();
  }

  void resume() override { running_ = true; }

  void set_large_receive(bool large) override {
    large_ = large;
    apply_offloads();
  }

  Sent transmit(TransmitFrame& frame) override {
    if (!fd_ || replacing_) return Sent::kLost;
    io_uring_sqe* const sqe = worker_->sqe(frame);
    if (sqe == nullptr) return Sent::kRetry;
    std::byte* const begin = frame.bytes.data() + frame.head_offset - sizeof(VirtioNetHeader);
    std::memcpy(begin, &frame.header, sizeof(VirtioNetHeader));
    frame.segments[0] = {begin, sizeof(VirtioNetHeader) + frame.head_size};
    io_uring_prep_writev(sqe, fd_.get(), frame.segments.data(), 1 + frame.segment_count, 0);
    ++writes_;
    user_->begin_op();
    return Sent::kTaken;
  }

  void transmit_completed(TransmitFrame& frame, std::int32_t result) override {
    --writes_;
    // EIO: the interface is down, the frame is gone. EINVAL: the kernel does not like it.
    if (result < 0 && lost(result)) lose(-result);
    user_->transmitted(frame, result >= 0);
    user_->end_op();
    take_replacement();
  }

  bool receive(std::uint32_t) override {
    if (!running_ || !fd_ || replacing_ || reads_ != 0) return false;
    io_uring_sqe* last = nullptr;
    while (reads_ < kReadsMax) {
      ReceiveBuffer* const buffer = user_->take_buffer();
      if (buffer == nullptr) break;
      io_uring_sqe* const sqe = worker_->sqe(*buffer);
      if (sqe == nullptr) {
        user_->returned(*buffer);
        break;
      }
      buffer->queue = this;
      buffer->pieces[0] = {&buffer->header, sizeof buffer->header};
      io_uring_prep_readv(sqe, fd_.get(), buffer->pieces.data(), 1 + buffer->piece_count, 0);
      // Linked only when its successor is certain: a link behind the last would take in whatever comes next.
      if (last != nullptr) last->flags |= IOSQE_IO_HARDLINK;
      last = sqe;
      chain_[reads_++] = buffer;
      user_->begin_op();
    }
    chain_first_ = 0;
    chain_end_ = reads_;
    return false;
  }

  void receive_completed(ReceiveBuffer& buffer, std::int32_t result) override {
    VMBUSD_ASSERT(reads_ != 0 && chain_[chain_first_] == &buffer);
    ++chain_first_;
    --reads_;
    constexpr auto kHeader = static_cast<std::int32_t>(sizeof(VirtioNetHeader));
    if (result >= kHeader) {
      user_->received(buffer, static_cast<std::uint32_t>(result - kHeader));
    } else {
      if (result < 0 && lost(result)) lose(-result);
      user_->returned(buffer);
    }
    user_->end_op();
    take_replacement();
  }

  void replace(UniqueFd fd) override {
    const std::lock_guard lock(mutex_);
    steering_->replace(fd.get(), index_);
    next_fd_ = std::move(fd);
  }

  void refresh() override {
    if (!replaced()) return;
    replacing_ = true;
    if (reads_ != 0) cancel();
    take_replacement();
  }

 private:
  class CancelOp final : public io::IoOp {
   public:
    explicit CancelOp(TapQueue& queue) : queue_(queue) {}
    void complete(std::int32_t, std::uint32_t) noexcept override {
      queue_.cancelling_ = false;
      // The next link of the chain waits now, or is about to.
      if (queue_.reads_ != 0 && (!queue_.running_ || queue_.replacing_)) queue_.cancel();
      queue_.user_->end_op();
      queue_.take_replacement();
    }

   private:
    TapQueue& queue_;
  };

  // EAGAIN: the poll behind a read was in vain. EIO: a write while the interface is down.
  [[nodiscard]] static bool lost(std::int32_t result) {
    return result != -EAGAIN && result != -EINTR && result != -ECANCELED && result != -EIO &&
           result != -EINVAL && result != -ENOBUFS && result != -ENOMEM;
  }

  void lose(int os_error) {
    if (lost_ || !attached_) return;  // a detached queue gives EBADFD as well
    lost_ = true;
    if (replaced()) return;  // by what this one's end says nothing of
    user_->link_lost(Error{Errc::kOs, os_error, "TAP is gone"});
  }

  // There is another descriptor, not taken up yet.
  [[nodiscard]] bool replaced() {
    const std::lock_guard lock(mutex_);
    return static_cast<bool>(next_fd_);
  }

  // Cancels the chain from its head on, one link after the other.
  void cancel() {
    if (cancelling_) return;
    io_uring_sqe* const sqe = worker_->sqe(cancel_op_);
    cancelling_ = true;
    user_->begin_op();
    if (sqe == nullptr) {
      worker_->post([this] { cancel_op_.complete(0, 0); });  // tries again
      return;
    }
    io_uring_prep_cancel(sqe, static_cast<io::IoOp*>(chain_[chain_first_]), 0);
  }

  void take_replacement() {
    if (!replacing_ && !lost_) return;
    if (reads_ != 0 || writes_ != 0 || cancelling_) return;
    if (lost_) fd_.reset();
    if (!replacing_) return;
    const std::lock_guard lock(mutex_);
    if (next_fd_) fd_ = std::move(next_fd_);
    replacing_ = false;
    lost_ = false;
    if (attached_) steering_->select(fd_.get(), index_, true);
    apply_offloads();
  }

  // Tells the kernel what we take from it: packets whose checksum is to be completed, always, and large ones.
  // [linux: set_offload in drivers/net/tun.c]
  void apply_offloads() {
    if (!fd_) return;
    const unsigned long flags = TUN_F_CSUM | (large_ ? TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN : 0u);
    static_cast<void>(::ioctl(fd_.get(), TUNSETOFFLOAD, flags));  // only a device that is gone refuses
  }

  // The kernel spreads packets over all queues that are attached, so one that nobody reads must not be.
  // Queue 0 stays: it keeps the device's carrier on.
  void select(bool on) {
    const std::lock_guard lock(mutex_);
    if (!next_fd_) steering_->select(fd_.get(), index_, on);
  }

  UniqueFd fd_;
  const std::uint32_t index_;
  const std::shared_ptr<TapSteering> steering_;
  QueueUser* user_ = nullptr;
  io::Worker* worker_ = nullptr;
  bool attached_ = false;
  bool running_ = false;
  bool lost_ = false;
  bool large_ = false;
  bool replacing_ = false;
  bool cancelling_ = false;
  std::uint32_t reads_ = 0;   // in flight: chain_[chain_first_..chain_end_)
  std::uint32_t writes_ = 0;  // in flight
  std::uint32_t chain_first_ = 0;
  std::uint32_t chain_end_ = 0;
  std::array<ReceiveBuffer*, kReadsMax> chain_{};
  CancelOp cancel_op_{*this};
  std::mutex mutex_;
  UniqueFd next_fd_;
};

}  // namespace

Result<void> prepare_tap(int fd) {
  ifreq request{};
  if (::ioctl(fd, TUNGETIFF, &request) != 0) return fail_os(errno, "descriptor is no TAP's");
  const auto flags = static_cast<unsigned short>(request.ifr_flags);
  if ((flags & IFF_TAP) == 0 || (flags & IFF_VNET_HDR) == 0 || (flags & IFF_NO_PI) == 0) {
    return fail(Errc::kConfig, "descriptor is not a TAP's with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR");
  }
  int header_size = sizeof(VirtioNetHeader);
  if (::ioctl(fd, TUNSETVNETHDRSZ, &header_size) != 0) return fail_os(errno, "TAP refuses its header size");
  int little_endian = 1;
  if (::ioctl(fd, TUNSETVNETLE, &little_endian) != 0) return fail_os(errno, "TAP refuses its byte order");
  // io_uring waits for packets by polling where reads do not block, and keeps a thread in the read otherwise.
  const int status = ::fcntl(fd, F_GETFL);
  if (status < 0 || ::fcntl(fd, F_SETFL, status | O_NONBLOCK) != 0) {
    return fail_os(errno, "TAP cannot be made non-blocking");
  }
  return {};
}

Backend make_tap_backend(std::vector<UniqueFd> fds, std::uint32_t queues,
                         std::shared_ptr<TapSteering> steering) {
  Backend backend;
  backend.offloads = kAllChecksums | kAllLso | kAllRsc;
  backend.large_receive = true;
  backend.link_up = !fds.empty();
  for (std::uint32_t i = 0; i < queues; ++i) {
    backend.queues.push_back(
        std::make_unique<TapQueue>(i < fds.size() ? std::move(fds[i]) : UniqueFd(), i, steering));
  }
  backend.steering = std::move(steering);
  return backend;
}

}  // namespace vmbusd::netvsp
