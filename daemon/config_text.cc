#include "daemon/config_text.h"

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "daemon/config_words.h"

namespace vmbusd::daemon {

namespace {

// "10G", with the largest suffix that says it in full. Sizes are multiples of 1024.
std::string size_text(std::uint64_t bytes) {
  constexpr std::array kSuffixes = {'K', 'M', 'G', 'T'};
  std::size_t suffix = 0;
  std::uint64_t count = bytes >> 10;
  while (suffix + 1 < kSuffixes.size() && count % 1024 == 0) {
    count /= 1024;
    ++suffix;
  }
  return fmt::format("{}{}", count, kSuffixes[suffix]);
}

// Sets a key, unless its value is what it is without it.
template <typename T>
void set(ConfigTable& table, const char* key, const T& value, const T& unset) {
  if (value != unset) table[key] = value;
}

void set_text(ConfigTable& table, const char* key, const std::string& value) {
  set(table, key, value, std::string());
}

void set_identity(ConfigTable& table, const std::string& name, const std::optional<Guid>& instance) {
  table["name"] = name;
  if (instance) table["instance"] = instance->to_string();
}

// JSON's strings are TOML's but for one character.
std::string toml_value(const ConfigTable& value) {
  std::string text = value.dump(-1, ' ', false, ConfigTable::error_handler_t::replace);
  constexpr std::string_view kDelete = "\x7f";
  for (std::size_t at = text.find(kDelete); at != std::string::npos; at = text.find(kDelete, at)) {
    text.replace(at, kDelete.size(), "\\u007f");
  }
  return text;
}

bool is_tables(const ConfigTable& value) {
  return value.is_array() && !value.empty() && value.front().is_object();
}

void append_table(std::string& out, const ConfigTable& table, const std::string& path, std::size_t indent) {
  for (const auto& [key, value] : table.items()) {
    if (!is_tables(value)) out += fmt::format("{:{}}{} = {}\n", "", indent, key, toml_value(value));
  }
  for (const auto& [key, value] : table.items()) {
    if (!is_tables(value)) continue;
    const std::string whole = path.empty() ? key : path + "." + key;
    const std::size_t inner = path.empty() ? 0 : indent + 2;
    for (const ConfigTable& element : value) {
      if (!out.empty()) out += '\n';
      out += fmt::format("{:{}}[[{}]]\n", "", inner, whole);
      append_table(out, element, whole, inner);
    }
  }
}

}  // namespace

ConfigTable to_table(const storvsp::DiskConfig& disk, const ImageConfig& image) {
  static const storvsp::DiskConfig unset;
  ConfigTable table;
  table["lun"] = disk.lun;
  if (disk.backend == storvsp::DiskConfig::Backend::kNull) {
    table["backend"] = written(kBackends, disk.backend);
    table["size"] = size_text(disk.size_bytes);
  } else if (disk.backend == storvsp::DiskConfig::Backend::kNbd) {
    table["nbd"] = image.nbd.uri;
    set(table, "reconnect_delay", disk.nbd.reconnect_delay_s, unset.nbd.reconnect_delay_s);
  } else {
    table["path"] = image.path;
    if (image.direct != DirectIo::kAuto) table["direct"] = written(kDirectIoWords, image.direct);
    set_text(table, "reservations", image.reservations);
  }
  set(table, "readonly", disk.read_only, unset.read_only);
  set(table, "poll", disk.poll, unset.poll);
  set(table, "iops", disk.limits.operations, unset.limits.operations);
  if (disk.limits.bytes != 0) table["rate"] = size_text(disk.limits.bytes);
  set(table, "burst", disk.limits.burst_ms, unset.limits.burst_ms);
  set(table, "discard", disk.discard, unset.discard);
  if (disk.cache != unset.cache) table["cache"] = written(kCacheModes, disk.cache);
  set(table, "block_size", disk.logical_block_bytes, unset.logical_block_bytes);
  set(table, "physical_block_size", disk.physical_block_bytes, unset.physical_block_bytes);
  set(table, "vendor", disk.vendor, unset.vendor);
  set(table, "product", disk.product, unset.product);
  set(table, "revision", disk.revision, unset.revision);
  set(table, "serial", disk.serial, unset.serial);
  if (disk.identity) table["identity"] = disk.identity->to_string();
  return table;
}

ConfigTable to_table(const ScsiConfig& scsi) {
  ConfigTable table;
  set_identity(table, scsi.controller.name, scsi.controller.instance);
  set(table, "channels", scsi.controller.channels, std::uint32_t{0});
  for (std::size_t i = 0; i < scsi.images.size(); ++i) {
    table["disk"].push_back(to_table(scsi.controller.disks[i], scsi.images[i]));
  }
  return table;
}

ConfigTable to_table(const netvsp::NicConfig& nic, const NicSource& source) {
  using Backend = netvsp::NicConfig::Backend;
  static const netvsp::NicConfig unset;
  ConfigTable table;
  set_identity(table, nic.name, nic.instance);
  table["backend"] = written(kNicBackends, nic.backend);
  set_text(table, "tap", source.tap);
  set_text(table, "socket", source.socket);
  if (!source.fds.empty()) table["fds"] = source.fds;
  const bool own_queues = nic.backend == Backend::kTap ? !source.any_queues && source.fds.empty()
                                                       : nic.backend != Backend::kStream && nic.queues != 1;
  if (own_queues) table["queues"] = nic.queues;
  if (nic.mac) table["mac"] = nic.mac->to_string();
  set(table, "mtu", nic.mtu, unset.mtu);
  set(table, "link_speed_mbps", nic.link_speed_mbps, unset.link_speed_mbps);
  set(table, "check_source_mac", nic.check_source_mac, unset.check_source_mac);
  set(table, "monitor", nic.monitored, unset.monitored);
  set(table, "friendly_name", nic.friendly_name, unset.friendly_name);
  set(table, "receive_bytes", nic.null_receive_bytes, unset.null_receive_bytes);
  return table;
}

ConfigTable to_table(const PartitionConfig& partition) {
  ConfigTable table;
  table["name"] = partition.name;
  table["socket"] = partition.socket;
  set(table, "io_threads", partition.io_threads, std::uint32_t{0});
  set(table, "poll_us", partition.poll_us, kPollUsDefault);
  set(table, "nice", partition.nice, 0u);
  set(table, "heartbeat", partition.integration.heartbeat, true);
  set(table, "shutdown", partition.integration.shutdown, true);
  set(table, "timesync", partition.integration.timesync, true);
  set(table, "kvp", partition.integration.kvp, true);
  set(table, "vss", partition.integration.vss, true);
  for (const ScsiConfig& scsi : partition.scsi) table["scsi"].push_back(to_table(scsi));
  for (const NicConfig& nic : partition.nics) table["nic"].push_back(to_table(nic.nic, nic.source));
  return table;
}

ConfigTable to_table(const Config& config) {
  static const Config unset;
  ConfigTable table = ConfigTable::object();
  set_text(table, "control_socket", config.control_socket);
  set_text(table, "socket_group", config.socket_group);
  set(table, "worker_user", config.worker_user, unset.worker_user);
  if (config.seccomp != unset.seccomp) table["seccomp"] = written(kSeccompActions, config.seccomp);
  for (const PartitionConfig& each : config.partitions) table["partition"].push_back(to_table(each));
  return table;
}

std::string to_toml(const ConfigTable& root) {
  std::string out;
  append_table(out, root, "", 0);
  return out;
}

}  // namespace vmbusd::daemon
