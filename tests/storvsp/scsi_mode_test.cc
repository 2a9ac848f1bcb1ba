#include "storvsp/scsi_target.h"

#include <vector>

#include "tests/catch.h"
#include "tests/storvsp/scsi_answer.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Status;

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

}  // namespace
}  // namespace vmbusd::storvsp
