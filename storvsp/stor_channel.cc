#include "storvsp/stor_channel.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace vmbusd::storvsp {
namespace {

using vstor::DataIn;
using vstor::Operation;
using vstor::SrbStatus;
using vstor::Status;

// The smallest packet that moves data (descriptor, one range of one page, SRB, trailer): as many fit into the
// ring as can come in one go.
constexpr std::uint32_t kSmallestIoPacket = 16 + 8 + 16 + vstor::kPacketSizeBeforeWin8 + 8;
// Linux keeps some 300 SRBs on a channel at most. [linux: storvsc_drv.c, max_outstanding_req_per_channel]
constexpr std::uint32_t kRequestsMin = 16;
constexpr std::uint32_t kRequestsMax = 512;
// A buffer of whole pages but for its two ends, and some more pieces where ranges begin and end inside pages.
constexpr std::uint32_t kExtraSegments = 64;
constexpr std::uint64_t kPageSize = partition::kPageSize;

std::uint32_t segments_max(std::uint32_t transfer_bytes) {
  return transfer_bytes / static_cast<std::uint32_t>(kPageSize) + 1 + kExtraSegments;
}

DataDirection direction_of(const vstor::Srb& srb) {
  if (srb.data_transfer_length == 0) return DataDirection::kNone;
  if (srb.data_in == DataIn::kRead) return DataDirection::kIn;
  if (srb.data_in == DataIn::kWrite) return DataDirection::kOut;
  if ((srb.srb_flags & vstor::kSrbFlagDataIn) != 0) return DataDirection::kIn;
  if ((srb.srb_flags & vstor::kSrbFlagDataOut) != 0) return DataDirection::kOut;
  return DataDirection::kNone;
}

// Statuses in the combinations that drivers understand. [reference: storvsp 4.2]
void complete(vstor::SrbPacket& packet, Status status, SrbStatus srb_status, scsi::Status scsi_status,
              std::uint32_t transferred) {
  packet.header = {Operation::kCompleteIo, 0, status};
  packet.srb.srb_status = static_cast<std::uint8_t>(srb_status);
  packet.srb.scsi_status = static_cast<std::uint8_t>(scsi_status);
  packet.srb.sense_info_length = 0;
  packet.srb.data_transfer_length = transferred;
}

// A failing SRB status needs a failing SCSI status beside it: Linux up to 6.1 takes some for success
// otherwise. [linux: storvsc_drv.c, storvsc_handle_error]
void complete_invalid(vstor::SrbPacket& packet) {
  complete(packet, Status::kInvalidDeviceRequest, SrbStatus::kInvalidRequest, scsi::Status::kCheckCondition,
           0);
}

void complete_absent(vstor::SrbPacket& packet) {
  complete(packet, Status::kNoSuchDevice, SrbStatus::kInvalidLun, scsi::Status::kCheckCondition, 0);
}

void complete_scsi(vstor::SrbPacket& packet, const ScsiResult& result) {
  switch (result.status) {
    case scsi::Status::kGood:
      complete(packet, Status::kSuccess, SrbStatus::kSuccess, result.status, result.transferred);
      return;
    case scsi::Status::kBusy:
      complete(packet, Status::kDeviceBusy, SrbStatus::kBusy, result.status, 0);
      return;
    default: {
      const std::size_t room = std::min<std::size_t>(packet.srb.sense_info_length, vstor::kSenseSizeMax);
      complete(packet, Status::kIoDeviceError, SrbStatus::kError, result.status, 0);
      if (result.status != scsi::Status::kCheckCondition || room == 0) return;
      const std::size_t size = std::min(sizeof result.sense, room);
      packet.srb.cdb_or_sense = {};
      std::memcpy(packet.srb.cdb_or_sense.data(), &result.sense, size);
      packet.srb.sense_info_length = static_cast<std::uint8_t>(size);
      packet.srb.srb_status |= vstor::kSrbAutosenseValid;
      return;
    }
  }
}

// Collects host memory in a request's vectors.
class VectorBuilder {
 public:
  explicit VectorBuilder(StorRequest& request) : request_(request), room_(request.short_vectors) {}

