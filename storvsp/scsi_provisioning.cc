// Commands that fill, give back and ask for space: WRITE SAME, UNMAP, GET LBA STATUS.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "storvsp/scsi_handlers.h"
#include "storvsp/scsi_range.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Asc;
using scsi::SenseKey;

// One operation of the disk; a command may need several.
constexpr std::uint32_t kDiscardBytesMax = 1u << 30;

// With the cache off, what a command did is durable when it completes.
ScsiNext flushed(ScsiJob& job, int error, ScsiResult& result) {
  if (error != 0) return fail_job(job, error, result);
  succeed(result);
  result.transferred = job.data_position;
  return ScsiNext::kComplete;
}

ScsiNext flush_if_uncached(ScsiJob& job, ScsiResult& result) {
  if (job.lun->write_cache()) return flushed(job, 0, result);
  return job.disk({.op = DiskOp::kFlush}, flushed);
}

// WRITE SAME.

ScsiNext same_written(ScsiJob& job, int error, ScsiResult& result);

ScsiNext write_same_piece(ScsiJob& job) {
  const auto size =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(job.end - job.position, ScsiJob::kScratchBytes));
  return job.disk(
      {.op = DiskOp::kWrite, .fua = !job.lun->write_cache(), .offset = job.position, .length = size},
      {job.scratch, size}, same_written);
}

ScsiNext same_written(ScsiJob& job, int error, ScsiResult& result) {
  if (error != 0) return fail_job(job, error, result);
  job.position += job.io.length;
  if (job.position != job.end) return write_same_piece(job);
  return flushed(job, 0, result);
}

ScsiNext zeroed(ScsiJob& job, int error, ScsiResult& result) {
  if (error == EOPNOTSUPP) {
    std::memset(job.scratch, 0, ScsiJob::kScratchBytes);
    return write_same_piece(job);
  }
  if (error != 0) return fail_job(job, error, result);
  return flush_if_uncached(job, result);
}

// [SBC-4: WRITE SAME (10) command, WRITE SAME (16) command]
ScsiNext begin_write_same(ScsiJob& job, ScsiResult& result, const BlockRange& range, bool no_data) {
  const LogicalUnit& lun = *job.lun;
  const DiskGeometry& geometry = lun.geometry();
  const std::uint32_t block_bytes = geometry.logical_block_bytes;
  job.unmap = (job.command.cdb[1] & 0x08) != 0;
  if (job.unmap && !geometry.discards) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {1, 3});
  if (lun.read_only()) return check_condition(result, SenseKey::kDataProtect, Asc::kWriteProtected);
  if (!in_range(lun, range)) return invalid_cdb(result, Asc::kLbaOutOfRange, {range.lba_byte});
  if (range.blocks == 0 || range.blocks > write_same_blocks_max(geometry) ||
      (!no_data && job.command.data_length != block_bytes)) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {range.blocks_byte});
  }
  job.position = range.lba * block_bytes;
  job.end = job.position + std::uint64_t{range.blocks} * block_bytes;

  const std::span<std::byte> block(job.scratch, block_bytes);
  bool zero = true;
  if (!no_data) {
    copy_parameters(job.command, block);
    job.data_position = block_bytes;
    zero = std::all_of(block.begin(), block.end(), [](std::byte byte) { return byte == std::byte{}; });
  }
  if (zero) {
    // Blocks are given back only where they read as zeros then, as they were to.
    return job.disk({.op = DiskOp::kZero,
                     .offset = job.position,
                     .length = static_cast<std::uint32_t>(job.end - job.position),
                     .unmap = job.unmap},
                    zeroed);
  }
  for (std::uint32_t at = block_bytes; at < ScsiJob::kScratchBytes; at += block_bytes) {
    std::memcpy(job.scratch + at, block.data(), block_bytes);
  }
  return write_same_piece(job);
}

// UNMAP.

scsi::UnmapDescriptor unmap_descriptor(const ScsiJob& job, std::uint32_t index) {
  scsi::UnmapDescriptor descriptor;
  std::memcpy(&descriptor, job.scratch + sizeof(scsi::UnmapHeader) + index * sizeof descriptor,
              sizeof descriptor);
  return descriptor;
}

ScsiNext discarded(ScsiJob& job, int error, ScsiResult& result);

// The next piece of a descriptor, or the next descriptor that names blocks. job.count of them are left.
ScsiNext discard_next(ScsiJob& job, ScsiResult& result) {
  const std::uint32_t block_bytes = job.lun->geometry().logical_block_bytes;
  while (job.position == job.end && job.count != 0) {
    const scsi::UnmapDescriptor descriptor = unmap_descriptor(job, --job.count);
    job.position = descriptor.lba * block_bytes;
    job.end = job.position + std::uint64_t{descriptor.blocks} * block_bytes;
  }
  if (job.position == job.end) return flush_if_uncached(job, result);
  const auto size =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(job.end - job.position, kDiscardBytesMax));
  return job.disk({.op = DiskOp::kDiscard, .offset = job.position, .length = size}, discarded);
}

ScsiNext discarded(ScsiJob& job, int error, ScsiResult& result) {
  if (error != 0) return fail_job(job, error, result);
  job.position += job.io.length;
  return discard_next(job, result);
}

}  // namespace

