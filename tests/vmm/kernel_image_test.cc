#include "vmm/kernel_image.h"

#include <elf.h>

#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "tests/catch.h"
#include "vmm/memory_map.h"

namespace vmbusd::vmm {

namespace {

constexpr std::uint64_t kRamEnd = 512 * kMiB;
constexpr std::uint64_t kLoadGpa = 16 * kMiB;
constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();

// The least that a bzImage of today has: one setup sector and a kernel of 8 sectors.
struct BzImage {
  SetupHeader setup{};
  std::uint64_t file_size = 10 * kSectorSize;

  BzImage() {
    setup.setup_sects = 1;
    setup.boot_flag = kBootFlag;
    setup.header = kSetupMagic;
    setup.version = 0x020f;
    setup.jump_offset = 0x6a;  // to 0x26c, as in Linux 6.1
    setup.loadflags = kLoadedHigh;
    setup.xloadflags = kXloadKernel64;
    setup.initrd_addr_max = 0x7fffffff;
    setup.cmdline_size = 2047;
    setup.pref_address = kLoadGpa;
    setup.init_size = static_cast<std::uint32_t>(32 * kMiB);
    setup.syssize = 8 * kSectorSize / 16;
  }

  [[nodiscard]] Result<KernelImage> parse() const {
    std::vector<std::byte> head(std::min<std::uint64_t>(file_size, kKernelHeadSize));
    const std::size_t stored =
        head.size() > kSetupHeaderOffset ? std::min(sizeof setup, head.size() - kSetupHeaderOffset) : 0;
    std::memcpy(head.data() + kSetupHeaderOffset, &setup, stored);
    return parse_kernel(head, file_size, kRamEnd);
  }
};

struct Elf {
  Elf64_Ehdr header{};
  std::vector<Elf64_Phdr> segments;
  std::uint64_t file_size = kMiB;

  Elf() {
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_type = ET_EXEC;
    header.e_machine = EM_X86_64;
    header.e_entry = kLoadGpa + 0x40;
    header.e_phoff = sizeof header;
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_phnum = 1;
    Elf64_Phdr segment{};
    segment.p_type = PT_LOAD;
    segment.p_offset = 0x1000;
    segment.p_paddr = kLoadGpa;
    segment.p_filesz = 0x8000;
    segment.p_memsz = 0x9000;
    segments.push_back(segment);
  }

