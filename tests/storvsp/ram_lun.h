// A LUN with its medium in memory, driven without channel, worker or kernel.
#pragma once

#include <cstring>
#include <initializer_list>
#include <span>
#include <vector>

#include "base/assert.h"
#include "storvsp/scsi_target.h"

namespace vmbusd::storvsp {

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
  options.geometry = {size_bytes, block_bytes, 4096, false};
  options.max_transfer_bytes = 1u << 20;
  return options;
}

struct RamLun {
  explicit RamLun(LunOptions options) : lun(options), medium(options.geometry.size_bytes) {}

  // Runs a command to its end; `data` is the guest's buffer, in pieces of `piece` bytes.
  ScsiResult run(std::span<const std::uint8_t> cdb, DataDirection direction, std::span<std::byte> data,
                 std::size_t piece = 4096) {
    std::vector<iovec> pieces;
    for (std::size_t at = 0; at < data.size(); at += piece) {
      pieces.push_back({data.data() + at, std::min(piece, data.size() - at)});
    }
    ScsiCommand command;
    VMBUSD_ASSERT(cdb.size() <= command.cdb.size());
    std::memcpy(command.cdb.data(), cdb.data(), cdb.size());
    command.cdb_length = static_cast<std::uint8_t>(cdb.size());
    command.target_luns = 1;
    if (direction != DataDirection::kNone) {
      command.direction = direction;
      command.data_length = static_cast<std::uint32_t>(data.size());
      command.data = pieces;
    }
    ScsiResult result;
    last_io = {};
    if (lun.execute(command, result, last_io) == ScsiNext::kComplete) return result;
    ++disk_operations;
    if (disk_error == 0 && last_io.op != DiskOp::kFlush) {
      VMBUSD_ASSERT(last_io.length != 0 && last_io.length <= data.size());
      VMBUSD_ASSERT(last_io.offset <= medium.size() && last_io.length <= medium.size() - last_io.offset);
      std::byte* const at = medium.data() + last_io.offset;
      if (last_io.op == DiskOp::kRead) {
        std::memcpy(data.data(), at, last_io.length);
      } else {
        std::memcpy(at, data.data(), last_io.length);
      }
    }
    LogicalUnit::finish(last_io, disk_error, result);
    return result;
  }
  ScsiResult run(std::initializer_list<std::uint8_t> cdb, DataDirection direction = DataDirection::kNone,
                 std::span<std::byte> data = {}) {
    return run(std::span(cdb.begin(), cdb.size()), direction, data);
  }

  LogicalUnit lun;
  std::vector<std::byte> medium;
  int disk_error = 0;  // errno of the next operations
  DiskIo last_io;
  int disk_operations = 0;
};

}  // namespace vmbusd::storvsp
