// One LUN behind a StorClient, by whole calls: what a test or a benchmark does to a disk.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "guest/stor_client.h"
#include "storvsp/scsi.h"

namespace vmbusd::guest {

namespace scsi = storvsp::scsi;

// READ(16) or WRITE(16) of `blocks` logical blocks from `lba` on, without its buffer.
[[nodiscard]] StorCommand block_command(scsi::Opcode opcode, std::uint64_t lba, std::uint32_t blocks,
                                        std::uint8_t lun = 0);

// Sense of a completion, where it has one.
struct Sense {
  scsi::SenseKey key;
  scsi::Asc asc;
  friend bool operator==(const Sense&, const Sense&) = default;
};
[[nodiscard]] std::optional<Sense> sense_of(const vstor::SrbPacket& packet);
[[nodiscard]] bool succeeded(const vstor::SrbPacket& packet);

// Errors other than time-outs and broken protocol are Errc::kOs with EIO; last_sense() tells why.
class Disk {
 public:
  // The layout is that of the buffers that commands move.
  explicit Disk(StorClient& client, std::uint8_t lun = 0, Layout layout = Layout::kScattered)
      : client_(client), lun_(lun), layout_(layout) {}

  struct Capacity {
    std::uint64_t blocks;
    std::uint32_t block_bytes;
  };
  // TEST UNIT READY. Takes the unit attention that a guest's first command to a LUN gets, as every call here
  // does; for those who go on by StorClient.
  [[nodiscard]] Result<void> ready();
  [[nodiscard]] Result<Capacity> capacity();
  [[nodiscard]] Result<scsi::InquiryData> inquiry();
  // By bytes, whole blocks; split by the controller's largest transfer.
  [[nodiscard]] Result<void> read(std::uint64_t offset, std::span<std::byte> into);
  [[nodiscard]] Result<void> write(std::uint64_t offset, std::span<const std::byte> from);
  [[nodiscard]] Result<void> flush();

  [[nodiscard]] std::optional<Sense> last_sense() const { return last_sense_; }

 private:
  // Runs the command over a buffer of `bytes`, filled with `out` before it and copied into `in` after it.
  [[nodiscard]] Result<void> run(StorCommand command, std::span<const std::byte> out,
                                 std::span<std::byte> in);
  [[nodiscard]] std::uint32_t transfer_bytes_max() const;

  StorClient& client_;
  std::uint8_t lun_;
  Layout layout_;
  std::uint32_t block_bytes_ = 0;  // 0: not asked yet
  std::optional<Sense> last_sense_;
};

}  // namespace vmbusd::guest
