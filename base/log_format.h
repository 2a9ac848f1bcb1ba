// How log lines are written.
#pragma once

#include <cstdint>

namespace vmbusd {

enum class LogFormat : std::uint8_t {
  kText,  // "2026-01-31T12:00:00.000 info guest1/scsi0: text", the time in the local zone
  kJson,  // {"time":"2026-01-31T12:00:00.000Z","level":"info","subject":"guest1/scsi0","message":"text"}
};

// Default: kText. Where standard error is the journal, lines begin with their priority as it takes it,
// "<6>", and text has no time, as the journal has its own. [systemd: sd-daemon(3), systemd.exec(5)
// $JOURNAL_STREAM]. Call once before other threads start.
void log_set_format(LogFormat format);
[[nodiscard]] LogFormat log_format();

}  // namespace vmbusd
