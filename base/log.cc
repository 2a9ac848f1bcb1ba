#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <cstring>
#include <memory>

namespace vmbusd {

namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made = std::make_shared<spdlog::logger>("vmbusd", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    // journald stamps each line itself and needs no date.
    const bool journald = std::getenv("JOURNAL_STREAM") != nullptr;
    made->set_pattern(journald ? "%l: %v" : "%Y-%m-%dT%H:%M:%S.%e %l %v");
    made->set_level(spdlog::level::info);
    made->flush_on(spdlog::level::debug);
    return made;
  }();
  return *instance;
}

std::atomic<bool> one_guest{false};
LineBudget all_budget{LogScope::kGuestLinesPerSecondOfAll};

}  // namespace

void log_init(LogLevel least) {
  logger().set_level(to_spdlog(least));
}

void log_serve_one_guest() {
  one_guest.store(true);
}

void log_set_level(LogLevel least) {
  logger().set_level(to_spdlog(least));
}

bool log_enabled(LogLevel level) {
  return logger().should_log(to_spdlog(level));
}

void log_write(LogLevel level, std::string_view subject, std::string_view text) {
  logger().log(to_spdlog(level), "{}: {}", subject, text);
}

std::string describe(const Error& error) {
  if (error.os_error == 0) return error.text;
  return fmt::format("{}: {}", error.text, std::strerror(error.os_error));
}

void LogScope::write(LogLevel level, fmt::string_view format, fmt::format_args args) const {
  log_write(level, subject_, fmt::vformat(format, args));
}

bool LineBudget::take(std::uint32_t& dropped) {
  dropped = 0;
  const std::int64_t now_s =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count();
  if (window_s_.exchange(now_s, std::memory_order_relaxed) != now_s) {
    const std::uint32_t used = used_.exchange(0, std::memory_order_relaxed);
    dropped = used > lines_ ? used - lines_ : 0;
  }
  return used_.fetch_add(1, std::memory_order_relaxed) < lines_;
}

bool LogScope::take_guest_line() {
  std::uint32_t dropped = 0;
  const bool mine = budget_.take(dropped);
  if (dropped != 0) log_write(LogLevel::kWarning, subject_, fmt::format("{} similar lines dropped", dropped));
  if (!mine || !one_guest.load(std::memory_order_relaxed)) return mine;
  const bool ours = all_budget.take(dropped);
  if (dropped != 0) log_write(LogLevel::kWarning, subject_, fmt::format("{} lines of all dropped", dropped));
  return ours;
}

}  // namespace vmbusd
