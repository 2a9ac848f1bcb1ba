// Who has reserved a LUN: registrations, the persistent reservation, and RESERVE's.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>

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

// A disk that can be written belongs to one partition, so one I_T nexus reaches a LUN: the guest's
// controller, over all of its channels. What it reserves never stops itself; what is kept here is what it is
// told, and what its own next command must fit. Lives as long as the LUN: a guest that restarts finds it, as
// on an array. [SPC-4: Reservations]
class Reservations {
 public:
  enum class Outcome : std::uint8_t {
    kGood,
    kConflict,        // RESERVATION CONFLICT
    kInvalidRelease,  // of another type than what is held
    kInvalidPreempt,  // of key 0
  };
  struct State {
    std::uint32_t generation = 0;         // PRGENERATION
    std::optional<std::uint64_t> key;     // of the registered nexus
    std::optional<ReservationType> type;  // of the reservation, which that nexus holds
  };

  // Any thread; all take a lock, which no READ or WRITE does. Empty where RESERVE has the LUN.
  [[nodiscard]] std::optional<State> state() const;
  // `key` is the nexus's own; nullopt: not looked at. `new_key` 0: no registration any more.
  Outcome do_register(std::optional<std::uint64_t> key, std::uint64_t new_key);
  Outcome reserve(std::uint64_t key, ReservationType type);
  Outcome release(std::uint64_t key, std::uint8_t type);
  Outcome clear(std::uint64_t key);
  Outcome preempt(std::uint64_t key, std::uint64_t victim, ReservationType type);

  // RESERVE and RELEASE, which exclude persistent reservations.
  Outcome reserve_unit();
  Outcome release_unit();
  // A reset ends what RESERVE did, and nothing else.
  void reset_unit();

  // All of it, in a LunRecord that is empty otherwise; and back: Errc::kProtocol where it cannot be.
  [[nodiscard]] LunRecord save() const;
  [[nodiscard]] Result<void> restore(const LunRecord& record);

 private:
  [[nodiscard]] bool allowed(std::uint64_t key) const { return !unit_reserved_ && state_.key == key; }

  mutable std::mutex mutex_;
  State state_;
  bool unit_reserved_ = false;
};

}  // namespace vmbusd::storvsp
