// PERSISTENT RESERVE IN and OUT, RESERVE and RELEASE.
#include <algorithm>
#include <array>
#include <cstring>

#include "storvsp/scsi_handlers.h"

namespace vmbusd::storvsp {
namespace {

using Outcome = Reservations::Outcome;
using scsi::Asc;
using scsi::ReserveIn;
using scsi::ReserveOut;

ScsiNext conflict(ScsiResult& result) {
  result.status = scsi::Status::kReservationConflict;
  result.transferred = 0;
  return ScsiNext::kComplete;
}

ScsiNext finish(Outcome outcome, ScsiResult& result, std::uint32_t transferred) {
  constexpr std::uint16_t kServiceKeyByte = offsetof(scsi::ReserveOutList, service_key);
  switch (outcome) {
    case Outcome::kGood:
      succeed(result);
      result.transferred = transferred;
      return ScsiNext::kComplete;
    case Outcome::kConflict:
      return conflict(result);
    case Outcome::kInvalidRelease:
      return check_condition(result, scsi::SenseKey::kIllegalRequest, Asc::kInvalidRelease);
    case Outcome::kInvalidPreempt:
      return invalid_parameter(result, {kServiceKeyByte});
  }
  return conflict(result);
}

std::uint8_t scope_and_type(ReservationType type) {
  return static_cast<std::uint8_t>(type);  // scope 0: the logical unit
}

bool of_all_registrants(ReservationType type) {
  return type >= ReservationType::kWriteExclusiveAllRegistrants;
}

template <typename T>
ScsiNext reply_struct(const ScsiCommand& command, ScsiResult& result, const T& data) {
  return reply(command, result, wire_bytes(data), cdb_field<std::uint16_t>(command, 7));
}

template <typename Header, typename Body>
ScsiNext reply_with(const ScsiCommand& command, ScsiResult& result, Header header, const Body& body) {
  header.additional_length = sizeof body;
  std::array<std::byte, sizeof header + sizeof body> data;
  std::memcpy(data.data(), &header, sizeof header);
  std::memcpy(data.data() + sizeof header, &body, sizeof body);
  return reply(command, result, data, cdb_field<std::uint16_t>(command, 7));
}

// [SPC-4: PERSISTENT RESERVE IN command, READ FULL STATUS] VSTOR has no TransportID; SRP's has room for a
// name of 16 bytes, and the LUN's own is as good as any where there is one nexus.
scsi::FullStatusDescriptor full_status(const LogicalUnit& lun, const Reservations::State& state) {
  scsi::FullStatusDescriptor descriptor{};
  descriptor.key = *state.key;
  if (state.type) {
    descriptor.flags = scsi::kFullStatusHolder;
    descriptor.scope_and_type = scope_and_type(*state.type);
  }
  descriptor.relative_target_port = 1;
  descriptor.additional_length = sizeof descriptor.transport;
  descriptor.transport.protocol = scsi::kProtocolSrp;
  static_assert(sizeof descriptor.transport.initiator == sizeof(Guid));
  std::memcpy(descriptor.transport.initiator.data(), &lun.identity().id, sizeof(Guid));
  return descriptor;
}

}  // namespace

// [SPC-4: PERSISTENT RESERVE IN command]
ScsiNext persistent_reserve_in(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result,
                               DiskIo& /*io*/) {
  const auto action = static_cast<ReserveIn>(command.cdb[1] & 0x1f);
  const std::optional<Reservations::State> state = lun.reservations().state();
  if (!state) return conflict(result);
  const scsi::ReserveInHeader header{.generation = state->generation, .additional_length = 0};
  switch (action) {
    case ReserveIn::kReadKeys:
      if (!state->key) return reply_struct(command, result, header);
      return reply_with(command, result, header, BigEndian64(*state->key));
    case ReserveIn::kReadReservation: {
      if (!state->type) return reply_struct(command, result, header);
      scsi::ReservationDescriptor descriptor{};
      if (!of_all_registrants(*state->type)) descriptor.key = *state->key;
      descriptor.scope_and_type = scope_and_type(*state->type);
      return reply_with(command, result, header, descriptor);
    }
    case ReserveIn::kReportCapabilities: {
      scsi::ReserveCapabilities capabilities{};
      capabilities.length = sizeof capabilities;
      capabilities.flags3 = scsi::kReserveTypesValid;
      capabilities.types = scsi::kReserveAllTypes;
      return reply_struct(command, result, capabilities);
    }
    case ReserveIn::kReadFullStatus:
      if (!state->key) return reply_struct(command, result, header);
      return reply_with(command, result, header, full_status(lun, *state));
  }
  return invalid_cdb(result, Asc::kInvalidFieldInCdb, {1, 4});
}

// [SPC-4: PERSISTENT RESERVE OUT command]
ScsiNext persistent_reserve_out(LogicalUnit& lun, const ScsiCommand& command, ScsiResult& result,
                                DiskIo& /*io*/) {
  constexpr std::array kTypes = {ReservationType::kWriteExclusive,
                                 ReservationType::kExclusiveAccess,
                                 ReservationType::kWriteExclusiveRegistrants,
                                 ReservationType::kExclusiveAccessRegistrants,
                                 ReservationType::kWriteExclusiveAllRegistrants,
                                 ReservationType::kExclusiveAccessAllRegistrants};
  const auto action = static_cast<ReserveOut>(command.cdb[1] & 0x1f);
  const std::uint8_t scope = command.cdb[2] >> 4;
  const std::uint8_t type_code = command.cdb[2] & 0x0f;
  const auto type = static_cast<ReservationType>(type_code);
  const auto list_length = cdb_field<std::uint32_t>(command, 5);
  scsi::ReserveOutList list;
  if (list_length != sizeof list || command.data_length < sizeof list)
    return parameter_list_length_error(result);
  const bool makes_reservation = action == ReserveOut::kReserve || action == ReserveOut::kPreempt ||
                                 action == ReserveOut::kPreemptAndAbort;
  if (makes_reservation || action == ReserveOut::kRelease) {
    if (scope != 0) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 7});
  }
  if (makes_reservation && std::find(kTypes.begin(), kTypes.end(), type) == kTypes.end()) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 3});
  }
  copy_parameters(command, wire_bytes_writable(list));
  const std::uint64_t key = list.key;
  const std::uint64_t service_key = list.service_key;
  Reservations& reservations = lun.reservations();
  switch (action) {
    case ReserveOut::kRegister:
    case ReserveOut::kRegisterAndIgnore: {
      // Other initiators and ports, and power loss: REPORT CAPABILITIES says that none of it is done.
      constexpr std::uint16_t kFlagsByte = offsetof(scsi::ReserveOutList, flags);
      if ((list.flags & scsi::kReserveOutSpecifyInitiators) != 0)
        return invalid_parameter(result, {kFlagsByte, 3});
      if ((list.flags & scsi::kReserveOutAllPorts) != 0) return invalid_parameter(result, {kFlagsByte, 2});
      if ((list.flags & scsi::kReserveOutPersist) != 0) return invalid_parameter(result, {kFlagsByte, 0});
      const bool ignore = action == ReserveOut::kRegisterAndIgnore;
      return finish(reservations.do_register(ignore ? std::nullopt : std::optional(key), service_key), result,
                    list_length);
    }
    case ReserveOut::kReserve:
      return finish(reservations.reserve(key, type), result, list_length);
    case ReserveOut::kRelease:
      return finish(reservations.release(key, type_code), result, list_length);
    case ReserveOut::kClear:
      return finish(reservations.clear(key), result, list_length);
    case ReserveOut::kPreempt:
    case ReserveOut::kPreemptAndAbort:
      // The commands of others would be aborted; there are no others.
      return finish(reservations.preempt(key, service_key, type), result, list_length);
  }
  return invalid_cdb(result, Asc::kInvalidFieldInCdb, {1, 4});
}

// [SPC-2: RESERVE(6) command, RESERVE(10) command]
ScsiNext reserve_unit(LogicalUnit& lun, const ScsiCommand& /*command*/, ScsiResult& result, DiskIo& /*io*/) {
  return finish(lun.reservations().reserve_unit(), result, 0);
}
ScsiNext release_unit(LogicalUnit& lun, const ScsiCommand& /*command*/, ScsiResult& result, DiskIo& /*io*/) {
  return finish(lun.reservations().release_unit(), result, 0);
}

}  // namespace vmbusd::storvsp
