// Where things are in guest-physical memory.
//
//   0            GDT, zero page, page tables, command line        (e820: usable once the kernel runs)
//   0x9fc00      extended BIOS data area, empty                   (reserved)
//   0xe0000      ACPI tables, found by their signature too        (reserved)
//   0xffff0      what a guest that restarts by the BIOS jumps to  (reserved)
//   1 MiB        RAM: kernel from 16 MiB on, initrd at the top
//   3 GiB        hole: VMBus' low MMIO window, I/O APIC, local APIC
//   4 GiB        RAM beyond 3 GiB
//   above RAM    VMBus' high MMIO window
#pragma once

#include <cstdint>
#include <vector>

#include "vmm/boot_protocol.h"

namespace vmbusd::vmm {

inline constexpr std::uint64_t kKiB = 1ull << 10;
inline constexpr std::uint64_t kMiB = 1ull << 20;
inline constexpr std::uint64_t kGiB = 1ull << 30;

inline constexpr std::uint64_t kGdtGpa = 0x500;
inline constexpr std::uint64_t kZeroPageGpa = 0x7000;
inline constexpr std::uint64_t kPageTablesGpa = 0x9000;  // PML4, PDPT and 4 page directories
inline constexpr std::uint64_t kCommandLineGpa = 0x20000;
inline constexpr std::uint64_t kCommandLineSizeMax = 0x10000;  // with the terminating zero
inline constexpr std::uint64_t kExtendedBiosDataGpa = 0x9fc00;
inline constexpr std::uint64_t kLowMemoryEnd = 0xa0000;
inline constexpr std::uint64_t kAcpiGpa = 0xe0000;
inline constexpr std::uint64_t kAcpiEnd = 0xf0000;
inline constexpr std::uint64_t kBiosResetGpa = 0xffff0;
inline constexpr std::uint64_t kHighMemoryGpa = 0x100000;
inline constexpr std::uint64_t kHoleGpa = 3 * kGiB;
inline constexpr std::uint64_t kHoleEnd = 4 * kGiB;

// The windows from which the guest takes addresses for VMBus devices, those that Hyper-V offers.
// [reference: vmbus 1.1]
inline constexpr std::uint64_t kMmioLowGpa = 0xf8000000;
inline constexpr std::uint64_t kMmioLowSize = 0x06c00000;
inline constexpr std::uint64_t kMmioHighSize = 4 * kGiB;

inline constexpr std::uint64_t kIoApicGpa = 0xfec00000;
inline constexpr std::uint64_t kLocalApicGpa = 0xfee00000;
inline constexpr std::uint32_t kIoApicPins = 24;

inline constexpr std::uint16_t kCom1Port = 0x3f8;
inline constexpr std::uint32_t kCom1Gsi = 4;
inline constexpr std::uint16_t kKeyboardControllerPort = 0x64;
inline constexpr std::uint16_t kRtcPort = 0x70;
inline constexpr std::uint16_t kSleepControlPort = 0x600;  // FADT SLEEP_CONTROL_REG, SLEEP_STATUS_REG follows
inline constexpr std::uint16_t kResetPort = 0xcf9;         // FADT RESET_REG
inline constexpr std::uint8_t kResetValue = 0x06;
inline constexpr std::uint8_t kSleepTypeS5 = 5;  // as dsdt.asl's _S5 says

inline constexpr std::uint64_t kMemorySizeMin = 64 * kMiB;
inline constexpr std::uint64_t kMemorySizeMax = 1024 * kGiB;

// How much of the RAM lies below the hole; the rest starts at kHoleEnd.
[[nodiscard]] constexpr std::uint64_t low_memory_size(std::uint64_t memory_size) {
  return memory_size < kHoleGpa ? memory_size : kHoleGpa;
}
// The first address above RAM and hole.
[[nodiscard]] constexpr std::uint64_t memory_end(std::uint64_t memory_size) {
  return kHoleEnd + (memory_size - low_memory_size(memory_size));
}
[[nodiscard]] constexpr std::uint64_t mmio_high_gpa(std::uint64_t memory_size) {
  return (memory_end(memory_size) + kMmioHighSize - 1) / kMmioHighSize * kMmioHighSize;
}

// The memory map that the kernel is given, sorted, without overlap.
[[nodiscard]] std::vector<E820Entry> e820_map(std::uint64_t memory_size);

}  // namespace vmbusd::vmm
