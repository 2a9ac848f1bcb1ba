// Commands that compare what the medium holds: VERIFY, WRITE AND VERIFY, COMPARE AND WRITE.
#include <algorithm>
#include <cstring>

#include "storvsp/scsi_handlers.h"
#include "storvsp/scsi_range.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Asc;
using scsi::SenseKey;

enum class ByteCheck : std::uint8_t { kNone = 0, kAll = 1, kReserved = 2, kOneBlock = 3 };

ByteCheck byte_check(const ScsiCommand& command) {
  return static_cast<ByteCheck>((command.cdb[1] >> 1) & 0x03);
}

constexpr FieldPointer kByteCheckField = {1, 2};

// The piece of the range that is next, as much as one half of the scratch memory takes.
std::uint32_t piece_bytes(const ScsiJob& job) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(job.end - job.position, ScsiJob::kHalfBytes));
}

void set_range(ScsiJob& job, const BlockRange& range) {
  const std::uint32_t block_bytes = job.lun->geometry().logical_block_bytes;
  job.position = range.lba * block_bytes;
  job.end = job.position + std::uint64_t{range.blocks} * block_bytes;
}

ScsiNext read_piece(ScsiJob& job, ScsiJob::Step next) {
  const std::uint32_t size = piece_bytes(job);
  return job.disk({.op = DiskOp::kRead, .offset = job.position, .length = size}, job.found().first(size),
                  next);
}

ScsiNext complete(ScsiResult& result, std::uint32_t transferred) {
  succeed(result);
  result.transferred = transferred;
  return ScsiNext::kComplete;
}

// VERIFY.

bool same_as_one_block(const ScsiJob& job, std::uint32_t size) {
  const std::uint32_t block_bytes = job.lun->geometry().logical_block_bytes;
  for (std::uint32_t at = 0; at < size; at += block_bytes) {
    if (std::memcmp(job.found().data() + at, job.given().data(), block_bytes) != 0) return false;
  }
  return true;
}

ScsiNext verify_piece(ScsiJob& job, int error, ScsiResult& result) {
  if (error != 0) return fail_job(job, error, result);
  const std::uint32_t size = job.io.length;
  if (job.one_block) {
    if (!same_as_one_block(job, size)) return miscompare(result, std::nullopt);
  } else if (job.compare) {
    copy_parameters(job.command, job.given().first(size), job.data_position);
    if (std::memcmp(job.found().data(), job.given().data(), size) != 0)
      return miscompare(result, std::nullopt);
    job.data_position += size;
  }
  job.position += size;
  if (job.position != job.end) return read_piece(job, verify_piece);
  return complete(result, job.one_block ? job.lun->geometry().logical_block_bytes : job.data_position);
}

// [SBC-4: VERIFY (10) command] Without a comparison the blocks are read: the point is to find those that
// cannot be.
ScsiNext begin_verify(ScsiJob& job, ScsiResult& result, const BlockRange& range) {
  const ByteCheck check = byte_check(job.command);
  if (check == ByteCheck::kReserved) return invalid_cdb(result, Asc::kInvalidFieldInCdb, kByteCheckField);
  if (!in_range(*job.lun, range)) return invalid_cdb(result, Asc::kLbaOutOfRange, {range.lba_byte});
  if (range.blocks == 0) return succeed(result);
  set_range(job, range);
  job.compare = check != ByteCheck::kNone;
  job.one_block = check == ByteCheck::kOneBlock;
  const std::uint32_t block_bytes = job.lun->geometry().logical_block_bytes;
  const std::uint64_t needed = job.one_block ? block_bytes : job.compare ? job.end - job.position : 0;
  if (needed > job.command.data_length) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {range.blocks_byte});
  }
  if (job.one_block) copy_parameters(job.command, job.given().first(block_bytes));
  return read_piece(job, verify_piece);
}

// WRITE AND VERIFY.

ScsiNext write_piece(ScsiJob& job);

ScsiNext check_written(ScsiJob& job, int error, ScsiResult& result) {
  if (error != 0) return fail_job(job, error, result);
  const std::uint32_t size = job.io.length;
  if (job.compare && std::memcmp(job.found().data(), job.given().data(), size) != 0) {
    return miscompare(result, std::nullopt);
  }
  job.position += size;
  job.data_position += size;
  if (job.position != job.end) return write_piece(job);
  return complete(result, job.data_position);
}

ScsiNext read_back(ScsiJob& job, int error, ScsiResult& result) {
  if (error != 0) return fail_job(job, error, result);
  return read_piece(job, check_written);
}

