// How a partition is, as its worker process tells the supervisor: the JSON that operators get to see.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "devices/integration/status.h"
#include "devices/status.h"
#include "netvsp/nic.h"

namespace vmbusd::daemon {

inline constexpr std::size_t kStatusBytesMax = 4 << 20;  // the most channels and queues take half of it

struct DeviceStatus {
  std::string name;                      // without the partition's
  std::optional<netvsp::NicStatus> nic;  // of a NIC
};

// What the integration components know of the guest.
struct GuestStatus {
  integration::Health health = integration::Health::kUnknown;
  std::array<integration::PartStatus, integration::kParts> parts;
  integration::FreezeState freeze = integration::FreezeState::kThawed;
  std::vector<integration::KeyValue>
      facts;  // of the guest's daemon; at most Kvp::kEntriesMax, as are the keys
  std::vector<integration::KeyValue> keys;
};

struct PartitionStatus {
  bool attached = false;   // a VMM is connected
  devices::BusStatus bus;  // while it is; `device` of its channels is without the partition's name
  std::vector<DeviceStatus> devices;
  GuestStatus guest;
};

[[nodiscard]] nlohmann::json to_json(const devices::ChannelStatus& channel);
[[nodiscard]] nlohmann::json to_json(const netvsp::NicStatus& nic);
[[nodiscard]] std::string encode(const PartitionStatus& status);
// Errc::kProtocol for anything that encode() does not make: a guest may have taken the worker over.
[[nodiscard]] Result<PartitionStatus> decode_partition_status(std::string_view text);

// A memfd for StatusCommand; what the worker wrote there. Nothing that the worker does to it meanwhile can
// harm.
[[nodiscard]] Result<UniqueFd> make_status_file();
[[nodiscard]] Result<PartitionStatus> read_status_file(int file);
// The worker's side.
[[nodiscard]] Result<void> write_status_file(int file, const PartitionStatus& status);

}  // namespace vmbusd::daemon
