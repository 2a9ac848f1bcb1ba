// A channel of a NIC: joins ring, transmitter, receiver and the back end's queue.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/cache_line.h"
#include "devices/channel.h"
#include "devices/device.h"
#include "netvsp/backend.h"
#include "netvsp/nvsp_session.h"
#include "netvsp/opening.h"
#include "netvsp/receiver.h"
#include "netvsp/transmitter.h"

namespace vmbusd::netvsp {

// What a channel needs of its NIC. Any thread.
class NicServices {
 public:
  [[nodiscard]] virtual BackendQueue& queue(std::uint32_t index) = 0;
  [[nodiscard]] virtual PublishedCounters& counters(std::uint32_t index) = 0;
  [[nodiscard]] virtual bool checks_source() const = 0;
  [[nodiscard]] virtual bool link_up() const = 0;
  virtual void link_lost(const Error& reason) = 0;
  // How received frames are to be spread over the channels.
  virtual void set_rss(const RssState& rss) = 0;

 protected:
  ~NicServices() = default;
};

// A sub-channel, and the data path of the primary. Life cycle as devices::ChannelHandler. One turn, in
// service():
//
//   completions owed -> outgoing ring
//   incoming ring: data -> Transmitter -> BackendQueue; completions -> Receiver; all else: handle_message()
//   BackendQueue -> Receiver -> outgoing ring
class alignas(kCacheLineBytes) NetChannel : public devices::ChannelHandler, private QueueUser {
 public:
  NetChannel(NicServices& nic, std::shared_ptr<Opening> opening, std::uint32_t index);
  ~NetChannel() override;
  NetChannel(const NetChannel&) = delete;
  NetChannel& operator=(const NetChannel&) = delete;

  void start(devices::Channel& channel) override;
  Result<bool> service(std::uint32_t budget) override;
  Result<void> recover() override;
  bool record_change() override { return owed_count_ == 0; }
  void stop() override;
  void pause() override;
  void resume() override;

  // Below: on the channel's worker.

  // Something that the data path goes by has changed.
  void wake() {
    // One that is closing is not to be polled again: it may be destroyed next.
    if (!channel_->stopping()) channel_->activate();
  }
  // The link may have gone up or down.
  virtual void link_changed() {}
  // There may be another descriptor.
  void refresh_queue();
  // The NIC goes: delivers nothing any more, and lets go of `waiting` when the guest has given back all that
  // it has.
  void leave(std::shared_ptr<void> waiting);
  // Stops using the buffers; `done` is called when nothing touches their pages any more.
  void drop_buffers(bool receive, bool send, std::function<void()> done);

 protected:
  // An in-band or GPA-direct packet that is no data: `message` is a private copy of its first bytes.
  [[nodiscard]] virtual Result<void> handle_message(const ring::Packet& packet,
                                                    std::span<const std::byte> message);
  // At the end of a turn: what else is to be written.
  [[nodiscard]] virtual Result<bool> write_messages() { return true; }

  // Owes the guest a completion, where the packet asked for one. Errc::kLimit where it takes none.
  [[nodiscard]] Result<void> owe(const ring::Packet& packet, const NvspCompletion& completion);
  [[nodiscard]] Result<void> owe(std::uint64_t transaction_id, const NvspCompletion& completion);
  // Takes up the buffers that Opening names. Errc::kBadGpadl where they are not (any more) in guest memory.
  // `taken_up`: another worker process was here before; see Receiver::Records.
  [[nodiscard]] Result<void> take_receive_buffer(bool taken_up);
  [[nodiscard]] Result<void> take_send_buffer();

  [[nodiscard]] devices::Channel& channel() { return *channel_; }
  [[nodiscard]] NicServices& nic() { return nic_; }
  [[nodiscard]] Opening& opening() { return *opening_; }
  [[nodiscard]] const std::shared_ptr<ChannelAnchor>& anchor() const { return anchor_; }
  [[nodiscard]] Receiver& receiver() { return receiver_; }
  [[nodiscard]] NetRecord& record() { return *record_; }
  [[nodiscard]] BackendQueue& queue() { return queue_; }
  [[nodiscard]] const BufferMap* send_sections() const { return send_buffer_ ? &*send_buffer_ : nullptr; }
  [[nodiscard]] bool stopped() const { return stopped_; }
  [[nodiscard]] bool receive_open() const { return receiver_.is_open() && !dropping_receive_; }

 private:
  struct Owed {
    std::uint64_t transaction_id;
    NvspCompletion completion;
  };
  // Completions of messages that are no data; guests send those one after the other.
  static constexpr std::uint32_t kOwedMax = 16;
  enum class Stall : std::uint8_t { kNone, kRetry, kInFlight, kMedium };

  // QueueUser
  ReceiveBuffer* take_buffer() override { return receiver_.take_buffer(); }
  void received(ReceiveBuffer& buffer, std::uint32_t frame_size) override;
  void returned(ReceiveBuffer& buffer) override;
  void transmitted(TransmitFrame& frame, bool sent) override;
  void transmit_ready() override { wake(); }
  void begin_op() override { channel_->begin_op(); }
  void end_op() override { channel_->end_op(); }
  void link_lost(const Error& reason) override { nic_.link_lost(reason); }

  [[nodiscard]] Receiver::Wants wants() const;
  [[nodiscard]] Result<Stall> read_ring(std::uint32_t& budget, bool receiving, bool& worked);
  [[nodiscard]] Result<void> dispatch(const ring::Packet& packet, const Transmitter::Turn& turn);
  [[nodiscard]] Result<void> send(const ring::Packet& packet, const NvspSendRndisPacket& rndis,
                                  const Transmitter::Turn& turn);
  [[nodiscard]] Result<bool> write_owed();
  void settle();

  NicServices& nic_;
  std::shared_ptr<Opening> opening_;
  const std::uint32_t index_;
  BackendQueue& queue_;
  PublishedCounters& published_;
  devices::Channel* channel_ = nullptr;
  std::shared_ptr<ChannelAnchor> anchor_;
  NetRecord* record_ = nullptr;  // at the begin of the channel's region
  QueueCounters counters_;
  Transmitter transmitter_{counters_};
  Receiver receiver_{counters_};
  std::optional<BufferMap> send_buffer_;
  bool paused_ = false;
  bool stopped_ = false;
  std::optional<Error> broken_;  // service() reports it
  bool dropping_receive_ = false;
  bool dropping_send_ = false;
  std::vector<std::function<void()>> dropped_;  // who waits for what is dropped
  std::shared_ptr<void> leaving_;
  std::array<Owed, kOwedMax> owed_;
  std::uint32_t owed_first_ = 0;
  std::uint32_t owed_count_ = 0;
};

}  // namespace vmbusd::netvsp
