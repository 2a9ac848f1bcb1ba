#include "vmm/uart.h"

namespace vmbusd::vmm {

namespace {

// Registers; some have two faces.
constexpr std::uint16_t kData = 0;               // divisor latch low
constexpr std::uint16_t kInterruptEnable = 1;    // divisor latch high
constexpr std::uint16_t kInterruptIdentify = 2;  // written: FIFO control
constexpr std::uint16_t kLineControl = 3;
constexpr std::uint16_t kModemControl = 4;
constexpr std::uint16_t kLineStatus = 5;
constexpr std::uint16_t kModemStatus = 6;
constexpr std::uint16_t kScratch = 7;

constexpr std::uint8_t kEnableReceived = 1u << 0;
constexpr std::uint8_t kEnableTransmitEmpty = 1u << 1;
constexpr std::uint8_t kEnableMask = 0x0f;

constexpr std::uint8_t kIdentifyNone = 0x01;
constexpr std::uint8_t kIdentifyTransmitEmpty = 0x02;
constexpr std::uint8_t kIdentifyReceived = 0x04;
constexpr std::uint8_t kIdentifyFifo = 0xc0;

constexpr std::uint8_t kFifoEnable = 1u << 0;
constexpr std::uint8_t kFifoClearInput = 1u << 1;

constexpr std::uint8_t kDivisorLatch = 1u << 7;  // line control
constexpr std::uint8_t kLoopBack = 1u << 4;      // modem control
constexpr std::uint8_t kModemControlMask = 0x1f;

constexpr std::uint8_t kStatusReceived = 1u << 0;
constexpr std::uint8_t kStatusTransmitEmpty = 0x60;  // holding and shift register

constexpr std::uint8_t kModemReady = 0xb0;  // DCD, DSR, CTS: somebody is at the other end

}  // namespace

bool Uart::divisor_latch() const {
  return (line_control_ & kDivisorLatch) != 0;
}
bool Uart::loop_back() const {
  return (modem_control_ & kLoopBack) != 0;
}

std::uint8_t Uart::read(std::uint16_t offset) {
  switch (offset) {
    case kData:
      return divisor_latch() ? divisor_low_ : take_input();
    case kInterruptEnable:
      return divisor_latch() ? divisor_high_ : interrupt_enable_;
    case kInterruptIdentify: {
      const std::uint8_t cause = interrupt_identification();
      // Reading is what acknowledges this cause.
      if (cause == kIdentifyTransmitEmpty) transmit_pending_ = false;
      update_interrupt();
      return static_cast<std::uint8_t>(cause | (fifo_enabled_ ? kIdentifyFifo : 0));
    }
    case kLineControl:
      return line_control_;
    case kModemControl:
      return modem_control_;
    case kLineStatus:
      return static_cast<std::uint8_t>(kStatusTransmitEmpty | (input_count_ > 0 ? kStatusReceived : 0));
    case kModemStatus:
      return modem_status();
    case kScratch:
      return scratch_;
    default:
      return 0xff;
  }
}

void Uart::write(std::uint16_t offset, std::uint8_t value) {
  write(offset, std::span(&value, 1));
}

void Uart::write(std::uint16_t offset, std::span<const std::uint8_t> values) {
  if (values.empty()) return;
  const std::uint8_t last = values.back();
  switch (offset) {
    case kData:
      if (divisor_latch()) {
        divisor_low_ = last;
      } else {
        transmit(values);
      }
      return;
    case kInterruptEnable:
      if (divisor_latch()) {
        divisor_high_ = last;
        return;
      }
      // The transmitter is always empty, so enabling its interrupt raises it.
      if ((last & ~interrupt_enable_ & kEnableTransmitEmpty) != 0) transmit_pending_ = true;
      interrupt_enable_ = last & kEnableMask;
      break;
    case kInterruptIdentify:
      fifo_enabled_ = (last & kFifoEnable) != 0;
      if ((last & kFifoClearInput) != 0) input_count_ = 0;
      break;
    case kLineControl:
      line_control_ = last;
      return;
    case kModemControl:
      modem_control_ = last & kModemControlMask;
      return;
    case kScratch:
      scratch_ = last;
      return;
    default:
      return;
  }
  update_interrupt();
}

std::size_t Uart::receive(std::span<const std::uint8_t> bytes) {
  std::size_t taken = 0;
  while (taken < bytes.size() && input_count_ < input_.size()) {
    input_[(input_first_ + input_count_) % input_.size()] = bytes[taken];
    ++input_count_;
    ++taken;
  }
  update_interrupt();
  return taken;
}

std::uint8_t Uart::take_input() {
  if (input_count_ == 0) return 0;
  const std::uint8_t value = input_[input_first_];
  input_first_ = (input_first_ + 1) % input_.size();
  --input_count_;
  update_interrupt();
  if (input_count_ == 0) events_.uart_input_drained();
  return value;
}

void Uart::transmit(std::span<const std::uint8_t> values) {
  if (loop_back()) {
    receive(values);
  } else {
    events_.uart_output(values);
  }
  transmit_pending_ = true;
  update_interrupt();
}

std::uint8_t Uart::interrupt_identification() const {
  if (input_count_ > 0 && (interrupt_enable_ & kEnableReceived) != 0) return kIdentifyReceived;
  if (transmit_pending_ && (interrupt_enable_ & kEnableTransmitEmpty) != 0) return kIdentifyTransmitEmpty;
  return kIdentifyNone;
}

std::uint8_t Uart::modem_status() const {
  if (!loop_back()) return kModemReady;
  // In loop-back mode the outputs are the inputs: DTR is DSR, RTS is CTS, OUT1 is RI, OUT2 is DCD.
  const std::uint32_t control = modem_control_;
  return static_cast<std::uint8_t>((control & 0x1) << 5 | (control & 0x2) << 3 | (control & 0x4) << 4 |
                                   (control & 0x8) << 4);
}

void Uart::update_interrupt() {
  const bool level = interrupt_identification() != kIdentifyNone;
  if (level == interrupt_level_) return;
  interrupt_level_ = level;
  events_.uart_interrupt(level);
}

}  // namespace vmbusd::vmm
