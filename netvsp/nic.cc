#include "netvsp/nic.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <utility>

#include "base/log.h"
#include "netvsp/memory_backends.h"
#include "netvsp/opening.h"
#include "netvsp/primary_channel.h"
#include "netvsp/stream_backend.h"
#include "netvsp/tap_backend.h"
#include "netvsp/tap_steering.h"

namespace vmbusd::netvsp {

namespace {

// [linux: HV_NIC_GUID]
constexpr Guid kNicClass = Guid::literal("f8615163-df3e-46c5-913f-f2d2f965ed0e");

class BackendNic final : public Nic, private NicServices, private CounterSource {
 public:
  BackendNic(NicConfig config, Backend backend)
      : config_(std::move(config)),
        backend_(std::move(backend)),
        log_(config_.partition + "/" + config_.name),
        counters_(config_.queues) {
    backend_up_ = backend_.link_up;
    if (!backend_up_) reason_ = "no descriptor yet";
    link_up_ = admin_up_ && backend_up_;
  }

  // devices::Device

  const std::string& name() const override { return log_.subject(); }

  vmbus::Offer offer() const override {
    vmbus::Offer offer;
    offer.interface_type = kNicClass;
    offer.instance = *config_.instance;
    offer.monitored = config_.monitored;
    return offer;
  }

  Result<std::unique_ptr<devices::ChannelHandler>> open(std::uint32_t sub_channel_index,
                                                        devices::DeviceHost& host, io::Worker&) override {
    const std::lock_guard lock(mutex_);
    if (sub_channel_index == 0) {
      opening_ = std::make_shared<Opening>();
      return std::make_unique<PrimaryChannel>(static_cast<NicServices&>(*this), opening_, host,
                                              primary_config(host));
    }
    if (opening_ == nullptr || sub_channel_index > granted()) {
      return fail(Errc::kWrongState, "sub-channel was not granted");
    }
    return std::make_unique<NetChannel>(static_cast<NicServices&>(*this), opening_, sub_channel_index);
  }

  bool can_be_taken_up() const override { return true; }
  std::uint64_t incarnation() const override { return config_.incarnation; }

  // Linux's driver completes what it received no more once it hears of the removal, and waits for just that.
  // [linux: netvsc.c, send_recv_completions; rndis_filter.c, netvsc_device_idle]
  void leave(std::function<void()> done) override {
    std::shared_ptr<Opening> opening;
    {
      const std::lock_guard lock(mutex_);
      opening = opening_;
    }
    // Whoever is the last to let go of it calls.
    const std::shared_ptr<void> waiting(nullptr, [done = std::move(done)](void*) { done(); });
    if (opening != nullptr) opening->leaving.store(true, std::memory_order_relaxed);
    for_channels(opening, [waiting](NetChannel& channel) { channel.leave(waiting); });
  }

  void reset() override {
    const std::lock_guard lock(mutex_);
    opening_.reset();
  }

  // Nic

  void set_link(bool up) override {
    {
      const std::lock_guard lock(mutex_);
      if (admin_up_ == up) return;
      admin_up_ = up;
    }
    log_.info("link is switched {}", up ? "on" : "off");
    link_changed();
  }

  void on_backend_lost(std::function<void()> lost) override { backend_lost_ = std::move(lost); }

  Result<void> replace_backend(std::vector<UniqueFd> fds) override {
    const bool stream = config_.backend == NicConfig::Backend::kStream;
    if (!stream && config_.backend != NicConfig::Backend::kTap) {
      return fail(Errc::kConfig, "this back end has no descriptors");
    }
    if (fds.size() != backend_.queues.size()) {
      return fail(Errc::kConfig, "as many descriptors are needed as there are queues");
    }
    for (const UniqueFd& fd : fds) VMBUSD_CHECK(stream ? prepare_stream(fd.get()) : prepare_tap(fd.get()));
    std::shared_ptr<Opening> opening;
    {
      // As one step for link_lost(): a channel may open, take a new descriptor up and lose it at any time.
      const std::lock_guard lock(mutex_);
      for (std::size_t i = 0; i < fds.size(); ++i) backend_.queues[i]->replace(std::move(fds[i]));
      backend_up_ = true;
      reason_.clear();
      opening = opening_;
    }
    log_.info("back end is there");
    for_channels(opening, [](NetChannel& channel) { channel.refresh_queue(); });
    link_changed();
    return {};
  }

