// Commands that take several operations on the medium: what they do to it, and in which steps.
#include <numeric>
#include <string>
#include <vector>

#include "storvsp/scsi_handlers.h"
#include "tests/catch.h"
#include "tests/storvsp/ram_lun.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Status;

constexpr std::uint64_t kBlocks = 2048;  // 1 MiB of 512-byte blocks

// A LUN whose block n is full of n's low byte.
struct Lun : RamLun {
  explicit Lun(const LunOptions& options = ram_lun_options(kBlocks * 512)) : RamLun(options) {
    for (std::size_t i = 0; i < medium.size(); ++i) {
      medium[i] = static_cast<std::byte>(i / geometry.logical_block_bytes);
    }
    before = medium;
  }
  ScsiResult out(const Bytes& cdb, Bytes data) {
    return run(cdb, kOut, std::as_writable_bytes(std::span(data)), 700);
  }
  [[nodiscard]] Bytes block(std::uint64_t lba) const {
    const auto* const at = reinterpret_cast<const std::uint8_t*>(medium.data()) + lba * 512;
    return {at, at + 512};
  }
  // Nothing changed but the blocks from `lba` on.
  [[nodiscard]] bool rest_untouched(std::uint64_t lba, std::uint64_t blocks) const {
    const auto same = [&](std::size_t from, std::size_t to) {
      return std::equal(medium.begin() + static_cast<std::ptrdiff_t>(from),
                        medium.begin() + static_cast<std::ptrdiff_t>(to),
                        before.begin() + static_cast<std::ptrdiff_t>(from));
    };
    return same(0, lba * 512) && same((lba + blocks) * 512, medium.size());
  }

  std::vector<std::byte> before;
};

Bytes blocks_of(std::initializer_list<std::uint8_t> values) {
  Bytes bytes;
  for (const std::uint8_t value : values) bytes.insert(bytes.end(), 512, value);
  return bytes;
}

Bytes put(Bytes cdb, std::size_t at, std::size_t size, std::uint64_t value) {
  for (std::size_t i = 0; i < size; ++i) {
    cdb[at + i] = static_cast<std::uint8_t>(value >> (8 * (size - 1 - i)));
  }
  return cdb;
}

// The form of a command with 10, 12 or 16 bytes.
Bytes cdb_of(std::uint8_t opcode, std::uint8_t flags, std::uint64_t lba, std::uint32_t blocks) {
  const std::size_t size = opcode < 0x80 ? 10 : opcode >= 0xa0 ? 12 : 16;
  Bytes cdb(size);
  cdb[0] = opcode;
  cdb[1] = flags;
  cdb = put(cdb, 2, size == 16 ? 8 : 4, lba);
  return size == 10 ? put(cdb, 7, 2, blocks) : put(cdb, size == 12 ? 6 : 10, 4, blocks);
}

bool good(const ScsiResult& result, std::uint32_t transferred) {
  return result.status == Status::kGood && result.transferred == transferred;
}
bool sense_is(const ScsiResult& result, std::uint8_t key, std::uint16_t asc) {
  return result.status == Status::kCheckCondition && result.transferred == 0 &&
         result.sense.flags_and_key == key && (result.sense.asc << 8 | result.sense.ascq) == asc;
}

TEST_CASE("VERIFY reads, and compares what it is given", "[storvsp]") {
  for (const std::uint8_t opcode : Bytes{0x2f, 0xaf, 0x8f}) {
    DYNAMIC_SECTION("opcode " << static_cast<int>(opcode)) {
      Lun lun;
      CHECK(good(lun.run(cdb_of(opcode, 0, 0, kBlocks), kNone, {}), 0));
      // 1 MiB in pieces of 64 KiB.
      CHECK(lun.disk_operations == 16);
      CHECK(good(lun.out(cdb_of(opcode, 0x02, 5, 3), blocks_of({5, 6, 7})), 1536));
      CHECK(sense_is(lun.out(cdb_of(opcode, 0x02, 5, 3), blocks_of({5, 6, 8})), 0xe, 0x1d00));
      CHECK(sense_is(lun.out(cdb_of(opcode, 0x06, 5, 3), blocks_of({5})), 0xe, 0x1d00));
      CHECK(good(lun.out(cdb_of(opcode, 0x06, 5, 1), blocks_of({5})), 512));
      std::fill_n(lun.medium.begin(), 300 * 512, std::byte{9});
      CHECK(good(lun.out(cdb_of(opcode, 0x06, 0, 300), blocks_of({9})), 512));
      lun.medium[299 * 512] = std::byte{8};
      CHECK(sense_is(lun.out(cdb_of(opcode, 0x06, 0, 300), blocks_of({9})), 0xe, 0x1d00));
      lun.disk_error = EIO;
      CHECK(sense_is(lun.run(cdb_of(opcode, 0, 0, 1), kNone, {}), 3, 0x1100));
    }
  }
}

