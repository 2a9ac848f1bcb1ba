#include "daemon/nbd_keeper.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace vmbusd::daemon {

namespace {

using boost::system::error_code;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kProbeTime = 5s;
constexpr std::chrono::milliseconds kConnectTime = 5s;
constexpr std::chrono::milliseconds kLook = 5ms;  // between two looks at what is under way
constexpr auto kEndTime = 10s;                    // for a server to close a connection that was ended
constexpr std::chrono::milliseconds kDelayFirst = 100ms;
constexpr std::chrono::milliseconds kDelayMax = 1s;
constexpr auto kStableAfter = 10s;  // a connection that lasted so long is no part of a series of failures

}  // namespace

NbdKeeper::NbdKeeper(boost::asio::io_context& context, NbdAddress address, const std::string& subject,
                     std::function<void(int socket)> connected)
    : address_(std::move(address)),
      log_(subject),
      connected_(std::move(connected)),
      timer_(context),
      delay_(kDelayFirst) {}

std::string NbdKeeper::name() const {
  return address_.socket.empty() ? fmt::format("{} port {}", address_.host, address_.port) : address_.socket;
}

std::string NbdKeeper::probe(storvsp::NbdExport& found) {
  std::string problem = "nobody is there";
  ways_ = resolve(address_, problem);
  UniqueFd socket;
  for (way_ = 0; way_ < ways_.size(); ++way_) {
    int error = begin_connecting(ways_[way_], socket);
    if (error == EINPROGRESS) error = connecting(socket.get(), kProbeTime);
    if (error == 0) break;
    problem = std::strerror(error == EINPROGRESS ? ETIMEDOUT : error);
  }
  if (way_ == ways_.size()) {
    return fmt::format("cannot connect to the NBD server at {}: {}; start it first", name(), problem);
  }
  problem = storvsp::probe_nbd(std::move(socket), address_.export_name, kProbeTime, found);
  if (problem.empty()) return problem;
  return fmt::format("the NBD server at {} does not serve export \"{}\": {}", name(), address_.export_name,
                     problem);
}

void NbdKeeper::wanted() {
  if (wanted_ || stopped_) return;
  wanted_ = true;
  end();
  // A worker that a guest has taken over, or a server that hangs up at once, makes nobody spin.
  if (Clock::now() - connected_at_ >= kStableAfter) delay_ = kDelayFirst;
  const auto next = connected_at_ + delay_;
  if (Clock::now() >= next) return go_on();
  later(std::chrono::duration_cast<std::chrono::milliseconds>(next - Clock::now()));
}

void NbdKeeper::worker_died() {
  wanted_ = false;
  timer_.cancel();
  end();
}

void NbdKeeper::end() {
  connecting_.reset();
  if (!socket_ || ending_) return;
  ending_ = true;
  ending_since_ = Clock::now();
  ::shutdown(socket_.get(), SHUT_WR);
}

bool NbdKeeper::ended() {
  if (!socket_) return true;
  // Answers that nobody waits for any more; the server is to get rid of them. Bounded, as others wait.
  static std::array<std::byte, 65536> unwanted;
  constexpr int kReadsMax = 64;
  for (int i = 0; i < kReadsMax; ++i) {
    const ssize_t got = ::recv(socket_.get(), unwanted.data(), unwanted.size(), MSG_DONTWAIT);
    if (got > 0) continue;
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    socket_.reset();
    ending_ = false;
    return true;
  }
  return false;
}

void NbdKeeper::stop() {
  stopped_ = true;
  wanted_ = false;
  timer_.cancel();
}

void NbdKeeper::later(std::chrono::milliseconds delay) {
  timer_.expires_after(delay);
  timer_.async_wait(lifetime_.guard([this](error_code error) {
    if (!error && wanted_) go_on();
  }));
}

void NbdKeeper::go_on() {
  if (connecting_) {
    const bool late = Clock::now() - connecting_since_ >= kConnectTime;
    const int error = connecting(connecting_.get(), 0ms);
    return came_to(error == EINPROGRESS && late ? ETIMEDOUT : error);
  }
  if (!ended()) {
    if (Clock::now() - ending_since_ < kEndTime) return later(kLook);
    log_.warning("the NBD server has not closed the last connection in {} s: not waiting longer",
                 std::chrono::seconds(kEndTime).count());
    socket_.reset();
    ending_ = false;
  }
  way_ = 0;
  connect();
}

void NbdKeeper::connect() {
  connecting_since_ = Clock::now();
  came_to(begin_connecting(ways_[way_], connecting_));
}

void NbdKeeper::came_to(int error) {
  if (error == EINPROGRESS) return later(kLook);
  if (error != 0) {
    connecting_.reset();
    if (++way_ < ways_.size()) return connect();
    complain(fmt::format("cannot connect to the NBD server at {}: {}", name(), std::strerror(error)));
    later(delay_);
    delay_ = std::min(delay_ * 2, kDelayMax);
    return;
  }
  wanted_ = false;
  socket_ = std::move(connecting_);
  connected_at_ = Clock::now();
  delay_ = std::min(delay_ * 2, kDelayMax);
  complaint_.clear();
  connected_(socket_.get());
}

void NbdKeeper::complain(const std::string& problem) {
  if (problem == complaint_) return;
  complaint_ = problem;
  log_.warning("{}; trying again until it works", problem);
}

}  // namespace vmbusd::daemon
