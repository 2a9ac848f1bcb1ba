#include "storvsp/scsi_target.h"

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "storvsp/scsi_handlers.h"
#include "tests/catch.h"
#include "tests/storvsp/ram_lun.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Status;

constexpr std::uint64_t kBlocks = 2048;  // 1 MiB of 512-byte blocks
constexpr std::uint8_t kFill = 0xa5;     // what a buffer holds that nothing was written to

RamLun small_lun() {
  return RamLun(ram_lun_options(kBlocks * 512));
}

Bytes sense_of(const ScsiResult& result) {
  Bytes bytes(sizeof result.sense);
  std::memcpy(bytes.data(), &result.sense, bytes.size());
  return bytes;
}

// What a command with data to the guest gave: the bytes that it says it transferred.
struct Answer {
  ScsiResult result;
  Bytes data;
  bool rest_untouched = true;
};

Answer ask(RamLun& lun, Bytes cdb, std::size_t buffer_size = 4096, std::size_t piece = 4096) {
  Bytes buffer(buffer_size, kFill);
  Answer answer;
  answer.result = lun.run(cdb, kIn, std::as_writable_bytes(std::span(buffer)), piece);
  answer.data.assign(buffer.begin(), buffer.begin() + answer.result.transferred);
  for (std::size_t i = answer.result.transferred; i < buffer.size(); ++i)
    answer.rest_untouched &= buffer[i] == kFill;
  return answer;
}

std::string text(const Bytes& bytes, std::size_t at, std::size_t size) {
  return {bytes.begin() + static_cast<std::ptrdiff_t>(at),
          bytes.begin() + static_cast<std::ptrdiff_t>(at + size)};
}

// Every command that fails without the medium having a part in it. `field` < 0: no field pointer.
struct BadCommand {
  const char* rule;
  Bytes cdb;
  DataDirection direction;
  std::size_t data_size;
  std::uint8_t key;
  std::uint16_t asc;
  int field;
  int bit;
};

