#include "storvsp/reservations.h"

namespace vmbusd::storvsp {
namespace {

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

bool of_all_registrants(ReservationType type) {
  return type == ReservationType::kWriteExclusiveAllRegistrants ||
         type == ReservationType::kExclusiveAccessAllRegistrants;
}

}  // namespace

std::optional<Reservations::State> Reservations::state() const {
  const std::lock_guard lock(mutex_);
  if (unit_reserved_) return std::nullopt;
  return state_;
}

Reservations::Outcome Reservations::do_register(std::optional<std::uint64_t> key, std::uint64_t new_key) {
  const std::lock_guard lock(mutex_);
  if (unit_reserved_ || (key && *key != state_.key.value_or(0))) return Outcome::kConflict;
  if (!state_.key && new_key == 0) return Outcome::kGood;
  ++state_.generation;
  if (new_key != 0) {
    state_.key = new_key;
  } else {
    // The only registrant goes, and with it what it held.
    state_.key.reset();
    state_.type.reset();
  }
  return Outcome::kGood;
}

Reservations::Outcome Reservations::reserve(std::uint64_t key, ReservationType type) {
  const std::lock_guard lock(mutex_);
  if (!allowed(key) || (state_.type && *state_.type != type)) return Outcome::kConflict;
  state_.type = type;
  return Outcome::kGood;
}

Reservations::Outcome Reservations::release(std::uint64_t key, std::uint8_t type) {
  const std::lock_guard lock(mutex_);
  if (!allowed(key)) return Outcome::kConflict;
  if (state_.type && static_cast<std::uint8_t>(*state_.type) != type) return Outcome::kInvalidRelease;
  state_.type.reset();
  return Outcome::kGood;
}

Reservations::Outcome Reservations::clear(std::uint64_t key) {
  const std::lock_guard lock(mutex_);
  if (!allowed(key)) return Outcome::kConflict;
  ++state_.generation;
  state_.key.reset();
  state_.type.reset();
  return Outcome::kGood;
}

// [SPC-4: Preempting] All that it can find is itself.
Reservations::Outcome Reservations::preempt(std::uint64_t key, std::uint64_t victim, ReservationType type) {
  const std::lock_guard lock(mutex_);
  if (!allowed(key)) return Outcome::kConflict;
  const bool all_registrants = state_.type && of_all_registrants(*state_.type);
  if (victim == 0 && !all_registrants) return Outcome::kInvalidPreempt;
  if (victim != 0 && victim != state_.key) return Outcome::kConflict;
  ++state_.generation;
  if (!state_.type) {
    state_.key.reset();  // the registrations with this key
  } else if (!all_registrants || victim == 0) {
    state_.type = type;  // its reservation, by a new one of the same holder
  } else {
    state_.key.reset();
    state_.type.reset();
  }
  return Outcome::kGood;
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
  unit_reserved_ = record.unit_reserved != 0;
  return {};
}

}  // namespace vmbusd::storvsp
