// What answers SCSI commands: a direct-access LUN, and the target where there is none. No I/O: commands that
// need the medium say what they need.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "base/guid.h"
#include "storvsp/disk.h"
#include "storvsp/reservations.h"
#include "storvsp/scsi_command.h"
#include "storvsp/stor_record.h"

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
  bool keeps_reservations = false;     // DiskOp::kKeep works
  std::uint64_t incarnation = 1;       // DiskConfig's
};

// Conditions that the next command reports, as bits.
enum class UnitAttention : std::uint32_t {
  kPowerOn = 1u << 0,
  kBusReset = 1u << 1,
  kLogicalUnitReset = 1u << 2,
  kCapacityChanged = 1u << 3,
  kReportedLunsChanged = 1u << 4,  // other LUNs came or went
};

// A disk as the guest sees it. Shared by the channels of its controller: options change while all workers are
// parked, and what commands change is atomic.
class LogicalUnit {
 public:
  explicit LogicalUnit(LunOptions options) : options_(std::move(options)) { reset(); }

  // Begins a command. kDisk: do `io` with the first io.length bytes of command.data, then call finish(). For
  // what else it may need see ScsiNext. Any worker thread.
  [[nodiscard]] ScsiNext execute(const ScsiCommand& command, ScsiResult& result, DiskIo& io) noexcept;
  // Ends a command whose `io` is over. `error` is 0 or a positive errno. Any worker thread.
  static void finish(const DiskIo& io, int error, ScsiResult& result) noexcept;
  // What commands changed goes back to its default: a new guest begins. No command is under way.
  void reset() {
    write_cache_.store(options_.write_cache, std::memory_order_relaxed);
    special_.store(0, std::memory_order_relaxed);
    reservations_.reset_unit();
  }
  // A reset of the kind that `attention` tells of: what RESERVE did ends, settings stay. Any thread.
  void reset_by_guest(UnitAttention attention) {
    reservations_.reset_unit();
    start();
    raise(attention);
  }
  // A guest opens the controller. Any thread.
  void power_on() {
    start();
    raise(UnitAttention::kPowerOn);
  }
  // Any thread.
  void raise(UnitAttention attention) {
    special_.fetch_or(static_cast<std::uint32_t>(attention), std::memory_order_relaxed);
  }

  // Its medium has grown, to a multiple of the block. Control thread, all workers being parked.
  void grow(std::uint64_t size_bytes) {
    options_.geometry.size_bytes = size_bytes;
    raise(UnitAttention::kCapacityChanged);
  }

  // What commands have changed, for a worker process that takes the controller up. It is not trusted:
  // Errc::kProtocol where it cannot be. Any thread; restore() before commands come.
  [[nodiscard]] LunRecord save() const;
  // Whether a record is of this disk rather than of one that was at the same LUN before.
  [[nodiscard]] bool is_of(const LunRecord& record) const {
    return record.incarnation == options_.incarnation;
  }
  [[nodiscard]] Result<void> restore(const LunRecord& record);

  // For kExclusiveJob: from now on other commands of the medium are held; the job may begin when those that
  // came before, on every channel, are over. False where another job has it: the command is held itself. A
  // worker that is sent a message after it sees it. end_exclusive() has those who hold commands told by the
  // caller.
  [[nodiscard]] bool try_exclusive() {
    // acquire: pairs with the release of the last end_exclusive().
    return (special_.fetch_or(kExclusive, std::memory_order_acquire) & kExclusive) == 0;
  }
  // release: pairs with the acquire in execute(), which begins what follows the job.
  void end_exclusive() { special_.fetch_and(~kExclusive, std::memory_order_release); }

  // For the handlers of commands.
  [[nodiscard]] const LunIdentity& identity() const { return options_.identity; }
  [[nodiscard]] const DiskGeometry& geometry() const { return options_.geometry; }
  [[nodiscard]] std::uint64_t blocks() const {
    return options_.geometry.size_bytes / options_.geometry.logical_block_bytes;
  }
  [[nodiscard]] std::uint32_t max_transfer_bytes() const { return options_.max_transfer_bytes; }
  [[nodiscard]] Reservations& reservations() { return reservations_; }
  [[nodiscard]] bool read_only() const { return options_.read_only; }
  [[nodiscard]] bool default_write_cache() const { return options_.write_cache; }
  [[nodiscard]] bool write_cache_changeable() const { return options_.write_cache_changeable; }
  [[nodiscard]] bool keeps_reservations() const { return options_.keeps_reservations; }
  // Relaxed: commands that race with the MODE SELECT that switches it may see either.
  [[nodiscard]] bool write_cache() const { return write_cache_.load(std::memory_order_relaxed); }
  void set_write_cache(bool on) { write_cache_.store(on, std::memory_order_relaxed); }
  // Of START STOP UNIT. A stopped unit does nothing with its medium; commands that race with it may be done.
  void start() { special_.fetch_and(~kStopped, std::memory_order_relaxed); }
  void stop() { special_.fetch_or(kStopped, std::memory_order_relaxed); }

  // Takes what is pending; empty where nothing is.
  [[nodiscard]] std::optional<scsi::Asc> take_attention();

 private:
  static constexpr std::uint32_t kExclusive = 1u << 31;
  static constexpr std::uint32_t kStopped = 1u << 30;

  // What keeps a command from being executed now.
  [[nodiscard]] std::optional<ScsiNext> attend(const ScsiCommand& command, ScsiResult& result);

  // UnitAttention bits, kExclusive and kStopped. One word, so that a command that nothing concerns looks at
  // nothing else.
  std::atomic<std::uint32_t> special_{0};
  std::atomic<bool> write_cache_{true};
  LunOptions options_;
  Reservations reservations_;
};

// Answers a command for a LUN or target that does not exist. False: no such command without a LUN; the
// transport must say that there is none.
[[nodiscard]] bool execute_without_lun(const ScsiCommand& command, ScsiResult& result) noexcept;

}  // namespace vmbusd::storvsp
