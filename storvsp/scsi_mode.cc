// MODE SENSE and MODE SELECT: the pages of settings, of which the write cache is the one that changes.
#include <algorithm>
#include <array>
#include <cstring>

#include "base/assert.h"
#include "storvsp/scsi_handlers.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Asc;
using scsi::ModePage;

enum class PageControl : std::uint8_t { kCurrent = 0, kChangeable = 1, kDefault = 2, kSaved = 3 };

constexpr std::uint8_t kAllSubpages = 0xff;
constexpr std::size_t kPageSizeMax = 20;
constexpr std::size_t kPageHeaderSize = 2;

// A page's bytes, with page code and length.
struct PageBytes {
  std::array<std::uint8_t, kPageSizeMax> bytes{};
  std::size_t size = 0;

  template <WireStruct T>
  explicit PageBytes(const T& page) : size(sizeof page) {
    static_assert(sizeof(T) <= kPageSizeMax);
    std::memcpy(bytes.data(), &page, sizeof page);
  }
};

PageBytes caching_page(const LogicalUnit& lun, PageControl control) {
  scsi::CachingModePage page{};
  page.page = static_cast<std::uint8_t>(ModePage::kCaching);
  page.length = sizeof page - kPageHeaderSize;
  const bool wce = control == PageControl::kChangeable ? lun.write_cache_changeable()
                   : control == PageControl::kDefault  ? lun.default_write_cache()
                                                       : lun.write_cache();
  if (wce) page.flags = scsi::kCachingWce;
  return PageBytes(page);
}

PageBytes control_page(const LogicalUnit& /*lun*/, PageControl control) {
  scsi::ControlModePage page{};
  page.page = static_cast<std::uint8_t>(ModePage::kControl);
  page.length = sizeof page - kPageHeaderSize;
  if (control != PageControl::kChangeable) {
    page.flags3 = scsi::kControlUnrestrictedReordering;
    page.busy_timeout = 0xffff;
  }
  return PageBytes(page);
}

PageBytes error_recovery_page(const LogicalUnit& /*lun*/, PageControl control) {
  scsi::ErrorRecoveryModePage page{};
  page.page = static_cast<std::uint8_t>(ModePage::kErrorRecovery);
  page.length = sizeof page - kPageHeaderSize;
  if (control != PageControl::kChangeable) page.flags = scsi::kRecoveryWriteReallocation;
  return PageBytes(page);
}

// Failures are told by the commands that they befall.
PageBytes informational_exceptions_page(const LogicalUnit& /*lun*/, PageControl control) {
  scsi::InformationalExceptionsModePage page{};
  page.page = static_cast<std::uint8_t>(ModePage::kInformationalExceptions);
  page.length = sizeof page - kPageHeaderSize;
  if (control != PageControl::kChangeable) page.flags = scsi::kExceptionsDisabled;
  return PageBytes(page);
}

struct PageEntry {
  ModePage page;
  PageBytes (*bytes)(const LogicalUnit&, PageControl);
};
constexpr std::array<PageEntry, 4> kPages = {{
    {ModePage::kErrorRecovery, error_recovery_page},
    {ModePage::kCaching, caching_page},
    {ModePage::kControl, control_page},
    {ModePage::kInformationalExceptions, informational_exceptions_page},
}};

const PageEntry* find_page(std::uint8_t code) {
  const auto found = std::find_if(kPages.begin(), kPages.end(), [code](const PageEntry& entry) {
    return static_cast<std::uint8_t>(entry.page) == code;
  });
  return found == kPages.end() ? nullptr : &*found;
}

// [SPC-4: MODE SENSE(6) command]
ScsiNext mode_sense(const LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, bool long_header,
                    std::uint16_t allocation_length) {
  const auto control = static_cast<PageControl>(command.cdb[2] >> 6);
  const std::uint8_t code = command.cdb[2] & 0x3f;
  const std::uint8_t subpage = command.cdb[3];
  const bool all = code == static_cast<std::uint8_t>(ModePage::kAll);
  if (control == PageControl::kSaved) {
    return invalid_cdb(result, Asc::kSavingParametersNotSupported, {2, 7});
  }
  if (!all && find_page(code) == nullptr) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 5});
  if (subpage != 0 && !(all && subpage == kAllSubpages)) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {3, 7});
  }

  std::array<std::uint8_t, sizeof(scsi::ModeHeader10) + kPages.size() * kPageSizeMax> data{};
  std::size_t size = long_header ? sizeof(scsi::ModeHeader10) : sizeof(scsi::ModeHeader6);
  for (const PageEntry& entry : kPages) {
    if (!all && static_cast<std::uint8_t>(entry.page) != code) continue;
    const PageBytes page = entry.bytes(lun, control);
    std::copy_n(page.bytes.begin(), page.size, data.begin() + static_cast<std::ptrdiff_t>(size));
    size += page.size;
  }
  const auto device_specific =
      static_cast<std::uint8_t>(scsi::kModeDpoFua | (lun.read_only() ? scsi::kModeWriteProtected : 0));
  if (long_header) {
    scsi::ModeHeader10 header{};
    header.data_length = static_cast<std::uint16_t>(size - sizeof header.data_length);
    header.device_specific = device_specific;
    std::memcpy(data.data(), &header, sizeof header);
  } else {
    scsi::ModeHeader6 header{};
    header.data_length = static_cast<std::uint8_t>(size - sizeof header.data_length);
    header.device_specific = device_specific;
    std::memcpy(data.data(), &header, sizeof header);
  }
  return reply(command, result, std::as_bytes(std::span(data)).first(size), allocation_length);
}

