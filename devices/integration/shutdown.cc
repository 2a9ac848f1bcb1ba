#include "devices/integration/shutdown.h"

#include <fmt/format.h>

#include <utility>

#include "vmbus/protocol.h"

namespace vmbusd::integration {

namespace {

// [linux: hv_util.c, shutdown_onchannelcallback], and the versions that Hyper-V offers them from.
constexpr Version kRestarts = {3, 1};
constexpr Version kHibernates = {3, 2};

}  // namespace

const Kind Shutdown::kKind = {Part::kShutdown,        "shutdown",
                              vmbus::kClassShutdown,  Guid::literal("b6650ff7-33bc-4840-8048-e0676786f393"),
                              MessageType::kShutdown, kVersions};

void Shutdown::request(ShutdownAction action, TimePoint now, Done done) {
  if (!version_) return done("the guest's driver has not answered yet which versions of shutdown it knows");
  if (done_ || waiting_) return done("the guest is being asked already");
  if (action == ShutdownAction::kReboot && *version_ < kRestarts) {
    return done("the guest's driver is too old to restart the guest");
  }
  if (action == ShutdownAction::kHibernate && *version_ < kHibernates) {
    return done("the guest's driver is too old to hibernate the guest");
  }
  body_ = {};
  body_.reason = kShutdownPlanned;
  body_.flags = kShutdownForce;
  if (action == ShutdownAction::kReboot) body_.flags |= kShutdownRestart;
  if (action == ShutdownAction::kHibernate) body_.flags |= kShutdownHibernate;
  waiting_ = true;
  done_ = std::move(done);
  answer_by_ = now + kAnswerTime;
}

void Shutdown::ready(Version version, TimePoint) {
  version_ = version;
}

void Shutdown::tick(TimePoint now) {
  if (!done_ || now < answer_by_) return;
  // It may act on it yet, so nothing else is asked before it has answered.
  finish(fmt::format("the guest does not answer within {} s", kAnswerTime.count()));
}

std::span<const std::byte> Shutdown::next(TimePoint) {
  if (!std::exchange(waiting_, false)) return {};
  return wire_bytes(body_);
}

void Shutdown::answered(std::uint32_t status, std::span<const std::byte>, TimePoint) {
  if (status == kStatusOk) {
    log_.guest_info("the guest shuts down as it was asked to");
    return finish({});
  }
  finish(fmt::format("the guest refuses, status {:#x}", status));
}

void Shutdown::closed() {
  finish("the guest closed its shutdown channel");
}

void Shutdown::finish(std::string problem) {
  if (done_) std::exchange(done_, nullptr)(std::move(problem));
}

}  // namespace vmbusd::integration
