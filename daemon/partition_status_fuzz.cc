// Fuzz target of what a worker process says of itself: whatever the text, what is accepted is bounded, can be
// shown on a terminal, and says the same when it is written and read again.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "daemon/config.h"
#include "daemon/partition_status.h"
#include "fuzz/fuzz_target.h"
#include "vmbus/server.h"

namespace vmbusd::daemon {
namespace {

using fuzz::promise;

void check_text(std::string_view text) {
  promise(text.size() <= 256, "texts are short");
  promise(std::none_of(text.begin(), text.end(),
                       [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }),
          "texts are printable");
}

}  // namespace
}  // namespace vmbusd::daemon

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmbusd;
  using namespace vmbusd::daemon;
  const auto status = decode_partition_status({reinterpret_cast<const char*>(data), size});
  if (!status) return 0;
  promise(status->bus.channels.size() <= vmbus::kMaxChannels, "channels are bounded");
  for (const devices::ChannelStatus& channel : status->bus.channels) {
    check_text(channel.device);
    check_text(channel.state);
  }
  promise(status->devices.size() <= 2 * kDevicesMax, "devices are bounded");
  for (const DeviceStatus& device : status->devices) {
    check_text(device.name);
    if (!device.nic) continue;
    check_text(device.nic->link_reason);
    promise(device.nic->queues.size() <= netvsp::kMaxQueues, "queues are bounded");
  }
  const auto again = decode_partition_status(encode(*status));
  promise(again && encode(*again) == encode(*status), "what was read can be written and read again");
  return 0;
}
