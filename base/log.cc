#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/log_format.h"

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

// A level as the journal takes it. [systemd: sd-daemon(3)]
class JournalPriority final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    const char priority = message.level >= spdlog::level::err    ? '3'
                          : message.level == spdlog::level::warn ? '4'
                          : message.level == spdlog::level::info ? '6'
                                                                 : '7';
    for (const char c : {'<', priority, '>'}) out.push_back(c);
  }
  [[nodiscard]] std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<JournalPriority>();
  }
};

// Whether standard error is what the service manager connected to the journal, and not a file that it was
// turned to since. [systemd: systemd.exec(5), $JOURNAL_STREAM]
bool stderr_is_journal() {
  const char* const stream = std::getenv("JOURNAL_STREAM");
  struct stat status {};
  if (stream == nullptr || ::fstat(STDERR_FILENO, &status) != 0) return false;
  return fmt::format("{}:{}", status.st_dev, status.st_ino) == stream;
}

std::atomic<LogFormat> line_format{LogFormat::kText};

void set_pattern(spdlog::logger& logger) {
  const bool json = line_format.load(std::memory_order_relaxed) == LogFormat::kJson;
  const bool journal = stderr_is_journal();
  std::string pattern = journal ? "%*" : "";
  if (json) {
    pattern += R"({"time":"%Y-%m-%dT%H:%M:%S.%eZ","level":"%l",%v})";
  } else {
    pattern += journal ? "%l: %v" : "%Y-%m-%dT%H:%M:%S.%e %l %v";
  }
  auto formatter = std::make_unique<spdlog::pattern_formatter>(json ? spdlog::pattern_time_type::utc
                                                                    : spdlog::pattern_time_type::local);
  formatter->add_flag<JournalPriority>('*').set_pattern(pattern);
  logger.set_formatter(std::move(formatter));
}

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made = std::make_shared<spdlog::logger>("vmbusd", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    set_pattern(*made);
    made->set_level(spdlog::level::info);
    made->flush_on(spdlog::level::debug);
    return made;
  }();
  return *instance;
}

// Bytes that are no UTF-8 are replaced.
std::string json_string(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::atomic<bool> one_guest{false};
LineBudget all_budget{LogScope::kGuestLinesPerSecondOfAll};

}  // namespace

void log_init(LogLevel least) {
  logger().set_level(to_spdlog(least));
}

void log_set_format(LogFormat format) {
  line_format.store(format, std::memory_order_relaxed);
  set_pattern(logger());
}

LogFormat log_format() {
  return line_format.load(std::memory_order_relaxed);
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
  if (log_format() == LogFormat::kJson) {
    logger().log(to_spdlog(level), R"("subject":{},"message":{})", json_string(subject), json_string(text));
  } else {
    logger().log(to_spdlog(level), "{}: {}", subject, text);
  }
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
