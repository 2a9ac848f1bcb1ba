#include "storvsp/scsi_handlers.h"

#include <vector>

#include "tests/catch.h"
#include "tests/storvsp/scsi_answer.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Status;

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
