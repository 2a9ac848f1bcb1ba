#include "vmm/memory_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/catch.h"
#include "vmm/guest_ram.h"

namespace vmbusd::vmm {

namespace {

std::uint64_t usable(const std::vector<E820Entry>& map) {
  std::uint64_t sum = 0;
  for (const E820Entry& entry : map) sum += entry.type == kE820Ram ? entry.size : 0;
  return sum;
}

struct LayoutCase {
  const char* rule;
  std::uint64_t memory_size;
  std::size_t entries;
  std::uint64_t mmio_high_gpa;
};
constexpr LayoutCase kLayoutCases[] = {
    {"the least memory", kMemorySizeMin, 4, 4 * kGiB},
    {"RAM just below the hole", 3 * kGiB - kMiB, 4, 4 * kGiB},
    {"RAM up to the hole", 3 * kGiB, 4, 4 * kGiB},
    {"the first MiB beyond the hole", 3 * kGiB + kMiB, 5, 8 * kGiB},
    {"RAM above 4 GiB fills the window's unit", 7 * kGiB, 5, 8 * kGiB},
    {"one MiB more moves the window", 7 * kGiB + kMiB, 5, 12 * kGiB},
    {"the most memory", kMemorySizeMax, 5, 1028 * kGiB},
};

}  // namespace

TEST_CASE("the memory map covers the guest's RAM and nothing else", "[vmm]") {
  for (const LayoutCase& c : kLayoutCases) {
    DYNAMIC_SECTION(c.rule) {
      const std::vector<E820Entry> map = e820_map(c.memory_size);
      CHECK(map.size() == c.entries);
      // What lies between 640 KiB and 1 MiB is RAM that the guest is not told of.
      CHECK(usable(map) == c.memory_size - kMiB + kExtendedBiosDataGpa);
      for (std::size_t i = 1; i < map.size(); ++i) {
        const std::uint64_t end_before = map[i - 1].gpa + map[i - 1].size;
        CHECK(end_before <= map[i].gpa);
        CHECK((map[i].gpa + map[i].size <= kHoleGpa || map[i].gpa >= kHoleEnd));
      }
      CHECK(mmio_high_gpa(c.memory_size) == c.mmio_high_gpa);
      CHECK(mmio_high_gpa(c.memory_size) >= memory_end(c.memory_size));
    }
  }
}

TEST_CASE("what the loader puts below 1 MiB does not overlap", "[vmm]") {
  CHECK(kGdtGpa + 4 * sizeof(std::uint64_t) <= kZeroPageGpa);
  CHECK(kZeroPageGpa + sizeof(ZeroPage) <= kPageTablesGpa);
  CHECK(kPageTablesGpa + 6 * 4096 <= kCommandLineGpa);
  CHECK(kCommandLineGpa + kCommandLineSizeMax <= kExtendedBiosDataGpa);
}

TEST_CASE("guest RAM is found on both sides of the hole", "[vmm]") {
  const Result<GuestRam> ram = GuestRam::create(4 * kGiB, false);
  REQUIRE(ram);
  REQUIRE(ram->regions().size() == 2);
  CHECK(ram->regions()[0].size == 3 * kGiB);
  CHECK(ram->regions()[1].gpa == 4 * kGiB);
  CHECK(ram->regions()[1].offset == 3 * kGiB);

  CHECK(ram->at(0, 1).data() == ram->regions()[0].host);
  CHECK(ram->at(3 * kGiB - 1, 1).size() == 1);
  CHECK(ram->at(3 * kGiB - 1, 2).empty());
  CHECK(ram->at(3 * kGiB, 1).empty());
  CHECK(ram->at(4 * kGiB, kGiB).data() == ram->regions()[1].host);
  CHECK(ram->at(4 * kGiB, kGiB + 1).empty());
  CHECK(ram->at(5 * kGiB, 1).empty());
  CHECK(ram->at(0, 0).empty());
  CHECK(ram->at(4096, ~std::uint64_t{0}).empty());
  CHECK(ram->at(~std::uint64_t{0}, 2).empty());
}

TEST_CASE("guest RAM cannot be resized by whoever gets its descriptor", "[vmm]") {
  const Result<GuestRam> ram = GuestRam::create(kMemorySizeMin, false);
  REQUIRE(ram);
  CHECK(::ftruncate(ram->fd(), 4096) != 0);
  CHECK(::ftruncate(ram->fd(), static_cast<off_t>(2 * kMemorySizeMin)) != 0);
  CHECK(::fcntl(ram->fd(), F_ADD_SEALS, F_SEAL_WRITE) != 0);
}

TEST_CASE("guest RAM of an odd size is refused", "[vmm]") {
  CHECK_FALSE(GuestRam::create(kMemorySizeMin - kMiB, false));
  CHECK_FALSE(GuestRam::create(kMemorySizeMin + 4096, false));
  CHECK_FALSE(GuestRam::create(kMemorySizeMin + kMiB, true));
  CHECK_FALSE(GuestRam::create(kMemorySizeMax + kMiB, false));
}

}  // namespace vmbusd::vmm
