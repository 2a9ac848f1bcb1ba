// The guest's chipset: what answers at its I/O ports and at addresses without memory.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>

#include "vmm/console.h"
#include "vmm/hypervisor.h"
#include "vmm/rtc.h"
#include "vmm/uart.h"

namespace vmbusd::vmm {

// What the guest asked of the power circuits by a port.
enum class PowerRequest : std::uint8_t { kNone, kPowerOff, kReset };

// One for each machine; the console outlives it. Thread-safe: vCPUs and the console's input come here.
class Platform final : private UartEvents {
 public:
  // `input_drained` is called when the guest has read all console input, on a vCPU's thread.
  Platform(Machine& machine, Console& console, std::function<void()> input_drained);

  [[nodiscard]] PowerRequest port(const PortExit& access);
  void mmio(const MmioExit& access);

  // Returns how many bytes were taken.
  std::size_t console_input(std::span<const std::uint8_t> bytes);
  [[nodiscard]] std::size_t console_room();

 private:
  [[nodiscard]] PowerRequest port_locked(const PortExit& access);
  [[nodiscard]] std::uint8_t read_port(std::uint16_t port);
  [[nodiscard]] PowerRequest write_port(std::uint16_t port, std::uint8_t value);

  void uart_output(std::span<const std::uint8_t> bytes) override;
  void uart_interrupt(bool level) override;
  void uart_input_drained() override;

  Machine& machine_;
  Console& console_;
  std::function<void()> input_drained_;
  std::mutex mutex_;  // of all below
  Uart uart_;
  Rtc rtc_;
  std::string output_;  // of the serial port, on its way to the console
};

}  // namespace vmbusd::vmm
