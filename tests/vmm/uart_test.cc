#include "vmm/uart.h"

#include <string>
#include <vector>

#include "tests/catch.h"

namespace vmbusd::vmm {

namespace {

struct Events final : UartEvents {
  void uart_output(std::span<const std::uint8_t> bytes) override {
    output.append(bytes.begin(), bytes.end());
  }
  void uart_interrupt(bool level) override {
    line = level;
    ++changes;
  }
  void uart_input_drained() override { ++drained; }

  std::string output;
  bool line = false;
  int changes = 0;
  int drained = 0;
};

constexpr std::uint16_t kData = 0, kEnable = 1, kIdentify = 2, kLineControl = 3, kModemControl = 4,
                        kLineStatus = 5, kModemStatus = 6, kScratch = 7;

std::size_t send(Uart& uart, const std::string& text) {
  return uart.receive(std::span(reinterpret_cast<const std::uint8_t*>(text.data()), text.size()));
}

}  // namespace

TEST_CASE("what the guest writes comes out", "[vmm]") {
  Events events;
  Uart uart(events);
  CHECK(uart.read(kLineStatus) == 0x60);
  uart.write(kData, 'o');
  const std::vector<std::uint8_t> rest = {'k', '\n'};
  uart.write(kData, rest);
  CHECK(events.output == "ok\n");
  CHECK_FALSE(events.line);
}

TEST_CASE("the divisor latch hides data and interrupt registers", "[vmm]") {
  Events events;
  Uart uart(events);
  uart.write(kEnable, 0x01);
  uart.write(kLineControl, 0x83);
  uart.write(kData, 0x01);
  uart.write(kEnable, 0x02);
  CHECK(uart.read(kData) == 0x01);
  CHECK(uart.read(kEnable) == 0x02);
  uart.write(kLineControl, 0x03);
  CHECK(uart.read(kEnable) == 0x01);
  CHECK(events.output.empty());
}

TEST_CASE("a driver takes it for a 16550A", "[vmm]") {
  // [linux: drivers/tty/serial/8250/8250_port.c, autoconfig]
  Events events;
  Uart uart(events);
  uart.write(kScratch, 0x5a);
  CHECK(uart.read(kScratch) == 0x5a);
  uart.write(kEnable, 0xff);
  CHECK(uart.read(kEnable) == 0x0f);
  uart.write(kEnable, 0);
  uart.write(kModemControl, 0x1a);  // loop back, OUT2, RTS
  CHECK((uart.read(kModemStatus) & 0xf0) == 0x90);
  uart.write(kModemControl, 0);
  uart.write(kIdentify, 0x01);
  CHECK((uart.read(kIdentify) & 0xc0) == 0xc0);
  uart.write(kIdentify, 0x00);
  CHECK((uart.read(kIdentify) & 0xc0) == 0);
}

TEST_CASE("loop-back feeds output to input", "[vmm]") {
  Events events;
  Uart uart(events);
  uart.write(kModemControl, 0x10);
  uart.write(kData, 'x');
  CHECK(events.output.empty());
  CHECK((uart.read(kLineStatus) & 1) == 1);
  CHECK(uart.read(kData) == 'x');
}

TEST_CASE("input raises the line until it is read", "[vmm]") {
  Events events;
  Uart uart(events);
  uart.write(kEnable, 0x01);
  CHECK(send(uart, "ab") == 2);
  CHECK(events.line);
  CHECK((uart.read(kIdentify) & 0x0f) == 0x04);
  CHECK(uart.read(kData) == 'a');
  CHECK(events.line);
  CHECK(events.drained == 0);
  CHECK(uart.read(kData) == 'b');
  CHECK_FALSE(events.line);
  CHECK(events.drained == 1);
  CHECK(uart.read(kData) == 0);
  CHECK(events.drained == 1);
}

TEST_CASE("input that came before the interrupt was enabled is told of", "[vmm]") {
  Events events;
  Uart uart(events);
  send(uart, "a");
  CHECK_FALSE(events.line);
  uart.write(kEnable, 0x01);
  CHECK(events.line);
}

TEST_CASE("enabling the transmitter's interrupt raises it once", "[vmm]") {
  Events events;
  Uart uart(events);
  uart.write(kEnable, 0x02);
  CHECK(events.line);
  CHECK((uart.read(kIdentify) & 0x0f) == 0x02);
  CHECK_FALSE(events.line);
  CHECK((uart.read(kIdentify) & 0x0f) == 0x01);
  uart.write(kData, 'a');
  CHECK(events.line);
  uart.write(kEnable, 0x00);
  CHECK_FALSE(events.line);
}

TEST_CASE("input goes before output where both interrupt", "[vmm]") {
  Events events;
  Uart uart(events);
  uart.write(kEnable, 0x03);
  send(uart, "a");
  CHECK((uart.read(kIdentify) & 0x0f) == 0x04);
  (void)uart.read(kData);
  CHECK(events.line);
  CHECK((uart.read(kIdentify) & 0x0f) == 0x02);
}

TEST_CASE("input beyond the buffer waits outside", "[vmm]") {
  Events events;
  Uart uart(events);
  const std::string text(Uart::kInputMax + 10, 'z');
  CHECK(send(uart, text) == Uart::kInputMax);
  CHECK(uart.room() == 0);
  CHECK(send(uart, "more") == 0);
  CHECK(uart.read(kData) == 'z');
  CHECK(uart.room() == 1);
  uart.write(kIdentify, 0x03);  // enable the FIFOs and empty the receiver's
  CHECK(uart.room() == Uart::kInputMax);
}

}  // namespace vmbusd::vmm
