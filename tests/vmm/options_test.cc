#include "vmm/options.h"

#include <array>
#include <vector>

#include "tests/catch.h"
#include "vmm/memory_map.h"

namespace vmbusd::vmm {

namespace {

// Any file that is there will do for a kernel: parsing does not read it.
constexpr const char* kFile = "/proc/self/exe";

std::variant<Options, ExitStatus> parse(std::vector<const char*> words) {
  words.insert(words.begin(), "vmbus-vmm");
  return parse_options(static_cast<int>(words.size()), words.data());
}

struct SizeCase {
  const char* text;
  std::optional<std::uint64_t> size;
};
constexpr SizeCase kSizeCases[] = {
    {"1G", kGiB},
    {"512M", 512 * kMiB},
    {"65536K", 64 * kMiB},
    {"1T", 1024 * kGiB},
    {"0M", 0},
    {"", {}},
    {"G", {}},
    {"512", {}},
    {"1g", {}},
    {"1.5G", {}},
    {"-1G", {}},
    {"1GB", {}},
    {"99999999999999999999M", {}},
    {"18014398509481984K", {}},
};

struct BadCase {
  const char* rule;
  std::vector<const char*> words;
};
const BadCase kBadCases[] = {
    {"no kernel", {}},
    {"kernel missing", {"--kernel", "/nonexistent"}},
    {"no such option", {"--kernel", kFile, "--frobnicate"}},
    {"no vCPU", {"--kernel", kFile, "--cpus", "0"}},
    {"too many vCPUs", {"--kernel", kFile, "--cpus", "17"}},
    {"negative vCPUs", {"--kernel", kFile, "--cpus", "-1"}},
    {"words for vCPUs", {"--kernel", kFile, "--cpus", "two"}},
    {"memory without unit", {"--kernel", kFile, "--memory", "1024"}},
    {"too little memory", {"--kernel", kFile, "--memory", "63M"}},
    {"too much memory", {"--kernel", kFile, "--memory", "2T"}},
    {"memory not of whole MiB", {"--kernel", kFile, "--memory", "65537K"}},
    {"odd memory of huge pages", {"--kernel", kFile, "--memory", "65M", "--hugepages"}},
};

}  // namespace

TEST_CASE("sizes have a unit", "[vmm]") {
  for (const SizeCase& c : kSizeCases) {
    DYNAMIC_SECTION("'" << c.text << "'") {
      CHECK(parse_size(c.text) == c.size);
    }
  }
}

TEST_CASE("a full command line", "[vmm]") {
  const auto parsed = parse({"--kernel", kFile, "--initrd", kFile, "--append", "console=ttyS0 quiet",
                             "--cpus", "4", "--memory", "4G", "--console", "none", "--attach",
                             "/run/vmbusd/a.sock", "--hugepages", "--no-reboot", "--verbose"});
  const Options& options = std::get<Options>(parsed);
  CHECK(options.vm.boot.kernel_path == kFile);
  CHECK(options.vm.boot.initrd_path == kFile);
  CHECK(options.vm.boot.command_line == "console=ttyS0 quiet");
  CHECK(options.vm.vcpus == 4);
  CHECK(options.vm.memory_size == 4 * kGiB);
  CHECK(options.vm.console == "none");
  CHECK(options.vm.attach_path == "/run/vmbusd/a.sock");
  CHECK(options.vm.hugepages);
  CHECK(options.vm.no_reboot);
  CHECK(options.verbose);
}

TEST_CASE("a short command line", "[vmm]") {
  const auto parsed = parse({"--kernel", kFile});
  const Options& options = std::get<Options>(parsed);
  CHECK(options.vm.vcpus == 1);
  CHECK(options.vm.memory_size == kGiB);
  CHECK(options.vm.console == "stdio");
  CHECK(options.vm.attach_path.empty());
}

TEST_CASE("a wrong command line is a usage error", "[vmm]") {
  for (const BadCase& c : kBadCases) {
    DYNAMIC_SECTION(c.rule) {
      const auto parsed = parse(c.words);
      REQUIRE(std::holds_alternative<ExitStatus>(parsed));
      CHECK(std::get<ExitStatus>(parsed) == ExitStatus::kUsage);
    }
  }
}

TEST_CASE("asking for help is no error", "[vmm]") {
  CHECK(std::get<ExitStatus>(parse({"--help"})) == ExitStatus::kPowerOff);
  CHECK(std::get<ExitStatus>(parse({"--version"})) == ExitStatus::kPowerOff);
}

}  // namespace vmbusd::vmm