TEST_CASE("WRITE AND VERIFY writes durably and reads back", "[storvsp]") {
  for (const std::uint8_t opcode : Bytes{0x2e, 0xae, 0x8e}) {
    for (const std::uint8_t byte_check : Bytes{0x00, 0x02}) {
      DYNAMIC_SECTION("opcode " << static_cast<int>(opcode) << " BYTCHK " << (byte_check >> 1)) {
        Lun lun;
        Bytes data(200 * 512);  // more than one piece
        std::iota(data.begin(), data.end(), std::uint8_t{3});
        CHECK(good(lun.out(cdb_of(opcode, byte_check, 10, 200), data), 200 * 512));
        CHECK(std::memcmp(lun.medium.data() + 10 * 512, data.data(), data.size()) == 0);
        CHECK(lun.rest_untouched(10, 200));
        REQUIRE(lun.operations.size() == 4);
        CHECK((lun.operations[0].op == DiskOp::kWrite && lun.operations[0].fua));
        CHECK((lun.operations[1].op == DiskOp::kRead && lun.operations[1].offset == 10 * 512));
        CHECK((lun.operations[2].op == DiskOp::kWrite && lun.operations[2].offset == (10 + 128) * 512));
        lun.disk_error = ENOSPC;
        CHECK(sense_is(lun.out(cdb_of(opcode, byte_check, 0, 1), blocks_of({1})), 7, 0x2707));
      }
    }
  }
}

TEST_CASE("COMPARE AND WRITE", "[storvsp]") {
  const auto cdb = [](std::uint64_t lba, std::uint8_t blocks, std::uint8_t flags = 0) {
    Bytes bytes = put(Bytes(16), 2, 8, lba);
    bytes[0] = 0x89;
    bytes[1] = flags;
    bytes[13] = blocks;
    return bytes;
  };
  Lun lun;
  SECTION("writes where the medium is as expected") {
    CHECK(good(lun.out(cdb(5, 2), blocks_of({5, 6, 0xaa, 0xbb})), 2048));
    CHECK(lun.block(5) == blocks_of({0xaa}));
    CHECK(lun.block(6) == blocks_of({0xbb}));
    CHECK(lun.rest_untouched(5, 2));
    CHECK(!lun.last_io.fua);
    CHECK(good(lun.out(cdb(7, 1, 0x08), blocks_of({7, 0xaa})), 1024));
    CHECK(lun.last_io.fua);
  }
  SECTION("says where it differs, and writes nothing") {
    Bytes data = blocks_of({5, 6, 0xaa, 0xbb});
    data[700] = 1;
    const ScsiResult result = lun.out(cdb(5, 2), data);
    CHECK(sense_is(result, 0xe, 0x1d00));
    CHECK(result.sense.response_code == 0xf0);  // the information is valid
    CHECK(result.sense.information == 700);
    CHECK(lun.rest_untouched(0, 0));
  }
  SECTION("as much as is told") {
    Bytes data(128 * 1024);
    for (std::size_t i = 0; i < 128; ++i)
      std::fill_n(data.begin() + static_cast<std::ptrdiff_t>(i * 512), 512, i);
    CHECK(good(lun.out(cdb(0, 128), data), 128 * 1024));
    CHECK(lun.block(127) == blocks_of({0}));
  }
  SECTION("is exclusive") {
    ScsiCommand command;
    command.cdb = {0x89};
    command.cdb_length = 16;
    ScsiResult result;
    DiskIo io;
    CHECK(lun.lun.execute(command, result, io) == ScsiNext::kExclusiveJob);
    REQUIRE(lun.lun.try_exclusive());
    CHECK(!lun.lun.try_exclusive());
    CHECK(lun.lun.execute(command, result, io) == ScsiNext::kHold);
    command.cdb = {0x28};
    CHECK(lun.lun.execute(command, result, io) == ScsiNext::kHold);
    command.cdb = {0x12};
    CHECK(lun.lun.execute(command, result, io) == ScsiNext::kComplete);
    lun.lun.end_exclusive();
    command.cdb = {0x28};
    CHECK(lun.lun.execute(command, result, io) == ScsiNext::kComplete);
  }
}

