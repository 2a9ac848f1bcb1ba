#include "vmm/loader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "base/assert.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/boot_protocol.h"
#include "vmm/kernel_image.h"
#include "vmm/memory_map.h"

namespace vmbusd::vmm {

namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint16_t kBootCs = 0x10;  // __BOOT_CS and __BOOT_DS, which the protocol asks for
constexpr std::uint16_t kBootDs = 0x18;

struct OpenFile {
  UniqueFd fd;
  std::uint64_t size;
};

Result<OpenFile> open_file(const std::string& path) {
  OpenFile file{UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC)), 0};
  if (!file.fd) return fail_os(errno, "cannot open");
  struct stat info {};
  if (::fstat(file.fd.get(), &info) != 0) return fail_os(errno, "cannot stat");
  if (!S_ISREG(info.st_mode)) return fail(Errc::kConfig, "not a regular file");
  file.size = static_cast<std::uint64_t>(info.st_size);
  return file;
}

// Fills `to` from the file; a file that shrank meanwhile is an error.
Result<void> read_exactly(const OpenFile& file, std::uint64_t offset, std::span<std::byte> to) {
  while (!to.empty()) {
    const ssize_t got = ::pread(file.fd.get(), to.data(), to.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_os(errno, "cannot read");
    if (got == 0) return fail(Errc::kConfig, "file changed while it was read");
    to = to.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return {};
}

template <typename T>
void store(const GuestRam& ram, std::uint64_t gpa, const T& value) {
  const std::span<std::byte> to = ram.at(gpa, sizeof value);
  VMBUSD_ASSERT(!to.empty());  // below 1 MiB, which every guest has
  std::memcpy(to.data(), &value, sizeof value);
}

Result<KernelImage> load_image(const OpenFile& file, const GuestRam& ram) {
  std::vector<std::byte> head(std::min<std::uint64_t>(file.size, kKernelHeadSize));
  VMBUSD_CHECK(read_exactly(file, 0, head));
  VMBUSD_TRY(KernelImage image, parse_kernel(head, file.size, low_memory_size(ram.size())));
  for (const KernelImage::Segment& segment : image.segments) {
    const std::span<std::byte> to = ram.at(segment.gpa, segment.memory_size);
    VMBUSD_ASSERT(to.size() == segment.memory_size);  // parse_kernel's promise
    VMBUSD_CHECK(read_exactly(file, segment.file_offset, to.first(segment.file_size)));
    std::memset(to.data() + segment.file_size, 0, segment.memory_size - segment.file_size);
  }
  return image;
}

// As high as the kernel allows, where it is out of the way of whatever the kernel unpacks.
Result<std::uint64_t> load_initrd(const OpenFile& file, const GuestRam& ram, const KernelImage& image) {
  const std::uint64_t limit = std::min(low_memory_size(ram.size()), image.initrd_end_max);
  if (file.size == 0) return fail(Errc::kConfig, "file is empty");
  if (file.size > limit || (limit - file.size) / kPage * kPage < image.end) {
    return fail(Errc::kConfig,
                "does not fit into the guest's memory beside the kernel; give it more by --memory");
  }
  const std::uint64_t gpa = (limit - file.size) / kPage * kPage;
  VMBUSD_CHECK(read_exactly(file, 0, ram.at(gpa, file.size)));
  return gpa;
}

// Maps the first 4 GiB onto themselves in pages of 2 MiB.
void store_page_tables(const GuestRam& ram) {
  constexpr std::uint64_t kPresentWritable = 0x3;
  constexpr std::uint64_t kLargePage = 0x80;
  constexpr std::uint64_t kPdpt = kPageTablesGpa + kPage;
  constexpr std::uint64_t kDirectories = kPdpt + kPage;
  using Table = std::array<std::uint64_t, 512>;
  Table pml4{};
  pml4[0] = kPdpt | kPresentWritable;
  Table pdpt{};
  for (std::uint64_t gib = 0; gib < 4; ++gib) {
    const std::uint64_t directory_gpa = kDirectories + gib * kPage;
    pdpt[gib] = directory_gpa | kPresentWritable;
    Table directory;
    for (std::uint64_t i = 0; i < directory.size(); ++i) {
      directory[i] = (gib * kGiB + i * 2 * kMiB) | kPresentWritable | kLargePage;
    }
    store(ram, directory_gpa, directory);
  }
  store(ram, kPageTablesGpa, pml4);
  store(ram, kPdpt, pdpt);
}

// Flat 64-bit code and data at the selectors that the boot protocol names.
constexpr std::array<std::uint64_t, 4> kGdt = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff};

// Linux restarts by the BIOS where ACPI is hardware-reduced and there is no EFI: in real mode it jumps to
// ffff:0. [linux: arch/x86/kernel/reboot.c, reboot_init(), native_machine_emergency_restart()]
// mov dx, kResetPort; mov al, kResetValue; out dx, al; hlt, again and again
constexpr std::array<std::uint8_t, 9> kBiosReset = {
    0xba, kResetPort & 0xff, kResetPort >> 8, 0xb0, kResetValue, 0xee, 0xf4, 0xeb, 0xfd};
static_assert(kBiosResetGpa + kBiosReset.size() <= kHighMemoryGpa);

void store_zero_page(const GuestRam& ram, const KernelImage& image, std::uint64_t rsdp_gpa,
                     std::uint64_t initrd_gpa, std::uint64_t initrd_size) {
  const auto zero_page = std::make_unique<ZeroPage>();
  zero_page->acpi_rsdp_addr = rsdp_gpa;
  zero_page->setup = image.setup;
  zero_page->setup.type_of_loader = kLoaderUndefined;
  zero_page->setup.cmd_line_ptr = static_cast<std::uint32_t>(kCommandLineGpa);
  zero_page->setup.ramdisk_image = static_cast<std::uint32_t>(initrd_gpa);
  zero_page->setup.ramdisk_size = static_cast<std::uint32_t>(initrd_size);
  const std::vector<E820Entry> map = e820_map(ram.size());
  zero_page->e820_entries = static_cast<std::uint8_t>(map.size());
  std::copy(map.begin(), map.end(), zero_page->e820.begin());
  store(ram, kZeroPageGpa, *zero_page);
}

}  // namespace

