// Steers what a TAP receives by the guest's RSS parameters.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "netvsp/nic_state.h"
#include "netvsp/steering_program.h"

namespace vmbusd::netvsp {

// Which of a TAP's queues are read, and the table by which the kernel's steering program picks one of them.
//
// The kernel numbers the queues that are attached, and gives the last one's number away when another is
// detached. This class follows that, so all changes go through it, and nobody else may attach queues to the
// interface. Queue 0 is always attached and number 0: what no hash steers comes there, to the primary
// channel.
//
// While the table is written, packets may go by a part of the old one. Any thread.
class TapSteering {
 public:
  // `table`: SteeringProgram::table; may be none: the kernel spreads packets over the queues as it likes.
  // Errc::kOs: it cannot be mapped.
  [[nodiscard]] static Result<std::shared_ptr<TapSteering>> make(UniqueFd table);
  ~TapSteering();
  TapSteering(const TapSteering&) = delete;
  TapSteering& operator=(const TapSteering&) = delete;

  // Packets go to the channels that `rss` says; to the primary where it is off, and in place of channels that
  // do not read.
  void set_rss(const RssState& rss);
  // Has packets come to the queue of channel `channel`, or none any more. `tap`: its descriptor.
  void select(int tap, std::uint32_t channel, bool on);
  // The channel's queue is another TAP's from now on, and no packets come there. Call it for all channels.
  void replace(int tap, std::uint32_t channel);

 private:
  explicit TapSteering(SteeringTable* table) : table_(table) {}
  void write_queues();

  std::mutex mutex_;
  SteeringTable* const table_;                 // shared with the kernel; nullptr: none
  std::vector<std::uint32_t> channels_ = {0};  // by their queues' numbers
  RssState rss_;
  std::optional<std::array<std::uint8_t, kRssKeySize>> key_;  // that the table has
};

}  // namespace vmbusd::netvsp