TEST_CASE("WRITE SAME", "[storvsp]") {
  for (const std::uint8_t opcode : Bytes{0x41, 0x93}) {
    DYNAMIC_SECTION("opcode " << static_cast<int>(opcode)) {
      Lun lun;
      SECTION("repeats a block") {
        Bytes block(512);
        std::iota(block.begin(), block.end(), std::uint8_t{1});
        CHECK(good(lun.out(cdb_of(opcode, 0, 3, 600), block), 512));
        for (const std::uint64_t lba : {3u, 4u, 258u, 259u, 602u}) CHECK(lun.block(lba) == block);
        CHECK(lun.rest_untouched(3, 600));
        CHECK(lun.disk_operations == 3);  // 128 KiB each
      }
      SECTION("of zeros lets the disk do it") {
        CHECK(good(lun.out(cdb_of(opcode, 0, 3, 600), blocks_of({0})), 512));
        REQUIRE(lun.operations.size() == 1);
        CHECK((lun.last_io.op == DiskOp::kZero && !lun.last_io.unmap && lun.last_io.length == 600 * 512));
        CHECK(lun.block(602) == blocks_of({0}));
        CHECK(lun.mapped[3]);
      }
      SECTION("of zeros on a disk that cannot do it") {
        lun.zeroes_by_writing = true;
        CHECK(good(lun.out(cdb_of(opcode, 0, 3, 600), blocks_of({0})), 512));
        for (std::uint64_t lba = 3; lba < 603; ++lba) REQUIRE(lun.block(lba) == blocks_of({0}));
        CHECK(lun.rest_untouched(3, 600));
      }
      SECTION("of zeros with unmap gives space back") {
        CHECK(good(lun.out(cdb_of(opcode, 0x08, 3, 4), blocks_of({0})), 512));
        CHECK((lun.last_io.op == DiskOp::kZero && lun.last_io.unmap));
        CHECK(!lun.mapped[3]);
        CHECK(lun.mapped[7]);
      }
      SECTION("of something else with unmap is written") {
        CHECK(good(lun.out(cdb_of(opcode, 0x08, 3, 4), blocks_of({1})), 512));
        CHECK(lun.block(6) == blocks_of({1}));
        CHECK(lun.mapped[3]);
      }
      SECTION("without a cache is durable when it completes") {
        lun.lun.set_write_cache(false);
        CHECK(good(lun.out(cdb_of(opcode, 0, 3, 4), blocks_of({1})), 512));
        CHECK(lun.last_io.fua);
        CHECK(good(lun.out(cdb_of(opcode, 0, 3, 4), blocks_of({0})), 512));
        CHECK(lun.last_io.op == DiskOp::kFlush);
      }
      SECTION("fails as a write") {
        lun.disk_error = EIO;
        CHECK(sense_is(lun.out(cdb_of(opcode, 0, 3, 4), blocks_of({0})), 3, 0x0c00));
        CHECK(sense_is(lun.out(cdb_of(opcode, 0, 3, 4), blocks_of({1})), 3, 0x0c00));
      }
    }
  }
  SECTION("(16) without data writes zeros") {
    Lun lun;
    CHECK(good(lun.run(cdb_of(0x93, 0x01, 3, 4), kNone, {}), 0));
    CHECK(lun.block(6) == blocks_of({0}));
    CHECK(good(lun.run(cdb_of(0x93, 0x09, 3, 4), kNone, {}), 0));
    CHECK(!lun.mapped[6]);
    CHECK(lun.rest_untouched(3, 4));
  }
  SECTION("of more than is told") {
    Lun lun(ram_lun_options(std::uint64_t{128} << 20));
    constexpr std::uint32_t kMax = (64u << 20) / 512;
    CHECK(good(lun.out(cdb_of(0x93, 0, 1, kMax), blocks_of({0})), 512));
    CHECK(sense_is(lun.out(cdb_of(0x93, 0, 1, kMax + 1), blocks_of({0})), 5, 0x2400));
  }
}

