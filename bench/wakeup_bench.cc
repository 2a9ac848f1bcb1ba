#include "bench/wakeup_bench.h"

#include <sched.h>
#include <sys/resource.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "bench/running_host.h"
#include "guest/disk.h"
#include "guest/guest_channel.h"
#include "guest/stor_client.h"

namespace vmbusd::bench {
namespace {

using Clock = std::chrono::steady_clock;

// The share of a round's requests that may find a side otherwise than it was meant to be; more, and there is
// no figure.
constexpr double kStrayMax = 0.1;

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

  // Its worker on `cpu` only, which is not the calling thread's: else the one that goes to sleep leaves its
  // processor to the other, and no processor is woken.
  [[nodiscard]] Result<void> run_on(std::size_t cpu) { return host_->run_on(cpu); }

  struct Round {
    double us = 0;     // median from the request to its answer, of those in which the guest did as it was to
    double guest = 0;  // the share of these
    double host_sleeps = 0;  // by request
  };
  [[nodiscard]] Result<Round> round(std::uint32_t requests, Guest guest) {
    std::vector<double> values;
    values.reserve(requests);
    const std::uint64_t sleeps = host_->sleeps();
    for (std::uint32_t i = 0; i < requests; ++i) {
      std::this_thread::sleep_for(kPause);
      VMBUSD_TRY(const Ping done, ping(guest));
      if (done.slept == (guest == Guest::kSleeps)) values.push_back(done.us);
    }
    const auto count = static_cast<double>(requests);
    Round round;
    round.guest = static_cast<double>(values.size()) / count;
    round.host_sleeps = static_cast<double>(host_->sleeps() - sleeps) / count;
    round.us = spread_of(std::move(values)).median;
    return round;
  }

 private:
  Pinger() = default;

  // How often the calling thread went to sleep. [getrusage(2): ru_nvcsw]
  static long sleeps_of_this_thread() {
    rusage usage{};
    ::getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
  }

  struct Ping {
    double us = 0;
    bool slept = false;  // the guest, before the answer came
  };
  // TEST UNIT READY, which the handler itself answers.
  [[nodiscard]] Result<Ping> ping(Guest guest) {
    const long sleeps = sleeps_of_this_thread();
    const auto begin = Clock::now();
    VMBUSD_TRY(const std::optional<std::uint64_t> id, client_->submit(guest::StorCommand{.cdb_length = 6}));
    if (!id) return fail(Errc::kLimit, "a request is still in flight");
    VMBUSD_CHECK(client_->flush());
    for (;;) {
      VMBUSD_TRY(const std::uint32_t polled, client_->poll([](const guest::StorCompletion&) {}));
      if (polled != 0) break;
      if (guest == Guest::kSleeps) VMBUSD_CHECK(client_->wait());
    }
    const double us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
    return Ping{us, sleeps_of_this_thread() != sleeps};
  }

  std::unique_ptr<RunningHost> host_;
  std::unique_ptr<guest::GuestChannel> channel_;
  std::unique_ptr<guest::StorClient> client_;
};

// Two processors that the calling thread may run on. Errc::kUnsupported where it has but one.
Result<std::pair<std::size_t, std::size_t>> two_cpus() {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0)
    return fail_os(errno, "cannot ask for processors");
  std::vector<std::size_t> cpus;
  for (std::size_t cpu = 0; cpu < CPU_SETSIZE && cpus.size() < 2; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) cpus.push_back(cpu);
  }
  if (cpus.size() < 2) return fail(Errc::kUnsupported, "two processors are needed, one for each side");
  return std::pair(cpus[0], cpus[1]);
}

enum class Host { kPolls, kSleeps };

// What is wrong with a round; empty: nothing.
std::string flaw_of(const Pinger::Round& round, Host host, Guest guest) {
  if (round.guest < 1 - kStrayMax)
    return guest == Guest::kSleeps ? "the guest did not sleep" : "the guest slept";
  if (host == Host::kSleeps && round.host_sleeps < 1 - kStrayMax) return "the host did not sleep";
  if (host == Host::kPolls && round.host_sleeps > kStrayMax) return "the host slept";
  return {};
}

// A value of each round, unless one had a flaw.
struct Figure {
  const char* what;
  std::vector<double> us;
  std::string refused;
  double host_sleeps = 0;  // by request, of the last round
  double guest_sleeps = 0;
};