ScsiNext cache_flushed(ScsiJob& job, int error, ScsiResult& result) {
  return error != 0 ? fail_job(job, error, result) : succeed(result);
}

// [SPC-4: MODE SELECT(6) command] All or nothing: every page is checked before one takes effect. Exclusive,
// so no write that began under the old setting ends under the new one.
ScsiNext mode_select(ScsiJob& job, ScsiResult& result, bool long_header, std::uint16_t list_length) {
  LogicalUnit& lun = *job.lun;
  const ScsiCommand& command = job.command;
  constexpr std::size_t kListMax = sizeof(scsi::ModeHeader10) + kPages.size() * kPageSizeMax;
  const bool page_format = (command.cdb[1] & 0x10) != 0;
  const bool save_pages = (command.cdb[1] & 0x01) != 0;
  if (!page_format) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {1, 4});
  if (save_pages) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {1, 0});
  if (list_length == 0) return succeed(result);
  const std::size_t header_size = long_header ? sizeof(scsi::ModeHeader10) : sizeof(scsi::ModeHeader6);
  if (list_length < header_size || list_length > kListMax || list_length > command.data_length) {
    return parameter_list_length_error(result);
  }
  std::array<std::uint8_t, kListMax> list{};
  copy_parameters(command, std::as_writable_bytes(std::span(list)).first(list_length));

  // The device-specific byte holds what the medium is, not what it should be: ignored.
  const std::uint16_t medium_type_byte = long_header ? 2 : 1;
  if (list[medium_type_byte] != 0) return invalid_parameter(result, {medium_type_byte});
  if (long_header && list[4] != 0) return invalid_parameter(result, {4});
  // We show no block descriptors: the block size is what it is.
  const std::uint16_t descriptors_byte = long_header ? 6 : 3;
  if (list[descriptors_byte] != 0 || (long_header && list[descriptors_byte + 1u] != 0)) {
    return invalid_parameter(result, {descriptors_byte});
  }

  bool write_cache = lun.write_cache();
  for (std::size_t at = header_size; at < list_length;) {
    const auto byte = static_cast<std::uint16_t>(at);
    if (list_length - at < kPageHeaderSize) return parameter_list_length_error(result);
    // Also refuses PS (bit 7, reserved here) and SPF (bit 6).
    const PageEntry* const entry = find_page(list[at]);
    if (entry == nullptr) return invalid_parameter(result, {byte});
    const PageBytes current = entry->bytes(lun, PageControl::kCurrent);
    const PageBytes changeable = entry->bytes(lun, PageControl::kChangeable);
    if (list[at + 1] != current.bytes[1]) {
      return invalid_parameter(result, {static_cast<std::uint16_t>(byte + 1)});
    }
    if (list_length - at < current.size) return parameter_list_length_error(result);
    for (std::size_t i = kPageHeaderSize; i < current.size; ++i) {
      if (((list[at + i] ^ current.bytes[i]) & ~changeable.bytes[i]) != 0) {
        return invalid_parameter(result, {static_cast<std::uint16_t>(at + i)});
      }
    }
    if (entry->page == ModePage::kCaching) {
      write_cache = (list[at + offsetof(scsi::CachingModePage, flags)] & scsi::kCachingWce) != 0;
    }
    at += current.size;
  }

  const bool switched_off = lun.write_cache() && !write_cache;
  lun.set_write_cache(write_cache);
  if (!switched_off || lun.read_only()) return succeed(result);
  // The guest will not flush any more what it wrote until now.
  return job.disk({.op = DiskOp::kFlush}, cache_flushed);
}

}  // namespace

ScsiNext mode_sense6(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& /*io*/) {
  return mode_sense(lun, command, result, false, command.cdb[4]);
}
ScsiNext mode_sense10(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& /*io*/) {
  return mode_sense(lun, command, result, true, cdb_field<std::uint16_t>(command, 7));
}
ScsiNext mode_select6(ScsiJob& job, ScsiResult& result) {
  return mode_select(job, result, false, job.command.cdb[4]);
}
ScsiNext mode_select10(ScsiJob& job, ScsiResult& result) {
  return mode_select(job, result, true, cdb_field<std::uint16_t>(job.command, 7));
}

}  // namespace vmbusd::storvsp
