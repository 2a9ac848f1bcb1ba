// A child partition without a hypervisor: RAM in a memfd, fake VPs, and the attach protocol's client half
// that makes vmbusd take it for a VMM's guest.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "guest/driver_channel.h"
#include "guest/ram.h"
#include "guest/virtual_processor.h"
#include "partition/attach_client.h"
#include "partition/take_up_record.h"

namespace vmbusd::guest {

// The eventfd that HvSignalEvent on a connection id writes. Kept by those who signal, so that it stays an
// eventfd of theirs when the host detaches it.
using Doorbell = std::shared_ptr<const UniqueFd>;

// Life cycle: attach(), use, disconnect() or destruction, which ends the connection without a word, as the
// death of a VMM does. Whatever uses it (bus, channels) must be gone by then. Any thread.
class ChildPartition final : private partition::AttachClientEvents {
 public:
  struct Options {
    std::string socket_path;
    std::uint32_t vp_count = 1;
    std::uint64_t memory_bytes = 64 << 20;
    bool take_up = false;  // keeps what reattach() needs
  };

  // Connects and hands over memory, interrupts and SynIC pages. `error_text` takes the daemon's words where
  // it refused.
  [[nodiscard]] static Result<std::unique_ptr<ChildPartition>> attach(const Options& options,
                                                                      std::string& error_text);
  // After the daemon has gone, with Options::take_up: has the one that came take up the guest. Errc::kClosed
  // where it will not.
  [[nodiscard]] Result<void> reattach(std::string& error_text);
  // Where the next reattach() connects.
  void set_socket_path(const std::string& path) { options_.socket_path = path; }
  ~ChildPartition();
  ChildPartition(const ChildPartition&) = delete;
  ChildPartition& operator=(const ChildPartition&) = delete;

  [[nodiscard]] Ram& ram() { return *ram_; }
  [[nodiscard]] std::uint32_t vp_count() const { return static_cast<std::uint32_t>(vps_.size()); }
  [[nodiscard]] VirtualProcessor& vp(std::uint32_t index) { return *vps_.at(index); }

  // HvPostMessage; waits as a guest does while the daemon's queue is full. Errc::kOs with ETIMEDOUT where it
  // stays full for kPatience.
  [[nodiscard]] Result<void> post_message(std::uint32_t connection_id, std::span<const std::byte> payload,
                                          std::uint32_t vp = 0);
  // The next message for the VP. Its slot is free from then on, so the next one can come. Errc::kOs with
  // ETIMEDOUT where none came in time, Errc::kClosed where the daemon is gone.
  [[nodiscard]] Result<VirtualProcessor::Message> take_message(std::uint32_t vp, Clock::time_point deadline);

  // The eventfd of a connection id; nullptr where the host attached none.
  [[nodiscard]] Doorbell doorbell(std::uint32_t connection_id) const;
  [[nodiscard]] std::size_t doorbells() const;

  // The VMM's reset: returns when the daemon uses no guest memory any more, with SynIC pages enabled as by a
  // guest that boots.
  [[nodiscard]] Result<void> reset();
  // Ends the connection as the death of a VMM does.
  void disconnect();
  [[nodiscard]] bool disconnected_by_host() const { return disconnected_; }
  // For tests that misbehave.
  [[nodiscard]] partition::AttachClient& client() { return *client_; }

 private:
  ChildPartition(const Options& options, std::unique_ptr<Ram> ram)
      : options_(options), ram_(std::move(ram)) {}
  [[nodiscard]] Result<void> connect(std::string& error_text);
  [[nodiscard]] Result<void> hand_over();
  [[nodiscard]] Result<void> enable_synic();

  // partition::AttachClientEvents, on the client's thread.
  [[nodiscard]] Result<void> doorbell_attach(std::uint32_t connection_id, UniqueFd eventfd) override;
  [[nodiscard]] Result<void> doorbell_detach(std::uint32_t connection_id) override;
  void host_message(std::uint64_t cookie, std::uint32_t vp, std::uint32_t sint, std::uint32_t message_type,
                    std::span<const std::uint8_t> payload) override;
  void signal_event(std::uint32_t vp, std::uint32_t sint, std::uint32_t flag) override;
  void recovery_area(UniqueFd file, bool taken_up, std::uint64_t guest_messages) override;
  void disconnected(const Error& reason) override;

  Options options_;
  std::unique_ptr<Ram> ram_;
  std::vector<std::unique_ptr<VirtualProcessor>> vps_;
  mutable std::mutex mutex_;  // of doorbells_ and taken_up_
  std::map<std::uint32_t, Doorbell> doorbells_;
  std::condition_variable changed_;
  bool taken_up_ = false;
  partition::TakeUpRecord record_;
  std::atomic<bool> reattaching_{false};
  std::atomic<bool> resetting_{false};
  std::atomic<bool> disconnected_{false};
  std::unique_ptr<partition::AttachClient> client_;  // last: its thread uses the others
};

}  // namespace vmbusd::guest
