// Who has reserved a LUN: registrations, the persistent reservation, and RESERVE's.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>

#include "base/guid.h"
#include "base/wire.h"

#include "base/result.h"
#include "storvsp/stor_record.h"

namespace vmbusd::storvsp {

// PERSISTENT RESERVE OUT, TYPE field.
enum class ReservationType : std::uint8_t {
  kWriteExclusive = 1,
  kExclusiveAccess = 3,
  kWriteExclusiveRegistrants = 5,
  kExclusiveAccessRegistrants = 6,
  kWriteExclusiveAllRegistrants = 7,
  kExclusiveAccessAllRegistrants = 8,
};

// How a command about reservations ends.
enum class ReservationOutcome : std::uint8_t {
  kGood,
  kConflict,        // RESERVATION CONFLICT
  kInvalidRelease,  // of another type than what is held
  kInvalidPreempt,  // of key 0
};

// Registrations and the persistent reservation, and the rules by which they change.
//
// A disk that can be written belongs to one partition, so one I_T nexus reaches a LUN: the guest's
// controller, over all of its channels. What it reserves never stops itself; what is kept here is what it is
// told, and what its own next command must fit. [SPC-4: Reservations]
struct PersistentReservation {
  std::uint32_t generation = 0;         // PRGENERATION
  std::optional<std::uint64_t> key;     // of the registered nexus
  std::optional<ReservationType> type;  // of the reservation, which that nexus holds
  bool kept = false;                    // APTPL: outlasts the worker process

  // Each changes something only where it is good. `key` is the nexus's own; nullopt: not looked at.
  // `new_key` 0: no registration any more.
  ReservationOutcome do_register(std::optional<std::uint64_t> own_key, std::uint64_t new_key, bool keep);
  ReservationOutcome reserve(std::uint64_t own_key, ReservationType new_type);
  ReservationOutcome release(std::uint64_t own_key, std::uint8_t of_type);
  ReservationOutcome clear(std::uint64_t own_key);
  ReservationOutcome preempt(std::uint64_t own_key, std::uint64_t victim, ReservationType new_type);
};

// What DiskOp::kKeep keeps of it.
struct ReservationRecord {
  std::uint64_t key;
  Guid unit;  // whose it is: an image that moves to another LUN takes no reservation with it
  std::uint8_t registered;
  std::uint8_t type;  // 0: none is held
  std::array<std::uint8_t, 6> reserved;

  friend bool operator==(const ReservationRecord&, const ReservationRecord&) = default;
};
static_assert(kIsWire<ReservationRecord, 32>);

// The record for `state`; one that says nothing where it is not kept.
[[nodiscard]] ReservationRecord to_record(const PersistentReservation& state, const Guid& unit);
// Empty where the bytes are no record of this unit's, or one that cannot be. The generation starts over.
[[nodiscard]] std::optional<PersistentReservation> from_record(std::span<const std::byte> bytes,
                                                               const Guid& unit);

// Lives as long as the LUN: a guest that restarts finds it, as on an array. Any thread; all take a lock,
// which no READ or WRITE does.
class Reservations {
 public:
  using Outcome = ReservationOutcome;
  using State = PersistentReservation;

  // Empty where RESERVE has the LUN.
  [[nodiscard]] std::optional<State> state() const;
  void set_state(const State& state);

  // RESERVE and RELEASE, which exclude persistent reservations.
  Outcome reserve_unit();
  Outcome release_unit();
  // A reset ends what RESERVE did, and nothing else.
  void reset_unit();

  // All of it, in a LunRecord that is empty otherwise; and back: Errc::kProtocol where it cannot be.
  [[nodiscard]] LunRecord save() const;
  [[nodiscard]] Result<void> restore(const LunRecord& record);

 private:
  mutable std::mutex mutex_;
  State state_;
  bool unit_reserved_ = false;
};

}  // namespace vmbusd::storvsp
