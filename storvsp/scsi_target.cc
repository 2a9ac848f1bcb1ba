#include "storvsp/scsi_target.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <initializer_list>

#include "storvsp/scsi_handlers.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Opcode;
constexpr DataDirection kNone = DataDirection::kNone;
constexpr DataDirection kIn = DataDirection::kIn;
constexpr DataDirection kOut = DataDirection::kOut;

// `bits` are those of the CDB's bytes behind the first; the control byte at the end takes none: NACA and LINK
// ask for what we do not do.
consteval CommandEntry command(Opcode opcode, std::uint8_t cdb_length, DataDirection direction,
                               ScsiHandler handler, std::array<std::uint8_t, 15> bits,
                               std::int16_t service_action = CommandEntry::kNoServiceAction) {
  CommandEntry entry{opcode, service_action, cdb_length, direction, {}, handler, nullptr};
  entry.usage[0] = static_cast<std::uint8_t>(opcode);
  for (std::size_t i = 1; i < 16; ++i) entry.usage[i] = i < cdb_length ? bits[i - 1] : 0xff;
  return entry;
}

consteval CommandEntry job(Opcode opcode, std::uint8_t cdb_length, DataDirection direction,
                           ScsiJobBegin begin, std::array<std::uint8_t, 15> bits,
                           std::int16_t service_action = CommandEntry::kNoServiceAction) {
  CommandEntry entry = command(opcode, cdb_length, direction, needs_job, bits, service_action);
  entry.begin = begin;
  return entry;
}
consteval CommandEntry exclusive_job(Opcode opcode, std::uint8_t cdb_length, DataDirection direction,
                                     ScsiJobBegin begin, std::array<std::uint8_t, 15> bits,
                                     std::int16_t service_action = CommandEntry::kNoServiceAction) {
  CommandEntry entry = job(opcode, cdb_length, direction, begin, bits, service_action);
  entry.handler = needs_exclusive_job;
  return entry;
}

consteval CommandEntry reserve_in(scsi::ReserveIn action) {
  return command(Opcode::kPersistentReserveIn, 10, kIn, persistent_reserve_in,
                 {0x1f, 0, 0, 0, 0, 0, 0xff, 0xff}, static_cast<std::int16_t>(action));
}
consteval CommandEntry reserve_out(scsi::ReserveOut action) {
  // Exclusive, so that what is kept and what holds change together.
  return exclusive_job(Opcode::kPersistentReserveOut, 10, kOut, persistent_reserve_out,
                       {0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff}, static_cast<std::int16_t>(action));
}

// Bits 7:5 of byte 1 of six-byte CDBs held the LUN in SCSI-2: initiators of that age may still set them.
constexpr std::uint8_t kOldLun = 0xe0;
// Byte 1 of READ and WRITE: DPO (a hint) and FUA; protection information is not there.
constexpr std::uint8_t kDpoFua = 0x18;
constexpr std::uint8_t kDpoBytchk = 0x16;
constexpr std::uint8_t kWriteSameUnmap = 0x08;
constexpr std::uint8_t kNoDataOut = 0x01;
// SYNC_NV was a weaker promise, IMMED a quicker answer: a full flush first satisfies both.
constexpr std::uint8_t kSyncNvImmed = 0x06;
constexpr std::uint8_t kGroup = 0x1f;  // grouping is for statistics: ignored

