// Commands that take several operations on the medium, or memory of their own.
#pragma once

#include <cstdint>
#include <span>

#include "storvsp/scsi_target.h"

namespace vmbusd::storvsp {

// One such command on its way: begin_job(), then its operations one after the other, each followed by
// continue_job(), until that says kComplete. Belongs to one worker; may be used again after its end.
struct ScsiJob {
  // Two halves: what the guest gave, and what the medium holds.
  static constexpr std::uint32_t kScratchBytes = 128u << 10;
  static constexpr std::uint32_t kHalfBytes = kScratchBytes / 2;
  using Step = ScsiNext (*)(ScsiJob&, int error, ScsiResult&);

  std::byte* scratch = nullptr;  // kScratchBytes, page aligned; the owner's

  // The owner's, before begin_job().
  LogicalUnit* lun = nullptr;
  ScsiCommand command;
  bool compared = false;  // COMPARE AND WRITE: it is only the write that is left to do

  // The operation that is wanted after kDisk, and room for what kMap finds.
  DiskIo io;
  std::span<iovec> buffers;
  DiskExtent extent;

  // The rest is the handlers'.
  [[nodiscard]] std::span<std::byte> given() const { return {scratch, kHalfBytes}; }
  [[nodiscard]] std::span<std::byte> found() const { return {scratch + kHalfBytes, kHalfBytes}; }
  // Wants `operation`, with `memory` for its data; `next` comes after it.
  ScsiNext disk(const DiskIo& operation, std::span<std::byte> memory, Step next);
  ScsiNext disk(const DiskIo& operation, Step next) { return disk(operation, {}, next); }

  Step then = nullptr;
  iovec vector{};
  std::uint64_t position = 0;  // on the medium, bytes: what is done already ends here
  std::uint64_t end = 0;
  std::uint32_t data_position = 0;  // in the guest's buffer, bytes
  std::uint32_t count = 0;          // of descriptors
  bool compare = false;             // with the guest's data
  bool one_block = false;           // the guest gave one block for all
  bool fua = false;
  bool unmap = false;
};

// Begins a command for which LogicalUnit::execute() said kJob or kExclusiveJob. kDisk: do job.io with
// job.buffers, then call continue_job() with its outcome (0 or a positive errno).
[[nodiscard]] ScsiNext begin_job(ScsiJob& job, ScsiResult& result) noexcept;
[[nodiscard]] ScsiNext continue_job(ScsiJob& job, int error, ScsiResult& result) noexcept;

}  // namespace vmbusd::storvsp