Result<BootState> load_kernel(const BootSource& source, const GuestRam& ram, std::uint64_t rsdp_gpa,
                              std::string& error_text) {
  const auto blame = [&error_text](const char* option, const std::string& path, const Error& error) {
    error_text = fmt::format("{} {}: {}", option, path, describe(error));
    return tl::unexpected(error);
  };

  const Result<OpenFile> kernel = open_file(source.kernel_path);
  if (!kernel) return blame("--kernel", source.kernel_path, kernel.error());
  const Result<KernelImage> image = load_image(*kernel, ram);
  if (!image) return blame("--kernel", source.kernel_path, image.error());

  std::uint64_t initrd_gpa = 0;
  std::uint64_t initrd_size = 0;
  if (!source.initrd_path.empty()) {
    const Result<OpenFile> initrd = open_file(source.initrd_path);
    if (!initrd) return blame("--initrd", source.initrd_path, initrd.error());
    const Result<std::uint64_t> gpa = load_initrd(*initrd, ram, *image);
    if (!gpa) return blame("--initrd", source.initrd_path, gpa.error());
    initrd_gpa = *gpa;
    initrd_size = initrd->size;
  }

  const std::string& command_line = source.command_line;
  const std::uint64_t command_line_max = std::min(image->command_line_max, kCommandLineSizeMax - 1);
  if (command_line.size() > command_line_max) {
    error_text = fmt::format("--append: {} bytes are too long, the kernel takes {}", command_line.size(),
                             command_line_max);
    return fail(Errc::kConfig, "command line is too long");
  }
  const std::span<std::byte> to = ram.at(kCommandLineGpa, command_line.size() + 1);
  std::memcpy(to.data(), command_line.c_str(), command_line.size() + 1);

  store_page_tables(ram);
  store(ram, kGdtGpa, kGdt);
  store(ram, kBiosResetGpa, kBiosReset);
  store_zero_page(ram, *image, rsdp_gpa, initrd_gpa, initrd_size);
  return BootState{
      .rip = image->entry,
      .rsi = kZeroPageGpa,
      .cr3 = kPageTablesGpa,
      .gdt_gpa = kGdtGpa,
      .gdt_limit = sizeof kGdt - 1,
      .code_selector = kBootCs,
      .data_selector = kBootDs,
  };
}

}  // namespace vmbusd::vmm
