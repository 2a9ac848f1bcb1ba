/* One ring: a producer that blocks when it is full, and a consumer that sleeps when it is empty.
 *
 * Where nobody can go on, everything that was written has been read, and nobody waits for room: no wake-up was lost. And at no
 * time is a unit read that is not written, or written that is not read (see next()).
 *
 * The producer is OutgoingRing, or with PRODUCER_ALWAYS_ASKS a guest's as Linux's hv_sock has it, which sets pending_send_size
 * once and for ever. The consumer is IncomingRing, or a guest's: CONSUMER_LINUX looks at the amount of room alone,
 * CONSUMER_NEVER_MASKS lets the producer signal while it reads, as hv_utils does.
 */
#define RINGS 1
#include "ring.pml"

#ifdef PRODUCER_ALWAYS_ASKS
#define ALWAYS_ASKS true
#else
#define ALWAYS_ASKS false
#endif
#ifdef CONSUMER_NEVER_MASKS
#define MASKS false
#else
#define MASKS true
#endif
#if defined(CONSUMER_LINUX) || defined(CONSUMER_NEVER_MASKS)
#define SIGNALS_WHEN_EMPTY false
#else
#define SIGNALS_WHEN_EMPTY true
#endif

#define PRODUCER 0
#define CONSUMER 1

bool blocked;  /* the producer waits for room */

proctype producer() {
  End p;
  byte size, wanted, before, loaded, placed;
  bool fits;
  do
  :: select(size : 1 .. 2);
    do
    :: write(PRODUCER, 0, p, size, fits, placed);
      if
      :: fits -> break
      :: else
      fi;
      if
      :: ALWAYS_ASKS -> commit(PRODUCER, 0, p, before, loaded)
      :: else ->
        arm_space(PRODUCER, 0, p, size, wanted, before, loaded)
      fi;
      if
      :: p.armed || ALWAYS_ASKS ->
        /* The end of a turn, as Channel::poll() ends it: publish, signal, sleep. */
        commit(PRODUCER, 0, p, before, loaded);
        signal_due(PRODUCER, CONSUMER, p);
        if
        :: ALWAYS_ASKS ->
          /* It looks once more with everything published, and sleeps where there is still no room. */
          p.seen = memory[READ_INDEX(0)];
          if
          :: room(p) < size -> blocked = true; sleep(PRODUCER); blocked = false
          :: else
          fi
        :: else -> blocked = true; sleep(PRODUCER); blocked = false
        fi
      :: else
      fi
    od;
    size = 0; fits = false
  :: p.position != p.published || p.due ->  /* a batch may end anywhere */
    commit(PRODUCER, 0, p, before, loaded);
    signal_due(PRODUCER, CONSUMER, p)
  :: p.position == p.published && !p.due -> break  /* nothing more to say, for ever */
  od
}

proctype consumer() {
  End c;
  byte before, wanted, written;
  bool found, sleeps;
  do
  :: next(0, c, found);
    if
    :: found
    :: found ->  /* a batch may end anywhere */
      release(CONSUMER, PRODUCER, 0, c, SIGNALS_WHEN_EMPTY, before, wanted, written)
    :: else ->
      if
      :: is(sleeps_unreleased) -> skip
      :: else -> release(CONSUMER, PRODUCER, 0, c, SIGNALS_WHEN_EMPTY, before, wanted, written)
      fi;
      unmask(CONSUMER, 0, c, MASKS, sleeps);
      if
      :: sleeps ->
        sleep(CONSUMER);
        if
        :: MASKS -> store(CONSUMER, MASK(0), 1)
        :: else
        fi
      :: else
      fi
    fi
  od
}

proctype at_rest() {
  timeout -> assert(!blocked && memory[READ_INDEX(0)] == memory[WRITE_INDEX(0)])
}

init {
  atomic {
    memory[MASK(0)] = MASKS;
    if
    :: ALWAYS_ASKS -> memory[PENDING(0)] = 2
    :: else
    fi;
    run store_buffer(PRODUCER);
    run store_buffer(CONSUMER);
    run producer();
    run consumer();
    run at_rest()
  }
}
