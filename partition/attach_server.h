// The daemon's half of the attach protocol: takes datagrams, answers with datagrams and calls. No socket, no
// thread, so that tests and fuzzers drive it directly; its caller does the I/O.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "base/result.h"
#include "base/serial.h"
#include "partition/attach_protocol.h"
#include "partition/partition.h"

namespace vmbusd::partition {

// Names a descriptor that a connection's state needs: the VMM's, by these, and its owner's by others.
using FdKey = std::uint64_t;
[[nodiscard]] constexpr FdKey memory_fd_key(std::uint64_t gpa) {
  return gpa | 1;  // the low 12 bits are free
}
[[nodiscard]] constexpr FdKey interrupt_fd_key(std::uint32_t vp) {
  return std::uint64_t{vp} << 12 | 2;
}
[[nodiscard]] constexpr FdKey doorbell_fd_key(std::uint32_t channel) {
  return std::uint64_t{channel} << 12 | 3;
}

// What the attach server asks of its surroundings. Control thread.
class AttachServerEvents {
 public:
  // Sends a datagram to the VMM; it must not be lost, so the socket's owner queues what the socket does not
  // take.
  virtual void send(std::span<const std::byte> bytes, std::span<const int> fds) = 0;
  // Hello was accepted: the partition exists from now on, until the connection ends.
  virtual void attached(Partition& partition) = 0;
  // Runs `change` while no I/O worker touches guest memory through `partition`. With `drain`, operations in
  // flight into guest memory are finished or cancelled first, so this may take long: `done` (which answers
  // the VMM) is called when it is over, perhaps before this returns. Both on the control thread, each once
  // or, where the connection ends before, never; both do nothing once the AttachServer is gone.
  virtual void change_partition(bool drain, std::function<void()> change, std::function<void()> done) = 0;
  // Whether the guest has lent memory of this region to a channel: it must stay where it is then.
  [[nodiscard]] virtual bool region_lent(std::uint64_t gpa, std::uint64_t size) const = 0;
  // The guest posted a message. `payload` is a private copy.
  virtual void guest_message(std::uint32_t vp, std::uint32_t connection_id, std::uint32_t message_type,
                             std::span<const std::byte> payload) = 0;
  // The VMM resets the guest: close everything, then call `done`.
  virtual void reset(std::function<void()> done) = 0;
  // For surroundings that let a connection outlive this process: `fd` belongs to it from now on, in place of
  // what had this key before; or none does.
  virtual void keep_fd(FdKey key, int fd) {
    (void)key;
    (void)fd;
  }
  virtual void drop_fd(FdKey key) { (void)key; }
  // For surroundings that let it outlive the daemon too: the descriptor of the recovery area that is for the
  // VMM; -1: it does not.
  [[nodiscard]] virtual int area_for_vmm() const { return -1; }
  // The VMM gives back a doorbell; false where no channel can have had it. `eventfd` is for keep_fd(), so to
  // speak.
  [[nodiscard]] virtual bool doorbell_kept(std::uint32_t connection_id, int eventfd) {
    (void)connection_id;
    (void)eventfd;
    return false;
  }
  // The VMM wants its guest taken up from what it has given back: `area` and what was kept. An error is
  // answered to the VMM; else this begins once the caller is done.
  [[nodiscard]] virtual Result<void> take_up(UniqueFd area) {
    (void)area;
    return fail(Errc::kUnsupported, "nothing is taken up");
  }

 protected:
  ~AttachServerEvents() = default;
};

// Life cycle: one object a VMM connection. Control thread only.
class AttachServer {
 public:
  AttachServer(AttachServerEvents& events, std::span<const std::uint32_t> message_connections, LogScope& log);
  ~AttachServer();
  AttachServer(const AttachServer&) = delete;
  AttachServer& operator=(const AttachServer&) = delete;

  // One datagram from the VMM. An error means that the VMM broke the protocol (and was told so, where there
  // was something to answer): close the connection. What merely cannot be done is answered to the VMM and is
  // no error here.
  [[nodiscard]] Result<void> receive(std::span<const std::byte> bytes, std::vector<UniqueFd> fds);

  // Whether nobody waits for an answer, so that save() tells it all.
  [[nodiscard]] bool settled() const;
  // For a daemon that is restarted under its VMM: writes what restore() on a new AttachServer needs. Only
  // while settled(), after Hello.
  void save(SerialWriter& out) const;
  // First of all, in place of receive(): does what save() wrote over again, as if the VMM asked for it, but
  // tells it nothing. So it is checked just as that is. `take_fd` gives the descriptor of a key, or none.
  [[nodiscard]] Result<void> restore(SerialReader& in, const std::function<UniqueFd(FdKey)>& take_fd);

  // Whether the VMM can have its guest taken up by another daemon.
  [[nodiscard]] bool can_be_taken_up() const;
  // After restore(): the guest is served. Tells the VMM, where that asked.
  void taken_up();

  // The connection is over: what waits for the VMM's answer gets Errc::kClosed now, later requests get it at
  // once, and nothing more is sent. The partition stays until destruction. Destruction alone calls no one.
  void disconnected();

  // nullptr before Hello.
  [[nodiscard]] Partition* partition();

  using Done = std::function<void(Result<void>)>;
  // Asks the VMM to have HvSignalEvent on `connection_id` write `eventfd`; `done` gets its answer. At most
  // kMaxPending requests wait at once: Errc::kLimit beyond. Errc::kBadMessage where the id exceeds 24 bits.
  void doorbell_attach(std::uint32_t connection_id, int eventfd, Done done);
  void doorbell_detach(std::uint32_t connection_id, Done done);
  // Queues a message for the guest: at most kMaxHostMessages are with the VMM at once, the rest waits here in
  // order. Errc::kLimit where kMaxQueuedMessages wait already: the guest does not take its messages.
  // Errc::kBadMessage where there is no such VP (the guest chose it). At most kMaxMessagePayload bytes.
  [[nodiscard]] Result<void> host_message(std::uint32_t vp, std::uint32_t message_type,
                                          std::span<const std::byte> payload);
  // Drops the messages that wait here. A reset does so by itself, also with what is queued until it is
  // answered.
  void drop_host_messages();

  // Doorbell requests: two for each channel that a guest can have.
  static constexpr std::size_t kMaxPending = 4096;
  static constexpr std::size_t kMaxQueuedMessages = 4096;  // more than all offers of a full bus

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace vmbusd::partition
