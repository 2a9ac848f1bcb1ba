#include <chrono>
#include <thread>

#include "base/guid.h"
#include "base/log.h"
#include "base/result.h"
#include "base/wire.h"
#include "tests/catch.h"

namespace vmbusd {
namespace {

constexpr Guid kNic = Guid::literal("f8615163-df3e-46c5-913f-f2d2f965ed0e");

TEST_CASE("a GUID is stored mixed-endian and printed back", "[base]") {
  // [reference: OFFERCHANNEL of a NIC] begins 63 51 61 f8 3e df c5 46 91 3f.
  CHECK(kNic.bytes[0] == 0x63);
  CHECK(kNic.bytes[3] == 0xf8);
  CHECK(kNic.bytes[4] == 0x3e);
  CHECK(kNic.bytes[8] == 0x91);
  CHECK(kNic.to_string() == "f8615163-df3e-46c5-913f-f2d2f965ed0e");
  CHECK(Guid::parse("F8615163-DF3E-46C5-913F-F2D2F965ED0E") == kNic);
}

TEST_CASE("anything but a GUID is refused", "[base]") {
  for (const char* text : {"", "f8615163", "f8615163-df3e-46c5-913f-f2d2f965ed0g",
                           "f8615163+df3e-46c5-913f-f2d2f965ed0e", "f8615163-df3e-46c5-913f-f2d2f965ed0e0"}) {
    CHECK_FALSE(Guid::parse(text).has_value());
  }
}

TEST_CASE("derived GUIDs are stable and differ by scope and by name", "[base]") {
  CHECK(Guid::derive("guest1", "scsi0") == Guid::derive("guest1", "scsi0"));
  CHECK(Guid::derive("guest1", "scsi0") != Guid::derive("guest1", "scsi1"));
  CHECK(Guid::derive("guest1", "scsi0") != Guid::derive("guest2", "scsi0"));
  CHECK(Guid::derive("ab", "c") != Guid::derive("a", "bc"));
}

TEST_CASE("big-endian integers convert on access", "[base]") {
  BigEndian32 value = 0x01020304;
  CHECK(static_cast<std::uint32_t>(value) == 0x01020304);
  CHECK(wire_bytes(value)[0] == std::byte{1});
  CHECK(wire_bytes(value)[3] == std::byte{4});
}

TEST_CASE("read_wire refuses short input and takes padded input", "[base]") {
  const std::array<std::byte, 5> bytes{std::byte{1}, std::byte{0}, std::byte{0}, std::byte{0}, std::byte{9}};
  std::uint32_t value = 0;
  CHECK_FALSE(read_wire(std::span(bytes).first(3), value));
  CHECK(read_wire(std::span(bytes), value));
  CHECK(value == 1);
}

Result<int> twice(Result<int> input) {
  VMBUSD_TRY(const int value, input);
  return 2 * value;
}

TEST_CASE("VMBUSD_TRY binds or returns", "[base]") {
  CHECK(twice(21).value() == 42);
  CHECK(twice(fail(Errc::kLimit, "too many")).error().code == Errc::kLimit);
  CHECK(describe(Error{Errc::kOs, 22, "cannot map"}) == "cannot map: Invalid argument");
}

TEST_CASE("a budget of lines is for a second", "[base]") {
  constexpr std::uint32_t kLines = 3;
  LineBudget budget(kLines);
  std::uint32_t dropped = 0;
  std::uint32_t granted = 0;
  for (int i = 0; i < 100; ++i) granted += budget.take(dropped) ? 1 : 0;
  CHECK(granted >= kLines);
  CHECK(granted <= 2 * kLines);  // a second may have begun meanwhile
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  CHECK(budget.take(dropped));
  CHECK(dropped > 0);
}

}  // namespace
}  // namespace vmbusd
