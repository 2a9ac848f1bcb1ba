// A SCSI command on its way through a LUN, and what handlers of commands share.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

#include "storvsp/scsi.h"

namespace vmbusd::storvsp {

enum class DataDirection : std::uint8_t { kNone, kIn, kOut };  // kIn: device to guest

struct ScsiCommand {
  std::array<std::uint8_t, 16> cdb{};  // a private copy; bytes from cdb_length on mean nothing
  std::uint8_t cdb_length = 0;
  DataDirection direction = DataDirection::kNone;
  std::uint32_t data_length = 0;  // bytes of `data`, 0 where direction is kNone
  std::span<const iovec> data;    // guest-controlled; writable for kIn
  std::uint64_t target_luns = 0;  // bit n: the target has a LUN n
};

// How a command ended.
struct ScsiResult {
  scsi::Status status = scsi::Status::kGood;
  std::uint32_t transferred = 0;  // bytes of ScsiCommand::data
  scsi::FixedSense sense{};       // of kCheckCondition
};

// What a command needs next.
enum class ScsiNext : std::uint8_t {
  kComplete,      // nothing: the ScsiResult is final
  kDisk,          // the DiskIo, then LogicalUnit::finish()
  kJob,           // begin_job()
  kExclusiveJob,  // begin_job(), with no other command of the LUN under way: see LogicalUnit::try_exclusive()
  kHold,          // execute() again when the exclusive job is over
};

// Where a CDB or parameter list is wrong: the byte, and the most significant bit of the field.
struct FieldPointer {
  std::uint16_t byte;
  std::uint8_t bit = 7;
};

// The endings of a command. Each sets `result` and returns kComplete.
ScsiNext succeed(ScsiResult& result);
ScsiNext check_condition(ScsiResult& result, scsi::SenseKey key, scsi::Asc asc);
// ILLEGAL REQUEST.
ScsiNext invalid_cdb(ScsiResult& result, scsi::Asc asc, FieldPointer field);
ScsiNext invalid_parameter(ScsiResult& result, FieldPointer field);
ScsiNext parameter_list_length_error(ScsiResult& result);
// Data differ; at `offset` from the start of the guest's buffer, where that is to be told.
ScsiNext miscompare(ScsiResult& result, std::optional<std::uint32_t> offset);
// Copies `bytes` into the guest's buffer, as much as the buffer and the CDB's allocation length take.
ScsiNext reply(const ScsiCommand& command, ScsiResult& result, std::span<const std::byte> bytes,
               std::uint32_t allocation_length);

// Copies data out of the guest's buffer from `offset` on, once. No more than command.data_length bytes are
// there.
void copy_parameters(const ScsiCommand& command, std::span<std::byte> out, std::uint32_t offset = 0);

// The big-endian integer of type T at cdb[offset]. On every I/O's path, hence not by BigEndian's loop over
// bytes.
template <typename T>
[[nodiscard]] T cdb_field(const ScsiCommand& command, std::size_t offset) {
  T value;
  std::memcpy(&value, command.cdb.data() + offset, sizeof value);
  if constexpr (sizeof(T) == 2) {
    return __builtin_bswap16(value);
  } else if constexpr (sizeof(T) == 4) {
    return __builtin_bswap32(value);
  } else {
    static_assert(sizeof(T) == 8);
    return __builtin_bswap64(value);
  }
}

}  // namespace vmbusd::storvsp
