// A vmbusd of the benchmark's own, and what its partition worker costs.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/temporary_directory.h"
#include "guest/bus_client.h"
#include "guest/child_partition.h"
#include "guest/guest_channel.h"

namespace vmbusd::bench {

// How long a halted processor of the guest's polls for interrupts, unless said otherwise: KVM's own default.
// [linux: arch/x86/include/asm/kvm_host.h, KVM_HALT_POLL_NS_DEFAULT]
inline constexpr std::uint32_t kHaltPollUs = 200;
// How long vmbusd's I/O threads poll, unless said otherwise: its default.
inline constexpr std::uint32_t kPollUs = 50;

// Starts a program, all that it prints in `log`; -1 where there can be no process. It dies with us.
[[nodiscard]] pid_t spawn_process(const std::vector<std::string>& words, const std::string& log);
// Sends the signal and waits for the end. Not above 0: nothing.
void end_process(pid_t process, int signal);

// vmbusd with one partition, and a user-space child partition attached to it that has its offers.
class RunningHost {
 public:
  struct Options {
    std::string vmbusd;   // the program
    std::string devices;  // the partition's part of the configuration file
    std::uint64_t guest_memory_bytes = 128u << 20;
    std::uint32_t vp_count = 1;
    // Of each of the guest's processors: guest::VirtualProcessor::poll_for().
    std::chrono::microseconds halt_poll{0};
  };
  [[nodiscard]] static Result<std::unique_ptr<RunningHost>> start(const Options& options);
  ~RunningHost();
  RunningHost(const RunningHost&) = delete;
  RunningHost& operator=(const RunningHost&) = delete;

  [[nodiscard]] guest::BusClient& bus() { return *bus_; }
  [[nodiscard]] guest::ChildPartition& child() { return *child_; }
  // Offers of primary channels of that class.
  [[nodiscard]] std::vector<vmbus::OfferChannel> offers(const Guid& interface_type) const;
  // The partition worker's process.
  [[nodiscard]] pid_t worker() const { return worker_; }
  // How often its threads went to sleep so far.
  [[nodiscard]] std::uint64_t sleeps() const;
  // All its threads on this processor only, from now on.
  [[nodiscard]] Result<void> run_on(std::size_t cpu);

 private:
  RunningHost() : directory_("/tmp") {}
  [[nodiscard]] Result<void> launch(const Options& options);
  [[nodiscard]] Result<void> attach(const Options& options);

  TemporaryDirectory directory_;
  pid_t daemon_ = -1;
  pid_t worker_ = -1;
  std::unique_ptr<guest::ChildPartition> child_;
  std::unique_ptr<guest::BusClient> bus_;
  std::vector<vmbus::OfferChannel> offers_;
};

// What a process used between its making and stop().
class ProcessCost {
 public:
  explicit ProcessCost(pid_t process);
  ~ProcessCost();
  ProcessCost(const ProcessCost&) = delete;
  ProcessCost& operator=(const ProcessCost&) = delete;

  struct Use {
    double cpu_seconds = 0;
    std::uint64_t context_switches = 0;
    std::optional<std::uint64_t> system_calls;  // empty where perf cannot count them
  };
  [[nodiscard]] Use stop();

 private:
  pid_t process_;
  pid_t perf_ = -1;
  TemporaryDirectory directory_;
  Use before_;
};

// Sorts the values.
struct Spread {
  double median = 0;
  double least = 0;
  double most = 0;
};
[[nodiscard]] Spread spread_of(std::vector<double> values);

}  // namespace vmbusd::bench
