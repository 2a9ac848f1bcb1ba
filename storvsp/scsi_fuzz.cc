// Command sequences against a LUN whose medium is memory, compared with a model that knows only what blocks
// hold. Each input is a list of actions.
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tests/storvsp/fuzz_input.h"
#include "tests/storvsp/ram_lun.h"

namespace vmbusd::storvsp {
namespace {

constexpr std::uint64_t kBlocks = 96;
constexpr std::size_t kActionsMax = 256;
constexpr std::size_t kGuard = 64;  // bytes around the guest's buffer that nobody may touch
constexpr std::byte kGuardFill{0x5a};

constexpr std::array<int, 6> kErrors = {EIO, ENOSPC, EROFS, ENOMEM, ENODEV, 12345};

// The guest's buffer with guards around it.
struct GuardedBuffer {
  explicit GuardedBuffer(std::size_t size, std::uint8_t seed) : bytes(size + 2 * kGuard, kGuardFill) {
    for (std::size_t i = 0; i < size; ++i) bytes[kGuard + i] = static_cast<std::byte>(seed + i * 31);
    before = bytes;
  }
  [[nodiscard]] std::span<std::byte> data() {
    return std::span(bytes).subspan(kGuard, bytes.size() - 2 * kGuard);
  }
  // Nothing changed but the first `written` bytes of the buffer.
  void check(std::size_t written) const {
    VMBUSD_ASSERT(std::memcmp(bytes.data(), before.data(), kGuard) == 0);
    const std::size_t rest = kGuard + written;
    VMBUSD_ASSERT(std::memcmp(bytes.data() + rest, before.data() + rest, bytes.size() - rest) == 0);
  }

  std::vector<std::byte> bytes;
  std::vector<std::byte> before;
};

void put_big_endian(std::array<std::uint8_t, 16>& cdb, std::size_t at, std::size_t size,
                    std::uint64_t value) {
  for (std::size_t i = 0; i < size; ++i)
    cdb[at + i] = static_cast<std::uint8_t>(value >> (8 * (size - 1 - i)));
}

class Session {
 public:
  explicit Session(FuzzInput& input)
      : input_(input), options_(make_options(input)), lun_(options_), model_(lun_.medium) {}

  void run() {
    for (std::size_t i = 0; i < kActionsMax && !input_.empty(); ++i) {
      lun_.disk_error = 0;
      switch (input_.below(5)) {
        case 0:
          read_write(false);
          break;
        case 1:
          read_write(true);
          break;
        case 2:
          lun_.disk_error = kErrors[input_.below(kErrors.size())];
          read_write(input_.below(2) == 0);
          break;
        case 3:
          mode_select();
          break;
        default:
          anything();
          break;
      }
    }
    VMBUSD_ASSERT(lun_.medium == model_);
  }

 private:
  static LunOptions make_options(FuzzInput& input) {
    const std::uint32_t block_bytes = input.below(2) == 0 ? 512 : 4096;
    LunOptions options = ram_lun_options(kBlocks * block_bytes, block_bytes);
    options.read_only = input.below(4) == 0;
    options.write_cache = input.below(4) != 0;
    options.write_cache_changeable = input.below(2) == 0;
    return options;
  }

  // A READ or WRITE in one of its four forms, whose outcome the model foretells.
  void read_write(bool write) {
    const std::uint32_t block_bytes = options_.geometry.logical_block_bytes;
    const std::uint64_t lba = input_.below(100);
    std::uint64_t blocks = input_.below(20);
    const bool fua = input_.below(4) == 0;
    std::array<std::uint8_t, 16> cdb{};
    std::size_t cdb_size = 0;
    bool fua_sent = fua;
    switch (input_.below(4)) {
      case 0:
        cdb_size = 6;
        cdb[0] = write ? 0x0a : 0x08;
        put_big_endian(cdb, 2, 2, lba);
        cdb[4] = static_cast<std::uint8_t>(blocks);
        if (blocks == 0) blocks = 256;
        fua_sent = false;
        break;
      case 1:
        cdb_size = 10;
        cdb[0] = write ? 0x2a : 0x28;
        put_big_endian(cdb, 2, 4, lba);
        put_big_endian(cdb, 7, 2, blocks);
        break;
      case 2:
        cdb_size = 12;
        cdb[0] = write ? 0xaa : 0xa8;
        put_big_endian(cdb, 2, 4, lba);
        put_big_endian(cdb, 6, 4, blocks);
        break;
      default:
        cdb_size = 16;
        cdb[0] = write ? 0x8a : 0x88;
        put_big_endian(cdb, 2, 8, lba);
        put_big_endian(cdb, 10, 4, blocks);
        break;
    }
    if (fua_sent) cdb[1] = 0x08;

    const std::size_t bytes = blocks * block_bytes;
    const bool enough = input_.below(8) != 0;
    const std::size_t buffer_size = enough ? bytes + input_.below(3) * 100 : bytes / 2;
    GuardedBuffer buffer(buffer_size, input_.byte());
    const ScsiResult result =
        lun_.run(std::span(cdb).first(cdb_size), write ? DataDirection::kOut : DataDirection::kIn,
                 buffer.data(), 1 + input_.below(5000));

    const bool refused = write && options_.read_only;
    const bool out_of_range = lba + blocks > kBlocks;
    const bool too_small = buffer_size < bytes;
    if (refused || out_of_range || (too_small && blocks != 0) || (blocks != 0 && lun_.disk_error != 0)) {
      VMBUSD_ASSERT(result.status == scsi::Status::kCheckCondition && result.transferred == 0);
      const std::uint8_t key = result.sense.flags_and_key;
      VMBUSD_ASSERT(!refused || key == 7);
      VMBUSD_ASSERT(refused || !out_of_range || (key == 5 && result.sense.asc == 0x21));
      buffer.check(0);
      return;
    }
    VMBUSD_ASSERT(result.status == scsi::Status::kGood && result.transferred == bytes);
    if (bytes != 0) {
      VMBUSD_ASSERT(lun_.last_io.fua == (write && (fua_sent || !lun_.lun.write_cache())));
    }
    std::byte* const at = model_.data() + lba * block_bytes;
    if (write) {
      buffer.check(0);
      std::memcpy(at, buffer.data().data(), bytes);
    } else {
      buffer.check(bytes);
      VMBUSD_ASSERT(bytes == 0 || std::memcmp(at, buffer.data().data(), bytes) == 0);
    }
  }