  // Appends, or lengthens the last where it goes on there. False where the request has no room for more.
  bool add(std::byte* host, std::uint64_t size) {
    if (count_ != 0) {
      iovec& last = room_[count_ - 1];
      if (static_cast<std::byte*>(last.iov_base) + last.iov_len == host) {
        last.iov_len += size;
        return true;
      }
    }
    if (count_ == room_.size()) {
      if (room_.data() == request_.long_vectors.data()) return false;
      std::copy(room_.begin(), room_.end(), request_.long_vectors.begin());
      room_ = request_.long_vectors;
    }
    room_[count_++] = {host, size};
    return true;
  }
  [[nodiscard]] std::span<iovec> built() const { return room_.first(count_); }

 private:
  StorRequest& request_;
  std::span<iovec> room_;
  std::size_t count_ = 0;
};

// Cuts `buffers` to their first `length` bytes.
std::span<iovec> first_bytes(std::span<iovec> buffers, std::uint32_t length) {
  std::size_t left = length;
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    if (left <= buffers[i].iov_len) {
      buffers[i].iov_len = left;
      return buffers.first(left == 0 ? i : i + 1);
    }
    left -= buffers[i].iov_len;
  }
  return buffers;
}

}  // namespace

void StorRequest::disk_done(int error) noexcept {
  channel->disk_done(*this, error);
}

StorChannel::StorChannel(ControllerState& state, OfferSubChannels offer_sub_channels)
    : state_(state),
      offer_sub_channels_(std::move(offer_sub_channels)),
      primary_(true),
      session_(state.limits) {}

StorChannel::StorChannel(ControllerState& state, std::uint16_t version)
    : state_(state), primary_(false), session_(state.limits, version) {}

StorChannel::~StorChannel() {
  VMBUSD_ASSERT(outstanding_.empty());
}

void StorChannel::start(devices::Channel& channel) {
  channel_ = &channel;
  if (Result<void> allocated = allocate(); !allocated) {
    broken_ = allocated.error();
    return;
  }
  for (std::size_t lun = 0; lun < kLunSlots; ++lun) {
    if (state_.luns[lun].disk == nullptr) continue;
    queues_[lun] = state_.luns[lun].disk->open_queue(channel.worker());
    luns_ |= std::uint64_t{1} << lun;
  }
}

Result<void> StorChannel::allocate() {
  const std::size_t count =
      std::clamp(channel_->incoming().size() / kSmallestIoPacket, kRequestsMin, kRequestsMax);
  const std::size_t vectors = segments_max(state_.limits.max_transfer_bytes);
  VMBUSD_CHECK(vector_memory_.reserve(count * vectors * sizeof(iovec)));
  auto* const vector_memory = reinterpret_cast<iovec*>(vector_memory_.data());
  segments_.resize(vectors);
  requests_ = std::make_unique<StorRequest[]>(count);
  for (std::size_t i = 0; i < count; ++i) {
    requests_[i].channel = this;
    requests_[i].long_vectors = {vector_memory + i * vectors, vectors};
    free_.push_back(requests_[i]);
  }
  return {};
}

Result<bool> StorChannel::service(std::uint32_t budget) {
  if (broken_) return tl::unexpected<Error>(*broken_);
  bool worked = !answers_.empty();
  for (std::uint32_t i = 0; i < budget; ++i) {
    // A guest that does not read its answers gets no new ones.
    if (!answers_.empty()) {
      VMBUSD_TRY(const bool written, write_waiting_answers());
      if (!written) break;
    }
    if (free_.empty()) break;
    VMBUSD_TRY(const ring::Packet* const packet, channel_->incoming().next());
    if (!packet) return worked;
    receive(*packet);
    if (broken_) return tl::unexpected<Error>(*broken_);
    worked = true;
  }
  if (!answers_.empty()) {
    VMBUSD_TRY(const bool written, write_waiting_answers());
    if (!written) worked = false;
  }
  if (free_.empty() || !answers_.empty()) channel_->stall();
  return worked;
}

void StorChannel::stop() {
  for (List* const list : {&answers_, &resets_}) {
    while (!list->empty()) {
      StorRequest& request = list->front();
      list->pop_front();
      release(request);
    }
  }
  for (const std::unique_ptr<DiskQueue>& queue : queues_) {
    if (queue != nullptr) queue->cancel();
  }
}

