// The blocks that a CDB names, by its length.
#pragma once

#include <cstdint>

#include "storvsp/scsi_command.h"
#include "storvsp/scsi_target.h"

namespace vmbusd::storvsp {

// A range, and where its fields stand.
struct BlockRange {
  std::uint64_t lba;
  std::uint32_t blocks;
  std::uint16_t lba_byte;
  std::uint16_t blocks_byte;
};

inline BlockRange range6(const ScsiCommand& command) {
  constexpr std::uint32_t kZeroMeans = 256;
  const std::uint32_t lba = cdb_field<std::uint32_t>(command, 0) & 0x1fffff;
  const std::uint32_t blocks = command.cdb[4];
  return {lba, blocks == 0 ? kZeroMeans : blocks, 1, 4};
}
inline BlockRange range10(const ScsiCommand& command) {
  return {cdb_field<std::uint32_t>(command, 2), cdb_field<std::uint16_t>(command, 7), 2, 7};
}
inline BlockRange range12(const ScsiCommand& command) {
  return {cdb_field<std::uint32_t>(command, 2), cdb_field<std::uint32_t>(command, 6), 2, 6};
}
inline BlockRange range16(const ScsiCommand& command) {
  return {cdb_field<std::uint64_t>(command, 2), cdb_field<std::uint32_t>(command, 10), 2, 10};
}

inline bool in_range(const LogicalUnit& lun, const BlockRange& range) {
  const std::uint64_t blocks = lun.blocks();
  return range.lba <= blocks && range.blocks <= blocks - range.lba;
}

}  // namespace vmbusd::storvsp