  NicStatus status() const override {
    NicStatus status;
    status.mac = *config_.mac;
    status.mtu = config_.mtu;
    status.link_up = link_up_.load(std::memory_order_relaxed);
    std::shared_ptr<Opening> opening;
    {
      const std::lock_guard lock(mutex_);
      if (!status.link_up) status.link_reason = admin_up_ ? reason_ : "switched off";
      opening = opening_;
    }
    if (opening != nullptr) {
      status.nvsp_version = opening->nvsp_version.load(std::memory_order_relaxed);
      status.packet_filter = opening->filter.load(std::memory_order_relaxed);
      if (status.nvsp_version != 0) {
        status.mtu = opening->mtu.load(std::memory_order_relaxed);
        const std::uint64_t mac = opening->mac.load(std::memory_order_relaxed);
        for (std::size_t i = 0; i < status.mac.bytes.size(); ++i) {
          status.mac.bytes[i] = static_cast<std::uint8_t>(mac >> (8 * i));
        }
      }
      const std::lock_guard lock(opening->mutex);
      const auto& channels = opening->channels;
      status.channels = static_cast<std::uint32_t>(
          std::count_if(channels.begin(), channels.end(), [](const auto& each) { return each != nullptr; }));
    }
    for (const PublishedCounters& each : counters_) status.queues.push_back(each.read());
    return status;
  }

 private:
  // NicServices

  BackendQueue& queue(std::uint32_t index) override { return *backend_.queues[index]; }
  PublishedCounters& counters(std::uint32_t index) override { return counters_[index]; }
  bool checks_source() const override { return config_.check_source_mac; }
  bool link_up() const override { return link_up_.load(std::memory_order_relaxed); }

  void link_lost(const Error& reason) override {
    {
      const std::lock_guard lock(mutex_);
      if (!backend_up_) return;  // another queue has told already
      backend_up_ = false;
      reason_ = describe(reason);
    }
    log_.warning("link down: {}", describe(reason));
    link_changed();
    if (backend_lost_) backend_lost_();
  }

  void set_rss(const RssState& rss) override {
    if (backend_.steering != nullptr) backend_.steering->set_rss(rss);
  }

  // CounterSource

  QueueCounters totals() const override {
    QueueCounters sum;
    for (const PublishedCounters& each : counters_) sum = sum + each.read();
    return sum;
  }

  PrimaryChannel::Config primary_config(devices::DeviceHost& host) {
    PrimaryChannel::Config config;
    NicState& state = config.state;
    state.permanent_mac = *config_.mac;
    state.mac = *config_.mac;
    state.mac_fixed = config_.check_source_mac;
    state.mtu = std::min(config_.mtu, kMtuDefault);
    state.link_speed_mbps = config_.link_speed_mbps;
    state.friendly_name = config_.friendly_name;
    state.queues = config_.queues;
    config.limits = {config_.mtu, backend_.offloads};
    config.large_receive = backend_.large_receive;
    config.counters = this;
    config.offer_sub_channels = [this, &host](std::uint32_t count) { host.offer_sub_channels(*this, count); };
    return config;
  }

  // Sub-channels that the guest may open now. Under mutex_.
  [[nodiscard]] std::uint32_t granted() const {
    const std::lock_guard lock(opening_->mutex);
    return opening_->sub_channels_granted;
  }

  // Has `function` called for each running channel, on its worker.
  template <typename Function>
  static void for_channels(const std::shared_ptr<Opening>& opening, Function function) {
    if (opening == nullptr) return;
    const std::lock_guard lock(opening->mutex);
    for (const std::shared_ptr<ChannelAnchor>& each : opening->channels) {
      if (each == nullptr) continue;
      each->worker->post([each, function] {
        if (each->channel != nullptr) function(*each->channel);
      });
    }
  }

