#include "devices/attach_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/assert.h"

namespace vmbusd::devices {

AttachSocket::AttachSocket(io::Worker& control, UniqueFd socket, std::function<void()> reading,
                           std::function<Result<void>(partition::Datagram&)> received,
                           std::function<void(const Error&)> failed)
    : control_(control),
      socket_(std::move(socket)),
      reading_(std::move(reading)),
      received_(std::move(received)),
      failed_(std::move(failed)) {}

void AttachSocket::start() {
  watch_.start(control_, socket_.get(), [this] { readable(); });
}

AttachSocket::~AttachSocket() {
  VMBUSD_ASSERT(!watch_.active() && !waiting_writable_ && posted_ == 0);
}

void AttachSocket::send(std::span<const std::byte> bytes, std::span<const int> fds) {
  if (down_) return;
  if (queue_.empty()) {
    const Result<void> sent = partition::send_datagram(socket_.get(), bytes, fds, false);
    if (sent) return;
    if (sent.error().code != Errc::kLimit) {
      fail(sent.error());
      return;
    }
  }
  if (queue_.size() == kMaxQueued) {
    fail(Error{Errc::kLimit, 0, "VMM does not read its messages"});
    return;
  }
  Queued queued;
  queued.bytes.assign(bytes.begin(), bytes.end());
  for (const int fd : fds) {
    queued.fds.emplace_back(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!queued.fds.back()) {
      fail(Error{Errc::kOs, errno, "cannot keep a descriptor for the VMM"});
      return;
    }
  }
  queue_.push_back(std::move(queued));
  wait_writable();
}

void AttachSocket::close(std::function<void()> closed) {
  closed_ = std::move(closed);
  down_ = true;
  queue_.clear();
  control_.disarm(read_timer_);
  // Ends a wait for writability, too.
  ::shutdown(socket_.get(), SHUT_RDWR);
  if (watch_.active()) watch_.stop([this] { settle(); });
  settle();
}

void AttachSocket::readable() {
  if (!down_) reading_();
  for (int i = 0; i < kReceiveBudget; ++i) {
    if (down_) return;
    if (!may_read()) return control_.arm(read_timer_, paid_until_ + kReceiveBudget * kInterval);
    Result<std::optional<partition::Datagram>> datagram = partition::receive_datagram(socket_.get(), false);
    if (!datagram) {
      fail(datagram.error());
      return;
    }
    if (!*datagram) return;
    const Result<void> taken = received_(**datagram);
    if (!taken) {
      fail(taken.error());
      return;
    }
  }
  // The watch tells of new datagrams only, so what is left must be fetched unasked.
  later([this] { readable(); });
}

bool AttachSocket::may_read() {
  paid_until_ = std::max(paid_until_, control_.now() - kBurst * kInterval);
  if (paid_until_ + kInterval > control_.now()) return false;
  paid_until_ += kInterval;
  return true;
}

void AttachSocket::flush() {
  while (!queue_.empty() && !down_) {
    const Queued& next = queue_.front();
    std::vector<int> fds;
    fds.reserve(next.fds.size());
    for (const UniqueFd& fd : next.fds) fds.push_back(fd.get());
    const Result<void> sent = partition::send_datagram(socket_.get(), next.bytes, fds, false);
    if (!sent && sent.error().code == Errc::kLimit) {
      wait_writable();
      return;
    }
    if (!sent) {
      fail(sent.error());
      return;
    }
    queue_.pop_front();
  }
}

void AttachSocket::wait_writable() {
  if (waiting_writable_) return;
  waiting_writable_ = true;
  io_uring_sqe* const sqe = control_.sqe(writable_);
  if (sqe == nullptr) {
    later([this] { writable_.complete(0, 0); });
    return;
  }
  io_uring_prep_poll_add(sqe, socket_.get(), POLLOUT);
}

void AttachSocket::WritableOp::complete(std::int32_t, std::uint32_t) noexcept {
  socket_.waiting_writable_ = false;
  socket_.flush();
  socket_.settle();
}

void AttachSocket::fail(const Error& error) {
  if (down_) return;
  down_ = true;
  // Not at once: the caller of send() is in the middle of something.
  later([this, error] {
    if (!closed_) failed_(error);
  });
}

void AttachSocket::later(std::function<void()> function) {
  ++posted_;
  control_.post([this, run = std::move(function)] {
    --posted_;
    run();
    settle();
  });
}

void AttachSocket::settle() {
  if (closed_ && !watch_.active() && !waiting_writable_ && posted_ == 0) {
    control_.post(std::exchange(closed_, nullptr));
  }
}

}  // namespace vmbusd::devices
