#include "base/thread_role.h"

#include <atomic>

namespace vmbusd {

namespace {
std::atomic<void (*)(ThreadRole)> thread_hook{nullptr};
}  // namespace

void set_thread_hook(void (*hook)(ThreadRole role)) {
  thread_hook.store(hook);
}

void thread_started(ThreadRole role) {
  if (const auto hook = thread_hook.load()) hook(role);
}

}  // namespace vmbusd
