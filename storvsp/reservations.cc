#include "storvsp/reservations.h"

#include <cstring>

namespace vmbusd::storvsp {
namespace {

bool of_all_registrants(ReservationType type) {
  return type == ReservationType::kWriteExclusiveAllRegistrants ||
         type == ReservationType::kExclusiveAccessAllRegistrants;
}

bool known(ReservationType type) {
  switch (type) {
    case ReservationType::kWriteExclusive:
    case ReservationType::kExclusiveAccess:
    case ReservationType::kWriteExclusiveRegistrants:
    case ReservationType::kExclusiveAccessRegistrants:
    case ReservationType::kWriteExclusiveAllRegistrants:
    case ReservationType::kExclusiveAccessAllRegistrants:
      return true;
  }
  return false;
}

}  // namespace

ReservationOutcome PersistentReservation::do_register(std::optional<std::uint64_t> own_key,
                                                      std::uint64_t new_key, bool keep) {
  if (own_key && *own_key != key.value_or(0)) return ReservationOutcome::kConflict;
  if (!key && new_key == 0) return ReservationOutcome::kGood;
  ++generation;
  kept = keep;
  if (new_key != 0) {
    key = new_key;
  } else {
    // The only registrant goes, and with it what it held.
    key.reset();
    type.reset();
  }
  return ReservationOutcome::kGood;
}

ReservationOutcome PersistentReservation::reserve(std::uint64_t own_key, ReservationType new_type) {
  if (own_key != key || (type && *type != new_type)) return ReservationOutcome::kConflict;
  type = new_type;
  return ReservationOutcome::kGood;
}

ReservationOutcome PersistentReservation::release(std::uint64_t own_key, std::uint8_t of_type) {
  if (own_key != key) return ReservationOutcome::kConflict;
  if (type && static_cast<std::uint8_t>(*type) != of_type) return ReservationOutcome::kInvalidRelease;
  type.reset();
  return ReservationOutcome::kGood;
}

ReservationOutcome PersistentReservation::clear(std::uint64_t own_key) {
  if (own_key != key) return ReservationOutcome::kConflict;
  ++generation;
  key.reset();
  type.reset();
  return ReservationOutcome::kGood;
}

// [SPC-4: Preempting] All that it can find is itself.
ReservationOutcome PersistentReservation::preempt(std::uint64_t own_key, std::uint64_t victim,
                                                  ReservationType new_type) {
  if (own_key != key) return ReservationOutcome::kConflict;
  const bool all_registrants = type && of_all_registrants(*type);
  if (victim == 0 && !all_registrants) return ReservationOutcome::kInvalidPreempt;
  if (victim != 0 && victim != key) return ReservationOutcome::kConflict;
  ++generation;
  if (!type) {
    key.reset();  // the registrations with this key
  } else if (!all_registrants || victim == 0) {
    type = new_type;  // its reservation, by a new one of the same holder
  } else {
    key.reset();
    type.reset();
  }
  return ReservationOutcome::kGood;
}

ReservationRecord to_record(const PersistentReservation& state, const Guid& unit) {
  ReservationRecord record{};
  record.unit = unit;
  if (!state.kept || !state.key) return record;
  record.registered = 1;
  record.key = *state.key;
  if (state.type) record.type = static_cast<std::uint8_t>(*state.type);
  return record;
}

std::optional<PersistentReservation> from_record(std::span<const std::byte> bytes, const Guid& unit) {
  ReservationRecord record;
  if (!read_wire(bytes, record) || record.unit != unit || record.registered != 1 || record.key == 0) {
    return std::nullopt;
  }
  PersistentReservation state;
  state.key = record.key;
  state.kept = true;
  if (record.type != 0) {
    const ReservationType type{record.type};
    if (!known(type)) return std::nullopt;
    state.type = type;
  }
  return state;
}

std::optional<Reservations::State> Reservations::state() const {
  const std::lock_guard lock(mutex_);
  if (unit_reserved_) return std::nullopt;
  return state_;
}

void Reservations::set_state(const State& state) {
  const std::lock_guard lock(mutex_);
  state_ = state;
}

Reservations::Outcome Reservations::reserve_unit() {
  const std::lock_guard lock(mutex_);
  if (state_.key) return Outcome::kConflict;
  unit_reserved_ = true;
  return Outcome::kGood;
}

Reservations::Outcome Reservations::release_unit() {
  const std::lock_guard lock(mutex_);
  if (state_.key) return Outcome::kConflict;
  unit_reserved_ = false;
  return Outcome::kGood;
}

void Reservations::reset_unit() {
  const std::lock_guard lock(mutex_);
  unit_reserved_ = false;
}

LunRecord Reservations::save() const {
  const std::lock_guard lock(mutex_);
  LunRecord record{};
  record.key = state_.key.value_or(0);
  record.generation = state_.generation;
  record.registered = state_.key ? 1 : 0;
  record.reservation = state_.type ? static_cast<std::uint8_t>(*state_.type) : 0;
  record.unit_reserved = unit_reserved_ ? 1 : 0;
  record.kept = state_.kept ? 1 : 0;
  return record;
}

Result<void> Reservations::restore(const LunRecord& record) {
  const bool reserved = record.reservation != 0;
  const ReservationType type{record.reservation};
  if ((reserved && (!known(type) || record.registered == 0)) ||
      (record.unit_reserved != 0 && record.registered != 0)) {
    return fail(Errc::kProtocol, "a reservation that cannot be");
  }
  const std::lock_guard lock(mutex_);
  state_.generation = record.generation;
  state_.key = record.registered != 0 ? std::optional(record.key) : std::nullopt;
  state_.type = reserved ? std::optional(type) : std::nullopt;
  state_.kept = record.kept != 0;
  unit_reserved_ = record.unit_reserved != 0;
  return {};
}

}  // namespace vmbusd::storvsp
