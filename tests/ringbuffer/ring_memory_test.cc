#include "ringbuffer/ring_memory.h"

#include "tests/ringbuffer/test_ring.h"

namespace vmbusd::ring {
namespace {

TEST_CASE("copies wrap at every offset, by every size around a page", "[ringbuffer]") {
  for (const Shape shape : kAllShapes) {
    DYNAMIC_SECTION(name_of(shape)) {
      const TestRing ring(shape, 2);
      RingMemory memory = ring.memory();
      for (const std::uint32_t size : {1u, 8u, 4095u, 4096u, 4097u, 8191u, 8192u}) {
        const std::vector<std::byte> bytes = pattern(size, size);
        for (std::uint32_t offset = 0; offset < ring.size(); offset += 257) {
          memory.copy_in(offset, bytes);
          std::vector<std::byte> copy(size);
          memory.copy_out(offset, copy);
          REQUIRE(copy == bytes);
          REQUIRE(ring.peek(offset, size) == bytes);
          // An offset behind the end stands for the one a lap before.
          memory.copy_out(offset + ring.size(), copy);
          REQUIRE(copy == bytes);
        }
      }
    }
  }
}

TEST_CASE("a word is loaded at its place in every page", "[ringbuffer]") {
  for (const Shape shape : kAllShapes) {
    const TestRing ring(shape);
    const RingMemory memory = ring.memory();
    for (std::uint64_t offset = 0; offset < ring.size(); offset += 1016) {
      ring.poke(static_cast<std::uint32_t>(offset), wire_bytes(offset));
      CHECK(memory.load_word(static_cast<std::uint32_t>(offset)) == offset);
      CHECK(memory.load_word(static_cast<std::uint32_t>(offset) + ring.size()) == offset);
    }
  }
}

TEST_CASE("a view is one run of memory or nothing", "[ringbuffer]") {
  const TestRing plain(Shape::kPlain);
  CHECK(plain.memory().view(0x2ff0, 16) == &plain.at(0x2ff0));
  CHECK(plain.memory().view(0x2ff0, 17) == nullptr);
  const TestRing mirrored(Shape::kMirroredScattered);
  const RingMemory mirror = mirrored.memory();
  CHECK(mirror.view(0x2ff0, 0x3000) != nullptr);
  CHECK(mirror.view(0xff8, 0x1000) != nullptr);
  const TestRing segmented(Shape::kSegmented);
  CHECK(segmented.memory().view(0xff0, 16) == &segmented.at(0xff0));
  CHECK(segmented.memory().view(0xff0, 17) == nullptr);
}

TEST_CASE("the best memory for a list of pages", "[ringbuffer]") {
  const TestRing contiguous(Shape::kPlain);
  const TestRing scattered(Shape::kSegmented);
  constexpr std::uint32_t kAcross = 0xff8;  // a view that crosses a page, and one that crosses the end
  constexpr std::uint32_t kEnd = 0x2ff8;
  SECTION("mirrored where a descriptor is there") {
    const RingMemory memory = RingMemory::best(&scattered.control(), scattered.mapped_pages());
    CHECK(memory.view(kAcross, 16) != nullptr);
    CHECK(memory.view(kEnd, 16) != nullptr);
  }
  SECTION("plain where none is, but addresses follow each other") {
    auto pages = contiguous.mapped_pages();
    for (auto& page : pages) page.fd = -1;
    const RingMemory memory = RingMemory::best(&contiguous.control(), pages);
    CHECK(memory.view(kAcross, 16) == &contiguous.at(kAcross));
    CHECK(memory.view(kEnd, 16) == nullptr);
  }
  SECTION("segmented otherwise") {
    auto pages = scattered.mapped_pages();
    for (auto& page : pages) page.fd = -1;
    const RingMemory memory = RingMemory::best(&scattered.control(), pages);
    CHECK(memory.view(kAcross, 16) == nullptr);
    CHECK(memory.view(kAcross, 8) == &scattered.at(kAcross));
  }
}

TEST_CASE("mirrors are bounded and give their mappings back", "[ringbuffer]") {
  // Every page its own mapping, twice: 2 * 512 of the budget.
  const TestRing ring(Shape::kMirroredScattered, 512);
  std::vector<RingMemory> mirrors;
  Result<RingMemory> last = RingMemory::make_mirrored(&ring.control(), ring.mapped_pages());
  for (; last; last = RingMemory::make_mirrored(&ring.control(), ring.mapped_pages())) {
    mirrors.push_back(std::move(*last));
  }
  CHECK(error_of(last) == Errc::kLimit);
  CHECK(mirrors.size() == RingMemory::kMaxMappings / 1024);
  CHECK(RingMemory::best(&ring.control(), ring.mapped_pages()).size() == ring.size());
  mirrors.clear();
  CHECK(RingMemory::make_mirrored(&ring.control(), ring.mapped_pages()).has_value());
}

TEST_CASE("a refused mapping leaves nothing behind", "[ringbuffer]") {
  const TestRing ring(Shape::kMirrored);
  auto pages = ring.mapped_pages();
  pages.back().fd = -1;
  CHECK(error_of(RingMemory::make_mirrored(&ring.control(), pages)) == Errc::kOs);
}

}  // namespace
}  // namespace vmbusd::ring