  [[nodiscard]] Result<KernelImage> parse() const {
    std::vector<std::byte> head(sizeof header + segments.size() * sizeof(Elf64_Phdr));
    std::memcpy(head.data(), &header, sizeof header);
    std::memcpy(head.data() + sizeof header, segments.data(), segments.size() * sizeof(Elf64_Phdr));
    return parse_kernel(head, file_size, kRamEnd);
  }
};

struct BzImageCase {
  const char* rule;
  void (*change)(BzImage&);
};
constexpr BzImageCase kBadBzImages[] = {
    {"empty file", [](BzImage& k) { k.file_size = 0; }},
    {"file ends before the setup header", [](BzImage& k) { k.file_size = 0x200; }},
    {"file ends inside the setup header", [](BzImage& k) { k.file_size = 0x240; }},
    {"no boot flag", [](BzImage& k) { k.setup.boot_flag = 0; }},
    {"no HdrS", [](BzImage& k) { k.setup.header = 0; }},
    {"boot protocol too old", [](BzImage& k) { k.setup.version = 0x020b; }},
    {"32-bit kernel", [](BzImage& k) { k.setup.xloadflags = 0; }},
    {"zImage, loaded low", [](BzImage& k) { k.setup.loadflags = 0; }},
    {"setup header too short", [](BzImage& k) { k.setup.jump_offset = 0x10; }},
    {"setup code is all there is", [](BzImage& k) { k.file_size = 2 * kSectorSize; }},
    {"more setup sectors than the file has", [](BzImage& k) { k.setup.setup_sects = 0xff; }},
    {"file cut short", [](BzImage& k) { k.setup.syssize = 0x1000; }},
    {"load address below 1 MiB", [](BzImage& k) { k.setup.pref_address = kMiB - 1; }},
    {"load address beyond RAM", [](BzImage& k) { k.setup.pref_address = kRamEnd; }},
    {"load address wraps", [](BzImage& k) { k.setup.pref_address = kMax - 0x100; }},
    {"needs more than there is", [](BzImage& k) { k.setup.init_size = 0xffffffff; }},
};

struct ElfCase {
  const char* rule;
  void (*change)(Elf&);
};
constexpr ElfCase kBadElfs[] = {
    {"32-bit", [](Elf& k) { k.header.e_ident[EI_CLASS] = ELFCLASS32; }},
    {"big-endian", [](Elf& k) { k.header.e_ident[EI_DATA] = ELFDATA2MSB; }},
    {"another machine", [](Elf& k) { k.header.e_machine = EM_AARCH64; }},
    {"a shared object", [](Elf& k) { k.header.e_type = ET_DYN; }},
    {"no program headers", [](Elf& k) { k.header.e_phnum = 0; }},
    {"too many program headers", [](Elf& k) { k.header.e_phnum = 0xffff; }},
    {"program headers of another size", [](Elf& k) { k.header.e_phentsize = 32; }},
    {"program headers beyond the head", [](Elf& k) { k.header.e_phoff = kKernelHeadSize; }},
    {"program headers wrap", [](Elf& k) { k.header.e_phoff = kMax - 8; }},
    {"segment's content beyond the file", [](Elf& k) { k.file_size = 0x8fff; }},
    {"segment's offset wraps", [](Elf& k) { k.segments[0].p_offset = kMax - 0x10; }},
    {"content larger than its memory", [](Elf& k) { k.segments[0].p_memsz = 0x7fff; }},
    {"segment below 1 MiB", [](Elf& k) { k.segments[0].p_paddr = 0; }},
    {"segment beyond RAM", [](Elf& k) { k.segments[0].p_paddr = kRamEnd - 0x8fff; }},
    {"segment wraps", [](Elf& k) { k.segments[0].p_memsz = kMax; }},
    {"entry point outside", [](Elf& k) { k.header.e_entry = kLoadGpa + 0x8000; }},
    {"entry point is a virtual address", [](Elf& k) { k.header.e_entry = 0xffffffff81000000; }},
    {"nothing to load", [](Elf& k) { k.segments[0].p_type = PT_NOTE; }},
};

}  // namespace

TEST_CASE("a bzImage is loaded where it wants to be", "[vmm]") {
  const Result<KernelImage> image = BzImage().parse();
  REQUIRE(image);
  CHECK(image->format == KernelImage::Format::kBzImage);
  REQUIRE(image->segments.size() == 1);
  CHECK(image->segments[0].file_offset == 2 * kSectorSize);
  CHECK(image->segments[0].file_size == 8 * kSectorSize);
  CHECK(image->segments[0].gpa == kLoadGpa);
  CHECK(image->entry == kLoadGpa + 0x200);
  CHECK(image->end == kLoadGpa + 32 * kMiB);
  CHECK(image->initrd_end_max == 0x80000000);
  CHECK(image->command_line_max == 2047);
}

TEST_CASE("what follows a bzImage's setup header is not taken for it", "[vmm]") {
  BzImage kernel;
  kernel.setup.jump_offset = 0x62;  // to 0x264: without handover_offset and kernel_info_offset
  kernel.setup.handover_offset = 0xdeadbeef;
  const Result<KernelImage> image = kernel.parse();
  REQUIRE(image);
  CHECK(image->setup.init_size == 32 * kMiB);
  CHECK(image->setup.handover_offset == 0);
}

TEST_CASE("no setup sectors stand for four", "[vmm]") {
  BzImage kernel;
  kernel.setup.setup_sects = 0;
  kernel.setup.syssize = 0;
  const Result<KernelImage> image = kernel.parse();
  REQUIRE(image);
  CHECK(image->segments[0].file_offset == 5 * kSectorSize);
}

TEST_CASE("a bad bzImage is refused", "[vmm]") {
  for (const BzImageCase& c : kBadBzImages) {
    DYNAMIC_SECTION(c.rule) {
      BzImage kernel;
      c.change(kernel);
      CHECK_FALSE(kernel.parse());
    }
  }
}

TEST_CASE("an ELF kernel is loaded by physical addresses", "[vmm]") {
  Elf kernel;
  kernel.header.e_phnum = 3;
  kernel.segments.push_back(kernel.segments[0]);
  kernel.segments[1].p_paddr = kLoadGpa + kMiB;
  kernel.segments[1].p_filesz = 0;  // all of it zero, wherever in the file it says to be
  kernel.segments[1].p_offset = kernel.file_size;
  kernel.segments.push_back(kernel.segments[0]);
  kernel.segments[2].p_type = PT_NOTE;
  const Result<KernelImage> image = kernel.parse();
  REQUIRE(image);
  CHECK(image->format == KernelImage::Format::kElf);
  REQUIRE(image->segments.size() == 2);
  CHECK(image->segments[0].file_offset == 0x1000);
  CHECK(image->segments[0].memory_size == 0x9000);
  CHECK(image->segments[1].file_size == 0);
  CHECK(image->entry == kLoadGpa + 0x40);
  CHECK(image->gpa == kLoadGpa);
  CHECK(image->end == kLoadGpa + kMiB + 0x9000);
  CHECK(image->setup.header == kSetupMagic);
}

TEST_CASE("a bad ELF kernel is refused", "[vmm]") {
  for (const ElfCase& c : kBadElfs) {
    DYNAMIC_SECTION(c.rule) {
      Elf kernel;
      c.change(kernel);
      CHECK_FALSE(kernel.parse());
    }
  }
}

TEST_CASE("no kernel file makes the loader leave file or memory", "[vmm]") {
  const auto seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937_64 random(seed);
  const BzImage bzimage;
  const Elf elf;
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    // A good file with a few bytes of its headers changed.
    std::vector<std::byte> head(4096);
    if (round % 2 == 0) {
      std::memcpy(head.data() + kSetupHeaderOffset, &bzimage.setup, sizeof bzimage.setup);
    } else {
      std::memcpy(head.data(), &elf.header, sizeof elf.header);
      std::memcpy(head.data() + sizeof elf.header, elf.segments.data(), sizeof elf.segments[0]);
    }
    const std::size_t first = round % 2 == 0 ? kSetupHeaderOffset : 0;
    for (int change = 0; change < 3; ++change) {
      head[first + random() % 130] = static_cast<std::byte>(random());
    }
    const std::uint64_t file_size = head.size() + random() % 0x10000;
    const Result<KernelImage> image = parse_kernel(head, file_size, kRamEnd);
    if (!image) continue;
    ++accepted;
    bool inside =
        image->gpa >= kHighMemoryGpa && image->end <= kRamEnd && image->segments.size() <= kElfSegmentsMax;
    for (const KernelImage::Segment& segment : image->segments) {
      inside = inside && segment.file_offset <= file_size &&
               segment.file_size <= file_size - segment.file_offset &&
               segment.file_size <= segment.memory_size && segment.gpa >= image->gpa &&
               segment.memory_size <= image->end - segment.gpa;
    }
    REQUIRE(inside);
  }
  CHECK(accepted > 0);
}

}  // namespace vmbusd::vmm
