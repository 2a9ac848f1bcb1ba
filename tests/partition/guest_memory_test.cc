#include "partition/guest_memory.h"

#include <linux/memfd.h>

#include <cstring>

#include "partition/attach_protocol.h"
#include "tests/catch.h"
#include "tests/partition/descriptors.h"

using namespace vmbusd;
using namespace vmbusd::partition;
using namespace vmbusd::test;

namespace {
constexpr std::uint64_t kPage = kPageSize;
}

TEST_CASE("regions are page aligned, not empty and below 2^52", "[partition]") {
  struct Case {
    const char* rule;
    std::uint64_t gpa;
    std::uint64_t size;
    bool valid;
  };
  static constexpr Case kCases[] = {
      {"one page at the bottom", 0, kPage, true},
      {"the last page", (1ull << 52) - kPage, kPage, true},
      {"empty", 0, 0, false},
      {"beyond the last page", 1ull << 52, kPage, false},
      {"reaches beyond the last page", (1ull << 52) - kPage, 2 * kPage, false},
      {"address not aligned", 1, kPage, false},
      {"size not aligned", 0, kPage + 1, false},
      {"wraps to zero", kPage, 0 - kPage, false},
      {"wraps past zero", 0 - kPage, 2 * kPage, false},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      CHECK(GuestMemory::valid_range(c.gpa, c.size) == c.valid);
      GuestMemory memory;
      CHECK(memory.add(c.gpa, c.size, make_memfd(2 * kPage), 0, true).has_value() == c.valid);
      CHECK(memory.regions().size() == (c.valid ? 1 : 0));
    }
  }
}

TEST_CASE("regions do not overlap", "[partition]") {
  GuestMemory memory;
  REQUIRE(memory.add(4 * kPage, 4 * kPage, make_memfd(4 * kPage), 0, true).has_value());
  struct Case {
    const char* rule;
    std::uint64_t gpa;
    std::uint64_t size;
    bool fits;
  };
  static constexpr Case kCases[] = {
      {"just below", 3 * kPage, kPage, true},        {"just above", 8 * kPage, kPage, true},
      {"the same", 4 * kPage, 4 * kPage, false},     {"its first page", 4 * kPage, kPage, false},
      {"its last page", 7 * kPage, kPage, false},    {"over its start", 3 * kPage, 2 * kPage, false},
      {"over its end", 7 * kPage, 2 * kPage, false}, {"around it", 0, 16 * kPage, false},
      {"inside it", 5 * kPage, kPage, false},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      const Result<void> added = memory.add(c.gpa, c.size, make_memfd(c.size), 0, true);
      CHECK(added.has_value() == c.fits);
      if (!c.fits) CHECK(added.error().code == Errc::kMemory);
    }
  }
}

TEST_CASE("regions lie inside their descriptor", "[partition]") {
  struct Case {
    const char* rule;
    std::uint64_t size;
    std::uint64_t offset;
    bool fits;
  };
  static constexpr Case kCases[] = {
      {"all of it", 4 * kPage, 0, true},
      {"its last page", kPage, 3 * kPage, true},
      {"one page too long", 5 * kPage, 0, false},
      {"starts at the end", kPage, 4 * kPage, false},
      {"offset not aligned", kPage, 1, false},
      {"offset wraps the sum", 2 * kPage, 0 - kPage, false},
      {"offset negative as off_t", kPage, 1ull << 63, false},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      GuestMemory memory;
      const Result<void> added = memory.add(0, c.size, make_memfd(4 * kPage), c.offset, true);
      CHECK(added.has_value() == c.fits);
      if (!c.fits) CHECK(added.error().code == Errc::kMemory);
    }
  }
}

TEST_CASE("memory must be shareable", "[partition]") {
  struct Case {
    const char* rule;
    UniqueFd (*make)();
    bool writable;
    bool shareable;
  };
  static const Case kCases[] = {
      {"memfd", [] { return make_memfd(kPage); }, true, true},
      {"memfd opened for reading, mapped so", [] { return make_read_only_memfd(kPage); }, false, true},
      {"memfd opened for reading, to be written", [] { return make_read_only_memfd(kPage); }, true, false},
      {"memfd sealed against writing", [] { return make_sealed_memfd(kPage); }, true, false},
      {"pipe", [] { return make_pipe_end(); }, true, false},
      {"eventfd", [] { return make_eventfd(); }, true, false},
      {"folder", [] { return open_path("/tmp", O_RDONLY); }, false, false},
      {"device that gives fresh memory", [] { return open_path("/dev/zero", O_RDWR); }, true, false},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      GuestMemory memory;
      const Result<void> added = memory.add(0, kPage, c.make(), 0, c.writable);
      CHECK(added.has_value() == c.shareable);
      if (!c.shareable) CHECK(added.error().code == Errc::kUnsupported);
    }
  }
}