  void mode_select() {
    const std::size_t size = input_.below(48);
    GuardedBuffer buffer(size, 0);
    // Near to a list that is right, so that some are.
    static constexpr std::array<std::uint8_t, 7> kNear = {0, 0, 0, 0, 0x08, 0x12, 0x04};
    for (std::size_t i = 0; i < size; ++i)
      buffer.data()[i] = static_cast<std::byte>(i < kNear.size() ? kNear[i] : 0);
    for (std::size_t i = input_.below(3); i > 0 && size > 0; --i) {
      buffer.data()[input_.below(size)] = static_cast<std::byte>(input_.byte());
    }
    buffer.before = buffer.bytes;
    const std::array<std::uint8_t, 6> cdb = {0x15, 0x10, 0, 0, static_cast<std::uint8_t>(size), 0};
    const bool before = lun_.lun.write_cache();
    const ScsiResult result = lun_.run(cdb, DataDirection::kOut, buffer.data(), 1 + input_.below(50));
    VMBUSD_ASSERT(result.transferred == 0);
    const bool changed = lun_.lun.write_cache() != before;
    VMBUSD_ASSERT(!changed || (options_.write_cache_changeable && result.status == scsi::Status::kGood));
    // What was cached must be on the medium before the guest is told that there is no cache.
    VMBUSD_ASSERT(!changed || !before || options_.read_only || lun_.last_io.op == DiskOp::kFlush);
    buffer.check(0);
  }

  // Any bytes as a CDB: the outcome must make sense, whatever it is.
  void anything() {
    std::array<std::uint8_t, 16> cdb{};
    for (std::uint8_t& byte : cdb) byte = input_.byte();
    const auto direction = static_cast<DataDirection>(input_.below(3));
    const std::size_t size = direction == DataDirection::kNone ? 0
                             : input_.below(2) == 0            ? 512
                                                               : input_.below(9000);
    GuardedBuffer buffer(size, input_.byte());
    const std::size_t cdb_size = 6 + input_.below(11);
    const int operations = lun_.disk_operations;
    const ScsiResult result =
        lun_.run(std::span(cdb).first(cdb_size), direction, buffer.data(), 1 + input_.below(4096));
    VMBUSD_ASSERT(result.transferred <= size);
    switch (result.status) {
      case scsi::Status::kGood:
        break;
      case scsi::Status::kCheckCondition:
        VMBUSD_ASSERT(result.transferred == 0);
        VMBUSD_ASSERT(result.sense.response_code == 0x70 && result.sense.additional_length == 10);
        VMBUSD_ASSERT(result.sense.flags_and_key == 5 || result.sense.flags_and_key == 7);
        break;
      default:
        VMBUSD_ASSERT(false);
    }
    buffer.check(direction == DataDirection::kIn ? result.transferred : 0);
    // Only the WRITE commands write, and only what lies in their buffer.
    if (lun_.disk_operations != operations && lun_.last_io.op == DiskOp::kWrite) {
      VMBUSD_ASSERT(!options_.read_only && direction == DataDirection::kOut);
      VMBUSD_ASSERT(cdb[0] == 0x0a || cdb[0] == 0x2a || cdb[0] == 0xaa || cdb[0] == 0x8a);
      VMBUSD_ASSERT(lun_.last_io.length <= size && result.transferred == lun_.last_io.length);
      std::memcpy(model_.data() + lun_.last_io.offset, buffer.data().data(), lun_.last_io.length);
    }
  }

  FuzzInput& input_;
  LunOptions options_;
  RamLun lun_;
  std::vector<std::byte> model_;
};

}  // namespace
}  // namespace vmbusd::storvsp

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  vmbusd::storvsp::FuzzInput input({data, size});
  vmbusd::storvsp::Session(input).run();
  return 0;
}
