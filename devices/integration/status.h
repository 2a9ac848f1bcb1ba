// What the integration components tell of the guest.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "devices/integration/protocol.h"
#include "io/worker.h"

namespace vmbusd::integration {

enum class Part : std::uint8_t { kHeartbeat, kShutdown, kTimeSync, kKvp, kVss };
inline constexpr std::size_t kParts = 5;

enum class PartState : std::uint8_t {
  kOff,          // not offered
  kClosed,       // no driver of the guest's has opened it
  kNegotiating,  // the guest has not answered which versions it knows
  kReady,
  kRefused,  // the guest knows none of the versions
};

// As a guest that answers is seen.
enum class Health : std::uint8_t {
  kUnknown,  // there is no heartbeat
  kOk,
  kLost,  // it had one and does not answer
};

// Of the guest's file systems.
enum class FreezeState : std::uint8_t { kThawed, kFreezing, kFrozen, kThawing };

// Texts of the guest's, UTF-8.
struct KeyValue {
  std::string key;
  std::string value;

  friend bool operator==(const KeyValue&, const KeyValue&) = default;
};

struct PartStatus {
  PartState state = PartState::kOff;
  Version version{};  // of its messages, where it is ready
};

struct Status {
  std::array<PartStatus, kParts> parts;
  std::optional<io::Clock::time_point> heartbeat;  // when the guest last answered, while the channel is open

  std::vector<KeyValue> facts;  // what the guest's daemon tells of the guest
  std::vector<KeyValue> keys;   // what the guest's programs tell
  FreezeState freeze = FreezeState::kThawed;

  [[nodiscard]] const PartStatus& part(Part which) const { return parts[static_cast<std::size_t>(which)]; }
};

// Channels of several workers write it now and then, the control thread reads it: never on a data path, so a
// lock will do.
class StatusBoard {
 public:
  template <typename Change>
  void change(Change&& change) {
    const std::lock_guard lock(mutex_);
    change(status_);
  }
  void set(Part which, PartState state, Version version = {}) {
    change([&](Status& status) { status.parts[static_cast<std::size_t>(which)] = {state, version}; });
  }
  [[nodiscard]] Status get() const {
    const std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  mutable std::mutex mutex_;
  Status status_;
};

}  // namespace vmbusd::integration