TEST_CASE("a region of huge pages consists of whole ones", "[partition]") {
  // The page is mapped, never touched: this needs no huge page of the machine's.
  constexpr std::uint64_t kHugePage = 2 << 20;
  UniqueFd fd(::memfd_create("guest", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB));
  if (!fd || ::ftruncate(fd.get(), 2 * kHugePage) != 0) {
    WARN("skipped: the kernel has no huge pages");
    return;
  }
  GuestMemory memory;
  CHECK(memory.add(0, kPage, UniqueFd(::dup(fd.get())), 0, true).error().code == Errc::kMemory);
  CHECK(memory.add(0, kHugePage, UniqueFd(::dup(fd.get())), kPage, true).error().code == Errc::kMemory);
  REQUIRE(memory.add(0, kHugePage, UniqueFd(::dup(fd.get())), kHugePage, true).has_value());
  CHECK(memory.remove(0, kHugePage).has_value());
}

TEST_CASE("regions are bounded in number", "[partition]") {
  GuestMemory memory;
  for (std::uint64_t i = 0; i < kMaxRegions; ++i) {
    REQUIRE(memory.add(i * kPage, kPage, make_memfd(kPage), 0, true).has_value());
  }
  const Result<void> one_more = memory.add(kMaxRegions * kPage, kPage, make_memfd(kPage), 0, true);
  REQUIRE_FALSE(one_more.has_value());
  CHECK(one_more.error().code == Errc::kLimit);
}

TEST_CASE("look-ups stay inside one region", "[partition]") {
  // [1, 3) and [3, 5) pages touch; the third, read-only, stands alone. Added out of order.
  GuestMemory memory;
  REQUIRE(memory.add(16 * kPage, kPage, make_memfd(kPage), 0, false).has_value());
  REQUIRE(memory.add(3 * kPage, 2 * kPage, make_memfd(2 * kPage), 0, true).has_value());
  REQUIRE(memory.add(kPage, 2 * kPage, make_memfd(2 * kPage), 0, true).has_value());
  REQUIRE(memory.regions().size() == 3);
  CHECK(memory.regions()[0].gpa == kPage);
  CHECK(memory.regions()[2].gpa == 16 * kPage);

  struct Case {
    const char* rule;
    std::uint64_t gpa;
    std::uint64_t size;
    bool there;
    bool writable;
  };
  static constexpr Case kCases[] = {
      {"first byte", kPage, 1, true, true},
      {"all of a region", kPage, 2 * kPage, true, true},
      {"nothing, at its start", kPage, 0, true, true},
      {"last byte", 3 * kPage - 1, 1, true, true},
      {"over the seam of two", 3 * kPage - 1, 2, false, false},
      {"below all", kPage - 1, 1, false, false},
      {"in the gap", 5 * kPage, 1, false, false},
      {"read-only", 16 * kPage, kPage, true, false},
      {"size that wraps the sum", kPage, ~0ull, false, false},
      {"address at the top", ~0ull, 1, false, false},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      CHECK((memory.translate(c.gpa, c.size) != nullptr) == c.there);
      CHECK((memory.translate_writable(c.gpa, c.size) != nullptr) == c.writable);
    }
  }
  CHECK(memory.find(1)->gpa == kPage);
  CHECK(memory.find(2)->gpa == kPage);
  CHECK(memory.find(4)->gpa == 3 * kPage);
  CHECK(memory.find(0) == nullptr);
  CHECK(memory.find(5) == nullptr);
  CHECK(memory.find(~0ull) == nullptr);
  CHECK(memory.find((1ull << 52) + 1) == nullptr);  // would be page 1 if it wrapped
}

TEST_CASE("a region shows the descriptor's memory", "[partition]") {
  const UniqueFd fd = make_memfd(2 * kPage);
  GuestMemory memory;
  REQUIRE(memory.add(0, kPage, UniqueFd(::dup(fd.get())), kPage, true).has_value());
  std::memcpy(memory.translate_writable(8, 5), "vmbus", 5);
  std::array<char, 5> seen{};
  REQUIRE(::pread(fd.get(), seen.data(), seen.size(), static_cast<off_t>(kPage + 8)) == 5);
  CHECK(std::string(seen.data(), seen.size()) == "vmbus");
}

TEST_CASE("a memfd that allows seals cannot shrink under the mapping", "[partition]") {
  const UniqueFd fd = make_memfd(kPage, MFD_ALLOW_SEALING);
  GuestMemory memory;
  REQUIRE(memory.add(0, kPage, UniqueFd(::dup(fd.get())), 0, true).has_value());
  CHECK(::ftruncate(fd.get(), 0) != 0);
}

TEST_CASE("only a whole region can be removed", "[partition]") {
  const std::ptrdiff_t open_before = count_open_fds();
  GuestMemory memory;
  REQUIRE(memory.add(kPage, 2 * kPage, make_memfd(2 * kPage), 0, true).has_value());
  CHECK_FALSE(memory.remove(kPage, kPage).has_value());
  CHECK_FALSE(memory.remove(2 * kPage, kPage).has_value());
  CHECK_FALSE(memory.remove(0, 0).has_value());
  CHECK(memory.regions().size() == 1);
  CHECK(memory.remove(kPage, 2 * kPage).has_value());
  CHECK(memory.regions().empty());
  CHECK(memory.translate(kPage, 1) == nullptr);
  CHECK(count_open_fds() == open_before);
  CHECK_FALSE(memory.remove(kPage, 2 * kPage).has_value());
  // And its place is free again.
  CHECK(memory.add(2 * kPage, kPage, make_memfd(kPage), 0, true).has_value());
}