nlohmann::json row_of(Figure& figure) {
  nlohmann::json row = {{"what", figure.what},
                        {"host_sleeps_per_request", figure.host_sleeps},
                        {"guest_sleeps_per_request", figure.guest_sleeps}};
  if (!figure.refused.empty()) {
    row["us"] = nullptr;
    row["refused"] = figure.refused;
    return row;
  }
  const Spread spread = spread_of(std::move(figure.us));
  row["us"] = {{"median", spread.median}, {"least", spread.least}, {"most", spread.most}};
  return row;
}

void print_row(const nlohmann::json& row) {
  fmt::print("{:42} ", row["what"].get<std::string>());
  if (const nlohmann::json& us = row["us"]; us.is_null()) {
    fmt::print("no figure: {}", row["refused"].get<std::string>());
  } else {
    fmt::print("{:8.2f} us ({:.2f}..{:.2f})", us["median"].get<double>(), us["least"].get<double>(),
               us["most"].get<double>());
  }
  fmt::print("  sleeps by request: host {:.2f}, guest {:.2f}\n", row["host_sleeps_per_request"].get<double>(),
             row["guest_sleeps_per_request"].get<double>());
}

}  // namespace

Result<nlohmann::json> measure_wakeup(const WakeupOptions& options, bool quiet) {
  VMBUSD_TRY(const auto cpus, two_cpus());
  VMBUSD_TRY(const std::unique_ptr<Pinger> awake, Pinger::make(options.vmbusd, 10'000));
  VMBUSD_TRY(const std::unique_ptr<Pinger> asleep, Pinger::make(options.vmbusd, 0));
  cpu_set_t ours;
  CPU_ZERO(&ours);
  CPU_SET(cpus.first, &ours);
  if (::sched_setaffinity(0, sizeof ours, &ours) != 0) return fail_os(errno, "cannot choose a processor");
  VMBUSD_CHECK(awake->run_on(cpus.second));
  VMBUSD_CHECK(asleep->run_on(cpus.second));
  Figure base{"request and answer, both sides polling", {}, {}};
  Figure doorbell{"doorbell to a sleeping host's handler", {}, {}};
  Figure interrupt{"interrupt to a sleeping guest's handler", {}, {}};
  for (std::uint32_t round = 0; round < options.rounds; ++round) {
    VMBUSD_TRY(const Pinger::Round both_poll, awake->round(options.requests, Guest::kPolls));
    VMBUSD_TRY(const Pinger::Round host_sleeps, asleep->round(options.requests, Guest::kPolls));
    VMBUSD_TRY(const Pinger::Round both_sleep, asleep->round(options.requests, Guest::kSleeps));
    base.us.push_back(both_poll.us);
    doorbell.us.push_back(host_sleeps.us - both_poll.us);
    interrupt.us.push_back(both_sleep.us - host_sleeps.us);
    const std::string awake_flaw = flaw_of(both_poll, Host::kPolls, Guest::kPolls);
    const std::string host_flaw = flaw_of(host_sleeps, Host::kSleeps, Guest::kPolls);
    const std::string guest_flaw = flaw_of(both_sleep, Host::kSleeps, Guest::kSleeps);
    // A difference is as good as the worse of its two.
    if (!awake_flaw.empty()) base.refused = doorbell.refused = awake_flaw;
    if (!host_flaw.empty()) doorbell.refused = interrupt.refused = host_flaw;
    if (!guest_flaw.empty()) interrupt.refused = guest_flaw;
    base.host_sleeps = both_poll.host_sleeps;
    doorbell.host_sleeps = host_sleeps.host_sleeps;
    interrupt.host_sleeps = both_sleep.host_sleeps;
    base.guest_sleeps = 1 - both_poll.guest;
    doorbell.guest_sleeps = 1 - host_sleeps.guest;
    interrupt.guest_sleeps = both_sleep.guest;
  }
  nlohmann::json rows = nlohmann::json::array();
  for (Figure* const figure : {&base, &doorbell, &interrupt}) {
    rows.push_back(row_of(*figure));
    if (!quiet) print_row(rows.back());
  }
  return rows;
}

}  // namespace vmbusd::bench
