#include "vmm/platform.h"

#include <array>
#include <ctime>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/temporary_directory.h"
#include "tests/catch.h"
#include "tests/vmm/fake_machine.h"
#include "vmm/memory_map.h"

namespace vmbusd::vmm {

namespace {

struct Board {
  explicit Board(const std::string& where = "none") : console(Console::open(where).value()) {}

  FakeMachine machine{1};
  Console console;
  int drained = 0;
  Platform platform{machine, console, [this] { ++drained; }};

  PowerRequest write(std::uint16_t port, std::uint32_t value, std::uint8_t size = 1) {
    std::array<std::uint8_t, 4> data{};
    for (std::size_t i = 0; i < size; ++i) data[i] = static_cast<std::uint8_t>(value >> 8 * i);
    return platform.port({port, size, true, std::span(data).first(size)});
  }
  std::uint32_t read(std::uint16_t port, std::uint8_t size = 1) {
    std::array<std::uint8_t, 4> data{};
    CHECK(platform.port({port, size, false, std::span(data).first(size)}) == PowerRequest::kNone);
    return data[0] | data[1] << 8 | data[2] << 16 | static_cast<std::uint32_t>(data[3]) << 24;
  }
};

struct PowerCase {
  const char* rule;
  std::uint16_t port;
  std::uint32_t value;
  std::uint8_t size;
  PowerRequest request;
};
constexpr PowerCase kPowerCases[] = {
    {"ACPI soft off", kSleepControlPort, 0x34, 1, PowerRequest::kPowerOff},
    {"sleep type without sleep enable", kSleepControlPort, 0x14, 1, PowerRequest::kNone},
    {"sleep enable with another type", kSleepControlPort, 0x20, 1, PowerRequest::kNone},
    {"ACPI reset", kResetPort, kResetValue, 1, PowerRequest::kReset},
    {"reset armed, not released", kResetPort, 0x02, 1, PowerRequest::kNone},
    {"PCI address that covers the reset port", 0xcf8, 0x8000ff00, 4, PowerRequest::kNone},
    {"keyboard controller reset", kKeyboardControllerPort, 0xfe, 1, PowerRequest::kReset},
    {"another keyboard command", kKeyboardControllerPort, 0x20, 1, PowerRequest::kNone},
    {"POST code", 0x80, 0xff, 1, PowerRequest::kNone},
};

}  // namespace

TEST_CASE("the guest's power ports", "[vmm]") {
  for (const PowerCase& c : kPowerCases) {
    DYNAMIC_SECTION(c.rule) {
      CHECK(Board().write(c.port, c.value, c.size) == c.request);
    }
  }
}

TEST_CASE("where nothing is, all bits are set", "[vmm]") {
  Board board;
  CHECK(board.read(0xcf8, 4) == 0xffffffff);
  CHECK(board.read(0x64) == 0xff);
  std::array<std::uint8_t, 8> data{};
  board.platform.mmio({kMmioLowGpa, false, data});
  CHECK(data == std::array<std::uint8_t, 8>{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff});
}

TEST_CASE("what the guest prints goes to the console", "[vmm]") {
  const TemporaryDirectory directory;
  Board board(directory.path("console"));
  for (const char letter : std::string("ready\n")) {
    CHECK(board.write(kCom1Port, static_cast<std::uint8_t>(letter)) == PowerRequest::kNone);
  }
  std::ifstream file(directory.path("console"));
  CHECK(std::string(std::istreambuf_iterator<char>(file), {}) == "ready\n");
}

TEST_CASE("the console's input waits until the guest has room for it", "[vmm]") {
  Board board;
  const std::size_t room = board.platform.console_room();
  REQUIRE(room > 0);
  const std::vector<std::uint8_t> input(room + 1, 'x');
  CHECK(board.platform.console_input(input) == room);
  CHECK(board.platform.console_room() == 0);
  for (std::size_t i = 0; i < room; ++i) CHECK(board.read(kCom1Port) == 'x');
  CHECK(board.drained == 1);
  CHECK(board.platform.console_room() == room);
}

TEST_CASE("the guest reads the host's clock by its two ports", "[vmm]") {
  Board board;
  const auto reading = [&](std::uint8_t index) {
    CHECK(board.write(kRtcPort, index) == PowerRequest::kNone);
    return board.read(kRtcPort + 1);
  };
  const std::time_t now = std::time(nullptr);
  std::tm date{};
  ::gmtime_r(&now, &date);
  const int year = date.tm_year % 100;
  // A new year's eve in the middle of this test would be one too many.
  CHECK(reading(0x09) == static_cast<std::uint32_t>(year / 10 * 16 + year % 10));
  CHECK(reading(0x0d) == 0x80);
  CHECK(reading(0x8d) == 0x80);  // the highest bit is for NMIs
}

TEST_CASE("a machine that sleeps is off, so the sleep registers have nothing to say", "[vmm]") {
  Board board;
  CHECK(board.read(kSleepControlPort) == 0);
  CHECK(board.read(kSleepControlPort + 1) == 0);
}

TEST_CASE("the serial port's interrupt is IRQ 4", "[vmm]") {
  Board board;
  board.write(kCom1Port + 1, 0x01);
  const std::array<std::uint8_t, 1> input = {'a'};
  CHECK(board.platform.console_input(input) == 1);
  CHECK(board.machine.lines == std::vector<std::pair<std::uint32_t, bool>>{{4, true}});
  CHECK(board.read(kCom1Port) == 'a');
  CHECK(board.machine.lines.back() == std::pair<std::uint32_t, bool>{4, false});
  CHECK(board.drained == 1);
}

TEST_CASE("the clock tells UTC in BCD", "[vmm]") {
  // 2026-07-09 08:05:03, a Thursday.
  constexpr std::time_t kNow = 1783584303;
  Rtc rtc;
  const auto reg = [&rtc](std::uint8_t index) {
    rtc.select(index);
    return rtc.read(kNow);
  };
  CHECK(reg(0x00) == 0x03);
  CHECK(reg(0x02) == 0x05);
  CHECK(reg(0x04) == 0x08);
  CHECK(reg(0x06) == 0x05);
  CHECK(reg(0x07) == 0x09);
  CHECK(reg(0x08) == 0x07);
  CHECK(reg(0x09) == 0x26);
  CHECK(reg(0x32) == 0x20);
  CHECK((reg(0x0a) & 0x80) == 0);
  CHECK(reg(0x8d) == 0x80);
}

TEST_CASE("Ctrl-A x leaves the terminal", "[vmm]") {
  EscapeFilter filter;
  bool quit = false;
  const auto pass = [&](std::string text) {
    const auto left =
        filter.filter(std::span(reinterpret_cast<std::uint8_t*>(text.data()), text.size()), quit);
    return std::string(left.begin(), left.end());
  };
  CHECK(pass("ls\r") == "ls\r");
  CHECK(pass("a\x01\x01"
             "b") ==
        "a\x01"
        "b");
  CHECK(pass("\x01q") == "");
  CHECK_FALSE(quit);
  CHECK(pass("ab\x01") == "ab");
  CHECK(pass("xcd") == "");
  CHECK(quit);
}

}  // namespace vmbusd::vmm
