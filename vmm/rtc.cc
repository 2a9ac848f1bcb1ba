#include "vmm/rtc.h"

namespace vmbusd::vmm {

namespace {

std::uint8_t bcd(int value) {
  return static_cast<std::uint8_t>(value / 10 % 10 * 16 + value % 10);
}

}  // namespace

std::uint8_t Rtc::read(std::time_t now) const {
  constexpr std::uint8_t kDivider32kHz = 0x26;     // register A; no update is ever in progress
  constexpr std::uint8_t kTwentyFourHours = 0x02;  // register B: and BCD, no interrupt enabled
  constexpr std::uint8_t kValidTime = 0x80;        // register D: the battery is good
  std::tm time{};
  ::gmtime_r(&now, &time);
  switch (index_) {
    case 0x00:
      return bcd(time.tm_sec);
    case 0x02:
      return bcd(time.tm_min);
    case 0x04:
      return bcd(time.tm_hour);
    case 0x06:
      return bcd(time.tm_wday + 1);
    case 0x07:
      return bcd(time.tm_mday);
    case 0x08:
      return bcd(time.tm_mon + 1);
    case 0x09:
      return bcd(time.tm_year % 100);
    case 0x0a:
      return kDivider32kHz;
    case 0x0b:
      return kTwentyFourHours;
    case 0x0d:
      return kValidTime;
    case 0x32:  // where PCs keep the century
      return bcd((time.tm_year + 1900) / 100);
    default:
      return 0;
  }
}

}  // namespace vmbusd::vmm
