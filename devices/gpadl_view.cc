#include "devices/gpadl_view.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace vmbusd::devices {

Result<GpadlView> GpadlView::make(const partition::GuestMemory& memory, const vmbus::Gpadl& gpadl) {
  GpadlView view;
  for (const vmbus::Gpadl::Range& range : gpadl.ranges) {
    std::uint64_t left = range.byte_count;
    std::uint64_t offset = range.byte_offset;
    for (const vmbus::Gpn page : range.pages) {
      if (left == 0) break;
      const std::uint64_t size = std::min<std::uint64_t>(left, partition::kPageSize - offset);
      std::byte* const base = memory.translate_writable(page * partition::kPageSize, partition::kPageSize);
      if (base == nullptr) return fail(Errc::kBadGpadl, "GPADL page is not in guest memory");
      std::byte* const host = base + offset;
      if (!view.pieces_.empty() && view.pieces_.back().host + view.pieces_.back().size == host) {
        view.pieces_.back().size += size;
      } else {
        view.pieces_.push_back({view.size_, host, size});
      }
      view.size_ += size;
      left -= size;
      offset = 0;
    }
    if (left != 0) return fail(Errc::kBadGpadl, "GPADL range is longer than its pages");
  }
  return view;
}

std::span<std::byte> GpadlView::piece(std::uint64_t offset, std::uint64_t length) const {
  VMBUSD_ASSERT(offset < size_);
  const auto next = std::upper_bound(pieces_.begin(), pieces_.end(), offset,
                                     [](std::uint64_t at, const Piece& piece) { return at < piece.offset; });
  const Piece& piece = *(next - 1);
  const std::uint64_t skip = offset - piece.offset;
  return {piece.host + skip, static_cast<std::size_t>(std::min(length, piece.size - skip))};
}

void GpadlView::copy_in(std::uint64_t offset, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const std::span<std::byte> to = piece(offset, bytes.size());
    std::memcpy(to.data(), bytes.data(), to.size());
    offset += to.size();
    bytes = bytes.subspan(to.size());
  }
}

void GpadlView::copy_out(std::uint64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const std::span<std::byte> from = piece(offset, bytes.size());
    std::memcpy(bytes.data(), from.data(), from.size());
    offset += from.size();
    bytes = bytes.subspan(from.size());
  }
}

namespace {

Result<ring::RingMemory> make_ring(const partition::GuestMemory& memory, std::span<const vmbus::Gpn> pages) {
  std::vector<ring::RingMemory::MappedPage> data;
  data.reserve(pages.size() - 1);
  ring::ControlPage* control = nullptr;
  for (const vmbus::Gpn page : pages) {
    const partition::GuestMemory::Region* const region = memory.find(page);
    if (region == nullptr || !region->writable) {
      return fail(Errc::kBadGpadl, "ring page is not in writable guest memory");
    }
    const std::uint64_t skip = page * partition::kPageSize - region->gpa;
    std::byte* const host = region->host + skip;
    if (control == nullptr) {
      control = reinterpret_cast<ring::ControlPage*>(host);
    } else {
      data.push_back({host, region->fd.get(), static_cast<off_t>(region->offset + skip)});
    }
  }
  return ring::RingMemory::best(control, data);
}

}  // namespace

Result<RingPair> make_rings(const partition::GuestMemory& memory, const vmbus::Gpadl& gpadl,
                            std::uint32_t incoming_pages) {
  if (gpadl.ranges.size() != 1 || gpadl.ranges[0].byte_offset != 0) {
    return fail(Errc::kBadGpadl, "ring GPADL is not one page-aligned range");
  }
  const std::vector<vmbus::Gpn>& pages = gpadl.ranges[0].pages;
  if (std::uint64_t{gpadl.ranges[0].byte_count} != pages.size() * partition::kPageSize) {
    return fail(Errc::kBadGpadl, "ring GPADL ends inside a page");
  }
  if (incoming_pages < 2 || pages.size() < 2 || incoming_pages > pages.size() - 2) {
    return fail(Errc::kBadGpadl, "a ring has less than two pages");
  }
  const std::span<const vmbus::Gpn> all(pages);
  VMBUSD_TRY(ring::RingMemory incoming, make_ring(memory, all.first(incoming_pages)));
  VMBUSD_TRY(ring::RingMemory outgoing, make_ring(memory, all.subspan(incoming_pages)));
  return RingPair{std::move(incoming), std::move(outgoing)};
}

}  // namespace vmbusd::devices
