#include "vmm/loader.h"

#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "vmm/boot_protocol.h"
#include "vmm/memory_map.h"

namespace vmbusd::vmm {

namespace {

constexpr std::uint64_t kKernelGpa = 16 * kMiB;

// A folder of files that goes with the test.
class Files {
 public:
  Files() {
    folder_ = (std::filesystem::temp_directory_path() / "vmm-loader-XXXXXX").string();
    REQUIRE(::mkdtemp(folder_.data()) != nullptr);
  }
  ~Files() { std::filesystem::remove_all(folder_); }
  Files(const Files&) = delete;
  Files& operator=(const Files&) = delete;

  std::string write(const char* name, const std::vector<char>& content) const {
    std::string path = folder_ + "/" + name;
    std::ofstream(path, std::ios::binary).write(content.data(), static_cast<std::streamsize>(content.size()));
    return path;
  }
  std::string missing() const { return folder_ + "/missing"; }

 private:
  std::string folder_;
};

// One segment: 4 KiB of 0xaa, then as much zero.
std::vector<char> elf_kernel() {
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_type = ET_EXEC;
  header.e_machine = EM_X86_64;
  header.e_entry = kKernelGpa;
  header.e_phoff = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = 1;
  Elf64_Phdr segment{};
  segment.p_type = PT_LOAD;
  segment.p_offset = 4096;
  segment.p_paddr = kKernelGpa;
  segment.p_filesz = 4096;
  segment.p_memsz = 8192;
  std::vector<char> file(8192, static_cast<char>(0xaa));
  std::memcpy(file.data(), &header, sizeof header);
  std::memcpy(file.data() + sizeof header, &segment, sizeof segment);
  return file;
}

bool all(std::span<const std::byte> bytes, int value) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [value](std::byte b) { return b == static_cast<std::byte>(value); });
}

template <typename T>
T load(const GuestRam& ram, std::uint64_t gpa) {
  T value;
  std::memcpy(&value, ram.at(gpa, sizeof value).data(), sizeof value);
  return value;
}

}  // namespace

TEST_CASE("kernel, initrd and command line are where the zero page says", "[vmm]") {
  const Files files;
  const std::vector<char> initrd(10'000, 'i');
  const BootSource source{files.write("kernel", elf_kernel()), files.write("initrd", initrd),
                          "console=ttyS0 quiet"};
  const Result<GuestRam> ram = GuestRam::create(kMemorySizeMin, false);
  REQUIRE(ram);
  // What an earlier life of the guest left behind.
  const auto kernel_memory = ram->at(kKernelGpa, 8192);
  std::fill(kernel_memory.begin(), kernel_memory.end(), std::byte{0x55});

  std::string error_text;
  const Result<BootState> state = load_kernel(source, *ram, kAcpiGpa, error_text);
  INFO(error_text);
  REQUIRE(state);
  CHECK(state->rip == kKernelGpa);
  CHECK(state->rsi == kZeroPageGpa);
  CHECK(all(kernel_memory.first(4096), 0xaa));
  CHECK(all(kernel_memory.subspan(4096), 0));

  const auto zero_page = load<ZeroPage>(*ram, kZeroPageGpa);
  CHECK(std::uint64_t{zero_page.acpi_rsdp_addr} == kAcpiGpa);
  CHECK(zero_page.e820_entries == 4);
  CHECK(zero_page.setup.type_of_loader == 0xff);
  const std::string command_line(
      reinterpret_cast<const char*>(ram->at(zero_page.setup.cmd_line_ptr, 64).data()));
  CHECK(command_line == source.command_line);
  CHECK(std::uint32_t{zero_page.setup.ramdisk_size} == initrd.size());
  const std::uint64_t initrd_gpa = zero_page.setup.ramdisk_image;
  CHECK(initrd_gpa % 4096 == 0);
  CHECK(initrd_gpa + initrd.size() <= kMemorySizeMin);
  CHECK(all(ram->at(initrd_gpa, initrd.size()), 'i'));
  CHECK(load<std::uint8_t>(*ram, kBiosResetGpa) == 0xba);
}

TEST_CASE("the first page tables map 4 GiB onto themselves", "[vmm]") {
  const Files files;
  const Result<GuestRam> ram = GuestRam::create(kMemorySizeMin, false);
  REQUIRE(ram);
  std::string error_text;
  const Result<BootState> state =
      load_kernel({files.write("kernel", elf_kernel()), "", ""}, *ram, 0, error_text);
  REQUIRE(state);
  constexpr std::uint64_t kAddressMask = 0x000ffffffffff000;
  for (const std::uint64_t gpa : {std::uint64_t{0}, kKernelGpa, kHoleGpa, 4 * kGiB - 1}) {
    const auto pml4 = load<std::uint64_t>(*ram, state->cr3);
    const auto pdpt = load<std::uint64_t>(*ram, (pml4 & kAddressMask) + (gpa >> 30) * 8);
    const auto directory = load<std::uint64_t>(*ram, (pdpt & kAddressMask) + (gpa >> 21 & 0x1ff) * 8);
    CHECK((pml4 & pdpt & directory & 0x3) == 0x3);
    CHECK((directory & 0x80) != 0);
    CHECK((directory & kAddressMask) == (gpa & ~(2 * kMiB - 1)));
  }
}

TEST_CASE("the loader names the option and what is wrong", "[vmm]") {
  const Files files;
  const std::string kernel = files.write("kernel", elf_kernel());
  const Result<GuestRam> ram = GuestRam::create(kMemorySizeMin, false);
  REQUIRE(ram);
  std::string error_text;

  CHECK_FALSE(load_kernel({files.missing(), "", ""}, *ram, 0, error_text));
  CHECK(error_text == "--kernel " + files.missing() + ": cannot open: No such file or directory");

  CHECK_FALSE(load_kernel({files.write("text", std::vector<char>(4096, 'x')), "", ""}, *ram, 0, error_text));
  CHECK(error_text.find("neither a bzImage nor an ELF vmlinux") != std::string::npos);

  CHECK_FALSE(load_kernel({kernel, files.write("empty", {}), ""}, *ram, 0, error_text));
  CHECK(error_text.find("--initrd") == 0);

  CHECK_FALSE(load_kernel({kernel, files.write("large", std::vector<char>(kMemorySizeMin - kKernelGpa)), ""},
                          *ram, 0, error_text));
  CHECK(error_text.find("give it more by --memory") != std::string::npos);

  CHECK_FALSE(load_kernel({kernel, "", std::string(2048, 'a')}, *ram, 0, error_text));
  CHECK(error_text == "--append: 2048 bytes are too long, the kernel takes 2047");
}

}  // namespace vmbusd::vmm
