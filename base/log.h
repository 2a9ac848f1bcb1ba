// Logging. Levels say what the reader should do: error: act now; warning: look when there is time; info:
// state changes in production; debug: for the developers.
#pragma once

#include <fmt/core.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace vmbusd {

enum class LogLevel : std::uint8_t { kDebug, kInfo, kWarning, kError };

// Sets the least level that is written and where to: standard error, with a time stamp unless journald is the
// reader. Call once before other threads start. Default: kInfo.
void log_init(LogLevel least);
[[nodiscard]] bool log_enabled(LogLevel level);
// Writes one line "<subject>: <text>". Thread-safe. `subject` names the object, for example "guest1/disk0".
void log_write(LogLevel level, std::string_view subject, std::string_view text);

// "cannot map region: Invalid argument"
[[nodiscard]] std::string describe(const Error& error);

// The subject of log lines plus a budget for what a guest can cause. Owned by the partition or device that it
// names, shared by its threads.
class LogScope {
 public:
  explicit LogScope(std::string subject) : subject_(std::move(subject)) {}
  LogScope(const LogScope&) = delete;
  LogScope& operator=(const LogScope&) = delete;

  [[nodiscard]] const std::string& subject() const { return subject_; }

  template <typename... Args>
  void debug(fmt::format_string<Args...> format, Args&&... args) const {
    write(LogLevel::kDebug, format, args...);
  }
  template <typename... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) const {
    write(LogLevel::kInfo, format, args...);
  }
  template <typename... Args>
  void warning(fmt::format_string<Args...> format, Args&&... args) const {
    write(LogLevel::kWarning, format, args...);
  }
  template <typename... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) const {
    write(LogLevel::kError, format, args...);
  }
  // For anything that a guest or VMM can trigger at will: a warning, dropped (and counted) beyond the budget
  // of kGuestLinesPerSecond.
  template <typename... Args>
  void guest(fmt::format_string<Args...> format, Args&&... args) {
    if (!log_enabled(LogLevel::kWarning) || !take_guest_line()) return;
    log_write(LogLevel::kWarning, subject_, fmt::vformat(format, fmt::make_format_args(args...)));
  }

  static constexpr std::uint32_t kGuestLinesPerSecond = 10;

 private:
  template <typename... Args>
  void write(LogLevel level, fmt::format_string<Args...> format, Args&... args) const {
    if (log_enabled(level)) log_write(level, subject_, fmt::vformat(format, fmt::make_format_args(args...)));
  }
  [[nodiscard]] bool take_guest_line();

  std::string subject_;
  std::atomic<std::int64_t> window_s_{0};
  std::atomic<std::uint32_t> used_{0};
};

}  // namespace vmbusd
