#include "netvsp/stream_backend.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/assert.h"
#include "netvsp/nic_state.h"
#include "netvsp/offload.h"
#include "netvsp/segment.h"

namespace vmbusd::netvsp {

namespace {

constexpr std::size_t kLengthSize = 4;
// Frames that wait for the socket: four large sends with all their headers.
constexpr std::size_t kSendBytes = 512u << 10;
constexpr std::size_t kReceiveBytes = 256u << 10;
// The longest frame that a peer may send; a longer one means that the framing is lost. passt's largest has 64
// KiB and its headers.
constexpr std::uint32_t kFrameMax = 0x20000;
static_assert(kFrameMax + kLengthSize <= kReceiveBytes);
// What one send takes: as much as a Unix socket queues as one buffer, so that its reader never finds a part
// of it. passt, until 2024, reads what follows a frame's cut length as the next frame, for ever. [linux:
// unix_stream_sendmsg(), UNIX_SKB_FRAGS_SZ; passt: tap_handler_passt() in Debian 12's 2023_03_09]
constexpr std::size_t kOneSendBytes = 32u << 10;

// The bytes on their way to the socket: filled at the end, sent from the begin, moved down when the end has
// no room. A frame that was begun is finished, whatever happens to the guest's channel meanwhile.
class SendBuffer {
 public:
  SendBuffer() : bytes_(std::make_unique<std::byte[]>(kSendBytes)) {}