// An UNMAP parameter list.
Bytes unmap_list(const std::vector<std::pair<std::uint64_t, std::uint32_t>>& ranges) {
  Bytes list = put(put(Bytes(8), 0, 2, 6 + ranges.size() * 16), 2, 2, ranges.size() * 16);
  for (const auto& [lba, blocks] : ranges) {
    const Bytes descriptor = put(put(Bytes(16), 0, 8, lba), 8, 4, blocks);
    list.insert(list.end(), descriptor.begin(), descriptor.end());
  }
  return list;
}
Bytes unmap_cdb(std::size_t list_length) {
  return put({0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 7, 2, list_length);
}

TEST_CASE("UNMAP gives space back", "[storvsp]") {
  Lun lun;
  const auto unmap = [&](const Bytes& list) { return lun.out(unmap_cdb(list.size()), list); };
  SECTION("by several descriptors") {
    CHECK(good(unmap(unmap_list({{3, 2}, {2047, 1}, {9, 0}})), 56));
    CHECK(lun.disk_operations == 2);
    CHECK((!lun.mapped[3] && !lun.mapped[4] && !lun.mapped[2047]));
    CHECK((lun.mapped[2] && lun.mapped[5] && lun.mapped[9]));
  }
  SECTION("of no descriptor") {
    CHECK(good(unmap(unmap_list({})), 8));
    CHECK(lun.disk_operations == 0);
  }
  SECTION("what a descriptor lacks is not one") {
    Bytes list = unmap_list({{3, 2}, {5, 2}});
    list.resize(39);
    CHECK(good(unmap(list), 39));
    CHECK(lun.mapped[5]);
    CHECK(!lun.mapped[3]);
  }
  SECTION("the list's own length counts") {
    Bytes list = put(unmap_list({{3, 2}, {5, 2}}), 2, 2, 16);
    CHECK(good(unmap(list), 40));
    CHECK(lun.mapped[5]);
  }
  SECTION("all or nothing") {
    CHECK(sense_is(unmap(unmap_list({{3, 2}, {2047, 2}})), 5, 0x2100));
    CHECK(sense_is(unmap(unmap_list({{3, 2}, {~std::uint64_t{0}, 2}})), 5, 0x2100));
    CHECK(lun.disk_operations == 0);
  }
  SECTION("as many descriptors as are told") {
    std::vector<std::pair<std::uint64_t, std::uint32_t>> ranges(256, {1, 1});
    CHECK(good(unmap(unmap_list(ranges)), 8 + 256 * 16));
    ranges.emplace_back(1, 1);
    CHECK(sense_is(unmap(unmap_list(ranges)), 5, 0x2600));
  }
  SECTION("without a cache is durable when it completes") {
    lun.lun.set_write_cache(false);
    CHECK(good(unmap(unmap_list({{3, 2}})), 24));
    CHECK(lun.last_io.op == DiskOp::kFlush);
  }
  SECTION("its failure is told") {
    lun.disk_error = EIO;
    CHECK(sense_is(unmap(unmap_list({{3, 2}})), 3, 0x0c00));
  }
}

TEST_CASE("UNMAP of much goes by pieces", "[storvsp]") {
  LunOptions options = ram_lun_options(std::uint64_t{8} << 30, 4096);
  LogicalUnit lun(options);
  std::vector<std::byte> scratch(ScsiJob::kScratchBytes);
  ScsiJob job;
  job.lun = &lun;
  job.scratch = scratch.data();
  constexpr std::uint32_t kMax = 1u << 20;
  const auto begin = [&](std::uint32_t blocks, ScsiResult& result) {
    Bytes list = unmap_list({{1, blocks}});
    const Bytes cdb = unmap_cdb(list.size());
    iovec data{list.data(), list.size()};
    std::copy(cdb.begin(), cdb.end(), job.command.cdb.begin());
    job.command.cdb_length = 10;
    job.command.direction = kOut;
    job.command.data = {&data, 1};
    job.command.data_length = static_cast<std::uint32_t>(list.size());
    return begin_job(job, result);
  };
  ScsiResult result;
  ScsiNext next = begin(kMax, result);
  for (std::uint64_t piece = 0; piece < 4; ++piece) {
    REQUIRE(next == ScsiNext::kDisk);
    CHECK(job.io.offset == 4096 + (piece << 30));
    CHECK(job.io.length == 1u << 30);
    next = continue_job(job, 0, result);
  }
  CHECK(next == ScsiNext::kComplete);
  CHECK(good(result, 24));
  CHECK(begin(kMax + 1, result) == ScsiNext::kComplete);
  CHECK(sense_is(result, 5, 0x2600));
  CHECK(result.sense.field == 16);
}

Bytes status_of(Lun& lun, std::uint64_t lba, std::uint32_t allocation_length,
                std::size_t buffer_size = 4096) {
  Bytes cdb = put(put(Bytes(16), 2, 8, lba), 10, 4, allocation_length);
  cdb[0] = 0x9e;
  cdb[1] = 0x12;
  Bytes data(buffer_size);
  const ScsiResult result = lun.run(cdb, kIn, std::as_writable_bytes(std::span(data)), 700);
  REQUIRE(result.status == Status::kGood);
  data.resize(result.transferred);
  return data;
}
Bytes status_data(const std::vector<std::array<std::uint32_t, 3>>& extents) {
  Bytes data = put(Bytes(8), 0, 4, 4 + 16 * extents.size());
  for (const auto& [lba, blocks, status] : extents) {
    const Bytes descriptor = put(put(put(Bytes(16), 0, 8, lba), 8, 4, blocks), 12, 1, status);
    data.insert(data.end(), descriptor.begin(), descriptor.end());
  }
  return data;
}

TEST_CASE("GET LBA STATUS tells what is there", "[storvsp]") {
  Lun lun;
  CHECK(status_of(lun, 0, 4096) == status_data({{0, 2048, 0}}));
  CHECK(status_of(lun, 2047, 24) == status_data({{2047, 1, 0}}));
  std::fill_n(lun.mapped.begin() + 10, 90, false);
  CHECK(status_of(lun, 0, 4096) == status_data({{0, 10, 0}, {10, 90, 1}, {100, 1948, 0}}));
  CHECK(status_of(lun, 50, 4096) == status_data({{50, 50, 1}, {100, 1948, 0}}));
  CHECK(status_of(lun, 0, 24) == status_data({{0, 10, 0}}));
  CHECK(status_of(lun, 0, 4096, 40) == status_data({{0, 10, 0}, {10, 90, 1}}));
  CHECK(status_of(lun, 0, 8) == put(Bytes(8), 0, 4, 20));
  SECTION("many extents are cut") {
    for (std::size_t i = 0; i < 2048; i += 2) lun.mapped[i] = false;
    CHECK(status_of(lun, 0, 4096).size() == 8 + 64 * 16);
  }
}

TEST_CASE("MODE SELECT that switches the cache off is exclusive", "[storvsp]") {
  Lun lun;
  ScsiCommand command;
  command.cdb = {0x15, 0x10};
  command.cdb_length = 6;
  ScsiResult result;
  DiskIo io;
  CHECK(lun.lun.execute(command, result, io) == ScsiNext::kExclusiveJob);
}

TEST_CASE("unit attentions are reported once, the gravest alone", "[storvsp]") {
  struct Case {
    const char* rule;
    std::vector<UnitAttention> raised;
    std::uint16_t asc;
  };
  const Case cases[] = {
      {"power on", {UnitAttention::kPowerOn}, 0x2900},
      {"bus reset", {UnitAttention::kBusReset}, 0x2902},
      {"LUN reset", {UnitAttention::kLogicalUnitReset}, 0x2903},
      {"all", {UnitAttention::kLogicalUnitReset, UnitAttention::kBusReset, UnitAttention::kPowerOn}, 0x2900},
  };
  for (const Case& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      Lun lun;
      for (const UnitAttention attention : c.raised) lun.lun.raise(attention);
      SECTION("by a command that is not performed then") {
        CHECK(sense_is(lun.out(cdb_of(0x2a, 0, 1, 1), blocks_of({9})), 6, c.asc));
        CHECK(lun.rest_untouched(0, 0));
      }
      SECTION("by REQUEST SENSE") {
        Bytes data(18);
        CHECK(good(lun.run({0x03, 0, 0, 0, 18, 0}, kIn, std::as_writable_bytes(std::span(data))), 18));
        CHECK(data[2] == 6);
        CHECK((data[12] << 8 | data[13]) == c.asc);
      }
      SECTION("by REQUEST SENSE in the other format") {
        Bytes data(8);
        CHECK(good(lun.run({0x03, 1, 0, 0, 8, 0}, kIn, std::as_writable_bytes(std::span(data))), 8));
        CHECK(data[1] == 6);
        CHECK((data[2] << 8 | data[3]) == c.asc);
      }
      SECTION("and after what pays no heed to them") {
        Bytes data(36);
        CHECK(good(lun.run({0x12, 0, 0, 0, 36, 0}, kIn, std::as_writable_bytes(std::span(data))), 36));
        CHECK(good(
            lun.run({0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0}, kIn, std::as_writable_bytes(std::span(data))),
            16));
        CHECK(sense_is(lun.run({0, 0, 0, 0, 0, 0}), 6, c.asc));
      }
      CHECK(good(lun.run({0, 0, 0, 0, 0, 0}), 0));
    }
  }
}

