#include "bench/network_bench.h"

#include <chrono>
#include <cstdio>

#include <fmt/format.h>

#include "bench/frames.h"
#include "bench/running_host.h"
#include "guest/guest_channel.h"
#include "guest/net_client.h"

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
};

class Driver {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Driver>> make(RunningHost& host, const Load& load) {
    std::unique_ptr<Driver> driver(new Driver(host, load));
    const std::vector<vmbus::OfferChannel> offers = host.offers(vmbus::kClassNetwork);
    if (offers.empty()) return fail(Errc::kWrongState, "vmbusd offers no NIC");
    VMBUSD_TRY(driver->channel_,
               guest::GuestChannel::open(host.bus(), offers.front(),
                                         {.to_host_pages = kRingPages, .from_host_pages = kRingPages}));
    driver->client_ = std::make_unique<guest::NetClient>(*driver->channel_);
    VMBUSD_CHECK(driver->client_->initialize());
    const netvsp::MacAddress mac = driver->client_->mac();
    driver->frame_ = load.large ? tcp_frame(mac, kLargePayload) : plain_frame(mac, load.frame_bytes);
    VMBUSD_TRY(driver->pages_,
               host.child().ram().take((driver->frame_.size() + guest::kPageSize - 1) / guest::kPageSize));
    driver->pages_.write(0, driver->frame_);
    return driver;
  }

  [[nodiscard]] Result<Run> run(double seconds) {
    ProcessCost cost(host_.worker());
    const std::uint64_t doorbells = channel_->doorbells();
    const std::uint64_t interrupts = host_.child().vp(0).interrupts();
    const std::uint64_t before = frames();
    const auto begin = Clock::now();
    const auto end =
        begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    Clock::time_point now = begin;
    std::uint64_t seen = frames();
    while (now < end) {
      VMBUSD_CHECK(fill());
      VMBUSD_CHECK(client_->flush());
      VMBUSD_TRY(const std::uint32_t polled, client_->poll([](std::span<const std::byte>) {}));
      (void)polled;
      // As NAPI: polls until there is nothing.
      if (frames() == seen) VMBUSD_CHECK(client_->wait(std::chrono::milliseconds(100)));
      seen = frames();
      now = Clock::now();
    }
    const auto count = static_cast<double>(frames() - before);
    const double elapsed = std::chrono::duration<double>(now - begin).count();
    const ProcessCost::Use use = cost.stop();
    return Run{.frames = count / elapsed,
               .doorbells = static_cast<double>(channel_->doorbells() - doorbells) / count,
               .interrupts = static_cast<double>(host_.child().vp(0).interrupts() - interrupts) / count,
               .system_calls = use.system_calls ? static_cast<double>(*use.system_calls) / count : -1,
               .cpu_ns = use.cpu_seconds * 1e9 / count};
  }

 private:
  Driver(RunningHost& host, const Load& load) : host_(host), load_(load) {}

  [[nodiscard]] std::uint64_t frames() const {
    return load_.receives ? client_->statistics().received : client_->statistics().completed;
  }
  [[nodiscard]] Result<void> fill() {
    if (!load_.transmits) return {};
    for (;;) {
      if (load_.receives && client_->in_flight() >= kEchoDepth) return {};
      VMBUSD_TRY(const bool sent,
                 load_.large ? client_->send_large(pages_, static_cast<std::uint32_t>(frame_.size()), 1448)
                             : client_->send(frame_));
      if (!sent) return {};
    }
  }

  RunningHost& host_;
  const Load& load_;
  std::unique_ptr<guest::GuestChannel> channel_;
  std::unique_ptr<guest::NetClient> client_;
  std::vector<std::byte> frame_;
  guest::Pages pages_;
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
               RunningHost::start({.vmbusd = options.vmbusd,
                                   .devices = std::string("[[partition.nic]]\nname = 'nic0'\n") + load.nic,
                                   .halt_poll = std::chrono::microseconds(options.halt_poll_us)}));
    VMBUSD_TRY(const std::unique_ptr<Driver> driver, Driver::make(*host, load));
    std::vector<double> frames;
    std::vector<Run> runs;
    for (std::uint32_t round = 0; round < options.rounds; ++round) {
      VMBUSD_TRY(const Run run, driver->run(options.seconds));
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
        {"frames_per_second", {{"median", spread.median}, {"least", spread.least}, {"most", spread.most}}},
        {"doorbells_per_frame", median(&Run::doorbells)},
        {"interrupts_per_frame", median(&Run::interrupts)},
        {"worker_system_calls_per_frame", median(&Run::system_calls)},
        {"worker_cpu_ns_per_frame", median(&Run::cpu_ns)}};
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
