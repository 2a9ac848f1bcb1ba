// The synthetic SCSI controller: a device of one partition with disks at path 0, target 0, LUN 0..63.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/guid.h"
#include "base/result.h"
#include "devices/device.h"
#include "storvsp/limited_disk.h"
#include "storvsp/nbd_connection.h"

namespace vmbusd::storvsp {

inline constexpr std::uint32_t kMaxLuns = 64;  // of one controller, as Hyper-V's
inline constexpr std::uint32_t kMaxTransferBytes = 8u << 20;
inline constexpr std::uint32_t kDefaultTransferBytes = 1u << 20;
inline constexpr std::uint32_t kMaxChannels = 64;

// What a disk's write cache does; the guest always sees one (WCE) unless it is off.
enum class CacheMode : std::uint8_t {
  kWriteback,     // a write is durable after FLUSH or with FUA
  kWritethrough,  // each write is durable when it completes; the guest sees no cache
  kUnsafe,        // FLUSH and FUA cost nothing and promise nothing: data dies with the host
};

// An export of an NBD server.
struct NbdConfig {
  std::string export_name;
  NbdExport found;  // what the server said of it first
  // How long the guest's I/O waits for a server that is gone before it fails: 1..kReconnectDelayMax.
  std::uint32_t reconnect_delay_s = 30;
};
inline constexpr std::uint32_t kReconnectDelayMax = 86'400;

struct DiskConfig {
  enum class Backend : std::uint8_t { kFile, kNbd, kNull };

  std::uint8_t lun = 0;  // < kMaxLuns, each once
  // Tells this disk from others that were at its LUN before, for a guest that is taken up: what was asked of
  // one is not done to another. Not 0.
  std::uint64_t incarnation = 1;
  Backend backend = Backend::kFile;
  // kFile: raw file or block device, open for reading and, unless read_only, writing. O_DIRECT or not is the
  // opener's choice: it holds where the descriptor has it.
  UniqueFd fd;
  NbdConfig nbd;                                  // kNbd only
  std::shared_ptr<NbdConnection> nbd_connection;  // kNbd only: made from that, for make_controller()
  std::uint64_t size_bytes = 0;                   // kNull only: its capacity. The others find their own.
  // kFile only: open for reading and writing, the disk's alone, at first empty. Keeps persistent reservations
  // (APTPL); empty: they end with the worker process.
  UniqueFd reservations;
  bool read_only = false;
  CacheMode cache = CacheMode::kWriteback;
  bool poll = false;  // reads and writes are polled for; O_DIRECT only
  DiskLimits limits;
  bool discard = true;                     // the guest may give space back, where the back end can
  std::uint32_t logical_block_bytes = 0;   // 512 or 4096; 0: what the back end needs, 512 where it can
  std::uint32_t physical_block_bytes = 0;  // power of two, 512..65536, >= logical; 0: what the back end says
  // What INQUIRY says: printable ASCII, at most 8, 16, 4 and 36 characters.
  std::string vendor = "Msft";
  std::string product = "Virtual Disk";
  std::string revision = "1.0";
  std::string serial;            // empty: made from `identity`
  std::optional<Guid> identity;  // world-wide name (VPD 83); empty: made from controller and LUN
};

struct ControllerConfig {
  std::string partition;          // for logs and identities
  std::string name;               // unique in the partition, for example "scsi0"
  std::optional<Guid> instance;   // empty: made from partition and name, the same at every start
  std::uint64_t incarnation = 1;  // as DiskConfig's, of controllers that had its instance before
  std::uint32_t max_transfer_bytes = kDefaultTransferBytes;  // multiple of 4096, 4096..kMaxTransferBytes
  std::uint32_t channels = 1;  // that a guest may have, the primary among them: 1..kMaxChannels
  std::vector<DiskConfig> disks;
};

// Who is held up for a moment by a change at run time: the workers that have its channels, or may. They run.
struct Threads {
  io::Worker& control;  // whose thread asks for it
  std::span<io::Worker* const> workers;
};

// Its disks come, go and change at run time; a guest that is connected is told. Control thread.
class Controller : public devices::Device {
 public:
  // Errors as make_controller()'s; Errc::kWrongState where the LUN's last disk is still leaving.
  [[nodiscard]] virtual Result<void> add_disk(DiskConfig disk, const Threads& threads) = 0;
  // What the guest asks of the disk from now on is answered as if it had never been there; what is under way
  // is aborted, or ends as it will. Then the disk's descriptors are closed and `done` is called, from the
  // control worker's loop. Errc::kConfig: no such disk.
  [[nodiscard]] virtual Result<void> remove_disk(std::uint8_t lun, const Threads& threads,
                                                 std::function<void()> done) = 0;
  // The file or device has at least so many bytes now. Never less than before: Errc::kConfig.
  [[nodiscard]] virtual Result<void> grow_disk(std::uint8_t lun, std::uint64_t size_bytes,
                                               const Threads& threads) = 0;
  [[nodiscard]] virtual Result<void> limit_disk(std::uint8_t lun, const DiskLimits& limits,
                                                const Threads& threads) = 0;
};

// Checks one disk as make_controller() will, so that the caller can say which disk is wrong and where that is
// configured. Errc::kConfig: a value out of range or at odds with the descriptor; Errc::kOs: the descriptor
// cannot be examined. Error::text tells what.
[[nodiscard]] Result<void> check_disk(const DiskConfig& disk);

// Takes the descriptors over. Errors as check_disk(), and Errc::kConfig for a LUN given twice. Control
// thread.
[[nodiscard]] Result<std::unique_ptr<Controller>> make_controller(ControllerConfig config);

}  // namespace vmbusd::storvsp
