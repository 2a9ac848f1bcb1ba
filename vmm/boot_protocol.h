// What a boot loader and an x86-64 Linux kernel hand each other. [linux: Documentation/arch/x86/boot.rst,
// arch/x86/include/uapi/asm/bootparam.h]
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/wire.h"

namespace vmbusd::vmm {

inline constexpr std::uint32_t kE820Ram = 1;
inline constexpr std::uint32_t kE820Reserved = 2;

struct [[gnu::packed]] E820Entry {
  std::uint64_t gpa;
  std::uint64_t size;
  std::uint32_t type;
};
static_assert(kIsWire<E820Entry, 20>);

inline constexpr std::size_t kSetupHeaderOffset = 0x1f1;  // in a bzImage and in the zero page
inline constexpr std::uint16_t kBootFlag = 0xaa55;
inline constexpr std::uint32_t kSetupMagic = 0x53726448;  // "HdrS"
inline constexpr std::uint16_t kBootVersion64 = 0x020c;   // the first with xloadflags
inline constexpr std::uint8_t kLoadedHigh = 1u << 0;      // loadflags
inline constexpr std::uint16_t kXloadKernel64 = 1u << 0;  // xloadflags: 64-bit entry point at 0x200
inline constexpr std::uint64_t kEntry64Offset = 0x200;    // from the protected-mode kernel's start
inline constexpr std::uint8_t kLoaderUndefined = 0xff;    // type_of_loader
inline constexpr std::uint32_t kSectorSize = 512;
inline constexpr std::uint8_t kSetupSectorsDefault = 4;  // where setup_sects is 0

struct [[gnu::packed]] SetupHeader {
  std::uint8_t setup_sects;
  std::uint16_t root_flags;
  std::uint32_t syssize;
  std::uint16_t ram_size;
  std::uint16_t vid_mode;
  std::uint16_t root_dev;
  std::uint16_t boot_flag;
  std::uint8_t jump_opcode;
  std::uint8_t jump_offset;  // the header ends this far behind the jump
  std::uint32_t header;
  std::uint16_t version;
  std::uint32_t realmode_swtch;
  std::uint16_t start_sys_seg;
  std::uint16_t kernel_version;
  std::uint8_t type_of_loader;
  std::uint8_t loadflags;
  std::uint16_t setup_move_size;
  std::uint32_t code32_start;
  std::uint32_t ramdisk_image;
  std::uint32_t ramdisk_size;
  std::uint32_t bootsect_kludge;
  std::uint16_t heap_end_ptr;
  std::uint8_t ext_loader_ver;
  std::uint8_t ext_loader_type;
  std::uint32_t cmd_line_ptr;
  std::uint32_t initrd_addr_max;
  std::uint32_t kernel_alignment;
  std::uint8_t relocatable_kernel;
  std::uint8_t min_alignment;
  std::uint16_t xloadflags;
  std::uint32_t cmdline_size;
  std::uint32_t hardware_subarch;
  std::uint64_t hardware_subarch_data;
  std::uint32_t payload_offset;
  std::uint32_t payload_length;
  std::uint64_t setup_data;
  std::uint64_t pref_address;
  std::uint32_t init_size;
  std::uint32_t handover_offset;
  std::uint32_t kernel_info_offset;
};
static_assert(kIsWire<SetupHeader, 123>);
static_assert(offsetof(SetupHeader, jump_opcode) == 0x200 - kSetupHeaderOffset &&
              offsetof(SetupHeader, header) == 0x202 - kSetupHeaderOffset &&
              offsetof(SetupHeader, type_of_loader) == 0x210 - kSetupHeaderOffset &&
              offsetof(SetupHeader, cmd_line_ptr) == 0x228 - kSetupHeaderOffset &&
              offsetof(SetupHeader, xloadflags) == 0x236 - kSetupHeaderOffset &&
              offsetof(SetupHeader, pref_address) == 0x258 - kSetupHeaderOffset &&
              offsetof(SetupHeader, init_size) == 0x260 - kSetupHeaderOffset);

inline constexpr std::size_t kE820EntriesMax = 128;

// struct boot_params, "the zero page". What this loader leaves zero is not named.
struct [[gnu::packed]] ZeroPage {
  std::array<std::uint8_t, 0x070> screen_info_and_more;
  std::uint64_t acpi_rsdp_addr;  // 2.14; older kernels search 0xe0000..0xfffff
  std::array<std::uint8_t, 0x1e8 - 0x078> unused_1;
  std::uint8_t e820_entries;
  std::array<std::uint8_t, 0x1f1 - 0x1e9> unused_2;
  SetupHeader setup;
  std::array<std::uint8_t, 0x2d0 - 0x26c> unused_3;
  std::array<E820Entry, kE820EntriesMax> e820;
  std::array<std::uint8_t, 0x1000 - 0xcd0> unused_4;
};
static_assert(kIsWire<ZeroPage, 4096>);
static_assert(offsetof(ZeroPage, acpi_rsdp_addr) == 0x070 && offsetof(ZeroPage, e820_entries) == 0x1e8 &&
              offsetof(ZeroPage, setup) == kSetupHeaderOffset && offsetof(ZeroPage, e820) == 0x2d0);

}  // namespace vmbusd::vmm
