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
// Changes the least level. Any thread.
void log_set_level(LogLevel least);
[[nodiscard]] bool log_enabled(LogLevel level);
// Writes one line "<subject>: <text>". Thread-safe. `subject` names the object, for example "guest1/disk0".
void log_write(LogLevel level, std::string_view subject, std::string_view text);

// This process serves one guest: all its LogScopes share LogScope::kGuestLinesPerSecondOfAll too. Once.
void log_serve_one_guest();

// "cannot map region: Invalid argument"
[[nodiscard]] std::string describe(const Error& error);

// So many lines a second; any thread.
class LineBudget {
 public:
  explicit LineBudget(std::uint32_t lines_per_second) : lines_(lines_per_second) {}

  // Whether there is one left. `dropped`, where a second has gone by: how many there were not in the last.
  [[nodiscard]] bool take(std::uint32_t& dropped);

 private:
  const std::uint32_t lines_;
  std::atomic<std::int64_t> window_s_{0};
  std::atomic<std::uint32_t> used_{0};
};

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
    if (log_enabled(LogLevel::kDebug)) write(LogLevel::kDebug, format, fmt::make_format_args(args...));
  }
  template <typename... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) const {
    if (log_enabled(LogLevel::kInfo)) write(LogLevel::kInfo, format, fmt::make_format_args(args...));
  }
  template <typename... Args>
  void warning(fmt::format_string<Args...> format, Args&&... args) const {
    if (log_enabled(LogLevel::kWarning)) write(LogLevel::kWarning, format, fmt::make_format_args(args...));
  }
  template <typename... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) const {
    if (log_enabled(LogLevel::kError)) write(LogLevel::kError, format, fmt::make_format_args(args...));
  }
  // For anything that a guest or VMM can trigger at will: a warning, dropped (and counted) beyond the budget
  // of kGuestLinesPerSecond.
  template <typename... Args>
  void guest(fmt::format_string<Args...> format, Args&&... args) {
    if (!log_enabled(LogLevel::kWarning) || !take_guest_line()) return;
    write(LogLevel::kWarning, format, fmt::make_format_args(args...));
  }
  // The same for what is no fault, such as a channel that opens.
  template <typename... Args>
  void guest_info(fmt::format_string<Args...> format, Args&&... args) {
    if (!log_enabled(LogLevel::kInfo) || !take_guest_line()) return;
    write(LogLevel::kInfo, format, fmt::make_format_args(args...));
  }

  static constexpr std::uint32_t kGuestLinesPerSecond = 10;
  // Of all objects together, in a process that serves one guest.
  static constexpr std::uint32_t kGuestLinesPerSecondOfAll = 100;

 private:
  void write(LogLevel level, fmt::string_view format, fmt::format_args args) const;
  [[nodiscard]] bool take_guest_line();

  std::string subject_;
  LineBudget budget_{kGuestLinesPerSecond};
};

}  // namespace vmbusd
