// Commands about the unit and its target as such.
#include <array>

#include "storvsp/scsi_handlers.h"

namespace vmbusd::storvsp {

using scsi::Asc;

ScsiNext test_unit_ready(LogicalUnit& /*lun*/, const ScsiCommand& /*command*/, ScsiResult& result,
                         DiskIo& /*io*/) {
  return succeed(result);
}

// Sense goes out with the command that failed, so what can be pending is a unit attention.
// [SPC-4: REQUEST SENSE command]
ScsiNext request_sense(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& /*io*/) {
  const std::uint8_t allocation_length = command.cdb[4];
  const bool descriptor_format = (command.cdb[1] & 0x01) != 0;
  const std::optional<Asc> attention = lun.take_attention();
  const scsi::SenseKey key = attention ? scsi::SenseKey::kUnitAttention : scsi::SenseKey::kNoSense;
  const Asc asc = attention.value_or(Asc::kNone);
  if (descriptor_format) {
    scsi::DescriptorSense sense{};
    sense.response_code = scsi::kSenseCurrentDescriptor;
    sense.key = static_cast<std::uint8_t>(key);
    sense.asc = static_cast<std::uint8_t>(static_cast<std::uint16_t>(asc) >> 8);
    sense.ascq = static_cast<std::uint8_t>(asc);
    return reply(command, result, wire_bytes(sense), allocation_length);
  }
  ScsiResult pending;
  check_condition(pending, key, asc);
  return reply(command, result, wire_bytes(pending.sense), allocation_length);
}

// [SBC-3: START STOP UNIT command]
ScsiNext start_stop_unit(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result, DiskIo& io) {
  const std::uint8_t flags = command.cdb[4];
  if ((flags & 0xf0) != 0) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {4, 7});  // power conditions
  if ((flags & 0x02) != 0)
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {4, 1});  // LOEJ: nothing to eject
  const bool start = (flags & 0x01) != 0;
  const bool no_flush = (flags & 0x04) != 0;
  if (start) {
    lun.start();
    return succeed(result);
  }
  lun.stop();
  if (no_flush || lun.read_only()) return succeed(result);
  io = DiskIo{DiskOp::kFlush};
  return ScsiNext::kDisk;
}

// [SPC-4: SEND DIAGNOSTIC command] The default self-test of a virtual disk is to be there.
ScsiNext send_diagnostic(LogicalUnit& /*lun*/, const ScsiCommand& command, ScsiResult& result,
                         DiskIo& /*io*/) {
  const bool self_test = (command.cdb[1] & 0x04) != 0;
  if (!self_test || (command.cdb[1] & 0xe0) != 0) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {1, 7});
  }
  if (command.cdb[3] != 0 || command.cdb[4] != 0) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {3, 7});
  return succeed(result);
}

// The medium cannot be removed anyway.
ScsiNext prevent_allow_medium_removal(LogicalUnit& /*lun*/, const ScsiCommand& /*command*/,
                                      ScsiResult& result, DiskIo& /*io*/) {
  return succeed(result);
}

ScsiNext report_luns(LogicalUnit& /*lun*/, const ScsiCommand& command, ScsiResult& result, DiskIo& /*io*/) {
  return report_luns(command, result);
}

// [SPC-4: REPORT LUNS command]
ScsiNext report_luns(const ScsiCommand& command, ScsiResult& result) {
  constexpr std::uint8_t kAddressable = 0;  // without well-known units
  constexpr std::uint8_t kWellKnown = 1;
  constexpr std::uint8_t kAll = 2;
  constexpr std::uint32_t kAllocationMin = 16;
  constexpr std::size_t kLunSize = 8;

  const std::uint8_t select = command.cdb[2];
  if (select > kAll) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 7});
  const auto allocation_length = cdb_field<std::uint32_t>(command, 6);
  if (allocation_length < kAllocationMin) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {6, 7});

  std::array<std::uint8_t, sizeof(scsi::ReportLunsHeader) + 64 * kLunSize> data{};
  std::size_t size = sizeof(scsi::ReportLunsHeader);
  static_assert(kAddressable == 0);
  for (std::uint8_t lun = 0; lun < 64 && select != kWellKnown; ++lun) {
    if ((command.target_luns >> lun & 1) == 0) continue;
    data[size + 1] = lun;  // peripheral device addressing, bus 0
    size += kLunSize;
  }
  scsi::ReportLunsHeader header{};
  header.list_length = static_cast<std::uint32_t>(size - sizeof header);
  std::memcpy(data.data(), &header, sizeof header);
  return reply(command, result, std::as_bytes(std::span(data)).first(size), allocation_length);
}

}  // namespace vmbusd::storvsp
