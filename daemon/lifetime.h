// Callbacks of an object that may be gone when they are called.
#pragma once

#include <memory>
#include <utility>

namespace vmbusd::daemon {

// A member of the object. To close or cancel what it waits for is not enough: what had come before that is in
// the event loop's queue already, and is called without an error. [boost.asio:
// basic_waitable_timer::cancel()]
class Lifetime {
 public:
  // The function, until the object is gone; nothing afterwards.
  template <typename Function>
  [[nodiscard]] auto guard(Function function) const {
    return [alive = std::weak_ptr<const char>(alive_), function = std::move(function)](auto&&... arguments) {
      if (!alive.expired()) function(std::forward<decltype(arguments)>(arguments)...);
    };
  }

 private:
  std::shared_ptr<const char> alive_ = std::make_shared<const char>();
};

}  // namespace vmbusd::daemon
