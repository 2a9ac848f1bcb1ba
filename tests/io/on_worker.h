// How tests call what belongs to a worker's thread.
#pragma once

#include <future>
#include <memory>
#include <utility>

#include "io/worker.h"

namespace vmbusd::io {

// Runs `function` on the worker, which runs, waits for it and returns what it returned. Not on the worker.
template <typename Function>
auto on_worker(Worker& worker, Function function) {
  using Call = std::packaged_task<decltype(function())()>;
  // The worker's, too: it may not be through with the call when the result is there.
  const auto call = std::make_shared<Call>(std::move(function));
  worker.post([call] { (*call)(); });
  return call->get_future().get();
}

}  // namespace vmbusd::io
