#include "vmm/acpi.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

#include "base/assert.h"
#include "base/wire.h"
#include "vmm/hypervisor.h"
#include "vmm/memory_map.h"

// Made by iasl -tc of dsdt.asl: unsigned char dsdt_aml_code[].
#include "dsdt.hex"

namespace vmbusd::vmm {

namespace {

struct [[gnu::packed]] RootPointer {  // [ACPI 6.4: Root System Description Pointer]
  std::array<char, 8> signature;
  std::uint8_t checksum;  // of the first 20 bytes
  std::array<char, 6> oem_id;
  std::uint8_t revision;
  std::uint32_t rsdt_address;
  std::uint32_t length;
  std::uint64_t xsdt_address;
  std::uint8_t extended_checksum;  // of all 36
  std::array<std::uint8_t, 3> reserved;
};
static_assert(kIsWire<RootPointer, 36>);

struct [[gnu::packed]] TableHeader {  // [ACPI 6.4: System Description Table Header]
  std::array<char, 4> signature;
  std::uint32_t length;
  std::uint8_t revision;
  std::uint8_t checksum;
  std::array<char, 6> oem_id;
  std::array<char, 8> oem_table_id;
  std::uint32_t oem_revision;
  std::array<char, 4> creator_id;
  std::uint32_t creator_revision;
};
static_assert(kIsWire<TableHeader, 36>);

struct [[gnu::packed]] GenericAddress {  // [ACPI 6.4: Generic Address Structure]
  std::uint8_t space;
  std::uint8_t bit_width;
  std::uint8_t bit_offset;
  std::uint8_t access_size;
  std::uint64_t address;
};
static_assert(kIsWire<GenericAddress, 12>);

// Fixed ACPI Description Table. In a hardware-reduced one most of the fields mean nothing; those are not
// named.
struct [[gnu::packed]] Fadt {  // [ACPI 6.4: Fixed ACPI Description Table]
  TableHeader header;
  std::array<std::uint8_t, 45 - 36> unused_1;
  std::uint8_t preferred_pm_profile;
  std::array<std::uint8_t, 109 - 46> unused_2;
  std::uint16_t iapc_boot_arch;
  std::uint8_t reserved_1;
  std::uint32_t flags;
  GenericAddress reset_register;
  std::uint8_t reset_value;
  std::uint16_t arm_boot_arch;
  std::uint8_t minor_version;
  std::uint64_t x_firmware_ctrl;
  std::uint64_t x_dsdt;
  std::array<std::uint8_t, 244 - 148> unused_3;
  GenericAddress sleep_control;
  GenericAddress sleep_status;
  std::array<char, 8> hypervisor_vendor;
};
static_assert(kIsWire<Fadt, 276>);
static_assert(offsetof(Fadt, iapc_boot_arch) == 109 && offsetof(Fadt, flags) == 112 &&
              offsetof(Fadt, reset_register) == 116 && offsetof(Fadt, x_dsdt) == 140 &&
              offsetof(Fadt, sleep_control) == 244);

constexpr std::uint8_t kFadtMinor = 4;  // of ACPI 6.4
constexpr std::uint8_t kSpaceSystemIo = 1;
constexpr std::uint8_t kAccessByte = 1;
constexpr std::uint8_t kProfileEnterpriseServer = 4;
constexpr std::uint16_t kBootArchNoVga = 1u << 2;
constexpr std::uint16_t kBootArchNoAspm = 1u << 4;
constexpr std::uint32_t kFadtWbinvd = 1u << 0;
constexpr std::uint32_t kFadtResetRegister = 1u << 10;
constexpr std::uint32_t kFadtHardwareReduced = 1u << 20;

struct [[gnu::packed]] Madt {  // [ACPI 6.4: Multiple APIC Description Table]
  TableHeader header;
  std::uint32_t local_apic_address;
  std::uint32_t flags;
};
static_assert(kIsWire<Madt, 44>);
constexpr std::uint32_t kMadtPcatCompatible = 1u << 0;  // there are two 8259s as well, to be masked

struct [[gnu::packed]] MadtLocalApic {
  std::uint8_t type;
  std::uint8_t length;
  std::uint8_t processor_uid;
  std::uint8_t apic_id;
  std::uint32_t flags;
};
static_assert(kIsWire<MadtLocalApic, 8>);

struct [[gnu::packed]] MadtIoApic {
  std::uint8_t type;
  std::uint8_t length;
  std::uint8_t io_apic_id;
  std::uint8_t reserved;
  std::uint32_t address;
  std::uint32_t gsi_base;
};
static_assert(kIsWire<MadtIoApic, 12>);

struct [[gnu::packed]] MadtLocalApicNmi {
  std::uint8_t type;
  std::uint8_t length;
  std::uint8_t processor_uid;
  std::uint16_t flags;
  std::uint8_t lint;
};
static_assert(kIsWire<MadtLocalApicNmi, 6>);

constexpr std::array<char, 6> kOemId = {'V', 'M', 'B', 'U', 'S', 'D'};
constexpr std::array<char, 8> kOemTableId = {'V', 'M', 'B', 'U', 'S', 'V', 'M', 'M'};
constexpr std::array<char, 4> kCreatorId = {'V', 'M', 'B', 'D'};

// The byte that makes all of `bytes` add up to 0 where the checksum's own is 0.
std::uint8_t checksum(std::span<const std::byte> bytes) {
  std::uint8_t sum = 0;
  for (const std::byte byte : bytes)
    sum = static_cast<std::uint8_t>(sum + std::to_integer<std::uint8_t>(byte));
  return static_cast<std::uint8_t>(-sum);
}

TableHeader make_header(std::string_view signature, std::uint8_t revision) {
  TableHeader header{};
  std::copy_n(signature.begin(), header.signature.size(), header.signature.begin());
  header.revision = revision;
  header.oem_id = kOemId;
  header.oem_table_id = kOemTableId;
  header.oem_revision = 1;
  header.creator_id = kCreatorId;
  header.creator_revision = 1;
  return header;
}

template <WireStruct T>
void append(std::vector<std::byte>& table, const T& value) {
  const std::span<const std::byte> bytes = wire_bytes(value);
  table.insert(table.end(), bytes.begin(), bytes.end());
}

// Fills in length and checksum of a table that is complete.
void seal(std::vector<std::byte>& table) {
  const auto length = static_cast<std::uint32_t>(table.size());
  std::memcpy(table.data() + offsetof(TableHeader, length), &length, sizeof length);
  table[offsetof(TableHeader, checksum)] = std::byte{0};
  table[offsetof(TableHeader, checksum)] = std::byte{checksum(table)};
}

// Replaces dsdt.asl's place holder. A QWord address space descriptor holds, each of 8 bytes: granularity,
// minimum, maximum, translation, length. [ACPI 6.4: QWord Address Space Descriptor]
void patch_mmio_window(std::vector<std::byte>& dsdt, std::uint64_t gpa, std::uint64_t size) {
  constexpr std::uint64_t kPlaceHolder = 0x0badc0de00000000;
  const std::span<const std::byte> wanted = wire_bytes(kPlaceHolder);
  const auto minimum = std::search(dsdt.begin(), dsdt.end(), wanted.begin(), wanted.end());
  VMBUSD_ASSERT(dsdt.end() - minimum >= 32);
  const std::array<std::uint64_t, 4> window = {gpa, gpa + size - 1, 0, size};
  std::memcpy(&*minimum, window.data(), sizeof window);
}

std::vector<std::byte> build_dsdt(const AcpiConfig& config) {
  const std::span<const std::byte> code = std::as_bytes(std::span(dsdt_aml_code));
  std::vector<std::byte> dsdt(code.begin(), code.end());
  patch_mmio_window(dsdt, config.mmio_high_gpa, kMmioHighSize);
  seal(dsdt);
  return dsdt;
}

std::vector<std::byte> build_fadt(std::uint64_t dsdt_gpa) {
  Fadt fadt{};
  fadt.header = make_header("FACP", 6);
  fadt.minor_version = kFadtMinor;
  fadt.preferred_pm_profile = kProfileEnterpriseServer;
  fadt.iapc_boot_arch = kBootArchNoVga | kBootArchNoAspm;  // no 8042 either, by its bit's absence
  fadt.flags = kFadtWbinvd | kFadtResetRegister | kFadtHardwareReduced;
  fadt.reset_register = {kSpaceSystemIo, 8, 0, kAccessByte, kResetPort};
  fadt.reset_value = kResetValue;
  fadt.x_dsdt = dsdt_gpa;
  fadt.sleep_control = {kSpaceSystemIo, 8, 0, kAccessByte, kSleepControlPort};
  fadt.sleep_status = {kSpaceSystemIo, 8, 0, kAccessByte, kSleepControlPort + 1};
  std::vector<std::byte> table;
  append(table, fadt);
  seal(table);
  return table;
}

std::vector<std::byte> build_madt(std::uint32_t vcpus) {
  constexpr std::uint32_t kLocalApicEnabled = 1;
  constexpr std::uint8_t kAllProcessors = 0xff;
  std::vector<std::byte> table;
  append(table, Madt{make_header("APIC", 5), static_cast<std::uint32_t>(kLocalApicGpa), kMadtPcatCompatible});
  for (std::uint32_t i = 0; i < vcpus; ++i) {
    const auto id = static_cast<std::uint8_t>(i);
    append(table, MadtLocalApic{0, sizeof(MadtLocalApic), id, id, kLocalApicEnabled});
  }
  append(table, MadtIoApic{1, sizeof(MadtIoApic), 0, 0, static_cast<std::uint32_t>(kIoApicGpa), 0});
  append(table, MadtLocalApicNmi{4, sizeof(MadtLocalApicNmi), kAllProcessors, 0, 1});
  seal(table);
  return table;
}

std::vector<std::byte> build_xsdt(std::span<const std::uint64_t> tables) {
  std::vector<std::byte> table;
  append(table, make_header("XSDT", 1));
  for (const std::uint64_t gpa : tables) append(table, gpa);
  seal(table);
  return table;
}

RootPointer make_root_pointer(std::uint64_t xsdt_gpa) {
  RootPointer root{};
  constexpr std::string_view kSignature = "RSD PTR ";
  std::copy_n(kSignature.begin(), root.signature.size(), root.signature.begin());
  root.oem_id = kOemId;
  root.revision = 2;
  root.length = sizeof root;
  root.xsdt_address = xsdt_gpa;
  root.checksum = checksum(wire_bytes(root).first(20));
  root.extended_checksum = checksum(wire_bytes(root));
  return root;
}

}  // namespace

std::vector<std::byte> build_acpi_tables(const AcpiConfig& config, std::uint64_t base_gpa) {
  VMBUSD_ASSERT(base_gpa % 16 == 0 && config.vcpus >= 1 && config.vcpus <= kMaxVcpus);
  std::vector<std::byte> area(sizeof(RootPointer));
  const auto place = [&area, base_gpa](std::span<const std::byte> table) {
    area.resize((area.size() + 15) / 16 * 16);
    const std::uint64_t gpa = base_gpa + area.size();
    area.insert(area.end(), table.begin(), table.end());
    return gpa;
  };
  const std::uint64_t dsdt_gpa = place(build_dsdt(config));
  const std::array<std::uint64_t, 2> tables = {place(build_fadt(dsdt_gpa)), place(build_madt(config.vcpus))};
  const RootPointer root = make_root_pointer(place(build_xsdt(tables)));
  std::memcpy(area.data(), &root, sizeof root);
  return area;
}

std::uint64_t store_acpi_tables(const AcpiConfig& config, const GuestRam& ram) {
  const std::vector<std::byte> tables = build_acpi_tables(config, kAcpiGpa);
  VMBUSD_ASSERT(tables.size() <= kAcpiEnd - kAcpiGpa);
  const std::span<std::byte> to = ram.at(kAcpiGpa, tables.size());
  std::memcpy(to.data(), tables.data(), tables.size());
  return kAcpiGpa;
}

}  // namespace vmbusd::vmm
