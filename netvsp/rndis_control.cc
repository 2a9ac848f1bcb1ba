#include "netvsp/rndis_control.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace vmbusd::netvsp {

namespace {

// Packets that a guest may put into one message. DPDK and FreeBSD aggregate by these three; 8 as Hyper-V.
constexpr std::uint32_t kPacketsPerMessageMax = 8;
constexpr std::uint32_t kTransferSizeMax = 0xefffffff;
constexpr std::uint32_t kPacketAlignmentShift = 3;

struct Handler {
  NicState& state;
  const CounterSource& counters;
  std::span<const std::byte> request;  // cut to its message_length
  std::span<std::byte> reply;
  ControlOutcome outcome;

  template <WireStruct T>
  void answer(const T& message) {
    std::memcpy(reply.data(), &message, sizeof message);
    outcome.reply_size = sizeof message;
  }

  void refuse() { outcome.well_formed = false; }

  void initialize() {
    RndisInitialize message;
    if (!read_wire(request, message)) return refuse();
    RndisInitializeComplete done{};
    done.header = {RndisType::kInitializeComplete, sizeof done};
    done.request_id = message.request_id;
    done.status =
        message.major_version == kRndisMajorVersion ? RndisStatus::kSuccess : RndisStatus::kBadVersion;
    done.major_version = kRndisMajorVersion;
    done.minor_version = kRndisMinorVersion;
    done.device_flags = kRndisConnectionless;
    done.packets_per_message_max = kPacketsPerMessageMax;
    done.transfer_size_max = kTransferSizeMax;
    done.packet_alignment_shift = kPacketAlignmentShift;
    answer(done);
    if (done.status == RndisStatus::kSuccess) state.initialized = true;
  }

  void halt() {
    state.initialized = false;
    state.packet_filter = 0;
    state.rss.enabled = false;
    outcome.changes |= kFilterChanged | kRssChanged;
    outcome.halted = true;
  }

  // The information buffer of a query or set. False where it is not inside the message.
  [[nodiscard]] bool info_of(const RndisRequest& message, std::span<const std::byte>& info) const {
    info = {};
    if (message.info_length == 0) return true;
    const std::uint64_t begin = std::uint64_t{kRndisOffsetBase} + message.info_offset;
    if (begin < sizeof message || begin + message.info_length > request.size()) return false;
    info = request.subspan(begin, message.info_length);
    return true;
  }

  void query() {
    RndisRequest message;
    if (!read_wire(request, message)) return refuse();
    std::span<const std::byte> info;
    OidAnswer out(reply.subspan(sizeof(RndisQueryComplete), kOidAnswerMax));
    RndisQueryComplete done{};
    done.request_id = message.request_id;
    if (!state.initialized) {
      done.status = RndisStatus::kFailure;
    } else if (!info_of(message, info)) {
      done.status = RndisStatus::kInvalidData;
    } else {
      done.status = query_oid(state, counters, message.oid, info, out);
    }
    done.info_length = done.status == RndisStatus::kSuccess ? static_cast<std::uint32_t>(out.size()) : 0;
    done.info_offset = done.info_length == 0 ? 0 : sizeof done - kRndisOffsetBase;
    done.header = {RndisType::kQueryComplete, static_cast<std::uint32_t>(sizeof done) + done.info_length};
    answer(done);
    outcome.reply_size += done.info_length;
  }

  void set(RndisType reply_type) {
    RndisRequest message;
    if (!read_wire(request, message)) return refuse();
    std::span<const std::byte> info;
    RndisStatusComplete done{};
    done.header = {reply_type, sizeof done};
    done.request_id = message.request_id;
    if (!state.initialized) {
      done.status = RndisStatus::kFailure;
    } else if (!info_of(message, info)) {
      done.status = RndisStatus::kInvalidData;
    } else {
      done.status = set_oid(state, message.oid, info, outcome.changes);
    }
    answer(done);
  }

  void reset() {
    // Filter and addresses are kept, so the driver has nothing to set anew.
    answer(RndisResetComplete{
        {RndisType::kResetComplete, sizeof(RndisResetComplete)}, RndisStatus::kSuccess, 0});
  }

  void keepalive() {
    RndisPlainRequest message;
    if (!read_wire(request, message)) return refuse();
    answer(RndisStatusComplete{{RndisType::kKeepaliveComplete, sizeof(RndisStatusComplete)},
                               message.request_id,
                               RndisStatus::kSuccess});
  }
};

}  // namespace

ControlOutcome handle_control(NicState& state, const CounterSource& counters,
                              std::span<const std::byte> request, std::span<std::byte> reply) {
  VMBUSD_ASSERT(reply.size() >= kControlMessageMax);
  Handler handler{state, counters, request, reply, {}};
  RndisHeader header;
  // Requests are padded by some guests, so bytes behind the message are no error.
  if (!read_wire(request, header) || header.message_length < sizeof header ||
      header.message_length > request.size()) {
    handler.refuse();
    return handler.outcome;
  }
  handler.request = request.first(header.message_length);
  switch (header.type) {
    case RndisType::kInitialize:
      handler.initialize();
      break;
    case RndisType::kHalt:
      handler.halt();
      break;
    case RndisType::kQuery:
      handler.query();
      break;
    case RndisType::kSet:
      handler.set(RndisType::kSetComplete);
      break;
    case RndisType::kSetEx:
      handler.set(RndisType::kSetExComplete);
      break;
    case RndisType::kReset:
      handler.reset();
      break;
    case RndisType::kKeepalive:
      handler.keepalive();
      break;
    default:  // also completions: we ask nothing
      handler.refuse();
      break;
  }
  return handler.outcome;
}

std::size_t make_indication(RndisStatus status, std::span<const std::byte> data, std::span<std::byte> out) {
  VMBUSD_ASSERT(out.size() >= kControlMessageMax && data.size() <= kOidAnswerMax);
  RndisIndicateStatus message{};
  message.header = {RndisType::kIndicateStatus, static_cast<std::uint32_t>(sizeof message + data.size())};
  message.status = status;
  message.buffer_length = static_cast<std::uint32_t>(data.size());
  message.buffer_offset = data.empty() ? 0 : sizeof message - kRndisOffsetBase;
  std::memcpy(out.data(), &message, sizeof message);
  if (!data.empty()) std::memcpy(out.data() + sizeof message, data.data(), data.size());
  return sizeof message + data.size();
}

}  // namespace vmbusd::netvsp
