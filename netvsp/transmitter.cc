#include "netvsp/transmitter.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"
#include "base/probes.h"
#include "netvsp/offload.h"

namespace vmbusd::netvsp {

namespace {

// SEND_RNDIS_PACKET_COMPLETE, padded. Aligned so that the compiler copies it by words.
struct alignas(8) Completion {
  NvspStatusMessage message;
  std::array<std::byte, kNvspMessageSize - sizeof(NvspStatusMessage)> padding;

  [[nodiscard]] std::span<const std::byte> bytes() const {
    return std::as_bytes(std::span<const Completion, 1>(this, 1));
  }
};
static_assert(sizeof(Completion) == kNvspMessageSize);
constexpr Completion kCompletion = {{NvspType::kSendRndisPacketComplete, NvspStatus::kSuccess}, {}};

}  // namespace

Result<void> AnnouncedBytes::gather(const ring::IncomingRing& ring, const ring::Packet& packet,
                                    const NvspSendRndisPacket& rndis, const BufferMap* send_buffer,
                                    const partition::GuestMemory& memory) {
  count_ = 0;
  first_ = 0;
  skip_ = 0;
  left_ = 0;
  if (rndis.send_section_index != kNoSendSection) {
    if (send_buffer == nullptr || rndis.send_section_index >= send_buffer->size() / kSendSectionSize ||
        rndis.send_section_size > kSendSectionSize) {
      return fail(Errc::kBadMessage, "send section is not there, or not so large");
    }
    const std::uint64_t begin = std::uint64_t{rndis.send_section_index} * kSendSectionSize;
    const std::uint64_t end = begin + rndis.send_section_size;
    for (std::uint64_t at = begin; at < end;) {
      const std::span<std::byte> piece = send_buffer->piece(at, end - at);
      if (count_ == pieces_.size()) return fail(Errc::kBadMessage, "send section is made of crumbs");
      pieces_[count_++] = {piece.data(), piece.size()};
      at += piece.size();
    }
    left_ = rndis.send_section_size;
  }
  if (packet.type == ring::PacketType::kGpaDirect) {
    const auto room = std::span(segments_).first(pieces_.size() - count_);
    VMBUSD_TRY(const ring::GpaList list, ring::read_gpa_list(ring, packet, kRangesMax, kBytesMax, room));
    for (std::uint32_t i = 0; i < list.segments; ++i) {
      // Only read, so memory that is the guest's to read does as well.
      std::byte* const host = memory.translate(segments_[i].gpa, segments_[i].size);
      if (host == nullptr) return fail(Errc::kBadMessage, "packet's page is not in guest memory");
      pieces_[count_++] = {host, segments_[i].size};
    }
    left_ += list.total_bytes;
  }
  return {};
}

void AnnouncedBytes::copy(std::uint64_t offset, std::span<std::byte> out) const {
  std::uint64_t at = skip_ + offset;
  for (std::uint32_t i = first_; !out.empty(); ++i) {
    if (at >= pieces_[i].iov_len) {
      at -= pieces_[i].iov_len;
      continue;
    }
    const std::size_t size = std::min<std::size_t>(out.size(), pieces_[i].iov_len - at);
    ring::copy_from_shared(out.data(), static_cast<const std::byte*>(pieces_[i].iov_base) + at, size);
    out = out.subspan(size);
    at = 0;
  }
}

std::uint32_t AnnouncedBytes::pieces(std::uint64_t offset, std::uint64_t size, std::span<iovec> out) const {
  std::uint64_t at = skip_ + offset;
  std::uint32_t count = 0;
  for (std::uint32_t i = first_; size != 0; ++i) {
    if (at >= pieces_[i].iov_len) {
      at -= pieces_[i].iov_len;
      continue;
    }
    if (count == out.size()) return 0;
    const std::uint64_t part = std::min<std::uint64_t>(size, pieces_[i].iov_len - at);
    out[count++] = {static_cast<std::byte*>(pieces_[i].iov_base) + at, part};
    size -= part;
    at = 0;
  }
  return count;
}

void AnnouncedBytes::advance(std::uint64_t size) {
  left_ -= size;
  skip_ += size;
  while (first_ < count_ && skip_ >= pieces_[first_].iov_len) skip_ -= pieces_[first_++].iov_len;
}

Transmitter::Transmitter(QueueCounters& counters)
    : counters_(counters),
      frames_(std::make_unique<TransmitFrame[]>(kFrames)),
      packets_(std::make_unique<TransmitPacket[]>(kTransmitPackets)) {
  for (std::uint32_t i = 0; i < kFrames; ++i) free_frames_.push_back(frames_[i]);
}

void Transmitter::start(std::span<TransmitRecord, kTransmitPackets> records,
                        const devices::PublicationCounts& publications, bool taken_up) {
  publications_ = &publications;
  for (std::size_t i = 0; i < records.size(); ++i) {
    TransmitPacket& packet = packets_[i];
    packet.record = &records[i];
    if (taken_up && packet.record->owed(publications)) {
      packet.wants_completion = true;
      finished_.push_back(packet);
    } else {
      packet.record->mark(TransmitRecord::kFree);
      free_packets_.push_back(packet);
    }
  }
}

TransmitPacket& Transmitter::take_packet(const ring::Packet& packet) {
  TransmitPacket& taken = free_packets_.front();
  free_packets_.pop_front();
  taken.record->transaction_id = packet.transaction_id;
  taken.record->taken = publications_->releases + 1;
  if (packet.completion_requested()) taken.record->mark(TransmitRecord::kOwed);
  taken.frames = 0;
  taken.wants_completion = packet.completion_requested();
  taken.unpacked = false;
  taken.status = NvspStatus::kSuccess;
  return taken;
}

// Inline by force: what is assembly, as probes are, counts as long.
[[gnu::always_inline]] inline void Transmitter::count_sent(const TransmitFrame& frame, bool sent) {
  if (!sent) {
    VMBUSD_PROBE(net_transmitted, &frame, 0);
    ++counters_.tx_dropped;
    return;
  }
  VMBUSD_PROBE(net_transmitted, &frame, 1);
  ++counters_.tx_packets;
  counters_.tx_bytes += frame.frame_size;
  const std::byte* const begin = frame.bytes.data() + frame.head_offset;
  if ((*begin & std::byte{1}) == std::byte{0}) [[likely]] {
    return;
  }
  std::uint64_t destination = 0;
  std::memcpy(&destination, begin, sizeof(MacAddress));
  const bool broadcast = destination == 0xffff'ffff'ffff;
  ++(broadcast ? counters_.tx_broadcast_packets : counters_.tx_multicast_packets);
  (broadcast ? counters_.tx_broadcast_bytes : counters_.tx_multicast_bytes) += frame.frame_size;
}

[[gnu::always_inline]] inline Result<bool> Transmitter::write_completion(ring::OutgoingRing& ring,
                                                                         std::uint64_t transaction_id,
                                                                         NvspStatus status) {
  Completion completion = kCompletion;
  completion.message.status = status;
  VMBUSD_TRY(const bool written, ring.write({.type = ring::PacketType::kCompletion,
                                             .transaction_id = transaction_id,
                                             .payload = completion.bytes()}));
  if (written) ++counters_.tx_completions;
  return written;
}

// Of a frame that goes on behind the `copied` bytes of its message: those and kFrameHeadMax at least are
// private, as in fill_frame(), the rest stays where it is. False where not even its begin was copied.
bool Transmitter::leave_rest(TransmitFrame& frame, std::span<std::byte> message, std::uint32_t copied) {
  const std::uint32_t frame_end = frame.head_offset + frame.frame_size;
  if (frame_end <= copied) return true;
  if (frame.head_offset > copied) return false;
  const std::uint32_t head_end =
      std::max(copied, frame.head_offset + std::min(frame.frame_size, kFrameHeadMax));
  ring::copy_from_shared(frame.bytes.data() + copied, message.data() + copied, head_end - copied);
  frame.head_size = head_end - frame.head_offset;
  if (head_end != frame_end) {
    frame.segments[1] = {message.data() + head_end, frame_end - head_end};
    frame.segment_count = 1;
  }
  return true;
}

// All of prepare() for a message that is alone in `piece`, which is guest-controlled; `copied` bytes of it
// are looked at. False: the long way will tell what it is, from a copy of its own.
[[gnu::always_inline]] inline bool Transmitter::prepare_alone(TransmitFrame& frame,
                                                              std::span<std::byte> piece,
                                                              std::uint32_t copied,
                                                              const Settings& settings) {
  ring::copy_from_shared(frame.bytes.data(), piece.data(), copied);
  const Result<TransmitMessage> message =
      parse_transmit_message(std::span(frame.bytes).first(copied), piece.size());
  if (!message || piece.size() - message->message_length >= sizeof(RndisHeader)) return false;
  frame.head_offset = message->frame_offset;
  frame.head_size = message->frame_size;
  frame.frame_size = message->frame_size;
  frame.segment_count = 0;
  if (copied != piece.size() && !leave_rest(frame, piece, copied)) return false;
  if (settings.check_source && !source_allowed(frame, settings)) return false;
  if (message->info.any()) return finish_head(frame, message->info, settings);
  frame.header = {};
  return frame.frame_size <= frame_size_max(settings.mtu);
}

// Apart, so that what is copied whole, as small frames are, is decided by the compiler.
[[gnu::noinline]] bool Transmitter::prepare_long(TransmitFrame& frame, std::span<std::byte> piece,
                                                 const Settings& settings) {
  return prepare_alone(frame, piece, kMessageHeadMax, settings);
}

bool Transmitter::send_alone(const ring::Packet& packet, const NvspSendRndisPacket& rndis,
                             const BufferMap& send_buffer, const Turn& turn) {
  VMBUSD_PROBE(net_packet, this, packet.transaction_id);
  if (spare_ == nullptr) {
    if (free_frames_.empty()) return false;
    spare_ = &free_frames_.front();
    free_frames_.pop_front();
  }
  TransmitFrame& frame = *spare_;
  const std::uint32_t size = rndis.send_section_size;
  const std::uint64_t begin = std::uint64_t{rndis.send_section_index} * kSendSectionSize;
  if (size > kSendSectionSize || begin + kSendSectionSize > send_buffer.size()) return false;
  const std::span<std::byte> piece = send_buffer.piece(begin, size);
  if (piece.size() != size) return false;
  const bool prepared = size <= kMessageHeadMax ? prepare_alone(frame, piece.first(size), size, turn.settings)
                                                : prepare_long(frame, piece, turn.settings);
  if (!prepared) return false;
  frame.queue = &turn.queue;
  VMBUSD_PROBE(net_transmit, &frame, frame.frame_size);
  const BackendQueue::Sent sent = turn.queue.transmit(frame);
  if (sent == BackendQueue::Sent::kDone || sent == BackendQueue::Sent::kLost) [[likely]] {
    count_sent(frame, sent == BackendQueue::Sent::kDone);
    if (!packet.completion_requested()) return true;
    VMBUSD_PROBE(net_completion, this, packet.transaction_id);
    if (finished_.empty()) {
      const Result<bool> written =
          write_completion(turn.completions, packet.transaction_id, NvspStatus::kSuccess);
      if (written && *written) return true;
    }
    // complete() goes on with it, and reports what is wrong with the ring.
    finished_.push_back(take_packet(packet));
    return true;
  }
  TransmitPacket& taken = take_packet(packet);
  frame.packet = &taken;
  spare_ = nullptr;
  if (sent == BackendQueue::Sent::kTaken) {
    taken.frames = 1;
    taken.unpacked = true;
    ++in_flight_;
    return true;
  }
  // unpack() goes on with it.
  current_ = &taken;
  waiting_ = &frame;
  bytes_.clear();
  return true;
}

Result<void> Transmitter::begin(const ring::IncomingRing& ring, const ring::Packet& packet,
                                const NvspSendRndisPacket& rndis, const BufferMap* send_buffer,
                                const partition::GuestMemory& memory) {
  VMBUSD_ASSERT(can_begin());
  VMBUSD_PROBE(net_packet, this, packet.transaction_id);
  TransmitPacket& taken = take_packet(packet);
  current_ = &taken;
  messages_ = 0;
  const Result<void> gathered = bytes_.gather(ring, packet, rndis, send_buffer, memory);
  if (!gathered || bytes_.left() < sizeof(RndisHeader)) {
    taken.status = NvspStatus::kInvalidRndisPacket;
    ++counters_.tx_rejected;
    finish_current();
    return gathered ? fail(Errc::kBadMessage, "packet announces no RNDIS message") : gathered;
  }
  return {};
}

Transmitter::Progress Transmitter::unpack(const Turn& turn, bool lossy) {
  while (current_ != nullptr) {
    if (waiting_ == nullptr) {
      if (bytes_.left() < sizeof(RndisHeader) || messages_ == kMessagesMax) {
        finish_current();
        break;
      }
      if (free_frames_.empty()) return Progress::kFull;
      TransmitFrame& frame = free_frames_.front();
      ++messages_;
      switch (prepare(frame, turn.settings)) {
        case Prepared::kFrame:
          free_frames_.pop_front();
          waiting_ = &frame;
          break;
        case Prepared::kSkip:
          continue;
        case Prepared::kMalformed:
          ++counters_.tx_rejected;
          current_->status = NvspStatus::kInvalidRndisPacket;
          finish_current();
          return Progress::kDone;
      }
    }
    const Progress progress = hand_over(turn.queue, lossy);
    if (progress != Progress::kDone) return progress;
  }
  return Progress::kDone;
}

// Makes a frame of the message at the current position, and goes behind that.
Transmitter::Prepared Transmitter::prepare(TransmitFrame& frame, const Settings& settings) {
  const auto copied = static_cast<std::uint32_t>(std::min<std::uint64_t>(bytes_.left(), kMessageHeadMax));
  bytes_.copy(0, std::span(frame.bytes).first(copied));
  const Result<TransmitMessage> message =
      parse_transmit_message(std::span(frame.bytes).first(copied), bytes_.left());
  if (!message) return Prepared::kMalformed;
  if (!fill_frame(frame, *message, copied)) return Prepared::kMalformed;
  bytes_.advance(message->message_length);

  if (settings.check_source && !source_allowed(frame, settings)) {
    ++counters_.tx_rejected;
    return Prepared::kSkip;
  }
  return finish_head(frame, message->info, settings) ? Prepared::kFrame : Prepared::kMalformed;
}

bool Transmitter::source_allowed(const TransmitFrame& frame, const Settings& settings) const {
  std::uint64_t source = 0;
  std::memcpy(&source, frame.bytes.data() + frame.head_offset + kMacSource, sizeof(MacAddress));
  return source == settings.mac;
}

// Does what the infos ask for. False where they do not fit the frame.
bool Transmitter::finish_head(TransmitFrame& frame, const TransmitInfo& info, const Settings& settings) {
  if (info.has_vlan) {
    insert_vlan_tag(frame.head().data(), tci_from_vlan_info(info.vlan));
    frame.head_offset -= kVlanTagSize;
    frame.head_size += kVlanTagSize;
    frame.frame_size += kVlanTagSize;
  }
  const Result<TransmitPlan> plan = plan_transmit(frame.head(), frame.frame_size, info, settings.mtu);
  if (!plan) return false;
  frame.header = plan->header;
  // Without padding: from the last piece back.
  for (std::uint32_t excess = frame.frame_size - plan->frame_size; excess != 0;) {
    if (frame.segment_count == 0) {
      frame.head_size -= excess;
      break;
    }
    iovec& last = frame.segments[frame.segment_count];
    const auto part = static_cast<std::uint32_t>(std::min<std::size_t>(excess, last.iov_len));
    last.iov_len -= part;
    excess -= part;
    if (last.iov_len == 0) --frame.segment_count;
  }
  frame.frame_size = plan->frame_size;
  return true;
}

// Lays the frame out: its head private, the rest where it is. `copied` bytes of the message are in
// frame.bytes; none of them is read from guest memory again.
bool Transmitter::fill_frame(TransmitFrame& frame, const TransmitMessage& message, std::uint32_t copied) {
  const std::uint32_t head_max = std::min(message.frame_size, kFrameHeadMax);
  const std::uint32_t head_end = message.frame_offset + head_max;
  frame.head_offset = message.frame_offset;
  frame.head_size = head_max;
  if (head_end <= copied) {
    // What else of the frame was copied goes with it.
    frame.head_size = std::min(message.frame_size, copied - message.frame_offset);
  } else if (message.frame_offset <= copied) {
    bytes_.copy(copied, std::span(frame.bytes).subspan(copied, head_end - copied));
  } else {
    frame.head_offset = kMessageHeadMax;
    bytes_.copy(message.frame_offset, std::span(frame.bytes).subspan(kMessageHeadMax, head_max));
  }
  frame.frame_size = message.frame_size;
  frame.segment_count = 0;
  const std::uint32_t rest = message.frame_size - frame.head_size;
  if (rest != 0) {
    frame.segment_count =
        bytes_.pieces(message.frame_offset + frame.head_size, rest, std::span(frame.segments).subspan(1));
    if (frame.segment_count == 0) return false;
  }
  return true;
}

Transmitter::Progress Transmitter::hand_over(BackendQueue& queue, bool lossy) {
  TransmitFrame& frame = *waiting_;
  frame.packet = current_;
  frame.queue = &queue;
  VMBUSD_PROBE(net_transmit, &frame, frame.frame_size);
  switch (queue.transmit(frame)) {
    case BackendQueue::Sent::kTaken:
      ++current_->frames;
      ++in_flight_;
      waiting_ = nullptr;
      return Progress::kDone;
    case BackendQueue::Sent::kDone:
      count_sent(frame, true);
      break;
    case BackendQueue::Sent::kLost:
      ++counters_.tx_dropped;
      break;
    case BackendQueue::Sent::kRetry:
      return Progress::kRetry;
    case BackendQueue::Sent::kBlocked:
      if (!lossy) return Progress::kBlocked;
      ++counters_.tx_dropped;
      break;
  }
  waiting_ = nullptr;
  free_frames_.push_front(frame);
  return Progress::kDone;
}

void Transmitter::transmitted(TransmitFrame& frame, bool sent) {
  count_sent(frame, sent);
  VMBUSD_ASSERT(in_flight_ != 0 && frame.packet->frames != 0);
  --in_flight_;
  TransmitPacket& packet = *frame.packet;
  --packet.frames;
  free_frames_.push_front(frame);
  if (packet.unpacked && packet.frames == 0) retire(packet);
}

void Transmitter::finish_current() {
  TransmitPacket& packet = *std::exchange(current_, nullptr);
  packet.unpacked = true;
  if (packet.frames == 0) retire(packet);
}

void Transmitter::abandon() {
  if (current_ == nullptr) return;
  if (waiting_ != nullptr) {
    ++counters_.tx_dropped;
    free_frames_.push_front(*std::exchange(waiting_, nullptr));
  }
  current_->status = NvspStatus::kFailure;
  finish_current();
}

void Transmitter::retire(TransmitPacket& packet) {
  if (packet.wants_completion) return finished_.push_back(packet);
  packet.record->mark(TransmitRecord::kFree);
  free_packets_.push_back(packet);
}

Result<bool> Transmitter::complete(ring::OutgoingRing& ring) {
  while (!finished_.empty()) {
    TransmitPacket& packet = finished_.front();
    VMBUSD_PROBE(net_completion, this, packet.record->transaction_id);
    VMBUSD_TRY(const bool written, write_completion(ring, packet.record->transaction_id, packet.status));
    if (!written) {
      VMBUSD_TRY(const bool waiting, ring.arm_space(ring::OutgoingRing::packet_size(0, sizeof(Completion))));
      if (waiting) return false;
      continue;
    }
    packet.record->mark(publications_->commits + 1);
    finished_.pop_front();
    answered_.push_front(packet);
  }
  return true;
}

}  // namespace vmbusd::netvsp
