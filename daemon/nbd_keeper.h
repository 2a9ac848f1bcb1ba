// Connects one disk to its NBD server, in the supervisor, which has paths and the network.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "daemon/lifetime.h"
#include "daemon/nbd_address.h"
#include "storvsp/nbd_export.h"

namespace vmbusd::daemon {

// Life cycle: probe(), then wanted() whenever the worker asks for a connection, and each time `connected`
// once there is one, with a socket on which nothing was said. What the worker had before is ended first: the
// server is told that no more comes, and the next connection is made when it has closed the last, having done
// what was asked for on that. Tries are spaced by a delay that doubles up to a bound, and starts small again
// only after a connection that lasted. Supervisor's thread.
class NbdKeeper {
 public:
  NbdKeeper(boost::asio::io_context& context, NbdAddress address, const std::string& subject,
            std::function<void(int socket)> connected);
  NbdKeeper(const NbdKeeper&) = delete;
  NbdKeeper& operator=(const NbdKeeper&) = delete;

  // At the start: what the server says of the export, within a few seconds, during which nobody else is
  // served. A sentence for the operator where it cannot be had, else empty.
  [[nodiscard]] std::string probe(storvsp::NbdExport& found);
  // The worker has need of a connection, and holds none.
  void wanted();
  // The worker is gone. Its connection is ended.
  void worker_died();
  // Whether the server has closed that; true where there was none.
  [[nodiscard]] bool ended();
  // Tries no more.
  void stop();

 private:
  void end();
  void go_on();
  void connect();
  void came_to(int error);
  void later(std::chrono::milliseconds delay);
  void complain(const std::string& problem);
  [[nodiscard]] std::string name() const;

  const NbdAddress address_;
  LogScope log_;
  std::function<void(int socket)> connected_;
  boost::asio::steady_timer timer_;
  std::vector<SocketAddress> ways_;
  std::size_t way_ = 0;  // that is being tried
  bool wanted_ = false;  // a connection is to be made
  bool stopped_ = false;
  UniqueFd connecting_;
  std::chrono::steady_clock::time_point connecting_since_;
  UniqueFd socket_;      // that the worker got last
  bool ending_ = false;  // which is to be closed by the server now
  std::chrono::steady_clock::time_point ending_since_;
  std::chrono::steady_clock::time_point connected_at_;
  std::chrono::milliseconds delay_;
  std::string complaint_;  // logged last, since there was a connection
  Lifetime lifetime_;
};

}  // namespace vmbusd::daemon
