#include "vmm/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <filesystem>
#include <iostream>

#include "vmm/memory_map.h"

namespace vmbusd::vmm {

namespace {

constexpr const char* kFooter =
    "The guest's own terminal: Ctrl-A x leaves it and ends the guest, Ctrl-A Ctrl-A sends Ctrl-A.\n"
    "\n"
    "Exit status:\n"
    "  0  the guest powered itself off\n"
    "  1  the host cannot run the guest\n"
    "  2  the command line is wrong\n"
    "  3  the guest asked for a reboot (with --no-reboot)\n"
    "  4  the guest crashed: triple fault, or the end of a guest that had reported a crash\n"
    "  5  vmbusd cannot be reached, or went away before the guest powered itself off\n"
    "  6  stopped by SIGTERM, SIGINT or from the terminal\n";

constexpr std::uint64_t kMemoryUnit = kMiB;
constexpr std::uint64_t kHugePage = 2 * kMiB;
constexpr std::uint32_t kReconnectMax = 24 * 60 * 60;

// CLI11 calls these with the option's words and prints what they return behind the option's name.
std::string check_memory(const std::string& text) {
  const std::optional<std::uint64_t> size = parse_size(text);
  if (size && *size >= kMemorySizeMin && *size <= kMemorySizeMax && *size % kMemoryUnit == 0) return {};
  return fmt::format("'{}' will not do; give a size of whole MiB from {}M to {}G, such as 1G or 512M", text,
                     kMemorySizeMin / kMiB, kMemorySizeMax / kGiB);
}

std::string check_file(const std::string& text) {
  std::error_code error;
  if (std::filesystem::is_regular_file(text, error)) return {};
  return fmt::format("'{}' is not a file", text);
}

std::string check_cpus(const std::string& text) {
  std::uint32_t count = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error == std::errc{} && rest == text.data() + text.size() && count >= 1 && count <= kMaxVcpus)
    return {};
  return fmt::format("'{}' will not do; give a number from 1 to {}", text, kMaxVcpus);
}

}  // namespace

std::optional<std::uint64_t> parse_size(std::string_view text) {
  constexpr std::string_view kUnits = "KMGT";
  if (text.size() < 2) return std::nullopt;
  const std::size_t unit = kUnits.find(text.back());
  if (unit == std::string_view::npos) return std::nullopt;
  text.remove_suffix(1);
  std::uint64_t value = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || rest != text.data() + text.size()) return std::nullopt;
  const std::size_t shift = 10 * (unit + 1);
  if (value > ~std::uint64_t{0} >> shift) return std::nullopt;
  return value << shift;
}

std::variant<Options, ExitStatus> parse_options(int argc, const char* const* argv) {
  Options options;
  VmConfig& vm = options.vm;
  std::string memory = "1G";
  vm.console = "stdio";

  CLI::App app("Boots a Linux guest on KVM whose VMBus devices vmbusd serves.", "vmbus-vmm");
  app.footer(kFooter);
  app.add_option("--kernel", vm.boot.kernel_path, "bzImage or ELF vmlinux to boot")
      ->required()
      ->type_name("FILE")
      ->check(CLI::Validator(check_file, ""));
  app.add_option("--initrd", vm.boot.initrd_path, "initial RAM disk")
      ->type_name("FILE")
      ->check(CLI::Validator(check_file, ""));
  app.add_option("--append", vm.boot.command_line, "kernel command line")->type_name("TEXT");
  app.add_option("--cpus", vm.vcpus, fmt::format("virtual processors, 1 to {}", kMaxVcpus))
      ->type_name("N")
      ->check(CLI::Validator(check_cpus, ""))
      ->default_str("1");
  app.add_option("--memory", memory, "guest memory, such as 512M or 4G")
      ->type_name("SIZE")
      ->check(CLI::Validator(check_memory, ""))
      ->default_str("1G");
  app.add_option("--console", vm.console, "where the serial port goes: stdio, none, or a file's path")
      ->type_name("stdio|none|FILE")
      ->default_str("stdio");
  app.add_option("--attach", vm.attach_path,
                 "vmbusd's socket for this partition; without it the guest has no devices")
      ->type_name("SOCKET");
  app.add_option("--reconnect", vm.reconnect_s,
                 "how many seconds to wait for vmbusd to come back and take up the guest; 0: not at all")
      ->type_name("SECONDS")
      ->check(CLI::Range(0u, kReconnectMax))
      ->default_val(30u);
  app.add_flag("--hugepages", options.vm.hugepages, "take guest memory from huge pages of 2 MiB");
  app.add_flag("--no-reboot", vm.no_reboot, "exit where the guest reboots");
  app.add_flag("--verbose", options.verbose, "tell more");
  app.set_version_flag("--version", "vmbus-vmm " VMBUSD_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? ExitStatus::kPowerOff : ExitStatus::kUsage;
  }
  vm.memory_size = parse_size(memory).value();  // check_memory let it pass
  if (vm.hugepages && vm.memory_size % kHugePage != 0) {
    std::cerr << "--memory: with --hugepages give a multiple of 2M\n";
    return ExitStatus::kUsage;
  }
  return options;
}

}  // namespace vmbusd::vmm
