// Commands that tell which commands there are.
#include <array>
#include <cstring>

#include "base/assert.h"
#include "storvsp/scsi_handlers.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Asc;

bool supported(const LogicalUnit& lun, const CommandEntry& entry) {
  return entry.opcode != scsi::Opcode::kUnmap || lun.geometry().discards;
}

// What the drive says of times: nothing.
scsi::CommandTimeouts no_timeouts() {
  scsi::CommandTimeouts timeouts{};
  timeouts.length = static_cast<std::uint16_t>(sizeof timeouts - sizeof timeouts.length);
  return timeouts;
}

// Large enough for the whole table with time-outs.
class ReplyBuilder {
 public:
  template <WireStruct T>
  void add(const T& value) {
    add(wire_bytes(value));
  }
  void add(std::span<const std::byte> bytes) {
    VMBUSD_ASSERT(size_ + bytes.size() <= data_.size());
    std::memcpy(data_.data() + size_, bytes.data(), bytes.size());
    size_ += bytes.size();
  }
  [[nodiscard]] std::span<std::byte> built() { return std::span(data_).first(size_); }

 private:
  std::array<std::byte, 2048> data_{};
  std::size_t size_ = 0;
};

ScsiNext report_all(const LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, bool timeouts,
                    std::uint32_t allocation_length) {
  ReplyBuilder data;
  data.add(BigEndian32{});
  for (const CommandEntry& entry : command_table()) {
    if (!supported(lun, entry)) continue;
    scsi::CommandDescriptor descriptor{};
    descriptor.opcode = static_cast<std::uint8_t>(entry.opcode);
    if (entry.service_action != CommandEntry::kNoServiceAction) {
      descriptor.service_action = static_cast<std::uint16_t>(entry.service_action);
      descriptor.flags |= scsi::kCommandServiceAction;
    }
    if (timeouts) descriptor.flags |= scsi::kCommandTimeouts;
    descriptor.cdb_length = entry.cdb_length;
    data.add(descriptor);
    if (timeouts) data.add(no_timeouts());
  }
  const std::span<std::byte> built = data.built();
  const BigEndian32 length = static_cast<std::uint32_t>(built.size() - sizeof(BigEndian32));
  std::memcpy(built.data(), &length, sizeof length);
  return reply(command, result, built, allocation_length);
}

ScsiNext report_one(const CommandEntry* entry, const ScsiCommand& command, ScsiResult& result, bool timeouts,
                    std::uint32_t allocation_length) {
  ReplyBuilder data;
  scsi::OneCommandHeader header{};
  header.support = entry == nullptr ? scsi::kCommandUnsupported : scsi::kCommandSupported;
  if (entry == nullptr) {
    data.add(header);
    return reply(command, result, data.built(), allocation_length);
  }
  if (timeouts) header.support |= scsi::kOneCommandTimeouts;
  header.cdb_length = entry->cdb_length;
  data.add(header);
  std::array<std::uint8_t, 16> usage = entry->usage;
  if (entry->service_action != CommandEntry::kNoServiceAction) {
    // Stands where the CDB has it, as the operation code does.
    usage[1] = static_cast<std::uint8_t>((usage[1] & 0xe0) | entry->service_action);
  }
  data.add(std::as_bytes(std::span(usage)).first(entry->cdb_length));
  if (timeouts) data.add(no_timeouts());
  return reply(command, result, data.built(), allocation_length);
}

}  // namespace

// [SPC-4: REPORT SUPPORTED OPERATION CODES command]
ScsiNext report_operation_codes(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result,
                                DiskIo& /*io*/) {
  enum Reporting : std::uint8_t { kAll = 0, kOpcode = 1, kServiceAction = 2, kEither = 3 };
  const bool timeouts = (command.cdb[2] & 0x80) != 0;
  const std::uint8_t reporting = command.cdb[2] & 0x07;
  const auto service_action = cdb_field<std::uint16_t>(command, 4);
  const auto allocation_length = cdb_field<std::uint32_t>(command, 6);
  if (reporting == kAll) return report_all(lun, command, result, timeouts, allocation_length);
  if (reporting > kEither) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 2});

  const CommandEntry* found = nullptr;
  bool has_service_actions = false;
  bool known = false;
  for (const CommandEntry& entry : command_table()) {
    if (static_cast<std::uint8_t>(entry.opcode) != command.cdb[3] || !supported(lun, entry)) continue;
    known = true;
    if (entry.service_action == CommandEntry::kNoServiceAction) {
      if (reporting != kEither || service_action == 0) found = &entry;
    } else {
      has_service_actions = true;
      if (entry.service_action == service_action) found = &entry;
    }
  }
  // The question must fit the operation code; "either" always does.
  if (known && reporting == kOpcode && has_service_actions) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 2});
  }
  if (known && reporting == kServiceAction && !has_service_actions) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 2});
  }
  return report_one(found, command, result, timeouts, allocation_length);
}

// [SPC-4: REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS command] What VSTOR carries: RESET_LUN, and RESET_BUS,
// which reaches one target.
ScsiNext report_task_management(LogicalUnit& /*lun*/, const ScsiCommand& command, ScsiResult& result,
                                DiskIo& /*io*/) {
  const bool extended = (command.cdb[2] & 0x80) != 0;  // REPD
  const std::uint32_t allocation_min =
      sizeof(scsi::TaskManagementData) + (extended ? sizeof(scsi::TaskManagementTimeouts) : 0);
  const auto allocation_length = cdb_field<std::uint32_t>(command, 6);
  if (allocation_length < allocation_min) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {6});
  scsi::TaskManagementData data{};
  data.functions = scsi::kTaskLogicalUnitReset | scsi::kTaskTargetReset;
  ReplyBuilder built;
  if (extended) data.additional_length = sizeof(scsi::TaskManagementTimeouts);
  built.add(data);
  if (extended) built.add(scsi::TaskManagementTimeouts{});
  return reply(command, result, built.built(), allocation_length);
}

}  // namespace vmbusd::storvsp
