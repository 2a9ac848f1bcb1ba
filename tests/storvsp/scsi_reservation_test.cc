// PERSISTENT RESERVE IN and OUT, RESERVE and RELEASE: sequences of commands and what the LUN says after them.
#include <cerrno>
#include <cstring>
#include <optional>
#include <vector>

#include "tests/catch.h"
#include "tests/storvsp/ram_lun.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Status;

enum Action : std::uint8_t { kRegister, kReserve, kRelease, kClear, kPreempt, kPreemptAndAbort, kIgnore };

Bytes parameter_list(std::uint8_t key, std::uint8_t service_key, std::uint8_t flags = 0) {
  Bytes list(24);
  list[7] = key;
  list[15] = service_key;
  list[20] = flags;
  return list;
}

struct Lun : RamLun {
  explicit Lun(bool keeps = true) : RamLun(options(keeps)) {}
  static LunOptions options(bool keeps) {
    LunOptions options = ram_lun_options(1 << 20);
    options.keeps_reservations = keeps;
    return options;
  }
  ScsiResult out(std::uint8_t action, std::uint8_t scope_and_type, Bytes list) {
    return run(Bytes{0x5f, action, scope_and_type, 0, 0, 0, 0, 0, static_cast<std::uint8_t>(list.size()), 0},
               kOut, std::as_writable_bytes(std::span(list)));
  }
  Bytes in(std::uint8_t action, std::uint8_t allocation_length = 255) {
    Bytes data(255);
    const ScsiResult result = run(Bytes{0x5e, action, 0, 0, 0, 0, 0, 0, allocation_length, 0}, kIn,
                                  std::as_writable_bytes(std::span(data)));
    REQUIRE(result.status == Status::kGood);
    data.resize(result.transferred);
    return data;
  }
};

// One PERSISTENT RESERVE OUT. asc 0: good; 0xffff: RESERVATION CONFLICT; else CHECK CONDITION, ILLEGAL
// REQUEST.
struct Step {
  std::uint8_t action;
  std::uint8_t type;
  std::uint8_t key;
  std::uint8_t service_key;
  std::uint16_t asc;
};
constexpr std::uint16_t kConflict = 0xffff;

struct Sequence {
  const char* rule;
  std::vector<Step> steps;
  std::uint8_t generation;
  std::uint8_t key;   // that is registered, 0: none
  std::uint8_t type;  // that is held, 0: none
};

