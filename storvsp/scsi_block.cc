// Commands that read, write and measure the medium.
#include <bit>

#include "storvsp/scsi_handlers.h"
#include "storvsp/scsi_range.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Asc;
using scsi::SenseKey;

bool fua(const ScsiCommand& command) {
  return (command.cdb[1] & 0x08) != 0;
}

ScsiNext read_write(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& io, DiskOp op,
                    bool force_unit_access, const BlockRange& range) {
  if (op == DiskOp::kWrite && lun.read_only()) {
    return check_condition(result, SenseKey::kDataProtect, Asc::kWriteProtected);
  }
  if (!in_range(lun, range)) return invalid_cdb(result, Asc::kLbaOutOfRange, {range.lba_byte});
  if (range.blocks == 0) return succeed(result);
  const std::uint32_t block_bytes = lun.geometry().logical_block_bytes;
  const std::uint64_t length = std::uint64_t{range.blocks} * block_bytes;
  // Nothing moves where the buffer is too small for all: a driver that gets this wrong should hear of it.
  if (length > command.data_length) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {range.blocks_byte});
  io.op = op;
  // Reads need no FUA: what a cache holds is what the medium will hold.
  io.fua = op == DiskOp::kWrite && (force_unit_access || !lun.write_cache());
  io.offset = range.lba * block_bytes;
  io.length = static_cast<std::uint32_t>(length);
  return ScsiNext::kDisk;
}

// More than was asked for is flushed: the whole disk.
ScsiNext synchronize_cache(const LogicalUnit& lun, ScsiResult& result, DiskIo& io, const BlockRange& range) {
  if (!in_range(lun, range)) return invalid_cdb(result, Asc::kLbaOutOfRange, {range.lba_byte});
  if (lun.read_only()) return succeed(result);
  io = DiskIo{DiskOp::kFlush};
  return ScsiNext::kDisk;
}

}  // namespace

ScsiNext read6(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& io) {
  return read_write(lun, command, result, io, DiskOp::kRead, false, range6(command));
}
ScsiNext read10(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& io) {
  return read_write(lun, command, result, io, DiskOp::kRead, fua(command), range10(command));
}
ScsiNext read12(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& io) {
  return read_write(lun, command, result, io, DiskOp::kRead, fua(command), range12(command));
}
ScsiNext read16(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& io) {
  return read_write(lun, command, result, io, DiskOp::kRead, fua(command), range16(command));
}
ScsiNext write6(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& io) {
  return read_write(lun, command, result, io, DiskOp::kWrite, false, range6(command));
}
ScsiNext write10(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& io) {
  return read_write(lun, command, result, io, DiskOp::kWrite, fua(command), range10(command));
}
ScsiNext write12(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& io) {
  return read_write(lun, command, result, io, DiskOp::kWrite, fua(command), range12(command));
}
ScsiNext write16(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& io) {
  return read_write(lun, command, result, io, DiskOp::kWrite, fua(command), range16(command));
}

ScsiNext synchronize_cache10(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& io) {
  return synchronize_cache(lun, result, io, range10(command));
}
ScsiNext synchronize_cache16(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& io) {
  return synchronize_cache(lun, result, io, range16(command));
}

// [SBC-3: READ CAPACITY (10) command]
ScsiNext read_capacity10(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& /*io*/) {
  const bool partial = (command.cdb[8] & 0x01) != 0;
  if (!partial && cdb_field<std::uint32_t>(command, 2) != 0) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2});
  }
  const std::uint64_t last = lun.blocks() - 1;
  scsi::ReadCapacity10Data data{};
  data.last_lba = static_cast<std::uint32_t>(last < 0xffffffff ? last : 0xffffffff);
  data.block_length = lun.geometry().logical_block_bytes;
  return reply(command, result, wire_bytes(data), sizeof data);
}

// [SBC-3: READ CAPACITY (16) command]
ScsiNext read_capacity16(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& /*io*/) {
  const bool partial = (command.cdb[14] & 0x01) != 0;
  if (!partial && cdb_field<std::uint64_t>(command, 2) != 0) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2});
  }
  const DiskGeometry& geometry = lun.geometry();
  scsi::ReadCapacity16Data data{};
  data.last_lba = lun.blocks() - 1;
  data.block_length = geometry.logical_block_bytes;
  data.physical_exponent = static_cast<std::uint8_t>(
      std::countr_zero(geometry.physical_block_bytes / geometry.logical_block_bytes));
  std::uint16_t provisioning = 0;  // and lowest aligned LBA: 0
  if (geometry.discards) provisioning |= scsi::kCapacityThin;
  if (geometry.discard_zeroes) provisioning |= scsi::kCapacityReadsZeros;
  data.provisioning_and_lowest_aligned_lba = provisioning;
  return reply(command, result, wire_bytes(data), cdb_field<std::uint32_t>(command, 10));
}

}  // namespace vmbusd::storvsp
