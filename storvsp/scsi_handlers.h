// The commands' handlers, one file a group, and the table that leads to them.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "storvsp/scsi_job.h"
#include "storvsp/scsi_target.h"

namespace vmbusd::storvsp {

using ScsiHandler = ScsiNext (*)(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result,
                                 DiskIo& io);
using ScsiJobBegin = ScsiNext (*)(ScsiJob& job, ScsiResult& result);

struct CommandEntry {
  static constexpr std::int16_t kNoServiceAction = -1;

  scsi::Opcode opcode;
  std::int16_t service_action;  // in the low 5 bits of byte 1, or kNoServiceAction
  std::uint8_t cdb_length;
  DataDirection direction;
  // Bits that may be set; all are in bytes behind the CDB. [SPC-4: REPORT SUPPORTED OPERATION CODES, CDB
  // usage data]
  std::array<std::uint8_t, 16> usage;
  ScsiHandler handler;
  ScsiJobBegin begin;  // where the handler says kJob or kExclusiveJob
};

// Every command of a direct-access LUN, sorted by opcode, then service action.
[[nodiscard]] std::span<const CommandEntry> command_table();

// The entry of a command; nullptr where there is none: `result` says why then.
[[nodiscard]] const CommandEntry* find_command(const ScsiCommand& command, ScsiResult& result);
// Whether the CDB and the data's direction are what the entry says; `result` says what is wrong.
[[nodiscard]] bool check_command(const CommandEntry& entry, const ScsiCommand& command, ScsiResult& result);

// The commands that are jobs.
ScsiNext needs_job(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext needs_exclusive_job(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
// Ends a job whose operation failed.
ScsiNext fail_job(const ScsiJob& job, int error, ScsiResult& result);

// Limits of single commands, told in VPD page B0.
inline constexpr std::uint32_t kUnmapDescriptorsMax = 256;
// Enough for large discards to be few, and an end to each. libiscsi's tests take more for a mistake.
inline constexpr std::uint32_t kUnmapBlocksMax = 1u << 20;
// May have to be written block by block.
[[nodiscard]] inline std::uint32_t write_same_blocks_max(const DiskGeometry& geometry) {
  return (64u << 20) / geometry.logical_block_bytes;
}
[[nodiscard]] inline std::uint32_t compare_and_write_blocks_max(const DiskGeometry& geometry) {
  return ScsiJob::kHalfBytes / geometry.logical_block_bytes;
}

// scsi_unit.cc
ScsiNext test_unit_ready(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext request_sense(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext start_stop_unit(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext send_diagnostic(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext prevent_allow_medium_removal(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext report_luns(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext report_luns(const ScsiCommand& command, ScsiResult& result);

// scsi_inquiry.cc
ScsiNext inquiry(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext inquiry_without_lun(const ScsiCommand& command, ScsiResult& result);

// scsi_mode.cc
ScsiNext mode_sense6(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext mode_sense10(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext mode_select6(ScsiJob&, ScsiResult&);
ScsiNext mode_select10(ScsiJob&, ScsiResult&);

// scsi_report.cc
ScsiNext report_operation_codes(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext report_task_management(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);

// scsi_log.cc
ScsiNext log_sense(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);

// scsi_reservation.cc
ScsiNext persistent_reserve_in(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext persistent_reserve_out(ScsiJob&, ScsiResult&);
ScsiNext reserve_unit(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext release_unit(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);

// scsi_verify.cc
ScsiNext verify10(ScsiJob&, ScsiResult&);
ScsiNext verify12(ScsiJob&, ScsiResult&);
ScsiNext verify16(ScsiJob&, ScsiResult&);
ScsiNext write_and_verify10(ScsiJob&, ScsiResult&);
ScsiNext write_and_verify12(ScsiJob&, ScsiResult&);
ScsiNext write_and_verify16(ScsiJob&, ScsiResult&);
ScsiNext compare_and_write(ScsiJob&, ScsiResult&);

// scsi_provisioning.cc
ScsiNext write_same10(ScsiJob&, ScsiResult&);
ScsiNext write_same16(ScsiJob&, ScsiResult&);
ScsiNext unmap(ScsiJob&, ScsiResult&);
ScsiNext get_lba_status(ScsiJob&, ScsiResult&);

// scsi_block.cc
ScsiNext read6(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext read10(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext read12(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext read16(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext write6(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext write10(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext write12(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext write16(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext synchronize_cache10(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext synchronize_cache16(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext read_capacity10(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext read_capacity16(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);

}  // namespace vmbusd::storvsp