const BadCommand kBadCommands[] = {
    {"unknown opcode", {0xff, 0, 0, 0, 0, 0}, kNone, 0, 5, 0x2000, 0, 7},
    {"FORMAT UNIT", {0x04, 0, 0, 0, 0, 0}, kNone, 0, 5, 0x2000, 0, 7},
    {"ATA PASS-THROUGH(16)", {0x85, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, kNone, 0, 5, 0x2000, 0, 7},
    {"ATA PASS-THROUGH(12)", {0xa1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, kNone, 0, 5, 0x2000, 0, 7},
    {"empty CDB", {}, kNone, 0, 5, 0x2000, 0, 7},
    {"CDB shorter than its command", {0x28, 0, 0, 0, 0, 0, 0, 0, 1}, kIn, 512, 5, 0x2400, -1, 0},
    {"one byte of TEST UNIT READY", {0x00}, kNone, 0, 5, 0x2400, -1, 0},
    {"reserved bit of TEST UNIT READY", {0x00, 0, 0, 0x10, 0, 0}, kNone, 0, 5, 0x2400, 3, 4},
    {"NACA", {0x00, 0, 0, 0, 0, 0x04}, kNone, 0, 5, 0x2400, 5, 2},
    {"reserved bit of INQUIRY", {0x12, 0x02, 0, 0, 36, 0}, kIn, 36, 5, 0x2400, 1, 1},
    {"INQUIRY page code without EVPD", {0x12, 0, 0x80, 0, 36, 0}, kIn, 36, 5, 0x2400, 2, 7},
    {"VPD page that is not there", {0x12, 1, 0x8f, 0, 36, 0}, kIn, 36, 5, 0x2400, 2, 7},
    {"VPD page B9", {0x12, 1, 0xb9, 0, 36, 0}, kIn, 36, 5, 0x2400, 2, 7},
    {"INQUIRY into a buffer that gives data", {0x12, 0, 0, 0, 36, 0}, kOut, 36, 5, 0x2400, -1, 0},
    {"MODE SENSE page that is not there", {0x1a, 0, 0x02, 0, 255, 0}, kIn, 255, 5, 0x2400, 2, 5},
    {"MODE SENSE page 0", {0x1a, 0, 0x00, 0, 4, 0}, kIn, 4, 5, 0x2400, 2, 5},
    {"MODE SENSE subpage", {0x1a, 0, 0x08, 0x01, 255, 0}, kIn, 255, 5, 0x2400, 3, 7},
    {"MODE SENSE saved values", {0x1a, 0, 0xc8, 0, 255, 0}, kIn, 255, 5, 0x3900, 2, 7},
    {"MODE SENSE(10) saved values", {0x5a, 0, 0xff, 0, 0, 0, 0, 0, 255, 0}, kIn, 255, 5, 0x3900, 2, 7},
    {"START STOP UNIT power condition", {0x1b, 0, 0, 0, 0x10, 0}, kNone, 0, 5, 0x2400, 4, 7},
    {"START STOP UNIT eject", {0x1b, 0, 0, 0, 0x02, 0}, kNone, 0, 5, 0x2400, 4, 1},
    {"SEND DIAGNOSTIC without self-test", {0x1d, 0, 0, 0, 0, 0}, kNone, 0, 5, 0x2400, 1, 7},
    {"SEND DIAGNOSTIC with parameters", {0x1d, 0x04, 0, 0, 4, 0}, kOut, 4, 5, 0x2400, 3, 7},
    {"READ CAPACITY(10) of an LBA", {0x25, 0, 0, 0, 0, 1, 0, 0, 0, 0}, kIn, 8, 5, 0x2400, 2, 7},
    {"READ CAPACITY(16) of an LBA",
     {0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 32, 0, 0},
     kIn,
     32,
     5,
     0x2400,
     2,
     7},
    {"unknown service action",
     {0x9e, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0},
     kIn,
     32,
     5,
     0x2400,
     1,
     4},
    {"REPORT TARGET PORT GROUPS", {0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, kIn, 32, 5, 0x2400, 1, 4},
    {"REPORT SUPPORTED OPERATION CODES, reserved option",
     {0xa3, 0x0c, 4, 0, 0, 0, 0, 0, 0, 32, 0, 0},
     kIn,
     32,
     5,
     0x2400,
     2,
     2},
    {"REPORT SUPPORTED OPERATION CODES, service action not asked for",
     {0xa3, 0x0c, 1, 0x9e, 0, 0, 0, 0, 0, 32, 0, 0},
     kIn,
     32,
     5,
     0x2400,
     2,
     2},
    {"REPORT SUPPORTED OPERATION CODES, no service action",
     {0xa3, 0x0c, 2, 0x28, 0, 0, 0, 0, 0, 32, 0, 0},
     kIn,
     32,
     5,
     0x2400,
     2,
     2},
    {"REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS into too little",
     {0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0},
     kIn,
     32,
     5,
     0x2400,
     6,
     7},
    {"REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS, extended, into too little",
     {0xa3, 0x0d, 0x80, 0, 0, 0, 0, 0, 0, 15, 0, 0},
     kIn,
     32,
     5,
     0x2400,
     6,
     7},
    {"LOG SENSE that saves", {0x4d, 1, 0x40, 0, 0, 0, 0, 0, 255, 0}, kIn, 255, 5, 0x2400, 1, 0},
    {"LOG SENSE of what has changed", {0x4d, 2, 0x40, 0, 0, 0, 0, 0, 255, 0}, kIn, 255, 5, 0x2400, 1, 1},
    {"LOG SENSE page that is not there", {0x4d, 0, 0x4d, 0, 0, 0, 0, 0, 255, 0}, kIn, 255, 5, 0x2400, 2, 5},
    {"LOG SENSE subpage", {0x4d, 0, 0x6f, 1, 0, 0, 0, 0, 255, 0}, kIn, 255, 5, 0x2400, 3, 7},
    {"LOG SENSE behind the last parameter",
     {0x4d, 0, 0x6f, 0, 0, 0, 1, 0, 255, 0},
     kIn,
     255,
     5,
     0x2400,
     5,
     7},
    {"GET LBA STATUS past the end",
     {0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0x08, 0, 0, 0, 0, 24, 0, 0},
     kIn,
     24,
     5,
     0x2100,
     2,
     7},
    {"GET LBA STATUS report type",
     {0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 1, 0},
     kIn,
     24,
     5,
     0x2400,
     14,
     0},
    {"UNMAP with anchor", {0x42, 1, 0, 0, 0, 0, 0, 0, 24, 0}, kOut, 24, 5, 0x2400, 1, 0},
    {"UNMAP of half a header", {0x42, 0, 0, 0, 0, 0, 0, 0, 7, 0}, kOut, 24, 5, 0x1a00, -1, 0},
    {"UNMAP list longer than its data", {0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, kOut, 23, 5, 0x1a00, -1, 0},
    {"WRITE SAME(10) with anchor", {0x41, 0x18, 0, 0, 0, 0, 0, 0, 1, 0}, kOut, 512, 5, 0x2400, 1, 4},
    {"WRITE SAME(10) without data-out buffer bit",
     {0x41, 0x01, 0, 0, 0, 0, 0, 0, 1, 0},
     kOut,
     512,
     5,
     0x2400,
     1,
     0},
    {"WRITE SAME(10) of nothing", {0x41, 0, 0, 0, 0, 0, 0, 0, 0, 0}, kOut, 512, 5, 0x2400, 7, 7},
    {"WRITE SAME(10) of half a block", {0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0}, kOut, 511, 5, 0x2400, 7, 7},
    {"WRITE SAME(10) of two blocks", {0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0}, kOut, 1024, 5, 0x2400, 7, 7},
    {"WRITE SAME(10) past the end", {0x41, 0, 0, 0, 0x08, 0, 0, 0, 1, 0}, kOut, 512, 5, 0x2100, 2, 7},
    {"WRITE SAME(16) past the end",
     {0x93, 0, 0, 0, 0, 0, 0, 0, 0x07, 0xff, 0, 0, 0, 2, 0, 0},
     kOut,
     512,
     5,
     0x2100,
     2,
     7},
    {"WRITE SAME(16) of nothing",
     {0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
     kOut,
     512,
     5,
     0x2400,
     10,
     7},
    {"COMPARE AND WRITE past the end",
     {0x89, 0, 0, 0, 0, 0, 0, 0, 0x08, 0, 0, 0, 0, 1, 0, 0},
     kOut,
     1024,
     5,
     0x2100,
     2,
     7},
    {"COMPARE AND WRITE of too many blocks",
     {0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 129, 0, 0},
     kOut,
     129 * 1024,
     5,
     0x2400,
     13,
     7},
    {"COMPARE AND WRITE with half its data",
     {0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0},
     kOut,
     1023,
     5,
     0x2400,
     13,
     7},
    {"COMPARE AND WRITE, reserved byte",
     {0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0},
     kOut,
     1024,
     5,
     0x2400,
     11,
     0},
    {"WRITE AND VERIFY(10), reserved BYTCHK",
     {0x2e, 0x04, 0, 0, 0, 0, 0, 0, 1, 0},
     kOut,
     512,
     5,
     0x2400,
     1,
     2},
    {"WRITE AND VERIFY(10) of one block for all",
     {0x2e, 0x06, 0, 0, 0, 0, 0, 0, 1, 0},
     kOut,
     512,
     5,
     0x2400,
     1,
     2},
    {"WRITE AND VERIFY(10) from too small a buffer",
     {0x2e, 0, 0, 0, 0, 0, 0, 0, 2, 0},
     kOut,
     512,
     5,
     0x2400,
     7,
     7},
    {"WRITE AND VERIFY(12) past the end",
     {0xae, 0, 0, 0, 0x08, 0, 0, 0, 0, 1, 0, 0},
     kOut,
     512,
     5,
     0x2100,
     2,
     7},
    {"WRITE AND VERIFY(16) past the end",
     {0x8e, 0, 0, 0, 0, 0, 0, 0, 0x08, 0, 0, 0, 0, 1, 0, 0},
     kOut,
     512,
     5,
     0x2100,
     2,
     7},
    {"REPORT LUNS select 3", {0xa0, 0, 3, 0, 0, 0, 0, 0, 16, 0, 0, 0}, kIn, 4096, 5, 0x2400, 2, 7},
    {"REPORT LUNS into too little", {0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 0, 0}, kIn, 4096, 5, 0x2400, 6, 7},
    {"READ(10) protection", {0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0}, kIn, 512, 5, 0x2400, 1, 5},
    {"READ(10) FUA_NV", {0x28, 0x02, 0, 0, 0, 0, 0, 0, 1, 0}, kIn, 512, 5, 0x2400, 1, 1},
    {"READ(6) past the end", {0x08, 0, 0x08, 0x00, 1, 0}, kIn, 512, 5, 0x2100, 1, 7},
    {"READ(6) of 256 past the end", {0x08, 0, 0x07, 0x01, 0, 0}, kIn, 256 * 512, 5, 0x2100, 1, 7},
    {"READ(10) past the end", {0x28, 0, 0, 0, 0x08, 0, 0, 0, 1, 0}, kIn, 512, 5, 0x2100, 2, 7},
    {"READ(10) across the end", {0x28, 0, 0, 0, 0x07, 0xff, 0, 0, 2, 0}, kIn, 1024, 5, 0x2100, 2, 7},
    {"READ(10) of nothing past the end", {0x28, 0, 0, 0, 0x08, 0x01, 0, 0, 0, 0}, kIn, 512, 5, 0x2100, 2, 7},
    {"READ(12) past the end", {0xa8, 0, 0, 0, 0x08, 0, 0, 0, 0, 1, 0, 0}, kIn, 512, 5, 0x2100, 2, 7},
    {"READ(12) of 2^32-1 blocks",
     {0xa8, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0},
     kIn,
     512,
     5,
     0x2100,
     2,
     7},
    {"READ(16) past the end",
     {0x88, 0, 0, 0, 0, 0, 0, 0, 0x08, 0, 0, 0, 0, 1, 0, 0},
     kIn,
     512,
     5,
     0x2100,
     2,
     7},
    {"READ(16) whose end wraps",
     {0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 2, 0, 0},
     kIn,
     1024,
     5,
     0x2100,
     2,
     7},
    {"READ(10) into too small a buffer", {0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0}, kIn, 1023, 5, 0x2400, 7, 7},
    {"READ(10) without a buffer", {0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, kNone, 0, 5, 0x2400, 7, 7},
    {"READ(10) into a buffer that gives data",
     {0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0},
     kOut,
     512,
     5,
     0x2400,
     -1,
     0},
    {"WRITE(6) past the end", {0x0a, 0, 0x08, 0x00, 1, 0}, kOut, 512, 5, 0x2100, 1, 7},
    {"WRITE(10) past the end", {0x2a, 0, 0, 0, 0x08, 0, 0, 0, 1, 0}, kOut, 512, 5, 0x2100, 2, 7},
    {"WRITE(12) past the end", {0xaa, 0, 0, 0, 0x08, 0, 0, 0, 0, 1, 0, 0}, kOut, 512, 5, 0x2100, 2, 7},
    {"WRITE(16) past the end",
     {0x8a, 0, 0, 0, 0, 0, 0, 0, 0x08, 0, 0, 0, 0, 1, 0, 0},
     kOut,
     512,
     5,
     0x2100,
     2,
     7},
    {"WRITE(10) from too small a buffer", {0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0}, kOut, 512, 5, 0x2400, 7, 7},
    {"WRITE(16) from too small a buffer",
     {0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0},
     kOut,
     512,
     5,
     0x2400,
     10,
     7},
    {"WRITE(10) from a buffer that takes data",
     {0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0},
     kIn,
     512,
     5,
     0x2400,
     -1,
     0},
    {"VERIFY(10), reserved BYTCHK", {0x2f, 0x04, 0, 0, 0, 0, 0, 0, 1, 0}, kOut, 512, 5, 0x2400, 1, 2},
    {"VERIFY(10) of too little data", {0x2f, 0x02, 0, 0, 0, 0, 0, 0, 2, 0}, kOut, 1023, 5, 0x2400, 7, 7},
    {"VERIFY(12) without its data", {0xaf, 0x02, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, kNone, 0, 5, 0x2400, 6, 7},
    {"VERIFY(16) of less than a block",
     {0x8f, 0x06, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0},
     kOut,
     511,
     5,
     0x2400,
     10,
     7},
    {"VERIFY(10) into a buffer that takes data",
     {0x2f, 0x02, 0, 0, 0, 0, 0, 0, 1, 0},
     kIn,
     512,
     5,
     0x2400,
     -1,
     0},
    {"VERIFY(10) past the end", {0x2f, 0, 0, 0, 0x08, 0, 0, 0, 1, 0}, kNone, 0, 5, 0x2100, 2, 7},
    {"VERIFY(12) past the end", {0xaf, 0, 0, 0, 0x08, 0, 0, 0, 0, 1, 0, 0}, kNone, 0, 5, 0x2100, 2, 7},
    {"SYNCHRONIZE CACHE(10) past the end", {0x35, 0, 0, 0, 0x08, 0, 0, 0, 1, 0}, kNone, 0, 5, 0x2100, 2, 7},
    {"SYNCHRONIZE CACHE(16) past the end",
     {0x91, 0, 0, 0, 0, 0, 0, 0, 0x08, 0, 0, 0, 0, 1, 0, 0},
     kNone,
     0,
     5,
     0x2100,
     2,
     7},
    {"MODE SELECT(6) without PF", {0x15, 0, 0, 0, 4, 0}, kOut, 4, 5, 0x2400, 1, 4},
    {"MODE SELECT(6) save", {0x15, 0x11, 0, 0, 4, 0}, kOut, 4, 5, 0x2400, 1, 0},
    {"MODE SELECT(6) of half a header", {0x15, 0x10, 0, 0, 3, 0}, kOut, 3, 5, 0x1a00, -1, 0},
    {"MODE SELECT(6) list longer than its data", {0x15, 0x10, 0, 0, 24, 0}, kOut, 4, 5, 0x1a00, -1, 0},
    {"MODE SELECT(10) of a long list", {0x55, 0x10, 0, 0, 0, 0, 0, 1, 0, 0}, kOut, 256, 5, 0x1a00, -1, 0},
};

TEST_CASE("bad commands get the sense that says what is wrong", "[storvsp]") {
  for (const BadCommand& c : kBadCommands) {
    DYNAMIC_SECTION(c.rule) {
      RamLun lun = small_lun();
      std::vector<std::byte> data(c.data_size);
      const ScsiResult result = lun.run(c.cdb, c.direction, data);
      CHECK(result.status == Status::kCheckCondition);
      CHECK(result.transferred == 0);
      CHECK(lun.disk_operations == 0);
      Bytes expected = {0x70, 0, c.key, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
      expected[12] = static_cast<std::uint8_t>(c.asc >> 8);
      expected[13] = static_cast<std::uint8_t>(c.asc);
      if (c.field >= 0) {
        expected[15] = static_cast<std::uint8_t>(0xc8 | c.bit);
        expected[17] = static_cast<std::uint8_t>(c.field);
      }
      CHECK(sense_of(result) == expected);
    }
  }
}

// What no list of cases holds: each bit that an entry does not know, alone in a CDB that is zeros otherwise.
TEST_CASE("a bit that a command does not know is refused where it stands", "[storvsp]") {
  for (const CommandEntry& entry : command_table()) {
    DYNAMIC_SECTION("opcode " << static_cast<int>(entry.opcode) << ", service action "
                              << entry.service_action) {
      const bool has_action = entry.service_action != CommandEntry::kNoServiceAction;
      RamLun lun = small_lun();
      std::vector<std::byte> data(4096);
      for (std::size_t byte = 1; byte < entry.cdb_length; ++byte) {
        for (unsigned bit = 0; bit < 8; ++bit) {
          if ((entry.usage[byte] >> bit & 1) != 0) continue;
          Bytes cdb(entry.cdb_length);
          cdb[0] = static_cast<std::uint8_t>(entry.opcode);
          if (has_action) cdb[1] = static_cast<std::uint8_t>(entry.service_action);
          cdb[byte] = static_cast<std::uint8_t>(cdb[byte] | 1u << bit);
          const ScsiResult result = lun.run(cdb, entry.direction, data);
          REQUIRE(result.status == Status::kCheckCondition);
          REQUIRE(result.sense.flags_and_key == 5);
          REQUIRE((result.sense.asc << 8 | result.sense.ascq) == 0x2400);
          REQUIRE(result.sense.field == byte);
          REQUIRE(result.sense.key_specific == (0xc8 | bit));
        }
      }
      // As are CDBs that end early.
      for (std::size_t length = has_action ? 2 : 1; length < entry.cdb_length; ++length) {
        Bytes cdb(length);
        cdb[0] = static_cast<std::uint8_t>(entry.opcode);
        if (has_action) cdb[1] = static_cast<std::uint8_t>(entry.service_action);
        const ScsiResult result = lun.run(cdb, entry.direction, data);
        REQUIRE(result.status == Status::kCheckCondition);
        REQUIRE((result.sense.asc << 8 | result.sense.ascq) == 0x2400);
        REQUIRE(result.sense.key_specific == 0);
      }
      CHECK(lun.disk_operations == 0);
    }
  }
}

TEST_CASE("what is no command is refused as such", "[storvsp]") {
  RamLun lun = small_lun();
  for (unsigned opcode = 0; opcode < 256; ++opcode) {
    bool known = false;
    for (const CommandEntry& entry : command_table()) known |= static_cast<unsigned>(entry.opcode) == opcode;
    if (known) continue;
    Bytes cdb(16);
    cdb[0] = static_cast<std::uint8_t>(opcode);
    const ScsiResult result = lun.run(cdb, kNone, {});
    REQUIRE(sense_of(result) == Bytes{0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0xcf, 0, 0});
  }
}

TEST_CASE("a CDB may be longer than its command", "[storvsp]") {
  RamLun lun = small_lun();
  // Windows passes 16 bytes for every command; what follows the CDB means nothing.
  CHECK(lun.run({0x00, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}).status ==
        Status::kGood);
}

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

TEST_CASE("INQUIRY", "[storvsp]") {
  RamLun lun = small_lun();
  const Answer answer = ask(lun, {0x12, 0, 0, 0x01, 0x00, 0});
  REQUIRE(answer.result.status == Status::kGood);
  REQUIRE(answer.data.size() == 96);
  CHECK(Bytes(answer.data.begin(), answer.data.begin() + 8) == Bytes{0, 0, 5, 2, 91, 0, 0, 2});
  CHECK(text(answer.data, 8, 8) == "Msft    ");
  CHECK(text(answer.data, 16, 16) == "Virtual Disk    ");
  CHECK(text(answer.data, 32, 4) == "1.0 ");
  Bytes rest(60);
  const Bytes standards = {0x00, 0x80, 0x03, 0x00, 0x04, 0xc0};
  std::copy(standards.begin(), standards.end(), rest.begin() + 22);
  CHECK(Bytes(answer.data.begin() + 36, answer.data.end()) == rest);
  CHECK(answer.rest_untouched);
  SECTION("allocation length cuts it") {
    const Answer cut = ask(lun, {0x12, 0, 0, 0, 36, 0});
    CHECK(cut.data == Bytes(answer.data.begin(), answer.data.begin() + 36));
    CHECK(cut.rest_untouched);
  }
  SECTION("the buffer cuts it") {
    CHECK(ask(lun, {0x12, 0, 0, 0, 255, 0}, 5).data.size() == 5);
  }
  SECTION("a buffer in small pieces") {
    CHECK(ask(lun, {0x12, 0, 0, 0, 255, 0}, 4096, 7).data == answer.data);
  }
  SECTION("no buffer at all") {
    const ScsiResult nothing = lun.run({0x12, 0, 0, 0, 255, 0});
    CHECK(nothing.status == Status::kGood);
    CHECK(nothing.transferred == 0);
  }
}

TEST_CASE("vital product data", "[storvsp]") {
  RamLun lun = small_lun();
  const auto page = [&](std::uint8_t code) { return ask(lun, {0x12, 1, code, 0x01, 0, 0}).data; };
  CHECK(page(0x00) == Bytes{0, 0x00, 0, 7, 0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2});
  CHECK(page(0x80) == Bytes{0, 0x80, 0, 8, 'S', 'E', 'R', 'I', 'A', 'L', '-', '1'});
  // Bytes of the GUID in Windows' order: 33 22 11 00 55 44 77 66 88 99 aa bb cc dd ee ff.
  CHECK(page(0x83) == Bytes{0,    0x83, 0,    48,   1,    1,    0,    24,   'M',  's',  'f',  't',  ' ',
                            ' ',  ' ',  ' ',  0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99,
                            0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 1,    3,    0,    16,   0x60, 0x02, 0x24,
                            0x80, 0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff});
  Bytes extended = {0, 0x86, 0, 60, 0, 1, 1};
  extended.resize(64);
  CHECK(page(0x86) == extended);
  // WSNZ, 128 blocks compared at most, transfers of 1 MiB, unmapping of 2^20 blocks in 256 descriptors by
  // physical blocks from 0 on, WRITE SAME of 64 MiB.
  Bytes limits = {0, 0xb0, 0, 60, 1, 128, 0, 8, 0, 0, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
                  0, 0,    0, 0,  1, 0,   0, 0, 0, 8, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0};
  limits.resize(64);
  CHECK(page(0xb0) == limits);
  Bytes characteristics = {0, 0xb1, 0, 60, 0, 1};
  characteristics.resize(64);
  CHECK(page(0xb1) == characteristics);
  CHECK(page(0xb2) == Bytes{0, 0xb2, 0, 4, 0, 0xe4, 2, 0});
  SECTION("as Linux reads them: the header first") {
    CHECK(ask(lun, {0x12, 1, 0x83, 0, 4, 0}).data == Bytes{0, 0x83, 0, 48});
  }
  SECTION("a device that discards, and says not what is read then") {
    LunOptions options = ram_lun_options(kBlocks * 512);
    options.geometry.discard_zeroes = false;
    RamLun device(options);
    CHECK(ask(device, {0x12, 1, 0xb2, 0, 8, 0}).data == Bytes{0, 0xb2, 0, 4, 0, 0xe0, 2, 0});
    CHECK(ask(device, {0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}).data[14] == 0x80);
  }
  SECTION("a disk that cannot give space back") {
    LunOptions options = ram_lun_options(kBlocks * 512);
    options.geometry.discards = options.geometry.discard_zeroes = false;
    RamLun thick(options);
    CHECK(ask(thick, {0x12, 1, 0xb2, 0, 8, 0}).data == Bytes{0, 0xb2, 0, 4, 0, 0, 0, 0});
    const Bytes thick_limits = ask(thick, {0x12, 1, 0xb0, 0, 64, 0}).data;
    CHECK(Bytes(thick_limits.begin() + 20, thick_limits.begin() + 36) == Bytes(16, 0));
    CHECK(ask(thick, {0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}).data[14] == 0);
    std::vector<std::byte> data(24);
    CHECK(thick.run({0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, kOut, data).sense.asc == 0x20);
    std::vector<std::byte> block(512);
    CHECK(thick.run({0x41, 0x08, 0, 0, 0, 0, 0, 0, 1, 0}, kOut, block).sense.asc == 0x24);
  }
  SECTION("a disk that turns tells no speed") {
    LunOptions options = ram_lun_options(kBlocks * 512);
    options.geometry.rotational = true;
    RamLun turning(options);
    CHECK(ask(turning, {0x12, 1, 0xb1, 0, 8, 0}).data == Bytes{0, 0xb1, 0, 60, 0, 0, 0, 0});
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

TEST_CASE("MODE SENSE", "[storvsp]") {
  RamLun lun = small_lun();
  Bytes caching = {0x08, 0x12, 0x04};
  caching.resize(20);
  const Bytes control = {0x0a, 0x0a, 0, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0};
  const Bytes recovery = {0x01, 0x0a, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  const Bytes exceptions = {0x1c, 0x0a, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  const auto joined = [](Bytes a, const Bytes& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  };
  CHECK(ask(lun, {0x1a, 0, 0x08, 0, 255, 0}).data == joined({23, 0, 0x10, 0}, caching));
  CHECK(ask(lun, {0x1a, 0, 0x0a, 0, 255, 0}).data == joined({15, 0, 0x10, 0}, control));
  CHECK(ask(lun, {0x1a, 0, 0x01, 0, 255, 0}).data == joined({15, 0, 0x10, 0}, recovery));
  CHECK(ask(lun, {0x1a, 0, 0x1c, 0, 255, 0}).data == joined({15, 0, 0x10, 0}, exceptions));
  const Bytes all = joined(joined(recovery, caching), joined(control, exceptions));
  CHECK(ask(lun, {0x1a, 0, 0x3f, 0, 255, 0}).data == joined({59, 0, 0x10, 0}, all));
  CHECK(ask(lun, {0x1a, 0, 0x3f, 0xff, 255, 0}).data == joined({59, 0, 0x10, 0}, all));
  CHECK(ask(lun, {0x5a, 0, 0x08, 0, 0, 0, 0, 1, 0, 0}).data == joined({0, 26, 0, 0x10, 0, 0, 0, 0}, caching));
  CHECK(ask(lun, {0x1a, 0x08, 0x3f, 0, 4, 0}).data ==
        Bytes{59, 0, 0x10, 0});  // as Linux asks for write protect
  SECTION("changeable: the write cache") {
    Bytes changeable = {0x08, 0x12, 0x04};
    changeable.resize(20);
    CHECK(ask(lun, {0x1a, 0, 0x48, 0, 255, 0}).data == joined({23, 0, 0x10, 0}, changeable));
    Bytes nothing = {0x0a, 0x0a};
    nothing.resize(12);
    CHECK(ask(lun, {0x1a, 0, 0x4a, 0, 255, 0}).data == joined({15, 0, 0x10, 0}, nothing));
  }
  SECTION("read-only") {
    LunOptions options = ram_lun_options(kBlocks * 512);
    options.read_only = true;
    RamLun read_only(options);
    CHECK(ask(read_only, {0x1a, 0, 0x3f, 0, 4, 0}).data == Bytes{59, 0, 0x90, 0});
    CHECK(ask(read_only, {0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 4, 0}).data == Bytes{0, 62, 0, 0x90});
  }
}

struct SelectCase {
  const char* rule;
  Bytes list;
  std::uint16_t asc;  // 0: good
  int field;
  bool wce;      // afterwards
  bool flushes;  // what was cached
};

Bytes caching_list(std::uint8_t flags, Bytes header = {0, 0, 0, 0}) {
  header.insert(header.end(), {0x08, 0x12, flags});
  header.resize(header.size() + 17);
  return header;
}

const SelectCase kSelectCases[] = {
    {"header only", {0, 0, 0x10, 0}, 0, 0, true, false},
    {"unchanged caching page", caching_list(0x04), 0, 0, true, false},
    {"write cache off", caching_list(0x00), 0, 0, false, true},
    {"read cache off", caching_list(0x05), 0x2600, 6, true, false},
    {"PS set",
     {0, 0, 0, 0, 0x88, 0x12, 0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
     0x2600,
     4,
     true,
     false},
    {"unknown page", {0, 0, 0, 0, 0x02, 0x0e}, 0x2600, 4, true, false},
    {"wrong page length", {0, 0, 0, 0, 0x08, 0x0a, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0x2600, 5, true, false},
    {"page cut short", {0, 0, 0, 0, 0x08, 0x12, 4, 0}, 0x1a00, -1, true, false},
    {"half a page header", {0, 0, 0, 0, 0x08}, 0x1a00, -1, true, false},
    {"block descriptor", {0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0}, 0x2600, 3, true, false},
    {"medium type", {0, 1, 0, 0}, 0x2600, 1, true, false},
};

TEST_CASE("MODE SELECT(6) takes all or nothing", "[storvsp]") {
  for (const SelectCase& c : kSelectCases) {
    DYNAMIC_SECTION(c.rule) {
      RamLun lun = small_lun();
      Bytes list = c.list;
      const ScsiResult result = lun.run({0x15, 0x10, 0, 0, static_cast<std::uint8_t>(list.size()), 0}, kOut,
                                        std::as_writable_bytes(std::span(list)));
      CHECK((result.status == Status::kGood) == (c.asc == 0));
      CHECK(lun.lun.write_cache() == c.wce);
      CHECK(lun.disk_operations == (c.flushes ? 1 : 0));
      if (c.asc != 0) {
        CHECK((result.sense.asc << 8 | result.sense.ascq) == c.asc);
        CHECK(result.sense.key_specific == (c.field >= 0 ? 0x8f : 0));
        CHECK(result.sense.field == (c.field >= 0 ? c.field : 0));
      }
    }
  }
  SECTION("ten bytes") {
    RamLun lun = small_lun();
    Bytes list = caching_list(0x00, {0, 0, 0, 0, 0, 0, 0, 0});
    CHECK(lun.run({0x55, 0x10, 0, 0, 0, 0, 0, 0, 28, 0}, kOut, std::as_writable_bytes(std::span(list)))
              .status == Status::kGood);
    CHECK(!lun.lun.write_cache());
  }
  SECTION("not where the operator chose") {
    LunOptions options = ram_lun_options(kBlocks * 512);
    options.write_cache = false;
    options.write_cache_changeable = false;
    RamLun lun(options);
    Bytes list = caching_list(0x04);
    CHECK(lun.run({0x15, 0x10, 0, 0, 24, 0}, kOut, std::as_writable_bytes(std::span(list))).status ==
          Status::kCheckCondition);
    CHECK(!lun.lun.write_cache());
  }
}

TEST_CASE("LOG SENSE", "[storvsp]") {
  RamLun lun = small_lun();
  const auto page = [&](std::uint8_t code, std::uint8_t subpage) {
    return ask(lun, {0x4d, 0, code, subpage, 0, 0, 0, 0, 255, 0}).data;
  };
  CHECK(page(0x00, 0) == Bytes{0x00, 0, 0, 2, 0x00, 0x2f});
  CHECK(page(0x40, 0) == page(0x00, 0));
  CHECK(page(0x40, 0xff) == Bytes{0x40, 0xff, 0, 6, 0x00, 0, 0x00, 0xff, 0x2f, 0});
  CHECK(page(0x6f, 0) == Bytes{0xaf, 0, 0, 8, 0, 0, 0x23, 4, 0, 0, 0xff, 0});
  CHECK(ask(lun, {0x4d, 0, 0x6f, 0, 0, 0, 0, 0, 4, 0}).data == Bytes{0xaf, 0, 0, 8});
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

TEST_CASE("the command table is complete in itself", "[storvsp]") {
  for (const CommandEntry& entry : command_table()) {
    DYNAMIC_SECTION("opcode " << static_cast<int>(entry.opcode)) {
      CHECK(entry.handler != nullptr);
      CHECK(entry.usage[0] == static_cast<std::uint8_t>(entry.opcode));
      // The length that the opcode's group has. [SPC-4: Operation code]
      const auto opcode = static_cast<std::uint8_t>(entry.opcode);
      CHECK(entry.cdb_length == (opcode < 0x20 ? 6 : opcode < 0x60 ? 10 : opcode < 0xa0 ? 16 : 12));
    }
  }
}

}  // namespace
}  // namespace vmbusd::storvsp
