// The synthetic NIC as the daemon configures and watches it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/guid.h"
#include "base/result.h"
#include "devices/device.h"
#include "netvsp/counters.h"
#include "netvsp/mac_address.h"

namespace vmbusd::netvsp {

inline constexpr std::uint32_t kMtuMin = 68;
inline constexpr std::uint32_t kMtuMax = 9216;
inline constexpr std::uint32_t kMtuDefault = 1500;
inline constexpr std::uint32_t kMaxQueues = 64;  // Linux uses no more [linux: VRSS_CHANNEL_MAX]

struct NicConfig {
  enum class Backend : std::uint8_t {
    kTap,       // `fds`: /dev/net/tun descriptors of one TAP, a queue each
    kStream,    // `fds`: one connected SOCK_STREAM socket in QEMU's framing (passt)
    kNull,      // transmits into the void; may invent what it receives
    kLoopback,  // receives what it transmits
  };

  std::string partition;         // for logs and identities
  std::string name;              // unique in the partition, for example "nic0"
  std::optional<Guid> instance;  // empty: made from partition and name, the same at every start
  // Tells this NIC from others that had its instance before, for a guest that is taken up.
  std::uint64_t incarnation = 1;
  std::optional<MacAddress> mac;  // empty: made from partition and name, the same at every start
  // The largest IP packet that the guest may configure, and what it is told; kMtuMin..kMtuMax.
  std::uint32_t mtu = kMtuDefault;
  Backend backend = Backend::kNull;
  // kTap: opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, with more than one also IFF_MULTI_QUEUE, and
  // TUNSETVNETHDRSZ 10. May be empty for kTap and kStream: the link is down until replace_backend().
  std::vector<UniqueFd> fds;
  // kTap: SteeringProgram::table of the program that steers the TAP. Without it the kernel spreads what is
  // received over the channels, whatever RSS parameters the guest sets.
  UniqueFd steering;
  std::uint32_t queues = 1;  // channels that a guest may have, 1..kMaxQueues; kStream: 1; kTap: at most fds
  bool check_source_mac = false;  // drop frames whose source is not the NIC's address, and let that be fixed
  std::uint32_t link_speed_mbps = 10'000;  // what the guest is told
  bool monitored = false;  // the guest may signal by its monitor page, which costs polling while it is open
  std::string friendly_name;  // what Linux shows as ifalias; empty: none
  // kNull only: bytes of the frames that it invents as fast as they are taken (60..mtu + 14); 0: none.
  std::uint32_t null_receive_bytes = 0;
};

struct NicStatus {
  bool link_up = false;
  std::string link_reason;          // why it is down; empty where it is up
  MacAddress mac;                   // as of now: a guest may change it
  std::uint32_t mtu = 0;            // as the open guest driver has it
  std::uint32_t nvsp_version = 0;   // 0: not open
  std::uint32_t packet_filter = 0;  // kFilter*
  std::uint32_t channels = 0;       // open ones
  std::vector<QueueCounters> queues;
};

// A NIC of one partition. Device's methods: control thread. Those below: any thread.
class Nic : public devices::Device {
 public:
  // The operator's link state; the guest sees the link up where the back end is up too.
  virtual void set_link(bool up) = 0;
  // Another descriptor (set) for a TAP that was removed or a peer that went away, in the form that
  // NicConfig::fds has. Link up follows. Errc::kConfig: the wrong number or kind.
  [[nodiscard]] virtual Result<void> replace_backend(std::vector<UniqueFd> fds) = 0;
  // `lost` is called when the back end is gone, once until replace_backend(), by the worker of the channel
  // that saw it: it must not block. Set before the first open().
  virtual void on_backend_lost(std::function<void()> lost) = 0;
  [[nodiscard]] virtual NicStatus status() const = 0;
};

// Errc::kConfig: a value out of range or at odds with the descriptors; Errc::kOs: a descriptor is not what
// the back end needs. Error::text tells what.
[[nodiscard]] Result<std::unique_ptr<Nic>> make_nic(NicConfig config);

}  // namespace vmbusd::netvsp
