#include "storvsp/scsi_command.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace vmbusd::storvsp {
namespace {

ScsiNext illegal_request(ScsiResult& result, scsi::Asc asc, FieldPointer field, std::uint8_t where) {
  check_condition(result, scsi::SenseKey::kIllegalRequest, asc);
  result.sense.key_specific =
      static_cast<std::uint8_t>(scsi::kSenseSpecificValid | where | scsi::kSenseBitValid | field.bit);
  result.sense.field = field.byte;
  return ScsiNext::kComplete;
}

}  // namespace

ScsiNext succeed(ScsiResult& result) {
  result.status = scsi::Status::kGood;
  result.transferred = 0;
  return ScsiNext::kComplete;
}

ScsiNext check_condition(ScsiResult& result, scsi::SenseKey key, scsi::Asc asc) {
  result.status = scsi::Status::kCheckCondition;
  result.transferred = 0;
  result.sense = {};
  result.sense.response_code = scsi::kSenseCurrentFixed;
  result.sense.flags_and_key = static_cast<std::uint8_t>(key);
  result.sense.additional_length =
      sizeof(scsi::FixedSense) - offsetof(scsi::FixedSense, additional_length) - 1;
  result.sense.asc = static_cast<std::uint8_t>(static_cast<std::uint16_t>(asc) >> 8);
  result.sense.ascq = static_cast<std::uint8_t>(asc);
  return ScsiNext::kComplete;
}

ScsiNext invalid_cdb(ScsiResult& result, scsi::Asc asc, FieldPointer field) {
  return illegal_request(result, asc, field, scsi::kSenseInCdb);
}

ScsiNext invalid_parameter(ScsiResult& result, FieldPointer field) {
  return illegal_request(result, scsi::Asc::kInvalidFieldInParameterList, field, 0);
}

ScsiNext parameter_list_length_error(ScsiResult& result) {
  return check_condition(result, scsi::SenseKey::kIllegalRequest, scsi::Asc::kParameterListLengthError);
}

ScsiNext miscompare(ScsiResult& result, std::optional<std::uint32_t> offset) {
  check_condition(result, scsi::SenseKey::kMiscompare, scsi::Asc::kMiscompareDuringVerify);
  if (offset) {
    result.sense.response_code |= scsi::kSenseInformationValid;
    result.sense.information = *offset;
  }
  return ScsiNext::kComplete;
}

ScsiNext reply(const ScsiCommand& command, ScsiResult& result, std::span<const std::byte> bytes,
               std::uint32_t allocation_length) {
  std::size_t left = std::min<std::size_t>({bytes.size(), allocation_length, command.data_length});
  result.status = scsi::Status::kGood;
  result.transferred = static_cast<std::uint32_t>(left);
  for (const iovec& buffer : command.data) {
    const std::size_t size = std::min(left, buffer.iov_len);
    if (size == 0) break;
    std::memcpy(buffer.iov_base, bytes.data(), size);
    bytes = bytes.subspan(size);
    left -= size;
  }
  return ScsiNext::kComplete;
}

void copy_parameters(const ScsiCommand& command, std::span<std::byte> out, std::uint32_t offset) {
  VMBUSD_ASSERT(offset <= command.data_length && out.size() <= command.data_length - offset);
  std::size_t skip = offset;
  for (const iovec& buffer : command.data) {
    if (skip >= buffer.iov_len) {
      skip -= buffer.iov_len;
      continue;
    }
    const std::size_t size = std::min(out.size(), buffer.iov_len - skip);
    if (size == 0) break;
    std::memcpy(out.data(), static_cast<const std::byte*>(buffer.iov_base) + skip, size);
    out = out.subspan(size);
    skip = 0;
  }
}

}  // namespace vmbusd::storvsp