const Sequence kSequences[] = {
    {"nothing", {}, 0, 0, 0},
    {"register", {{kRegister, 0, 0, 7, 0}}, 1, 7, 0},
    {"register nothing", {{kRegister, 0, 0, 0, 0}}, 0, 0, 0},
    {"register with a key that nobody has", {{kRegister, 0, 1, 7, kConflict}}, 0, 0, 0},
    {"register anew", {{kRegister, 0, 0, 7, 0}, {kRegister, 0, 7, 8, 0}}, 2, 8, 0},
    {"register anew with the wrong key", {{kRegister, 0, 0, 7, 0}, {kRegister, 0, 6, 8, kConflict}}, 1, 7, 0},
    {"unregister", {{kRegister, 0, 0, 7, 0}, {kRegister, 0, 7, 0, 0}}, 2, 0, 0},
    {"register whatever the key", {{kIgnore, 0, 3, 7, 0}, {kIgnore, 0, 5, 8, 0}}, 2, 8, 0},
    {"unregister whatever the key", {{kIgnore, 0, 0, 7, 0}, {kIgnore, 0, 9, 0, 0}}, 2, 0, 0},
    {"reserve", {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}}, 1, 7, 1},
    {"reserve exclusively", {{kRegister, 0, 0, 7, 0}, {kReserve, 3, 7, 0, 0}}, 1, 7, 3},
    {"reserve for registrants", {{kRegister, 0, 0, 7, 0}, {kReserve, 5, 7, 0, 0}}, 1, 7, 5},
    {"reserve exclusively for registrants", {{kRegister, 0, 0, 7, 0}, {kReserve, 6, 7, 0, 0}}, 1, 7, 6},
    {"reserve for all registrants", {{kRegister, 0, 0, 7, 0}, {kReserve, 7, 7, 0, 0}}, 1, 7, 7},
    {"reserve exclusively for all registrants", {{kRegister, 0, 0, 7, 0}, {kReserve, 8, 7, 0, 0}}, 1, 7, 8},
    {"reserve again", {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}, {kReserve, 1, 7, 0, 0}}, 1, 7, 1},
    {"reserve as another type",
     {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}, {kReserve, 3, 7, 0, kConflict}},
     1,
     7,
     1},
    {"reserve without a registration", {{kReserve, 1, 7, 0, kConflict}}, 0, 0, 0},
    {"reserve with the wrong key", {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 6, 0, kConflict}}, 1, 7, 0},
    {"reserve as no type",
     {{kRegister, 0, 0, 7, 0},
      {kReserve, 0, 7, 0, 0x2400},
      {kReserve, 2, 7, 0, 0x2400},
      {kReserve, 9, 7, 0, 0x2400}},
     1,
     7,
     0},
    {"reserve an extent", {{kRegister, 0, 0, 7, 0}, {kReserve, 0x11, 7, 0, 0x2400}}, 1, 7, 0},
    {"release", {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}, {kRelease, 1, 7, 0, 0}}, 1, 7, 0},
    {"release nothing", {{kRegister, 0, 0, 7, 0}, {kRelease, 1, 7, 0, 0}}, 1, 7, 0},
    {"release another type",
     {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}, {kRelease, 3, 7, 0, 0x2604}},
     1,
     7,
     1},
    {"release with the wrong key",
     {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}, {kRelease, 1, 6, 0, kConflict}},
     1,
     7,
     1},
    {"unregistering releases",
     {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}, {kRegister, 0, 7, 0, 0}},
     2,
     0,
     0},
    {"a new key keeps the reservation",
     {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}, {kRegister, 0, 7, 8, 0}},
     2,
     8,
     1},
    {"clear", {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}, {kClear, 0, 7, 0, 0}}, 2, 0, 0},
    {"clear with the wrong key", {{kRegister, 0, 0, 7, 0}, {kClear, 0, 6, 0, kConflict}}, 1, 7, 0},
    {"preempt oneself", {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}, {kPreempt, 3, 7, 7, 0}}, 2, 7, 3},
    {"preempt and abort oneself",
     {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}, {kPreemptAndAbort, 3, 7, 7, 0}},
     2,
     7,
     3},
    {"preempt whom nobody knows",
     {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}, {kPreempt, 3, 7, 9, kConflict}},
     1,
     7,
     1},
    {"preempt nobody",
     {{kRegister, 0, 0, 7, 0}, {kReserve, 1, 7, 0, 0}, {kPreempt, 3, 7, 0, 0x2600}},
     1,
     7,
     1},
    {"preempt all registrants",
     {{kRegister, 0, 0, 7, 0}, {kReserve, 7, 7, 0, 0}, {kPreempt, 1, 7, 0, 0}},
     2,
     7,
     1},
    {"preempt without a reservation", {{kRegister, 0, 0, 7, 0}, {kPreempt, 1, 7, 7, 0}}, 2, 0, 0},
    {"preempt as no type", {{kRegister, 0, 0, 7, 0}, {kPreempt, 2, 7, 7, 0x2400}}, 1, 7, 0},
};

