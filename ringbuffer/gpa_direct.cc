#include "ringbuffer/gpa_direct.h"

#include <algorithm>
#include <bit>

#include "base/assert.h"

namespace vmbusd::ring {
namespace {

// Appends [gpa, gpa + size) to out[0..count), merging it with the last where it follows that.
bool append(std::span<GpaSegment> out, std::uint32_t& count, std::uint64_t gpa, std::uint64_t size) {
  if (count != 0 && out[count - 1].gpa + out[count - 1].size == gpa) {
    out[count - 1].size += size;
    return true;
  }
  if (count == out.size()) return false;
  out[count++] = {gpa, size};
  return true;
}

}  // namespace

Result<GpaList> read_gpa_list(const IncomingRing& ring, const Packet& packet, std::uint32_t max_ranges,
                              std::uint64_t max_bytes, std::span<GpaSegment> out) {
  VMBUSD_ASSERT(packet.type == PacketType::kGpaDirect);
  // Where the payload is one run with the rest of the packet, its extension stands right before it.
  const std::byte* const linear =
      packet.payload != nullptr ? packet.payload - packet.extension_size : nullptr;  // guest-controlled
  std::uint32_t offset = 0;                                                          // into the extension
  const auto words_left = [&] { return (packet.extension_size - offset) / kPacketAlign; };
  const auto next_word = [&] {
    const std::uint64_t word =
        linear != nullptr ? load_shared_word(linear + offset) : ring.extension_word(packet, offset);
    offset += kPacketAlign;
    return word;
  };

  const auto header = std::bit_cast<GpaDirectHeader>(next_word());
  if (header.range_count == 0 || header.range_count > max_ranges) {
    return fail(Errc::kBadPacket, "GPA-direct packet has no ranges or too many");
  }
  GpaList list{};
  for (std::uint32_t i = 0; i < header.range_count; ++i) {
    if (words_left() == 0) return fail(Errc::kBadPacket, "GPA-direct range lies outside the packet");
    const auto range = std::bit_cast<GpaRange>(next_word());
    if (range.byte_count == 0 || range.byte_offset >= kPageSize) {
      return fail(Errc::kBadPacket, "GPA-direct range is empty or starts beyond its first page");
    }
    // Both at most 32 bits, so the sum is exact in 64.
    const std::uint64_t pages =
        (std::uint64_t{range.byte_offset} + range.byte_count + kPageSize - 1) / kPageSize;
    if (pages > words_left()) {
      return fail(Errc::kBadPacket, "GPA-direct range has more pages than the packet");
    }
    list.total_bytes += range.byte_count;  // at most 2^32 times the packet's words: cannot wrap
    if (list.total_bytes > max_bytes) {
      return fail(Errc::kLimit, "GPA-direct ranges hold more than the device takes");
    }
    std::uint64_t left = range.byte_count;
    std::uint32_t in_page = range.byte_offset;
    for (std::uint64_t page = 0; page < pages; ++page) {
      const std::uint64_t page_number = next_word();
      if (page_number > kMaxPageNumber) {
        return fail(Errc::kBadPacket, "GPA-direct page number is beyond physical memory");
      }
      const std::uint64_t size = std::min<std::uint64_t>(left, kPageSize - in_page);
      if (!append(out, list.segments, page_number * kPageSize + in_page, size)) {
        return fail(Errc::kBadPacket, "GPA-direct ranges have too many segments");
      }
      left -= size;
      in_page = 0;
    }
  }
  return list;
}

}  // namespace vmbusd::ring
