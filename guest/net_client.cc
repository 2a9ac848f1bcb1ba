#include "guest/net_client.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/assert.h"

namespace vmbusd::guest {
namespace {

using namespace netvsp;

constexpr std::uint16_t kReceiveBufferId = 0xcafe;  // [linux: NETVSC_RECEIVE_BUFFER_ID]
constexpr std::uint32_t kRequestId = 1;
// Range for receive buffer and ring pages, and completions, in one go: what a control reply may take.
constexpr std::uint32_t kTransferSizeMax = 0x4000;  // [linux: RNDIS_MAX_TRANSFER_SIZE]

using NvspBytes = std::array<std::byte, kNvspMessageSize>;

template <typename Message>
NvspBytes padded(const Message& message) {
  static_assert(sizeof message <= kNvspMessageSize);
  NvspBytes bytes{};
  std::memcpy(bytes.data(), &message, sizeof message);
  return bytes;
}

tl::unexpected<Error> refused() {
  return fail(Errc::kUnsupported, "the NIC refuses its initialisation");
}

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

Result<void> NetClient::initialize(const Options& options) {
  NvspBytes answer;
  const NvspInit init = {NvspType::kInit, options.version, options.version};
  VMBUSD_CHECK(request(padded(init), answer));
  NvspInitComplete initialized;
  (void)read_wire(std::span<const std::byte>(answer), initialized);
  if (initialized.status != NvspStatus::kSuccess) return refused();
  VMBUSD_CHECK(post(padded(NvspSendNdisConfig{NvspType::kSendNdisConfig, options.mtu + 14, 0, 0, 0})));
  VMBUSD_CHECK(post(padded(NvspSendNdisVersion{NvspType::kSendNdisVersion, 6, 30})));
  VMBUSD_CHECK(lend_buffers(options));
  return set_up_adapter(options);
}

Result<void> NetClient::lend_buffers(const Options& options) {
  VMBUSD_TRY(receive_, channel_.ram().take(options.receive_pages));
  VMBUSD_TRY(const std::uint32_t receive, channel_.lend(receive_.gpns()));
  NvspBytes answer;
  VMBUSD_CHECK(
      request(padded(NvspSendBuffer{NvspType::kSendReceiveBuffer, receive, kReceiveBufferId, 0}), answer));
  NvspSendReceiveBufferComplete received;
  (void)read_wire(std::span<const std::byte>(answer), received);
  if (received.status != NvspStatus::kSuccess) return refused();

  VMBUSD_TRY(send_, channel_.ram().take(options.send_pages));
  VMBUSD_TRY(const std::uint32_t send, channel_.lend(send_.gpns()));
  VMBUSD_CHECK(request(padded(NvspSendBuffer{NvspType::kSendSendBuffer, send, 0, 0}), answer));
  NvspSendSendBufferComplete sent;
  (void)read_wire(std::span<const std::byte>(answer), sent);
  if (sent.status != NvspStatus::kSuccess || sent.section_size == 0) return refused();
  section_size_ = sent.section_size;
  sections_ = static_cast<std::uint32_t>(send_.bytes() / section_size_);
  VMBUSD_TRY(heads_, channel_.ram().take((std::size_t{sections_} * kHeadSize + kPageSize - 1) / kPageSize));
  busy_.assign(sections_, false);
  free_.clear();
  for (std::uint32_t section = sections_; section > 0; --section) free_.push_back(section - 1);
  return {};
}

Result<void> NetClient::set_up_adapter(const Options& options) {
  const RndisInitialize initialize = {
      {RndisType::kInitialize, sizeof initialize}, kRequestId, 1, 0, kTransferSizeMax};
  VMBUSD_TRY(const std::vector<std::byte> initialized, control(wire_bytes(initialize)));
  RndisInitializeComplete complete;
  if (!read_wire(std::span<const std::byte>(initialized), complete) ||
      complete.status != RndisStatus::kSuccess) {
    return refused();
  }
  RndisRequest query{};
  query.header = {RndisType::kQuery, sizeof query};
  query.request_id = kRequestId;
  query.oid = static_cast<std::uint32_t>(Oid::k8023CurrentAddress);
  VMBUSD_TRY(const std::vector<std::byte> address, control(wire_bytes(query)));
  RndisQueryComplete queried;
  const std::span<const std::byte> bytes(address);
  if (!read_wire(bytes, queried) || queried.status != RndisStatus::kSuccess ||
      queried.info_length != sizeof(MacAddress) ||
      queried.info_offset + kRndisOffsetBase + sizeof(MacAddress) > bytes.size()) {
    return refused();
  }
  std::memcpy(&mac_, bytes.data() + kRndisOffsetBase + queried.info_offset, sizeof mac_);
  VMBUSD_TRY(const RndisStatus filtered, set(Oid::kGenCurrentPacketFilter, wire_bytes(options.filter)));
  if (filtered != RndisStatus::kSuccess) return refused();
  return {};
}

Result<RndisStatus> NetClient::set(Oid oid, std::span<const std::byte> info) {
  RndisRequest head{};
  head.header = {RndisType::kSet, static_cast<std::uint32_t>(sizeof head + info.size())};
  head.request_id = kRequestId;
  head.oid = static_cast<std::uint32_t>(oid);
  head.info_length = static_cast<std::uint32_t>(info.size());
  head.info_offset = sizeof head - kRndisOffsetBase;
  const std::span<const std::byte> head_bytes = wire_bytes(head);
  std::vector<std::byte> message(head_bytes.begin(), head_bytes.end());
  message.insert(message.end(), info.begin(), info.end());
  VMBUSD_TRY(const std::vector<std::byte> reply, control(message));
  RndisStatusComplete complete;
  if (!read_wire(std::span<const std::byte>(reply), complete)) {
    return fail(Errc::kProtocol, "the NIC answers a SET with something else");
  }
  return complete.status;
}

// Frames.

Result<bool> NetClient::send(std::span<const std::byte> frame, std::uint32_t checksum) {
  if (free_.empty()) return false;
  const Head head(static_cast<std::uint32_t>(frame.size()),
                  checksum == 0 ? std::nullopt : std::optional(std::pair(PpiType::kChecksum, checksum)));
  VMBUSD_ASSERT(head.packet.header.message_length <= section_size_);
  const std::uint32_t section = free_.back();
  // The pages follow each other.
  std::byte* const to = send_.host() + std::size_t{section} * section_size_;
  std::memcpy(to, head.bytes().data(), head.bytes().size());
  std::memcpy(to + head.bytes().size(), frame.data(), frame.size());
  const NvspBytes message = padded(NvspSendRndisPacket{NvspType::kSendRndisPacket, NvspChannelType::kData,
                                                       section, head.packet.header.message_length});
  VMBUSD_TRY(const bool written,
             channel_.to_host().write(
                 {.completion_requested = true, .transaction_id = section, .payload = message}));
  if (!written) return false;
  free_.pop_back();
  busy_[section] = true;
  ++statistics_.sent;
  return true;
}

Result<bool> NetClient::send_large(const Pages& pages, std::uint32_t bytes, std::uint32_t mss) {
  if (free_.empty()) return false;
  const Head head(bytes, std::pair(PpiType::kLargeSend, mss | kLargeSendV2));
  const std::uint32_t slot = free_.back();
  heads_.write(std::size_t{slot} * kHeadSize, head.bytes());
  // A range for the header and one a page, as Linux sends what lies scattered. [linux: fill_pg_buf]
  extension_.clear();
  const auto page_count = static_cast<std::uint32_t>((bytes + kPageSize - 1) / kPageSize);
  extension_.push_back(std::bit_cast<std::uint64_t>(ring::GpaDirectHeader{0, 1 + page_count}));
  extension_.push_back(std::bit_cast<std::uint64_t>(
      ring::GpaRange{static_cast<std::uint32_t>(head.bytes().size()), slot * kHeadSize % kPageSize}));
  extension_.push_back(heads_.gpns()[slot * kHeadSize / kPageSize]);
  for (std::uint32_t page = 0; page < page_count; ++page) {
    const auto size =
        std::min<std::uint32_t>(kPageSize, bytes - page * static_cast<std::uint32_t>(kPageSize));
    extension_.push_back(std::bit_cast<std::uint64_t>(ring::GpaRange{size, 0}));
    extension_.push_back(pages.gpns()[page]);
  }
  const NvspBytes message =
      padded(NvspSendRndisPacket{NvspType::kSendRndisPacket, NvspChannelType::kData, kNoSendSection, 0});
  VMBUSD_TRY(const bool written, channel_.to_host().write({.type = ring::PacketType::kGpaDirect,
                                                           .completion_requested = true,
                                                           .transaction_id = slot,
                                                           .extension = std::as_bytes(std::span(extension_)),
                                                           .payload = message}));
  if (!written) return false;
  free_.pop_back();
  busy_[slot] = true;
  ++statistics_.sent;
  return true;
}

Result<const ring::Packet*> NetClient::next_transfer() {
  for (;;) {
    VMBUSD_TRY(const ring::Packet* const packet, channel_.from_host().next());
    if (!packet || packet->type == ring::PacketType::kTransferPages) return packet;
    if (packet->type == ring::PacketType::kInband) continue;  // indirection table, VF association
    VMBUSD_CHECK(complete_frame(*packet));
  }
}

Result<void> NetClient::complete_frame(const ring::Packet& packet) {
  NvspStatusMessage status;
  if (packet.type != ring::PacketType::kCompletion || packet.payload_size < sizeof status ||
      packet.transaction_id >= sections_ || !busy_[packet.transaction_id]) {
    return fail(Errc::kProtocol, "the NIC completed what is not in flight");
  }
  channel_.from_host().read_payload(packet, 0, wire_bytes_writable(status));
  ++(status.status == NvspStatus::kSuccess ? statistics_.completed : statistics_.refused);
  busy_[packet.transaction_id] = false;
  free_.push_back(static_cast<std::uint32_t>(packet.transaction_id));
  return {};
}

Result<std::span<const std::byte>> NetClient::frame_at(const ring::TransferPageRange& range) const {
  RndisPacket head;
  if (range.byte_count < sizeof(RndisHeader) ||
      std::uint64_t{range.byte_offset} + range.byte_count > receive_.bytes()) {
    return fail(Errc::kProtocol, "a received message is outside the receive buffer");
  }
  const std::span<const std::byte> message(receive_.host() + range.byte_offset, range.byte_count);
  if (!read_wire(message, head) || head.header.type != RndisType::kPacket) {
    return std::span<const std::byte>();
  }
  const std::uint64_t begin = std::uint64_t{head.data_offset} + kRndisOffsetBase;
  if (begin + head.data_length > message.size()) {
    return fail(Errc::kProtocol, "a received frame is outside its message");
  }
  return message.subspan(begin, head.data_length);
}

Result<void> NetClient::give_back(const ring::Packet& packet) {
  static const NvspBytes kTaken =
      padded(NvspStatusMessage{NvspType::kSendRndisPacketComplete, NvspStatus::kSuccess});
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

// Initialisation.

Result<ring::Packet> NetClient::wait_packet() {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    VMBUSD_TRY(const ring::Packet* const packet, channel_.from_host().next());
    if (packet) return *packet;
    if (std::chrono::steady_clock::now() > deadline) return fail_os(ETIMEDOUT, "the NIC does not answer");
    VMBUSD_CHECK(channel_.wait(kPatience));
  }
}

Result<void> NetClient::post(std::span<const std::byte> message) {
  VMBUSD_TRY(const bool written, channel_.to_host().write({.transaction_id = kCallId, .payload = message}));
  if (!written) return fail(Errc::kLimit, "no room for an NVSP message");
  return channel_.flush();
}

Result<void> NetClient::request(std::span<const std::byte> message, std::span<std::byte> completion) {
  VMBUSD_TRY(const bool written,
             channel_.to_host().write(
                 {.completion_requested = true, .transaction_id = kCallId, .payload = message}));
  if (!written) return fail(Errc::kLimit, "no room for an NVSP message");
  for (;;) {
    VMBUSD_TRY(const ring::Packet packet, wait_packet());
    if (packet.type != ring::PacketType::kCompletion) continue;
    if (packet.transaction_id != kCallId || packet.payload_size < completion.size()) {
      return fail(Errc::kProtocol, "the NIC completed something else");
    }
    channel_.from_host().read_payload(packet, 0, completion);
    return {};
  }
}

Result<std::vector<std::byte>> NetClient::control(std::span<const std::byte> message) {
  VMBUSD_TRY(const Pages page, channel_.ram().take(1));
  page.write(0, message);
  const std::array<std::uint64_t, 3> extension = {
      std::bit_cast<std::uint64_t>(ring::GpaDirectHeader{0, 1}),
      std::bit_cast<std::uint64_t>(ring::GpaRange{static_cast<std::uint32_t>(message.size()), 0}),
      page.gpns().front()};
  const NvspBytes announced =
      padded(NvspSendRndisPacket{NvspType::kSendRndisPacket, NvspChannelType::kControl, kNoSendSection, 0});
  VMBUSD_TRY(const bool written, channel_.to_host().write({.type = ring::PacketType::kGpaDirect,
                                                           .completion_requested = true,
                                                           .transaction_id = kCallId,
                                                           .extension = std::as_bytes(std::span(extension)),
                                                           .payload = announced}));
  if (!written) return fail(Errc::kLimit, "no room for an RNDIS message");
  std::vector<std::byte> reply;
  for (bool taken = false; !taken || reply.empty();) {
    VMBUSD_TRY(const ring::Packet packet, wait_packet());
    if (packet.type == ring::PacketType::kCompletion) taken = true;
    if (packet.type != ring::PacketType::kTransferPages) continue;
    std::array<std::uint32_t, 4> words;  // TransferPageHeader, TransferPageRange
    if (packet.extension_size < sizeof words) return fail(Errc::kProtocol, "a packet lacks its range");
    channel_.from_host().read_extension(packet, 0, std::as_writable_bytes(std::span(words)));
    if (words[1] == 0 || words[2] < sizeof(RndisHeader) ||
        std::uint64_t{words[3]} + words[2] > receive_.bytes()) {
      return fail(Errc::kProtocol, "a received message is outside the receive buffer");
    }
    std::vector<std::byte> received(words[2]);
    receive_.read(words[3], received);
    VMBUSD_CHECK(give_back(packet));
    RndisHeader header;
    (void)read_wire(std::span<const std::byte>(received), header);
    if (header.type != RndisType::kIndicateStatus && header.type != RndisType::kPacket) reply = received;
  }
  VMBUSD_CHECK(channel_.flush());
  return reply;
}

}  // namespace vmbusd::guest
