#include "daemon/nic_keeper.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "daemon/nic_source.h"
#include "netvsp/steering_program.h"

namespace vmbusd::daemon {

namespace {

using boost::system::error_code;
using namespace std::chrono_literals;

constexpr std::chrono::milliseconds kDelayFirst = 250ms;
constexpr std::chrono::milliseconds kDelayMax = 5s;
constexpr auto kLeftBehindTime = 2s;
constexpr auto kLeftBehindPoll = 5ms;
constexpr auto kStableAfter = 10s;  // a back end that lasted so long is no part of a series of failures

}  // namespace

NicKeeper::NicKeeper(boost::asio::io_context& context, const std::string& partition, NicConfig config,
                     std::function<void()> reopened)
    : config_(std::move(config)),
      log_(fmt::format("{}/{}", partition, config_.nic.name)),
      reopened_(std::move(reopened)),
      timer_(context),
      delay_(kDelayFirst) {}

NicKeeper::~NicKeeper() {
  if (steering_program_ && !config_.nic.fds.empty()) {
    netvsp::stop_steering_tap(config_.nic.fds.front().get());
  }
}

std::string NicKeeper::open(bool restarted) {
  std::optional<SourceProblem> problem = open_nic_source(config_.source, config_.nic);
  const auto until = std::chrono::steady_clock::now() + kLeftBehindTime;
  while (problem && problem->in_use && restarted && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(kLeftBehindPoll);
    problem = open_nic_source(config_.source, config_.nic);
  }
  if (problem && !problem->peer_is_absent) return problem->text;
  if (problem) {
    complain(problem->text);
    try_later();
  } else {
    config_.source.any_queues = false;  // the worker's NIC is made with as many as there are now
    opened_at_ = std::chrono::steady_clock::now();
    if (config_.nic.backend == netvsp::NicConfig::Backend::kTap && config_.nic.queues > 1) load_steering();
    steer();
  }
  return {};
}

void NicKeeper::stop() {
  stopped_ = true;
  timer_.cancel();
}

void NicKeeper::load_steering() {
  Result<netvsp::SteeringProgram> made = netvsp::load_steering_program();
  if (!made) {
    return log_.info(
        "the kernel chooses the channels for what is received, whatever RSS table the guest sets: {}; "
        "CAP_BPF "
        "lets vmbusd go by the table",
        describe(made.error()));
  }
  steering_program_ = std::move(made->program);
  config_.nic.steering = std::move(made->table);
}

// Of each TAP that was opened.
void NicKeeper::steer() {
  if (!steering_program_) return;
  const Result<void> steered = netvsp::steer_tap(config_.nic.fds.front().get(), steering_program_.get());
  if (!steered) log_.warning("the guest's RSS table is not gone by: {}", describe(steered.error()));
}

void NicKeeper::lost() {
  if (config_.nic.fds.empty()) return;  // is being seen to, or cannot be, or there is nothing to lose
  config_.nic.fds.clear();  // a peer must see that this connection has ended, or it takes no other
  if (!config_.source.fds.empty()) {
    return log_.warning("its descriptors were given to vmbusd, which cannot open them anew: restart it");
  }
  if (std::chrono::steady_clock::now() - opened_at_ >= kStableAfter) delay_ = kDelayFirst;
  try_later();
}

void NicKeeper::renew() {
  if (!config_.source.socket.empty()) config_.nic.fds.clear();
  if (trying_) return;
  if (!config_.nic.fds.empty() && interface_is_there(config_.nic)) return;
  // It went while no channel was open to see it.
  if (!config_.source.fds.empty()) return lost();
  try_now();
}

void NicKeeper::try_later() {
  trying_ = true;
  timer_.expires_after(delay_);
  timer_.async_wait(lifetime_.guard([this](error_code error) {
    if (error || stopped_) return;
    trying_ = false;
    try_now();
    if (!trying_) reopened_();
  }));
  delay_ = std::min(delay_ * 2, kDelayMax);
}

void NicKeeper::try_now() {
  config_.nic.fds.clear();
  const std::optional<SourceProblem> problem = open_nic_source(config_.source, config_.nic);
  if (problem) {
    complain(problem->text);
    return try_later();
  }
  steer();
  opened_at_ = std::chrono::steady_clock::now();
  complaint_.clear();
}

void NicKeeper::complain(const std::string& problem) {
  if (problem == complaint_) return;
  complaint_ = problem;
  log_.warning("link is down: {}; trying again until it works", problem);
}

}  // namespace vmbusd::daemon