constexpr std::array kCommands = {
    command(Opcode::kTestUnitReady, 6, kNone, test_unit_ready, {kOldLun}),
    command(Opcode::kRequestSense, 6, kIn, request_sense, {kOldLun | 0x01, 0, 0, 0xff}),
    command(Opcode::kRead6, 6, kIn, read6, {kOldLun | 0x1f, 0xff, 0xff, 0xff}),
    command(Opcode::kWrite6, 6, kOut, write6, {kOldLun | 0x1f, 0xff, 0xff, 0xff}),
    command(Opcode::kInquiry, 6, kIn, inquiry, {kOldLun | 0x01, 0xff, 0xff, 0xff}),
    exclusive_job(Opcode::kModeSelect6, 6, kOut, mode_select6, {kOldLun | 0x11, 0, 0, 0xff}),
    command(Opcode::kReserve6, 6, kNone, reserve_unit, {kOldLun}),
    command(Opcode::kRelease6, 6, kNone, release_unit, {kOldLun}),
    command(Opcode::kModeSense6, 6, kIn, mode_sense6, {kOldLun | 0x08, 0xff, 0xff, 0xff}),
    command(Opcode::kStartStopUnit, 6, kNone, start_stop_unit, {kOldLun | 0x01, 0, 0x0f, 0xf7}),
    command(Opcode::kSendDiagnostic, 6, kNone, send_diagnostic, {0xf7, 0, 0xff, 0xff}),
    command(Opcode::kPreventAllowMediumRemoval, 6, kNone, prevent_allow_medium_removal,
            {kOldLun, 0, 0, 0x03}),
    command(Opcode::kReadCapacity10, 10, kIn, read_capacity10, {kOldLun, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01}),
    command(Opcode::kRead10, 10, kIn, read10, {kDpoFua, 0xff, 0xff, 0xff, 0xff, kGroup, 0xff, 0xff}),
    command(Opcode::kWrite10, 10, kOut, write10, {kDpoFua, 0xff, 0xff, 0xff, 0xff, kGroup, 0xff, 0xff}),
    job(Opcode::kWriteAndVerify10, 10, kOut, write_and_verify10,
        {kDpoBytchk, 0xff, 0xff, 0xff, 0xff, kGroup, 0xff, 0xff}),
    job(Opcode::kVerify10, 10, kOut, verify10, {kDpoBytchk, 0xff, 0xff, 0xff, 0xff, kGroup, 0xff, 0xff}),
    command(Opcode::kSynchronizeCache10, 10, kNone, synchronize_cache10,
            {kSyncNvImmed, 0xff, 0xff, 0xff, 0xff, kGroup, 0xff, 0xff}),
    job(Opcode::kWriteSame10, 10, kOut, write_same10,
        {kWriteSameUnmap, 0xff, 0xff, 0xff, 0xff, kGroup, 0xff, 0xff}),
    job(Opcode::kUnmap, 10, kOut, unmap, {0, 0, 0, 0, 0, kGroup, 0xff, 0xff}),
    command(Opcode::kLogSense, 10, kIn, log_sense, {0, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff}),
    exclusive_job(Opcode::kModeSelect10, 10, kOut, mode_select10, {0x11, 0, 0, 0, 0, 0, 0xff, 0xff}),
    command(Opcode::kReserve10, 10, kNone, reserve_unit, {}),
    command(Opcode::kRelease10, 10, kNone, release_unit, {}),
    command(Opcode::kModeSense10, 10, kIn, mode_sense10, {0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff}),
    reserve_in(scsi::ReserveIn::kReadKeys),
    reserve_in(scsi::ReserveIn::kReadReservation),
    reserve_in(scsi::ReserveIn::kReportCapabilities),
    reserve_in(scsi::ReserveIn::kReadFullStatus),
    reserve_out(scsi::ReserveOut::kRegister),
    reserve_out(scsi::ReserveOut::kReserve),
    reserve_out(scsi::ReserveOut::kRelease),
    reserve_out(scsi::ReserveOut::kClear),
    reserve_out(scsi::ReserveOut::kPreempt),
    reserve_out(scsi::ReserveOut::kPreemptAndAbort),
    reserve_out(scsi::ReserveOut::kRegisterAndIgnore),
    command(Opcode::kRead16, 16, kIn, read16,
            {kDpoFua, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, kGroup}),
    exclusive_job(Opcode::kCompareAndWrite, 16, kOut, compare_and_write,
                  {kDpoFua, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, kGroup}),
    command(Opcode::kWrite16, 16, kOut, write16,
            {kDpoFua, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, kGroup}),
    job(Opcode::kWriteAndVerify16, 16, kOut, write_and_verify16,
        {kDpoBytchk, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, kGroup}),
    job(Opcode::kVerify16, 16, kOut, verify16,
        {kDpoBytchk, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, kGroup}),
    command(Opcode::kSynchronizeCache16, 16, kNone, synchronize_cache16,
            {kSyncNvImmed, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, kGroup}),
    job(Opcode::kWriteSame16, 16, kOut, write_same16,
        {kWriteSameUnmap | kNoDataOut, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
         kGroup}),
    command(Opcode::kServiceActionIn16, 16, kIn, read_capacity16,
            {0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
            scsi::kReadCapacity16),
    job(Opcode::kServiceActionIn16, 16, kIn, get_lba_status,
        {0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, scsi::kGetLbaStatus),
    command(Opcode::kReportLuns, 12, kIn, report_luns, {0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}),
    command(Opcode::kMaintenanceIn, 12, kIn, report_operation_codes,
            {0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, scsi::kReportOperationCodes),
    command(Opcode::kMaintenanceIn, 12, kIn, report_task_management,
            {0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, scsi::kReportTaskManagement),
    command(Opcode::kRead12, 12, kIn, read12,
            {kDpoFua, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, kGroup}),
    command(Opcode::kWrite12, 12, kOut, write12,
            {kDpoFua, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, kGroup}),
    job(Opcode::kWriteAndVerify12, 12, kOut, write_and_verify12,
        {kDpoBytchk, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, kGroup}),
    job(Opcode::kVerify12, 12, kOut, verify12,
        {kDpoBytchk, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, kGroup}),
};
static_assert(std::is_sorted(kCommands.begin(), kCommands.end(),
                             [](const CommandEntry& a, const CommandEntry& b) {
                               return a.opcode < b.opcode;
                             }));

constexpr std::uint8_t kNotThere = 0xff;

// From opcode to the index of its first entry.
constexpr std::array<std::uint8_t, 256> kFirstEntry = [] {
  std::array<std::uint8_t, 256> first{};
  for (std::uint8_t& index : first) index = kNotThere;
  for (std::size_t i = kCommands.size(); i-- > 0;) {
    first[static_cast<std::uint8_t>(kCommands[i].opcode)] = static_cast<std::uint8_t>(i);
  }
  return first;
}();
static_assert(kCommands.size() < kNotThere);

// The first byte with a bit that its entry does not know.
ScsiNext reserved_bit_set(const CommandEntry& entry, const ScsiCommand& command, ScsiResult& result) {
  for (std::uint16_t byte = 1; byte < entry.cdb_length; ++byte) {
    const auto wrong = static_cast<std::uint8_t>(command.cdb[byte] & ~entry.usage[byte]);
    if (wrong == 0) continue;
    return invalid_cdb(result, scsi::Asc::kInvalidFieldInCdb,
                       {byte, static_cast<std::uint8_t>(std::bit_width(wrong) - 1)});
  }
  return succeed(result);
}

bool has_reserved_bits(const CommandEntry& entry, const ScsiCommand& command) {
  std::array<std::uint64_t, 2> cdb;
  std::array<std::uint64_t, 2> usage;
  std::memcpy(&cdb, command.cdb.data(), sizeof cdb);
  std::memcpy(&usage, entry.usage.data(), sizeof usage);
  return ((cdb[0] & ~usage[0]) | (cdb[1] & ~usage[1])) != 0;
}

}  // namespace

std::span<const CommandEntry> command_table() {
  return kCommands;
}

const CommandEntry* find_command(const ScsiCommand& command, ScsiResult& result) {
  const std::uint8_t opcode = command.cdb[0];
  std::size_t index = command.cdb_length == 0 ? kNotThere : kFirstEntry[opcode];
  if (index == kNotThere) {
    invalid_cdb(result, scsi::Asc::kInvalidCommandOperationCode, {0});
    return nullptr;
  }
  if (kCommands[index].service_action == CommandEntry::kNoServiceAction) return &kCommands[index];
  const std::int16_t action = command.cdb[1] & 0x1f;
  for (; index < kCommands.size() && static_cast<std::uint8_t>(kCommands[index].opcode) == opcode; ++index) {
    if (kCommands[index].service_action == action) return &kCommands[index];
  }
  invalid_cdb(result, scsi::Asc::kInvalidFieldInCdb, {1, 4});
  return nullptr;
}

bool check_command(const CommandEntry& entry, const ScsiCommand& command, ScsiResult& result) {
  if (command.cdb_length < entry.cdb_length) {
    check_condition(result, scsi::SenseKey::kIllegalRequest, scsi::Asc::kInvalidFieldInCdb);
    return false;
  }
  if (has_reserved_bits(entry, command)) {
    reserved_bit_set(entry, command, result);
    return false;
  }
  // The guest's buffer may not be writable where it says that it gives data.
  if (entry.direction != kNone && command.data_length != 0 && command.direction != entry.direction) {
    check_condition(result, scsi::SenseKey::kIllegalRequest, scsi::Asc::kInvalidFieldInCdb);
    return false;
  }
  return true;
}

namespace {

constexpr std::uint32_t bits(std::initializer_list<UnitAttention> attentions) {
  std::uint32_t all = 0;
  for (const UnitAttention attention : attentions) all |= static_cast<std::uint32_t>(attention);
  return all;
}

// Unit attentions, the first first. Reporting one takes with it what says no more than it does.
// [SPC-4: ASC and ASCQ assignments, 29h, 2Ah, 3Fh]
struct AttentionEntry {
  UnitAttention attention;
  scsi::Asc asc;
  std::uint32_t takes;
};
constexpr std::uint32_t kAllAttentions =
    bits({UnitAttention::kPowerOn, UnitAttention::kBusReset, UnitAttention::kLogicalUnitReset,
          UnitAttention::kCapacityChanged, UnitAttention::kReportedLunsChanged});
constexpr std::array<AttentionEntry, 5> kAttentions = {{
    {UnitAttention::kPowerOn, scsi::Asc::kPowerOnOrReset, kAllAttentions},
    {UnitAttention::kBusReset, scsi::Asc::kBusReset,
     bits({UnitAttention::kBusReset, UnitAttention::kLogicalUnitReset})},
    {UnitAttention::kLogicalUnitReset, scsi::Asc::kLogicalUnitReset,
     bits({UnitAttention::kLogicalUnitReset})},
    {UnitAttention::kCapacityChanged, scsi::Asc::kCapacityDataHasChanged,
     bits({UnitAttention::kCapacityChanged})},
    {UnitAttention::kReportedLunsChanged, scsi::Asc::kReportedLunsDataHasChanged,
     bits({UnitAttention::kReportedLunsChanged})},
}};

// What a stopped unit does not do. SYNCHRONIZE CACHE it does: nothing is left to be flushed, and a guest that
// shuts down may stop first. [SBC-4: START STOP UNIT command, and power conditions: stopped]
bool needs_medium(Opcode opcode) {
  switch (opcode) {
    case Opcode::kTestUnitReady:
    case Opcode::kRead6:
    case Opcode::kRead10:
    case Opcode::kRead12:
    case Opcode::kRead16:
    case Opcode::kWrite6:
    case Opcode::kWrite10:
    case Opcode::kWrite12:
    case Opcode::kWrite16:
    case Opcode::kWriteAndVerify10:
    case Opcode::kWriteAndVerify12:
    case Opcode::kWriteAndVerify16:
    case Opcode::kVerify10:
    case Opcode::kVerify12:
    case Opcode::kVerify16:
    case Opcode::kWriteSame10:
    case Opcode::kWriteSame16:
    case Opcode::kUnmap:
    case Opcode::kCompareAndWrite:
      return true;
    default:
      return false;
  }
}

}  // namespace

LunRecord LogicalUnit::save() const {
  LunRecord record = reservations_.save();
  record.attention = special_.load(std::memory_order_relaxed) & ~kExclusive;
  record.write_cache = write_cache() ? 1 : 0;
  record.incarnation = options_.incarnation;
  record.size_bytes = options_.geometry.size_bytes;
  return record;
}

Result<void> LogicalUnit::restore(const LunRecord& record) {
  VMBUSD_CHECK(reservations_.restore(record));
  special_.store(record.attention & (kAllAttentions | kStopped), std::memory_order_relaxed);
  set_write_cache(record.write_cache != 0);
  // It grew and nobody lived to tell.
  if (record.size_bytes != options_.geometry.size_bytes) raise(UnitAttention::kCapacityChanged);
  return {};
}

std::optional<scsi::Asc> LogicalUnit::take_attention() {
  if ((special_.load(std::memory_order_relaxed) & kAllAttentions) == 0) return std::nullopt;
  for (const AttentionEntry& entry : kAttentions) {
    const auto bit = static_cast<std::uint32_t>(entry.attention);
    if ((special_.load(std::memory_order_relaxed) & bit) == 0) continue;
    // Of two commands that see it, one reports it.
    if ((special_.fetch_and(~entry.takes, std::memory_order_relaxed) & bit) != 0) return entry.asc;
  }
  return std::nullopt;
}

// [SAM-5: Unit attention conditions] These three are served in any state and leave an attention pending,
// REQUEST SENSE apart, which reports it.
std::optional<ScsiNext> LogicalUnit::attend(const ScsiCommand& command, ScsiResult& result) {
  const auto opcode = static_cast<Opcode>(command.cdb[0]);
  if (opcode == Opcode::kInquiry || opcode == Opcode::kReportLuns || opcode == Opcode::kRequestSense) {
    return std::nullopt;
  }
  if (const std::optional<scsi::Asc> asc = take_attention(); asc) {
    return check_condition(result, scsi::SenseKey::kUnitAttention, *asc);
  }
  const std::uint32_t special = special_.load(std::memory_order_acquire);
  if ((special & kExclusive) != 0) return ScsiNext::kHold;
  if ((special & kStopped) != 0 && needs_medium(opcode)) {
    return check_condition(result, scsi::SenseKey::kNotReady, scsi::Asc::kInitializingCommandRequired);
  }
  return std::nullopt;
}

ScsiNext LogicalUnit::execute(const ScsiCommand& command, ScsiResult& result, DiskIo& io) noexcept {
  // acquire: pairs with the release in end_exclusive().
  if (special_.load(std::memory_order_acquire) != 0) [[unlikely]] {
    if (const std::optional<ScsiNext> ended = attend(command, result); ended) return *ended;
  }
  const CommandEntry* const entry = find_command(command, result);
  if (entry == nullptr || !check_command(*entry, command, result)) return ScsiNext::kComplete;
  return entry->handler(*this, command, result, io);
}

void LogicalUnit::finish(const DiskIo& io, int error, ScsiResult& result) noexcept {
  using scsi::Asc;
  using scsi::SenseKey;
  switch (error) {
    case 0:
      succeed(result);
      result.transferred = io.length;
      return;
    // The medium. The kernel's block layer says EIO, ENODATA (medium) and EILSEQ (protection information).
    case EIO:
    case ENODATA:
    case EILSEQ:
    case EBADMSG:
    case EUCLEAN:
      check_condition(
          result, SenseKey::kMediumError,
          io.op == DiskOp::kRead || io.op == DiskOp::kMap ? Asc::kUnrecoveredReadError : Asc::kWriteError);
      return;
    // No room behind a thin disk. Guests tell the writer so, and do not try again.
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      check_condition(result, SenseKey::kDataProtect, Asc::kSpaceAllocationFailedWriteProtect);
      return;
    case EROFS:
    case EPERM:
    case EACCES:
      check_condition(result, SenseKey::kDataProtect, Asc::kWriteProtected);
      return;
    // May go well another time: guests try again, a few times.
    case ENOMEM:
    case EAGAIN:
    case EINTR:
    case EBUSY:
    case ECANCELED:
      check_condition(result, SenseKey::kAbortedCommand, Asc::kNone);
      return;
    default:
      check_condition(result, SenseKey::kHardwareError, Asc::kInternalTargetFailure);
      return;
  }
}

bool execute_without_lun(const ScsiCommand& command, ScsiResult& result) noexcept {
  const auto opcode = static_cast<Opcode>(command.cdb[0]);
  if (opcode != Opcode::kInquiry && opcode != Opcode::kReportLuns) return false;
  const CommandEntry* const entry = find_command(command, result);
  if (entry == nullptr || !check_command(*entry, command, result)) return true;
  if (opcode == Opcode::kInquiry) {
    inquiry_without_lun(command, result);
  } else {
    report_luns(command, result);
  }
  return true;
}

}  // namespace vmbusd::storvsp
