#include "bench/network_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <thread>

#include <fmt/format.h>

#include "bench/frames.h"
#include "bench/running_host.h"
#include "guest/guest_channel.h"
#include "guest/net_client.h"
#include "guest/net_queue.h"

namespace vmbusd::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint32_t kRingPages = 128;
// In flight in an echo: the loop loses what finds no receive buffer, and has 32 armed.
constexpr std::uint32_t kEchoDepth = 24;
constexpr std::uint32_t kLargePayload = 45 * 1448;

struct Load {
  const char* name;
  const char* nic;  // its part of the configuration
  std::uint32_t frame_bytes;
  bool transmits;
  bool receives;
  bool large = false;
};
constexpr Load kLoads[] = {
    {"transmit", "backend = 'null'\n", 64, true, false},
    {"transmit", "backend = 'null'\n", 1514, true, false},
    {"transmit large", "backend = 'null'\n", kTcpHeaders + kLargePayload, true, false, true},
    {"receive", "backend = 'null'\nreceive_bytes = 64\n", 64, false, true},
    {"receive", "backend = 'null'\nreceive_bytes = 1514\n", 1514, false, true},
    {"echo", "backend = 'loopback'\n", 64, true, true},
    {"echo", "backend = 'loopback'\n", 1514, true, true},
};

struct Run {
  double frames = 0;  // by second
  // By frame.
  double doorbells = 0;
  double interrupts = 0;
  double system_calls = -1;  // of the worker; negative: not counted
  double cpu_ns = 0;         // of the worker
  // Of the rings, packets with their descriptors and trailers.
  double bytes_to_host = 0;
  double bytes_from_host = 0;
  // Of the channel that had the least: 1 / channels where all had as many.
  double least_share = 0;
};

// Of one channel in one run.
struct Counted {
  std::uint64_t frames = 0;
  std::uint64_t doorbells = 0;
  std::uint64_t interrupts = 0;
  guest::GuestChannel::RingBytes bytes;
};

// Sends and receives on one channel, on the thread that plays its VP.
class Driver {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Driver>> make(RunningHost& host, const Load& load,
                                                            const vmbus::OfferChannel& offer,
                                                            std::uint32_t target_vp) {
    std::unique_ptr<Driver> driver(new Driver(host, load, target_vp));
    VMBUSD_TRY(driver->channel_,
               guest::GuestChannel::open(
                   host.bus(), offer,
                   {.to_host_pages = kRingPages, .from_host_pages = kRingPages, .target_vp = target_vp}));
    return driver;
  }
  [[nodiscard]] guest::GuestChannel& channel() { return *channel_; }

  // Before run(): what it drives, which is of this channel and outlives it, and which NIC is there.
  [[nodiscard]] Result<void> drive(guest::NetQueue& queue, const netvsp::MacAddress& mac) {
    queue_ = &queue;
    frame_ = load_.large ? tcp_frame(mac, kLargePayload) : plain_frame(mac, load_.frame_bytes);
    VMBUSD_TRY(pages_, host_.child().ram().take((frame_.size() + guest::kPageSize - 1) / guest::kPageSize));
    pages_.write(0, frame_);
    return {};
  }

  [[nodiscard]] Result<Counted> run(Clock::time_point end) {
    guest::VirtualProcessor& vp = host_.child().vp(target_vp_);
    const std::uint64_t doorbells = channel_->doorbells();
    const std::uint64_t interrupts = vp.interrupts();
    const guest::GuestChannel::RingBytes bytes = channel_->ring_bytes();
    const std::uint64_t before = frames();
    std::uint64_t seen = before;
    while (Clock::now() < end) {
      VMBUSD_CHECK(fill());
      VMBUSD_CHECK(queue_->flush());
      VMBUSD_TRY(const std::uint32_t polled, queue_->poll([](std::span<const std::byte>) {}));
      (void)polled;
      // As NAPI: polls until there is nothing.
      if (frames() == seen) VMBUSD_CHECK(queue_->wait(std::chrono::milliseconds(100)));
      seen = frames();
    }
    return Counted{.frames = frames() - before,
                   .doorbells = channel_->doorbells() - doorbells,
                   .interrupts = vp.interrupts() - interrupts,
                   .bytes = {channel_->ring_bytes().to_host - bytes.to_host,
                             channel_->ring_bytes().from_host - bytes.from_host}};
  }

