#include "storvsp/stor_channel.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "base/probes.h"

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
// Operations of one job that may end at once, one after the other, before others have their turn.
constexpr int kInlineStepsMax = 64;

std::uint32_t segments_max(std::uint32_t transfer_bytes) {
  return transfer_bytes / static_cast<std::uint32_t>(kPageSize) + 1 + kExtraSegments;
}

const char* name_of(DiskOp op) {
  switch (op) {
    case DiskOp::kRead:
      return "read";
    case DiskOp::kWrite:
      return "write";
    case DiskOp::kFlush:
      return "flush";
    case DiskOp::kDiscard:
      return "discard";
    case DiskOp::kZero:
      return "zeroing";
    case DiskOp::kMap:
      return "mapping";
    case DiskOp::kKeep:
      return "keeping of reservations";
  }
  return "operation";
}

DataDirection direction_of(const vstor::Srb& srb) {
  if (srb.data_transfer_length == 0) return DataDirection::kNone;
  if (srb.data_in == DataIn::kRead) return DataDirection::kIn;
  if (srb.data_in == DataIn::kWrite) return DataDirection::kOut;
  if ((srb.srb_flags & vstor::kSrbFlagDataIn) != 0) return DataDirection::kIn;
  if ((srb.srb_flags & vstor::kSrbFlagDataOut) != 0) return DataDirection::kOut;
  return DataDirection::kNone;
}

// Bit n: a reset is for LUN n.
std::uint64_t scope_of(const vstor::SrbPacket& packet) {
  if (packet.header.operation != Operation::kResetLun) return ~std::uint64_t{0};
  return packet.srb.lun < kLunSlots ? std::uint64_t{1} << packet.srb.lun : 0;
}

// Statuses in the combinations that drivers understand. [reference: storvsp 4.2]
void complete(StorSlot& slot, Status status, SrbStatus srb_status, scsi::Status scsi_status,
              std::uint32_t transferred) {
  slot.mark(StorSlot::kAnswering);
  vstor::SrbPacket& packet = slot.packet;
  packet.header = {Operation::kCompleteIo, 0, status};
  packet.srb.srb_status = static_cast<std::uint8_t>(srb_status);
  packet.srb.scsi_status = static_cast<std::uint8_t>(scsi_status);
  packet.srb.sense_info_length = 0;
  packet.srb.data_transfer_length = transferred;
}

// A failing SRB status needs a failing SCSI status beside it: Linux up to 6.1 takes some for success
// otherwise. [linux: storvsc_drv.c, storvsc_handle_error]
void complete_invalid(StorSlot& slot) {
  complete(slot, Status::kInvalidDeviceRequest, SrbStatus::kInvalidRequest, scsi::Status::kCheckCondition, 0);
}

void complete_absent(StorSlot& slot) {
  complete(slot, Status::kNoSuchDevice, SrbStatus::kInvalidLun, scsi::Status::kCheckCondition, 0);
}

void complete_aborted(StorSlot& slot) {
  complete(slot, Status::kCancelled, SrbStatus::kAborted, scsi::Status::kCheckCondition, 0);
}

