#include "storvsp/scsi_job.h"

#include "base/assert.h"
#include "storvsp/scsi_handlers.h"

namespace vmbusd::storvsp {

ScsiNext ScsiJob::disk(const DiskIo& operation, std::span<std::byte> memory, Step next) {
  io = operation;
  vector = {memory.data(), memory.size()};
  buffers = memory.empty() ? std::span<iovec>() : std::span(&vector, 1);
  then = next;
  return ScsiNext::kDisk;
}

ScsiNext needs_job(LogicalUnit& /*lun*/, const ScsiCommand& /*command*/, ScsiResult& /*result*/,
                   DiskIo& /*io*/) {
  return ScsiNext::kJob;
}
ScsiNext needs_exclusive_job(LogicalUnit& /*lun*/, const ScsiCommand& /*command*/, ScsiResult& /*result*/,
                             DiskIo& /*io*/) {
  return ScsiNext::kExclusiveJob;
}

ScsiNext fail_job(const ScsiJob& job, int error, ScsiResult& result) {
  LogicalUnit::finish(job.io, error, result);
  return ScsiNext::kComplete;
}

ScsiNext begin_job(ScsiJob& job, ScsiResult& result) noexcept {
  const CommandEntry* const entry = find_command(job.command, result);
  VMBUSD_ASSERT(entry != nullptr && entry->begin != nullptr);
  job.data_position = 0;
  job.count = 0;
  job.compare = job.one_block = job.fua = job.unmap = false;
  return entry->begin(job, result);
}

ScsiNext continue_job(ScsiJob& job, int error, ScsiResult& result) noexcept {
  return job.then(job, error, result);
}

}  // namespace vmbusd::storvsp