// From a copy, so that what is compared is what was written.
ScsiNext write_piece(ScsiJob& job) {
  const std::uint32_t size = piece_bytes(job);
  const std::span<std::byte> data = job.given().first(size);
  copy_parameters(job.command, data, job.data_position);
  return job.disk({.op = DiskOp::kWrite, .fua = true, .offset = job.position, .length = size}, data,
                  read_back);
}

// [SBC-4: WRITE AND VERIFY (10) command]
ScsiNext begin_write_and_verify(ScsiJob& job, ScsiResult& result, const BlockRange& range) {
  const ByteCheck check = byte_check(job.command);
  if (check != ByteCheck::kNone && check != ByteCheck::kAll) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, kByteCheckField);
  }
  if (job.lun->read_only()) return check_condition(result, SenseKey::kDataProtect, Asc::kWriteProtected);
  if (!in_range(*job.lun, range)) return invalid_cdb(result, Asc::kLbaOutOfRange, {range.lba_byte});
  if (range.blocks == 0) return succeed(result);
  set_range(job, range);
  if (job.end - job.position > job.command.data_length) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {range.blocks_byte});
  }
  job.compare = check == ByteCheck::kAll;
  return write_piece(job);
}

// COMPARE AND WRITE.

ScsiNext compared_and_written(ScsiJob& job, int error, ScsiResult& result) {
  if (error != 0) return fail_job(job, error, result);
  return complete(result, 2 * job.io.length);
}

ScsiNext write_compared(ScsiJob& job, std::uint32_t size) {
  copy_parameters(job.command, job.given().first(size), size);
  return job.disk({.op = DiskOp::kWrite,
                   .fua = job.fua || !job.lun->write_cache(),
                   .offset = job.position,
                   .length = size},
                  job.given().first(size), compared_and_written);
}

ScsiNext compare_then_write(ScsiJob& job, int error, ScsiResult& result) {
  if (error != 0) return fail_job(job, error, result);
  const std::uint32_t size = job.io.length;
  const auto [given, found] =
      std::mismatch(job.given().begin(), job.given().begin() + size, job.found().begin());
  if (given != job.given().begin() + size) {
    return miscompare(result, static_cast<std::uint32_t>(given - job.given().begin()));
  }
  job.compared = true;
  return write_compared(job, size);
}

}  // namespace

// [SBC-4: COMPARE AND WRITE command] Exclusive, so nobody writes between the comparison and the write.
ScsiNext compare_and_write(ScsiJob& job, ScsiResult& result) {
  constexpr std::uint16_t kBlocksByte = 13;
  const BlockRange range = {cdb_field<std::uint64_t>(job.command, 2), job.command.cdb[kBlocksByte], 2,
                            kBlocksByte};
  if (job.lun->read_only()) return check_condition(result, SenseKey::kDataProtect, Asc::kWriteProtected);
  if (!in_range(*job.lun, range)) return invalid_cdb(result, Asc::kLbaOutOfRange, {range.lba_byte});
  if (range.blocks == 0) return succeed(result);
  set_range(job, range);
  const auto size = static_cast<std::uint32_t>(job.end - job.position);
  if (range.blocks > compare_and_write_blocks_max(job.lun->geometry()) ||
      job.command.data_length < 2 * size) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {kBlocksByte});
  }
  job.fua = (job.command.cdb[1] & 0x08) != 0;
  // Taken up from a worker process that died: the write may have been done.
  if (job.compared) return write_compared(job, size);
  copy_parameters(job.command, job.given().first(size));
  return read_piece(job, compare_then_write);
}

ScsiNext verify10(ScsiJob& job, ScsiResult& result) {
  return begin_verify(job, result, range10(job.command));
}
ScsiNext verify12(ScsiJob& job, ScsiResult& result) {
  return begin_verify(job, result, range12(job.command));
}
ScsiNext verify16(ScsiJob& job, ScsiResult& result) {
  return begin_verify(job, result, range16(job.command));
}
ScsiNext write_and_verify10(ScsiJob& job, ScsiResult& result) {
  return begin_write_and_verify(job, result, range10(job.command));
}
ScsiNext write_and_verify12(ScsiJob& job, ScsiResult& result) {
  return begin_write_and_verify(job, result, range12(job.command));
}
ScsiNext write_and_verify16(ScsiJob& job, ScsiResult& result) {
  return begin_write_and_verify(job, result, range16(job.command));
}

}  // namespace vmbusd::storvsp
