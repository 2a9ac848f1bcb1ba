// The VMM's half of the attach protocol. Used by vmbus-vmm and by the user-space child partition.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "partition/attach_protocol.h"

namespace vmbusd::partition {

// What the daemon asks of a VMM. Called on the client's receiving thread, one at a time; must not call back
// into requests of AttachClient that wait (they would wait for this thread).
class AttachClientEvents {
 public:
  // The eventfd is the VMM's from now on. The result is sent back to the daemon.
  [[nodiscard]] virtual Result<void> doorbell_attach(std::uint32_t connection_id, UniqueFd eventfd) = 0;
  [[nodiscard]] virtual Result<void> doorbell_detach(std::uint32_t connection_id) = 0;
  // Puts a message into the VP's SINT slot when that is free; calls AttachClient::host_message_done(cookie)
  // then, from any thread. At most kMaxHostMessages are outstanding.
  virtual void host_message(std::uint64_t cookie, std::uint32_t vp, std::uint32_t sint,
                            std::uint32_t message_type, std::span<const std::uint8_t> payload) = 0;
  virtual void signal_event(std::uint32_t vp, std::uint32_t sint, std::uint32_t flag) = 0;
  // With kFeatureTakeUp: keep `file`, in place of one before, for take_up(). `taken_up`: the daemon has taken
  // the guest up and has acted on `guest_messages` of its messages, counted over all connections since the
  // first.
  virtual void recovery_area(UniqueFd file, bool taken_up, std::uint64_t guest_messages) {
    (void)file;
    (void)taken_up;
    (void)guest_messages;
  }
  // The daemon closed the connection or broke the protocol. No other event follows.
  virtual void disconnected(const Error& reason) = 0;

 protected:
  ~AttachClientEvents() = default;
};

// Life cycle: connect() does Hello and starts the receiving thread, on which events may arrive before
// connect() has returned; destruction (on any other thread) stops it. Requests may be made from any thread
// but the receiving one; they wait for the daemon's answer and leave its words in error_text().
class AttachClient {
 public:
  struct Options {
    std::string socket_path;
    std::uint32_t vp_count = 1;
    std::uint64_t features = 0;
    int give_up = -1;  // once this is readable, connect() waits for no answer any more
  };

  [[nodiscard]] static Result<std::unique_ptr<AttachClient>> connect(const Options& options,
                                                                     AttachClientEvents& events,
                                                                     std::string& error_text);
  ~AttachClient();
  AttachClient(const AttachClient&) = delete;
  AttachClient& operator=(const AttachClient&) = delete;

  // The feature bits that both sides have.
  [[nodiscard]] std::uint64_t features() const;
  // HvPostMessage connection ids that the daemon serves.
  [[nodiscard]] bool serves_message_connection(std::uint32_t connection_id) const;

  [[nodiscard]] Result<void> add_memory(std::uint64_t gpa, std::uint64_t size, int fd, std::uint64_t offset,
                                        bool writable);
  [[nodiscard]] Result<void> remove_memory(std::uint64_t gpa, std::uint64_t size);
  // The daemon sets O_NONBLOCK on the eventfd, for all who share it.
  [[nodiscard]] Result<void> set_vp_interrupt(std::uint32_t vp, std::uint32_t sint, int eventfd);
  [[nodiscard]] Result<void> set_synic_state(std::uint32_t vp, std::uint32_t flags,
                                             std::uint64_t message_page_gpa, std::uint64_t event_page_gpa);
  [[nodiscard]] Result<void> reset();
  // With kFeatureTakeUp, of a daemon that comes after another: gives it a doorbell that the other attached
  // and did not detach, for each of them; then has it take up the guest. What comes of that is told by
  // AttachClientEvents::recovery_area() or disconnected().
  [[nodiscard]] Result<void> keep_doorbell(std::uint32_t connection_id, int eventfd);
  [[nodiscard]] Result<void> take_up(int recovery_area);

  // Forwards a guest's HvPostMessage. Does not wait: Errc::kLimit means that the daemon's queue is full and
  // the guest is to be told HV_STATUS_INSUFFICIENT_BUFFERS.
  [[nodiscard]] Result<void> post_guest_message(std::uint32_t vp, std::uint32_t connection_id,
                                                std::uint32_t message_type,
                                                std::span<const std::uint8_t> payload);
  // Answers AttachClientEvents::host_message, once for each cookie. Any thread.
  void host_message_done(std::uint64_t cookie);

  // Ends the connection: requests under way and later ones fail with Errc::kClosed.
  // AttachClientEvents::disconnected is not called. For a VMM that leaves and must not wait for a daemon that
  // hangs.
  void close();
  // The same, and waits for the receiving thread: no event comes afterwards. On any other thread, by the one
  // who destroys it or before anybody can. Where several own it, the last to let go may be the receiving
  // thread unless this was called.
  void stop();

  // The daemon's own words on the last failed request; empty where it gave none.
  [[nodiscard]] std::string error_text() const;

 private:
  struct Impl;
  explicit AttachClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace vmbusd::partition
