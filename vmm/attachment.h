// The VMM's half of serving a guest by vmbusd: passes on what the guest posts and what the daemon asks.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "base/result.h"
#include "partition/attach_client.h"
#include "partition/take_up_record.h"
#include "vmm/guest_ram.h"
#include "vmm/hypercall.h"
#include "vmm/hypervisor.h"

namespace vmbusd::vmm {

// Life cycle: one object for the VMM's life, connected or not; machines come and go with bind() and unbind().
//
// Threads: vCPUs (post, synic_change), the attach client's receiving thread (daemon's requests), the
// machine's event thread (free slots), one that reconnects, the main thread (the rest). No lock is held while
// one waits for the daemon, since the daemon's own requests must get through meanwhile.
//
// Without a daemon, or after it went away, the guest runs on: its posts meet no connection and its doorbells
// nobody. With a time to reconnect, a thread tries for so long to have another daemon take up the guest where
// the last one left it; meanwhile its posts find the host busy, doorbells ring in eventfds that are kept, and
// who has something else to tell the daemon waits.
class Attachment final : public MachineEvents, private partition::AttachClientEvents {
 public:
  Attachment(std::uint32_t vcpus, LogScope& log, std::chrono::seconds reconnect_time = {});
  ~Attachment();
  Attachment(const Attachment&) = delete;
  Attachment& operator=(const Attachment&) = delete;

  // Connects to the partition's socket and hands over the guest's memory, which outlives this. `error_text`
  // is the whole story on failure.
  [[nodiscard]] Result<void> connect(const std::string& socket_path, const GuestRam& ram,
                                     bool event_flags_in_guest_memory, std::string& error_text);
  // Tells the daemon where the machine's interrupts are and takes its requests to the machine. Before its
  // vCPUs run.
  [[nodiscard]] Result<void> bind(Machine& machine);
  // Resets the daemon's side. No vCPU runs any more; the machine is not used after this returns.
  void unbind();
  // Ends the connection for good, without waiting for the daemon, and wakes vCPUs that do wait for it.
  void close();

  // Forwards a message. Returns the hypercall's status.
  [[nodiscard]] std::uint16_t post(std::uint32_t vp, const PostedMessage& message);
  // Carries out a SynicExit of the VP's vCPU, on its thread.
  void synic_change(std::uint32_t vp, Vcpu& vcpu, const SynicState& state);

  // The daemon was there and is no more, or not yet again. Any thread.
  [[nodiscard]] bool lost() const;

 private:
  struct HostMessage {
    std::uint64_t cookie;
    std::uint32_t type;
    std::vector<std::uint8_t> payload;
  };

  // AttachClientEvents
  [[nodiscard]] Result<void> doorbell_attach(std::uint32_t connection_id, UniqueFd eventfd) override;
  [[nodiscard]] Result<void> doorbell_detach(std::uint32_t connection_id) override;
  void host_message(std::uint64_t cookie, std::uint32_t vp, std::uint32_t sint, std::uint32_t message_type,
                    std::span<const std::uint8_t> payload) override;
  void signal_event(std::uint32_t vp, std::uint32_t sint, std::uint32_t flag) override;
  void recovery_area(UniqueFd file, bool taken_up, std::uint64_t guest_messages) override;
  void disconnected(const Error& reason) override;

  // MachineEvents
  void message_slot_free(std::uint32_t vp, std::uint32_t sint) override;

  // Posts what waits for the VP as far as its slot takes it.
  void post_waiting(std::uint32_t vp);
  void answer(std::span<const std::uint64_t> cookies);
  void tell_synic_state(std::uint32_t vp, const SynicState& state);
  using Client = std::shared_ptr<partition::AttachClient>;
  // The client while the daemon is there, else nullptr.
  [[nodiscard]] Client client();
  // The same, once it is known whether there is one. `ended`: not this one any more.
  [[nodiscard]] Client wait_for_client(const Client& ended = nullptr);

  // Reconnecting, on the thread for it.
  void reconnect_when_away();
  [[nodiscard]] Result<void> try_to_reconnect(std::chrono::steady_clock::time_point until,
                                              std::string& error_text);
  [[nodiscard]] Result<Client> connect_client(std::string& error_text);
  [[nodiscard]] Result<void> give_memory(partition::AttachClient& client) const;
  [[nodiscard]] Result<void> give_interrupts(partition::AttachClient& client, Machine& machine) const;
  void lose();
  [[nodiscard]] bool seek_daemon();

  enum class Link : std::uint8_t {
    kNone,  // not connected yet, or never
    kUp,
    kAway,  // another daemon may come
    kLost,  // for as long as this guest runs
  };

  const std::uint32_t vcpus_;
  LogScope& log_;
  const std::chrono::seconds reconnect_time_;
  std::string socket_path_;
  const GuestRam* ram_ = nullptr;
  std::uint64_t features_ = 0;
  // Readable once closing_; where there is none, close() waits for a daemon that is being connected to.
  const UniqueFd give_up_;
  std::array<SynicState, kMaxVcpus>
      told_;  // element n: vCPU n's thread, or the main thread while vCPUs stand
  partition::TakeUpRecord record_;

  mutable std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  Machine* machine_ = nullptr;
  std::array<std::deque<HostMessage>, kMaxVcpus> waiting_;  // together at most partition::kMaxHostMessages
  std::set<std::uint32_t> doorbells_;                       // connection ids attached to the machine
  Link link_ = Link::kNone;
  bool reconnects_ = false;       // when it is kUp no more
  bool gives_back_ = false;       // the client of kAway is to take up the guest
  bool client_ended_ = false;     // that of kAway
  bool closing_ = false;          // for good, by us
  Client client_;                 // its thread ends with it
  std::thread reconnect_thread_;  // of connect()
};

}  // namespace vmbusd::vmm
