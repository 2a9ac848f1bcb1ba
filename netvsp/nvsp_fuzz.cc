// NVSP messages in any order, GPADLs found and lost in between; and sessions as a worker process that died
// may have left them.
//
// Input: [action u8, length u8, bytes]*
#include <utility>

#include "base/assert.h"
#include "netvsp/nic.h"
#include "netvsp/nvsp_session.h"
#include "tests/netvsp/fuzz_input.h"

namespace vmbusd::netvsp {
namespace {

constexpr std::size_t kActionsMax = 256;
constexpr std::uint32_t kQueues = 4;
constexpr NvspSession::Limits kLimits{kMtuMax, kAllChecksums | kAllLso | kAllRsc};

class Run {
 public:
  Run() { state_.queues = kQueues; }

  void act(FuzzInput& input) {
    const auto action = input.take<std::uint8_t>();
    const auto length = input.take<std::uint8_t>();
    switch (action % 8) {
      case 0:
        receive_found(input.take<std::uint64_t>() % (128u << 20));
        break;
      case 1:
        send_found(input.take<std::uint64_t>() % (128u << 20));
        break;
      case 2:
        session_.receive_buffer_lost();
        receive_pending_ = false;
        break;
      case 7:
        take_up(input.bytes(sizeof(NicRecord)));
        break;
      default:
        message(input.bytes(length));
        break;
    }
    check(state_);
  }

 private:
  void message(const std::vector<std::byte>& bytes) {
    const bool negotiated = session_.negotiated();
    const NvspOutcome outcome = session_.handle(bytes);
    check_completion(outcome.completion);
    using Action = NvspOutcome::Action;
    // Before INIT nothing happens; after it, never back.
    VMBUSD_ASSERT(negotiated || outcome.action == Action::kComplete);
    VMBUSD_ASSERT(!negotiated || session_.negotiated());
    switch (outcome.action) {
      case Action::kFindReceiveBuffer:
        VMBUSD_ASSERT(!receive_pending_ && outcome.completion.size == 0);
        receive_pending_ = true;
        break;
      case Action::kRevokeReceiveBuffer:
        receive_pending_ = false;
        break;
      case Action::kSubChannels:
        VMBUSD_ASSERT(outcome.count >= 1 && outcome.count < kQueues && !granted_);
        granted_ = true;
        break;
      default:
        break;
    }
  }

  void receive_found(std::uint64_t size) {
    const NvspCompletion completion = session_.receive_buffer_found(size);
    check_completion(completion);
    NvspSendReceiveBufferComplete done;
    VMBUSD_ASSERT(read_wire(completion.payload(), done));
    const bool pending = std::exchange(receive_pending_, false);
    if (done.status != NvspStatus::kSuccess) return;
    VMBUSD_ASSERT(pending && done.section_count == 1);
    const std::uint64_t end = std::uint64_t{done.section.sub_allocation_size} * done.section.sub_allocations;
    VMBUSD_ASSERT(end == done.section.end_offset && end <= size);
    VMBUSD_ASSERT(done.section.sub_allocation_size >= state_.mtu + 18 + kReceiveFrameRoom);
  }

  void send_found(std::uint64_t size) {
    const NvspCompletion completion = session_.send_buffer_found(size);
    check_completion(completion);
    NvspSendSendBufferComplete done;
    VMBUSD_ASSERT(read_wire(completion.payload(), done));
    VMBUSD_ASSERT(done.status != NvspStatus::kSuccess || done.section_size <= size);
  }

  // Beside the session: what it is refused or becomes is its own affair.
  static void take_up(const std::vector<std::byte>& bytes) {
    NicRecord record;
    if (!read_wire(bytes, record)) return;
    NicState state;
    state.queues = kQueues;
    NvspSession session(state, kLimits);
    if (!session.restore(record)) return;
    check(state);
    VMBUSD_ASSERT(session.negotiated());
    NicRecord again{};
    session.save(again);
    VMBUSD_ASSERT(again.nvsp_version == record.nvsp_version && again.mtu == record.mtu &&
                  again.sub_channels == record.sub_channels && again.sub_channels < kQueues &&
                  again.offloads_supported == record.offloads_supported);
  }

  static void check_completion(const NvspCompletion& completion) {
    VMBUSD_ASSERT(completion.size == 0 || completion.size == kNvspMessageSize);
  }

  static void check(const NicState& state) {
    VMBUSD_ASSERT(state.mtu <= kLimits.mtu && state.mtu >= kMtuMin);
    VMBUSD_ASSERT((state.offloads_supported & ~kLimits.offloads) == 0);
    VMBUSD_ASSERT((state.offloads_supported & kAllRsc) == 0 || state.nvsp_version >= NvspVersion::k61);
  }

  static constexpr std::uint32_t kReceiveFrameRoom = 112 + 36;
  NicState state_;
  NvspSession session_{state_, kLimits};
  bool receive_pending_ = false;
  bool granted_ = false;
};

}  // namespace
}  // namespace vmbusd::netvsp

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  vmbusd::netvsp::FuzzInput input(data, size);
  vmbusd::netvsp::Run run;
  for (std::size_t i = 0; i < vmbusd::netvsp::kActionsMax && !input.empty(); ++i) run.act(input);
  return 0;
}
