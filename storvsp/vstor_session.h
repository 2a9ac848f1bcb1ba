// The VSTOR protocol's state on one channel: from BEGIN_INITIALIZATION to the first SRB. No I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "storvsp/stor_record.h"
#include "storvsp/vstor.h"

namespace vmbusd::storvsp {

// What the controller offers a guest.
struct VstorLimits {
  std::uint32_t max_transfer_bytes = 0;
  std::uint16_t max_sub_channels = 0;
};

//   kBegin --BEGIN--> kVersion --QUERY_PROTOCOL_VERSION, accepted--> kProperties --QUERY_PROPERTIES--> kEnd
//   kEnd --END--> kReady
//
// A request in the wrong state is refused and changes nothing. A new channel begins anew.
class VstorSession {
 public:
  using Body = std::span<std::byte, sizeof(vstor::Packet::body)>;

  enum class Next : std::uint8_t {
    kAnswer,   // the packet is the answer now
    kExecute,  // EXECUTE_SRB, legal here
    kReset,    // RESET_LUN, RESET_BUS or RESET_ADAPTER, legal here
  };
  struct Outcome {
    Next next;
    std::size_t answer_size;                 // bytes of the answer, now or later
    std::uint16_t sub_channels_granted = 0;  // to be offered, after the answer
  };

  explicit VstorSession(const VstorLimits& limits) : limits_(limits) {}
  // A sub-channel has no initialisation of its own: it takes over the primary's version.
  VstorSession(const VstorLimits& limits, std::uint16_t version)
      : limits_(limits), state_(State::kReady), version_(version), sub_channel_(true) {}

  // A packet came, of `payload_size` bytes; what `header` and `body` have beyond is zero. For kAnswer they
  // are the answer then.
  [[nodiscard]] Outcome receive(vstor::PacketHeader& header, Body body, std::size_t payload_size);

  // For a channel that another worker process takes up. What it recorded is not trusted: Errc::kProtocol
  // where no channel of this kind can be so.
  [[nodiscard]] SessionRecord save() const {
    return {version_, static_cast<std::uint8_t>(state_), std::uint8_t{sub_channels_created_}};
  }
  [[nodiscard]] Result<void> restore(const SessionRecord& record);

  [[nodiscard]] bool ready() const { return state_ == State::kReady; }
  // 0 while none is agreed on.
  [[nodiscard]] std::uint16_t version() const { return version_; }
  // Of both directions, once a version is agreed on.
  [[nodiscard]] std::size_t packet_size() const {
    return version_ >= vstor::kVersionWin8 ? vstor::kPacketSize : vstor::kPacketSizeBeforeWin8;
  }

 private:
  enum class State : std::uint8_t { kBegin, kVersion, kProperties, kEnd, kReady };

  vstor::Status control(vstor::Operation operation, Body body, std::uint16_t& sub_channels_granted);
  vstor::Status query_version(Body body);
  vstor::Status query_properties(Body body);
  vstor::Status create_sub_channels(Body body, std::uint16_t& granted);

  VstorLimits limits_;
  State state_ = State::kBegin;
  std::uint16_t version_ = 0;
  bool sub_channel_ = false;
  bool sub_channels_created_ = false;
};

}  // namespace vmbusd::storvsp
