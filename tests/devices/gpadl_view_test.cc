#include "devices/gpadl_view.h"

#include <numeric>

#include "tests/catch.h"
#include "tests/devices/test_memory.h"

namespace vmbusd::devices {
namespace {

constexpr std::uint32_t kPage = partition::kPageSize;

vmbus::Gpadl gpadl_of(std::vector<vmbus::Gpadl::Range> ranges) {
  return vmbus::Gpadl{0xe1e10, 1, std::move(ranges)};
}

TEST_CASE("a GPADL's scattered pages are one linear buffer", "[devices]") {
  TestMemory guest(16);
  partition::GuestMemory memory;
  guest.add_to(memory);
  // Backwards, so that no two pages join; the range begins 100 bytes into its first page.
  const auto view = GpadlView::make(memory, gpadl_of({{3 * kPage - 100, 100, {9, 5, 2}}}));
  REQUIRE(view.has_value());
  REQUIRE(view->size() == 3 * kPage - 100);

  std::vector<std::byte> pattern(view->size());
  for (std::size_t i = 0; i < pattern.size(); ++i) pattern[i] = static_cast<std::byte>(i * 7 + i / 251);
  view->copy_in(0, pattern);
  CHECK(std::memcmp(guest.page(9) + 100, pattern.data(), kPage - 100) == 0);
  CHECK(std::memcmp(guest.page(5), pattern.data() + kPage - 100, kPage) == 0);
  CHECK(std::memcmp(guest.page(2), pattern.data() + 2 * kPage - 100, kPage) == 0);

  std::vector<std::byte> back(view->size());
  view->copy_out(0, back);
  CHECK(back == pattern);
  CHECK(view->piece(kPage - 101, 10).size() == 1);
  CHECK(view->piece(kPage - 100, 10).size() == 10);
}

TEST_CASE("pages that follow each other are one piece", "[devices]") {
  TestMemory guest(16);
  partition::GuestMemory memory;
  guest.add_to(memory);
  const auto view = GpadlView::make(memory, gpadl_of({{4 * kPage, 0, {3, 4, 5, 6}}}));
  REQUIRE(view.has_value());
  CHECK(view->piece(10, 1 << 20).size() == 4 * kPage - 10);
}

TEST_CASE("a GPADL outside writable guest memory is refused", "[devices]") {
  TestMemory guest(16);
  partition::GuestMemory memory;
  guest.add_to(memory);
  CHECK(GpadlView::make(memory, gpadl_of({{kPage, 0, {16}}})).error().code == Errc::kBadGpadl);
  CHECK(GpadlView::make(memory, gpadl_of({{kPage, 0, {0xfffffffffffffULL}}})).error().code ==
        Errc::kBadGpadl);
  CHECK(GpadlView::make(memory, gpadl_of({{2 * kPage, 0, {1}}})).error().code == Errc::kBadGpadl);

  partition::GuestMemory rom;
  guest.add_to(rom, false);
  CHECK(GpadlView::make(rom, gpadl_of({{kPage, 0, {1}}})).error().code == Errc::kBadGpadl);
}

struct RingCase {
  const char* rule;
  vmbus::Gpadl::Range range;
  std::uint32_t incoming_pages;
  bool ok;
};

TEST_CASE("a ring GPADL is two rings of at least two pages each", "[devices]") {
  TestMemory guest(16);
  partition::GuestMemory memory;
  guest.add_to(memory);
  const RingCase cases[] = {
      {"smallest", {4 * kPage, 0, {1, 2, 3, 4}}, 2, true},
      {"rings of different size", {6 * kPage, 0, {1, 2, 3, 9, 8, 7}}, 4, true},
      {"a page twice", {4 * kPage, 0, {1, 1, 1, 1}}, 2, true},
      {"incoming ring without data", {4 * kPage, 0, {1, 2, 3, 4}}, 1, false},
      {"outgoing ring without data", {4 * kPage, 0, {1, 2, 3, 4}}, 3, false},
      {"all pages are the incoming ring's", {4 * kPage, 0, {1, 2, 3, 4}}, 4, false},
      {"more than all pages", {4 * kPage, 0, {1, 2, 3, 4}}, 0xffffffff, false},
      {"too few pages", {kPage, 0, {1}}, 2, false},
      {"not page aligned", {4 * kPage - 8, 8, {1, 2, 3, 4}}, 2, false},
      {"ends inside a page", {4 * kPage - 8, 0, {1, 2, 3, 4}}, 2, false},
      {"page beyond guest memory", {4 * kPage, 0, {1, 2, 3, 16}}, 2, false},
  };
  for (const RingCase& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      CHECK(make_rings(memory, gpadl_of({c.range}), c.incoming_pages).has_value() == c.ok);
    }
  }
  CHECK_FALSE(make_rings(memory, gpadl_of({{2 * kPage, 0, {1, 2}}, {2 * kPage, 0, {3, 4}}}), 2).has_value());
}

}  // namespace
}  // namespace vmbusd::devices
