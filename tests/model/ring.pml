/* What both models share: memory as x86-64 has it, and the steps of a ring's two ends.
 *
 * Every statement that touches shared memory is one step, and Spin tries every interleaving of them. The steps are those of
 * OutgoingRing::write/commit/arm_space (ringbuffer/outgoing_ring.*) and IncomingRing::next/release/mask/unmask
 * (ringbuffer/incoming_ring.*), in their order. MUTANT leaves out or turns round one of them: verify.py has
 * the list, and each mutant must be caught, or the models would prove nothing.
 */

/* What this run gets wrong; 0: nothing. */
#ifndef MUTANT
#define MUTANT 0
#endif
#define write_index_without_barrier 1   /* commit(): plain store */
#define read_index_without_barrier 2    /* release(): plain store */
#define unmask_without_barrier 3        /* unmask(): plain store */
#define pending_without_barrier 4       /* arm_space(): plain store */
#define no_look_after_unmask 5          /* unmask(): does not look at write_index */
#define look_before_unmask 6            /* unmask(): looks at write_index, then clears the mask */
#define no_look_after_arming 7          /* arm_space(): does not look at read_index */
#define arms_with_unpublished 8         /* arm_space(): does not publish what was written */
#define forgets_due_signal 9            /* arm_space(): the signal that its commit() owes is dropped */
#define sleeps_unreleased 10            /* the consumer sleeps before it hands back what it read */
#define empty_by_batch_end 11           /* commit(): compares with the batch's end in place of its begin */
#define room_never_signalled 12         /* release(): ignores pending_send_size */
#define pending_before_read_index 13    /* release(): looks at pending_send_size, then publishes */
#define write_index_before_pending 14   /* release(): judges room by a write_index from before the request */
#define index_before_packet 15          /* commit(): publishes what is not written yet */
#define release_before_read 16          /* release(): hands back what is not read yet */
#define full_equals_empty 17            /* write(): fills the ring to its last unit */
#define stalls_unarmed 18               /* a channel whose answers wait for room does not ask for it */
#define mask_holds_room_signal 19       /* release(): no signal for room while the other ring is masked */
#define is(mutant) (MUTANT == mutant)

/* Units (of 8 bytes) that a ring holds; one stays free, so that full differs from empty. */
#ifndef UNITS
#define UNITS 4
#endif
#define MOST (UNITS - 1)

/* Shared words of ring r. What a unit holds is the parity of the round in which it was written: a consumer that reads what is
 * not written yet, or what the producer wrote over, finds the other parity. */
#define WRITE_INDEX(r) ((r) * (UNITS + 4))
#define READ_INDEX(r) (WRITE_INDEX(r) + 1)
#define MASK(r) (WRITE_INDEX(r) + 2)
#define PENDING(r) (WRITE_INDEX(r) + 3)
#define UNIT(r, position) (WRITE_INDEX(r) + 4 + (position))
byte memory[RINGS * (UNITS + 4)];

/* Of each thread: the stores that only it knows of, oldest first. A load is served from memory alone: no thread loads a word
 * that it stores. Locked instructions, and the system calls behind signals, wait until the buffer is empty.
 * [Sewell et al., x86-TSO] */
chan stores[2] = [3] of { byte, byte };

/* What an eventfd or an event flag latches, of each thread. */
bool bell[2];

/* Stores reach memory at any time, in their order. */
proctype store_buffer(byte thread) {
  byte word, value;
  do
  :: d_step { stores[thread]?word, value -> memory[word] = value; word = 0; value = 0 }
  od
}

inline store(thread, word, value) { stores[thread]!word, value }
inline exchange(thread, word, value) { d_step { empty(stores[thread]) -> memory[word] = value } }
inline store_or_exchange(thread, word, value, mutant) {
  if
  :: is(mutant) -> store(thread, word, value)
  :: else -> exchange(thread, word, value)
  fi
}
inline ring(thread, other) { d_step { empty(stores[thread]) -> bell[other] = true } }
inline sleep(thread) { d_step { bell[thread] -> bell[thread] = false } }

/* What an end of a ring keeps to itself. */
typedef End {
  byte position;   /* next unit to write or read */
  bool round;      /* parity of the round that position is in */
  byte published;  /* position, as the other end knows it */
  byte seen;       /* the other end's index, as it was loaded last */
  bool armed;      /* producer: pending_send_size is set */
  bool due;        /* producer: commit() is to signal */
};

#define distance(from, to) (((to) + UNITS - (from)) % UNITS)
#define free_between(read, written) (MOST - distance(read, written))

inline advance(end) {
  if
  :: end.position == MOST -> end.position = 0; end.round = !end.round
  :: else -> end.position++
  fi
}

/* OutgoingRing. */

