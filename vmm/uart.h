// A 16550A serial port as far as Linux' 8250 driver looks: FIFOs, interrupts, loop-back. What is sent goes
// out at once.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace vmbusd::vmm {

// Where the port's output and its interrupt line go. Called from within Uart's functions.
class UartEvents {
 public:
  virtual void uart_output(std::span<const std::uint8_t> bytes) = 0;
  virtual void uart_interrupt(bool level) = 0;
  // The guest read all input that had come.
  virtual void uart_input_drained() = 0;

 protected:
  ~UartEvents() = default;
};

// Not thread-safe: its owner locks. [National Semiconductor: PC16550D data sheet]
class Uart {
 public:
  explicit Uart(UartEvents& events) : events_(events) {}
  Uart(const Uart&) = delete;
  Uart& operator=(const Uart&) = delete;

  // Registers 0..7 as the guest reads and writes them.
  [[nodiscard]] std::uint8_t read(std::uint16_t offset);
  void write(std::uint16_t offset, std::uint8_t value);
  // A string of bytes to the same register.
  void write(std::uint16_t offset, std::span<const std::uint8_t> values);

  // Takes input for the guest, as many bytes as there is room for, and returns how many.
  std::size_t receive(std::span<const std::uint8_t> bytes);
  [[nodiscard]] std::size_t room() const { return input_.size() - input_count_; }

  // More than the 16 bytes of the real FIFO, so that a pasted line does not need a wake-up each 16 bytes.
  static constexpr std::size_t kInputMax = 4096;

 private:
  [[nodiscard]] bool divisor_latch() const;
  [[nodiscard]] bool loop_back() const;
  [[nodiscard]] std::uint8_t take_input();
  [[nodiscard]] std::uint8_t interrupt_identification() const;
  [[nodiscard]] std::uint8_t modem_status() const;
  void transmit(std::span<const std::uint8_t> values);
  void update_interrupt();

  UartEvents& events_;
  std::uint8_t interrupt_enable_ = 0;
  std::uint8_t line_control_ = 0;
  std::uint8_t modem_control_ = 0;
  std::uint8_t scratch_ = 0;
  std::uint8_t divisor_low_ = 12;  // 9600 baud; of no effect
  std::uint8_t divisor_high_ = 0;
  bool fifo_enabled_ = false;
  bool transmit_pending_ = false;  // "transmitter empty" has not been told yet
  bool interrupt_level_ = false;
  std::array<std::uint8_t, kInputMax> input_{};
  std::size_t input_first_ = 0;
  std::size_t input_count_ = 0;
};

}  // namespace vmbusd::vmm
