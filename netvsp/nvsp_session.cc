#include "netvsp/nvsp_session.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "netvsp/frame.h"
#include "netvsp/nic.h"
#include "netvsp/rndis_packet.h"

namespace vmbusd::netvsp {

namespace {

constexpr std::uint32_t kPageSize = 4096;
// As Hyper-V answers INIT: real numbers do not matter to any guest.
constexpr std::uint32_t kVersionReply1 = 2;
constexpr std::uint32_t kVersionReply = 0xffffffff;

constexpr NvspVersion kVersions[] = {NvspVersion::k61, NvspVersion::k6, NvspVersion::k5,
                                     NvspVersion::k4,  NvspVersion::k2, NvspVersion::k1};

template <WireStruct T>
NvspCompletion padded(const T& message) {
  static_assert(sizeof message <= kNvspMessageSize);
  NvspCompletion completion;
  std::memcpy(completion.bytes.data(), &message, sizeof message);
  completion.size = kNvspMessageSize;
  return completion;
}

}  // namespace

ReceiveLayout lay_out_receive_buffer(std::uint64_t buffer_size, std::uint32_t mtu) {
  const std::uint32_t needed = kReceiveFrameOffset + kEthernetHeaderSize + kVlanTagSize + mtu + kReceiveTail;
  // A divisor or multiple of the page: then a sub-allocation touches as few pages as can be, and each has its
  // own host address.
  const std::uint32_t size = needed <= kPageSize ? std::max(kSubAllocationSizeMin, std::bit_ceil(needed))
                                                 : (needed + kPageSize - 1) / kPageSize * kPageSize;
  return {size, static_cast<std::uint32_t>(std::min(buffer_size, kReceiveBufferSizeMax) / size)};
}

NvspOutcome NvspSession::handle(std::span<const std::byte> message) {
  NvspOutcome outcome;
  NvspType type{};
  if (!read_wire(message, type)) {
    outcome.completion = padded(NvspStatusMessage{NvspType{0}, NvspStatus::kFailure});
    return outcome;
  }
  if (type == NvspType::kInit) {
    init(message, outcome);
    return outcome;
  }
  if (!negotiated_) {
    outcome.completion = padded(NvspStatusMessage{type, NvspStatus::kFailure});
    return outcome;
  }
  switch (type) {
    case NvspType::kSendRndisPacket:
      if (read_wire(message, outcome.rndis)) {
        outcome.action = outcome.rndis.channel_type == NvspChannelType::kControl
                             ? NvspOutcome::Action::kControl
                             : NvspOutcome::Action::kData;
      } else {
        outcome.completion = rndis_packet_complete(NvspStatus::kFailure);
      }
      break;
    case NvspType::kSendNdisVersion:  // 6.1 or 6.30: says nothing that the NVSP version does not
    case NvspType::kSwitchDataPath:   // there is no VF, so there is nothing to switch
      break;
    case NvspType::kSendNdisConfig:
      ndis_config(message);
      break;
    case NvspType::kSendReceiveBuffer:
      send_receive_buffer(message, outcome);
      break;
    case NvspType::kRevokeReceiveBuffer:
      receive_ = Buffer::kNone;
      outcome.action = NvspOutcome::Action::kRevokeReceiveBuffer;
      break;
    case NvspType::kSendSendBuffer:
      send_send_buffer(message, outcome);
      break;
    case NvspType::kRevokeSendBuffer:
      send_ = Buffer::kNone;
      outcome.action = NvspOutcome::Action::kRevokeSendBuffer;
      break;
    case NvspType::kSubChannel:
      sub_channels(message, outcome);
      break;
    case NvspType::kOidQueryEx:
      outcome.completion = padded(NvspStatusMessage{NvspType::kOidQueryExComplete, NvspStatus::kUnsupported});
      break;
    default:
      outcome.completion = padded(NvspStatusMessage{type, NvspStatus::kUnsupported});
      break;
  }
  return outcome;
}

void NvspSession::init(std::span<const std::byte> message, NvspOutcome& outcome) {
  NvspInit asked;
  NvspInitComplete done{};
  done.type = NvspType::kInitComplete;
  done.mdl_chain_length_max = kMdlChainLengthMax;
  done.status = NvspStatus::kFailure;
  if (!negotiated_ && read_wire(message, asked)) {
    // Guests offer one version at a time, newest first, and take any status but success as "try another".
    const auto* const version = std::find_if(
        std::begin(kVersions), std::end(kVersions),
        [&asked](NvspVersion ours) { return ours >= asked.version_min && ours <= asked.version_max; });
    if (version != std::end(kVersions)) {
      negotiated_ = true;
      state_.nvsp_version = *version;
      state_.mtu = std::min(limits_.mtu, kMtuDefault);
      state_.offloads_supported = limits_.offloads & ~kAllRsc;
      state_.offloads_enabled = state_.offloads_supported;
      done.version = *version == NvspVersion::k1 ? kVersionReply1 : kVersionReply;
      done.status = NvspStatus::kSuccess;
    } else {
      done.status =
          asked.version_min > kVersions[0] ? NvspStatus::kProtocolTooNew : NvspStatus::kProtocolTooOld;
    }
  }
  outcome.completion = padded(done);
}

void NvspSession::ndis_config(std::span<const std::byte> message) {
  NvspSendNdisConfig asked;
  // Its layout depends on it, so it comes before the receive buffer or not at all.
  if (state_.nvsp_version < NvspVersion::k2 || receive_ != Buffer::kNone || !read_wire(message, asked))
    return;
  // Less than the default is the guest's own business: frames up to that are always taken.
  const std::uint32_t mtu =
      std::clamp(asked.mtu, kMtuDefault + kEthernetHeaderSize, kMtuMax + kEthernetHeaderSize) -
      kEthernetHeaderSize;
  state_.mtu = std::min(limits_.mtu, mtu);
  vlan_ = (asked.capabilities & kNdisConfig8021q) != 0;
  if (state_.nvsp_version >= NvspVersion::k61 && (asked.capabilities & kNdisConfigRsc) != 0) {
    state_.offloads_supported |= limits_.offloads & kAllRsc;  // off until the guest switches it on
  }
}

void NvspSession::send_receive_buffer(std::span<const std::byte> message, NvspOutcome& outcome) {
  NvspSendBuffer asked;
  if (receive_ != Buffer::kNone || !read_wire(message, asked)) {
    NvspSendReceiveBufferComplete done{};
    done.type = NvspType::kSendReceiveBufferComplete;
    done.status = NvspStatus::kFailure;
    outcome.completion = padded(done);
    return;
  }
  receive_ = Buffer::kPending;
  receive_buffer_id_ = asked.id;
  outcome.action = NvspOutcome::Action::kFindReceiveBuffer;
  outcome.gpadl = asked.gpadl;
}

NvspCompletion NvspSession::receive_buffer_found(std::uint64_t size) {
  NvspSendReceiveBufferComplete done{};
  done.type = NvspType::kSendReceiveBufferComplete;
  done.status = NvspStatus::kFailure;
  receive_layout_ = lay_out_receive_buffer(size, state_.mtu);
  // Revoked before it was found: failed as well.
  if (receive_ == Buffer::kPending && receive_layout_.sub_allocations != 0) {
    receive_ = Buffer::kReady;
    done.status = NvspStatus::kSuccess;
    done.section_count = 1;
    done.section = {0, receive_layout_.sub_allocation_size, receive_layout_.sub_allocations,
                    receive_layout_.sub_allocation_size * receive_layout_.sub_allocations};
  } else {
    receive_ = Buffer::kNone;
  }
  return padded(done);
}

void NvspSession::send_send_buffer(std::span<const std::byte> message, NvspOutcome& outcome) {
  NvspSendBuffer asked;
  if (send_ != Buffer::kNone || !read_wire(message, asked)) {
    outcome.completion =
        padded(NvspSendSendBufferComplete{NvspType::kSendSendBufferComplete, NvspStatus::kFailure, 0});
    return;
  }
  send_ = Buffer::kPending;
  outcome.action = NvspOutcome::Action::kFindSendBuffer;
  outcome.gpadl = asked.gpadl;
}

NvspCompletion NvspSession::send_buffer_found(std::uint64_t size) {
  const bool good = send_ == Buffer::kPending && size >= kSendSectionSize;
  send_ = good ? Buffer::kReady : Buffer::kNone;
  return padded(NvspSendSendBufferComplete{NvspType::kSendSendBufferComplete,
                                           good ? NvspStatus::kSuccess : NvspStatus::kFailure,
                                           good ? kSendSectionSize : 0});
}

void NvspSession::sub_channels(std::span<const std::byte> message, NvspOutcome& outcome) {
  NvspSubChannelRequest asked;
  NvspSubChannelComplete done{NvspType::kSubChannel, NvspStatus::kFailure, 0};
  if (state_.nvsp_version >= NvspVersion::k5 && sub_channels_ == 0 && read_wire(message, asked) &&
      asked.operation == kSubChannelAllocate) {
    // Linux waits without end for every one that is granted, so all of them will be offered.
    sub_channels_ = std::min(asked.count, state_.queues - 1);
    if (sub_channels_ != 0) {
      done.status = NvspStatus::kSuccess;
      done.count = sub_channels_;
      outcome.action = NvspOutcome::Action::kSubChannels;
      outcome.count = sub_channels_;
    }
  }
  outcome.completion = padded(done);
}

void NvspSession::save(NicRecord& record) const {
  record.nvsp_version = negotiated_ ? static_cast<std::uint32_t>(state_.nvsp_version) : 0;
  record.mtu = state_.mtu;
  record.offloads_supported = state_.offloads_supported;
  record.receive_buffer_id = receive_buffer_id_;
  record.sub_channels = sub_channels_;
  record.vlan = vlan_ ? 1 : 0;
  record.receives = receive_ == Buffer::kReady ? 1 : 0;
  record.sends = send_ == Buffer::kReady ? 1 : 0;
}

Result<void> NvspSession::restore(const NicRecord& record) {
  const NvspVersion version{record.nvsp_version};
  if (std::find(std::begin(kVersions), std::end(kVersions), version) == std::end(kVersions)) {
    return fail(Errc::kProtocol, "a NIC's session of no NVSP version");
  }
  const std::uint32_t offloads = limits_.offloads & (version < NvspVersion::k61 ? ~kAllRsc : ~0u);
  if (record.mtu < std::min(kMtuMin, limits_.mtu) || record.mtu > limits_.mtu ||
      (record.offloads_supported & ~offloads) != 0) {
    return fail(Errc::kProtocol, "a NIC's session with more than the NIC has");
  }
  if (record.sub_channels >= state_.queues || (record.sub_channels != 0 && version < NvspVersion::k5)) {
    return fail(Errc::kProtocol, "a NIC's session with more channels than the NIC has");
  }
  negotiated_ = true;
  state_.nvsp_version = version;
  state_.mtu = record.mtu;
  state_.offloads_supported = record.offloads_supported;
  receive_buffer_id_ = record.receive_buffer_id;
  sub_channels_ = record.sub_channels;
  vlan_ = record.vlan != 0;
  receive_ = record.receives != 0 ? Buffer::kReady : Buffer::kNone;
  send_ = record.sends != 0 ? Buffer::kReady : Buffer::kNone;
  return {};
}

NvspCompletion rndis_packet_complete(NvspStatus status) {
  return padded(NvspStatusMessage{NvspType::kSendRndisPacketComplete, status});
}

NvspSendIndirectionTable make_send_indirection(std::uint32_t channels) {
  NvspSendIndirectionTable message{};
  message.type = NvspType::kSendIndirectionTable;
  message.count = kSendIndirectionEntries;
  message.offset = offsetof(NvspSendIndirectionTable, table);
  for (std::uint32_t i = 0; i < kSendIndirectionEntries; ++i) message.table[i] = i % channels;
  return message;
}

}  // namespace vmbusd::netvsp
