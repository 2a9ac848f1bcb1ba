#include "vmm/acpi.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

#include "tests/catch.h"
#include "vmm/hypervisor.h"
#include "vmm/memory_map.h"

namespace vmbusd::vmm {

namespace {

template <typename T>
T load(std::span<const std::byte> bytes, std::size_t offset) {
  T value;
  REQUIRE(offset + sizeof value <= bytes.size());
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

std::uint8_t sum(std::span<const std::byte> bytes) {
  std::uint8_t total = 0;
  for (const std::byte byte : bytes)
    total = static_cast<std::uint8_t>(total + std::to_integer<std::uint8_t>(byte));
  return total;
}

// Finds tables as a guest does: from the RSDP through the XSDT.
class Tables {
 public:
  Tables(const AcpiConfig& config, std::uint64_t base)
      : bytes_(build_acpi_tables(config, base)), base_(base) {}

  [[nodiscard]] std::span<const std::byte> root() const { return std::span(bytes_).first(36); }
  [[nodiscard]] std::span<const std::byte> at(std::uint64_t gpa) const {
    REQUIRE(gpa >= base_);
    const std::span<const std::byte> rest = std::span(bytes_).subspan(gpa - base_);
    return rest.first(load<std::uint32_t>(rest, 4));
  }
  [[nodiscard]] std::span<const std::byte> xsdt() const { return at(load<std::uint64_t>(root(), 24)); }
  [[nodiscard]] std::span<const std::byte> find(std::string_view signature) const {
    for (std::size_t offset = 36; offset < xsdt().size(); offset += 8) {
      const auto table = at(load<std::uint64_t>(xsdt(), offset));
      if (std::memcmp(table.data(), signature.data(), 4) == 0) return table;
    }
    FAIL("no table " << signature);
    return {};
  }
  [[nodiscard]] std::span<const std::byte> dsdt() const { return at(load<std::uint64_t>(find("FACP"), 140)); }

 private:
  std::vector<std::byte> bytes_;
  std::uint64_t base_;
};

constexpr AcpiConfig kConfig{.vcpus = 4, .mmio_high_gpa = 8 * kGiB};

// Runs iasl's disassembler over a table and returns its source.
std::string disassemble(std::span<const std::byte> table) {
  std::string folder = (std::filesystem::temp_directory_path() / "vmm-acpi-XXXXXX").string();
  REQUIRE(::mkdtemp(folder.data()) != nullptr);
  const std::string aml = folder + "/table.aml";
  std::ofstream(aml, std::ios::binary)
      .write(reinterpret_cast<const char*>(table.data()), static_cast<std::streamsize>(table.size()));
  const std::string command = std::string(VMBUSD_IASL) + " -d " + aml + " >" + folder + "/log 2>&1";
  const int status = std::system(command.c_str());  // NOLINT(cert-env33-c,concurrency-mt-unsafe)
  std::ostringstream text;
  std::ostringstream log;
  text << std::ifstream(folder + "/table.dsl").rdbuf();
  log << std::ifstream(folder + "/log").rdbuf();
  std::filesystem::remove_all(folder);
  INFO(log.str());
  CHECK(status == 0);
  CHECK(log.str().find("Error") == std::string::npos);
  CHECK(log.str().find("Warning") == std::string::npos);
  return text.str();
}

}  // namespace

TEST_CASE("every ACPI table adds up to zero", "[vmm]") {
  const Tables tables(kConfig, kAcpiGpa);
  CHECK(std::memcmp(tables.root().data(), "RSD PTR ", 8) == 0);
  CHECK(sum(tables.root().first(20)) == 0);
  CHECK(sum(tables.root()) == 0);
  CHECK(sum(tables.xsdt()) == 0);
  CHECK(sum(tables.find("FACP")) == 0);
  CHECK(sum(tables.find("APIC")) == 0);
  CHECK(sum(tables.dsdt()) == 0);
}

TEST_CASE("ACPI tables of the most vCPUs fit into their area", "[vmm]") {
  const std::vector<std::byte> tables =
      build_acpi_tables({.vcpus = kMaxVcpus, .mmio_high_gpa = 8 * kGiB}, kAcpiGpa);
  CHECK(tables.size() <= kAcpiEnd - kAcpiGpa);
}

TEST_CASE("the MADT lists each vCPU's local APIC", "[vmm]") {
  for (const std::uint32_t vcpus : {1u, 4u, kMaxVcpus}) {
    const Tables tables({.vcpus = vcpus, .mmio_high_gpa = 8 * kGiB}, kAcpiGpa);
    const auto madt = tables.find("APIC");
    std::uint32_t seen = 0;
    for (std::size_t offset = 44; offset < madt.size(); offset += load<std::uint8_t>(madt, offset + 1)) {
      if (load<std::uint8_t>(madt, offset) != 0) continue;
      CHECK(load<std::uint8_t>(madt, offset + 3) == seen);
      CHECK(load<std::uint32_t>(madt, offset + 4) == 1);
      ++seen;
    }
    CHECK(seen == vcpus);
  }
}

TEST_CASE("iasl takes the tables apart without complaint", "[vmm]") {
  const Tables tables(kConfig, kAcpiGpa);
  const std::string dsdt = disassemble(tables.dsdt());
  CHECK(dsdt.find("\"VMBus\"") != std::string::npos);
  CHECK(dsdt.find("\"ACPI0004\"") != std::string::npos);
  // The window above RAM: minimum, maximum, length.
  CHECK(dsdt.find("0x0000000200000000") != std::string::npos);
  CHECK(dsdt.find("0x00000002FFFFFFFF") != std::string::npos);
  CHECK(dsdt.find("0x0000000100000000") != std::string::npos);
  CHECK(dsdt.find("0BADC0DE") == std::string::npos);

  const std::string fadt = disassemble(tables.find("FACP"));
  CHECK(fadt.find("Hardware Reduced (V5) : 1") != std::string::npos);
  CHECK(fadt.find("Reset Register Supported (V2) : 1") != std::string::npos);
  disassemble(tables.find("APIC"));
  disassemble(tables.xsdt());
}

}  // namespace vmbusd::vmm
