#include "ringbuffer/gpa_direct.h"

#include "tests/ringbuffer/test_ring.h"

namespace vmbusd::ring {
namespace {

constexpr std::uint32_t kMaxRanges = 4;
constexpr std::uint64_t kMaxBytes = 0x10000;
constexpr std::size_t kMaxSegments = 5;

std::uint64_t header(std::uint32_t range_count) {
  return std::uint64_t{range_count} << 32 | 0xdeadbeef;  // reserved holds garbage
}
std::uint64_t range(std::uint32_t byte_count, std::uint32_t byte_offset) {
  return std::uint64_t{byte_offset} << 32 | byte_count;
}

struct GpaCase {
  const char* rule;
  std::vector<std::uint64_t> extension;
  std::optional<Errc> error;
  std::vector<GpaSegment> segments{};
};

const std::vector<GpaCase> kGpaCases = {
    {"storage READ over two pages",
     {header(1), range(0x1000, 0x200), 0x5000, 0x5001},
     {},
     {{0x5000200, 0x1000}}},
    {"one byte", {header(1), range(1, 0), 7}, {}, {{0x7000, 1}}},
    {"last byte of a page", {header(1), range(1, 0xfff), 7}, {}, {{0x7fff, 1}}},
    {"the byte behind lies in the next page",
     {header(1), range(2, 0xfff), 7, 9},
     {},
     {{0x7fff, 1}, {0x9000, 1}}},
    {"pages that do not follow each other",
     {header(1), range(0x3000, 0), 1, 3, 2},
     {},
     {{0x1000, 0x1000}, {0x3000, 0x1000}, {0x2000, 0x1000}}},
    {"pages in falling order are not merged",
     {header(1), range(0x2000, 0), 2, 1},
     {},
     {{0x2000, 0x1000}, {0x1000, 0x1000}}},
    {"the same page twice", {header(1), range(0x2000, 0), 1, 1}, {}, {{0x1000, 0x1000}, {0x1000, 0x1000}}},
    {"two ranges that follow each other are one segment",
     {header(2), range(0x800, 0x800), 1, range(0x10, 0), 2},
     {},
     {{0x1800, 0x810}}},
    {"two ranges with a gap",
     {header(2), range(0x700, 0x800), 1, range(0x10, 0), 2},
     {},
     {{0x1800, 0x700}, {0x2000, 0x10}}},
    {"as many ranges as allowed",
     {header(4), range(1, 0), 1, range(1, 0), 1, range(1, 0), 1, range(1, 0), 1},
     {},
     {{0x1000, 1}, {0x1000, 1}, {0x1000, 1}, {0x1000, 1}}},
    {"slack behind the last range", {header(1), range(8, 0), 1, 0xffffffffffffffff, 2, 3}, {}, {{0x1000, 8}}},
    {"largest page number",
     {header(1), range(0x1000, 0), kMaxPageNumber},
     {},
     {{kMaxPageNumber * kPageSize, 0x1000}}},
    {"page 0", {header(1), range(0x1000, 0), 0}, {}, {{0, 0x1000}}},
    {"as many segments as there is room",
     {header(1), range(0x5000, 0), 1, 3, 5, 7, 9},
     {},
     {{0x1000, 0x1000}, {0x3000, 0x1000}, {0x5000, 0x1000}, {0x7000, 0x1000}, {0x9000, 0x1000}}},
    {"as many bytes as allowed",
     {header(1), range(0x10000, 0), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
     {},
     {{0x1000, 0x10000}}},
    {"one byte too many",
     {header(1), range(0x10001, 0), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17},
     Errc::kLimit},
    {"too many bytes in several ranges",
     {header(2), range(0xfff0, 0), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, range(0x11, 0), 1},
     Errc::kLimit},
    {"one segment too many", {header(1), range(0x6000, 0), 1, 3, 5, 7, 9, 11}, Errc::kBadPacket},
    {"no ranges", {header(0), range(8, 0), 1}, Errc::kBadPacket},
    {"one range too many",
     {header(5), range(1, 0), 1, range(1, 0), 1, range(1, 0), 1, range(1, 0), 1, range(1, 0), 1},
     Errc::kBadPacket},
    {"most ranges that a count can say", {header(0xffffffff), range(1, 0), 1}, Errc::kBadPacket},
    {"no room for the range", {header(1)}, Errc::kBadPacket},
    {"no room for the second range", {header(2), range(8, 0), 1}, Errc::kBadPacket},
    {"no room for the page", {header(1), range(8, 0)}, Errc::kBadPacket},
    {"no room for the last page", {header(1), range(0x1001, 0), 1}, Errc::kBadPacket},
    {"empty range", {header(1), range(0, 0), 1}, Errc::kBadPacket},
    {"empty range, no page", {header(1), range(0, 0)}, Errc::kBadPacket},
    {"offset beyond the page", {header(1), range(8, 0x1000), 1, 2}, Errc::kBadPacket},
    {"offset and count that sum to 0 in 32 bits", {header(1), range(8, 0xfffffff8), 1}, Errc::kBadPacket},
    {"largest count", {header(1), range(0xffffffff, 0xfff), 1}, Errc::kBadPacket},
    {"page number one too large", {header(1), range(8, 0), kMaxPageNumber + 1}, Errc::kBadPacket},
    {"page number that wraps to 0", {header(1), range(8, 0), std::uint64_t{1} << 52}, Errc::kBadPacket},
    {"largest page number that a word holds", {header(1), range(8, 0), ~std::uint64_t{0}}, Errc::kBadPacket},
    {"bad page number behind good ones",
     {header(1), range(0x3000, 0), 1, 2, ~std::uint64_t{0}},
     Errc::kBadPacket},
};

TEST_CASE("GPA-direct ranges become segments", "[ringbuffer]") {
  for (const Shape shape : kAllShapes) {
    for (const GpaCase& c : kGpaCases) {
      for (const std::uint32_t start : {0u, 0x3000u - 16, 0x3000u - 40, 0x1000u - 32}) {
        DYNAMIC_SECTION(c.rule << ", " << name_of(shape) << ", at " << start) {
          const TestRing ring(shape);
          ring.set_indices(start, start);
          OutgoingRing writer(ring.memory());
          IncomingRing reader(ring.memory());
          REQUIRE(writer.attach());
          REQUIRE(reader.attach());
          // The payload holds what would make every case legal, if it were read.
          const std::vector<std::uint64_t> payload(8, 1);
          REQUIRE(writer.write({.type = PacketType::kGpaDirect,
                                .extension = std::as_bytes(std::span(c.extension)),
                                .payload = std::as_bytes(std::span(payload))}) == true);
          REQUIRE(writer.commit());
          std::array<GpaSegment, kMaxSegments> out{};
          const Packet packet = take(reader);
          const Result<GpaList> list = read_gpa_list(reader, packet, kMaxRanges, kMaxBytes, out);
          REQUIRE(error_of(list) == c.error);
          if (c.error) continue;
          REQUIRE(list->segments == c.segments.size());
          std::uint64_t total = 0;
          for (std::size_t i = 0; i < c.segments.size(); ++i) {
            CHECK(out[i].gpa == c.segments[i].gpa);
            CHECK(out[i].size == c.segments[i].size);
            total += c.segments[i].size;
          }
          CHECK(list->total_bytes == total);
        }
      }
    }
  }
}

}  // namespace
}  // namespace vmbusd::ring