  [[nodiscard]] bool empty() const { return begin_ == end_; }
  [[nodiscard]] std::span<const std::byte> pending() const { return {bytes_.get() + begin_, end_ - begin_}; }
  // Room for `size` bytes at the end; null where there is none. `busy`: the kernel reads pending().
  [[nodiscard]] std::byte* reserve(std::size_t size, bool busy) {
    if (kSendBytes - end_ < size && !busy) {
      std::memmove(bytes_.get(), bytes_.get() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
    }
    return kSendBytes - end_ < size ? nullptr : bytes_.get() + end_;
  }
  void commit(std::size_t size) { end_ += size; }
  void consume(std::size_t size) {
    begin_ += size;
    if (begin_ == end_) clear();
  }
  void clear() { begin_ = end_ = 0; }

 private:
  std::unique_ptr<std::byte[]> bytes_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

void put_length(std::byte* at, std::uint32_t length) {
  const BigEndian32 value = length;
  std::memcpy(at, &value, sizeof value);
}

// The only queue. Frames are copied both ways: a stream knows no frame borders, so what is read cannot be
// aimed at a sub-allocation, and a frame of which half is sent must not depend on guest memory. In return one
// operation carries many frames.
class StreamQueue final : public BackendQueue {
 public:
  explicit StreamQueue(UniqueFd fd)
      : fd_(std::move(fd)), receive_bytes_(std::make_unique<std::byte[]>(kReceiveBytes)) {}

  void attach(QueueUser& user, io::Worker& worker) override {
    VMBUSD_ASSERT(!sending_ && !receiving_);
    user_ = &user;
    worker_ = &worker;
    running_ = true;
    blocked_ = false;
    refresh();
  }

  void detach() override { pause(); }

  void pause() override {
    running_ = false;
    cancel();
  }

  void resume() override { running_ = true; }

  Sent transmit(TransmitFrame& frame) override {
    if (!fd_ || lost_ || replacing_) return Sent::kLost;
    const bool large = frame.header.gso_type != kVirtioGsoNone;
    const bool taken = large ? put_segments(frame) : put_frame(frame);
    blocked_ |= !taken;
    return taken ? Sent::kDone : Sent::kBlocked;
  }

  void flush() override {
    if (!running_ || sending_ || !fd_ || lost_ || replacing_ || send_.empty()) return;
    io_uring_sqe* const sqe = worker_->sqe(send_op_);
    if (sqe == nullptr) {
      if (std::exchange(flush_posted_, true)) return;
      user_->begin_op();
      worker_->post([this] {
        flush_posted_ = false;
        flush();
        user_->end_op();
      });
      return;
    }
    io_uring_prep_send(sqe, fd_.get(), send_.pending().data(), next_send(), MSG_NOSIGNAL);
    sending_ = true;
    user_->begin_op();
  }

  bool receive(std::uint32_t budget) override {
    const bool more = deliver(budget);
    if (running_ && !receiving_ && fd_ && !lost_ && !replacing_ && !more && receive_end_ < kReceiveBytes) {
      io_uring_sqe* const sqe = worker_->sqe(receive_op_);
      if (sqe == nullptr) return true;
      io_uring_prep_recv(sqe, fd_.get(), receive_bytes_.get() + receive_end_, kReceiveBytes - receive_end_,
                         0);
      receiving_ = true;
      user_->begin_op();
    }
    return more;
  }

  void transmit_completed(TransmitFrame&, std::int32_t) override {}
  void receive_completed(ReceiveBuffer&, std::int32_t) override {}

  void replace(UniqueFd fd) override {
    const std::lock_guard lock(mutex_);
    next_fd_ = std::move(fd);
  }

  void refresh() override {
    if (!replaced()) return;
    replacing_ = true;
    cancel();
    take_replacement();
  }

 private:
  using Step = void (StreamQueue::*)(std::int32_t);
  class Op final : public io::IoOp {
   public:
    Op(StreamQueue& queue, Step step) : queue_(queue), step_(step) {}
    void complete(std::int32_t result, std::uint32_t) noexcept override {
      (queue_.*step_)(result);
      queue_.user_->end_op();
      queue_.take_replacement();
    }

   private:
    StreamQueue& queue_;
    Step step_;
  };

  [[nodiscard]] bool put_frame(TransmitFrame& frame) {
    std::byte* const out = send_.reserve(kLengthSize + frame.frame_size, sending_);
    if (out == nullptr) return false;
    std::byte* at = out + kLengthSize;
    put_length(out, frame.frame_size);
    const std::span<std::byte> head = frame.head();
    std::memcpy(at, head.data(), head.size());
    at += head.size();
    for (const iovec& part : frame.rest()) {
      std::memcpy(at, part.iov_base, part.iov_len);
      at += part.iov_len;
    }
    if ((frame.header.flags & kVirtioNeedsChecksum) != 0) {
      complete_checksum(frame.header, std::span(out + kLengthSize, frame.frame_size), {});
    }
    send_.commit(kLengthSize + frame.frame_size);
    return true;
  }

  [[nodiscard]] bool put_segments(TransmitFrame& frame) {
    const FrameLayout layout = parse_frame(frame.head());
    if (layout.protocol != kProtocolTcp) return true;  // plan_transmit() made sure of it
    const TcpSegmenter segmenter(frame.head(), layout, frame.frame_size, frame.header.gso_size);
    const std::size_t size = segmenter.count() * (kLengthSize + segmenter.header_size()) +
                             (frame.frame_size - segmenter.header_size());
    // What never fits is lost rather than blocked for ever: segments of a few bytes each.
    if (size > kSendBytes) return true;
    std::byte* const out = send_.reserve(size, sending_);
    if (out == nullptr) return false;
    std::byte* at = out;
    Source source(frame, segmenter.header_size());
    for (std::uint32_t i = 0; i < segmenter.count(); ++i) {
      const std::uint32_t payload_size = segmenter.segment(i).payload_size;
      put_length(at, segmenter.header_size() + payload_size);
      at += kLengthSize;
      const std::span<std::byte> payload(at + segmenter.header_size(), payload_size);
      source.read(payload);
      ChecksumSum sum;  // over our copy, which the guest cannot change
      sum.add(payload);
      segmenter.write_header(i, sum, std::span(at, segmenter.header_size()));
      at += segmenter.header_size() + payload_size;
    }
    send_.commit(size);
    return true;
  }

  // Reads a frame's bytes from `offset` on: its private head, then its pieces.
  class Source {
   public:
    Source(TransmitFrame& frame, std::size_t offset) : frame_(frame), at_(offset) {}
    void read(std::span<std::byte> out) {
      while (!out.empty()) {
        const std::span<const std::byte> part =
            index_ == 0 ? std::span<const std::byte>(frame_.head())
                        : std::span(static_cast<const std::byte*>(frame_.segments[index_].iov_base),
                                    frame_.segments[index_].iov_len);
        if (at_ >= part.size()) {
          at_ -= part.size();
          ++index_;
          continue;
        }
        const std::size_t size = std::min(out.size(), part.size() - at_);
        std::memcpy(out.data(), part.data() + at_, size);
        out = out.subspan(size);
        at_ += size;
      }
    }

   private:
    TransmitFrame& frame_;
    std::size_t at_;
    std::uint32_t index_ = 0;
  };

  // Where the frame ends whose length is at `at` of what is pending.
  [[nodiscard]] std::size_t frame_end(std::size_t at) const {
    BigEndian32 length;
    std::memcpy(&length, send_.pending().data() + at, sizeof length);
    return at + kLengthSize + length;
  }

  // What the next send takes: the rest of the frame that was begun, and whole frames; one of the two at
  // least.
  [[nodiscard]] std::size_t next_send() const {
    std::size_t size = begun_;
    while (size < send_.pending().size()) {
      const std::size_t end = frame_end(size);
      if (size != 0 && end > kOneSendBytes) break;
      size = end;
    }
    return size;
  }

  void sent(std::int32_t result) {
    sending_ = false;
    if (result > 0) {
      const auto size = static_cast<std::size_t>(result);
      std::size_t end = begun_;
      while (end < size) end = frame_end(end);
      begun_ = end - size;
      send_.consume(size);
    } else if (!passing(result)) {
      lose(-result);
    }
    flush();
    if (std::exchange(blocked_, false)) user_->transmit_ready();
  }

  void read(std::int32_t result) {
    receiving_ = false;
    if (result > 0) {
      receive_end_ += static_cast<std::size_t>(result);
    } else if (!passing(result)) {
      lose(-result);  // 0: the peer closed
    }
  }

  void cancelled(std::int32_t) {
    --cancels_;
    // What was about to start when it was to be cancelled.
    if (!running_ || replacing_ || lost_) cancel();
  }

  // Gives complete frames to the user. True where there are more, and buffers for them.
  [[nodiscard]] bool deliver(std::uint32_t budget) {
    while (receive_end_ - receive_begin_ >= kLengthSize) {
      BigEndian32 length;
      std::memcpy(&length, receive_bytes_.get() + receive_begin_, sizeof length);
      const std::uint32_t size = length;
      if (size > kFrameMax) {
        lose(EPROTO);
        break;
      }
      if (receive_end_ - receive_begin_ < kLengthSize + size) break;
      if (budget-- == 0) return true;
      ReceiveBuffer* const buffer = user_->take_buffer();
      if (buffer == nullptr) return false;  // stays; nothing is read meanwhile once the room is used up
      if (size <= buffer->room) {
        buffer->fill({receive_bytes_.get() + receive_begin_ + kLengthSize, size});
        buffer->header = {};
        user_->received(*buffer, size);
      } else {
        buffer->header = {};
        user_->received(*buffer, buffer->room + 1);  // too long: counted as dropped
      }
      receive_begin_ += kLengthSize + size;
    }
    if (!receiving_ && receive_begin_ != 0) {
      std::memmove(receive_bytes_.get(), receive_bytes_.get() + receive_begin_,
                   receive_end_ - receive_begin_);
      receive_end_ -= receive_begin_;
      receive_begin_ = 0;
    }
    return false;
  }

  // Results that say nothing against the socket.
  [[nodiscard]] static bool passing(std::int32_t result) {
    return result == -EAGAIN || result == -EINTR || result == -ECANCELED || result == -ENOBUFS ||
           result == -ENOMEM;
  }

  void lose(int os_error) {
    if (lost_) return;
    lost_ = true;
    cancel();
    if (replaced()) return;  // by what this one's end says nothing of
    user_->link_lost(os_error == 0 ? Error{Errc::kClosed, 0, "peer closed the stream"}
                                   : Error{Errc::kOs, os_error, "stream is broken"});
  }

  // There is another descriptor, not taken up yet.
  [[nodiscard]] bool replaced() {
    const std::lock_guard lock(mutex_);
    return static_cast<bool>(next_fd_);
  }

  void cancel() {
    for (io::IoOp* const target : {sending_ ? &send_op_ : nullptr, receiving_ ? &receive_op_ : nullptr}) {
      if (target == nullptr || cancels_ != 0) continue;
      io_uring_sqe* const sqe = worker_->sqe(cancel_op_);
      ++cancels_;
      user_->begin_op();
      if (sqe == nullptr) {
        worker_->post([this] { cancel_op_.complete(0, 0); });  // tries again
      } else {
        io_uring_prep_cancel(sqe, target, 0);
      }
    }
  }

  void take_replacement() {
    if (sending_ || receiving_ || cancels_ != 0) return;
    if (lost_) fd_.reset();
    if (!replacing_) return;
    const std::lock_guard lock(mutex_);
    if (next_fd_) fd_ = std::move(next_fd_);
    // Another stream: it knows nothing of what the old one had begun.
    send_.clear();
    begun_ = 0;
    receive_begin_ = receive_end_ = 0;
    replacing_ = false;
    lost_ = false;
    if (std::exchange(blocked_, false)) user_->transmit_ready();
  }

  UniqueFd fd_;
  QueueUser* user_ = nullptr;
  io::Worker* worker_ = nullptr;
  bool running_ = false;
  bool lost_ = false;
  bool replacing_ = false;
  bool blocked_ = false;  // transmit() found no room
  bool flush_posted_ = false;
  bool sending_ = false;
  bool receiving_ = false;
  std::uint32_t cancels_ = 0;  // in flight
  SendBuffer send_;
  std::size_t begun_ = 0;  // bytes of a frame whose first ones were sent
  std::unique_ptr<std::byte[]> receive_bytes_;
  std::size_t receive_begin_ = 0;
  std::size_t receive_end_ = 0;
  Op send_op_{*this, &StreamQueue::sent};
  Op receive_op_{*this, &StreamQueue::read};
  Op cancel_op_{*this, &StreamQueue::cancelled};
  std::mutex mutex_;
  UniqueFd next_fd_;
};

}  // namespace

Result<void> prepare_stream(int fd) {
  int type = 0;
  socklen_t size = sizeof type;
  if (::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0)
    return fail_os(errno, "descriptor is no socket");
  if (type != SOCK_STREAM) return fail(Errc::kConfig, "socket is not a stream");
  sockaddr_storage peer{};
  size = sizeof peer;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) != 0) {
    return fail_os(errno, "socket is not connected");
  }
  // io_uring waits by itself; for a non-blocking socket some kernels would have us wait.
  const int status = ::fcntl(fd, F_GETFL);
  if (status < 0 || ::fcntl(fd, F_SETFL, status & ~O_NONBLOCK) != 0) {
    return fail_os(errno, "socket cannot be made blocking");
  }
  return {};
}

Backend make_stream_backend(UniqueFd fd) {
  Backend backend;
  backend.offloads = kAllChecksums | kAllLso;
  backend.link_up = static_cast<bool>(fd);
  backend.queues.push_back(std::make_unique<StreamQueue>(std::move(fd)));
  return backend;
}

}  // namespace vmbusd::netvsp
