#include "storvsp/reservations.h"

namespace vmbusd::storvsp {
namespace {

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

}  // namespace vmbusd::storvsp
