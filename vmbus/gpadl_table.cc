#include "vmbus/gpadl_table.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/assert.h"

namespace vmbusd::vmbus {

Result<std::vector<Gpadl::Range>> parse_ranges(std::span<const std::uint64_t> values,
                                               std::uint32_t range_count,
                                               const std::function<bool(Gpn)>& page_exists) {
  std::vector<Gpadl::Range> ranges;
  ranges.reserve(std::min<std::size_t>(range_count, values.size() / 2));
  for (std::uint32_t i = 0; i < range_count; ++i) {
    if (values.empty()) return fail(Errc::kBadGpadl, "GPADL has fewer ranges than it says");
    const auto header = std::bit_cast<GpaRangeHeader>(values.front());
    values = values.subspan(1);
    if (header.byte_count == 0) return fail(Errc::kBadGpadl, "GPADL range is empty");
    if (header.byte_offset >= kPageBytes) {
      return fail(Errc::kBadGpadl, "GPADL range starts beyond its first page");
    }
    const std::uint64_t bytes = std::uint64_t{header.byte_offset} + header.byte_count;
    const std::uint64_t pages = (bytes + kPageBytes - 1) / kPageBytes;
    if (pages > values.size()) return fail(Errc::kBadGpadl, "GPADL range has more bytes than pages");
    const std::span<const std::uint64_t> gpns = values.first(pages);
    if (!std::all_of(gpns.begin(), gpns.end(), page_exists)) {
      return fail(Errc::kBadGpadl, "GPADL page lies outside guest memory");
    }
    ranges.push_back({header.byte_count, header.byte_offset, {gpns.begin(), gpns.end()}});
    values = values.subspan(pages);
  }
  return ranges;
}

Result<bool> GpadlTable::begin(const GpadlHeader& header, std::span<const std::byte> values) {
  const Key key{header.relid, header.gpadl};
  if (entries_.contains(key)) return fail(Errc::kWrongState, "GPADL handle is in use on this channel");
  if (assembling_.contains(header.gpadl)) {
    return fail(Errc::kWrongState, "GPADL handle is being assembled for another channel");
  }
  // A range takes its header and at least one page.
  const std::size_t values_expected = header.range_buflen / sizeof(std::uint64_t);
  if (header.range_buflen % sizeof(std::uint64_t) != 0 || header.rangecount == 0 ||
      values_expected < 2U * header.rangecount) {
    return fail(Errc::kBadGpadl, "GPADL range buffer does not fit its range count");
  }
  const std::uint64_t pages = values_expected - header.rangecount;
  if (entries_.size() >= limits_.gpadls) return fail(Errc::kLimit, "too many GPADLs");
  if (assembling_.size() >= limits_.gpadls_in_progress) {
    return fail(Errc::kLimit, "too many GPADLs without their bodies");
  }
  if (pages > limits_.gpadl_pages - pages_charged_) return fail(Errc::kLimit, "too many GPADL pages");

  Entry entry;
  entry.range_count = header.rangecount;
  entry.values_expected = values_expected;
  entry.values.reserve(values_expected);
  entry.pages_charged = pages;
  pages_charged_ += pages;
  assembling_.emplace(header.gpadl, header.relid);
  return add_values(entries_.emplace(key, std::move(entry)).first, values);
}

std::optional<Relid> GpadlTable::assembling(GpadlId id) const {
  const auto found = assembling_.find(id);
  return found == assembling_.end() ? std::nullopt : std::optional{found->second};
}

Result<bool> GpadlTable::append(GpadlId id, std::span<const std::byte> values) {
  const auto found = assembling_.find(id);
  if (found == assembling_.end()) return fail(Errc::kBadGpadl, "no GPADL of this handle awaits a body");
  return add_values(entries_.find(Key{found->second, id}), values);
}

Result<bool> GpadlTable::add_values(Entries::iterator entry, std::span<const std::byte> bytes) {
  auto& [key, building] = *entry;
  VMBUSD_ASSERT(building.state == State::kAssembling);
  // Firmware pads its messages: what is beyond the announced length is not part of the GPADL.
  const std::size_t had = building.values.size();
  const std::size_t added = std::min(bytes.size() / sizeof(std::uint64_t), building.values_expected - had);
  building.values.resize(had + added);
  if (added != 0) std::memcpy(&building.values[had], bytes.data(), added * sizeof(std::uint64_t));
  if (building.values.size() < building.values_expected) return false;

  auto ranges = parse_ranges(building.values, building.range_count, page_exists_);
  if (!ranges) {
    erase(entry);
    return tl::unexpected(ranges.error());
  }
  assembling_.erase(key.id);
  building.values = {};
  building.state = State::kLive;
  building.gpadl = std::make_shared<const Gpadl>(Gpadl{key.id, key.relid, std::move(*ranges)});
  return true;
}

std::optional<GpadlTable::State> GpadlTable::state(Relid relid, GpadlId id) const {
  const auto found = entries_.find(Key{relid, id});
  return found == entries_.end() ? std::nullopt : std::optional{found->second.state};
}

std::shared_ptr<const Gpadl> GpadlTable::live(Relid relid, GpadlId id) const {
  const auto found = entries_.find(Key{relid, id});
  if (found == entries_.end() || found->second.state != State::kLive) return nullptr;
  return found->second.gpadl;
}

std::vector<std::shared_ptr<const Gpadl>> GpadlTable::live(Relid relid) const {
  std::vector<std::shared_ptr<const Gpadl>> found;
  for (auto entry = entries_.lower_bound(Key{relid, 0});
       entry != entries_.end() && entry->first.relid == relid; ++entry) {
    if (entry->second.state == State::kLive) found.push_back(entry->second.gpadl);
  }
  return found;
}

void GpadlTable::want_release(Relid relid, GpadlId id, bool answer) {
  Entry& entry = entries_.at(Key{relid, id});
  VMBUSD_ASSERT(entry.state == State::kLive);
  entry.state = State::kWanted;
  entry.answer = answer;
}

void GpadlTable::abandon(Relid relid) {
  for (auto entry = first_of(relid); entry != entries_.end() && entry->first.relid == relid;) {
    if (entry->second.state == State::kAssembling) {
      entry = erase(entry);
      continue;
    }
    if (entry->second.state == State::kLive) entry->second.state = State::kWanted;
    ++entry;
  }
}

std::vector<std::shared_ptr<const Gpadl>> GpadlTable::take_wanted(Relid relid) {
  std::vector<std::shared_ptr<const Gpadl>> taken;
  for (auto entry = first_of(relid); entry != entries_.end() && entry->first.relid == relid; ++entry) {
    if (entry->second.state != State::kWanted) continue;
    entry->second.state = State::kReleasing;
    taken.push_back(entry->second.gpadl);
  }
  return taken;
}

bool GpadlTable::settled() const {
  return std::all_of(entries_.begin(), entries_.end(),
                     [](const Entries::value_type& entry) { return entry.second.state == State::kLive; });
}

void GpadlTable::save(SerialWriter& out) const {
  for (const auto& [key, entry] : entries_) {
    GpadlHeader header;
    header.relid = key.relid;
    header.gpadl = key.id;
    header.rangecount = static_cast<std::uint16_t>(entry.gpadl->ranges.size());
    std::size_t values = 0;
    for (const Gpadl::Range& range : entry.gpadl->ranges) values += 1 + range.pages.size();
    header.range_buflen = static_cast<std::uint16_t>(values * sizeof(std::uint64_t));
    out.put(header);
    for (const Gpadl::Range& range : entry.gpadl->ranges) {
      out.put(GpaRangeHeader{range.byte_count, range.byte_offset});
      out.put_bytes(std::as_bytes(std::span(range.pages)));
    }
  }
}

Result<void> GpadlTable::restore(SerialReader& in, const std::function<bool(Relid)>& has) {
  VMBUSD_TRY(const GpadlHeader header, in.get<GpadlHeader>());
  if (!has(header.relid)) return fail(Errc::kProtocol, "a GPADL of no channel");
  VMBUSD_TRY(const std::span<const std::byte> values, in.get_bytes(header.range_buflen));
  VMBUSD_TRY(const bool complete, begin(header, values));
  if (!complete) return fail(Errc::kProtocol, "a GPADL that is not complete");
  return {};
}

bool GpadlTable::holds(Gpn first, std::uint64_t count) const {
  const auto inside = [=](Gpn page) { return page >= first && page - first < count; };
  return std::any_of(entries_.begin(), entries_.end(), [&](const Entries::value_type& entry) {
    if (entry.second.gpadl == nullptr) return false;
    const std::vector<Gpadl::Range>& ranges = entry.second.gpadl->ranges;
    return std::any_of(ranges.begin(), ranges.end(), [&](const Gpadl::Range& range) {
      return std::any_of(range.pages.begin(), range.pages.end(), inside);
    });
  });
}

bool GpadlTable::erase(Relid relid, GpadlId id) {
  const auto entry = entries_.find(Key{relid, id});
  VMBUSD_ASSERT(entry != entries_.end());
  VMBUSD_ASSERT(entry->second.state == State::kAssembling || entry->second.state == State::kReleasing);
  const bool answer = entry->second.answer;
  erase(entry);
  return answer;
}

GpadlTable::Entries::iterator GpadlTable::erase(Entries::iterator entry) {
  if (entry->second.state == State::kAssembling) assembling_.erase(entry->first.id);
  pages_charged_ -= entry->second.pages_charged;
  return entries_.erase(entry);
}

bool GpadlTable::any(Relid relid) const {
  const auto entry = entries_.lower_bound(Key{relid, 0});
  return entry != entries_.end() && entry->first.relid == relid;
}

}  // namespace vmbusd::vmbus
