#include "bench/wakeup_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "bench/running_host.h"
#include "guest/disk.h"
#include "guest/guest_channel.h"
#include "guest/stor_client.h"

namespace vmbusd::bench {
namespace {

using Clock = std::chrono::steady_clock;

// Between two requests. A host that polls for 10 ms is awake after it, one that does not poll is asleep.
constexpr std::chrono::microseconds kPause{500};

enum class Guest { kPolls, kSleeps };

class Pinger {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Pinger>> make(const std::string& vmbusd,
                                                            std::uint32_t poll_us) {
    std::unique_ptr<Pinger> pinger(new Pinger);
    VMBUSD_TRY(
        pinger->host_,
        RunningHost::start({.vmbusd = vmbusd,
                            .devices = fmt::format("poll_us = {}\n[[partition.scsi]]\nname = 'scsi0'\n"
                                                   "[[partition.scsi.disk]]\nlun = 0\nbackend = 'null'\n"
                                                   "size = '1M'\n",
                                                   poll_us)}));
    const std::vector<vmbus::OfferChannel> offers = pinger->host_->offers(vmbus::kClassScsi);
    if (offers.empty()) return fail(Errc::kWrongState, "vmbusd offers no controller");
    VMBUSD_TRY(pinger->channel_, guest::GuestChannel::open(pinger->host_->bus(), offers.front()));
    pinger->client_ = std::make_unique<guest::StorClient>(*pinger->channel_, 1);
    VMBUSD_CHECK(pinger->client_->initialize());
    VMBUSD_CHECK(guest::Disk(*pinger->client_).ready());
    return pinger;
  }

  // Median microseconds from the request to its answer.
  [[nodiscard]] Result<double> round(std::uint32_t requests, Guest guest) {
    std::vector<double> values;
    values.reserve(requests);
    for (std::uint32_t i = 0; i < requests; ++i) {
      std::this_thread::sleep_for(kPause);
      VMBUSD_TRY(const double us, ping(guest));
      values.push_back(us);
    }
    return spread_of(std::move(values)).median;
  }

 private:
  Pinger() = default;

  // TEST UNIT READY, which the handler itself answers.
  [[nodiscard]] Result<double> ping(Guest guest) {
    const auto begin = Clock::now();
    VMBUSD_TRY(const std::optional<std::uint64_t> id, client_->submit(guest::StorCommand{.cdb_length = 6}));
    if (!id) return fail(Errc::kLimit, "a request is still in flight");
    VMBUSD_CHECK(client_->flush());
    for (;;) {
      VMBUSD_TRY(const std::uint32_t polled, client_->poll([](const guest::StorCompletion&) {}));
      if (polled != 0) break;
      if (guest == Guest::kSleeps) VMBUSD_CHECK(client_->wait());
    }
    return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
  }

  std::unique_ptr<RunningHost> host_;
  std::unique_ptr<guest::GuestChannel> channel_;
  std::unique_ptr<guest::StorClient> client_;
};

}  // namespace

Result<nlohmann::json> measure_wakeup(const WakeupOptions& options, bool quiet) {
  VMBUSD_TRY(const std::unique_ptr<Pinger> awake, Pinger::make(options.vmbusd, 10'000));
  VMBUSD_TRY(const std::unique_ptr<Pinger> asleep, Pinger::make(options.vmbusd, 0));
  std::vector<double> base;
  std::vector<double> doorbell;
  std::vector<double> interrupt;
  for (std::uint32_t round = 0; round < options.rounds; ++round) {
    VMBUSD_TRY(const double both_poll, awake->round(options.requests, Guest::kPolls));
    VMBUSD_TRY(const double host_sleeps, asleep->round(options.requests, Guest::kPolls));
    VMBUSD_TRY(const double both_sleep, asleep->round(options.requests, Guest::kSleeps));
    base.push_back(both_poll);
    doorbell.push_back(host_sleeps - both_poll);
    interrupt.push_back(both_sleep - host_sleeps);
  }
  nlohmann::json rows = nlohmann::json::array();
  const auto add = [&](const char* what, std::vector<double>& values) {
    const Spread spread = spread_of(std::move(values));
    if (!quiet)
      fmt::print("{:42} {:8.2f} us ({:.2f}..{:.2f})\n", what, spread.median, spread.least, spread.most);
    rows.push_back({{"what", what},
                    {"us", {{"median", spread.median}, {"least", spread.least}, {"most", spread.most}}}});
  };
  add("request and answer, both sides polling", base);
  add("doorbell to a sleeping host's handler", doorbell);
  add("interrupt to a sleeping guest's handler", interrupt);
  return rows;
}

}  // namespace vmbusd::bench