 private:
  Driver(RunningHost& host, const Load& load, std::uint32_t target_vp)
      : host_(host), load_(load), target_vp_(target_vp) {}

  [[nodiscard]] std::uint64_t frames() const {
    return load_.receives ? queue_->statistics().received : queue_->statistics().completed;
  }
  [[nodiscard]] Result<void> fill() {
    if (!load_.transmits) return {};
    for (;;) {
      if (load_.receives && queue_->in_flight() >= kEchoDepth) return {};
      VMBUSD_TRY(const bool sent,
                 load_.large ? queue_->send_large(pages_, static_cast<std::uint32_t>(frame_.size()), 1448)
                             : queue_->send(frame_));
      if (!sent) return {};
    }
  }

  RunningHost& host_;
  const Load& load_;
  const std::uint32_t target_vp_;
  std::unique_ptr<guest::GuestChannel> channel_;
  guest::NetQueue* queue_ = nullptr;
  std::vector<std::byte> frame_;
  guest::Pages pages_;
};

// The driver of a NIC with a channel on each VP.
class Nic {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Nic>> make(RunningHost& host, const Load& load,
                                                         std::uint32_t channels) {
    std::unique_ptr<Nic> nic(new Nic(host));
    const std::vector<vmbus::OfferChannel> offers = host.offers(vmbus::kClassNetwork);
    if (offers.empty()) return fail(Errc::kWrongState, "vmbusd offers no NIC");
    VMBUSD_CHECK(nic->open(load, offers.front()));
    nic->primary_ = std::make_unique<guest::NetClient>(nic->drivers_.front()->channel());
    guest::NetClient& primary = *nic->primary_;
    VMBUSD_CHECK(primary.initialize());
    if (channels > 1) VMBUSD_CHECK(nic->open_sub_channels(load, channels - 1));
    VMBUSD_CHECK(nic->drivers_.front()->drive(primary, primary.mac()));
    for (std::size_t i = 0; i < nic->others_.size(); ++i) {
      VMBUSD_CHECK(nic->drivers_[1 + i]->drive(*nic->others_[i], primary.mac()));
    }
    return nic;
  }

  // All channels for so long, each on a thread of its own.
  [[nodiscard]] Result<Run> run(double seconds) {
    ProcessCost cost(host_.worker());
    const auto begin = Clock::now();
    const auto end =
        begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    std::vector<std::optional<Result<Counted>>> counts(drivers_.size());
    {
      std::vector<std::jthread> threads;
      for (std::size_t i = 1; i < drivers_.size(); ++i) {
        threads.emplace_back([&, i] { counts[i].emplace(drivers_[i]->run(end)); });
      }
      counts[0].emplace(drivers_[0]->run(end));
    }
    const double elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
    const ProcessCost::Use use = cost.stop();
    Counted all;
    std::uint64_t least = UINT64_MAX;
    for (const std::optional<Result<Counted>>& counted : counts) {
      VMBUSD_CHECK(*counted);
      all.frames += (*counted)->frames;
      all.doorbells += (*counted)->doorbells;
      all.interrupts += (*counted)->interrupts;
      all.bytes.to_host += (*counted)->bytes.to_host;
      all.bytes.from_host += (*counted)->bytes.from_host;
      least = std::min(least, (*counted)->frames);
    }
    if (all.frames == 0) return fail(Errc::kWrongState, "no frame passed");
    const auto count = static_cast<double>(all.frames);
    return Run{.frames = count / elapsed,
               .doorbells = static_cast<double>(all.doorbells) / count,
               .interrupts = static_cast<double>(all.interrupts) / count,
               .system_calls = use.system_calls ? static_cast<double>(*use.system_calls) / count : -1,
               .cpu_ns = use.cpu_seconds * 1e9 / count,
               .bytes_to_host = static_cast<double>(all.bytes.to_host) / count,
               .bytes_from_host = static_cast<double>(all.bytes.from_host) / count,
               .least_share = static_cast<double>(least) / count};
  }

