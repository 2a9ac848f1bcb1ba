#include "netvsp/net_channel.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/assert.h"

namespace vmbusd::netvsp {

NetChannel::NetChannel(NicServices& nic, std::shared_ptr<Opening> opening, std::uint32_t index)
    : nic_(nic),
      opening_(std::move(opening)),
      index_(index),
      queue_(nic.queue(index)),
      published_(nic.counters(index)),
      counters_(published_.read()) {}

NetChannel::~NetChannel() = default;

void NetChannel::start(devices::Channel& channel) {
  channel_ = &channel;
  anchor_ = std::make_shared<ChannelAnchor>(ChannelAnchor{&channel.worker(), this});
  record_ = reinterpret_cast<NetRecord*>(channel.region().data());
  transmitter_.start(record_->transmit, channel.publications(), channel.recovered());
  bool all_there = false;
  std::shared_ptr<ChannelAnchor> primary;
  {
    const std::lock_guard lock(opening_->mutex);
    std::vector<std::shared_ptr<ChannelAnchor>>& channels = opening_->channels;
    channels.resize(std::max<std::size_t>(channels.size(), index_ + 1));
    channels[index_] = anchor_;
    primary = channels.front();
    all_there = index_ != 0 && std::count(channels.begin(), channels.end(), nullptr) == 0 &&
                channels.size() == 1 + opening_->sub_channels_granted;
  }
  // Behind the registration, so that no new descriptor is missed.
  queue_.attach(*this, channel.worker());
  if (index_ == 0) return;
  Result<void> taken = take_receive_buffer(channel.recovered());
  if (taken) taken = take_send_buffer();
  if (!taken) broken_ = taken.error();
  if (all_there) {
    primary->worker->post([primary] {
      if (primary->channel != nullptr) primary->channel->wake();
    });
  }
}

// A sub-channel has in start() done all there is to do, as its primary was there before.
Result<void> NetChannel::recover() {
  if (broken_) return tl::unexpected(*broken_);
  return {};
}

void NetChannel::leave(std::shared_ptr<void> waiting) {
  leaving_ = std::move(waiting);
  opening_->filter.store(0, std::memory_order_relaxed);
  wake();
}

void NetChannel::stop() {
  stopped_ = true;
  leaving_.reset();
  queue_.detach();
  transmitter_.abandon();
  settle();
}

void NetChannel::pause() {
  paused_ = true;
  queue_.pause();
  // Its pages may be others afterwards.
  transmitter_.abandon();
}

void NetChannel::resume() {
  paused_ = false;
  const auto take_again = [this]() -> Result<void> {
    std::shared_ptr<const vmbus::Gpadl> receive;
    std::shared_ptr<const vmbus::Gpadl> send;
    {
      const std::lock_guard lock(opening_->mutex);
      receive = opening_->receive_gpadl;
      send = opening_->send_gpadl;
    }
    if (receive_open() && receive != nullptr) {
      VMBUSD_TRY(devices::GpadlView view, devices::GpadlView::make(channel_->memory(), *receive));
      VMBUSD_CHECK(receiver_.rebind(BufferMap(std::move(view))));
    }
    if (send_buffer_ && send != nullptr) VMBUSD_CHECK(take_send_buffer());
    return {};
  };
  const Result<void> taken = take_again();
  if (!taken) broken_ = taken.error();
  queue_.resume();
  settle();
}

void NetChannel::refresh_queue() {
  queue_.refresh();
  wake();
}

Result<void> NetChannel::take_receive_buffer(bool taken_up) {
  std::shared_ptr<const vmbus::Gpadl> gpadl;
  ReceiveLayout layout;
  std::uint32_t shares = 1;
  std::uint16_t id = 0;
  bool large = false;
  {
    const std::lock_guard lock(opening_->mutex);
    gpadl = opening_->receive_gpadl;
    layout = opening_->receive_layout;
    shares = opening_->receive_shares;
    id = opening_->receive_buffer_id;
    large = opening_->large_receive;
  }
  if (gpadl == nullptr || index_ >= shares) return {};
  VMBUSD_TRY(devices::GpadlView view, devices::GpadlView::make(channel_->memory(), *gpadl));
  const std::uint32_t share = layout.sub_allocations / shares;
  const std::span<std::byte> region = channel_->region();
  constexpr std::size_t kRecordsMax = kReceiveBufferSizeMax / kSubAllocationSizeMin;
  static_assert(sizeof(NetRecord) + kRecordsMax * sizeof(ReceiveRecord) <=
                devices::RecoveryRegion::kBytes - devices::Channel::kRecordBytes);
  auto* const records = reinterpret_cast<ReceiveRecord*>(region.data() + sizeof(NetRecord));
  return receiver_.open(BufferMap(std::move(view)), layout, index_ * share, share, id, large,
                        {{records, share}, &channel_->publications(), taken_up});
}

Result<void> NetChannel::take_send_buffer() {
  std::shared_ptr<const vmbus::Gpadl> gpadl;
  {
    const std::lock_guard lock(opening_->mutex);
    gpadl = opening_->send_gpadl;
  }
  if (gpadl == nullptr) return {};
  VMBUSD_TRY(devices::GpadlView view, devices::GpadlView::make(channel_->memory(), *gpadl));
  send_buffer_.emplace(std::move(view));
  return {};
}

void NetChannel::drop_buffers(bool receive, bool send, std::function<void()> done) {
  dropping_receive_ |= receive && receiver_.is_open();
  dropping_send_ |= send && send_buffer_.has_value();
  if (dropping_send_) transmitter_.abandon();
  if (dropping_receive_) queue_.pause();
  dropped_.push_back(std::move(done));
  settle();
}

// Called when something came back from the queue.
void NetChannel::settle() {
  const bool sending = transmitter_.in_flight() != 0;
  if (dropping_receive_ && receiver_.idle()) {
    receiver_.close();
    dropping_receive_ = false;
    if (!paused_ && !stopped_) queue_.resume();
  }
  if (dropping_send_ && !sending) {
    send_buffer_.reset();
    dropping_send_ = false;
  }
  const bool at_rest = stopped_ && receiver_.idle() && !sending;
  if (at_rest) {
    if (receiver_.is_open()) receiver_.close();
    if (anchor_ != nullptr) anchor_->channel = nullptr;
  }
  if (!dropped_.empty() && ((!dropping_receive_ && !dropping_send_) || at_rest)) {
    for (const std::function<void()>& done : std::exchange(dropped_, {})) done();
    wake();
  }
}

void NetChannel::received(ReceiveBuffer& buffer, std::uint32_t frame_size) {
  receiver_.received(buffer, frame_size);
  if (dropping_receive_ || stopped_) settle();
}

void NetChannel::returned(ReceiveBuffer& buffer) {
  receiver_.returned(buffer);
  if (dropping_receive_ || stopped_) settle();
}

void NetChannel::transmitted(TransmitFrame& frame, bool sent) {
  transmitter_.transmitted(frame, sent);
  if (dropping_send_ || stopped_) settle();
}

Receiver::Wants NetChannel::wants() const {
  constexpr auto kRelaxed = std::memory_order_relaxed;
  return {opening_->filter.load(kRelaxed), opening_->mac.load(kRelaxed), opening_->offloads.load(kRelaxed),
          opening_->mtu.load(kRelaxed), opening_->vlan.load(kRelaxed)};
}

Result<bool> NetChannel::service(std::uint32_t budget) {
  if (broken_) return tl::unexpected(*broken_);
  const std::uint32_t receive_budget = budget;
  const bool receiving = receive_open() && opening_->filter.load(std::memory_order_relaxed) != 0;
  bool worked = false;
  transmitter_.published();
  receiver_.published();
  if (receive_open()) receiver_.replenish();
  VMBUSD_TRY(bool room, write_owed());
  VMBUSD_TRY(const Stall stall, read_ring(budget, receiving, worked));
  queue_.flush();

  bool more = stall == Stall::kRetry;
  if (receive_open()) {
    // Messages first: data must not keep them out.
    VMBUSD_TRY(room, write_messages());
    if (room) {
      VMBUSD_TRY(room, receiver_.deliver(channel_->outgoing(), wants()));
    }
    if (receiving && room) {
      // What completed before this turn is delivered, so its buffers can be armed anew.
      more |= queue_.receive(receive_budget);
      VMBUSD_TRY(room, receiver_.deliver(channel_->outgoing(), wants()));
    }
  }
  VMBUSD_TRY(const bool owed_written, write_owed());
  if (room && owed_written && channel_->outgoing().space_armed()) channel_->outgoing().clear_space();
  published_.publish(counters_);
  if (leaving_ != nullptr && receiver_.all_here()) [[unlikely]]
    leaving_.reset();

  if (stall == Stall::kInFlight || stall == Stall::kMedium) {
    channel_->stall();
    // The medium may wait for us to take what it has, which may wait for completions behind what it does not
    // take: from now on that is dropped.
    if (stall == Stall::kMedium && !dropping_send_ && (!receiving || receiver_.starved())) more = true;
  }
  return worked || more;
}

[[gnu::always_inline]] inline Result<void> NetChannel::send(const ring::Packet& packet,
                                                            const NvspSendRndisPacket& rndis,
                                                            const Transmitter::Turn& turn) {
  if (!opening_->running.load(std::memory_order_relaxed)) {
    ++counters_.tx_rejected;
    return owe(packet, rndis_packet_complete(NvspStatus::kFailure));
  }
  const BufferMap* const sections = send_sections();
  if (sections != nullptr && packet.type == ring::PacketType::kInband &&
      transmitter_.send_alone(packet, rndis, *sections, turn)) [[likely]] {
    return {};
  }
  const Result<void> begun =
      transmitter_.begin(channel_->incoming(), packet, rndis, sections, channel_->memory());
  if (!begun) channel_->log().guest("data packet is refused: {}", begun.error().text);
  return {};
}

[[gnu::always_inline]] inline Result<void> NetChannel::dispatch(const ring::Packet& packet,
                                                                const Transmitter::Turn& turn) {
  if (packet.type != ring::PacketType::kInband) {
    if (packet.type == ring::PacketType::kCompletion) {
      receiver_.completed(packet.transaction_id);
      return {};
    }
    if (packet.type != ring::PacketType::kGpaDirect) {
      return fail(Errc::kBadPacket, "packet of a type that only the host sends");
    }
  }
  std::array<std::byte, kNvspMessageSize> message;
  std::uint32_t copied = 0;
  NvspSendRndisPacket rndis;
  if (packet.payload_size >= sizeof rndis) [[likely]] {
    channel_->incoming().read_payload(packet, 0, wire_bytes_writable(rndis));
    if (rndis.type == NvspType::kSendRndisPacket && rndis.channel_type == NvspChannelType::kData) [[likely]] {
      return send(packet, rndis, turn);
    }
    std::memcpy(message.data(), &rndis, sizeof rndis);
    copied = sizeof rndis;
  }
  // The rest of it, behind what was read.
  const std::size_t size = std::min<std::size_t>(packet.payload_size, message.size());
  channel_->incoming().read_payload(packet, copied, std::span(message).subspan(copied, size - copied));
  return handle_message(packet, std::span(message).first(size));
}

// Reads packets until one has to wait.
Result<NetChannel::Stall> NetChannel::read_ring(std::uint32_t& budget, bool receiving, bool& worked) {
  const Transmitter::Turn turn = {
      queue_,
      channel_->outgoing(),
      {opening_->mtu.load(std::memory_order_relaxed), nic_.checks_source(),
       opening_->mac.load(std::memory_order_relaxed)},
  };
  while (true) {
    if (transmitter_.unpacking()) {
      const bool lossy = !receiving || receiver_.starved();
      switch (transmitter_.unpack(turn, lossy)) {
        case Transmitter::Progress::kDone:
          break;
        case Transmitter::Progress::kRetry:
          return Stall::kRetry;
        case Transmitter::Progress::kFull:
          return Stall::kInFlight;
        case Transmitter::Progress::kBlocked:
          return Stall::kMedium;
      }
    }
    if (dropping_send_ || !transmitter_.can_begin()) {
      return transmitter_.has_answered() ? Stall::kRetry : Stall::kInFlight;
    }
    if (budget == 0) return Stall::kRetry;
    VMBUSD_TRY(const ring::Packet* const packet, channel_->incoming().next());
    if (!packet) return Stall::kNone;
    --budget;
    worked = true;
    VMBUSD_CHECK(dispatch(*packet, turn));
  }
}

Result<void> NetChannel::handle_message(const ring::Packet& packet, std::span<const std::byte> message) {
  // A sub-channel carries data only.
  NvspType type{};
  static_cast<void>(read_wire(message, type));
  channel_->log().guest("NVSP message {} on a sub-channel is refused", static_cast<std::uint32_t>(type));
  return owe(packet, type == NvspType::kSendRndisPacket ? rndis_packet_complete(NvspStatus::kFailure)
                                                        : NvspCompletion{});
}

Result<void> NetChannel::owe(const ring::Packet& packet, const NvspCompletion& completion) {
  if (!packet.completion_requested()) return {};
  return owe(packet.transaction_id, completion);
}

Result<void> NetChannel::owe(std::uint64_t transaction_id, const NvspCompletion& completion) {
  channel_->begin_change();
  if (owed_count_ == kOwedMax) {
    VMBUSD_CHECK(write_owed());
    if (owed_count_ == kOwedMax) return fail(Errc::kLimit, "guest takes no completions");
  }
  owed_[(owed_first_ + owed_count_) % kOwedMax] = {transaction_id, completion};
  ++owed_count_;
  return {};
}

// False where the ring has no room for more now (it is armed).
Result<bool> NetChannel::write_owed() {
  ring::OutgoingRing& ring = channel_->outgoing();
  for (; owed_count_ != 0; --owed_count_, owed_first_ = (owed_first_ + 1) % kOwedMax) {
    const Owed& owed = owed_[owed_first_];
    ring::PacketToWrite answer;
    answer.type = ring::PacketType::kCompletion;
    answer.transaction_id = owed.transaction_id;
    answer.payload = owed.completion.payload();
    VMBUSD_TRY(bool written, ring.write(answer));
    if (!written) {
      VMBUSD_TRY(const bool waiting,
                 ring.arm_space(ring::OutgoingRing::packet_size(0, answer.payload.size())));
      if (waiting) return false;
      VMBUSD_TRY(written, ring.write(answer));
      if (!written) return false;
    }
  }
  return transmitter_.complete(ring);
}

}  // namespace vmbusd::netvsp
