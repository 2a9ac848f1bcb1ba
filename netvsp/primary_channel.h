// The primary channel of a NIC: NVSP and RNDIS control beside the data.
#pragma once

#include <array>
#include <chrono>
#include <functional>
#include <memory>

#include "io/worker.h"
#include "netvsp/net_channel.h"
#include "netvsp/nic_state.h"
#include "netvsp/rndis_control.h"

namespace vmbusd::netvsp {

// Life cycle and thread as NetChannel. Tells the sub-channels what it negotiates through Opening.
class PrimaryChannel final : public NetChannel {
 public:
  struct Config {
    NicState state;  // its first part filled in
    NvspSession::Limits limits;
    bool large_receive = false;  // Backend::large_receive
    const CounterSource* counters = nullptr;
    std::function<void(std::uint32_t)> offer_sub_channels;  // any thread
  };

  PrimaryChannel(NicServices& nic, std::shared_ptr<Opening> opening, devices::DeviceHost& host,
                 Config config);
  ~PrimaryChannel() override;

  void start(devices::Channel& channel) override;
  Result<bool> service(std::uint32_t budget) override;
  Result<void> recover() override;
  bool record_change() override;
  void stop() override;
  void release_gpadl(std::uint32_t gpadl, std::function<void()> done) override;

  void link_changed() override;

 private:
  // The guest looks at link changes each 2 s only, and would take two in that time for none. [linux:
  // netvsc_drv.c, LINKCHANGE_INT]
  static constexpr std::chrono::milliseconds kLinkChangeInterval{2100};

  class LinkTimer final : public io::Timer {
   public:
    explicit LinkTimer(PrimaryChannel& channel) : channel_(channel) {}
    void expired() noexcept override { channel_.link_changed(); }

   private:
    PrimaryChannel& channel_;
  };

  // What the host sends of its own accord, or as a reply.
  struct Outbound {
    bool rndis = true;  // else NVSP, in-band
    std::uint32_t size = 0;
    std::array<std::byte, kControlMessageMax> bytes;
  };
  // Linux has one request outstanding. What is beyond is lost: a guest that takes no replies gets none.
  static constexpr std::uint32_t kOutboundMax = 16;

  // A GPADL that is being looked up.
  struct Lookup {
    bool pending = false;
    bool wants_completion = false;
    std::uint64_t transaction_id = 0;
  };

  Result<void> handle_message(const ring::Packet& packet, std::span<const std::byte> message) override;
  Result<bool> write_messages() override;

  [[nodiscard]] Result<void> control(const ring::Packet& packet, const NvspSendRndisPacket& rndis);
  void act_on(const ControlOutcome& outcome);
  void publish();
  void wake_all();
  // What other worker processes are to know of the session.
  void save();
  [[nodiscard]] Result<void> restore(const NicRecord& seen);
  // Lays the receive buffer out for this NIC and its channels.
  [[nodiscard]] Result<void> take_receive_gpadl(const std::shared_ptr<const vmbus::Gpadl>& gpadl,
                                                bool taken_up);
  [[nodiscard]] Result<std::uint64_t> take_send_gpadl(const std::shared_ptr<const vmbus::Gpadl>& gpadl);
  void find_buffer(const ring::Packet& packet, std::uint32_t gpadl, bool receive);
  void receive_buffer_found(std::shared_ptr<const vmbus::Gpadl> gpadl);
  void send_buffer_found(std::shared_ptr<const vmbus::Gpadl> gpadl);
  void answer(Lookup& lookup, const NvspCompletion& completion);
  // Has all channels stop using the buffers; `done` follows on this worker.
  void drop_everywhere(bool receive, bool send, std::function<void()> done);
  void offer_sub_channels();
  void send_indirection();
  [[nodiscard]] Outbound* next_outbound();
  void indicate(RndisStatus status, std::span<const std::byte> data);

  devices::DeviceHost& host_;
  Config config_;
  NicState& state_ = config_.state;
  NvspSession session_;
  Lookup receive_lookup_;
  Lookup send_lookup_;
  std::uint32_t channels_max_ = 1;  // that are of use to this guest
  std::uint32_t sub_channels_to_offer_ = 0;
  bool awaiting_sub_channels_ = false;  // offered, not all open yet
  bool link_told_ = false;              // as the guest believes
  io::Clock::time_point link_told_at_{};
  LinkTimer link_timer_{*this};
  std::unique_ptr<AnnouncedBytes> control_bytes_ = std::make_unique<AnnouncedBytes>();
  std::array<std::byte, kControlRequestMax> request_;
  std::unique_ptr<std::array<Outbound, kOutboundMax>> outbound_ =
      std::make_unique<std::array<Outbound, kOutboundMax>>();
  std::uint32_t outbound_first_ = 0;
  std::uint32_t outbound_count_ = 0;
};

}  // namespace vmbusd::netvsp
