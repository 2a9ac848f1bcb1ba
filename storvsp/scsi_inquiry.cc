// INQUIRY: who a LUN is, and its vital product data.
#include <algorithm>
#include <array>
#include <cstring>

#include "base/assert.h"
#include "storvsp/scsi_handlers.h"

namespace vmbusd::storvsp {
namespace {

using scsi::Asc;
using scsi::VpdPage;

// A page in the making. Large enough for the longest.
class PageBuilder {
 public:
  explicit PageBuilder(VpdPage page) { add(scsi::VpdHeader{scsi::kTypeDirectAccess, page, {}}); }

  void add_bytes(std::span<const std::byte> bytes) {
    VMBUSD_ASSERT(size_ + bytes.size() <= data_.size());
    std::memcpy(data_.data() + size_, bytes.data(), bytes.size());
    size_ += bytes.size();
  }
  template <WireStruct T>
  void add(const T& value) {
    add_bytes(wire_bytes(value));
  }
  [[nodiscard]] std::span<const std::byte> finish() {
    const BigEndian16 length = static_cast<std::uint16_t>(size_ - sizeof(scsi::VpdHeader));
    std::memcpy(data_.data() + offsetof(scsi::VpdHeader, length), &length, sizeof length);
    return std::span(data_).first(size_);
  }

