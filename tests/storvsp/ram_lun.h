// A LUN with its medium in memory, driven without channel, worker or kernel.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <initializer_list>
#include <span>
#include <vector>

#include "base/assert.h"
#include "storvsp/kept_record.h"
#include "storvsp/scsi_job.h"
#include "storvsp/scsi_target.h"

namespace vmbusd::storvsp {

using Bytes = std::vector<std::uint8_t>;

inline constexpr DataDirection kNone = DataDirection::kNone;
inline constexpr DataDirection kIn = DataDirection::kIn;
inline constexpr DataDirection kOut = DataDirection::kOut;

template <std::size_t Size>
std::array<char, Size> padded_text(const char* text) {
  std::array<char, Size> field;
  field.fill(' ');
  std::memcpy(field.data(), text, std::min(Size, std::strlen(text)));
  return field;
}

inline LunOptions ram_lun_options(std::uint64_t size_bytes, std::uint32_t block_bytes = 512) {
  LunOptions options;
  options.identity.vendor = padded_text<8>("Msft");
  options.identity.product = padded_text<16>("Virtual Disk");
  options.identity.revision = padded_text<4>("1.0");
  options.identity.serial = "SERIAL-1";
  options.identity.id = Guid::literal("00112233-4455-6677-8899-aabbccddeeff");
  options.geometry = {size_bytes, block_bytes, 4096, false, true, true};
  options.max_transfer_bytes = 1u << 20;
  options.keeps_reservations = true;
  return options;
}

struct RamLun {
  explicit RamLun(LunOptions options)
      : geometry(options.geometry),
        lun(options),
        medium(options.geometry.size_bytes),
        mapped(options.geometry.size_bytes / options.geometry.logical_block_bytes, true) {
    job.lun = &lun;
    job.scratch = scratch.data();
  }

  // Runs a command to its end; `data` is the guest's buffer, in pieces of `piece` bytes.
  ScsiResult run(std::span<const std::uint8_t> cdb, DataDirection direction, std::span<std::byte> data,
                 std::size_t piece = 4096) {
    std::vector<iovec> pieces;
    for (std::size_t at = 0; at < data.size(); at += piece) {
      pieces.push_back({data.data() + at, std::min(piece, data.size() - at)});
    }
    ScsiCommand command;
    VMBUSD_ASSERT(cdb.size() <= command.cdb.size());
    std::copy(cdb.begin(), cdb.end(), command.cdb.begin());
    command.cdb_length = static_cast<std::uint8_t>(cdb.size());
    command.target_luns = 1;
    if (direction != DataDirection::kNone) {
      command.direction = direction;
      command.data_length = static_cast<std::uint32_t>(data.size());
      command.data = pieces;
    }
    ScsiResult result;
    last_io = {};
    switch (lun.execute(command, result, last_io)) {
      case ScsiNext::kComplete:
        return result;
      case ScsiNext::kDisk:
        VMBUSD_ASSERT(last_io.op == DiskOp::kFlush || last_io.length <= command.data_length);
        LogicalUnit::finish(last_io, perform(last_io, pieces), result);
        return result;
      case ScsiNext::kExclusiveJob:
        VMBUSD_ASSERT(lun.try_exclusive());
        run_job(command, result);
        lun.end_exclusive();
        return result;
      case ScsiNext::kJob:
        run_job(command, result);
        return result;
      case ScsiNext::kHold:
        break;
    }
    VMBUSD_ASSERT(false);
  }
  ScsiResult run(std::initializer_list<std::uint8_t> cdb, DataDirection direction = DataDirection::kNone,
                 std::span<std::byte> data = {}) {
    return run(std::span(cdb.begin(), cdb.size()), direction, data);
  }

  DiskGeometry geometry;
  LogicalUnit lun;
  std::vector<std::byte> medium;
  std::vector<bool> mapped;        // by block
  std::vector<std::byte> kept;     // beside the medium
  int disk_error = 0;              // errno of the next operations
  bool zeroes_by_writing = false;  // kZero is not supported
  DiskIo last_io;
  int disk_operations = 0;
  std::vector<DiskIo> operations;  // all of them

 private:
  void run_job(const ScsiCommand& command, ScsiResult& result) {
    job.command = command;
    job.compared = false;
    // A shuffled scratch: nothing may be taken for the guest's.
    std::memset(scratch.data(), 0xee, scratch.size());
    ScsiNext next = begin_job(job, result);
    while (next == ScsiNext::kDisk) {
      last_io = job.io;
      const int error = perform(job.io, job.buffers);
      next = continue_job(job, error, result);
    }
    VMBUSD_ASSERT(next == ScsiNext::kComplete);
  }

  int perform(const DiskIo& io, std::span<const iovec> buffers) {
    ++disk_operations;
    operations.push_back(io);
    if (disk_error != 0) return disk_error;
    if (io.op == DiskOp::kFlush) return 0;
    if (io.op == DiskOp::kKeep) {
      VMBUSD_ASSERT(buffers.size() == 1 && buffers[0].iov_len == io.length &&
                    io.length <= KeptRecord::kBytesMax);
      const auto* const bytes = static_cast<const std::byte*>(buffers[0].iov_base);
      kept.assign(bytes, bytes + io.length);
      return 0;
    }
    const std::uint32_t block = geometry.logical_block_bytes;
    VMBUSD_ASSERT(io.offset % block == 0 && io.length % block == 0 && io.offset < medium.size());
    if (io.op == DiskOp::kMap) {
      const std::size_t first = io.offset / block;
      std::size_t end = first;
      while (end < mapped.size() && mapped[end] == mapped[first]) ++end;
      job.extent = {(end - first) * block, mapped[first]};
      return 0;
    }
    VMBUSD_ASSERT(io.length != 0 && io.length <= medium.size() - io.offset);
    std::byte* at = medium.data() + io.offset;
    if (io.op == DiskOp::kDiscard || io.op == DiskOp::kZero) {
      VMBUSD_ASSERT(buffers.empty());
      if (io.op == DiskOp::kZero && zeroes_by_writing) return EOPNOTSUPP;
      std::memset(at, 0, io.length);
      const bool gone = io.op == DiskOp::kDiscard || io.unmap;
      std::fill_n(mapped.begin() + static_cast<std::ptrdiff_t>(io.offset / block), io.length / block, !gone);
      return 0;
    }
    std::size_t left = io.length;
    for (const iovec& buffer : buffers) {
      const std::size_t size = std::min(left, buffer.iov_len);
      if (io.op == DiskOp::kRead) {
        std::memcpy(buffer.iov_base, at, size);
      } else {
        std::memcpy(at, buffer.iov_base, size);
      }
      at += size;
      left -= size;
    }
    VMBUSD_ASSERT(left == 0);
    if (io.op == DiskOp::kWrite) {
      std::fill_n(mapped.begin() + static_cast<std::ptrdiff_t>(io.offset / block), io.length / block, true);
    }
    return 0;
  }

  ScsiJob job;
  std::vector<std::byte> scratch = std::vector<std::byte>(ScsiJob::kScratchBytes);
};

}  // namespace vmbusd::storvsp
