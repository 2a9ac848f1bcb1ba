// A partition's worker process as the supervisor sees it.
#pragma once

#include <sys/types.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "base/result.h"
#include "daemon/commands.h"

namespace vmbusd::daemon {

// "killed by signal 9 (Killed)", from waitpid()'s status.
[[nodiscard]] std::string describe_wait_status(int status);
// The process ended because its guest's memory was gone. Whoever takes up the same memory ends the same way.
[[nodiscard]] bool lost_memory(int status);

// The very program that runs here, even where a package update has replaced its file meanwhile.
inline constexpr const char* kOwnProgram = "/proc/self/exe";

// Life cycle: spawn(), then commands and reports, then `died` once. Destroying it earlier forgets the
// process, which ends by itself as its socket closes. Supervisor's thread.
class WorkerProcess : public std::enable_shared_from_this<WorkerProcess> {
 public:
  struct Events {
    std::function<void(Report&)> report;        // it may take the descriptor
    std::function<void(int wait_status)> died;  // it has been reaped
  };

  // `program` is vmbusd's file.
  [[nodiscard]] static Result<std::shared_ptr<WorkerProcess>> spawn(boost::asio::io_context& context,
                                                                    const std::string& program,
                                                                    const LogScope& log, LogLevel log_level,
                                                                    Events events);
  ~WorkerProcess() = default;
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;

  // Of use as a name only where the process may have died.
  [[nodiscard]] pid_t pid() const { return pid_; }
  // Commands arrive in order; their descriptors need to be open for the call only.
  void send(const EncodedCommand& command);
  void kill();
  // Breaks the tie: no event comes any more.
  void forget() { events_ = {}; }

 private:
  WorkerProcess(boost::asio::io_context& context, const LogScope& log, Events events)
      : log_(log), events_(std::move(events)), socket_(context), process_(context), grace_(context) {}

  void wait_for_reports();
  void wait_for_death();
  void flush();
  void read_reports();
  void read_last_reports();
  void distrust(const Error& error);
  void closed_socket();

  const LogScope& log_;
  Events events_;
  pid_t pid_ = -1;
  boost::asio::posix::stream_descriptor socket_;
  boost::asio::posix::stream_descriptor process_;  // pidfd
  boost::asio::steady_timer grace_;                // for a process that closed its socket to exit
  std::deque<CommandDatagram> outgoing_;           // what the socket did not take yet
  bool flushing_ = false;
};

}  // namespace vmbusd::daemon
