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

// PERSISTENT RESERVE OUT. Its parameter list is copied to the job's scratch memory.

constexpr std::uint32_t kListSize = sizeof(scsi::ReserveOutList);

ReserveOut action_of(const ScsiCommand& command) {
  return static_cast<ReserveOut>(command.cdb[1] & 0x1f);
}

ReservationType type_of(const ScsiCommand& command) {
  return static_cast<ReservationType>(command.cdb[2] & 0x0f);
}

scsi::ReserveOutList list_of(const ScsiJob& job) {
  scsi::ReserveOutList list;
  std::memcpy(&list, job.given().data(), sizeof list);
  return list;
}

// What the command makes of `state`.
Outcome apply(const ScsiJob& job, Reservations::State& state) {
  const scsi::ReserveOutList list = list_of(job);
  const std::uint64_t key = list.key;
  const std::uint64_t service_key = list.service_key;
  const ReservationType type = type_of(job.command);
  const bool keep = (list.flags & scsi::kReserveOutPersist) != 0;
  switch (action_of(job.command)) {
    case ReserveOut::kRegister:
      return state.do_register(key, service_key, keep);
    case ReserveOut::kRegisterAndIgnore:
      return state.do_register(std::nullopt, service_key, keep);
    case ReserveOut::kReserve:
      return state.reserve(key, type);
    case ReserveOut::kRelease:
      return state.release(key, static_cast<std::uint8_t>(type));
    case ReserveOut::kClear:
      return state.clear(key);
    case ReserveOut::kPreempt:
    case ReserveOut::kPreemptAndAbort:
      // The commands of others would be aborted; there are no others.
      return state.preempt(key, service_key, type);
  }
  return Outcome::kConflict;  // the table of commands knows no other action
}

ScsiNext made(const ScsiJob& job, ScsiResult& result, const Reservations::State& state) {
  job.lun->reservations().set_state(state);
  return finish(Outcome::kGood, result, kListSize);
}

// What is kept is what will be, so now it is. Nothing has changed in between: the command is alone.
ScsiNext record_kept(ScsiJob& job, int error, ScsiResult& result) {
  if (error != 0) return fail_job(job, error, result);
  Reservations::State state = job.lun->reservations().state().value_or(Reservations::State{});
  if (apply(job, state) != Outcome::kGood) return conflict(result);
  return made(job, result, state);
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
      if (lun.keeps_reservations()) capabilities.flags2 = scsi::kReservePersistCapable;
      capabilities.flags3 = scsi::kReserveTypesValid;
      if (state->kept) capabilities.flags3 |= scsi::kReservePersistActive;
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
ScsiNext persistent_reserve_out(ScsiJob& job, ScsiResult& result) {
  constexpr std::array kTypes = {ReservationType::kWriteExclusive,
                                 ReservationType::kExclusiveAccess,
                                 ReservationType::kWriteExclusiveRegistrants,
                                 ReservationType::kExclusiveAccessRegistrants,
                                 ReservationType::kWriteExclusiveAllRegistrants,
                                 ReservationType::kExclusiveAccessAllRegistrants};
  const ScsiCommand& command = job.command;
  const ReserveOut action = action_of(command);
  const std::uint8_t scope = command.cdb[2] >> 4;
  if (cdb_field<std::uint32_t>(command, 5) != kListSize || command.data_length < kListSize)
    return parameter_list_length_error(result);
  const bool makes_reservation = action == ReserveOut::kReserve || action == ReserveOut::kPreempt ||
                                 action == ReserveOut::kPreemptAndAbort;
  if (makes_reservation || action == ReserveOut::kRelease) {
    if (scope != 0) return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 7});
  }
  if (makes_reservation && std::find(kTypes.begin(), kTypes.end(), type_of(command)) == kTypes.end()) {
    return invalid_cdb(result, Asc::kInvalidFieldInCdb, {2, 3});
  }
  copy_parameters(command, job.given().first(kListSize));
  const std::uint8_t flags = list_of(job).flags;
  if (action == ReserveOut::kRegister || action == ReserveOut::kRegisterAndIgnore) {
    // Other initiators and ports, and perhaps power loss: REPORT CAPABILITIES says what of it is not done.
    constexpr std::uint16_t kFlagsByte = offsetof(scsi::ReserveOutList, flags);
    if ((flags & scsi::kReserveOutSpecifyInitiators) != 0) return invalid_parameter(result, {kFlagsByte, 3});
    if ((flags & scsi::kReserveOutAllPorts) != 0) return invalid_parameter(result, {kFlagsByte, 2});
    if ((flags & scsi::kReserveOutPersist) != 0 && !job.lun->keeps_reservations()) {
      return invalid_parameter(result, {kFlagsByte, 0});
    }
  }

  const std::optional<Reservations::State> before = job.lun->reservations().state();
  if (!before) return conflict(result);
  Reservations::State after = *before;
  const Outcome outcome = apply(job, after);
  if (outcome != Outcome::kGood) return finish(outcome, result, 0);
  const Guid& unit = job.lun->identity().id;
  const ReservationRecord record = to_record(after, unit);
  if (record == to_record(*before, unit)) return made(job, result, after);
  const std::span<std::byte> kept = job.found().first(sizeof record);
  std::memcpy(kept.data(), &record, sizeof record);
  return job.disk({.op = DiskOp::kKeep, .length = sizeof record}, kept, record_kept);
}

// [SPC-2: RESERVE(6) command, RESERVE(10) command]
ScsiNext reserve_unit(LogicalUnit& lun, const ScsiCommand& /*command*/, ScsiResult& result, DiskIo& /*io*/) {
  return finish(lun.reservations().reserve_unit(), result, 0);
}
ScsiNext release_unit(LogicalUnit& lun, const ScsiCommand& /*command*/, ScsiResult& result, DiskIo& /*io*/) {
  return finish(lun.reservations().release_unit(), result, 0);
}

}  // namespace vmbusd::storvsp
