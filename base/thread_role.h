// What the threads of a process are for, told to whoever takes from each what it does not need.
#pragma once

#include <cstdint>

namespace vmbusd {

enum class ThreadRole : std::uint8_t {
  kIo,      // an io::Worker's
  kHelper,  // makes system calls for another thread that must not wait for them
};

// `hook` runs first thing on each thread that announces itself from here on. Once, before there is such a
// thread. A process without a hook leaves its threads as they are.
void set_thread_hook(void (*hook)(ThreadRole role));
// Called by each new thread but the process's first.
void thread_started(ThreadRole role);

}  // namespace vmbusd
