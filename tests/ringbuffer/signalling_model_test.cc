// A proof by exhaustion that no wake-up is lost: every interleaving of a producer and a consumer, each with
// the store buffer that x86-64 gives it, over a ring of two packets.
//
// The two programs below are OutgoingRing::write/commit/arm_space and IncomingRing::next/release/unmask, step
// by step: one access to shared memory a step. A state in which nobody can go on although packets are left is
// a lost wake-up. Each planted fault, a barrier or a rule left out, must be found, or the model would prove
// nothing.
//
// [Sewell et al., x86-TSO: stores go through a FIFO buffer per thread, loads look there first, locked
// instructions drain it]
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <unordered_set>
#include <vector>

#include "tests/catch.h"

namespace vmbusd::ring {
namespace {

constexpr std::uint8_t kCapacity = 2;  // packets that the ring holds
constexpr std::uint8_t kWanted = 1;    // of room, by a blocked producer
constexpr std::uint8_t kPackets =
    5;  // more than twice the ring, so that both sides block again after a wake-up

enum class Fault : std::uint8_t {
  kNone,
  kWriteIndexWithoutBarrier,  // commit(): plain store
  kReadIndexWithoutBarrier,   // release(): plain store
  kUnmaskWithoutBarrier,      // unmask(): plain store
  kPendingWithoutBarrier,     // arm_space(): plain store
  kNoLookAfterUnmask,         // unmask(): does not look at write_index again
  kNoLookAfterArming,         // arm_space(): does not look at read_index again
  kArmsWithUnpublished,       // arm_space(): does not publish first
  kSleepsUnreleased,          // the consumer sleeps before it hands back what it read
  kSignalsWhenNoLongerEmpty,  // commit(): compares with the batch's end in place of its begin
  kNoSignalForRoom,           // release(): ignores pending_send_size
};

// Shared words; bells are what an eventfd or an event flag latches.
enum Word : std::uint8_t { kWriteIndex, kReadIndex, kMask, kPending, kProducerBell, kConsumerBell, kWords };

struct Store {
  std::uint8_t word;
  std::uint8_t value;
};

struct Thread {
  std::uint8_t step = 0;
  std::uint8_t after = 0;      // step to go to when commit or release is done
  std::uint8_t position = 0;   // packets written or read
  std::uint8_t published = 0;  // of those, told to the other side
  std::uint8_t before = 0;     // published, before the batch that is being published
  std::uint8_t seen = 0;       // the other side's index, as loaded last
  std::uint8_t saved = 0;      // a value between two steps
  bool armed = false;
  std::array<Store, 4> buffer{};
  std::uint8_t buffered = 0;
};

struct State {
  std::array<std::uint8_t, kWords> memory{};
  Thread producer;
  Thread consumer;

  [[nodiscard]] std::string key() const {
    std::string key(memory.begin(), memory.end());
    for (const Thread* thread : {&producer, &consumer}) {
      for (const std::uint8_t value :
           {thread->step, thread->after, thread->position, thread->published, thread->before, thread->seen,
            thread->saved, static_cast<std::uint8_t>(thread->armed), thread->buffered}) {
        key.push_back(static_cast<char>(value));
      }
      for (std::uint8_t i = 0; i < thread->buffered; ++i) {
        key.push_back(static_cast<char>(thread->buffer[i].word));
        key.push_back(static_cast<char>(thread->buffer[i].value));
      }
    }
    return key;
  }
};

// What consumers do differently.
struct Consumer {
  bool masks;               // while it polls, as storvsc; else never, as hv_utils
  bool signals_when_empty;  // as IncomingRing; else only where the room crosses what is wanted, as Linux
};
constexpr Consumer kOurs = {true, true};
constexpr Consumer kStorvsc = {true, false};
constexpr Consumer kUtils = {false, false};
constexpr Consumer kConsumers[] = {kOurs, kStorvsc, kUtils};

class Model {
 public:
  Model(Fault fault, Consumer consumer) : fault_(fault), consumer_(consumer) {}

  // True where some interleaving ends with packets left and nobody awake.
  bool loses_wake_up() {
    State initial;
    initial.memory[kMask] = consumer_.masks ? 1 : 0;
    reach(initial);
    while (!frontier_.empty()) {
      const State state = frontier_.front();
      frontier_.pop_front();
      const std::size_t before = successors_;
      flush(state, &State::producer);
      flush(state, &State::consumer);
      produce(state);
      consume(state);
      const bool stuck = successors_ == before;
      if (stuck && (state.producer.step != kFinished || state.consumer.position != kPackets)) return true;
    }
    return false;
  }
  [[nodiscard]] std::size_t states() const { return known_.size(); }

