// A child partition that lies: every attack that a guest or its VMM has on vmbusd, in a seeded random order.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "guest/bus_client.h"
#include "guest/child_partition.h"
#include "guest/guest_channel.h"
#include "guest/net_client.h"
#include "guest/ram.h"

namespace vmbusd::guest {

// Life cycle: any number of round()s. Each begins as a guest that behaves, from attaching or a reset to disks
// and NICs that work, and goes on as one that does not; what it left behind is the next round's to be reset
// over. One thread, beside the one of its own that changes what the host is reading.
//
// The daemon may refuse whatever is wrong, stop channels and cut the connection. It may not die, hang, or
// fail the next round's beginning.
class HostileChild {
 public:
  struct Options {
    std::string socket_path;
    // Decides all that this child does; not when the daemon does its part.
    std::uint32_t seed = 0;
  };
  explicit HostileChild(const Options& options) : options_(options), random_(options.seed) {}
  ~HostileChild();
  HostileChild(const HostileChild&) = delete;
  HostileChild& operator=(const HostileChild&) = delete;

  // An error: the daemon did not serve the guest while it behaved.
  [[nodiscard]] Result<void> round();
  // Ends the connection as the death of a VMM does.
  void leave();

  struct Deed {
    const char* what;
    std::uint64_t times;
  };
  // What was done so far, by kind.
  [[nodiscard]] std::vector<Deed> deeds() const;

 private:
  struct Crime {
    const char* what;
    void (HostileChild::*commit)();
  };
  static const Crime kCrimes[];

  enum class Kind { kDisk, kNic, kComponent };  // the last: an integration component
  // A channel that was opened by the rules.
  struct Victim {
    std::unique_ptr<GuestChannel> channel;
    std::unique_ptr<NetClient> nic;  // of one that was brought up: the host may write to its buffers
    Kind kind = Kind::kComponent;
    bool contiguous = false;  // its ring's pages follow each other in host() memory
  };

  // From one attaching or reset to the next.
  [[nodiscard]] Result<void> be_born();
  [[nodiscard]] Result<void> attach();
  [[nodiscard]] Result<void> open(const vmbus::OfferChannel& offer);
  [[nodiscard]] Result<void> start_disk(GuestChannel& channel);
  [[nodiscard]] Result<void> start_nic(Victim& victim);
  void forget_life();
  void vandalise(std::uint32_t seed);
  void stop_vandal();

  // Crimes.
  void corrupt_indices();
  void forge_packets();
  void forge_page_lists();
  void send_commands();
  void send_storage_packets();
  void send_nvsp_messages();
  void send_frames();
  void complete_what_nobody_asked();
  void lend_anything();
  void take_back_gpadls();
  void open_anything();
  void close_anything();
  void retarget_anything();
  void start_over();
  void release_relids();
  void post_garbage();
  void storm_doorbells();
  void move_synic_pages();
  void pull_memory();
  void ask_for_sub_channels();
  void intrude();

  // What is likely to be mishandled, of each kind.
  std::uint32_t below(std::size_t count) { return static_cast<std::uint32_t>(random_() % count); }
  bool one_in(std::uint32_t count) { return below(count) == 0; }
  std::uint32_t any_number();
  std::uint32_t any_index(std::uint32_t ring_size);
  std::uint32_t any_relid();
  std::uint32_t any_gpadl();
  std::uint32_t any_vp();
  Gpn any_page();
  Victim* any_victim();
  Victim* any_victim(Kind kind);

  [[nodiscard]] bool connected() const { return child_ != nullptr && !child_->disconnected_by_host(); }
  // Posts bytes as they are; dropped where the daemon's queue stays full.
  void post(std::span<const std::byte> message);
  template <WireStruct T>
  void post(const T& message) {
    post(wire_bytes(message));
  }
  void drain_messages();
  // Writes a packet by the ring's rules, with this in it, and signals.
  void send(Victim& victim, ring::PacketType type, std::span<const std::byte> extension,
            std::span<const std::byte> payload);
  // A GPA-direct packet's extension: one range over these pages.
  [[nodiscard]] std::vector<std::uint64_t> one_range(std::uint32_t pages);

  Options options_;
  std::mt19937 random_;
  std::vector<std::uint64_t> times_;  // by crime

  std::unique_ptr<ChildPartition> child_;
  std::unique_ptr<Ram> pulled_;  // memory that comes and goes
  bool pulled_is_there_ = false;

  // Of the life that is on.
  std::optional<BusClient> bus_;
  std::vector<vmbus::OfferChannel> offers_;
  std::vector<Victim> victims_;
  std::vector<std::uint32_t> gpadls_;  // ids that the host may know
  Pages loot_;                         // I/O buffers, and what NICs are lent
  bool takes_messages_ = true;

  std::atomic<bool> stop_vandal_{false};
  std::thread vandal_;
};

}  // namespace vmbusd::guest