ScsiNext write_same10(ScsiJob& job, ScsiResult& result) {
  return begin_write_same(job, result, range10(job.command), false);
}
ScsiNext write_same16(ScsiJob& job, ScsiResult& result) {
  const bool no_data = (job.command.cdb[1] & 0x01) != 0;  // NDOB
  return begin_write_same(job, result, range16(job.command), no_data);
}

// [SBC-4: UNMAP command] Every range is checked before the first is unmapped.
ScsiNext unmap(ScsiJob& job, ScsiResult& result) {
  const LogicalUnit& lun = *job.lun;
  if (!lun.geometry().discards) return invalid_cdb(result, Asc::kInvalidCommandOperationCode, {0});
  if (lun.read_only()) return check_condition(result, SenseKey::kDataProtect, Asc::kWriteProtected);
  const auto list_length = cdb_field<std::uint16_t>(job.command, 7);
  if (list_length == 0) return succeed(result);
  if (list_length < sizeof(scsi::UnmapHeader) || list_length > job.command.data_length) {
    return parameter_list_length_error(result);
  }
  constexpr std::size_t kListMax =
      sizeof(scsi::UnmapHeader) + kUnmapDescriptorsMax * sizeof(scsi::UnmapDescriptor);
  static_assert(kListMax <= ScsiJob::kScratchBytes);
  const std::size_t size = std::min<std::size_t>(list_length, kListMax);
  copy_parameters(job.command, {job.scratch, size});
  scsi::UnmapHeader header;
  std::memcpy(&header, job.scratch, sizeof header);
  const std::size_t count = std::min<std::size_t>(header.descriptors_length, list_length - sizeof header) /
                            sizeof(scsi::UnmapDescriptor);
  if (count > kUnmapDescriptorsMax) return invalid_parameter(result, {2});

  std::uint64_t total = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    const scsi::UnmapDescriptor descriptor = unmap_descriptor(job, i);
    if (!in_range(lun, {descriptor.lba, descriptor.blocks, 0, 0})) {
      return check_condition(result, SenseKey::kIllegalRequest, Asc::kLbaOutOfRange);
    }
    total += descriptor.blocks;
    if (total > kUnmapBlocksMax) {
      const std::size_t byte =
          sizeof header + i * sizeof descriptor + offsetof(scsi::UnmapDescriptor, blocks);
      return invalid_parameter(result, {static_cast<std::uint16_t>(byte)});
    }
  }
  job.data_position = list_length;
  job.position = job.end = 0;
  job.count = static_cast<std::uint32_t>(count);
  return discard_next(job, result);
}

namespace {

// GET LBA STATUS: descriptors gather in the scratch memory.

constexpr std::uint32_t kStatusDescriptorsMax = 64;

ScsiNext report_status(const ScsiJob& job, ScsiResult& result) {
  const std::size_t size = sizeof(scsi::LbaStatusHeader) + job.count * sizeof(scsi::LbaStatusDescriptor);
  scsi::LbaStatusHeader header{};
  header.data_length = static_cast<std::uint32_t>(size - sizeof header.data_length);
  std::memcpy(job.scratch, &header, sizeof header);
  return reply(job.command, result, {job.scratch, size}, cdb_field<std::uint32_t>(job.command, 10));
}

ScsiNext extent_found(ScsiJob& job, int error, ScsiResult& result) {
  if (error != 0) return fail_job(job, error, result);
  const DiskGeometry& geometry = job.lun->geometry();
  const std::uint64_t blocks = std::min<std::uint64_t>(
      std::min(job.extent.length, job.end - job.position) / geometry.logical_block_bytes, UINT32_MAX);
  scsi::LbaStatusDescriptor descriptor{};
  descriptor.lba = job.position / geometry.logical_block_bytes;
  descriptor.blocks = static_cast<std::uint32_t>(blocks);
  descriptor.status = job.extent.mapped ? scsi::kLbaMapped : scsi::kLbaDeallocated;
  std::memcpy(job.scratch + sizeof(scsi::LbaStatusHeader) + job.count * sizeof descriptor, &descriptor,
              sizeof descriptor);
  ++job.count;
  job.position += blocks * geometry.logical_block_bytes;
  const std::uint32_t allocation_length = cdb_field<std::uint32_t>(job.command, 10);
  const std::uint64_t room = sizeof(scsi::LbaStatusHeader) + (job.count + 1) * sizeof descriptor;
  if (job.position == job.end || room > allocation_length || room > job.command.data_length ||
      job.count == kStatusDescriptorsMax) {
    return report_status(job, result);
  }
  return job.disk({.op = DiskOp::kMap, .offset = job.position}, extent_found);
}

}  // namespace

// [SBC-4: GET LBA STATUS (16) command]
ScsiNext get_lba_status(ScsiJob& job, ScsiResult& result) {
  const LogicalUnit& lun = *job.lun;
  const auto lba = cdb_field<std::uint64_t>(job.command, 2);
  if (lba >= lun.blocks()) return invalid_cdb(result, Asc::kLbaOutOfRange, {2});
  job.position = lba * lun.geometry().logical_block_bytes;
  job.end = lun.geometry().size_bytes;
  return job.disk({.op = DiskOp::kMap, .offset = job.position}, extent_found);
}

}  // namespace vmbusd::storvsp
