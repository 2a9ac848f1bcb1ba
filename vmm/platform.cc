#include "vmm/platform.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "vmm/memory_map.h"

namespace vmbusd::vmm {

namespace {

constexpr std::uint8_t kSleepEnable = 1u << 5;  // [ACPI 6.4: Sleep Control Register]
constexpr std::uint8_t kKeyboardReset = 0xfe;   // the 8042's command that pulses the processor's reset line
constexpr std::uint8_t kResetCpu = 1u << 2;     // of the reset control register at 0xcf9
constexpr std::uint8_t kNobody = 0xff;          // what an empty bus reads as

bool is_uart(std::uint16_t port) {
  return port >= kCom1Port && port < kCom1Port + 8;
}

}  // namespace

Platform::Platform(Machine& machine, Console& console, std::function<void()> input_drained)
    : machine_(machine), console_(console), input_drained_(std::move(input_drained)), uart_(*this) {}

PowerRequest Platform::port(const PortExit& access) {
  std::string output;
  PowerRequest request = PowerRequest::kNone;
  {
    const std::lock_guard lock(mutex_);
    request = port_locked(access);
    output.swap(output_);
  }
  // Without the lock: a console that nobody reads stops the vCPU that writes to it and nobody else. The
  // guest's own lock of the port keeps its lines in order.
  if (!output.empty()) {
    console_.write(std::span(reinterpret_cast<const std::uint8_t*>(output.data()), output.size()));
  }
  return request;
}

PowerRequest Platform::port_locked(const PortExit& access) {
  // The common case, whole strings of it: console output.
  if (access.write && access.size == 1 && is_uart(access.port)) {
    uart_.write(static_cast<std::uint16_t>(access.port - kCom1Port), access.data);
    return PowerRequest::kNone;
  }
  for (std::uint8_t& byte : access.data) {
    // The devices here are 8 bits wide and a wider access is none of theirs: the PCI address register that
    // kernels probe, 32 bits at 0xcf8, would else cover the reset port.
    if (!access.write) {
      byte = access.size == 1 ? read_port(access.port) : kNobody;
    } else if (access.size == 1) {
      const PowerRequest request = write_port(access.port, byte);
      if (request != PowerRequest::kNone) return request;
    }
  }
  return PowerRequest::kNone;
}

void Platform::mmio(const MmioExit& access) {
  // Nothing is there: the windows that ACPI names belong to devices that vmbusd does not have.
  if (!access.write) std::fill(access.data.begin(), access.data.end(), kNobody);
}

std::size_t Platform::console_input(std::span<const std::uint8_t> bytes) {
  const std::lock_guard lock(mutex_);
  return uart_.receive(bytes);
}

std::size_t Platform::console_room() {
  const std::lock_guard lock(mutex_);
  return uart_.room();
}

std::uint8_t Platform::read_port(std::uint16_t port) {
  if (is_uart(port)) return uart_.read(static_cast<std::uint16_t>(port - kCom1Port));
  switch (port) {
    case kRtcPort + 1:
      return rtc_.read(std::time(nullptr));
    case kSleepControlPort:
    case kSleepControlPort + 1:  // status: never woken up
      return 0;
    default:
      return kNobody;
  }
}

PowerRequest Platform::write_port(std::uint16_t port, std::uint8_t value) {
  if (is_uart(port)) {
    uart_.write(static_cast<std::uint16_t>(port - kCom1Port), value);
    return PowerRequest::kNone;
  }
  switch (port) {
    case kRtcPort:
      rtc_.select(value);
      return PowerRequest::kNone;
    case kKeyboardControllerPort:
      return value == kKeyboardReset ? PowerRequest::kReset : PowerRequest::kNone;
    case kResetPort:
      return (value & kResetCpu) != 0 ? PowerRequest::kReset : PowerRequest::kNone;
    case kSleepControlPort:
      return (value & kSleepEnable) != 0 && (value >> 2 & 0x7) == kSleepTypeS5 ? PowerRequest::kPowerOff
                                                                               : PowerRequest::kNone;
    default:
      return PowerRequest::kNone;
  }
}

void Platform::uart_output(std::span<const std::uint8_t> bytes) {
  output_.append(bytes.begin(), bytes.end());
}

// A line that cannot be set leaves a console without interrupts, which the guest notices soon enough.
void Platform::uart_interrupt(bool level) {
  (void)machine_.set_irq_line(kCom1Gsi, level);
}
void Platform::uart_input_drained() {
  input_drained_();
}

}  // namespace vmbusd::vmm