TEST_CASE("persistent reservations", "[storvsp]") {
  for (const Sequence& c : kSequences) {
    DYNAMIC_SECTION(c.rule) {
      Lun lun;
      for (const Step& step : c.steps) {
        const ScsiResult result = lun.out(step.action, step.type, parameter_list(step.key, step.service_key));
        if (step.asc == 0) {
          CHECK(result.status == Status::kGood);
          CHECK(result.transferred == 24);
        } else if (step.asc == kConflict) {
          CHECK(result.status == Status::kReservationConflict);
        } else {
          CHECK(result.status == Status::kCheckCondition);
          CHECK((result.sense.asc << 8 | result.sense.ascq) == step.asc);
        }
      }
      Bytes keys = {0, 0, 0, c.generation, 0, 0, 0, 0};
      if (c.key != 0) keys = {0, 0, 0, c.generation, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, c.key};
      CHECK(lun.in(0) == keys);
      Bytes reservation = {0, 0, 0, c.generation, 0, 0, 0, 0};
      if (c.type != 0) {
        const std::uint8_t holder = c.type >= 7 ? 0 : c.key;
        reservation = {0, 0, 0, c.generation, 0, 0, 0, 16, 0, 0,      0, 0,
                       0, 0, 0, holder,       0, 0, 0, 0,  0, c.type, 0, 0};
      }
      CHECK(lun.in(1) == reservation);
      const Bytes full = lun.in(3);
      CHECK(full.size() == (c.key != 0 ? 8 + 48 : 8));
      if (c.key != 0) {
        CHECK(full[15] == c.key);
        CHECK(full[20] == (c.type != 0 ? 1 : 0));
        CHECK(full[21] == c.type);
        CHECK(full[27] == 1);
        CHECK(full[31] == 24);
        CHECK(full[32] == 4);
      }
      // Whatever it is, it is this guest's own.
      std::vector<std::byte> block(512);
      CHECK(lun.run(Bytes{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, kOut, block).status == Status::kGood);
    }
  }
}

// What a LUN of that identity finds where another worker process left `kept`.
std::optional<PersistentReservation> found_in(const std::vector<std::byte>& kept, const Lun& lun) {
  return from_record(kept, lun.lun.identity().id);
}

constexpr std::uint8_t kPersist = 1;  // APTPL

TEST_CASE("reservations that are to be kept are, with what becomes of them", "[storvsp]") {
  Lun lun;
  CHECK(lun.in(2) == Bytes{0, 8, 1, 0x80, 0xea, 0x01, 0, 0});
  REQUIRE(lun.out(kRegister, 0, parameter_list(0, 7, kPersist)).status == Status::kGood);
  CHECK(lun.last_io.op == DiskOp::kKeep);
  CHECK(lun.in(2) == Bytes{0, 8, 1, 0x81, 0xea, 0x01, 0, 0});
  REQUIRE(found_in(lun.kept, lun));
  CHECK(found_in(lun.kept, lun)->key == 7);
  CHECK(!found_in(lun.kept, lun)->type);
  REQUIRE(lun.out(kReserve, 5, parameter_list(7, 0)).status == Status::kGood);
  const std::optional<PersistentReservation> found = found_in(lun.kept, lun);
  REQUIRE(found);
  CHECK(found->type == ReservationType::kWriteExclusiveRegistrants);
  CHECK(found->generation == 0);
  SECTION("another process takes them up") {
    Lun next;
    next.lun.reservations().set_state(*found);
    CHECK(next.in(0) == Bytes{0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7});
    CHECK(next.in(1)[21] == 5);
    CHECK(next.in(2)[3] == 0x81);
    CHECK(next.out(kRelease, 5, parameter_list(7, 0)).status == Status::kGood);
    CHECK(!found_in(next.kept, next)->type);
  }
  SECTION("nothing is written where nothing changes") {
    const int before = lun.disk_operations;
    CHECK(lun.out(kReserve, 5, parameter_list(7, 0)).status == Status::kGood);
    CHECK(lun.out(kReserve, 5, parameter_list(6, 0)).status == Status::kReservationConflict);
    CHECK(lun.disk_operations == before);
  }
  SECTION("until the last registration says otherwise") {
    CHECK(lun.out(kRegister, 0, parameter_list(7, 8)).status == Status::kGood);
    CHECK(!found_in(lun.kept, lun));
    CHECK(lun.in(2)[3] == 0x80);
    CHECK(lun.in(1)[21] == 5);
  }
  SECTION("until they are gone") {
    CHECK(lun.out(kClear, 0, parameter_list(7, 0)).status == Status::kGood);
    CHECK(!found_in(lun.kept, lun));
  }
  SECTION("what cannot be kept has not happened") {
    const std::vector<std::byte> before = lun.kept;
    lun.disk_error = ENOSPC;
    const ScsiResult result = lun.out(kRelease, 5, parameter_list(7, 0));
    CHECK((result.sense.asc << 8 | result.sense.ascq) == 0x2707);
    CHECK(lun.in(1)[21] == 5);
    CHECK(lun.kept == before);
  }
}

TEST_CASE("a record that is not a unit's own is none", "[storvsp]") {
  Lun lun;
  REQUIRE(lun.out(kRegister, 0, parameter_list(0, 7, kPersist)).status == Status::kGood);
  const Guid own = lun.lun.identity().id;
  REQUIRE(from_record(lun.kept, own));
  CHECK(!from_record(lun.kept, Guid::derive("another", "unit")));
  CHECK(!from_record(std::span(lun.kept).first(lun.kept.size() - 1), own));
  CHECK(!from_record({}, own));
  ReservationRecord record;
  std::memcpy(&record, lun.kept.data(), sizeof record);
  SECTION("no such type") {
    record.type = 2;
  }
  SECTION("no key") {
    record.key = 0;
  }
  SECTION("not registered") {
    record.registered = 0;
  }
  SECTION("registered how?") {
    record.registered = 2;
  }
  CHECK(!from_record(wire_bytes(record), own));
}

TEST_CASE("what PERSISTENT RESERVE OUT does not do", "[storvsp]") {
  Lun lun(false);
  for (const auto& [flags, bit] : {std::pair{1, 0}, std::pair{4, 2}, std::pair{8, 3}}) {
    const ScsiResult result = lun.out(kRegister, 0, parameter_list(0, 7, static_cast<std::uint8_t>(flags)));
    CHECK((result.sense.asc << 8 | result.sense.ascq) == 0x2600);
    CHECK(result.sense.field == 20);
    CHECK(result.sense.key_specific == (0x88 | bit));
  }
  CHECK(lun.out(7, 0, parameter_list(0, 7)).sense.asc == 0x24);
  Bytes half = parameter_list(0, 7);
  half.resize(23);
  CHECK(lun.out(kRegister, 0, half).sense.asc == 0x1a);
  CHECK(lun.in(0).size() == 8);
  CHECK(lun.in(2) == Bytes{0, 8, 0, 0x80, 0xea, 0x01, 0, 0});
}

TEST_CASE("RESERVE and RELEASE exclude persistent reservations", "[storvsp]") {
  const Bytes reserve6 = {0x16, 0, 0, 0, 0, 0};
  const Bytes release6 = {0x17, 0, 0, 0, 0, 0};
  const Bytes reserve10 = {0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  const Bytes release10 = {0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  Lun lun;
  const auto status_of = [&](const Bytes& cdb) { return lun.run(cdb, DataDirection::kNone, {}).status; };
  SECTION("reserved") {
    CHECK(status_of(reserve6) == Status::kGood);
    CHECK(status_of(reserve10) == Status::kGood);
    CHECK(lun.out(kRegister, 0, parameter_list(0, 7)).status == Status::kReservationConflict);
    SECTION("until released") {
      CHECK(status_of(release10) == Status::kGood);
    }
    SECTION("until a reset") {
      lun.lun.reset_by_guest(UnitAttention::kBusReset);
      CHECK(status_of({0, 0, 0, 0, 0, 0}) == Status::kCheckCondition);
    }
    CHECK(lun.out(kRegister, 0, parameter_list(0, 7)).status == Status::kGood);
  }
  SECTION("registered") {
    CHECK(lun.out(kRegister, 0, parameter_list(0, 7)).status == Status::kGood);
    CHECK(status_of(reserve6) == Status::kReservationConflict);
    CHECK(status_of(release6) == Status::kReservationConflict);
    lun.lun.reset_by_guest(UnitAttention::kBusReset);
    CHECK(status_of({0, 0, 0, 0, 0, 0}) == Status::kCheckCondition);
    CHECK(lun.in(0).size() == 16);
  }
  CHECK(status_of({0x16, 0x10, 0, 0, 0, 0}) == Status::kCheckCondition);              // for a third party
  CHECK(status_of({0x56, 0x02, 0, 0, 0, 0, 0, 0, 0, 0}) == Status::kCheckCondition);  // with a long id
}

}  // namespace
}  // namespace vmbusd::storvsp
