// The guest's ACPI tables: RSDP, XSDT, FADT (hardware-reduced), MADT, DSDT.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "vmm/guest_ram.h"

namespace vmbusd::vmm {

struct AcpiConfig {
  std::uint32_t vcpus;          // local APIC ids 0..vcpus-1
  std::uint64_t mmio_high_gpa;  // of VMBus' window above RAM, kMmioHighSize bytes
};

// The tables one after the other as they are to stand at `base_gpa` (16-byte aligned), the RSDP first.
[[nodiscard]] std::vector<std::byte> build_acpi_tables(const AcpiConfig& config, std::uint64_t base_gpa);

// Writes the tables into the guest's reserved area. Returns the RSDP's address.
[[nodiscard]] std::uint64_t store_acpi_tables(const AcpiConfig& config, const GuestRam& ram);

}  // namespace vmbusd::vmm
