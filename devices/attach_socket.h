// The VMM's connection on the control worker: datagrams in, datagrams out without ever blocking.
#pragma once

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

  // `received` gets each datagram; an error it returns, like any error of the socket, goes to `failed` once.
  AttachSocket(io::Worker& control, UniqueFd socket,
               std::function<Result<void>(partition::Datagram&)> received,
               std::function<void(const Error&)> failed);
  ~AttachSocket();
  AttachSocket(const AttachSocket&) = delete;
  AttachSocket& operator=(const AttachSocket&) = delete;

  // Never blocks: what the socket does not take is queued, with duplicates of `fds`.
  void send(std::span<const std::byte> bytes, std::span<const int> fds);
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
  struct Queued {
    std::vector<std::byte> bytes;
    std::vector<UniqueFd> fds;
  };
  // Datagrams read before others get their turn.
  static constexpr int kReceiveBudget = 64;

  void readable();
  void flush();
  void wait_writable();
  void fail(const Error& error);
  void later(std::function<void()> function);
  void settle();

  io::Worker& control_;
  UniqueFd socket_;
  std::function<Result<void>(partition::Datagram&)> received_;
  std::function<void(const Error&)> failed_;
  std::function<void()> closed_;
  io::FdWatch watch_;
  WritableOp writable_{*this};
  bool waiting_writable_ = false;
  int posted_ = 0;  // functions that wait in the control worker
  bool down_ = false;
  std::deque<Queued> queue_;
};

}  // namespace vmbusd::devices
