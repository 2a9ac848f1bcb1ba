#include "devices/integration/integration.h"

#include <fmt/format.h>

#include <utility>

#include "devices/integration/component_channel.h"
#include "devices/integration/heartbeat.h"
#include "devices/integration/kvp.h"
#include "devices/integration/time_sync.h"
#include "devices/integration/vss.h"

namespace vmbusd::integration {

namespace {

constexpr const char* kNoDriver = "no guest with a driver for it is running";

std::string switched_off(Part part) {
  return fmt::format("{} is switched off in this partition's configuration", part_name(part));
}

}  // namespace

template <typename T>
class Integration::ComponentDevice final : public devices::Device {
 public:
  ComponentDevice(const std::string& partition, StatusBoard& board)
      : name_(fmt::format("{}/integration/{}", partition, T::kKind.name)), board_(board) {
    board_.set(T::kKind.part, PartState::kClosed);
  }

  const std::string& name() const override { return name_; }
  vmbus::Offer offer() const override {
    vmbus::Offer offer;
    offer.interface_type = T::kKind.interface_type;
    offer.instance = T::kKind.instance;
    offer.pipe_message_mode = true;
    return offer;
  }
  Result<std::unique_ptr<devices::ChannelHandler>> open(std::uint32_t, devices::DeviceHost&,
                                                        io::Worker& worker) override {
    link_ = std::make_shared<Link>();
    worker_ = &worker;
    return std::make_unique<ComponentChannel>(
        T::kKind, board_, link_, [this](LogScope& log) { return std::make_unique<T>(board_, log); });
  }

  bool can_be_taken_up() const override { return true; }

  // Calls `call` on the channel's worker with the component and the time, where there is one; else `without`,
  // from here or from there.
  template <typename Call>
  void ask(Call call, std::function<void()> without) {
    if (!link_) return without();
    worker_->post([link = link_, call = std::move(call), without = std::move(without)] {
      if (link->channel == nullptr) return without();
      call(static_cast<T&>(link->channel->component()), link->channel->now());
      link->channel->wake();
    });
  }

 private:
  std::string name_;
  StatusBoard& board_;
  std::shared_ptr<Link> link_;  // of the channel opened last
  io::Worker* worker_ = nullptr;
};

Integration::Integration(const Config& config) {
  if (config.heartbeat) heartbeat_ = std::make_unique<ComponentDevice<Heartbeat>>(config.partition, board_);
  if (config.shutdown) shutdown_ = std::make_unique<ComponentDevice<Shutdown>>(config.partition, board_);
  if (config.timesync) time_sync_ = std::make_unique<ComponentDevice<TimeSync>>(config.partition, board_);
  if (config.kvp) kvp_ = std::make_unique<ComponentDevice<Kvp>>(config.partition, board_);
  if (config.vss) vss_ = std::make_unique<ComponentDevice<Vss>>(config.partition, board_);
}

Integration::~Integration() = default;

std::vector<devices::Device*> Integration::devices() {
  std::vector<devices::Device*> all;
  const auto add = [&all](devices::Device* device) {
    if (device != nullptr) all.push_back(device);
  };
  add(heartbeat_.get());
  add(shutdown_.get());
  add(time_sync_.get());
  add(kvp_.get());
  add(vss_.get());
  return all;
}

void Integration::shut_down(ShutdownAction action, Done done) {
  if (!shutdown_) return done(switched_off(Part::kShutdown));
  shutdown_->ask([action, done](Shutdown& shutdown, TimePoint now) { shutdown.request(action, now, done); },
                 [done] { done(kNoDriver); });
}

void Integration::freeze(std::chrono::seconds time, Done done) {
  if (!vss_) return done(switched_off(Part::kVss));
  vss_->ask([time, done](Vss& vss, TimePoint now) { vss.freeze(time, now, done); },
            [done] { done(kNoDriver); });
}

void Integration::thaw(Done done) {
  if (!vss_) return done(switched_off(Part::kVss));
  vss_->ask([done](Vss& vss, TimePoint now) { vss.thaw(now, done); }, [done] { done(kNoDriver); });
}

void Integration::write_key(const std::string& key, const std::optional<std::string>& value, Done done) {
  if (!kvp_) return done(switched_off(Part::kKvp));
  kvp_->ask([key, value, done](Kvp& kvp, TimePoint now) { kvp.write(key, value, now, done); },
            [done] { done(kNoDriver); });
}

const char* part_name(Part part) {
  switch (part) {
    case Part::kHeartbeat:
      return Heartbeat::kKind.name;
    case Part::kShutdown:
      return Shutdown::kKind.name;
    case Part::kTimeSync:
      return TimeSync::kKind.name;
    case Part::kKvp:
      return Kvp::kKind.name;
    case Part::kVss:
      return Vss::kKind.name;
  }
  return "";
}

const char* state_name(PartState state) {
  switch (state) {
    case PartState::kOff:
      return "off";
    case PartState::kClosed:
      return "closed";
    case PartState::kNegotiating:
      return "negotiating";
    case PartState::kReady:
      return "ready";
    case PartState::kRefused:
      return "refused";
  }
  return "";
}

const char* health_name(Health health) {
  switch (health) {
    case Health::kUnknown:
      return "unknown";
    case Health::kOk:
      return "ok";
    case Health::kLost:
      return "lost";
  }
  return "";
}

const char* freeze_name(FreezeState state) {
  switch (state) {
    case FreezeState::kThawed:
      return "thawed";
    case FreezeState::kFreezing:
      return "freezing";
    case FreezeState::kFrozen:
      return "frozen";
    case FreezeState::kThawing:
      return "thawing";
  }
  return "";
}

}  // namespace vmbusd::integration