void StorChannel::receive(const ring::Packet& packet) {
  if (packet.type != ring::PacketType::kInband && packet.type != ring::PacketType::kGpaDirect) {
    channel_->log().guest("dropped a packet of type {}", static_cast<std::uint16_t>(packet.type));
    return;
  }
  StorRequest& request = free_.front();
  free_.pop_front();
  request.transaction_id = packet.transaction_id;
  request.answer_wanted = packet.completion_requested;
  request.sequence = next_sequence_++;
  const std::size_t known = session_.version() != 0 ? session_.packet_size() : sizeof request.packet;
  const std::size_t size = std::min<std::size_t>(packet.payload_size, known);
  if (size < sizeof request.packet) request.packet = {};
  channel_->incoming().read_payload(packet, 0, wire_bytes_writable(request.packet).first(size));

  const VstorSession::Outcome outcome =
      session_.receive(request.packet.header,
                       wire_bytes_writable(request.packet.srb).first<sizeof request.packet.srb>(), size);
  request.answer_size = static_cast<std::uint32_t>(outcome.answer_size);
  switch (outcome.next) {
    case VstorSession::Next::kExecute:
      execute(request, packet);
      return;
    case VstorSession::Next::kReset:
      reset(request);
      return;
    case VstorSession::Next::kAnswer:
      break;
  }
  // release: pairs with the acquire in Controller::open(), which opens sub-channels from here on.
  if (primary_ && session_.ready()) state_.ready_version.store(session_.version(), std::memory_order_release);
  answer(request);
  if (outcome.sub_channels_granted != 0) offer_sub_channels_(outcome.sub_channels_granted);
}

void StorChannel::execute(StorRequest& request, const ring::Packet& packet) {
  vstor::Srb& srb = request.packet.srb;
  ScsiCommand command;
  command.direction = direction_of(srb);
  if (srb.cdb_length > vstor::kCdbSizeMax ||
      (command.direction != DataDirection::kNone &&
       !map_buffer(request, packet, srb.data_transfer_length, command.direction == DataDirection::kIn))) {
    complete_invalid(request.packet);
    return answer(request);
  }
  std::copy_n(srb.cdb_or_sense.begin(), command.cdb.size(), command.cdb.begin());
  command.cdb_length = srb.cdb_length;
  if (command.direction != DataDirection::kNone) {
    command.data_length = srb.data_transfer_length;
    command.data = request.buffers;
  }

  const bool here = srb.path_id == 0 && srb.target_id == 0;
  ScsiResult result;
  if (!here || srb.lun >= kLunSlots || (luns_ >> srb.lun & 1) == 0) {
    command.target_luns = here ? luns_ : 0;
    if (execute_without_lun(command, result)) {
      complete_scsi(request.packet, result);
    } else {
      complete_absent(request.packet);
    }
    return answer(request);
  }

  command.target_luns = luns_;
  if (state_.luns[srb.lun].unit->execute(command, result, request.io) == ScsiNext::kComplete) {
    complete_scsi(request.packet, result);
    return answer(request);
  }
  if (request.io.length != command.data_length) {
    request.buffers = first_bytes(request.buffers, request.io.length);
  }
  outstanding_.push_back(request);
  channel_->begin_op();
  queues_[srb.lun]->submit(request);
}

bool StorChannel::map_buffer(StorRequest& request, const ring::Packet& packet, std::uint32_t length,
                             bool writable) {
  if (packet.type != ring::PacketType::kGpaDirect) return false;
  const auto segments_size = static_cast<std::uint32_t>(segments_.size());
  const Result<ring::GpaList> list = ring::read_gpa_list(channel_->incoming(), packet, segments_size,
                                                         state_.limits.max_transfer_bytes, segments_);
  if (!list || list->total_bytes < length) return false;

  const partition::GuestMemory& memory = channel_->memory();
  const auto translate = [&memory, writable](std::uint64_t gpa, std::uint64_t size) {
    return writable ? memory.translate_writable(gpa, size) : memory.translate(gpa, size);
  };
  VectorBuilder builder(request);
  std::uint64_t left = length;
  for (const ring::GpaSegment& segment : std::span(segments_).first(list->segments)) {
    const std::uint64_t size = std::min(segment.size, left);
    if (std::byte* const host = translate(segment.gpa, size); host != nullptr) {
      if (!builder.add(host, size)) return false;
    } else {
      // It may go on from one region to the next, which begin and end with pages.
      for (std::uint64_t at = 0; at < size;) {
        const std::uint64_t gpa = segment.gpa + at;
        const std::uint64_t piece = std::min(size - at, kPageSize - gpa % kPageSize);
        std::byte* const piece_host = translate(gpa, piece);
        if (piece_host == nullptr || !builder.add(piece_host, piece)) return false;
        at += piece;
      }
    }
    left -= size;
    if (left == 0) break;
  }
  request.buffers = builder.built();
  return true;
}