void complete_scsi(StorSlot& slot, const ScsiResult& result) {
  switch (result.status) {
    case scsi::Status::kGood:
      complete(slot, Status::kSuccess, SrbStatus::kSuccess, result.status, result.transferred);
      return;
    case scsi::Status::kBusy:
      complete(slot, Status::kDeviceBusy, SrbStatus::kBusy, result.status, 0);
      return;
    default: {
      vstor::SrbPacket& packet = slot.packet;
      const std::size_t room = std::min<std::size_t>(packet.srb.sense_info_length, vstor::kSenseSizeMax);
      complete(slot, Status::kIoDeviceError, SrbStatus::kError, result.status, 0);
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

void count(const DiskIo& io, devices::IoCounters& counters) {
  switch (io.op) {
    case DiskOp::kRead:
      ++counters.reads;
      counters.read_bytes += io.length;
      break;
    case DiskOp::kWrite:
      ++counters.writes;
      counters.written_bytes += io.length;
      break;
    case DiskOp::kFlush:
      ++counters.flushes;
      break;
    case DiskOp::kDiscard:
    case DiskOp::kZero:
    case DiskOp::kMap:
    case DiskOp::kKeep:
      break;
  }
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
  for (std::uint8_t lun = 0; lun < kLunSlots; ++lun) {
    if (state_.luns[lun].served()) open_queue(lun);
  }
  state_.channels.add(*this, channel.worker());
  if (primary_) state_.region = channel.shared_region();
  if (channel.recovered()) return;
  record_->slots = static_cast<std::uint32_t>(count_);
  record_->segments_max = static_cast<std::uint32_t>(segments_.size());
  record_->session = session_.save();
  if (!primary_) return;
  for (std::uint8_t lun = 0; lun < kLunSlots; ++lun) {
    record_->media[lun] = state_.luns[lun].medium_served();
    if (state_.luns[lun].served()) state_.lun_records()[lun] = state_.luns[lun].unit->save();
  }
}

void StorChannel::open_queue(std::uint8_t lun) {
  disks_[lun] = state_.luns[lun].disk;
  queues_[lun] = disks_[lun]->open_queue(channel_->worker());
  luns_ |= std::uint64_t{1} << lun;
}

Result<void> StorChannel::allocate() {
  const std::size_t count =
      std::clamp(channel_->incoming().size() / kSmallestIoPacket, kRequestsMin, kRequestsMax);
  const std::size_t vectors = segments_max(state_.limits.max_transfer_bytes);
  count_ = count;
  const std::span<std::byte> region = channel_->region();
  const std::size_t long_at = sizeof(StorRecord) + count * sizeof(StorSlot);
  VMBUSD_ASSERT(long_at + count * vectors * sizeof(ring::GpaSegment) <= region.size());
  record_ = reinterpret_cast<StorRecord*>(region.data());
  auto* const slots = reinterpret_cast<StorSlot*>(region.data() + sizeof(StorRecord));
  long_segments_ = reinterpret_cast<ring::GpaSegment*>(region.data() + long_at);
  VMBUSD_CHECK(vector_memory_.reserve(count * vectors * sizeof(iovec)));
  auto* const vector_memory = reinterpret_cast<iovec*>(vector_memory_.data());
  segments_.resize(vectors);
  requests_ = std::make_unique<StorRequest[]>(count);
  for (std::size_t i = 0; i < count; ++i) {
    requests_[i].channel = this;
    requests_[i].slot = &slots[i];
    requests_[i].long_vectors = {vector_memory + i * vectors, vectors};
    free_.push_back(requests_[i]);
  }
  VMBUSD_CHECK(job_memory_.reserve(kJobs * ScsiJob::kScratchBytes));
  for (std::size_t i = 0; i < kJobs; ++i) {
    jobs_[i].scsi.scratch = job_memory_.data() + i * ScsiJob::kScratchBytes;
    jobs_[i].next_free = std::exchange(free_job_, &jobs_[i]);
  }
  return {};
}

Result<bool> StorChannel::service(std::uint32_t budget) {
  if (broken_) return tl::unexpected<Error>(*broken_);
  bool worked = waits();
  for (std::uint32_t i = 0; i < budget; ++i) {
    // A guest that does not read its answers gets no new ones.
    if (waits()) {
      VMBUSD_TRY(const bool written, write_waiting());
      if (!written) break;
    }
    if (full()) break;
    VMBUSD_TRY(const ring::Packet* const packet, channel_->incoming().next());
    if (!packet) return worked;
    receive(*packet);
    if (broken_) return tl::unexpected<Error>(*broken_);
    worked = true;
  }
  if (waits()) {
    VMBUSD_TRY(const bool written, write_waiting());
    if (!written) worked = false;
  }
  // Those that were answered are free again when that is published.
  if ((full() && answered_.empty()) || waits()) channel_->stall();
  return worked;
}

void StorChannel::published() {
  free_.splice(free_.begin(), answered_);
  if (notice_written_) [[unlikely]] {
    notice_written_ = false;
    // What has changed since it was written is still to be told.
    if (record_->notices_due == notices_told_) record_->notices_due = 0;
  }
}

void StorChannel::stop() {
  for (List* const list : {&answers_, &resets_}) {
    while (!list->empty()) {
      StorRequest& request = list->front();
      list->pop_front();
      release(request);
    }
  }
  while (!held_.empty()) {
    StorRequest& request = held_.front();
    held_.pop_front();
    release(request);
    channel_->end_op();
  }
  for (const std::unique_ptr<DiskQueue>& queue : queues_) {
    if (queue != nullptr) queue->cancel();
  }
  leave_when_idle();
}

void StorChannel::receive(const ring::Packet& packet) {
  if (packet.type != ring::PacketType::kInband && packet.type != ring::PacketType::kGpaDirect) {
    channel_->log().guest("dropped a packet of type {}", static_cast<std::uint16_t>(packet.type));
    return;
  }
  StorRequest& request = free_.front();
  free_.pop_front();
  StorSlot& slot = *request.slot;
  slot.transaction_id = packet.transaction_id;
  slot.answer_wanted = packet.completion_requested() ? 1 : 0;
  slot.sequence = next_sequence_++;
  slot.taken = channel_->publications().releases + 1;
  slot.segments = 0;
  slot.compared = 0;
  request.aborted = false;
  request.bytes = 0;
  request.job = nullptr;
  const std::size_t known = session_.version() != 0 ? session_.packet_size() : sizeof slot.packet;
  const std::size_t size = std::min<std::size_t>(packet.payload_size, known);
  if (size < sizeof slot.packet) slot.packet = {};
  channel_->incoming().read_payload(packet, 0, wire_bytes_writable(slot.packet).first(size));

  const VstorSession::Outcome outcome = session_.receive(
      slot.packet.header, wire_bytes_writable(slot.packet.srb).first<sizeof slot.packet.srb>(), size);
  slot.answer_size = static_cast<std::uint8_t>(outcome.answer_size);
  switch (outcome.next) {
    case VstorSession::Next::kExecute:
      VMBUSD_PROBE(disk_request, &request, slot.packet.srb.lun, slot.packet.srb.cdb_or_sense[0],
                   slot.packet.srb.data_transfer_length);
      execute(request, packet);
      return;
    case VstorSession::Next::kReset:
      count_reset(scope_of(slot.packet), true);
      slot.mark(StorSlot::kInHand);
      reset(request);
      return;
    case VstorSession::Next::kAnswer:
      break;
  }
  channel_->begin_change();
  record_->session = session_.save();
  // release: pairs with the acquire in Controller::open(), which opens sub-channels from here on.
  if (primary_ && session_.ready()) state_.ready_version.store(session_.version(), std::memory_order_release);
  answer(request);
  if (outcome.sub_channels_granted != 0) offer_sub_channels_(outcome.sub_channels_granted);
}

// Whatever command the packet holds, its buffer being mapped. Again for one that was held. Inline because it
// is on every I/O's path, and that path calls it once.
[[gnu::always_inline]] inline void StorChannel::run(StorRequest& request, DataDirection direction) {
  const vstor::Srb& srb = request.slot->packet.srb;
  ScsiCommand command;
  command.direction = direction;
  std::copy_n(srb.cdb_or_sense.begin(), command.cdb.size(), command.cdb.begin());
  command.cdb_length = srb.cdb_length;
  if (direction != DataDirection::kNone) {
    command.data_length = srb.data_transfer_length;
    command.data = request.buffers;
  }

  const bool here = srb.path_id == 0 && srb.target_id == 0;
  ScsiResult result;
  if (!here || srb.lun >= kLunSlots || (luns_ >> srb.lun & 1) == 0) {
    command.target_luns = here ? luns_ : 0;
    if (execute_without_lun(command, result)) {
      complete_scsi(*request.slot, result);
    } else {
      complete_absent(*request.slot);
    }
    return answer(request);
  }

  command.target_luns = luns_;
  const ScsiNext next = state_.luns[srb.lun].unit->execute(command, result, request.io);
  if (next == ScsiNext::kComplete) {
    record_lun(srb.lun);
    complete_scsi(*request.slot, result);
    return answer(request);
  }
  if (next != ScsiNext::kDisk) return run_job(request, command, next);
  if (request.io.length != command.data_length) {
    request.buffers = first_bytes(request.buffers, request.io.length);
  }
  outstanding_.push_back(request);
  channel_->begin_op();
  VMBUSD_PROBE(disk_submit, &request, request.io.op, request.io.offset, request.io.length);
  queues_[srb.lun]->submit(request);
}

void StorChannel::execute(StorRequest& request, const ring::Packet& packet) {
  const vstor::Srb& srb = request.slot->packet.srb;
  const DataDirection direction = direction_of(srb);
  const bool mapped = direction == DataDirection::kNone ||
                      map_buffer(request, packet, srb.data_transfer_length, direction == DataDirection::kIn);
  request.slot->mark(StorSlot::kInHand);
  execute(request, direction, mapped);
}

[[gnu::always_inline]] inline void StorChannel::execute(StorRequest& request, DataDirection direction,
                                                        bool mapped) {
  if (request.slot->packet.srb.cdb_length > vstor::kCdbSizeMax || !mapped) {
    complete_invalid(*request.slot);
    return answer(request);
  }
  run(request, direction);
}

// Where the slot keeps so many segments.
inline std::span<ring::GpaSegment> StorChannel::segments_of(const StorRequest& request, std::uint32_t count) {
  if (count <= StorSlot::kShortSegments) return std::span(request.slot->short_segments).first(count);
  const auto index = static_cast<std::size_t>(&request - requests_.get());
  return {long_segments_ + index * segments_.size(), count};
}

bool StorChannel::map_buffer(StorRequest& request, const ring::Packet& packet, std::uint32_t length,
                             bool writable) {
  if (packet.type != ring::PacketType::kGpaDirect) return false;
  const auto segments_size = static_cast<std::uint32_t>(segments_.size());
  const Result<ring::GpaList> list = ring::read_gpa_list(channel_->incoming(), packet, segments_size,
                                                         state_.limits.max_transfer_bytes, segments_);
  if (!list || list->total_bytes < length) return false;
  const std::span<const ring::GpaSegment> segments = std::span(segments_).first(list->segments);
  std::copy(segments.begin(), segments.end(), segments_of(request, list->segments).begin());
  request.slot->segments = list->segments;
  return map_segments(request, segments, length, writable);
}

[[gnu::always_inline]] inline bool StorChannel::map_segments(StorRequest& request,
                                                             std::span<const ring::GpaSegment> segments,
                                                             std::uint32_t length, bool writable) {
  const partition::GuestMemory& memory = channel_->memory();
  const auto translate = [&memory, writable](std::uint64_t gpa, std::uint64_t size) {
    return writable ? memory.translate_writable(gpa, size) : memory.translate(gpa, size);
  };
  VectorBuilder builder(request);
  std::uint64_t left = length;
  for (const ring::GpaSegment& segment : segments) {
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
  if (left != 0) return false;
  request.buffers = builder.built();
  request.bytes = length;
  bytes_in_hand_ += length;
  return true;
}

// What a command may have changed of a LUN, for another worker process. The guest is told no earlier than
// that is recorded whole.
void StorChannel::record_lun(std::uint8_t lun) {
  LunRecord& record = state_.lun_records()[lun];
  const LunRecord now = state_.luns[lun].unit->save();
  if (record == now) return;
  channel_->begin_change();
  record = now;
}

// Recovery.

Result<void> StorChannel::recover() {
  if (broken_) return tl::unexpected<Error>(*broken_);
  if (record_->slots != count_ || record_->segments_max != segments_.size()) {
    return vmbusd::fail(Errc::kProtocol, "a storage channel of another size");
  }
  VMBUSD_CHECK(session_.restore(record_->session));
  if (primary_) {
    VMBUSD_CHECK(recover_luns());
    // release: as in receive().
    if (session_.ready()) state_.ready_version.store(session_.version(), std::memory_order_release);
  }

  std::vector<StorRequest*> in_hand;
  for (std::size_t i = 0; i < count_; ++i) {
    StorRequest& request = requests_[i];
    StorSlot& slot = *request.slot;
    // Not there, or seen by the guest as answered, or still in the guest's ring.
    if (slot.answered <= channel_->publications().commits || slot.taken > channel_->publications().releases) {
      slot.mark(StorSlot::kFree);
      continue;
    }
    if (slot.answer_size != session_.packet_size() || slot.segments > segments_.size() ||
        slot.answer_wanted > 1) {
      return vmbusd::fail(Errc::kProtocol, "a storage request that cannot be");
    }
    free_.erase(free_.iterator_to(request));
    next_sequence_ = std::max(next_sequence_, slot.sequence + 1);
    request.aborted = false;
    request.bytes = 0;
    request.job = nullptr;
    if (slot.answered == StorSlot::kInHand) {
      in_hand.push_back(&request);
      continue;
    }
    if (slot.answered == StorSlot::kAnswering) {
      // It is over, but how is lost. So it was not, for the guest, which tries again.
      complete(slot, Status::kDeviceBusy, SrbStatus::kBusy, scsi::Status::kBusy, 0);
    }
    slot.mark(StorSlot::kWaiting);
    answers_.push_back(request);
  }
  // Commands that are in the target at the same time have no order, but those that must be alone keep their
  // place.
  std::sort(in_hand.begin(), in_hand.end(),
            [](const StorRequest* a, const StorRequest* b) { return a->slot->sequence < b->slot->sequence; });
  for (StorRequest* const request : in_hand) VMBUSD_CHECK(redo(*request));
  return {};
}

// Disks may have come and gone since the last process heard of any.
Result<void> StorChannel::recover_luns() {
  const std::span<LunRecord, kLunSlots> records = state_.lun_records();
  bool changed = false;
  bool grown = false;
  for (std::uint8_t lun = 0; lun < kLunSlots; ++lun) {
    const ControllerState::Lun& now = state_.luns[lun];
    const MediumRecord medium = now.medium_served();
    const MediumRecord recorded = std::exchange(record_->media[lun], medium);
    if (std::exchange(record_->resets[lun], 0) != 0) state_.resets_left |= std::uint64_t{1} << lun;
    const bool same_disk = now.served() && now.unit->is_of(records[lun]);
    // The guest would write into the other what is meant for the one, from its cache at the latest.
    if (medium.size_bytes != 0 && recorded.size_bytes != 0 &&
        (recorded.device != medium.device || recorded.inode != medium.inode ||
         (same_disk && recorded.size_bytes > medium.size_bytes))) {
      return vmbusd::fail(Errc::kProtocol, "a LUN has another image than before");
    }
    if (same_disk) {
      VMBUSD_CHECK(now.unit->restore(records[lun]));
      grown = grown || records[lun].size_bytes != now.unit->geometry().size_bytes;
    } else if (now.served() || records[lun].incarnation != 0) {
      changed = true;
      state_.replaced_luns |= std::uint64_t{1} << lun;
    }
  }
  for (std::uint8_t lun = 0; lun < kLunSlots; ++lun) {
    const ControllerState::Lun& now = state_.luns[lun];
    if (changed && now.served()) now.unit->raise(UnitAttention::kReportedLunsChanged);
    records[lun] = now.served() ? now.unit->save() : LunRecord{};
  }
  if (changed || grown || record_->notices_due != 0) tell_guest_of_luns();
  return {};
}

Result<void> StorChannel::redo(StorRequest& request) {
  const vstor::Srb& srb = request.slot->packet.srb;
  switch (request.slot->packet.header.operation) {
    case Operation::kExecuteSrb:
      // The reset was to end it, or is given leave to: it is answered now, when some of the channels whose
      // requests came before it are not there yet.
      if (srb.lun < kLunSlots && (state_.resets_left >> srb.lun & 1) != 0) {
        complete_aborted(*request.slot);
        answer(request);
        return {};
      }
      break;
    case Operation::kResetLun:
    case Operation::kResetAdapter:
    case Operation::kResetBus:
      count_reset(scope_of(request.slot->packet), true);
      reset(request);
      return {};
    default:
      return vmbusd::fail(Errc::kProtocol, "a storage request that would not have been kept");
  }
  if (srb.lun < kLunSlots && (state_.replaced_luns >> srb.lun & 1) != 0) {
    complete_absent(*request.slot);
    answer(request);
    return {};
  }
  const DataDirection direction = direction_of(srb);
  const bool mapped = direction == DataDirection::kNone ||
                      (srb.data_transfer_length <= state_.limits.max_transfer_bytes &&
                       map_segments(request, segments_of(request, request.slot->segments),
                                    srb.data_transfer_length, direction == DataDirection::kIn));
  execute(request, direction, mapped);
  return {};
}

// Answered when every channel of the controller is done with what it had in hand for these LUNs: what could
// be stopped ended as aborted, what the medium had begun has ended as it did. So nothing that came before the
// reset moves data after its answer.
void StorChannel::reset(StorRequest& request) {
  resets_.push_back(request);
  const std::uint64_t luns = scope_of(request.slot->packet);
  channel_->begin_op();
  state_.channels.meet(
      *this, channel_->worker(),
      [luns](StorChannel& channel, const std::shared_ptr<Barrier>& barrier) { channel.abort(luns, barrier); },
      [this, &request, luns] { finish_reset(request, luns); });
}

// For another worker process: before a reset is in hand, and when what came before it has ended.
void StorChannel::count_reset(std::uint64_t luns, bool begins) {
  for (; luns != 0; luns &= luns - 1) {
    // Relaxed: other channels count theirs, and who reads comes when all are dead.
    std::atomic_ref(state_.record().resets[static_cast<std::size_t>(std::countr_zero(luns))])
        .fetch_add(begins ? 1 : ~std::uint32_t{0}, std::memory_order_relaxed);
  }
}

void StorChannel::finish_reset(StorRequest& request, std::uint64_t luns) {
  count_reset(luns, false);
  if (!channel_->stopping()) {
    const bool one_lun = request.slot->packet.header.operation == Operation::kResetLun;
    for (std::uint8_t lun = 0; lun < kLunSlots; ++lun) {
      if (((luns & luns_) >> lun & 1) == 0) continue;
      state_.luns[lun].unit->reset_by_guest(one_lun ? UnitAttention::kLogicalUnitReset
                                                    : UnitAttention::kBusReset);
      record_lun(lun);
    }
    resets_.erase(resets_.iterator_to(request));
    complete(*request.slot, Status::kSuccess, SrbStatus::kSuccess, scsi::Status::kGood, 0);
    answer(request);
  }
  channel_->end_op();
}

void StorChannel::abort(std::uint64_t luns, const std::shared_ptr<Barrier>& barrier) {
  drains_.push_back({luns, next_sequence_, nullptr, barrier});
  for (auto next = held_.begin(); next != held_.end();) {
    StorRequest& request = *next++;
    if ((luns >> request.slot->packet.srb.lun & 1) == 0) continue;
    held_.erase(held_.iterator_to(request));
    complete_aborted(*request.slot);
    answer(request);
    channel_->end_op();
  }
  for (StorRequest& request : outstanding_) {
    if (request.aborted || (luns >> request.slot->packet.srb.lun & 1) == 0) continue;
    request.aborted = true;
    request.abort_due = request.job == nullptr || request.job->begun;
  }
  // Not by the list: one that ends at once may take others off it with it, such as a job that waited for it.
  for (std::size_t i = 0; i < count_; ++i) {
    StorRequest& request = requests_[i];
    if (std::exchange(request.abort_due, false)) queues_[request.slot->packet.srb.lun]->abort(request);
  }
  finish_drains();
}

void StorChannel::finish_drains() {
  for (std::size_t i = 0; i < drains_.size();) {
    const Drain& drain = drains_[i];
    const bool waits = std::any_of(outstanding_.begin(), outstanding_.end(), [&](const StorRequest& request) {
      return request.slot->sequence < drain.sequence && &request != drain.except &&
             (drain.luns >> request.slot->packet.srb.lun & 1) != 0;
    });
    if (waits) {
      ++i;
      continue;
    }
    // Arriving may have this channel begin another.
    const std::shared_ptr<Barrier> barrier = drain.barrier;
    drains_.erase(drains_.begin() + static_cast<std::ptrdiff_t>(i));
    barrier->arrive(this);
  }
}

// Changes of LUNs.

void StorChannel::add_lun(std::uint8_t lun) {
  if (!channel_->stopping() && queues_[lun] == nullptr && state_.luns[lun].served()) open_queue(lun);
}

void StorChannel::stop_lun(std::uint8_t lun, const std::shared_ptr<Barrier>& barrier) {
  luns_ &= ~(std::uint64_t{1} << lun);
  abort(std::uint64_t{1} << lun, barrier);
}

void StorChannel::drop_lun(std::uint8_t lun) {
  if (queues_[lun] == nullptr) return;
  queues_[lun]->cancel();
  queues_[lun].reset();
  disks_[lun].reset();
}

void StorChannel::limit_lun(std::uint8_t lun) {
  const ControllerState::Lun& now = state_.luns[lun];
  if (queues_[lun] == nullptr || channel_->stopping()) return;
  if (disks_[lun] == now.disk) return queues_[lun]->limits_changed();
  queues_[lun] = now.limited->limit(std::move(queues_[lun]), channel_->worker());
  disks_[lun] = now.disk;
}

// A guest that is not ready yet has still to look for its LUNs.
void StorChannel::tell_guest_of_luns() {
  if (!primary_ || channel_->stopping() || !session_.ready()) return;
  if (record_->notices_due == 0) record_->notices_due = 1;
  if (session_.version() < vstor::kVersionWin7) return;  // knows no such packet
  notice_waits_ = true;
  channel_->activate();
}

// From here on other channels do not wait for this one.
void StorChannel::leave_when_idle() {
  if (outstanding_.empty()) state_.channels.remove(*this);
}

void StorChannel::disk_done(StorRequest& request, int error) {
  VMBUSD_PROBE(disk_done, &request, error);
  if (request.job != nullptr) return job_disk_done(request, error);
  leave_outstanding(request);
  if (channel_->stopping()) {
    release(request);
    leave_when_idle();
  } else {
    if (error == 0) {
      count(request.io, channel_->io_counters());
      complete(*request.slot, Status::kSuccess, SrbStatus::kSuccess, scsi::Status::kGood, request.io.length);
    } else if (request.aborted && error == ECANCELED) {
      complete_aborted(*request.slot);
    } else {
      ++channel_->io_counters().errors;
      fail(request, error);
    }
    answer(request);
  }
  if (!drains_.empty()) finish_drains();
  channel_->end_op();
}

void StorChannel::fail(StorRequest& request, int error) {
  log_failure(request, error);
  ScsiResult result;
  LogicalUnit::finish(request.io, error, result);
  complete_scsi(*request.slot, result);
}

void StorChannel::log_failure(const StorRequest& request, int error) {
  const DiskIo& io = request.io;
  channel_->log().guest("LUN {}: {} of {} bytes at {} {}", request.slot->packet.srb.lun, name_of(io.op),
                        io.length, io.offset, describe(Error{Errc::kOs, error, "failed"}));
}

// Jobs.

// What the LUN did not let begin, or what takes several operations.
void StorChannel::run_job(StorRequest& request, const ScsiCommand& command, ScsiNext next) {
  LogicalUnit& unit = *state_.luns[request.slot->packet.srb.lun].unit;
  const bool exclusive = next == ScsiNext::kExclusiveJob;
  if (next == ScsiNext::kHold || free_job_ == nullptr || (exclusive && !unit.try_exclusive())) {
    return hold(request);
  }
  StorJob& job = *std::exchange(free_job_, free_job_->next_free);
  job.exclusive = exclusive;
  job.begun = false;
  job.scsi.lun = &unit;
  job.scsi.command = command;
  job.scsi.compared = request.slot->compared != 0;
  request.job = &job;
  outstanding_.push_back(request);
  channel_->begin_op();
  if (!exclusive) return begin(request);
  const std::uint8_t lun = request.slot->packet.srb.lun;
  state_.channels.meet(
      *this, channel_->worker(),
      [lun, &request](StorChannel& channel, const std::shared_ptr<Barrier>& barrier) {
        channel.drain(lun, &request, barrier);
      },
      [this, &request] { begin(request); });
}

void StorChannel::hold(StorRequest& request) {
  held_.push_back(request);
  channel_->begin_op();
}

void StorChannel::retry_held() {
  List retried;
  retried.swap(held_);
  while (!retried.empty()) {
    StorRequest& request = retried.front();
    retried.pop_front();
    run(request, direction_of(request.slot->packet.srb));
    channel_->end_op();
  }
}

// Has the barrier wait for what is outstanding for a LUN.
void StorChannel::drain(std::uint8_t lun, const StorRequest* except,
                        const std::shared_ptr<Barrier>& barrier) {
  drains_.push_back({std::uint64_t{1} << lun, next_sequence_, except, barrier});
  finish_drains();
}

void StorChannel::begin(StorRequest& request) {
  StorJob& job = *request.job;
  job.begun = true;
  if (request.aborted || channel_->stopping()) return end_job(request, true);
  advance(request, begin_job(job.scsi, job.result));
}

// Goes on until the job's end, or until an operation takes its time.
void StorChannel::advance(StorRequest& request, ScsiNext next) {
  StorJob& job = *request.job;
  for (int step = 0; next == ScsiNext::kDisk; ++step) {
    if (request.aborted || channel_->stopping()) return end_job(request, true);
    if (step == kInlineStepsMax) {
      channel_->worker().post([this, &request] { advance(request, ScsiNext::kDisk); });
      return;
    }
    request.io = job.scsi.io;
    request.buffers = job.scsi.buffers;
    job.error.reset();
    job.in_submit = true;
    request.slot->compared = job.scsi.compared ? 1 : 0;
    queues_[request.slot->packet.srb.lun]->submit(request);
    job.in_submit = false;
    if (!job.error) return;
    next = continue_job(request, *job.error);
  }
  end_job(request, false);
}

ScsiNext StorChannel::continue_job(StorRequest& request, int error) {
  if (error != 0 && error != EOPNOTSUPP) log_failure(request, error);  // the latter has a way round
  request.job->scsi.extent = request.extent;
  return storvsp::continue_job(request.job->scsi, error, request.job->result);
}

void StorChannel::job_disk_done(StorRequest& request, int error) {
  StorJob& job = *request.job;
  if (job.in_submit) {
    job.error = error;
    return;
  }
  if (channel_->stopping() || (request.aborted && error == ECANCELED)) return end_job(request, true);
  advance(request, continue_job(request, error));
}

void StorChannel::end_job(StorRequest& request, bool aborted) {
  StorJob& job = *std::exchange(request.job, nullptr);
  const bool exclusive = job.exclusive;
  LogicalUnit& unit = *job.scsi.lun;
  leave_outstanding(request);
  if (channel_->stopping()) {
    release(request);
  } else {
    record_lun(request.slot->packet.srb.lun);
    if (aborted) {
      complete_aborted(*request.slot);
    } else {
      complete_scsi(*request.slot, job.result);
    }
    answer(request);
  }
  job.next_free = std::exchange(free_job_, &job);
  if (!drains_.empty()) finish_drains();
  if (exclusive) {
    unit.end_exclusive();
    state_.channels.tell(*this, [](StorChannel& channel) { channel.retry_held(); });
  } else if (!held_.empty()) {
    retry_held();
  }
  if (channel_->stopping()) leave_when_idle();
  channel_->end_op();
}

void StorChannel::answer(StorRequest& request) {
  VMBUSD_PROBE(disk_answer, &request, request.slot->packet.srb.srb_status);
  if (!request.slot->answer_wanted) return release(request);
  if (answers_.empty()) {
    const Result<bool> written = write_answer(request);
    if (written && *written) return answered(request);
    if (!written) {
      broken_ = written.error();
      channel_->activate();
      return release(request);
    }
  }
  request.slot->mark(StorSlot::kWaiting);
  answers_.push_back(request);
}

Result<bool> StorChannel::write_answer(const StorRequest& request) {
  ring::PacketToWrite packet;
  packet.type = ring::PacketType::kCompletion;
  packet.transaction_id = request.slot->transaction_id;
  packet.payload = wire_bytes(request.slot->packet).first(request.slot->answer_size);
  return channel_->outgoing().write(packet);
}

// [linux: storvsc_drv.c, storvsc_on_receive] A packet without a completion, by transaction id 0.
Result<bool> StorChannel::write_notice() {
  vstor::Packet notice{};
  notice.header.operation = Operation::kEnumerateBus;
  ring::PacketToWrite packet;
  packet.type = ring::PacketType::kInband;
  packet.payload = wire_bytes(notice).first(session_.packet_size());
  return channel_->outgoing().write(packet);
}

Result<bool> StorChannel::write_waiting() {
  ring::OutgoingRing& outgoing = channel_->outgoing();
  while (!answers_.empty()) {
    StorRequest& request = answers_.front();
    VMBUSD_TRY(const bool written, write_answer(request));
    if (!written) {
      VMBUSD_TRY(const bool armed, channel_->outgoing().arm_space(
                                       ring::OutgoingRing::packet_size(0, request.slot->answer_size)));
      if (armed) return false;
      continue;
    }
    answers_.pop_front();
    answered(request);
  }
  while (notice_waits_) {
    VMBUSD_TRY(const bool written, write_notice());
    if (!written) {
      VMBUSD_TRY(const bool armed,
                 outgoing.arm_space(ring::OutgoingRing::packet_size(0, session_.packet_size())));
      if (armed) return false;
      continue;
    }
    notice_waits_ = false;
    notice_written_ = true;
    notices_told_ = record_->notices_due;
  }
  if (outgoing.space_armed()) outgoing.clear_space();
  return true;
}

}  // namespace vmbusd::storvsp
