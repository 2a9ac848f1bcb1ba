#include "netvsp/transmitter.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"
#include "netvsp/offload.h"

namespace vmbusd::netvsp {

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
    std::memcpy(out.data(), static_cast<const std::byte*>(pieces_[i].iov_base) + at, size);
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
      packets_(std::make_unique<TransmitPacket[]>(kPackets)) {
  for (std::uint32_t i = 0; i < kFrames; ++i) free_frames_.push_back(frames_[i]);
  for (std::uint32_t i = 0; i < kPackets; ++i) free_packets_.push_back(packets_[i]);
}

Result<void> Transmitter::begin(const ring::IncomingRing& ring, const ring::Packet& packet,
                                const NvspSendRndisPacket& rndis, const BufferMap* send_buffer,
                                const partition::GuestMemory& memory) {
  VMBUSD_ASSERT(can_begin());
  TransmitPacket& taken = free_packets_.front();
  free_packets_.pop_front();
  taken.transaction_id = packet.transaction_id;
  taken.frames = 0;
  taken.wants_completion = packet.completion_requested;
  taken.unpacked = false;
  taken.status = NvspStatus::kSuccess;
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

Transmitter::Progress Transmitter::unpack(BackendQueue& queue, const Settings& settings, bool lossy) {
  while (current_ != nullptr) {
    if (waiting_ == nullptr) {
      if (bytes_.left() < sizeof(RndisHeader) || messages_ == kMessagesMax) {
        finish_current();
        break;
      }
      if (free_frames_.empty()) return Progress::kFull;
      TransmitFrame& frame = free_frames_.front();
      ++messages_;
      switch (prepare(frame, settings)) {
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
    const Progress progress = hand_over(queue, lossy);
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

  if (settings.check_source) {
    std::uint64_t source = 0;
    std::memcpy(&source, frame.head().data() + kMacSource, sizeof(MacAddress));
    if (source != settings.mac) {
      ++counters_.tx_rejected;
      return Prepared::kSkip;
    }
  }
  if (message->info.has_vlan) {
    insert_vlan_tag(frame.head().data(), tci_from_vlan_info(message->info.vlan));
    frame.head_offset -= kVlanTagSize;
    frame.head_size += kVlanTagSize;
    frame.frame_size += kVlanTagSize;
  }
  const Result<TransmitPlan> plan =
      plan_transmit(frame.head(), frame.frame_size, message->info, settings.mtu);
  if (!plan) return Prepared::kMalformed;
  frame.header = plan->header;
  // Without padding: from the last piece back.
  for (std::uint32_t excess = frame.frame_size - plan->frame_size; excess != 0;) {
    iovec& last = frame.segments[frame.segment_count];
    if (frame.segment_count == 0) {
      frame.head_size -= excess;
      break;
    }
    const auto part = static_cast<std::uint32_t>(std::min<std::size_t>(excess, last.iov_len));
    last.iov_len -= part;
    excess -= part;
    if (last.iov_len == 0) --frame.segment_count;
  }
  frame.frame_size = plan->frame_size;
  return Prepared::kFrame;
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
  switch (queue.transmit(frame)) {
    case BackendQueue::Sent::kTaken:
      ++current_->frames;
      ++in_flight_;
      waiting_ = nullptr;
      return Progress::kDone;
    case BackendQueue::Sent::kDone:
      count_sent(frame);
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

void Transmitter::count_sent(const TransmitFrame& frame) {
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

void Transmitter::transmitted(TransmitFrame& frame, bool sent) {
  if (sent) {
    count_sent(frame);
  } else {
    ++counters_.tx_dropped;
  }
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
  (packet.wants_completion ? finished_ : free_packets_).push_back(packet);
}

Result<bool> Transmitter::complete(ring::OutgoingRing& ring) {
  while (!finished_.empty()) {
    TransmitPacket& packet = finished_.front();
    const NvspCompletion completion = rndis_packet_complete(packet.status);
    ring::PacketToWrite answer;
    answer.type = ring::PacketType::kCompletion;
    answer.transaction_id = packet.transaction_id;
    answer.payload = completion.payload();
    VMBUSD_TRY(bool written, ring.write(answer));
    if (!written) {
      VMBUSD_TRY(const bool waiting,
                 ring.arm_space(ring::OutgoingRing::packet_size(0, answer.payload.size())));
      if (waiting) return false;
      continue;
    }
    ++counters_.tx_completions;
    finished_.pop_front();
    free_packets_.push_front(packet);
  }
  return true;
}

}  // namespace vmbusd::netvsp