// Outstanding requests are finished, not aborted, and then the reset is answered: no request is left behind
// that could still move data. [reference: storvsp 4.3]
void StorChannel::reset(StorRequest& request) {
  resets_.push_back(request);
  finish_resets();
}

void StorChannel::finish_resets() {
  for (auto next = resets_.begin(); next != resets_.end();) {
    StorRequest& request = *next++;
    const vstor::Srb& scope = request.packet.srb;
    const bool one_lun = request.packet.header.operation == Operation::kResetLun;
    const bool waits = std::any_of(outstanding_.begin(), outstanding_.end(), [&](const StorRequest& other) {
      return other.sequence < request.sequence && (!one_lun || other.packet.srb.lun == scope.lun);
    });
    if (waits) continue;
    resets_.erase(resets_.iterator_to(request));
    complete(request.packet, Status::kSuccess, SrbStatus::kSuccess, scsi::Status::kGood, 0);
    answer(request);
  }
}

void StorChannel::disk_done(StorRequest& request, int error) {
  outstanding_.erase(outstanding_.iterator_to(request));
  if (channel_->stopping()) {
    release(request);
  } else {
    if (error == 0) {
      complete(request.packet, Status::kSuccess, SrbStatus::kSuccess, scsi::Status::kGood, request.io.length);
    } else {
      fail(request, error);
    }
    answer(request);
    if (!resets_.empty()) finish_resets();
  }
  channel_->end_op();
}

void StorChannel::fail(StorRequest& request, int error) {
  const std::uint8_t lun = request.packet.srb.lun;
  const DiskIo& io = request.io;
  const std::string cause = describe(Error{Errc::kOs, error, "failed"});
  if (io.op == DiskOp::kFlush) {
    channel_->log().guest("LUN {}: flush {}", lun, cause);
  } else {
    channel_->log().guest("LUN {}: {} of {} bytes at {} {}", lun, io.op == DiskOp::kRead ? "read" : "write",
                          io.length, io.offset, cause);
  }
  ScsiResult result;
  LogicalUnit::finish(io, error, result);
  complete_scsi(request.packet, result);
}

void StorChannel::answer(StorRequest& request) {
  if (!request.answer_wanted) return release(request);
  if (answers_.empty()) {
    const Result<bool> written = write_answer(request);
    if (written && *written) return release(request);
    if (!written) {
      broken_ = written.error();
      channel_->activate();
      return release(request);
    }
  }
  answers_.push_back(request);
}

Result<bool> StorChannel::write_answer(const StorRequest& request) {
  ring::PacketToWrite packet;
  packet.type = ring::PacketType::kCompletion;
  packet.transaction_id = request.transaction_id;
  packet.payload = wire_bytes(request.packet).first(request.answer_size);
  return channel_->outgoing().write(packet);
}

Result<bool> StorChannel::write_waiting_answers() {
  ring::OutgoingRing& outgoing = channel_->outgoing();
  while (!answers_.empty()) {
    StorRequest& request = answers_.front();
    VMBUSD_TRY(const bool written, write_answer(request));
    if (!written) {
      VMBUSD_TRY(const bool armed,
                 outgoing.arm_space(ring::OutgoingRing::packet_size(0, request.answer_size)));
      if (armed) return false;
      continue;
    }
    answers_.pop_front();
    release(request);
  }
  if (outgoing.space_armed()) outgoing.clear_space();
  return true;
}

}  // namespace vmbusd::storvsp
