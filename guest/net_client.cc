#include "guest/net_client.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/assert.h"
#include "guest/nvsp_bytes.h"

namespace vmbusd::guest {
namespace {

using namespace netvsp;

constexpr std::uint16_t kReceiveBufferId = 0xcafe;  // [linux: NETVSC_RECEIVE_BUFFER_ID]
constexpr std::uint32_t kRequestId = 1;
// Range for receive buffer and ring pages, and completions, in one go: what a control reply may take.
constexpr std::uint32_t kTransferSizeMax = 0x4000;  // [linux: RNDIS_MAX_TRANSFER_SIZE]

tl::unexpected<Error> refused() {
  return fail(Errc::kUnsupported, "the NIC refuses its initialisation");
}

}  // namespace

Result<void> NetClient::initialize(const Options& options) {
  NvspBytes answer;
  const NvspInit init = {NvspType::kInit, options.version, options.version};
  VMBUSD_CHECK(request(nvsp_bytes(init), answer));
  NvspInitComplete initialized;
  (void)read_wire(std::span<const std::byte>(answer), initialized);
  if (initialized.status != NvspStatus::kSuccess) return refused();
  VMBUSD_CHECK(post(nvsp_bytes(NvspSendNdisConfig{NvspType::kSendNdisConfig, options.mtu + 14, 0, 0, 0})));
  VMBUSD_CHECK(post(nvsp_bytes(NvspSendNdisVersion{NvspType::kSendNdisVersion, 6, 30})));
  VMBUSD_CHECK(lend_buffers(options));
  return set_up_adapter(options);
}

Result<void> NetClient::lend_buffers(const Options& options) {
  VMBUSD_TRY(buffers_.receive, channel().ram().take(options.receive_pages));
  VMBUSD_TRY(const std::uint32_t receive, channel().lend(buffers_.receive.gpns()));
  NvspBytes answer;
  VMBUSD_CHECK(request(nvsp_bytes(NvspSendBuffer{NvspType::kSendReceiveBuffer, receive, kReceiveBufferId, 0}),
                       answer));
  NvspSendReceiveBufferComplete received;
  (void)read_wire(std::span<const std::byte>(answer), received);
  if (received.status != NvspStatus::kSuccess) return refused();

  VMBUSD_TRY(buffers_.send, channel().ram().take(options.send_pages));
  VMBUSD_TRY(const std::uint32_t send, channel().lend(buffers_.send.gpns()));
  VMBUSD_CHECK(request(nvsp_bytes(NvspSendBuffer{NvspType::kSendSendBuffer, send, 0, 0}), answer));
  NvspSendSendBufferComplete sent;
  (void)read_wire(std::span<const std::byte>(answer), sent);
  if (sent.status != NvspStatus::kSuccess || sent.section_size == 0) return refused();
  buffers_.section_size = sent.section_size;
  buffers_.sections = static_cast<std::uint32_t>(buffers_.send.bytes() / sent.section_size);
  const std::size_t head_bytes = std::size_t{buffers_.sections} * kNetHeadSize;
  VMBUSD_TRY(buffers_.heads, channel().ram().take((head_bytes + kPageSize - 1) / kPageSize));
  use(buffers_, 0, buffers_.sections);
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

// Sub-channels.

Result<std::uint32_t> NetClient::create_sub_channels(std::uint32_t count) {
  NvspBytes answer;
  const NvspSubChannelRequest asked = {NvspType::kSubChannel, kSubChannelAllocate, count};
  VMBUSD_CHECK(request(nvsp_bytes(asked), answer));
  NvspSubChannelComplete granted;
  (void)read_wire(std::span<const std::byte>(answer), granted);
  return granted.status == NvspStatus::kSuccess ? std::min(granted.count, count) : 0;
}

Result<void> NetClient::use_sub_channels(std::span<NetQueue* const> queues) {
  const auto channels = static_cast<std::uint32_t>(1 + queues.size());
  const std::uint32_t share = buffers_.sections / channels;
  use(buffers_, 0, share);
  for (std::uint32_t i = 1; i < channels; ++i) queues[i - 1]->use(buffers_, i * share, share);

  struct {
    NdisRssParameters parameters{};
    std::array<std::uint32_t, kRssIndirectionEntriesMax> table{};
    std::array<std::uint8_t, kRssKeySize> key{};
  } rss;
  static_assert(kIsWire<decltype(rss), sizeof rss.parameters + sizeof rss.table + sizeof rss.key>);
  rss.parameters.header = {kNdisObjectRssParameters, 2, sizeof rss.parameters};
  rss.parameters.hash_info = kHashToeplitz | kHashIpv4 | kHashTcpIpv4 | kHashIpv6 | kHashTcpIpv6;
  rss.parameters.indirection_table_size = sizeof rss.table;
  rss.parameters.indirection_table_offset = sizeof rss.parameters;
  rss.parameters.hash_key_size = sizeof rss.key;
  rss.parameters.hash_key_offset = sizeof rss.parameters + sizeof rss.table;
  for (std::uint32_t i = 0; i < rss.table.size(); ++i) rss.table[i] = i % channels;
  // Any key spreads flows that differ in more than one bit; this one is nobody's secret.
  for (std::uint32_t i = 0; i < rss.key.size(); ++i) rss.key[i] = static_cast<std::uint8_t>(0x6d + 29 * i);
  VMBUSD_TRY(const RndisStatus set_status, set(Oid::kGenReceiveScaleParameters, wire_bytes(rss)));
  if (set_status != RndisStatus::kSuccess) return refused();
  return {};
}

// Messages.

Result<ring::Packet> NetClient::wait_packet() {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    VMBUSD_TRY(const ring::Packet* const packet, channel().from_host().next());
    if (packet) return *packet;
    if (std::chrono::steady_clock::now() > deadline) return fail_os(ETIMEDOUT, "the NIC does not answer");
    VMBUSD_CHECK(channel().wait(kPatience));
  }
}

Result<void> NetClient::post(std::span<const std::byte> message) {
  VMBUSD_TRY(const bool written, channel().to_host().write({.transaction_id = kCallId, .payload = message}));
  if (!written) return fail(Errc::kLimit, "no room for an NVSP message");
  return channel().flush();
}

Result<void> NetClient::request(std::span<const std::byte> message, std::span<std::byte> completion) {
  VMBUSD_TRY(const bool written,
             channel().to_host().write(
                 {.completion_requested = true, .transaction_id = kCallId, .payload = message}));
  if (!written) return fail(Errc::kLimit, "no room for an NVSP message");
  for (;;) {
    VMBUSD_TRY(const ring::Packet packet, wait_packet());
    if (packet.type != ring::PacketType::kCompletion) continue;
    if (packet.transaction_id != kCallId || packet.payload_size < completion.size()) {
      return fail(Errc::kProtocol, "the NIC completed something else");
    }
    channel().from_host().read_payload(packet, 0, completion);
    return {};
  }
}

Result<std::vector<std::byte>> NetClient::control(std::span<const std::byte> message) {
  VMBUSD_TRY(const Pages page, channel().ram().take(1));
  page.write(0, message);
  const std::array<std::uint64_t, 3> extension = {
      std::bit_cast<std::uint64_t>(ring::GpaDirectHeader{0, 1}),
      std::bit_cast<std::uint64_t>(ring::GpaRange{static_cast<std::uint32_t>(message.size()), 0}),
      page.gpns().front()};
  const NvspBytes announced = nvsp_bytes(
      NvspSendRndisPacket{NvspType::kSendRndisPacket, NvspChannelType::kControl, kNoSendSection, 0});
  VMBUSD_TRY(const bool written, channel().to_host().write({.type = ring::PacketType::kGpaDirect,
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
    channel().from_host().read_extension(packet, 0, std::as_writable_bytes(std::span(words)));
    if (words[1] == 0 || words[2] < sizeof(RndisHeader) ||
        std::uint64_t{words[3]} + words[2] > buffers_.receive.bytes()) {
      return fail(Errc::kProtocol, "a received message is outside the receive buffer");
    }
    std::vector<std::byte> received(words[2]);
    buffers_.receive.read(words[3], received);
    VMBUSD_CHECK(give_back(packet));
    RndisHeader header;
    (void)read_wire(std::span<const std::byte>(received), header);
    if (header.type != RndisType::kIndicateStatus && header.type != RndisType::kPacket) reply = received;
  }
  VMBUSD_CHECK(channel().flush());
  return reply;
}

}  // namespace vmbusd::guest