 private:
  explicit Nic(RunningHost& host) : host_(host) {}

  [[nodiscard]] Result<void> open(const Load& load, const vmbus::OfferChannel& offer) {
    const auto target_vp = static_cast<std::uint32_t>(drivers_.size());
    VMBUSD_TRY(std::unique_ptr<Driver> driver, Driver::make(host_, load, offer, target_vp));
    drivers_.push_back(std::move(driver));
    return {};
  }
  [[nodiscard]] Result<void> open_sub_channels(const Load& load, std::uint32_t count) {
    VMBUSD_TRY(const std::uint32_t granted, primary_->create_sub_channels(count));
    if (granted != count) return fail(Errc::kWrongState, "vmbusd gives too few sub-channels");
    std::vector<guest::NetQueue*> queues;
    for (std::uint32_t i = 0; i < count; ++i) {
      VMBUSD_TRY(const vmbus::OfferChannel offer, host_.bus().wait_offer());
      VMBUSD_CHECK(open(load, offer));
      others_.push_back(std::make_unique<guest::NetQueue>(drivers_.back()->channel()));
      queues.push_back(others_.back().get());
    }
    return primary_->use_sub_channels(queues);
  }

  RunningHost& host_;
  std::vector<std::unique_ptr<Driver>> drivers_;  // by VP; the first is the primary channel's
  std::unique_ptr<guest::NetClient> primary_;
  std::vector<std::unique_ptr<guest::NetQueue>> others_;
};

}  // namespace

Result<nlohmann::json> measure_network(const NetworkOptions& options, bool quiet) {
  if (!quiet) {
    fmt::print(
        "what             bytes  frames/s (least..most)   by frame: doorbells, interrupts, calls, CPU ns\n");
  }
  nlohmann::json rows = nlohmann::json::array();
  for (const Load& load : kLoads) {
    VMBUSD_TRY(const std::unique_ptr<RunningHost> host,
               RunningHost::start(
                   {.vmbusd = options.vmbusd,
                    .devices = fmt::format("poll_us = {}\n[[partition.nic]]\nname = 'nic0'\nqueues = {}\n{}",
                                           options.poll_us, options.channels, load.nic),
                    .vp_count = options.channels,
                    .halt_poll = std::chrono::microseconds(options.halt_poll_us)}));
    VMBUSD_TRY(const std::unique_ptr<Nic> nic, Nic::make(*host, load, options.channels));
    std::vector<double> frames;
    std::vector<Run> runs;
    for (std::uint32_t round = 0; round < options.rounds; ++round) {
      VMBUSD_TRY(const Run run, nic->run(options.seconds));
      runs.push_back(run);
      frames.push_back(run.frames);
    }
    const auto median = [&runs](double Run::*member) {
      std::vector<double> values;
      for (const Run& run : runs) values.push_back(run.*member);
      return spread_of(std::move(values)).median;
    };
    const Spread spread = spread_of(frames);
    const nlohmann::json row = {
        {"load", load.name},
        {"bytes", load.frame_bytes},
        {"channels", options.channels},
        {"frames_per_second", {{"median", spread.median}, {"least", spread.least}, {"most", spread.most}}},
        {"doorbells_per_frame", median(&Run::doorbells)},
        {"interrupts_per_frame", median(&Run::interrupts)},
        {"worker_system_calls_per_frame", median(&Run::system_calls)},
        {"worker_cpu_ns_per_frame", median(&Run::cpu_ns)},
        {"ring_bytes_to_host_per_frame", median(&Run::bytes_to_host)},
        {"ring_bytes_from_host_per_frame", median(&Run::bytes_from_host)},
        {"least_channels_share", median(&Run::least_share)}};
    if (!quiet) {
      fmt::print("{:15} {:6} {:9.0f} ({:.0f}..{:.0f})  {:8.4f} {:8.4f} {:8.4f} {:8.0f}\n", load.name,
                 load.frame_bytes, spread.median, spread.least, spread.most, median(&Run::doorbells),
                 median(&Run::interrupts), median(&Run::system_calls), median(&Run::cpu_ns));
      std::fflush(stdout);
    }
    rows.push_back(row);
  }
  return rows;
}

}  // namespace vmbusd::bench
