#include "guest/stor_client.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

namespace vmbusd::guest {
namespace {

// As Linux: U64_MAX - 2. [linux: storvsc_drv.c, VMBUS_RQST_INIT]
constexpr std::uint64_t kCallId = ~std::uint64_t{2};
constexpr std::uint32_t kSrbTimeoutSeconds = 60;

template <typename Body>
vstor::Packet make_packet(vstor::Operation operation, const Body& body) {
  vstor::Packet packet{};
  packet.header = {operation, vstor::kFlagCompletionRequested, vstor::Status::kSuccess};
  static_assert(sizeof body <= sizeof packet.body);
  std::memcpy(packet.body.data(), &body, sizeof body);
  return packet;
}

vstor::Packet make_packet(vstor::Operation operation) {
  return make_packet(operation, std::uint32_t{0});
}

tl::unexpected<Error> refused() {
  return fail(Errc::kUnsupported, "the storage controller refuses its initialisation");
}

}  // namespace

StorClient::StorClient(DriverChannel& channel, std::uint32_t depth) : channel_(channel), busy_(depth) {
  for (std::uint64_t id = depth; id > 0; --id) free_.push_back(id);
}

Result<void> StorClient::initialize(std::uint16_t version) {
  version_ = version;
  vstor::Packet packet = make_packet(vstor::Operation::kBeginInitialization);
  VMBUSD_CHECK(call(packet));
  if (packet.header.status != vstor::Status::kSuccess) return refused();
  packet = make_packet(vstor::Operation::kQueryProtocolVersion, vstor::ProtocolVersion{version, 0});
  VMBUSD_CHECK(call(packet));
  if (packet.header.status != vstor::Status::kSuccess) return refused();
  packet = make_packet(vstor::Operation::kQueryProperties);
  VMBUSD_CHECK(call(packet));
  if (packet.header.status != vstor::Status::kSuccess) return refused();
  std::memcpy(&properties_, packet.body.data(), sizeof properties_);
  packet = make_packet(vstor::Operation::kEndInitialization);
  VMBUSD_CHECK(call(packet));
  if (packet.header.status != vstor::Status::kSuccess) return refused();
  return {};
}

Result<vstor::Status> StorClient::create_sub_channels(std::uint16_t count) {
  vstor::Packet packet = make_packet(vstor::Operation::kCreateSubChannels, vstor::SubChannelRequest{count});
  VMBUSD_CHECK(call(packet));
  return packet.header.status;
}

Result<std::optional<std::uint64_t>> StorClient::submit(const StorCommand& command) {
  if (free_.empty()) return std::optional<std::uint64_t>();
  const bool has_data = command.direction != vstor::DataIn::kUnknown;
  extension_.clear();
  if (has_data) {
    const ring::GpaDirectHeader header = {.reserved = 0, .range_count = 1};
    const ring::GpaRange range = {.byte_count = command.bytes, .byte_offset = command.page_offset};
    extension_.push_back(std::bit_cast<std::uint64_t>(header));
    extension_.push_back(std::bit_cast<std::uint64_t>(range));
    extension_.insert(extension_.end(), command.pages.begin(), command.pages.end());
  }
  vstor::SrbPacket packet{};
  packet.header = {vstor::Operation::kExecuteSrb, vstor::kFlagCompletionRequested, vstor::Status::kSuccess};
  packet.srb.length = sizeof packet.srb;
  packet.srb.path_id = command.path;
  packet.srb.target_id = command.target;
  packet.srb.lun = command.lun;
  packet.srb.cdb_length = command.cdb_length;
  packet.srb.sense_info_length = vstor::kSenseSizeMax;
  packet.srb.data_in = command.direction;
  packet.srb.data_transfer_length = command.bytes;
  std::copy(command.cdb.begin(), command.cdb.end(), packet.srb.cdb_or_sense.begin());
  packet.srb.queue_tag = 0xff;
  packet.srb.queue_action = 0x20;  // simple
  if (command.direction == vstor::DataIn::kRead) packet.srb.srb_flags = vstor::kSrbFlagDataIn;
  if (command.direction == vstor::DataIn::kWrite) packet.srb.srb_flags = vstor::kSrbFlagDataOut;
  packet.srb.time_out_value = kSrbTimeoutSeconds;

  const std::uint64_t id = free_.back();
  VMBUSD_TRY(
      const bool written,
      channel_.to_host().write({.type = has_data ? ring::PacketType::kGpaDirect : ring::PacketType::kInband,
                                .completion_requested = true,
                                .transaction_id = id,
                                .extension = std::as_bytes(std::span(extension_)),
                                .payload = wire_bytes(packet).first(packet_size())}));
  if (!written) return std::optional<std::uint64_t>();
  free_.pop_back();
  busy_[id - 1] = true;
  return std::optional(id);
}

Result<std::optional<StorCompletion>> StorClient::next_completion() {
  for (;;) {
    VMBUSD_TRY(const ring::Packet* const packet, channel_.from_host().next());
    if (!packet) return std::optional<StorCompletion>();
    StorCompletion completion{};
    completion.id = packet->transaction_id;
    if (packet->payload_size != packet_size()) {
      return fail(Errc::kProtocol, "a storage packet has the wrong size");
    }
    channel_.from_host().read_payload(*packet, 0,
                                      wire_bytes_writable(completion.packet).first(packet_size()));
    if (packet->type == ring::PacketType::kInband) {  // unsolicited
      if (completion.packet.header.operation == vstor::Operation::kEnumerateBus) ++bus_changes_;
      continue;
    }
    if (packet->type != ring::PacketType::kCompletion ||
        completion.packet.header.operation != vstor::Operation::kCompleteIo) {
      return fail(Errc::kProtocol, "the storage controller answers with another operation");
    }
    if (completion.id == kCallId) return std::optional(completion);
    if (completion.id == 0 || completion.id > busy_.size() || !busy_[completion.id - 1]) {
      return fail(Errc::kProtocol, "the storage controller completed what is not in flight");
    }
    busy_[completion.id - 1] = false;
    free_.push_back(completion.id);
    return std::optional(completion);
  }
}

Result<vstor::SrbPacket> StorClient::execute(const StorCommand& command) {
  VMBUSD_TRY(const std::optional<std::uint64_t> id, submit(command));
  if (!id) return fail(Errc::kLimit, "no room for a storage command");
  VMBUSD_TRY(const StorCompletion completion, wait_for_completion());
  return completion.packet;
}

Result<void> StorClient::call(vstor::Packet& packet) {
  VMBUSD_TRY(const bool written,
             channel_.to_host().write({.type = ring::PacketType::kInband,
                                       .completion_requested = true,
                                       .transaction_id = kCallId,
                                       .payload = wire_bytes(packet).first(packet_size())}));
  if (!written) return fail(Errc::kLimit, "no room for a storage packet");
  VMBUSD_TRY(const StorCompletion completion, wait_for_completion());
  if (completion.id != kCallId) {
    return fail(Errc::kWrongState, "a command completed while another answer was due");
  }
  std::memcpy(&packet, &completion.packet, sizeof packet);
  return {};
}

Result<StorCompletion> StorClient::wait_for_completion() {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    VMBUSD_TRY(const std::optional<StorCompletion> completion, next_completion());
    if (completion) return *completion;
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return fail_os(ETIMEDOUT, "the storage controller does not answer");
    // A signal without a packet ends the wait as well.
    VMBUSD_CHECK(wait(left));
  }
}

}  // namespace vmbusd::guest
