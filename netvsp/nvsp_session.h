// The NVSP conversation of one NIC opening: a message's bytes in, the completion and what is to be done out.
// No I/O, no guest memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "netvsp/net_record.h"
#include "netvsp/nic_state.h"
#include "netvsp/nvsp.h"

namespace vmbusd::netvsp {

// How the receive buffer is cut up.
struct ReceiveLayout {
  std::uint32_t sub_allocation_size = 0;
  std::uint32_t sub_allocations = 0;
};

// Sub-allocations for frames of `mtu` in a buffer of `buffer_size` bytes. Zero of them where there is no room
// for one.
[[nodiscard]] ReceiveLayout lay_out_receive_buffer(std::uint64_t buffer_size, std::uint32_t mtu);

inline constexpr std::uint32_t kSubAllocationSizeMin = 2048;
// What Hyper-V says; any multiple of 8 would do.
inline constexpr std::uint32_t kSendSectionSize = 6144;
// Linux asks for 16 MiB by default and 31 MiB at most, DPDK for 31 MiB. [reference: netvsp 2.3]
inline constexpr std::uint64_t kReceiveBufferSizeMax = 64u << 20;
inline constexpr std::uint64_t kSendBufferSizeMax = 64u << 20;

// Bytes of a completion's payload: none, or a padded message.
struct NvspCompletion {
  std::array<std::byte, kNvspMessageSize> bytes{};
  std::uint32_t size = 0;

  [[nodiscard]] std::span<const std::byte> payload() const { return std::span(bytes).first(size); }
};

struct NvspOutcome {
  enum class Action : std::uint8_t {
    kComplete,           // nothing but the completion
    kData,               // `rndis` announces data messages; completed when they are sent
    kControl,            // `rndis` announces a control message
    kFindReceiveBuffer,  // look up `gpadl`; completed by receive_buffer_found()
    kFindSendBuffer,     // look up `gpadl`; completed by send_buffer_found()
    kRevokeReceiveBuffer,
    kRevokeSendBuffer,
    kSubChannels,  // offer `count` after the completion
  };
  Action action = Action::kComplete;
  NvspCompletion completion;
  NvspSendRndisPacket rndis{};
  std::uint32_t gpadl = 0;
  std::uint32_t count = 0;
};

class NvspSession {
 public:
  struct Limits {
    std::uint32_t mtu;       // that the operator allows
    std::uint32_t offloads;  // k* bits that the back end can do; RSC also needs the guest
  };

  // Fills in the part of `state` that NVSP negotiates.
  NvspSession(NicState& state, const Limits& limits) : state_(state), limits_(limits) {}

  // A message of the primary channel; `message` is a private copy of its payload.
  [[nodiscard]] NvspOutcome handle(std::span<const std::byte> message);

  // Answers to kFindReceiveBuffer and kFindSendBuffer; size 0: the GPADL is unknown or unusable.
  [[nodiscard]] NvspCompletion receive_buffer_found(std::uint64_t size);
  [[nodiscard]] NvspCompletion send_buffer_found(std::uint64_t size);
  // The GPADL is going away without a revoke.
  void receive_buffer_lost() { receive_ = Buffer::kNone; }
  void send_buffer_lost() { send_ = Buffer::kNone; }

  // What another worker process has negotiated, from its record to the next one's. Nothing may be pending.
  // restore(): its part of `state` too; Errc::kProtocol where this NIC cannot have come to that.
  void save(NicRecord& record) const;
  [[nodiscard]] Result<void> restore(const NicRecord& record);

  [[nodiscard]] bool negotiated() const { return negotiated_; }
  [[nodiscard]] bool vlan() const { return vlan_; }  // the guest takes 802.1Q infos
  [[nodiscard]] std::uint16_t receive_buffer_id() const { return receive_buffer_id_; }
  [[nodiscard]] const ReceiveLayout& receive_layout() const { return receive_layout_; }

 private:
  enum class Buffer : std::uint8_t { kNone, kPending, kReady };

  void init(std::span<const std::byte> message, NvspOutcome& outcome);
  void ndis_config(std::span<const std::byte> message);
  void send_receive_buffer(std::span<const std::byte> message, NvspOutcome& outcome);
  void send_send_buffer(std::span<const std::byte> message, NvspOutcome& outcome);
  void sub_channels(std::span<const std::byte> message, NvspOutcome& outcome);

  NicState& state_;
  Limits limits_;
  bool negotiated_ = false;
  bool vlan_ = false;
  Buffer receive_ = Buffer::kNone;
  Buffer send_ = Buffer::kNone;
  std::uint16_t receive_buffer_id_ = 0;
  ReceiveLayout receive_layout_;
  std::uint32_t sub_channels_ = 0;  // granted; once
};

// SEND_RNDIS_PACKET_COMPLETE.
[[nodiscard]] NvspCompletion rndis_packet_complete(NvspStatus status);
// The table by which the guest spreads what it transmits over `channels` of its channels.
[[nodiscard]] NvspSendIndirectionTable make_send_indirection(std::uint32_t channels);

}  // namespace vmbusd::netvsp
