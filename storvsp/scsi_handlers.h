// The commands' handlers, one file a group, and the table that leads to them.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "storvsp/scsi_target.h"

namespace vmbusd::storvsp {

using ScsiHandler = ScsiNext (*)(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result,
                                 DiskIo& io);

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
};

// Every command of a direct-access LUN, sorted by opcode, then service action.
[[nodiscard]] std::span<const CommandEntry> command_table();

// The entry of a command; nullptr where there is none: `result` says why then.
[[nodiscard]] const CommandEntry* find_command(const ScsiCommand& command, ScsiResult& result);
// Whether the CDB and the data's direction are what the entry says; `result` says what is wrong.
[[nodiscard]] bool check_command(const CommandEntry& entry, const ScsiCommand& command, ScsiResult& result);

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
ScsiNext mode_select6(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext mode_select10(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);

// scsi_block.cc
ScsiNext read6(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext read10(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext read12(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext read16(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext write6(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext write10(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext write12(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext write16(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext verify10(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext verify12(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext verify16(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext synchronize_cache10(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext synchronize_cache16(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext read_capacity10(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);
ScsiNext read_capacity16(LogicalUnit&, const ScsiCommand&, ScsiResult&, DiskIo&);

}  // namespace vmbusd::storvsp
