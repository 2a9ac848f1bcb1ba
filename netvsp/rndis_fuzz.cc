// RNDIS control messages, one after the other on one adapter, and data messages.
//
// Input: [kind u8, length u16, bytes]*
#include <array>

#include "base/assert.h"
#include "netvsp/rndis_control.h"
#include "netvsp/rndis_packet.h"
#include "tests/netvsp/fuzz_input.h"

namespace vmbusd::netvsp {
namespace {

constexpr std::size_t kMessagesMax = 64;

class Counters final : public CounterSource {
 public:
  QueueCounters totals() const override { return {}; }
};

class Run {
 public:
  Run() {
    state_.permanent_mac = state_.mac = MacAddress{{2, 0, 0, 0, 0, 1}};
    state_.nvsp_version = NvspVersion::k61;
    state_.queues = 4;
    state_.offloads_supported = kAllChecksums | kAllLso | kAllRsc;
  }

  void act(FuzzInput& input) {
    const auto kind = input.take<std::uint8_t>();
    const std::vector<std::byte> bytes = input.bytes(input.take<std::uint16_t>() % kControlRequestMax);
    switch (kind % 4) {
      case 0:
        data(bytes, input);
        break;
      case 1:
        state_.mac_fixed = !state_.mac_fixed;
        [[fallthrough]];
      default:
        control(bytes);
        break;
    }
  }

 private:
  void control(std::span<const std::byte> request) {
    std::array<std::byte, kControlMessageMax> reply;
    const MacAddress mac_before = state_.mac;
    const ControlOutcome outcome = handle_control(state_, Counters(), request, reply);
    VMBUSD_ASSERT(outcome.reply_size <= reply.size());
    RndisHeader asked{};
    VMBUSD_ASSERT(read_wire(request, asked) || !outcome.well_formed);
    VMBUSD_ASSERT(outcome.well_formed || (outcome.reply_size == 0 && outcome.changes == 0));
    if (outcome.reply_size != 0) {
      RndisHeader answered;
      VMBUSD_ASSERT(read_wire(std::span<const std::byte>(reply).first(outcome.reply_size), answered));
      VMBUSD_ASSERT(answered.message_length == outcome.reply_size);
      VMBUSD_ASSERT(static_cast<std::uint32_t>(answered.type) ==
                    (static_cast<std::uint32_t>(asked.type) | 0x80000000));
    } else {
      VMBUSD_ASSERT(!outcome.well_formed || asked.type == RndisType::kHalt);
    }
    VMBUSD_ASSERT((state_.offloads_enabled & ~state_.offloads_supported) == 0);
    VMBUSD_ASSERT(state_.rss.entries <= kRssIndirectionEntriesMax);
    for (const std::uint8_t channel : state_.rss.table) VMBUSD_ASSERT(channel < state_.queues);
    VMBUSD_ASSERT(state_.mac.valid_unicast());
    VMBUSD_ASSERT(state_.mac == mac_before || (!state_.mac_fixed && (outcome.changes & kMacChanged) != 0));
    VMBUSD_ASSERT(state_.initialized || state_.packet_filter == 0);
  }

  static void data(std::span<const std::byte> bytes, FuzzInput& input) {
    const std::uint64_t available = bytes.size() + input.take<std::uint16_t>();
    const auto head = bytes.first(std::min<std::size_t>(bytes.size(), kMessageHeadMax));
    const Result<TransmitMessage> message = parse_transmit_message(head, available);
    if (!message) return;
    VMBUSD_ASSERT(message->message_length <= available);
    VMBUSD_ASSERT(message->frame_offset >= sizeof(RndisPacket));
    VMBUSD_ASSERT(message->frame_size >= kEthernetHeaderSize);
    VMBUSD_ASSERT(std::uint64_t{message->frame_offset} + message->frame_size <= message->message_length);
  }

  NicState state_;
};

}  // namespace
}  // namespace vmbusd::netvsp

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  vmbusd::netvsp::FuzzInput input(data, size);
  vmbusd::netvsp::Run run;
  for (std::size_t i = 0; i < vmbusd::netvsp::kMessagesMax && !input.empty(); ++i) run.act(input);
  return 0;
}
