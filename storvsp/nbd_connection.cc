#include "storvsp/nbd_connection.h"

#include <libnbd.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/assert.h"

namespace vmbusd::storvsp {

namespace {

using io::Clock;

// Of a request that is on its way whenever the connection breaks: it may be what breaks it.
constexpr std::uint32_t kConnectionsLostMax = 8;
// A server that is there says so within.
constexpr std::chrono::seconds kGreetingTime{5};
// Replies that are read before the other channels of the worker have their turn.
constexpr int kRepliesPerTurn = 64;
// Of a discard, zeroes or a look at what is there; the wire has 32 bits for a length.
constexpr std::uint32_t kLengthMax = 1u << 30;

class IgnoredOp final : public io::IoOp {
 public:
  void complete(std::int32_t, std::uint32_t) noexcept override {}
};
IgnoredOp ignored_op;  // stateless, and may be completed after the connection is gone

int take_extent(void* user_data, const char* /*context*/, std::uint64_t /*offset*/, std::uint32_t* entries,
                std::size_t count, int* /*error*/) {
  constexpr std::uint32_t kNothingThere = LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO;
  if (count < 2) return 0;
  auto& operation = *static_cast<NbdOperation*>(user_data);
  operation.extent = {entries[0], (entries[1] & kNothingThere) != kNothingThere};
  return 0;
}

}  // namespace

void NbdOperation::run() noexcept {
  if (over_) {
    owner->operation_done(*this);
  } else {
    connection->take(*this);
  }
}

void NbdConnection::Poll::arm(int fd) {
  if (armed_) return;
  io_uring_sqe* const sqe = connection_.home_.load(std::memory_order_relaxed)->sqe(*this);
  if (sqe == nullptr) {
    connection_.short_of_entries_ = true;
    return;
  }
  io_uring_prep_poll_add(sqe, fd, events_);
  armed_ = true;
  cancelled_ = false;
}

void NbdConnection::Poll::cancel() {
  if (!armed_ || cancelled_) return;
  io_uring_sqe* const sqe = connection_.home_.load(std::memory_order_relaxed)->sqe(ignored_op);
  if (sqe == nullptr) {
    connection_.short_of_entries_ = true;
    return;
  }
  io_uring_prep_cancel(sqe, static_cast<io::IoOp*>(this), 0);
  cancelled_ = true;
}

void NbdConnection::Poll::complete(std::int32_t result, std::uint32_t /*cqe_flags*/) noexcept {
  armed_ = false;
  // A socket that was given up may be found ready, too.
  if (!cancelled_ && result >= 0) {
    if (events_ == POLLIN) {
      connection_.readable();
    } else {
      connection_.writable();
    }
  }
  connection_.step();
}

NbdConnection::NbdConnection(Options options)
    : options_(std::move(options)),
      log_(options_.subject),
      read_poll_(*this, POLLIN),
      write_poll_(*this, POLLOUT) {}

NbdConnection::~NbdConnection() {
  VMBUSD_ASSERT(!at_work() && over_.empty() && answered_.empty() && !polls() && !timer_hook.is_linked());
  if (ready_) (void)nbd_aio_disconnect(handle_.get(), 0);  // a word for the server, if it takes one at once
}

void NbdConnection::connect(UniqueFd socket) {
  {
    const std::lock_guard lock(offered_mutex_);
    offered_ = std::move(socket);
  }
  io::Worker* const home = home_.load(std::memory_order_acquire);
  if (home == nullptr) return;
  home->post([self = shared_from_this()] {
    self->wanted_ = false;
    self->rests_ = self->held_.empty();
    self->step();
  });
}

void NbdConnection::join(io::Worker& worker) {
  io::Worker* none = nullptr;
  home_.compare_exchange_strong(none, &worker, std::memory_order_acq_rel);
}

void NbdConnection::submit(NbdOperation& operation) noexcept {
  operation.over_ = false;
  io::Worker* const home = home_.load(std::memory_order_relaxed);
  if (operation.worker == home) {
    take(operation);
  } else {
    home->post(operation);
  }
}

void NbdConnection::aborted() noexcept {
  home_.load(std::memory_order_relaxed)->post([self = shared_from_this()] {
    self->looks_for_aborted_ = true;
    self->step();
  });
}

void NbdConnection::take(NbdOperation& operation) noexcept {
  operation.bytes_done_ = 0;
  operation.connections_lost_ = 0;
  operation.made_durable_ = false;
  held_.push_back(operation);
  step();
}

// Everything that follows from what has changed. What it gives back may submit more, or find its queue gone.
void NbdConnection::step() {
  again_ = true;
  if (stepping_) return;
  const std::shared_ptr<NbdConnection> self = shared_from_this();
  stepping_ = true;
  while (std::exchange(again_, false)) {
    end_aborted();
    // Each need has the whole time.
    if (!ready_ && !failing_ && !at_work()) lost_since_.reset();
    if (!ready_) begin();
    greet();
    issue_held();
    take_answers();
    if (!ready_ && !held_.empty() && Clock::now() >= due()) fail_held();
    give_back();
  }
  stepping_ = false;
  wait();
}

void NbdConnection::end_aborted() {
  if (!std::exchange(looks_for_aborted_, false)) return;
  held_.remove_and_dispose_if(
      [](const NbdOperation& operation) { return operation.aborted.load(std::memory_order_relaxed); },
      [this](NbdOperation* operation) {
        operation->error = ECANCELED;
        over_.push_back(*operation);
      });
}

// The next connection, where there is need of one and the last one's polls are over.
void NbdConnection::begin() {
  if (handle_ != nullptr || held_.empty() || polls()) return;
  if (!lost_since_) lost_since_ = Clock::now();
  UniqueFd socket;
  {
    const std::lock_guard lock(offered_mutex_);
    socket = std::move(offered_);
  }
  if (!socket) {
    if (!std::exchange(wanted_, true) && options_.wanted) options_.wanted();
    return;
  }
  wanted_ = false;
  rested_ = std::exchange(rests_, false);
  handle_ = make_nbd_handle(options_.export_name);
  if (handle_ == nullptr) return lose("no memory");
  greeting_since_ = Clock::now();
  fd_ = socket.get();
  if (nbd_aio_connect_socket(handle_.get(), socket.release()) != 0) lose(nbd_get_error());
}

void NbdConnection::greet() {
  if (handle_ == nullptr) return;
  if (nbd_aio_is_dead(handle_.get()) == 1) return lose(nbd_get_error());
  if (nbd_aio_is_closed(handle_.get()) == 1) return lose("the server has closed it");
  if (ready_ || nbd_aio_is_ready(handle_.get()) == 0) return;
  const Result<NbdExport> found = read_nbd_export(handle_.get());
  if (!found) return lose(found.error().text);
  if (!found->serves(options_.expected)) {
    return lose("the export is another than it was: its size or what it can do has changed");
  }
  ready_ = true;
  rested_ = false;
  if (was_ready_ || failing_) {
    const auto gone = std::chrono::duration_cast<std::chrono::milliseconds>(
        Clock::now() - lost_since_.value_or(greeting_since_));
    log_.info("the NBD server is there again after {} ms", gone.count());
  }
  was_ready_ = true;
  failing_ = false;
  complaint_.clear();
  lost_since_.reset();
}

void NbdConnection::issue_held() {
  while (ready_ && !held_.empty()) {
    NbdOperation& operation = held_.front();
    held_.pop_front();
    issue(operation);
  }
}

void NbdConnection::issue(NbdOperation& operation) {
  issued_.push_back(operation);
  operation.error = 0;
  if (ask(operation) >= 0) return;
  const int error = nbd_get_errno();
  if (nbd_aio_is_dead(handle_.get()) == 1 || nbd_aio_is_closed(handle_.get()) == 1) {
    again_ = true;  // greet() finds it, and the operation among those that are issued
    return;
  }
  issued_.erase(issued_.iterator_to(operation));
  operation.error = error != 0 ? error : EIO;
  over_.push_back(operation);
}

// Hands the next piece to libnbd, which calls answered() for it sooner or later, perhaps in here. Negative
// where it does not.
std::int64_t NbdConnection::ask(NbdOperation& operation) {
  nbd_handle* const handle = handle_.get();
  const DiskIo& io = operation.io;
  const nbd_completion_callback done = {.callback =
                                            [](void* user_data, int* error) {
                                              auto& finished = *static_cast<NbdOperation*>(user_data);
                                              NbdConnection& self = *finished.connection;
                                              finished.error = *error;
                                              self.issued_.erase(self.issued_.iterator_to(finished));
                                              self.answered_.push_back(finished);
                                              return 1;  // libnbd may forget it
                                            },
                                        .user_data = &operation,
                                        .free = nullptr};
  const std::uint64_t offset = io.offset + operation.bytes_done_;
  const std::uint64_t left = io.length - operation.bytes_done_;
  const auto piece = [&](std::uint32_t most) {
    return operation.bytes_asked_ = static_cast<std::uint32_t>(std::min<std::uint64_t>(left, most));
  };
  if (operation.made_durable_) return nbd_aio_flush(handle, done, 0);
  switch (io.op) {
    case DiskOp::kRead:
      return nbd_aio_pread(handle, operation.data + operation.bytes_done_,
                           piece(options_.expected.transfer_bytes_max), offset, done, 0);
    case DiskOp::kWrite:
      return nbd_aio_pwrite(handle, operation.data + operation.bytes_done_,
                            piece(options_.expected.transfer_bytes_max), offset, done,
                            io.fua && options_.expected.fua ? LIBNBD_CMD_FLAG_FUA : 0);
    case DiskOp::kDiscard:
      return nbd_aio_trim(handle, piece(kLengthMax), offset, done, 0);
    case DiskOp::kZero:
      return nbd_aio_zero(handle, piece(kLengthMax), offset, done, io.unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE);
    case DiskOp::kMap:
      return nbd_aio_block_status(
          handle, std::min<std::uint64_t>(options_.expected.size_bytes - offset, kLengthMax), offset,
          {.callback = &take_extent, .user_data = &operation, .free = nullptr}, done, 0);
    default:
      return nbd_aio_flush(handle, done, 0);
  }
}

void NbdConnection::take_answers() {
  while (!answered_.empty()) {
    NbdOperation& operation = answered_.front();
    answered_.pop_front();
    answer(operation);
  }
}

void NbdConnection::answer(NbdOperation& operation) {
  // libnbd's word for a connection that broke, and a server's for one that is about to.
  if (operation.error == ENOTCONN || operation.error == ESHUTDOWN) {
    const bool closing = operation.error == ESHUTDOWN;
    issued_.push_front(operation);
    again_ = true;
    if (closing) lose("the server is shutting down");
    return;
  }
  if (operation.error == 0 && goes_on(operation)) {
    if (!operation.aborted.load(std::memory_order_relaxed)) {
      held_.push_front(operation);
      again_ = true;
      return;
    }
    operation.error = ECANCELED;
  }
  over_.push_back(operation);
}

// What was asked for being done: whether there is more to ask for.
bool NbdConnection::goes_on(NbdOperation& operation) const {
  const DiskIo& io = operation.io;
  if (operation.made_durable_) return false;
  if (io.op == DiskOp::kMap && operation.extent.length == 0) operation.error = EIO;
  if (io.op == DiskOp::kFlush || io.op == DiskOp::kMap) return false;
  operation.bytes_done_ += operation.bytes_asked_;
  if (operation.bytes_done_ < io.length) return true;
  const bool flush_behind =
      io.op == DiskOp::kWrite && io.fua && !options_.expected.fua && options_.expected.flushes;
  operation.made_durable_ = flush_behind;
  return flush_behind;
}

// What the server has not answered is asked for again on the next connection: whether it was done is not to
// be known, and to do it twice does no harm as long as nobody was told.
void NbdConnection::lose(const char* reason) {
  if (ready_) {
    log_.warning("lost the NBD server: {}; what the guest asks for waits {} s for another connection", reason,
                 options_.reconnect_delay.count());
  } else if (reason != complaint_) {
    complaint_ = reason;
    log_.warning("the NBD server cannot be used: {}", reason);
  }
  handle_.reset();
  if (!lost_since_) lost_since_ = Clock::now();
  const bool was_ready = std::exchange(ready_, false);
  // Servers do not wait for a handshake without end.
  if (std::exchange(rested_, false)) another_until_ = Clock::now() + kGreetingTime;
  read_poll_.cancel();
  write_poll_.cancel();
  issued_.splice(issued_.begin(), answered_);  // they are told the same, or would be
  for (NbdOperation& operation : issued_) {
    operation.bytes_done_ = 0;
    operation.made_durable_ = false;
    if (was_ready) ++operation.connections_lost_;
  }
  held_.splice(held_.begin(), issued_);
  held_.remove_and_dispose_if(
      [](const NbdOperation& operation) { return operation.connections_lost_ > kConnectionsLostMax; },
      [this](NbdOperation* operation) {
        operation->error = EIO;
        over_.push_back(*operation);
      });
  looks_for_aborted_ = true;
  again_ = true;
}

Clock::time_point NbdConnection::due() const {
  const Clock::time_point given_up =
      lost_since_.value_or(Clock::time_point::max() - options_.reconnect_delay) + options_.reconnect_delay;
  return std::max(given_up, handle_ == nullptr ? another_until_ : greeting_since_ + kGreetingTime);
}

void NbdConnection::fail_held() {
  if (!std::exchange(failing_, true)) {
    log_.error("no NBD server for {} s: what the guest asks for fails until there is one",
               options_.reconnect_delay.count());
  }
  if (handle_ != nullptr) lose("it does not finish the handshake");
  for (NbdOperation& operation : held_) operation.error = ETIMEDOUT;
  over_.splice(over_.end(), held_);
}

// The last ones only when nothing of ours is in the io_uring any more: their queues may go, and the worker.
void NbdConnection::give_back() {
  if (over_.empty()) return;
  if (!at_work() && polls()) {
    read_poll_.cancel();
    write_poll_.cancel();
    return;
  }
  if (!at_work()) home_.load(std::memory_order_relaxed)->disarm(*this);
  List over;
  over.swap(over_);
  while (!over.empty()) {
    NbdOperation& operation = over.front();
    over.pop_front();
    operation.over_ = true;
    if (operation.worker == home_.load(std::memory_order_relaxed)) {
      operation.owner->operation_done(operation);
    } else {
      operation.worker->post(operation);
    }
  }
}

void NbdConnection::wait() {
  io::Worker& home = *home_.load(std::memory_order_relaxed);
  if (at_work() && handle_ != nullptr) {
    const unsigned direction = nbd_aio_get_direction(handle_.get());
    if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0) read_poll_.arm(fd_);
    if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) write_poll_.arm(fd_);
  }
  if (std::exchange(short_of_entries_, false)) {
    home.arm(*this, home.now());
  } else if (!ready_ && !held_.empty()) {
    home.arm(*this, due());
  } else {
    home.disarm(*this);
  }
}

// One reply a call, and only where there is one: libnbd sends nothing while it waits for the rest of a reply,
// be it for the first byte.
void NbdConnection::readable() {
  for (int i = 0; i < kRepliesPerTurn; ++i) {
    if (handle_ == nullptr || (nbd_aio_get_direction(handle_.get()) & LIBNBD_AIO_DIRECTION_READ) == 0) return;
    if (nbd_aio_notify_read(handle_.get()) != 0) return;
    if (!ready_ || nbd_aio_is_ready(handle_.get()) == 0 || issued_.empty()) return;
    char byte = 0;
    if (::recv(fd_, &byte, sizeof byte, MSG_PEEK | MSG_DONTWAIT) <= 0) return;
  }
}

void NbdConnection::writable() {
  if (handle_ == nullptr || (nbd_aio_get_direction(handle_.get()) & LIBNBD_AIO_DIRECTION_WRITE) == 0) return;
  (void)nbd_aio_notify_write(handle_.get());
}

}  // namespace vmbusd::storvsp
