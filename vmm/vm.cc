#include "vmm/vm.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "vmm/acpi.h"
#include "vmm/attachment.h"
#include "vmm/console.h"
#include "vmm/guest_ram.h"
#include "vmm/memory_map.h"
#include "vmm/platform.h"
#include "vmm/vcpu_threads.h"

namespace vmbusd::vmm {

namespace {

// Why the main thread's wait came to an end.
struct Wait {
  std::optional<MachineEnd> end;  // empty: stopped from outside
  bool failed = false;            // the wait itself
};

// The main thread's part: signals, the end of the machine, the console's input.
class MainLoop {
 public:
  explicit MainLoop(Console& console) : console_(console) {}

  [[nodiscard]] Result<void> open() {
    sigset_t stop_signals;
    ::sigemptyset(&stop_signals);
    ::sigaddset(&stop_signals, SIGTERM);
    ::sigaddset(&stop_signals, SIGINT);
    signals_.reset(::signalfd(-1, &stop_signals, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signals_) return fail_os(errno, "cannot create a signal descriptor");
    wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake_) return fail_os(errno, "cannot create an eventfd");
    return {};
  }

  // Makes wait() look around. Any thread.
  void wake() {
    const std::uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof one);
  }

  [[nodiscard]] Wait wait(const VcpuThreads& vcpus, Platform& platform) {
    for (;;) {
      if (const std::optional<MachineEnd> end = vcpus.end()) return {end};
      const bool wants_input = !input_ended_ && platform.console_room() >= kInputChunk;
      std::array<pollfd, 3> fds = {{
          {signals_.get(), POLLIN, 0},
          {wake_.get(), POLLIN, 0},
          {wants_input ? console_.input() : -1, POLLIN, 0},
      }};
      if (::poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) return {.end = {}, .failed = true};
      if (fds[0].revents != 0) return {};
      std::uint64_t count = 0;
      if (fds[1].revents != 0) (void)!::read(wake_.get(), &count, sizeof count);
      if (fds[2].revents != 0 && !take_input(platform)) return {};
    }
  }

 private:
  static constexpr std::size_t kInputChunk = 256;

  // False where the user wants to leave.
  bool take_input(Platform& platform) {
    std::array<std::uint8_t, kInputChunk> buffer;
    const ssize_t got = ::read(console_.input(), buffer.data(), buffer.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return true;
    if (got <= 0) {
      input_ended_ = true;
      return true;
    }
    std::span<std::uint8_t> input = std::span(buffer).first(static_cast<std::size_t>(got));
    bool quit = false;
    if (console_.raw_terminal()) input = escape_.filter(input, quit);
    platform.console_input(input);  // there is room: wants_input
    return !quit;
  }

  Console& console_;
  EscapeFilter escape_;
  UniqueFd signals_;
  UniqueFd wake_;
  bool input_ended_ = false;
};

ExitStatus status_of(const Wait& wait, bool crashed, bool daemon_lost) {
  if (wait.failed) return ExitStatus::kHostError;
  if (!wait.end) return ExitStatus::kStopped;
  if (*wait.end == MachineEnd::kFailed) return ExitStatus::kHostError;
  if (*wait.end == MachineEnd::kTripleFault || crashed) return ExitStatus::kGuestCrash;
  if (daemon_lost) return ExitStatus::kDaemonGone;
  return *wait.end == MachineEnd::kReset ? ExitStatus::kReboot : ExitStatus::kPowerOff;
}

// All that stays over a reboot.
class Vm {
 public:
  Vm(const VmConfig& config, Hypervisor& hypervisor, GuestRam& ram, Console& console, LogScope& log)
      : config_(config),
        hypervisor_(hypervisor),
        ram_(ram),
        log_(log),
        attachment_(config.vcpus, log, std::chrono::seconds(config.reconnect_s)),
        console_(console),
        loop_(console) {}

