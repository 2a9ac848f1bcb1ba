#include "storvsp/scsi_target.h"

#include <algorithm>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/storvsp/scsi_answer.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Status;

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

}  // namespace
}  // namespace vmbusd::storvsp