  void link_changed() {
    std::shared_ptr<Opening> opening;
    {
      const std::lock_guard lock(mutex_);
      const bool up = admin_up_ && backend_up_;
      if (link_up_.exchange(up, std::memory_order_relaxed) == up) return;
      opening = opening_;
    }
    for_channels(opening, [](NetChannel& channel) { channel.link_changed(); });
  }

  NicConfig config_;  // instance and mac are set; fds are the back end's
  Backend backend_;
  LogScope log_;
  std::vector<PublishedCounters> counters_;
  std::function<void()> backend_lost_;
  std::atomic<bool> link_up_{false};
  mutable std::mutex mutex_;
  bool admin_up_ = true;
  bool backend_up_ = false;
  std::string reason_;
  std::shared_ptr<Opening> opening_;
};

Result<void> check(const NicConfig& config) {
  if (config.mtu < kMtuMin || config.mtu > kMtuMax) return fail(Errc::kConfig, "MTU is out of range");
  if (config.queues < 1 || config.queues > kMaxQueues) {
    return fail(Errc::kConfig, "number of queues is out of range");
  }
  if (config.mac && !config.mac->valid_unicast()) {
    return fail(Errc::kConfig, "MAC address is not a unicast address");
  }
  if (config.link_speed_mbps == 0 || config.link_speed_mbps > 400'000) {
    return fail(Errc::kConfig, "link speed is out of range");
  }
  if (config.friendly_name.size() >= kFriendlyNameSize / 2 ||
      !std::all_of(config.friendly_name.begin(), config.friendly_name.end(),
                   [](char c) { return c >= ' ' && c <= '~'; })) {
    return fail(Errc::kConfig, "friendly name is too long or not printable ASCII");
  }
  return {};
}

Result<Backend> make_backend(NicConfig& config) {
  switch (config.backend) {
    case NicConfig::Backend::kTap:
      if (!config.fds.empty() && config.fds.size() != config.queues) {
        return fail(Errc::kConfig, "a TAP needs one descriptor per queue");
      }
      for (const UniqueFd& fd : config.fds) VMBUSD_CHECK(prepare_tap(fd.get()));
      return TapSteering::make(std::move(config.steering)).map([&config](auto steering) {
        return make_tap_backend(std::move(config.fds), config.queues, std::move(steering));
      });
    case NicConfig::Backend::kStream: {
      if (config.fds.size() > 1 || config.queues != 1) {
        return fail(Errc::kConfig, "a stream is one descriptor and one queue");
      }
      UniqueFd fd;
      if (!config.fds.empty()) fd = std::move(config.fds.front());
      if (fd) VMBUSD_CHECK(prepare_stream(fd.get()));
      return make_stream_backend(std::move(fd));
    }
    case NicConfig::Backend::kNull:
    case NicConfig::Backend::kLoopback:
      break;
  }
  if (!config.fds.empty()) return fail(Errc::kConfig, "this back end takes no descriptors");
  if (config.backend == NicConfig::Backend::kLoopback) return make_loopback_backend(config.queues);
  constexpr std::uint32_t kFrameMin = 60;
  if (config.null_receive_bytes != 0 && (config.null_receive_bytes < kFrameMin ||
                                         config.null_receive_bytes > config.mtu + kEthernetHeaderSize)) {
    return fail(Errc::kConfig, "size of invented frames is out of range");
  }
  return make_null_backend(config.queues, config.null_receive_bytes, config.mac->value());
}

}  // namespace

Result<std::unique_ptr<Nic>> make_nic(NicConfig config) {
  VMBUSD_CHECK(check(config));
  if (!config.instance) config.instance = Guid::derive(config.partition, config.name);
  if (!config.mac) config.mac = MacAddress::derive(config.partition, config.name);
  VMBUSD_TRY(Backend backend, make_backend(config));
  config.fds.clear();
  return std::make_unique<BackendNic>(std::move(config), std::move(backend));
}

}  // namespace vmbusd::netvsp
