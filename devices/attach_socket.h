// The VMM's connection on the control worker: datagrams in, datagrams out without ever blocking.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "io/worker.h"
#include "partition/seqpacket.h"

namespace vmbusd::devices {

// Control thread only. Nothing is called after close()'s `closed`.
class AttachSocket {
 public:
  // Datagrams that wait for the VMM to read; one that leaves more unread has stopped taking part.
  static constexpr std::size_t kMaxQueued = 8192;
  // Datagrams that are taken: one an interval in the long run, a burst after a quiet time. What a guest may
  // lend at most takes 12,000. More wait in the socket, and so does whoever sends them: the VMM, and the
  // guest's processor for which it posts a message.
  static constexpr std::chrono::microseconds kInterval{100};
  static constexpr int kBurst = 16384;

  // Nothing is read before start(). `reading` is called before each turn of reading; `received` gets each
  // datagram; an error it returns, like any error of the socket, goes to `failed` once.
  AttachSocket(io::Worker& control, UniqueFd socket, std::function<void()> reading,
               std::function<Result<void>(partition::Datagram&)> received,
               std::function<void(const Error&)> failed);
  ~AttachSocket();
  AttachSocket(const AttachSocket&) = delete;
  AttachSocket& operator=(const AttachSocket&) = delete;

  void start();
  // Never blocks: what the socket does not take is queued, with duplicates of `fds`.
  void send(std::span<const std::byte> bytes, std::span<const int> fds);
  // Whether the VMM's end has all that was sent.
  [[nodiscard]] bool drained() const { return queue_.empty(); }
  // Sends nothing more and receives nothing more; `closed` is called when no completion is outstanding.
  void close(std::function<void()> closed);

 private:
  // Waits for the socket to take datagrams again.
  class WritableOp final : public io::IoOp {
   public:
    explicit WritableOp(AttachSocket& socket) : socket_(socket) {}
    void complete(std::int32_t result, std::uint32_t cqe_flags) noexcept override;

   private:
    AttachSocket& socket_;
  };
  // Goes on reading after the sender's pause.
  class ReadTimer final : public io::Timer {
   public:
    explicit ReadTimer(AttachSocket& socket) : socket_(socket) {}
    void expired() noexcept override { socket_.readable(); }

   private:
    AttachSocket& socket_;
  };
  struct Queued {
    std::vector<std::byte> bytes;
    std::vector<UniqueFd> fds;
  };
  // Datagrams read before others get their turn.
  static constexpr int kReceiveBudget = 64;

  void readable();
  [[nodiscard]] bool may_read();
  void flush();
  void wait_writable();
  void fail(const Error& error);
  void later(std::function<void()> function);
  void settle();

  io::Worker& control_;
  UniqueFd socket_;
  std::function<void()> reading_;
  std::function<Result<void>(partition::Datagram&)> received_;
  std::function<void(const Error&)> failed_;
  std::function<void()> closed_;
  io::FdWatch watch_;
  WritableOp writable_{*this};
  bool waiting_writable_ = false;
  ReadTimer read_timer_{*this};
  io::Clock::time_point paid_until_;  // the datagrams so far, at one an interval
  int posted_ = 0;                    // functions that wait in the control worker
  bool down_ = false;
  std::deque<Queued> queue_;
};

}  // namespace vmbusd::devices
