// Keeps the back end of one NIC open in the supervisor, which has its path and the privilege.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <string>

#include "base/log.h"
#include "daemon/config.h"
#include "daemon/lifetime.h"

namespace vmbusd::daemon {

// Life cycle: open(), then lost() whenever the worker says so, and each time `reopened` once there is another
// TAP or connection. Tries are spaced by a delay that doubles up to a bound, and starts small again only
// after a back end that lasted: neither a peer that hangs up at once nor a worker that a guest has taken over
// makes it spin. The worker logs that a back end is gone or there; here is logged why it cannot be had.
// Supervisor's thread.
class NicKeeper {
 public:
  NicKeeper(boost::asio::io_context& context, const std::string& partition, NicConfig config,
            std::function<void()> reopened);
  // The next user of an interface that stays does not find our steering program there.
  ~NicKeeper();
  NicKeeper(const NicKeeper&) = delete;
  NicKeeper& operator=(const NicKeeper&) = delete;

  // At the start: what is wrong where the configuration or the host's permissions are in the way, else empty.
  // A stream's peer that is not there yet is waited for. `restarted`: where a TAP is in use, gives the worker
  // of a vmbusd before this one a moment to be gone.
  [[nodiscard]] std::string open(bool restarted = false);
  // Closes what is open and tries until it is open again.
  void lost();
  // A new worker process begins: a stream must begin with it, for the last one may have left half a frame.
  void renew();
  // Tries no more.
  void stop();

  // `fds` are what is open now, none while it is gone. `steering` stays the same.
  [[nodiscard]] const netvsp::NicConfig& nic() const { return config_.nic; }
  [[nodiscard]] const NicSource& source() const { return config_.source; }
  [[nodiscard]] const std::string& definition() const { return config_.definition; }
  // Whether it came at run time, and no file has it.
  [[nodiscard]] bool plugged() const { return config_.plugged; }
  void set_plugged(bool plugged) { config_.plugged = plugged; }

 private:
  void try_later();
  void try_now();
  void complain(const std::string& problem);
  void load_steering();
  void steer();

  NicConfig config_;
  UniqueFd steering_program_;  // goes by config_.nic.steering; none where it is of no use or not to be had
  LogScope log_;
  std::function<void()> reopened_;
  boost::asio::steady_timer timer_;
  Lifetime lifetime_;
  bool trying_ = false;
  bool stopped_ = false;
  std::chrono::milliseconds delay_;
  std::chrono::steady_clock::time_point opened_at_;
  std::string complaint_;  // logged last, since it was open
};

}  // namespace vmbusd::daemon