 private:
  static constexpr std::uint8_t kFinished = 0xff;

  void reach(const State& state) {
    ++successors_;
    if (known_.insert(state.key()).second) frontier_.push_back(state);
  }

  // The oldest buffered store reaches memory.
  void flush(const State& state, Thread State::*which) {
    State next = state;
    Thread& thread = next.*which;
    if (thread.buffered == 0) return;
    next.memory[thread.buffer[0].word] = thread.buffer[0].value;
    for (std::uint8_t i = 1; i < thread.buffered; ++i) thread.buffer[i - 1] = thread.buffer[i];
    --thread.buffered;
    reach(next);
  }

  static std::uint8_t load(const State& state, const Thread& thread, Word word) {
    for (std::uint8_t i = thread.buffered; i > 0; --i) {
      if (thread.buffer[i - 1].word == word) return thread.buffer[i - 1].value;
    }
    return state.memory[word];
  }
  static void store(Thread& thread, Word word, std::uint8_t value) {
    thread.buffer.at(thread.buffered++) = {word, value};
  }
  // A locked instruction: possible once the buffer is empty. With the fault: an ordinary store.
  bool exchange(State& state, Thread& thread, Word word, std::uint8_t value, Fault fault) const {
    if (fault_ == fault) {
      if (thread.buffered == thread.buffer.size()) return false;
      store(thread, word, value);
      return true;
    }
    if (thread.buffered != 0) return false;
    state.memory[word] = value;
    return true;
  }
  // The system call behind a signal drains the buffer, too.
  static bool ring(State& state, const Thread& thread, Word bell) {
    if (thread.buffered != 0) return false;
    state.memory[bell] = 1;
    return true;
  }

  void produce(const State& state) {
    enum Step : std::uint8_t {
      kDecide,
      kWrite,
      kCommit,
      kCommitMask,
      kCommitIndex,
      kCommitSignal,
      kArm,
      kArmPending,
      kArmLook,
      kSleep,
      kAwake,
    };
    State next = state;
    Thread& t = next.producer;
    const auto go = [&](std::uint8_t step) {
      t.step = step;
      reach(next);
    };
    switch (t.step) {
      case kDecide:  // writes more, or publishes what it has: a batch may end anywhere
        if (t.position == kPackets && t.published == t.position) return go(kFinished);
        if (t.position < kPackets) go(kWrite);
        if (t.position > t.published) {
          t.after = kDecide;
          go(kCommit);
        }
        return;
      case kWrite:
        if (t.position - t.seen == kCapacity) {
          t.seen = load(next, t, kReadIndex);
          return go(t.position - t.seen == kCapacity ? kArm : kWrite);
        }
        if (t.armed) {
          if (t.buffered == t.buffer.size()) return;
          store(t, kPending, 0);
          t.armed = false;
        }
        ++t.position;
        return go(kDecide);
      case kCommit:
        t.before = fault_ == Fault::kSignalsWhenNoLongerEmpty ? t.position : t.published;
        t.published = t.position;
        if (!exchange(next, t, kWriteIndex, t.position, Fault::kWriteIndexWithoutBarrier)) return;
        return go(kCommitMask);
      case kCommitMask:
        if (load(next, t, kMask) != 0) return go(t.after);
        return go(kCommitIndex);
      case kCommitIndex:
        t.saved = load(next, t, kReadIndex);
        return go(kCommitSignal);
      case kCommitSignal:
        if (t.saved == t.before && !ring(next, t, kConsumerBell)) return;
        return go(t.after);
      case kArm:
        t.after = kArmPending;
        if (t.position == t.published || fault_ == Fault::kArmsWithUnpublished) return go(kArmPending);
        return go(kCommit);
      case kArmPending:
        if (!exchange(next, t, kPending, kWanted, Fault::kPendingWithoutBarrier)) return;
        t.armed = true;
        return go(fault_ == Fault::kNoLookAfterArming ? kSleep : kArmLook);
      case kArmLook:
        t.seen = load(next, t, kReadIndex);
        return go(t.position - t.seen == kCapacity ? kSleep : kWrite);
      case kSleep:
        if (fault_ == Fault::kArmsWithUnpublished && t.position > t.published) {
          t.after = kSleep;  // as a device does that commits at the end of its turn
          return go(kCommit);
        }
        if (next.memory[kProducerBell] == 0) return;
        next.memory[kProducerBell] = 0;
        return go(kAwake);
      case kAwake:
        t.seen = load(next, t, kReadIndex);
        return go(t.position - t.seen == kCapacity ? kSleep : kWrite);
      default:
        return;
    }
  }

