// Whether a woken worker on the machine's only CPU runs at once, or when the others there have had their
// turn.
#pragma once

#include <cstdint>

namespace vmbusd::io {

// A guest that waits for each answer is best served at once: the answer is there before its processor goes
// idle. One that sends several requests is best left to go on: all of them are then taken by one wake-up and
// answered by one interrupt. What it does shows only while it is left alone, so that is tried from time to
// time.
class TurnTaking {
 public:
  // Sleeps in which others are left to go on, before it is decided by what came of them.
  static constexpr std::uint32_t kTrial = 8;
  // Sleeps until the next trial, where the last one found single requests: their cost is a small share then.
  static constexpr std::uint32_t kUntilTrial = 512;
  // SQEs between two sleeps from which on a trial has found several requests. One takes two at most: its own,
  // and the interrupt's.
  static constexpr std::uint32_t kSeveral = 3;

  [[nodiscard]] bool lets_others_go_on() const { return left_alone_; }
  // The worker is about to sleep, `sqes` after its last sleep. True where lets_others_go_on() changed.
  bool sleeps(std::uint32_t sqes) {
    ++sleeps_;
    sqes_ += sqes;
    if (sleeps_ < (left_alone_ ? kTrial : kUntilTrial)) return false;
    const bool before = left_alone_;
    left_alone_ = !before || sqes_ >= std::uint64_t{kSeveral} * kTrial;
    sleeps_ = 0;
    sqes_ = 0;
    return left_alone_ != before;
  }

 private:
  bool left_alone_ = true;
  std::uint32_t sleeps_ = 0;  // since the last decision
  std::uint64_t sqes_ = 0;
};

}  // namespace vmbusd::io