/* Publishes; p.due says whether to signal. */
inline commit(thread, r, p, before, loaded) {
  if
  :: p.published == p.position -> skip
  :: else ->
    atomic {
      before = p.published;
      p.published = p.position;
      if
      :: is(empty_by_batch_end) -> before = p.position
      :: else
      fi
    };
    store_or_exchange(thread, WRITE_INDEX(r), p.published, write_index_without_barrier);
    if
    :: memory[MASK(r)] != 0
    :: memory[MASK(r)] == 0 ->
      loaded = memory[READ_INDEX(r)];
      if
      :: loaded == before -> p.due = true
      :: else
      fi
    fi;
    before = 0; loaded = 0
  fi
}

/* As Channel::poll() does with what commit() answered. */
inline signal_due(thread, other, p) {
  if
  :: p.due -> p.due = false; ring(thread, other)
  :: else
  fi
}

#define room(p) (free_between(p.seen, p.position) + is(full_equals_empty))

/* A packet of `size` units; `fits` says whether it is written. */
inline write(thread, r, p, size, fits, placed) {
  if
  :: room(p) < size -> p.seen = memory[READ_INDEX(r)]
  :: else
  fi;
  fits = room(p) >= size;
  if
  :: fits ->
    if
    :: p.armed -> p.armed = false; store(thread, PENDING(r), 0)
    :: else
    fi;
    placed = 0;
    do
    :: placed < size ->
      if
      :: is(index_before_packet) -> store(thread, WRITE_INDEX(r), (p.position + 1) % UNITS)
      :: else
      fi;
      store(thread, UNIT(r, p.position), !p.round);
      atomic { advance(p); placed++ }
    :: else -> break
    od;
    placed = 0
  :: else
  fi
}

/* p.armed says whether to wait for room, of which any amount that suffices may be asked for. */
inline arm_space(thread, r, p, size, wanted, before, loaded) {
  if
  :: is(arms_with_unpublished) -> skip
  :: else -> commit(thread, r, p, before, loaded)
  fi;
  if
  :: is(forgets_due_signal) -> p.due = false
  :: else
  fi;
  select(wanted : size .. MOST);
  store_or_exchange(thread, PENDING(r), wanted, pending_without_barrier);
  atomic { wanted = 0; p.armed = true };
  if
  :: is(no_look_after_arming) -> skip
  :: else ->
    p.seen = memory[READ_INDEX(r)];
    if
    :: room(p) >= size -> p.armed = false; store(thread, PENDING(r), 0)
    :: else
    fi
  fi
}

/* IncomingRing. */

#define crosses(before, after, written, wanted) (free_between(before, written) < wanted && free_between(after, written) >= wanted)

/* Reads one unit: `found` says whether there was one. Real consumers take whole packets; that may be of any size here, so
 * this consumer meets all that they meet, and more. */
inline next(r, c, found) {
  if
  :: c.position == c.seen -> c.seen = memory[WRITE_INDEX(r)]
  :: else
  fi;
  found = c.position != c.seen;
  if
  :: found ->
    if
    :: is(release_before_read) -> memory[READ_INDEX(r)] = (c.position + 1) % UNITS
    :: else
    fi;
    d_step {
      assert(memory[UNIT(r, c.position)] == !c.round);  /* written, and not written over */
      advance(c)
    }
  :: else
  fi
}

/* Hands back the room of what was read, and signals a producer that waits for it. `always_when_empty`: as vmbusd does; Linux
 * looks at the amount alone. [linux: hv_pkt_iter_close] */
inline release(thread, other, r, c, always_when_empty, before, wanted, written) {
  if
  :: c.published == c.position -> skip
  :: else ->
    atomic { before = c.published; c.published = c.position };
    if
    :: is(pending_before_read_index) -> wanted = memory[PENDING(r)]
    :: is(write_index_before_pending) -> written = memory[WRITE_INDEX(r)]
    :: else
    fi;
    store_or_exchange(thread, READ_INDEX(r), c.published, read_index_without_barrier);
    if
    :: is(pending_before_read_index) -> skip
    :: else -> wanted = memory[PENDING(r)]
    fi;
    if
    :: wanted == 0 || is(room_never_signalled) -> skip
    :: else ->
      if
      :: is(write_index_before_pending) -> skip
      :: else -> written = memory[WRITE_INDEX(r)]
      fi;
      if
      :: always_when_empty && written == c.published -> ring(thread, other)
      :: !(always_when_empty && written == c.published) && crosses(before, c.published, written, wanted) ->
        ring(thread, other)
      :: else
      fi
    fi;
    atomic { before = 0; wanted = 0; written = 0 }
  fi
}

/* Says whether to sleep. A consumer that never masks (`masks` false, as Linux's hv_utils) has released and looks again. */
inline unmask(thread, r, c, masks, sleeps) {
  if
  :: is(look_before_unmask) -> c.seen = memory[WRITE_INDEX(r)]
  :: else
  fi;
  if
  :: masks -> store_or_exchange(thread, MASK(r), 0, unmask_without_barrier)
  :: else
  fi;
  if
  :: is(look_before_unmask) || is(no_look_after_unmask) -> skip
  :: else -> c.seen = memory[WRITE_INDEX(r)]
  fi;
  sleeps = c.seen == c.position;
  if
  :: !sleeps && masks -> store(thread, MASK(r), 1)
  :: else
  fi
}
