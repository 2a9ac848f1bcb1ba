#include "bench/idle_bench.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "bench/running_host.h"
#include "guest/guest_channel.h"
#include "guest/stor_client.h"

namespace vmbusd::bench {
namespace {

// A partition has no more devices; what is over it are sub-channels, of which a guest has one less than VPs.
constexpr std::uint32_t kControllersMax = 64;
constexpr std::uint32_t kVps = 8;

// Memory that the process shares with no other: neither the program nor the guest's RAM. [linux:
// Documentation/filesystems/proc.rst, smaps]
std::uint64_t private_kib(pid_t process) {
  std::ifstream file(fmt::format("/proc/{}/smaps_rollup", process));
  std::uint64_t sum = 0;
  for (std::string word; file >> word;) {
    std::uint64_t kib = 0;
    if ((word == "Private_Clean:" || word == "Private_Dirty:") && file >> kib) sum += kib;
  }
  return sum;
}

}  // namespace

Result<nlohmann::json> measure_idle(const std::string& vmbusd, std::uint32_t channels, double seconds) {
  std::string devices;
  for (std::uint32_t i = 0; i < std::min(channels, kControllersMax); ++i) {
    devices += fmt::format(
        "[[partition.scsi]]\nname = 'scsi{}'\nchannels = {}\n[[partition.scsi.disk]]\nlun = 0\n"
        "backend = 'null'\nsize = '1M'\n",
        i, kVps);
  }
  VMBUSD_TRY(const std::unique_ptr<RunningHost> host,
             RunningHost::start(
                 {.vmbusd = vmbusd, .devices = devices, .guest_memory_bytes = 256u << 20, .vp_count = kVps}));
  const std::uint64_t before_kib = private_kib(host->worker());
  std::vector<std::unique_ptr<guest::GuestChannel>> open;
  for (const vmbus::OfferChannel& offer : host->offers(vmbus::kClassScsi)) {
    if (open.size() == channels) break;
    VMBUSD_TRY(std::unique_ptr<guest::GuestChannel> channel, guest::GuestChannel::open(host->bus(), offer));
    guest::StorClient client(*channel, 1);
    VMBUSD_CHECK(client.initialize());
    open.push_back(std::move(channel));
    const auto missing = static_cast<std::uint16_t>(
        std::min<std::size_t>(channels - open.size(), client.properties().max_channel_count));
    if (missing == 0 || channels <= kControllersMax) continue;
    VMBUSD_TRY(const auto status, client.create_sub_channels(missing));
    if (status != storvsp::vstor::Status::kSuccess)
      return fail(Errc::kWrongState, "vmbusd gives no sub-channels");
    for (std::uint16_t i = 0; i < missing; ++i) {
      VMBUSD_TRY(const vmbus::OfferChannel sub_channel, host->bus().wait_offer());
      VMBUSD_TRY(channel, guest::GuestChannel::open(host->bus(), sub_channel));
      open.push_back(std::move(channel));
    }
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(500));  // until they sleep
  ProcessCost cost(host->worker());
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  const ProcessCost::Use use = cost.stop();
  return nlohmann::json{
      {"channels", open.size()},
      {"partition_kib", before_kib},
      {"channels_kib", private_kib(host->worker()) - before_kib},
      {"seconds", seconds},
      {"context_switches", use.context_switches},
      {"system_calls", use.system_calls ? nlohmann::json(*use.system_calls) : nlohmann::json()},
      {"cpu_seconds", use.cpu_seconds}};
}

}  // namespace vmbusd::bench