 private:
  std::array<std::byte, 128> data_{};
  std::size_t size_ = 0;
};

template <typename T>
T page_struct(VpdPage page) {
  T value{};
  value.header.qualifier_and_type = scsi::kTypeDirectAccess;
  value.header.page = page;
  value.header.length = static_cast<std::uint16_t>(sizeof(T) - sizeof(scsi::VpdHeader));
  return value;
}

ScsiNext unit_serial_number(const LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result,
                            std::uint16_t allocation_length) {
  PageBuilder page(VpdPage::kUnitSerialNumber);
  page.add_bytes(std::as_bytes(std::span(lun.identity().serial)));
  return reply(command, result, page.finish(), allocation_length);
}

ScsiNext device_identification(const LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result,
                               std::uint16_t allocation_length) {
  const Guid& id = lun.identity().id;
  PageBuilder page(VpdPage::kDeviceIdentification);
  // As Hyper-V makes them, so that tools which know its disks know ours. [reference: storvsp 6.2]
  page.add(scsi::DesignatorHeader{scsi::kCodeSetBinary, scsi::kDesignatorT10Vendor, 0, 8 + 16});
  page.add_bytes(std::as_bytes(std::span(lun.identity().vendor)));
  page.add(id);
  // NAA 6 (IEEE registered extended), company 00-22-48, then 12 bytes of the GUID that tell it apart.
  std::array<std::uint8_t, 16> naa = {0x60, 0x02, 0x24, 0x80};
  std::copy_n(id.bytes.begin(), 6, naa.begin() + 4);
  std::copy_n(id.bytes.begin() + 10, 6, naa.begin() + 10);
  page.add(scsi::DesignatorHeader{scsi::kCodeSetBinary, scsi::kDesignatorNaa, 0, sizeof naa});
  page.add_bytes(std::as_bytes(std::span(naa)));
  return reply(command, result, page.finish(), allocation_length);
}

ScsiNext extended_inquiry(const LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result,
                          std::uint16_t allocation_length) {
  auto page = page_struct<scsi::ExtendedInquiryPage>(VpdPage::kExtendedInquiry);
  page.flags5 = scsi::kExtendedSimpleTasks;
  if (lun.default_write_cache()) page.flags6 = scsi::kExtendedVolatileCache;
  return reply(command, result, wire_bytes(page), allocation_length);
}

ScsiNext block_limits(const LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result,
                      std::uint16_t allocation_length) {
  const DiskGeometry& geometry = lun.geometry();
  auto page = page_struct<scsi::BlockLimitsPage>(VpdPage::kBlockLimits);
  page.optimal_granularity =
      static_cast<std::uint16_t>(geometry.physical_block_bytes / geometry.logical_block_bytes);
  page.flags = scsi::kWriteSameNonZero;
  page.max_compare_and_write =
      static_cast<std::uint8_t>(std::min(compare_and_write_blocks_max(geometry), 255u));
  page.max_transfer = lun.max_transfer_bytes() / geometry.logical_block_bytes;
  page.max_write_same = write_same_blocks_max(geometry);
  if (geometry.discards) {
    page.max_unmap_blocks = kUnmapBlocksMax;
    page.max_unmap_descriptors = kUnmapDescriptorsMax;
    page.optimal_unmap_granularity = geometry.physical_block_bytes / geometry.logical_block_bytes;
    page.unmap_alignment = scsi::kUnmapAlignmentValid;
  }
  return reply(command, result, wire_bytes(page), allocation_length);
}

ScsiNext block_characteristics(const LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result,
                               std::uint16_t allocation_length) {
  auto page = page_struct<scsi::BlockCharacteristicsPage>(VpdPage::kBlockDeviceCharacteristics);
  if (!lun.geometry().rotational) page.rotation_rate = scsi::kNotRotating;
  return reply(command, result, wire_bytes(page), allocation_length);
}

ScsiNext provisioning(const LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result,
                      std::uint16_t allocation_length) {
  auto page = page_struct<scsi::ProvisioningPage>(VpdPage::kLogicalBlockProvisioning);
  if (lun.geometry().discards) {
    page.flags = scsi::kProvisioningUnmap | scsi::kProvisioningWriteSame16 | scsi::kProvisioningWriteSame10;
    if (lun.geometry().discard_zeroes) page.flags |= scsi::kProvisioningReadsZeros;
    page.type = scsi::kProvisioningThin;
  }
  return reply(command, result, wire_bytes(page), allocation_length);
}

ScsiNext supported_pages(const LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result,
                         std::uint16_t allocation_length);

struct PageEntry {
  VpdPage page;
  ScsiNext (*handler)(const LogicalUnit&, const ScsiCommand&, ScsiResult&, std::uint16_t);
};
constexpr std::array<PageEntry, 7> kPages = {{
    {VpdPage::kSupportedPages, supported_pages},
    {VpdPage::kUnitSerialNumber, unit_serial_number},
    {VpdPage::kDeviceIdentification, device_identification},
    {VpdPage::kExtendedInquiry, extended_inquiry},
    {VpdPage::kBlockLimits, block_limits},
    {VpdPage::kBlockDeviceCharacteristics, block_characteristics},
    {VpdPage::kLogicalBlockProvisioning, provisioning},
}};

ScsiNext supported_pages(const LogicalUnit& /*lun*/, const ScsiCommand& command, ScsiResult& result,
                         std::uint16_t allocation_length) {
  PageBuilder page(VpdPage::kSupportedPages);
  for (const PageEntry& entry : kPages) page.add(static_cast<std::uint8_t>(entry.page));
  return reply(command, result, page.finish(), allocation_length);
}

scsi::InquiryData inquiry_header(std::uint8_t qualifier_and_type) {
  scsi::InquiryData data{};
  data.qualifier_and_type = qualifier_and_type;
  data.version = scsi::kVersionSpc3;
  data.flags3_format = scsi::kInquiryFormat;
  data.additional_length = sizeof data - offsetof(scsi::InquiryData, additional_length) - 1;
  return data;
}

}  // namespace

// [SPC-4: INQUIRY command]
ScsiNext inquiry(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& /*io*/) {
  const bool vital_product_data = (command.cdb[1] & 0x01) != 0;
  const auto allocation_length = cdb_field<std::uint16_t>(command, 3);
  if (vital_product_data) {
    for (const PageEntry& entry : kPages) {
      if (static_cast<std::uint8_t>(entry.page) == command.cdb[2]) {
        return entry.handler(lun, command, result, allocation_length);
      }
    }
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 7});
  }
  if (command.cdb[2] != 0) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 7});

  scsi::InquiryData data = inquiry_header(scsi::kTypeDirectAccess);
  // Linux sends tagged commands, and more than one at a time, only with it.
  data.flags7 = scsi::kInquiryCommandQueue;
  data.version_descriptors = {scsi::kStandardSam4, scsi::kStandardSpc3, scsi::kStandardSbc3};
  data.vendor = lun.identity().vendor;
  data.product = lun.identity().product;
  data.revision = lun.identity().revision;
  return reply(command, result, wire_bytes(data), allocation_length);
}

// storvsc turns a failed INQUIRY into a successful one with an untouched buffer, which reads as a disk: only
// data can tell that there is none. [linux: storvsc_drv.c, storvsc_on_io_completion]
ScsiNext inquiry_without_lun(const ScsiCommand& command, ScsiResult& result) {
  const bool vital_product_data = (command.cdb[1] & 0x01) != 0;
  if (vital_product_data) {
    return check_condition(result, scsi::SenseKey::kIllegalRequest, Asc::kLogicalUnitNotSupported);
  }
  if (command.cdb[2] != 0) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 7});
  return reply(command, result, wire_bytes(inquiry_header(scsi::kNoLogicalUnit)),
               cdb_field<std::uint16_t>(command, 3));
}

}  // namespace vmbusd::storvsp
