// LOG SENSE: what a unit counts and notices about itself, which is next to nothing.
#include <array>
#include <cstring>

#include "storvsp/scsi_handlers.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Asc;
using scsi::LogPage;

struct PageEntry {
  LogPage page;
  std::uint8_t subpage;
};
constexpr std::array<PageEntry, 3> kPages = {{
    {LogPage::kSupportedPages, 0},
    {LogPage::kSupportedPages, scsi::kLogSubpages},
    {LogPage::kInformationalExceptions, 0},
}};

ScsiNext reply_page(const ScsiCommand& command, ScsiResult& result, std::uint8_t page, std::uint8_t subpage,
                    std::span<const std::byte> parameters) {
  scsi::LogHeader header{};
  header.page = page;
  header.subpage = subpage;
  header.length = static_cast<std::uint16_t>(parameters.size());
  std::array<std::byte, 16> data;
  static_assert(sizeof data >= sizeof header + 2 * kPages.size() &&
                sizeof data >= sizeof header + sizeof(scsi::InformationalExceptionsLog));
  std::memcpy(data.data(), &header, sizeof header);
  std::memcpy(data.data() + sizeof header, parameters.data(), parameters.size());
  return reply(command, result, std::span(data).first(sizeof header + parameters.size()),
               cdb_field<std::uint16_t>(command, 7));
}

ScsiNext supported_pages(const ScsiCommand& command, ScsiResult& result, bool with_subpages) {
  std::array<std::uint8_t, 2 * kPages.size()> list{};
  std::size_t size = 0;
  for (const PageEntry& entry : kPages) {
    if (!with_subpages && entry.subpage != 0) continue;
    list[size++] = static_cast<std::uint8_t>(entry.page);
    if (with_subpages) list[size++] = entry.subpage;
  }
  return reply_page(command, result, with_subpages ? scsi::kLogSubpageFormat : 0,
                    with_subpages ? scsi::kLogSubpages : 0, std::as_bytes(std::span(list)).first(size));
}

// Nothing is wrong that commands do not tell, and a virtual disk has no temperature.
ScsiNext informational_exceptions(const ScsiCommand& command, ScsiResult& result) {
  scsi::InformationalExceptionsLog log{};
  log.control = scsi::kLogBinaryList;
  log.length = sizeof log - offsetof(scsi::InformationalExceptionsLog, length) - 1;
  log.temperature = scsi::kTemperatureUnknown;
  const auto page = static_cast<std::uint8_t>(LogPage::kInformationalExceptions);
  return reply_page(command, result, scsi::kLogNotSaved | page, 0, wire_bytes(log));
}

}  // namespace

// [SPC-4: LOG SENSE command] Threshold and default values of what is not counted are what the current ones
// are.
ScsiNext log_sense(LogicalUnit& /*lun*/, const ScsiCommand& command, ScsiResult& result, DiskIo& /*io*/) {
  const auto page = static_cast<LogPage>(command.cdb[2] & 0x3f);
  const std::uint8_t subpage = command.cdb[3];
  if (page != LogPage::kSupportedPages && page != LogPage::kInformationalExceptions) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 5});
  }
  const bool with_subpages = page == LogPage::kSupportedPages && subpage == scsi::kLogSubpages;
  if (subpage != 0 && !with_subpages) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {3, 7});
  // No page has a parameter behind its first.
  if (cdb_field<std::uint16_t>(command, 5) != 0) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {5, 7});
  if (page == LogPage::kSupportedPages) return supported_pages(command, result, with_subpages);
  return informational_exceptions(command, result);
}

}  // namespace vmbusd::storvsp
