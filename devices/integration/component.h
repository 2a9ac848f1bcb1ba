// What one integration component asks of the guest, and when.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "base/guid.h"
#include "base/log.h"
#include "devices/integration/protocol.h"
#include "devices/integration/status.h"
#include "io/worker.h"

namespace vmbusd::integration {

using TimePoint = io::Clock::time_point;
inline constexpr TimePoint kNever = TimePoint::max();

// What came of a request: empty, or a sentence that says why nothing did.
using Done = std::function<void(std::string problem)>;

// The constants of a component.
struct Kind {
  Part part;
  const char* name;  // "heartbeat"
  Guid interface_type;
  Guid instance;  // the same in every partition, as Hyper-V has it
  MessageType type;
  std::span<const Version> versions;  // oldest first
};

// The logic of one component on one open channel, without I/O; time is passed in. On the channel's worker.
//
//   keep() -> ready() -> [tick(), next() -> the guest answers -> answered()]* -> closed()
//
// closed() may come at any time behind keep(), and nothing follows it.
class Component {
 public:
  virtual ~Component() = default;

  // Before all else: memory, zeroed when the channel is new, that stays when another worker process takes the
  // channel up (`recovered`), which is not trusted to be as this class left it.
  virtual void keep(std::span<std::byte> memory, bool recovered) {
    (void)memory;
    (void)recovered;
  }
  // The guest agreed on a version.
  virtual void ready(Version version, TimePoint now) = 0;
  // Time has passed, with or without an answer outstanding.
  virtual void tick(TimePoint now) = 0;
  // The body of what to ask now, valid until the next call; empty: nothing. Only while no answer is
  // outstanding.
  [[nodiscard]] virtual std::span<const std::byte> next(TimePoint now) = 0;
  // The guest's answer to that. `body` is what it says, of any size and content.
  virtual void answered(std::uint32_t status, std::span<const std::byte> body, TimePoint now) = 0;
  // When tick() is wanted again.
  [[nodiscard]] virtual TimePoint due() const = 0;
  // The channel is gone.
  virtual void closed() = 0;
};

}  // namespace vmbusd::integration
