// The driver of a synthetic NIC, as netvsc has it: initialisation and, if asked for, sub-channels; then
// frames both ways.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "guest/driver_channel.h"
#include "guest/net_queue.h"
#include "netvsp/mac_address.h"
#include "netvsp/ndis.h"
#include "netvsp/nvsp.h"
#include "netvsp/rndis.h"

namespace vmbusd::guest {

// The primary channel's queue, and the messages that only it carries.
class NetClient final : public NetQueue {
 public:
  struct Options {
    netvsp::NvspVersion version = netvsp::NvspVersion::k61;
    std::uint32_t mtu = 1500;
    std::uint32_t receive_pages = 4096;  // Linux asks for as much: 16 MiB
    std::uint32_t send_pages = 256;
    std::uint32_t filter = netvsp::kFilterDirected | netvsp::kFilterBroadcast | netvsp::kFilterAllMulticast;
  };

  explicit NetClient(DriverChannel& channel) : NetQueue(channel) {}

  // From INIT to the packet filter. Errc::kUnsupported where the host refuses a step.
  [[nodiscard]] Result<void> initialize(const Options& options);
  [[nodiscard]] Result<void> initialize() { return initialize(Options()); }
  [[nodiscard]] netvsp::MacAddress mac() const { return mac_; }
  // An RNDIS SET of `info`. Nothing may be in flight.
  [[nodiscard]] Result<netvsp::RndisStatus> set(netvsp::Oid oid, std::span<const std::byte> info);

  // Sub-channels that the host grants, at most `count`; it offers them next. Once, with nothing in flight.
  [[nodiscard]] Result<std::uint32_t> create_sub_channels(std::uint32_t count);
  // Takes up the sub-channels, which are open: each queue gets its share of the send buffer, and the RSS
  // table names all channels in turn, as Linux does. [linux: rndis_set_subchannel] Nothing may be in flight.
  [[nodiscard]] Result<void> use_sub_channels(std::span<NetQueue* const> queues);

 private:
  static constexpr std::uint64_t kCallId = 0x10000;  // above all sections

  // Writes a message that has a completion, and waits for that.
  [[nodiscard]] Result<void> request(std::span<const std::byte> message, std::span<std::byte> completion);
  [[nodiscard]] Result<void> post(std::span<const std::byte> message);
  // An RNDIS control message and its reply.
  [[nodiscard]] Result<std::vector<std::byte>> control(std::span<const std::byte> message);
  [[nodiscard]] Result<ring::Packet> wait_packet();
  [[nodiscard]] Result<void> lend_buffers(const Options& options);
  [[nodiscard]] Result<void> set_up_adapter(const Options& options);

  netvsp::MacAddress mac_{};
  NetBuffers buffers_;
};

}  // namespace vmbusd::guest
