// What answers SCSI commands: a direct-access LUN, and the target where there is none. No I/O: commands that
// need the medium say what they need.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "base/guid.h"
#include "storvsp/disk.h"
#include "storvsp/scsi_command.h"

namespace vmbusd::storvsp {

// Who a LUN says it is. Texts are padded with spaces as they stand on the wire.
struct LunIdentity {
  std::array<char, 8> vendor;
  std::array<char, 16> product;
  std::array<char, 4> revision;
  std::string serial;
  Guid id;  // world-wide
};

struct LunOptions {
  LunIdentity identity;
  DiskGeometry geometry;
  std::uint32_t max_transfer_bytes = 0;  // of one command
  bool read_only = false;
  bool write_cache = true;             // WCE: writes may complete before they are durable
  bool write_cache_changeable = true;  // by MODE SELECT
};

// A disk as the guest sees it. Shared by the channels of its controller: options do not change while channels
// are open, and what commands change is atomic.
class LogicalUnit {
 public:
  explicit LogicalUnit(LunOptions options) : options_(std::move(options)) { reset(); }

  // Begins a command. kDisk: do `io` with the first io.length bytes of command.data, then call finish(). Any
  // worker thread.
  [[nodiscard]] ScsiNext execute(const ScsiCommand& command, ScsiResult& result, DiskIo& io) noexcept;
  // Ends a command whose `io` is over. `error` is 0 or a positive errno. Any worker thread.
  static void finish(const DiskIo& io, int error, ScsiResult& result) noexcept;
  // What commands changed goes back to its default: a new guest begins.
  void reset() { write_cache_.store(options_.write_cache, std::memory_order_relaxed); }

  // For the handlers of commands.
  [[nodiscard]] const LunIdentity& identity() const { return options_.identity; }
  [[nodiscard]] const DiskGeometry& geometry() const { return options_.geometry; }
  [[nodiscard]] std::uint64_t blocks() const {
    return options_.geometry.size_bytes / options_.geometry.logical_block_bytes;
  }
  [[nodiscard]] std::uint32_t max_transfer_bytes() const { return options_.max_transfer_bytes; }
  [[nodiscard]] bool read_only() const { return options_.read_only; }
  [[nodiscard]] bool default_write_cache() const { return options_.write_cache; }
  [[nodiscard]] bool write_cache_changeable() const { return options_.write_cache_changeable; }
  // Relaxed: commands that race with the MODE SELECT that switches it may see either.
  [[nodiscard]] bool write_cache() const { return write_cache_.load(std::memory_order_relaxed); }
  void set_write_cache(bool on) { write_cache_.store(on, std::memory_order_relaxed); }

 private:
  LunOptions options_;
  std::atomic<bool> write_cache_{true};
};

// Answers a command for a LUN or target that does not exist. False: no such command without a LUN; the
// transport must say that there is none.
[[nodiscard]] bool execute_without_lun(const ScsiCommand& command, ScsiResult& result) noexcept;

}  // namespace vmbusd::storvsp