  void consume(const State& state) {
    enum Step : std::uint8_t {
      kRead,
      kIdle,
      kUnmask,
      kLookAgain,
      kSleep,
      kRelease,
      kReleasePending,
      kReleaseRoom,
      kReleaseSignal,
    };
    State next = state;
    Thread& t = next.consumer;
    const auto go = [&](std::uint8_t step) {
      t.step = step;
      reach(next);
    };
    switch (t.step) {
      case kRead:
        if (t.position == t.seen) {
          t.seen = load(next, t, kWriteIndex);
          return go(t.position == t.seen ? kIdle : kRead);
        }
        if (t.position > t.published) {  // a batch may end anywhere
          t.after = kRead;
          go(kRelease);
        }
        ++t.position;
        return go(kRead);
      case kIdle:
        t.after = kUnmask;
        if (t.position == t.published || fault_ == Fault::kSleepsUnreleased) return go(kUnmask);
        return go(kRelease);
      case kUnmask:
        if (consumer_.masks && !exchange(next, t, kMask, 0, Fault::kUnmaskWithoutBarrier)) return;
        return go(fault_ == Fault::kNoLookAfterUnmask ? kSleep : kLookAgain);
      case kLookAgain:
        t.seen = load(next, t, kWriteIndex);
        if (t.seen == t.position) return go(kSleep);
        return mask_and_read(next, t, kRead);
      case kSleep:
        if (next.memory[kConsumerBell] == 0) return;
        next.memory[kConsumerBell] = 0;
        return mask_and_read(next, t, kRead);
      case kRelease:
        t.before = t.published;
        t.published = t.position;
        if (!exchange(next, t, kReadIndex, t.position, Fault::kReadIndexWithoutBarrier)) return;
        return go(fault_ == Fault::kNoSignalForRoom ? t.after : std::uint8_t{kReleasePending});
      case kReleasePending:
        t.saved = load(next, t, kPending);
        return go(t.saved == 0 ? t.after : std::uint8_t{kReleaseRoom});
      case kReleaseRoom: {
        const std::uint8_t written = load(next, t, kWriteIndex);
        const int old_free = kCapacity - (written - t.before);
        const int new_free = kCapacity - (written - t.published);
        const bool room = old_free < t.saved && new_free >= t.saved;
        return go(room || (written == t.published && consumer_.signals_when_empty)
                      ? std::uint8_t{kReleaseSignal}
                      : t.after);
      }
      case kReleaseSignal:
        if (!ring(next, t, kProducerBell)) return;
        return go(t.after);
      default:
        return;
    }
  }

  void mask_and_read(State& next, Thread& t, std::uint8_t step) {
    if (consumer_.masks) {
      if (t.buffered == t.buffer.size()) return;
      store(t, kMask, 1);
    }
    t.step = step;
    reach(next);
  }

  Fault fault_;
  Consumer consumer_;
  std::size_t successors_ = 0;
  std::deque<State> frontier_;
  std::unordered_set<std::string> known_;
};

TEST_CASE("no interleaving loses a wake-up", "[ringbuffer][model]") {
  for (const Consumer& consumer : kConsumers) {
    Model model(Fault::kNone, consumer);
    CHECK_FALSE(model.loses_wake_up());
    CHECK(model.states() > 1000);
  }
}

struct FaultCase {
  const char* what;
  Fault fault;
  Consumer consumer;
};
constexpr FaultCase kFaultCases[] = {
    {"write_index stored without a barrier, consumer masks", Fault::kWriteIndexWithoutBarrier, kOurs},
    {"write_index stored without a barrier, consumer never masks", Fault::kWriteIndexWithoutBarrier, kUtils},
    {"read_index stored without a barrier", Fault::kReadIndexWithoutBarrier, kUtils},
    {"interrupt_mask cleared without a barrier", Fault::kUnmaskWithoutBarrier, kOurs},
    {"pending_send_size stored without a barrier", Fault::kPendingWithoutBarrier, kOurs},
    {"no second look after unmasking", Fault::kNoLookAfterUnmask, kOurs},
    {"no second look after arming", Fault::kNoLookAfterArming, kOurs},
    {"arms before it publishes", Fault::kArmsWithUnpublished, kStorvsc},
    {"sleeps on packets that it has not handed back", Fault::kSleepsUnreleased, kOurs},
    {"emptiness judged by the batch's end", Fault::kSignalsWhenNoLongerEmpty, kOurs},
    {"room is never signalled", Fault::kNoSignalForRoom, kOurs},
};

TEST_CASE("every barrier and every rule is needed", "[ringbuffer][model]") {
  for (const FaultCase& c : kFaultCases) {
    DYNAMIC_SECTION(c.what) {
      CHECK(Model(c.fault, c.consumer).loses_wake_up());
    }
  }
}

}  // namespace
}  // namespace vmbusd::ring
