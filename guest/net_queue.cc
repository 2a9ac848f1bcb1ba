#include "guest/net_queue.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "base/assert.h"
#include "guest/nvsp_bytes.h"
#include "netvsp/rndis.h"

namespace vmbusd::guest {
namespace {

using namespace netvsp;

// RNDIS header and one info in front of a frame.
struct Head {
  RndisPacket packet{};
  Ppi info{};

  Head(std::uint32_t frame_size, std::optional<std::pair<PpiType, std::uint32_t>> with) {
    const auto info_size = static_cast<std::uint32_t>(with ? sizeof info : 0);
    const auto size = static_cast<std::uint32_t>(sizeof packet) + info_size;
    packet.header = {RndisType::kPacket, size + frame_size};
    packet.data_offset = size - kRndisOffsetBase;
    packet.data_length = frame_size;
    if (!with) return;
    packet.ppi_offset = sizeof packet - kRndisOffsetBase;
    packet.ppi_length = sizeof info;
    info = {{sizeof info, with->first, sizeof(PpiHeader)}, with->second};
  }
  [[nodiscard]] std::span<const std::byte> bytes() const {
    return {reinterpret_cast<const std::byte*>(this), sizeof packet + packet.ppi_length};
  }
};
static_assert(sizeof(Head) == sizeof(RndisPacket) + sizeof(Ppi));

}  // namespace

void NetQueue::use(const NetBuffers& buffers, std::uint32_t first, std::uint32_t count) {
  VMBUSD_ASSERT(in_flight() == 0 && first + count <= buffers.sections);
  buffers_ = &buffers;
  first_section_ = first;
  busy_.assign(count, false);
  free_.clear();
  for (std::uint32_t section = first + count; section > first; --section) free_.push_back(section - 1);
}

void NetQueue::take(std::uint32_t section) {
  free_.pop_back();
  busy_[section - first_section_] = true;
  ++statistics_.sent;
}

Result<bool> NetQueue::send(std::span<const std::byte> frame, std::uint32_t checksum) {
  if (free_.empty()) return false;
  const Head head(static_cast<std::uint32_t>(frame.size()),
                  checksum == 0 ? std::nullopt : std::optional(std::pair(PpiType::kChecksum, checksum)));
  VMBUSD_ASSERT(head.packet.header.message_length <= buffers_->section_size);
  const std::uint32_t section = free_.back();
  // The pages follow each other.
  std::byte* const to = buffers_->send.host() + std::size_t{section} * buffers_->section_size;
  std::memcpy(to, head.bytes().data(), head.bytes().size());
  std::memcpy(to + head.bytes().size(), frame.data(), frame.size());
  const NvspBytes message = nvsp_bytes(NvspSendRndisPacket{NvspType::kSendRndisPacket, NvspChannelType::kData,
                                                           section, head.packet.header.message_length});
  VMBUSD_TRY(const bool written,
             channel_.to_host().write(
                 {.completion_requested = true, .transaction_id = section, .payload = message}));
  if (!written) return false;
  take(section);
  return true;
}

Result<bool> NetQueue::send_large(const Pages& pages, std::uint32_t bytes, std::uint32_t mss) {
  if (free_.empty()) return false;
  const Head head(bytes, std::pair(PpiType::kLargeSend, mss | kLargeSendV2));
  const std::uint32_t slot = free_.back();
  buffers_->heads.write(std::size_t{slot} * kNetHeadSize, head.bytes());
  // A range for the header and one a page, as Linux sends what lies scattered. [linux: fill_pg_buf]
  extension_.clear();
  const auto page_count = static_cast<std::uint32_t>((bytes + kPageSize - 1) / kPageSize);
  extension_.push_back(std::bit_cast<std::uint64_t>(ring::GpaDirectHeader{0, 1 + page_count}));
  extension_.push_back(std::bit_cast<std::uint64_t>(
      ring::GpaRange{static_cast<std::uint32_t>(head.bytes().size()), slot * kNetHeadSize % kPageSize}));
  extension_.push_back(buffers_->heads.gpns()[slot * kNetHeadSize / kPageSize]);
  for (std::uint32_t page = 0; page < page_count; ++page) {
    const auto size =
        std::min<std::uint32_t>(kPageSize, bytes - page * static_cast<std::uint32_t>(kPageSize));
    extension_.push_back(std::bit_cast<std::uint64_t>(ring::GpaRange{size, 0}));
    extension_.push_back(pages.gpns()[page]);
  }
  const NvspBytes message =
      nvsp_bytes(NvspSendRndisPacket{NvspType::kSendRndisPacket, NvspChannelType::kData, kNoSendSection, 0});
  VMBUSD_TRY(const bool written, channel_.to_host().write({.type = ring::PacketType::kGpaDirect,
                                                           .completion_requested = true,
                                                           .transaction_id = slot,
                                                           .extension = std::as_bytes(std::span(extension_)),
                                                           .payload = message}));
  if (!written) return false;
  take(slot);
  return true;
}

Result<const ring::Packet*> NetQueue::next_transfer() {
  for (;;) {
    VMBUSD_TRY(const ring::Packet* const packet, channel_.from_host().next());
    if (!packet || packet->type == ring::PacketType::kTransferPages) return packet;
    if (packet->type == ring::PacketType::kInband) continue;  // indirection table, VF association
    VMBUSD_CHECK(complete_frame(*packet));
  }
}

Result<void> NetQueue::complete_frame(const ring::Packet& packet) {
  NvspStatusMessage status;
  const std::uint64_t place = packet.transaction_id - first_section_;
  if (packet.type != ring::PacketType::kCompletion || packet.payload_size < sizeof status ||
      place >= busy_.size() || !busy_[place]) {
    return fail(Errc::kProtocol, "the NIC completed what is not in flight");
  }
  channel_.from_host().read_payload(packet, 0, wire_bytes_writable(status));
  ++(status.status == NvspStatus::kSuccess ? statistics_.completed : statistics_.refused);
  busy_[place] = false;
  free_.push_back(static_cast<std::uint32_t>(packet.transaction_id));
  return {};
}

Result<std::span<const std::byte>> NetQueue::frame_at(const ring::TransferPageRange& range) const {
  RndisPacket head;
  if (range.byte_count < sizeof(RndisHeader) ||
      std::uint64_t{range.byte_offset} + range.byte_count > buffers_->receive.bytes()) {
    return fail(Errc::kProtocol, "a received message is outside the receive buffer");
  }
  const std::span<const std::byte> message(buffers_->receive.host() + range.byte_offset, range.byte_count);
  if (!read_wire(message, head) || head.header.type != RndisType::kPacket) {
    return std::span<const std::byte>();
  }
  const std::uint64_t begin = std::uint64_t{head.data_offset} + kRndisOffsetBase;
  if (begin + head.data_length > message.size()) {
    return fail(Errc::kProtocol, "a received frame is outside its message");
  }
  return message.subspan(begin, head.data_length);
}

Result<void> NetQueue::give_back(const ring::Packet& packet) {
  static const NvspBytes kTaken =
      nvsp_bytes(NvspStatusMessage{NvspType::kSendRndisPacketComplete, NvspStatus::kSuccess});
  const ring::PacketToWrite completion = {
      .type = ring::PacketType::kCompletion, .transaction_id = packet.transaction_id, .payload = kTaken};
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    VMBUSD_TRY(const bool written, channel_.to_host().write(completion));
    if (written) return {};
    if (std::chrono::steady_clock::now() > deadline) {
      return fail_os(ETIMEDOUT, "the NIC does not read its ring");
    }
    VMBUSD_CHECK(channel_.flush());
  }
}

}  // namespace vmbusd::guest
