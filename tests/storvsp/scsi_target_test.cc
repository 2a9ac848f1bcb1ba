#include "storvsp/scsi_target.h"

#include <algorithm>
#include <cerrno>
#include <vector>

#include "tests/catch.h"
#include "tests/storvsp/scsi_answer.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Status;

TEST_CASE("commands without data", "[storvsp]") {
  struct Case {
    const char* rule;
    Bytes cdb;
    bool flushes;
  };
  const Case cases[] = {
      {"TEST UNIT READY", {0x00, 0, 0, 0, 0, 0}, false},
      {"TEST UNIT READY with a SCSI-2 LUN", {0x00, 0xe0, 0, 0, 0, 0}, false},
      {"START", {0x1b, 0, 0, 0, 1, 0}, false},
      {"STOP", {0x1b, 0, 0, 0, 0, 0}, true},
      {"STOP, immediate", {0x1b, 1, 0, 0, 0, 0}, true},
      {"STOP without flush", {0x1b, 0, 0, 0, 4, 0}, false},
      {"SEND DIAGNOSTIC self-test", {0x1d, 0x04, 0, 0, 0, 0}, false},
      {"PREVENT MEDIUM REMOVAL", {0x1e, 0, 0, 0, 1, 0}, false},
      {"ALLOW MEDIUM REMOVAL", {0x1e, 0, 0, 0, 0, 0}, false},
      {"SYNCHRONIZE CACHE(10)", {0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0}, true},
      {"SYNCHRONIZE CACHE(10) of a range", {0x35, 0, 0, 0, 0x07, 0xff, 0, 0, 1, 0}, true},
      {"SYNCHRONIZE CACHE(10), immediate", {0x35, 0x02, 0, 0, 0, 0, 0, 0, 0, 0}, true},
      {"SYNCHRONIZE CACHE(16)", {0x91, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, true},
      {"VERIFY(10) of nothing", {0x2f, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false},
      {"WRITE AND VERIFY(10) of nothing", {0x2e, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false},
      {"COMPARE AND WRITE of nothing", {0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false},
      {"UNMAP of nothing", {0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false},
      {"MODE SELECT(6) of nothing", {0x15, 0x10, 0, 0, 0, 0}, false},
      {"READ(10) of nothing", {0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false},
      {"WRITE(16) of nothing", {0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false},
  };
  for (const Case& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      RamLun lun = small_lun();
      const ScsiResult result = lun.run(c.cdb, kNone, {});
      CHECK(result.status == Status::kGood);
      CHECK(result.transferred == 0);
      CHECK(lun.disk_operations == (c.flushes ? 1 : 0));
      CHECK((!c.flushes || lun.last_io.op == DiskOp::kFlush));
    }
  }
}

TEST_CASE("READ CAPACITY", "[storvsp]") {
  struct Case {
    const char* rule;
    std::uint64_t size_bytes;
    std::uint32_t block_bytes;
    Bytes capacity10;
    Bytes capacity16;  // its first 14 bytes
  };
  const Case cases[] = {
      {"1 MiB of 512, 4096 physical",
       1 << 20,
       512,
       {0, 0, 0x07, 0xff, 0, 0, 2, 0},
       {0, 0, 0, 0, 0, 0, 0x07, 0xff, 0, 0, 2, 0, 0, 3}},
      {"1 MiB of 4096",
       1 << 20,
       4096,
       {0, 0, 0, 0xff, 0, 0, 16, 0},
       {0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 16, 0, 0, 0}},
      {"2 TiB - 512: the last that 10 bytes tell",
       (std::uint64_t{1} << 41) - 512,
       512,
       {0xff, 0xff, 0xff, 0xfe, 0, 0, 2, 0},
       {0, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe, 0, 0, 2, 0, 0, 3}},
      {"3 TiB",
       std::uint64_t{3} << 40,
       512,
       {0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0},
       {0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff, 0, 0, 2, 0, 0, 3}},
  };
  for (const Case& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      LunOptions options = ram_lun_options(c.size_bytes, c.block_bytes);
      LogicalUnit lun(options);
      Bytes data(32, kFill);
      iovec buffer{data.data(), data.size()};
      ScsiCommand command;
      command.direction = kIn;
      command.data = {&buffer, 1};
      command.data_length = 32;
      ScsiResult result;
      DiskIo io;

      command.cdb = {0x25};
      command.cdb_length = 10;
      CHECK(lun.execute(command, result, io) == ScsiNext::kComplete);
      CHECK(result.transferred == 8);
      CHECK(Bytes(data.begin(), data.begin() + 8) == c.capacity10);

      command.cdb = {0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32};
      command.cdb_length = 16;
      CHECK(lun.execute(command, result, io) == ScsiNext::kComplete);
      CHECK(result.transferred == 32);
      CHECK(Bytes(data.begin(), data.begin() + 14) == c.capacity16);
      CHECK(data[14] == 0xc0);  // thin, and reads zeros
      CHECK(Bytes(data.begin() + 15, data.end()) == Bytes(17, 0));
    }
  }
}

TEST_CASE("a stopped unit leaves its medium alone until it is started", "[storvsp]") {
  RamLun lun = small_lun();
  std::vector<std::byte> data(512);
  REQUIRE(lun.run({0x1b, 0, 0, 0, 0, 0}).status == Status::kGood);
  const int flushed = lun.disk_operations;
  CHECK(flushed == 1);
  const Bytes not_ready = {0x70, 0, 2, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x04, 0x02, 0, 0, 0, 0};
  for (const Bytes& cdb : {Bytes{0x00, 0, 0, 0, 0, 0}, Bytes{0x2f, 0, 0, 0, 0, 0, 0, 0, 1, 0},
                           Bytes{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}}) {
    CHECK(sense_of(lun.run(cdb, kIn, data)) == not_ready);
  }
  for (const Bytes& cdb :
       {Bytes{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, Bytes{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0},
        Bytes{0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0}, Bytes{0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}}) {
    CHECK(sense_of(lun.run(cdb, kOut, data)) == not_ready);
  }
  CHECK(lun.disk_operations == flushed);
  CHECK(ask(lun, {0x12, 0, 0, 0, 36, 0}).result.status == Status::kGood);
  CHECK(ask(lun, {0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}).result.status == Status::kGood);
  CHECK(ask(lun, {0x1a, 0, 0x3f, 0, 255, 0}).result.status == Status::kGood);
  CHECK(lun.run({0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0}).status == Status::kGood);
  SECTION("by the guest") {
    CHECK(lun.run({0x1b, 0, 0, 0, 1, 0}).status == Status::kGood);
  }
  SECTION("by a reset, of which it tells") {
    lun.lun.reset_by_guest(UnitAttention::kLogicalUnitReset);
    CHECK(lun.run({0x00, 0, 0, 0, 0, 0}).sense.asc == 0x29);
  }
  SECTION("by a guest that starts over") {
    lun.lun.power_on();
    CHECK(lun.run({0x00, 0, 0, 0, 0, 0}).sense.asc == 0x29);
  }
  CHECK(lun.run({0x00, 0, 0, 0, 0, 0}).status == Status::kGood);
  CHECK(lun.run({0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, kIn, data).status == Status::kGood);
}

TEST_CASE("FUA and the write cache", "[storvsp]") {
  RamLun lun = small_lun();
  std::vector<std::byte> data(512);
  const auto fua_of = [&](Bytes cdb, DataDirection direction) {
    REQUIRE(lun.run(cdb, direction, data).status == Status::kGood);
    return lun.last_io.fua;
  };
  CHECK(!fua_of({0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, kOut));
  CHECK(!fua_of({0x2a, 0x10, 0, 0, 0, 0, 0, 0, 1, 0}, kOut));
  CHECK(fua_of({0x2a, 0x08, 0, 0, 0, 0, 0, 0, 1, 0}, kOut));
  CHECK(fua_of({0xaa, 0x08, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, kOut));
  CHECK(fua_of({0x8a, 0x18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, kOut));
  CHECK(!fua_of({0x28, 0x08, 0, 0, 0, 0, 0, 0, 1, 0}, kIn));
  lun.lun.set_write_cache(false);
  CHECK(fua_of({0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, kOut));
  CHECK(fua_of({0x0a, 0, 0, 0, 1, 0}, kOut));
  lun.lun.reset();
  CHECK(!fua_of({0x0a, 0, 0, 0, 1, 0}, kOut));
}

TEST_CASE("a read-only disk", "[storvsp]") {
  LunOptions options = ram_lun_options(kBlocks * 512);
  options.read_only = true;
  RamLun lun(options);
  std::vector<std::byte> data(512);
  data.resize(1024);
  for (const Bytes& cdb :
       {Bytes{0x0a, 0, 0, 0, 1, 0}, Bytes{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0},
        Bytes{0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0}, Bytes{0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0},
        Bytes{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, Bytes{0xae, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0},
        Bytes{0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0},
        Bytes{0x8e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0},
        Bytes{0x93, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0},
        Bytes{0xaa, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0},
        Bytes{0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}}) {
    const ScsiResult result = lun.run(cdb, kOut, data);
    CHECK(result.status == Status::kCheckCondition);
    CHECK(sense_of(result) == Bytes{0x70, 0, 7, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x27, 0, 0, 0, 0, 0});
  }
  CHECK(lun.disk_operations == 0);
  CHECK(lun.run({0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, kIn, data).status == Status::kGood);
  CHECK(lun.run({0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0}).status == Status::kGood);
  CHECK(lun.run({0x1b, 0, 0, 0, 0, 0}).status == Status::kGood);
  CHECK(lun.disk_operations == 1);
}

TEST_CASE("READ and WRITE move their own length", "[storvsp]") {
  RamLun lun = small_lun();
  std::vector<std::byte> data(4096, std::byte{kFill});
  lun.medium[512] = std::byte{1};
  lun.medium[1023] = std::byte{2};
  const ScsiResult result = lun.run({0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0}, kIn, data);
  CHECK(result.transferred == 512);
  CHECK(data[0] == std::byte{1});
  CHECK(data[511] == std::byte{2});
  CHECK(data[512] == std::byte{kFill});
}

TEST_CASE("REQUEST SENSE", "[storvsp]") {
  RamLun lun = small_lun();
  CHECK(ask(lun, {0x03, 0, 0, 0, 252, 0}).data ==
        Bytes{0x70, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  CHECK(ask(lun, {0x03, 1, 0, 0, 252, 0}).data == Bytes{0x72, 0, 0, 0, 0, 0, 0, 0});
  CHECK(ask(lun, {0x03, 0, 0, 0, 4, 0}).data.size() == 4);
}

struct HostErrorCase {
  const char* rule;
  int error;
  DiskOp op;
  std::uint8_t key;
  std::uint16_t asc;
};
constexpr HostErrorCase kHostErrorCases[] = {
    {"EIO on a read", EIO, DiskOp::kRead, 3, 0x1100},
    {"EIO on a write", EIO, DiskOp::kWrite, 3, 0x0c00},
    {"EIO on a flush", EIO, DiskOp::kFlush, 3, 0x0c00},
    {"the device's medium error", ENODATA, DiskOp::kRead, 3, 0x1100},
    {"no space", ENOSPC, DiskOp::kWrite, 7, 0x2707},
    {"no space at the flush", ENOSPC, DiskOp::kFlush, 7, 0x2707},
    {"quota", EDQUOT, DiskOp::kWrite, 7, 0x2707},
    {"file size limit", EFBIG, DiskOp::kWrite, 7, 0x2707},
    {"read-only file system", EROFS, DiskOp::kWrite, 7, 0x2700},
    {"no memory", ENOMEM, DiskOp::kRead, 0xb, 0x0000},
    {"cancelled", ECANCELED, DiskOp::kWrite, 0xb, 0x0000},
    {"device gone", ENODEV, DiskOp::kWrite, 4, 0x4400},
    {"device gone, too", ENXIO, DiskOp::kRead, 4, 0x4400},
    {"timed out", ETIMEDOUT, DiskOp::kRead, 4, 0x4400},
    {"not supported", EOPNOTSUPP, DiskOp::kFlush, 4, 0x4400},
    {"bad descriptor", EBADF, DiskOp::kWrite, 4, 0x4400},
    {"an error nobody has heard of", 4095, DiskOp::kRead, 4, 0x4400},
};

TEST_CASE("host errors become sense", "[storvsp]") {
  for (const HostErrorCase& c : kHostErrorCases) {
    DYNAMIC_SECTION(c.rule) {
      ScsiResult result;
      LogicalUnit::finish({c.op, false, 0, 512}, c.error, result);
      CHECK(result.status == Status::kCheckCondition);
      CHECK(result.transferred == 0);
      CHECK(result.sense.flags_and_key == c.key);
      CHECK((result.sense.asc << 8 | result.sense.ascq) == c.asc);
      CHECK(result.sense.key_specific == 0);
    }
  }
}

ScsiResult without_lun(Bytes cdb, Bytes& data, std::uint64_t luns, bool& handled) {
  iovec buffer{data.data(), data.size()};
  ScsiCommand command;
  std::copy(cdb.begin(), cdb.end(), command.cdb.begin());
  command.cdb_length = static_cast<std::uint8_t>(cdb.size());
  command.direction = kIn;
  command.data_length = static_cast<std::uint32_t>(data.size());
  command.data = {&buffer, 1};
  command.target_luns = luns;
  ScsiResult result;
  handled = execute_without_lun(command, result);
  return result;
}

TEST_CASE("a LUN that is not there", "[storvsp]") {
  Bytes data(256, kFill);
  bool handled = false;
  SECTION("INQUIRY says so in its data") {
    const ScsiResult result = without_lun({0x12, 0, 0, 0, 36, 0}, data, 0, handled);
    CHECK(handled);
    CHECK(result.status == Status::kGood);
    CHECK(result.transferred == 36);
    CHECK(data[0] == 0x7f);
    CHECK(Bytes(data.begin() + 8, data.begin() + 36) == Bytes(28, 0));
  }
  SECTION("VPD pages are refused") {
    const ScsiResult result = without_lun({0x12, 1, 0, 0, 36, 0}, data, 0, handled);
    CHECK(handled);
    CHECK(result.status == Status::kCheckCondition);
    CHECK(result.sense.asc == 0x25);
    CHECK(data[1] == kFill);
  }
  SECTION("REPORT LUNS tells of others") {
    const ScsiResult result = without_lun({0xa0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0}, data,
                                          (std::uint64_t{1} << 63) | 0x6, handled);
    CHECK(handled);
    CHECK(result.transferred == 32);
    CHECK(Bytes(data.begin(), data.begin() + 32) == Bytes{0, 0, 0, 24, 0, 0, 0, 0, 0, 1,  0, 0, 0, 0, 0, 0,
                                                          0, 2, 0, 0,  0, 0, 0, 0, 0, 63, 0, 0, 0, 0, 0, 0});
  }
  SECTION("a target without LUNs") {
    const ScsiResult result = without_lun({0xa0, 0, 2, 0, 0, 0, 0, 0, 0x10, 0, 0, 0}, data, 0, handled);
    CHECK(handled);
    CHECK(result.transferred == 8);
    CHECK(Bytes(data.begin(), data.begin() + 8) == Bytes(8, 0));
  }
  SECTION("nothing else") {
    for (const std::uint8_t opcode : Bytes{0x00, 0x03, 0x25, 0x28, 0x2a, 0x35, 0xff}) {
      (void)without_lun({opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0}, data, 1, handled);
      CHECK(!handled);
    }
  }
}

TEST_CASE("REPORT LUNS of well-known units is empty", "[storvsp]") {
  RamLun lun = small_lun();
  CHECK(ask(lun, {0xa0, 0, 1, 0, 0, 0, 0, 0, 16, 0, 0, 0}).data == Bytes(8, 0));
  CHECK(ask(lun, {0xa0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0}).data ==
        Bytes{0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
}

}  // namespace
}  // namespace vmbusd::storvsp
