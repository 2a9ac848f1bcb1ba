// Marks what callgrind counts; nothing happens where it does not run.
#pragma once

#include <valgrind/callgrind.h>

namespace vmbusd::bench {

// Alternately; nothing is counted at first, for callgrind runs with --collect-atstart=no.
inline void start_counting() {
  CALLGRIND_TOGGLE_COLLECT;
}
inline void stop_counting() {
  CALLGRIND_TOGGLE_COLLECT;
}

// Writes what was counted under `name`, and counts from zero again.
inline void write_count(const char* name) {
  CALLGRIND_DUMP_STATS_AT(name);
}

}  // namespace vmbusd::bench
