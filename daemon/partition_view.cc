#include "daemon/partition_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "daemon/config_words.h"
#include "devices/integration/integration.h"

namespace vmbusd::daemon {

namespace {

using Json = nlohmann::json;

const char* backend_name(netvsp::NicConfig::Backend backend) {
  switch (backend) {
    case netvsp::NicConfig::Backend::kTap:
      return "tap";
    case netvsp::NicConfig::Backend::kStream:
      return "stream";
    case netvsp::NicConfig::Backend::kNull:
      return "null";
    case netvsp::NicConfig::Backend::kLoopback:
      return "loopback";
  }
  return "";
}

Json pid_or_null(pid_t pid) {
  return pid == 0 ? Json(nullptr) : Json(pid);
}

Json channels_of(const std::string& device, const PartitionStatus& status) {
  std::vector<const devices::ChannelStatus*> channels;
  for (const devices::ChannelStatus& channel : status.bus.channels) {
    if (channel.device == device) channels.push_back(&channel);
  }
  std::sort(channels.begin(), channels.end(),
            [](const auto* a, const auto* b) { return a->sub_channel_index < b->sub_channel_index; });
  Json list = Json::array();
  for (const devices::ChannelStatus* channel : channels) {
    list.push_back(to_json(*channel));
    list.back().erase("device");
  }
  return list;
}

Json scsi_device(const ScsiConfig& scsi, const PartitionStatus* status) {
  Json disks = Json::array();
  for (std::size_t i = 0; i < scsi.images.size(); ++i) {
    const storvsp::DiskConfig& disk = scsi.controller.disks[i];
    const ImageConfig& image = scsi.images[i];
    disks.push_back({{"lun", disk.lun},
                     {"backend", written(kBackends, disk.backend)},
                     {"path", image.path.empty() ? Json(nullptr) : Json(image.path)},
                     {"nbd", image.nbd.uri.empty() ? Json(nullptr) : Json(image.nbd.uri)},
                     {"readonly", disk.read_only}});
  }
  Json device = {{"name", scsi.controller.name}, {"type", "scsi"}, {"disks", std::move(disks)}};
  if (status != nullptr) device["channels"] = channels_of(scsi.controller.name, *status);
  return device;
}

Json nic_device(const NicKeeper& keeper, const PartitionStatus* status) {
  const netvsp::NicConfig& nic = keeper.nic();
  Json device = {{"name", nic.name}, {"type", "nic"}, {"backend", backend_name(nic.backend)}};
  if (!keeper.source().tap.empty()) device["tap"] = keeper.source().tap;
  if (!keeper.source().socket.empty()) device["socket"] = keeper.source().socket;
  if (status == nullptr) return device;
  const auto found = std::find_if(status->devices.begin(), status->devices.end(),
                                  [&](const DeviceStatus& each) { return each.name == nic.name; });
  if (found != status->devices.end() && found->nic) device.update(to_json(*found->nic));
  device["channels"] = channels_of(nic.name, *status);
  return device;
}

// The value of a key that the guest's daemon tells of the guest; empty where it does not. [linux:
// hv_kvp_daemon.c, enum key_index]
std::string fact(const GuestStatus& guest, std::string_view key) {
  for (const integration::KeyValue& each : guest.facts) {
    if (each.key == key) return each.value;
  }
  return {};
}

// "A;B;" as a list.
void append_addresses(Json& list, std::string_view text) {
  while (!text.empty()) {
    const std::string_view address = text.substr(0, text.find(';'));
    if (!address.empty()) list.push_back(address);
    text.remove_prefix(std::min(text.size(), address.size() + 1));
  }
}

Json guest_view(const PartitionStatus* status) {
  const GuestStatus guest = status == nullptr ? GuestStatus() : status->guest;
  std::string os = fact(guest, "OSName");
  for (const char* const key : {"OSMajorVersion", "OSMinorVersion"}) {
    const std::string version = fact(guest, key);
    if (!version.empty()) os += (key == std::string_view("OSMajorVersion") ? " " : ".") + version;
  }
  Json addresses = Json::array();
  append_addresses(addresses, fact(guest, "NetworkAddressIPv4"));
  append_addresses(addresses, fact(guest, "NetworkAddressIPv6"));
  return {{"health", integration::health_name(guest.health)},
          {"name", fact(guest, "FullyQualifiedDomainName")},
          {"os", os},
          {"addresses", std::move(addresses)}};
}

Json pool_view(const std::vector<integration::KeyValue>& pool) {
  Json entries = Json::object();
  for (const integration::KeyValue& entry : pool) entries[entry.key] = entry.value;
  return entries;
}

Json integration_view(const PartitionStatus* status) {
  Json parts = Json::object();
  if (status == nullptr) return parts;
  for (std::size_t i = 0; i < status->guest.parts.size(); ++i) {
    const integration::PartStatus& part = status->guest.parts[i];
    const char* const name = integration::part_name(static_cast<integration::Part>(i));
    const bool ready = part.state == integration::PartState::kReady;
    const std::string version = fmt::format("{}.{}", part.version.major, part.version.minor);
    parts[name] = {{"state", integration::state_name(part.state)},
                   {"version", ready ? Json(version) : Json(nullptr)},
                   {"channels", channels_of(fmt::format("integration/{}", name), *status)}};
  }
  parts[integration::part_name(integration::Part::kVss)]["freeze"] =
      integration::freeze_name(status->guest.freeze);
  return parts;
}

Json version_text(std::uint32_t version) {
  if (version == 0) return nullptr;
  return fmt::format("{}.{}", version >> 16, version & 0xffff);
}

}  // namespace

Json partition_summary(const PartitionSupervisor& partition, const PartitionStatus* status) {
  return {{"name", partition.config().name},
          {"socket", partition.config().socket},
          {"state", partition.state()},
          {"worker_pid", pid_or_null(partition.worker_pid())},
          {"worker_deaths", partition.worker_deaths()},
          {"vmm_pid", pid_or_null(partition.vmm_pid())},
          {"guest", guest_view(status)}};
}

Json partition_tree(const PartitionSupervisor& partition, const PartitionStatus* status) {
  Json tree = partition_summary(partition, status);
  tree["worker_answers"] = status != nullptr;
  tree["vps"] = status == nullptr ? 0 : status->bus.vp_count;
  tree["vmbus_version"] = status == nullptr ? Json(nullptr) : version_text(status->bus.vmbus_version);
  Json devices = Json::array();
  for (const ScsiConfig& scsi : partition.config().scsi) devices.push_back(scsi_device(scsi, status));
  for (std::size_t i = 0; i < partition.nic_count(); ++i)
    devices.push_back(nic_device(partition.nic(i), status));
  tree["devices"] = std::move(devices);
  if (status != nullptr) {
    tree["guest"]["facts"] = pool_view(status->guest.facts);
    tree["guest"]["keys"] = pool_view(status->guest.keys);
  }
  tree["integration"] = integration_view(status);
  return tree;
}

ConfigTable partition_table(const PartitionSupervisor& partition) {
  ConfigTable table = to_table(partition.config());
  for (std::size_t i = 0; i < partition.nic_count(); ++i)
    table["nic"].push_back(to_table(partition.nic(i).nic(), partition.nic(i).source()));
  return table;
}

std::string shown(std::string_view text) {
  constexpr std::size_t kBytesMax = 80;
  std::string out;
  for (const char c : text.substr(0, kBytesMax)) {
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
    out += control ? '?' : c;
  }
  return out;
}

}  // namespace vmbusd::daemon