  [[nodiscard]] ExitStatus run() {
    if (const Result<void> opened = loop_.open(); !opened) return host_error(opened.error());
    if (!config_.attach_path.empty()) {
      std::string error_text;
      if (!attachment_.connect(config_.attach_path, ram_, hypervisor_.event_flags_in_guest_memory(),
                               error_text)) {
        log_.error("{}", error_text);
        return ExitStatus::kDaemonGone;
      }
    }
    for (;;) {
      const std::optional<ExitStatus> status = run_until_reset();
      if (status) return *status;
      log_.info("the guest reboots");
    }
  }

 private:
  ExitStatus host_error(const Error& error) {
    log_.error("{}", describe(error));
    return ExitStatus::kHostError;
  }

  // One life of the machine. A reboot makes a new one: nothing of the old can stay behind. Empty: again.
  [[nodiscard]] std::optional<ExitStatus> run_until_reset() {
    const MachineConfig machine_config{.vcpus = config_.vcpus, .ram = &ram_};
    const Result<std::unique_ptr<Machine>> machine = hypervisor_.create_machine(machine_config, attachment_);
    if (!machine) return host_error(machine.error());
    if (const Result<void> loaded = load(**machine); !loaded) return ExitStatus::kHostError;

    Platform platform(**machine, console_, [this] { loop_.wake(); });
    VcpuThreads vcpus({**machine, platform, attachment_, ram_, log_}, config_.vcpus,
                      [this] { loop_.wake(); });
    if (const Result<void> bound = attachment_.bind(**machine); !bound) {
      attachment_.unbind();
      return host_error(bound.error());
    }
    vcpus.start();
    const Wait wait = loop_.wait(vcpus, platform);
    const bool again = !wait.failed && wait.end == MachineEnd::kReset && !config_.no_reboot;
    if (!again) {
      // From here on neither a daemon nor a console's reader that hangs can hold us.
      attachment_.close();
      console_.give_up();
    }
    vcpus.stop();
    attachment_.unbind();
    if (again) return {};
    return status_of(wait, vcpus.crashed(), attachment_.lost());
  }

  [[nodiscard]] Result<void> load(Machine& machine) {
    const AcpiConfig acpi{.vcpus = config_.vcpus, .mmio_high_gpa = mmio_high_gpa(ram_.size())};
    const std::uint64_t rsdp_gpa = store_acpi_tables(acpi, ram_);
    std::string error_text;
    const Result<BootState> state = load_kernel(config_.boot, ram_, rsdp_gpa, error_text);
    if (!state) {
      log_.error("{}", error_text);
      return tl::unexpected(state.error());
    }
    const Result<void> set = machine.vcpu(0).set_boot_state(*state);
    if (!set) log_.error("{}", describe(set.error()));
    return set;
  }

  const VmConfig& config_;
  Hypervisor& hypervisor_;
  GuestRam& ram_;
  LogScope& log_;
  Attachment attachment_;
  Console& console_;
  MainLoop loop_;
};

}  // namespace

ExitStatus run_vm(const VmConfig& config, Hypervisor& hypervisor, LogScope& log) {
  const std::uint64_t end = mmio_high_gpa(config.memory_size) + kMmioHighSize;
  if (const std::uint32_t bits = hypervisor.physical_address_bits(); bits < 64 && end > 1ull << bits) {
    log.error("--memory: this host's processors address {} bits of guest memory, too few for that much",
              bits);
    return ExitStatus::kHostError;
  }
  Result<GuestRam> ram = GuestRam::create(config.memory_size, config.hugepages);
  if (!ram) {
    log.error("--memory: {}", describe(ram.error()));
    return ExitStatus::kHostError;
  }
  Result<Console> console = Console::open(config.console);
  if (!console) {
    log.error("--console {}: {}", config.console, describe(console.error()));
    return ExitStatus::kHostError;
  }
  Vm vm(config, hypervisor, *ram, *console, log);
  return vm.run();
}

}  // namespace vmbusd::vmm
