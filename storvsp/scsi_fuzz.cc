// Command sequences against a LUN whose medium is memory, compared with a model that knows only what blocks
// hold. Each input is a list of actions.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <optional>
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
    // By pieces: byte by byte a fuzzer would do little else.
    std::array<std::byte, 256> piece;
    for (std::size_t i = 0; i < piece.size(); ++i) piece[i] = static_cast<std::byte>(seed + i * 31);
    for (std::size_t i = 0; i < size; i += piece.size()) {
      std::memcpy(&bytes[kGuard + i], piece.data(), std::min(piece.size(), size - i));
    }
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
      : input_(input),
        options_(make_options(input)),
        lun_(options_),
        model_(lun_.medium),
        mapped_(lun_.mapped) {}

  void run() {
    for (std::size_t i = 0; i < kActionsMax && !input_.empty(); ++i) {
      lun_.disk_error = 0;
      lun_.zeroes_by_writing = input_.below(2) == 0;
      switch (input_.below(9)) {
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
        case 4:
          medium_command();
          break;
        case 5:
          lba_status();
          break;
        case 6:
          start_stop();
          break;
        case 7:
          reserve();
          break;
        default:
          anything();
          break;
      }
    }
    VMBUSD_ASSERT(lun_.medium == model_);
    VMBUSD_ASSERT(lun_.mapped == mapped_);
    check_reservation();
  }

 private:
  static LunOptions make_options(FuzzInput& input) {
    const std::uint32_t block_bytes = input.below(2) == 0 ? 512 : 4096;
    LunOptions options = ram_lun_options(kBlocks * block_bytes, block_bytes);
    options.read_only = input.below(4) == 0;
    options.write_cache = input.below(4) != 0;
    options.write_cache_changeable = input.below(2) == 0;
    options.geometry.discards = input.below(4) != 0;
    options.geometry.discard_zeroes = options.geometry.discards;
    options.keeps_reservations = input.below(2) == 0;
    return options;
  }

  [[nodiscard]] std::uint32_t block_bytes() const { return options_.geometry.logical_block_bytes; }
  void set_mapped(std::uint64_t lba, std::uint64_t blocks, bool mapped) {
    std::fill_n(mapped_.begin() + static_cast<std::ptrdiff_t>(lba), blocks, mapped);
  }

  // What a CDB with the fields of its length says, read in another way than the LUN does.
  struct Fields {
    std::uint64_t lba;
    std::uint64_t blocks;
  };
  static Fields fields_of(const std::array<std::uint8_t, 16>& cdb) {
    const auto number = [&](std::size_t at, std::size_t size) {
      std::uint64_t value = 0;
      for (std::size_t i = 0; i < size; ++i) value = value * 256 + cdb[at + i];
      return value;
    };
    if (cdb[0] == 0x89) return {number(2, 8), cdb[13]};
    if (cdb[0] < 0x20) return {number(2, 2) + (cdb[1] & 0x1fu) * 65536, cdb[4] == 0 ? 256u : cdb[4]};
    if (cdb[0] < 0x80) return {number(2, 4), number(7, 2)};
    if (cdb[0] < 0xa0) return {number(2, 8), number(10, 4)};
    return {number(2, 4), number(6, 4)};
  }

  // The first byte in which `data` and the medium from `at` on differ, or `size`.
  [[nodiscard]] std::size_t difference(std::size_t at, std::span<const std::byte> data,
                                       std::size_t size) const {
    std::size_t i = 0;
    while (i < size && model_[at + i] == data[i % data.size()]) ++i;
    return i;
  }

  static void check_not_ready(const ScsiResult& result, const GuardedBuffer& buffer) {
    VMBUSD_ASSERT(result.status == scsi::Status::kCheckCondition && result.transferred == 0);
    VMBUSD_ASSERT(result.sense.flags_and_key == 2 && result.sense.asc == 4 && result.sense.ascq == 2);
    buffer.check(0);
  }

  // A command ended without the medium failing: what it may have said, and what it did to the medium.
  void model_command(const std::array<std::uint8_t, 16>& cdb, std::span<const std::byte> data,
                     const ScsiResult& result) {
    const bool good = result.status == scsi::Status::kGood;
    const bool differs = !good && result.sense.flags_and_key == 0xe;
    const Fields fields = fields_of(cdb);
    const std::size_t at = fields.lba * block_bytes();
    const std::size_t size = fields.blocks * block_bytes();
    switch (cdb[0]) {
      case 0x0a:
      case 0x2a:
      case 0x2e:
      case 0x8a:
      case 0x8e:
      case 0xaa:
      case 0xae:
        VMBUSD_ASSERT(!differs);
        if (!good) return;
        VMBUSD_ASSERT(result.transferred == size);
        std::copy_n(data.begin(), size, model_.begin() + static_cast<std::ptrdiff_t>(at));
        return set_mapped(fields.lba, fields.blocks, true);
      case 0x2f:
      case 0x8f:
      case 0xaf: {
        const std::uint8_t check = (cdb[1] >> 1) & 3;
        if (check == 0 || fields.blocks == 0 || !(good || differs)) return VMBUSD_ASSERT(!differs);
        const bool equal = difference(at, check == 3 ? data.first(block_bytes()) : data, size) == size;
        VMBUSD_ASSERT(good == equal);
        return;
      }
      case 0x89: {
        if (fields.blocks == 0 || !(good || differs)) return VMBUSD_ASSERT(!differs);
        const std::size_t first = difference(at, data, size);
        VMBUSD_ASSERT(good == (first == size));
        if (differs) return VMBUSD_ASSERT(result.sense.information == first);
        VMBUSD_ASSERT(result.transferred == 2 * size);
        std::copy_n(data.begin() + static_cast<std::ptrdiff_t>(size), size,
                    model_.begin() + static_cast<std::ptrdiff_t>(at));
        return set_mapped(fields.lba, fields.blocks, true);
      }
      case 0x41:
      case 0x93: {
        VMBUSD_ASSERT(!differs);
        if (!good) return;
        bool zero = true;
        const bool no_data = cdb[0] == 0x93 && (cdb[1] & 1) != 0;
        for (std::size_t i = 0; i < size; ++i) {
          model_[at + i] = no_data ? std::byte{} : data[i % block_bytes()];
          zero &= model_[at + i] == std::byte{};
        }
        const bool freed = zero && (cdb[1] & 8) != 0 && !lun_.zeroes_by_writing;
        return set_mapped(fields.lba, fields.blocks, !freed);
      }
      case 0x42:
        VMBUSD_ASSERT(!differs);
        if (good) model_unmap(data.first(cdb[7] * 256u + cdb[8]));
        return;
      default:
        VMBUSD_ASSERT(!differs);
    }
  }

  void model_unmap(std::span<const std::byte> list) {
    if (list.empty()) return;
    const auto number = [&](std::size_t from, std::size_t size) {
      std::uint64_t value = 0;
      for (std::size_t i = 0; i < size; ++i)
        value = value << 8 | std::to_integer<std::uint64_t>(list[from + i]);
      return value;
    };
    const std::size_t end = std::min<std::size_t>(list.size(), 8 + number(2, 2));
    for (std::size_t from = 8; from + 16 <= end; from += 16) {
      const std::uint64_t lba = number(from, 8);
      const std::uint64_t blocks = number(from + 8, 4);
      VMBUSD_ASSERT(lba + blocks <= kBlocks);
      std::fill_n(model_.begin() + static_cast<std::ptrdiff_t>(lba * block_bytes()), blocks * block_bytes(),
                  std::byte{});
      set_mapped(lba, blocks, false);
    }
  }

  // A command near to one that is right, over data near to what the medium holds.
  void medium_command() {
    static constexpr std::array<std::uint8_t, 10> kOpcodes = {0x2e, 0xae, 0x8e, 0x2f, 0xaf,
                                                              0x8f, 0x89, 0x41, 0x93, 0x42};
    std::array<std::uint8_t, 16> cdb{};
    cdb[0] = kOpcodes[input_.below(kOpcodes.size())];
    static constexpr std::array<std::uint8_t, 8> kFlags = {0, 0, 0x02, 0x06, 0x08, 0x09, 0x01, 0x10};
    cdb[1] = kFlags[input_.below(kFlags.size())];
    const std::uint64_t lba = input_.below(100);
    const std::uint64_t blocks = input_.below(12);
    std::size_t size = blocks * block_bytes();
    std::size_t cdb_size = 16;
    if (cdb[0] == 0x42) {
      cdb_size = 10;
      size = 8 + 16 * input_.below(4);
      put_big_endian(cdb, 7, 2,
                     size - std::min<std::size_t>(size, input_.below(8) == 0 ? input_.below(20) : 0));
    } else if (cdb[0] == 0x89) {
      put_big_endian(cdb, 2, 8, lba);
      cdb[13] = static_cast<std::uint8_t>(blocks);
      size *= 2;
    } else if (cdb[0] < 0x80) {
      cdb_size = 10;
      put_big_endian(cdb, 2, 4, lba);
      put_big_endian(cdb, 7, 2, blocks);
    } else if (cdb[0] < 0xa0) {
      put_big_endian(cdb, 2, 8, lba);
      put_big_endian(cdb, 10, 4, blocks);
    } else {
      cdb_size = 12;
      put_big_endian(cdb, 2, 4, lba);
      put_big_endian(cdb, 6, 4, blocks);
    }
    if (input_.below(8) == 0) size = input_.below(9000);

    GuardedBuffer buffer(size, input_.byte());
    const std::span<std::byte> data = buffer.data();
    switch (input_.below(3)) {
      case 0:
        std::fill(data.begin(), data.end(), std::byte{});
        break;
      case 1:
        if (lba < kBlocks) {
          const std::size_t there = std::min(data.size(), (kBlocks - lba) * block_bytes());
          std::copy_n(model_.begin() + static_cast<std::ptrdiff_t>(lba * block_bytes()), there, data.begin());
        }
        break;
      default:
        break;
    }
    if (cdb[0] == 0x42) {
      std::fill(data.begin(), data.end(), std::byte{});
      for (std::size_t from = 8; from + 16 <= data.size(); from += 16) {
        data[from + 7] = static_cast<std::byte>(input_.below(100));
        data[from + 11] = static_cast<std::byte>(input_.below(12));
      }
      if (data.size() > 3) data[3] = static_cast<std::byte>(data.size() - 8);
    }
    if (!data.empty() && input_.below(4) == 0)
      data[input_.below(data.size() % 65536 + 1) % data.size()] ^= std::byte{1};
    buffer.before = buffer.bytes;

    const ScsiResult result =
        lun_.run(std::span(cdb).first(cdb_size), DataDirection::kOut, data, 1 + input_.below(5000));
    VMBUSD_ASSERT(result.status == scsi::Status::kGood || result.transferred == 0);
    VMBUSD_ASSERT(result.transferred <= data.size());
    buffer.check(0);
    if (stopped_) return check_not_ready(result, buffer);
    model_command(cdb, data, result);
  }

  void start_stop() {
    const bool start = input_.below(4) != 0;
    const auto flags = static_cast<std::uint8_t>((input_.below(2) * 4) | (start ? 1 : 0));
    const std::array<std::uint8_t, 6> cdb = {0x1b, 0, 0, 0, flags, 0};
    VMBUSD_ASSERT(lun_.run(cdb, DataDirection::kNone, {}).status == scsi::Status::kGood);
    stopped_ = !start;
  }

  // PERSISTENT RESERVE OUT by keys of which some are right.
  void reserve() {
    const std::array<std::uint8_t, 10> cdb = {0x5f,
                                              static_cast<std::uint8_t>(input_.below(8)),
                                              static_cast<std::uint8_t>(input_.below(10)),
                                              0,
                                              0,
                                              0,
                                              0,
                                              0,
                                              24,
                                              0};
    const bool fails = input_.below(8) == 0;
    if (fails) lun_.disk_error = kErrors[input_.below(kErrors.size())];
    GuardedBuffer buffer(24, 0);
    std::fill(buffer.data().begin(), buffer.data().end(), std::byte{});
    buffer.data()[7] = static_cast<std::byte>(input_.below(3));
    buffer.data()[15] = static_cast<std::byte>(input_.below(3));
    buffer.data()[20] = static_cast<std::byte>(input_.below(4) == 0 ? input_.byte() : input_.below(2));
    buffer.before = buffer.bytes;
    const std::optional<PersistentReservation> before = lun_.lun.reservations().state();
    const ScsiResult result = lun_.run(cdb, DataDirection::kOut, buffer.data(), 1 + input_.below(30));
    buffer.check(0);
    if (result.status == scsi::Status::kGood) return;
    const std::optional<PersistentReservation> after = lun_.lun.reservations().state();
    VMBUSD_ASSERT(before.has_value() == after.has_value());
    VMBUSD_ASSERT(!before || (before->key == after->key && before->type == after->type &&
                              before->kept == after->kept && before->generation == after->generation));
  }

  // What is kept is what holds; what holds can be.
  void check_reservation() {
    const std::optional<PersistentReservation> now = lun_.lun.reservations().state();
    if (!now) return;
    VMBUSD_ASSERT(!now->type || now->key);
    const std::optional<PersistentReservation> found = from_record(lun_.kept, lun_.lun.identity().id);
    const bool kept = now->kept && now->key.has_value();
    VMBUSD_ASSERT(found.has_value() == kept);
    VMBUSD_ASSERT(!kept || (found->key == now->key && found->type == now->type));
  }

  void lba_status() {
    std::array<std::uint8_t, 16> cdb = {0x9e, 0x12};
    const std::uint64_t lba = input_.below(100);
    put_big_endian(cdb, 2, 8, lba);
    const std::size_t size = input_.below(200);
    put_big_endian(cdb, 10, 4, size);
    GuardedBuffer buffer(size, input_.byte());
    const ScsiResult result = lun_.run(cdb, DataDirection::kIn, buffer.data(), 1 + input_.below(300));
    buffer.check(result.transferred);
    VMBUSD_ASSERT((result.status == scsi::Status::kGood) == (lba < kBlocks));
    if (lba >= kBlocks) return;
    // Extents follow each other without a gap, and are what the model has.
    std::uint64_t next = lba;
    const std::span<const std::byte> data = buffer.data().first(result.transferred);
    for (std::size_t from = 8; from + 16 <= data.size(); from += 16) {
      VMBUSD_ASSERT(data[from + 7] == static_cast<std::byte>(next));
      const auto blocks = std::to_integer<std::uint64_t>(data[from + 11]);
      VMBUSD_ASSERT(blocks != 0 && next + blocks <= kBlocks);
      for (std::uint64_t i = 0; i < blocks; ++i) {
        VMBUSD_ASSERT(mapped_[next + i] == (data[from + 12] == std::byte{0}));
      }
      next += blocks;
    }
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

    if (stopped_) return check_not_ready(result, buffer);
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
      set_mapped(lba, blocks, true);
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
    const ScsiResult result =
        lun_.run(std::span(cdb).first(cdb_size), direction, buffer.data(), 1 + input_.below(4096));
    VMBUSD_ASSERT(result.transferred <= size);
    switch (result.status) {
      case scsi::Status::kGood:
        break;
      case scsi::Status::kCheckCondition:
        VMBUSD_ASSERT(result.transferred == 0);
        VMBUSD_ASSERT((result.sense.response_code & 0x7f) == 0x70 && result.sense.additional_length == 10);
        VMBUSD_ASSERT(result.sense.flags_and_key == 5 || result.sense.flags_and_key == 7 ||
                      result.sense.flags_and_key == 0xe || (stopped_ && result.sense.flags_and_key == 2));
        break;
      default:
        VMBUSD_ASSERT(result.status == scsi::Status::kReservationConflict);
    }
    buffer.check(direction == DataDirection::kIn ? result.transferred : 0);
    if (cdb[0] == 0x1b && result.status == scsi::Status::kGood) stopped_ = (cdb[4] & 1) == 0;
    // What it may have written lies in its buffer; a read-only disk stays as it is.
    if (direction == DataDirection::kOut && !options_.read_only) model_command(cdb, buffer.data(), result);
    if (direction == DataDirection::kNone && cdb[0] == 0x93 && !options_.read_only)
      model_command(cdb, {}, result);
  }

  FuzzInput& input_;
  LunOptions options_;
  RamLun lun_;
  std::vector<std::byte> model_;
  std::vector<bool> mapped_;  // by block
  bool stopped_ = false;
};

}  // namespace
}  // namespace vmbusd::storvsp

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  vmbusd::storvsp::FuzzInput input({data, size});
  vmbusd::storvsp::Session(input).run();
  return 0;
}
