/* A channel: two rings between two threads, each of which has one bell for both. The guest sends requests; the host
 * (devices::Channel with a handler as StorChannel) takes at most DEPTH at a time, finishes them in its own time, and
 * answers. Where answers do not fit it stops reading, asks for room and sleeps with its incoming ring masked.
 *
 * Where nobody can go on, both rings are empty and every request has been answered.
 *
 * GUEST_ASKS_FOR_ROOM: the guest sets pending_send_size as guest/ does; else it tries again at the next answer, as storvsc.
 */
#ifndef UNITS
#define UNITS 3
#endif
#define RINGS 2
#include "ring.pml"

#ifdef GUEST_ASKS_FOR_ROOM
#define GUEST_ARMS true
#else
#define GUEST_ARMS false
#endif

#define HOST 0
#define GUEST 1
#define INCOMING 0  /* guest to host */
#define OUTGOING 1

#define DEPTH 1        /* requests that the host has room for */
#define OUTSTANDING 3  /* that the guest waits for at most */

byte unanswered;  /* requests that the guest wrote and has no answer for */

inline signal_room(thread, other, r, c, always_when_empty, before, wanted, written) {
  if
  :: is(mask_holds_room_signal) && memory[MASK(1 - r)] != 0 ->
    c.published = c.position;
    exchange(thread, READ_INDEX(r), c.position)
  :: else -> release(thread, other, r, c, always_when_empty, before, wanted, written)
  fi
}

proctype host() {
  End p, c;
  byte in_flight, answers, wanted, before, loaded, placed;
  bool fits, found, worked, stalled, sleeps;
  do
  :: worked = false;
    do
    :: answers == 0 ->
      if
      :: p.armed -> p.armed = false; store(HOST, PENDING(OUTGOING), 0)
      :: else
      fi;
      break
    :: answers > 0 ->
      write(HOST, OUTGOING, p, 1, fits, placed);
      if
      :: fits -> answers--; worked = true
      :: !fits && is(stalls_unarmed) -> break
      :: else ->
        arm_space(HOST, OUTGOING, p, 1, wanted, before, loaded);
        if
        :: p.armed -> break
        :: else
        fi
      fi
    od;
    do
    :: answers == 0 && in_flight < DEPTH ->
      next(INCOMING, c, found);
      if
      :: found -> in_flight++; worked = true
      :: else -> break
      fi
    :: answers > 0 || in_flight == DEPTH -> break
    od;
    found = false;
    stalled = answers > 0 || in_flight == DEPTH;
    commit(HOST, OUTGOING, p, before, loaded);
    release(HOST, GUEST, INCOMING, c, true, before, wanted, loaded);
    signal_due(HOST, GUEST, p);
    if
    :: worked
    :: else ->
      if
      :: stalled && (in_flight > 0 || p.armed) -> sleeps = true
      :: else -> unmask(HOST, INCOMING, c, true, sleeps)
      fi;
      if
      :: sleeps ->
        if
        :: sleep(HOST)
        :: in_flight > 0 -> in_flight--; answers++
        fi;
        store(HOST, MASK(INCOMING), 1)
      :: else
      fi
    fi
  :: in_flight > 0 -> in_flight--; answers++
  od
}

proctype guest() {
  End p, c;
  byte wanted, before, loaded, placed;
  bool fits, found, quiet, blocked, sleeps;
  do
  :: !quiet && !blocked && unanswered < OUTSTANDING ->
    write(GUEST, INCOMING, p, 1, fits, placed);
    if
    :: fits -> unanswered++
    :: !fits && GUEST_ARMS -> arm_space(GUEST, INCOMING, p, 1, wanted, before, loaded); blocked = p.armed
    :: else -> blocked = true
    fi;
    fits = false
  :: !quiet -> quiet = true
  :: next(OUTGOING, c, found);
    if
    :: found -> found = false; unanswered--; blocked = false
    :: else ->
      commit(GUEST, INCOMING, p, before, loaded);
      signal_room(GUEST, HOST, OUTGOING, c, false, before, wanted, loaded);
      signal_due(GUEST, HOST, p);
      unmask(GUEST, OUTGOING, c, true, sleeps);
      if
      :: sleeps -> sleep(GUEST); blocked = false; store(GUEST, MASK(OUTGOING), 1)
      :: else
      fi
    fi
  od
}

proctype at_rest() {
  timeout -> assert(unanswered == 0 && memory[READ_INDEX(INCOMING)] == memory[WRITE_INDEX(INCOMING)])
}

init {
  atomic {
    memory[MASK(INCOMING)] = 1;
    memory[MASK(OUTGOING)] = 1;
    run store_buffer(HOST);
    run store_buffer(GUEST);
    run host();
    run guest();
    run at_rest()
  }
}
