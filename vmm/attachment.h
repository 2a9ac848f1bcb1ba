// The VMM's half of serving a guest by vmbusd: passes on what the guest posts and what the daemon asks.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "partition/attach_client.h"
#include "vmm/guest_ram.h"
#include "vmm/hypercall.h"
#include "vmm/hypervisor.h"

namespace vmbusd::vmm {

// Life cycle: one object for the VMM's life, connected or not; machines come and go with bind() and unbind().
//
// Threads: vCPUs (post, synic_change), the attach client's receiving thread (daemon's requests), the
// machine's event thread (free slots), the main thread (the rest). No lock is held while one waits for the
// daemon, since the daemon's own requests must get through meanwhile.
//
// Without a daemon, or after it went away, the guest runs on: its posts meet no connection and its doorbells
// nobody.
class Attachment final : public MachineEvents, private partition::AttachClientEvents {
 public:
  Attachment(std::uint32_t vcpus, LogScope& log);
  ~Attachment();
  Attachment(const Attachment&) = delete;
  Attachment& operator=(const Attachment&) = delete;

  // Connects to the partition's socket and hands over the guest's memory. `error_text` is the whole story on
  // failure.
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

  // The daemon was there and is no more. Any thread.
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
  void disconnected(const Error& reason) override;

  // MachineEvents
  void message_slot_free(std::uint32_t vp, std::uint32_t sint) override;

  // Posts what waits for the VP as far as its slot takes it.
  void post_waiting(std::uint32_t vp);
  void answer(std::span<const std::uint64_t> cookies);
  void tell_synic_state(std::uint32_t vp, const SynicState& state);
  // The client while the daemon is there, else nullptr.
  [[nodiscard]] partition::AttachClient* client();

  const std::uint32_t vcpus_;
  LogScope& log_;
  std::array<SynicState, kMaxVcpus>
      told_;  // element n: vCPU n's thread, or the main thread while vCPUs stand

  mutable std::mutex mutex_;  // of all below
  Machine* machine_ = nullptr;
  std::array<std::deque<HostMessage>, kMaxVcpus> waiting_;  // together at most partition::kMaxHostMessages
  std::set<std::uint32_t> doorbells_;                       // connection ids attached to the machine
  bool lost_ = false;
  std::unique_ptr<partition::AttachClient> client_;  // set once; its thread ends with it
};

}  // namespace vmbusd::vmm
