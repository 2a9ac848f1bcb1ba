#include "vmm/kernel_image.h"

#include <elf.h>

#include <algorithm>
#include <cstring>

#include "vmm/memory_map.h"

namespace vmbusd::vmm {

namespace {

// offset + size <= limit, without overflow.
bool fits(std::uint64_t offset, std::uint64_t size, std::uint64_t limit) {
  return offset <= limit && size <= limit - offset;
}

Result<void> check_placement(std::uint64_t gpa, std::uint64_t size, std::uint64_t ram_end) {
  if (gpa < kHighMemoryGpa) return fail(Errc::kConfig, "the kernel wants to be loaded below 1 MiB");
  if (!fits(gpa, size, ram_end)) {
    return fail(Errc::kConfig, "the kernel does not fit into the guest's memory below 3 GiB");
  }
  return {};
}

// What this loader fills in for a kernel that brings no setup header.
SetupHeader elf_setup_header() {
  SetupHeader setup{};
  setup.boot_flag = kBootFlag;
  setup.header = kSetupMagic;
  setup.version = kBootVersion64;
  setup.loadflags = kLoadedHigh;
  setup.kernel_alignment = static_cast<std::uint32_t>(2 * kMiB);
  return setup;
}

Result<KernelImage> parse_elf(std::span<const std::byte> head, std::uint64_t file_size,
                              std::uint64_t ram_end) {
  Elf64_Ehdr elf;
  if (head.size() < sizeof elf) return fail(Errc::kConfig, "the ELF file is cut short");
  std::memcpy(&elf, head.data(), sizeof elf);
  if (elf.e_ident[EI_CLASS] != ELFCLASS64 || elf.e_ident[EI_DATA] != ELFDATA2LSB ||
      elf.e_machine != EM_X86_64) {
    return fail(Errc::kConfig, "the ELF file is not for x86-64");
  }
  if (elf.e_type != ET_EXEC) return fail(Errc::kConfig, "the ELF file is not an executable kernel");
  if (elf.e_phentsize != sizeof(Elf64_Phdr) || elf.e_phnum == 0 || elf.e_phnum > kElfSegmentsMax) {
    return fail(Errc::kConfig, "the ELF file's program headers are not those of a kernel");
  }
  if (!fits(elf.e_phoff, std::uint64_t{elf.e_phnum} * sizeof(Elf64_Phdr), head.size())) {
    return fail(Errc::kConfig, "the ELF file's program headers are not at its beginning");
  }

  KernelImage image{};
  image.format = KernelImage::Format::kElf;
  image.entry = elf.e_entry;
  image.gpa = ram_end;
  bool entry_inside = false;
  for (std::size_t i = 0; i < elf.e_phnum; ++i) {
    Elf64_Phdr segment;
    std::memcpy(&segment, head.data() + elf.e_phoff + i * sizeof segment, sizeof segment);
    if (segment.p_type != PT_LOAD || segment.p_memsz == 0) continue;
    if (segment.p_filesz > segment.p_memsz || !fits(segment.p_offset, segment.p_filesz, file_size)) {
      return fail(Errc::kConfig, "a segment of the ELF file lies outside of it");
    }
    VMBUSD_CHECK(check_placement(segment.p_paddr, segment.p_memsz, ram_end));
    image.segments.push_back({segment.p_offset, segment.p_filesz, segment.p_paddr, segment.p_memsz});
    image.gpa = std::min(image.gpa, segment.p_paddr);
    image.end = std::max(image.end, segment.p_paddr + segment.p_memsz);
    entry_inside =
        entry_inside || (elf.e_entry >= segment.p_paddr && elf.e_entry - segment.p_paddr < segment.p_filesz);
  }
  if (image.segments.empty()) return fail(Errc::kConfig, "the ELF file has nothing to load");
  if (!entry_inside)
    return fail(Errc::kConfig, "the ELF file's entry point is not a physical address inside of it");
  // An uncompressed kernel has no limits of its own: those of a bzImage of the same age.
  image.initrd_end_max = 0x80000000;
  image.command_line_max = 2047;
  image.setup = elf_setup_header();
  return image;
}

Result<KernelImage> parse_bzimage(std::span<const std::byte> head, std::uint64_t file_size,
                                  std::uint64_t ram_end) {
  SetupHeader setup{};
  if (head.size() < kSetupHeaderOffset + sizeof setup)
    return fail(Errc::kConfig, "the kernel file is cut short");
  std::memcpy(&setup, head.data() + kSetupHeaderOffset, sizeof setup);
  if (setup.boot_flag != kBootFlag || setup.header != kSetupMagic) {
    return fail(Errc::kConfig, "the kernel file is neither a bzImage nor an ELF vmlinux");
  }
  if (setup.version < kBootVersion64 || (setup.xloadflags & kXloadKernel64) == 0 ||
      (setup.loadflags & kLoadedHigh) == 0) {
    return fail(Errc::kConfig, "the bzImage has no 64-bit entry point (boot protocol 2.12, Linux 3.8)");
  }
  // The header ends where its own jump leads; what follows it in the file is code.
  // [linux: boot.rst, "64-bit Boot Protocol"]
  const std::size_t header_end = 0x202 + std::size_t{setup.jump_offset};
  const std::size_t header_size = std::min(header_end - kSetupHeaderOffset, sizeof setup);
  if (header_size < offsetof(SetupHeader, handover_offset)) {
    return fail(Errc::kConfig, "the bzImage's setup header is too short");
  }
  std::memset(reinterpret_cast<char*>(&setup) + header_size, 0, sizeof setup - header_size);

  const std::uint64_t sectors = setup.setup_sects != 0 ? setup.setup_sects : kSetupSectorsDefault;
  const std::uint64_t kernel_offset = (sectors + 1) * kSectorSize;
  if (kernel_offset + kEntry64Offset >= file_size) return fail(Errc::kConfig, "the bzImage is cut short");
  const std::uint64_t kernel_size = file_size - kernel_offset;
  // syssize counts what belongs to the kernel in units of 16 bytes; less in the file means that some is
  // missing.
  if (kernel_size < std::uint64_t{setup.syssize} * 16) return fail(Errc::kConfig, "the bzImage is cut short");
  const std::uint64_t memory_size = std::max<std::uint64_t>(kernel_size, setup.init_size);
  VMBUSD_CHECK(check_placement(setup.pref_address, memory_size, ram_end));

  KernelImage image{};
  image.format = KernelImage::Format::kBzImage;
  image.segments.push_back({kernel_offset, kernel_size, setup.pref_address, kernel_size});
  image.entry = setup.pref_address + kEntry64Offset;
  image.gpa = setup.pref_address;
  image.end = setup.pref_address + memory_size;
  image.initrd_end_max = std::uint64_t{setup.initrd_addr_max} + 1;
  image.command_line_max = setup.cmdline_size != 0 ? setup.cmdline_size : 255;
  image.setup = setup;
  return image;
}

}  // namespace

Result<KernelImage> parse_kernel(std::span<const std::byte> head, std::uint64_t file_size,
                                 std::uint64_t ram_end) {
  if (head.size() >= SELFMAG && std::memcmp(head.data(), ELFMAG, SELFMAG) == 0) {
    return parse_elf(head, file_size, ram_end);
  }
  return parse_bzimage(head, file_size, ram_end);
}

}  // namespace vmbusd::vmm