Bytes report(RamLun& lun, Bytes cdb) {
  Bytes data(4096);
  const ScsiResult result = lun.run(cdb, kIn, std::as_writable_bytes(std::span(data)));
  REQUIRE(result.status == Status::kGood);
  data.resize(result.transferred);
  return data;
}

TEST_CASE("REPORT SUPPORTED OPERATION CODES", "[storvsp]") {
  Lun lun;
  SECTION("all") {
    const Bytes data = report(lun, {0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0});
    CHECK(data.size() == 4 + 8 * command_table().size());
    CHECK(Bytes(data.begin(), data.begin() + 4) == put(Bytes(4), 0, 4, data.size() - 4));
    CHECK(Bytes(data.begin() + 4, data.begin() + 12) == Bytes{0, 0, 0, 0, 0, 0, 0, 6});
  }
  SECTION("all, with time-outs") {
    const Bytes data = report(lun, {0xa3, 0x0c, 0x80, 0, 0, 0, 0, 0, 0x10, 0, 0, 0});
    CHECK(data.size() == 4 + 20 * command_table().size());
    CHECK(Bytes(data.begin() + 4, data.begin() + 24) ==
          Bytes{0, 0, 0, 0, 0, 2, 0, 6, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  }
  SECTION("one") {
    CHECK(report(lun, {0xa3, 0x0c, 1, 0x28, 0, 0, 0, 0, 0, 255, 0, 0}) ==
          Bytes{0, 3, 0, 10, 0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0});
    CHECK(report(lun, {0xa3, 0x0c, 0x81, 0x28, 0, 0, 0, 0, 0, 255, 0, 0}).size() == 26);
    CHECK(report(lun, {0xa3, 0x0c, 2, 0x9e, 0, 0x10, 0, 0, 0, 255, 0, 0}) ==
          Bytes{0,    3,    0,    16,   0x9e, 0x10, 0xff, 0xff, 0xff, 0xff,
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,    0});
    CHECK(report(lun, {0xa3, 0x0c, 3, 0x9e, 0, 0x12, 0, 0, 0, 255, 0, 0}).size() == 20);
    CHECK(report(lun, {0xa3, 0x0c, 3, 0x28, 0, 0, 0, 0, 0, 255, 0, 0}).size() == 14);
  }
  SECTION("one that is not there") {
    CHECK(report(lun, {0xa3, 0x0c, 1, 0x85, 0, 0, 0, 0, 0, 255, 0, 0}) == Bytes{0, 1, 0, 0});
    CHECK(report(lun, {0xa3, 0x0c, 2, 0x9e, 0, 0x1f, 0, 0, 0, 255, 0, 0}) == Bytes{0, 1, 0, 0});
    CHECK(report(lun, {0xa3, 0x0c, 3, 0x28, 0, 1, 0, 0, 0, 255, 0, 0}) == Bytes{0, 1, 0, 0});
  }
  SECTION("UNMAP only where it is") {
    LunOptions options = ram_lun_options(kBlocks * 512);
    options.geometry.discards = options.geometry.discard_zeroes = false;
    RamLun thick(options);
    CHECK(report(lun, {0xa3, 0x0c, 1, 0x42, 0, 0, 0, 0, 0, 255, 0, 0}).size() == 14);
    CHECK(report(thick, {0xa3, 0x0c, 1, 0x42, 0, 0, 0, 0, 0, 255, 0, 0}) == Bytes{0, 1, 0, 0});
  }
}

TEST_CASE("REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", "[storvsp]") {
  Lun lun;
  CHECK(report(lun, {0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0}) == Bytes{0x0a, 0, 0, 0});
  CHECK(report(lun, {0xa3, 0x0d, 0x80, 0, 0, 0, 0, 0, 0, 255, 0, 0}) ==
        Bytes{0x0a, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
}

}  // namespace
}  // namespace vmbusd::storvsp
