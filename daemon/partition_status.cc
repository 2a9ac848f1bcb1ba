#include "daemon/partition_status.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "daemon/config.h"
#include "daemon/object_reader.h"
#include "devices/integration/kvp.h"
#include "vmbus/server.h"

namespace vmbusd::daemon {

namespace {

Json to_json(const ring::RingView& ring) {
  return {{"size", ring.size},
          {"write_index", ring.write_index},
          {"read_index", ring.read_index},
          {"interrupt_mask", ring.interrupt_mask},
          {"pending_send_size", ring.pending_send_size}};
}

}  // namespace

Json to_json(const devices::ChannelStatus& channel) {
  return {{"device", channel.device},
          {"index", channel.sub_channel_index},
          {"relid", channel.relid},
          {"state", channel.state},
          {"target_vp", channel.target_vp},
          {"in_flight", channel.in_flight},
          {"incoming", to_json(channel.incoming)},
          {"outgoing", to_json(channel.outgoing)},
          {"doorbells", channel.doorbells},
          {"interrupts", channel.interrupts},
          {"interrupts_saved", channel.interrupts_saved},
          {"reads", channel.io.reads},
          {"read_bytes", channel.io.read_bytes},
          {"writes", channel.io.writes},
          {"written_bytes", channel.io.written_bytes},
          {"flushes", channel.io.flushes},
          {"errors", channel.io.errors}};
}

namespace {

Json to_json(const netvsp::QueueCounters& queue) {
  return {{"tx_packets", queue.tx_packets},         {"tx_bytes", queue.tx_bytes},
          {"tx_dropped", queue.tx_dropped},         {"tx_rejected", queue.tx_rejected},
          {"rx_packets", queue.rx_packets},         {"rx_bytes", queue.rx_bytes},
          {"rx_dropped", queue.rx_dropped},         {"rx_filtered", queue.rx_filtered},
          {"tx_completions", queue.tx_completions}, {"rx_transfer_packets", queue.rx_transfer_packets}};
}

}  // namespace

Json to_json(const netvsp::NicStatus& nic) {
  Json queues = Json::array();
  for (const netvsp::QueueCounters& queue : nic.queues) queues.push_back(to_json(queue));
  return {{"link_up", nic.link_up},           {"link_reason", nic.link_reason},
          {"mac", nic.mac.to_string()},       {"mtu", nic.mtu},
          {"nvsp_version", nic.nvsp_version}, {"packet_filter", nic.packet_filter},
          {"channels", nic.channels},         {"queues", std::move(queues)}};
}

namespace {

ring::RingView read_ring(ObjectReader object, bool& ok) {
  ring::RingView ring;
  ring.size = object.integer("size", 0, UINT32_MAX);
  ring.write_index = object.integer("write_index", 0, UINT32_MAX);
  ring.read_index = object.integer("read_index", 0, UINT32_MAX);
  ring.interrupt_mask = object.integer("interrupt_mask", 0, UINT32_MAX);
  ring.pending_send_size = object.integer("pending_send_size", 0, UINT32_MAX);
  ok = ok && object.ok();
  return ring;
}

devices::ChannelStatus read_channel(ObjectReader& object, bool& ok) {
  devices::ChannelStatus channel;
  channel.device = object.shown_text("device");
  channel.sub_channel_index = object.integer("index", 0, UINT16_MAX);
  channel.relid = object.integer("relid", 0, UINT32_MAX);
  channel.state = object.shown_text("state");
  channel.target_vp = object.integer("target_vp", 0, UINT32_MAX);
  channel.in_flight = object.integer("in_flight", 0, UINT32_MAX);
  channel.incoming = read_ring(object.object("incoming"), ok);
  channel.outgoing = read_ring(object.object("outgoing"), ok);
  channel.doorbells = object.integer64("doorbells");
  channel.interrupts = object.integer64("interrupts");
  channel.interrupts_saved = object.integer64("interrupts_saved");
  channel.io.reads = object.integer64("reads");
  channel.io.read_bytes = object.integer64("read_bytes");
  channel.io.writes = object.integer64("writes");
  channel.io.written_bytes = object.integer64("written_bytes");
  channel.io.flushes = object.integer64("flushes");
  channel.io.errors = object.integer64("errors");
  return channel;
}

netvsp::QueueCounters read_queue(ObjectReader& object) {
  netvsp::QueueCounters queue;
  queue.tx_packets = object.integer64("tx_packets");
  queue.tx_bytes = object.integer64("tx_bytes");
  queue.tx_dropped = object.integer64("tx_dropped");
  queue.tx_rejected = object.integer64("tx_rejected");
  queue.rx_packets = object.integer64("rx_packets");
  queue.rx_bytes = object.integer64("rx_bytes");
  queue.rx_dropped = object.integer64("rx_dropped");
  queue.rx_filtered = object.integer64("rx_filtered");
  queue.tx_completions = object.integer64("tx_completions");
  queue.rx_transfer_packets = object.integer64("rx_transfer_packets");
  return queue;
}

netvsp::NicStatus read_nic(ObjectReader object, bool& ok) {
  netvsp::NicStatus nic;
  nic.link_up = object.boolean("link_up");
  nic.link_reason = object.shown_text("link_reason");
  nic.mac = object.mac("mac").value_or(netvsp::MacAddress{});
  nic.mtu = object.integer("mtu", 0, UINT32_MAX);
  nic.nvsp_version = object.integer("nvsp_version", 0, UINT32_MAX);
  nic.packet_filter = object.integer("packet_filter", 0, UINT32_MAX);
  nic.channels = object.integer("channels", 0, UINT32_MAX);
  object.array("queues", netvsp::kMaxQueues,
               [&](ObjectReader& queue) { nic.queues.push_back(read_queue(queue)); });
  ok = ok && object.ok();
  return nic;
}

}  // namespace

namespace {

Json to_json(const std::vector<integration::KeyValue>& pool) {
  Json entries = Json::array();
  for (const integration::KeyValue& entry : pool)
    entries.push_back({{"key", entry.key}, {"value", entry.value}});
  return entries;
}

Json to_json(const GuestStatus& guest) {
  Json parts = Json::array();
  for (const integration::PartStatus& part : guest.parts) {
    parts.push_back({{"state", static_cast<std::uint32_t>(part.state)},
                     {"major", part.version.major},
                     {"minor", part.version.minor}});
  }
  return {{"health", static_cast<std::uint32_t>(guest.health)},
          {"parts", std::move(parts)},
          {"freeze", static_cast<std::uint32_t>(guest.freeze)},
          {"facts", to_json(guest.facts)},
          {"keys", to_json(guest.keys)}};
}

void read_pool(ObjectReader& object, const char* key, std::vector<integration::KeyValue>& pool) {
  // Of a field of UTF-16 that is full.
  constexpr std::size_t kKeyBytesMax = sizeof(integration::KvpValue::key) / 2 * 3;
  constexpr std::size_t kValueBytesMax = sizeof(integration::KvpValue::value) / 2 * 3;
  object.array(key, integration::Kvp::kEntriesMax, [&](ObjectReader& entry) {
    pool.push_back({entry.shown_text("key", kKeyBytesMax), entry.shown_text("value", kValueBytesMax)});
  });
}

GuestStatus read_guest(ObjectReader object, bool& ok) {
  using integration::FreezeState;
  using integration::Health;
  using integration::PartState;
  GuestStatus guest;
  guest.health = static_cast<Health>(object.integer("health", 0, static_cast<std::uint32_t>(Health::kLost)));
  std::size_t count = 0;
  object.array("parts", guest.parts.size(), [&](ObjectReader& reader) {
    integration::PartStatus& part = guest.parts[count++];
    part.state =
        static_cast<PartState>(reader.integer("state", 0, static_cast<std::uint32_t>(PartState::kRefused)));
    part.version.major = static_cast<std::uint16_t>(reader.integer("major", 0, UINT16_MAX));
    part.version.minor = static_cast<std::uint16_t>(reader.integer("minor", 0, UINT16_MAX));
  });
  guest.freeze = static_cast<FreezeState>(
      object.integer("freeze", 0, static_cast<std::uint32_t>(FreezeState::kThawing)));
  read_pool(object, "facts", guest.facts);
  read_pool(object, "keys", guest.keys);
  ok = ok && object.ok();
  return guest;
}

}  // namespace

std::string encode(const PartitionStatus& status) {
  Json channels = Json::array();
  for (const devices::ChannelStatus& channel : status.bus.channels) channels.push_back(to_json(channel));
  Json devices = Json::array();
  for (const DeviceStatus& device : status.devices) {
    devices.push_back({{"name", device.name}, {"is_nic", device.nic.has_value()}});
    if (device.nic) devices.back()["nic"] = to_json(*device.nic);
  }
  return dump({{"attached", status.attached},
               {"vps", status.bus.vp_count},
               {"vmbus_version", status.bus.vmbus_version},
               {"channels", std::move(channels)},
               {"devices", std::move(devices)},
               {"guest", to_json(status.guest)}});
}

Result<PartitionStatus> decode_partition_status(std::string_view text) {
  // What is nested deeper than any status is not kept, for it would cost many times its size.
  constexpr int kDepthMax = 8;
  const Json json = Json::parse(
      text, [](int depth, Json::parse_event_t, const Json&) { return depth <= kDepthMax; }, false);
  ObjectReader object(json);
  PartitionStatus status;
  bool ok = true;
  status.attached = object.boolean("attached");
  status.bus.vp_count = object.integer("vps", 0, UINT32_MAX);
  status.bus.vmbus_version = object.integer("vmbus_version", 0, UINT32_MAX);
  object.array("channels", vmbus::kMaxChannels,
               [&](ObjectReader& channel) { status.bus.channels.push_back(read_channel(channel, ok)); });
  // Up to kDevicesMax of each kind.
  object.array("devices", std::size_t{2} * kDevicesMax, [&](ObjectReader& reader) {
    DeviceStatus& device = status.devices.emplace_back();
    device.name = reader.shown_text("name");
    if (reader.boolean("is_nic")) device.nic = read_nic(reader.object("nic"), ok);
  });
  status.guest = read_guest(object.object("guest"), ok);
  if (!ok || !object.ok()) return fail(Errc::kProtocol, "not a partition's status");
  return status;
}

Result<UniqueFd> make_status_file() {
  UniqueFd file(::memfd_create("vmbusd-status", MFD_CLOEXEC));
  if (!file) return fail_os(errno, "cannot make a memfd");
  return file;
}

Result<PartitionStatus> read_status_file(int file) {
  struct stat info {};
  if (::fstat(file, &info) != 0) return fail_os(errno, "cannot examine the memfd");
  if (info.st_size <= 0 || info.st_size > static_cast<off_t>(kStatusBytesMax)) {
    return fail(Errc::kProtocol, "a status of this size cannot be");
  }
  std::string text(static_cast<std::size_t>(info.st_size), '\0');
  const ssize_t got = ::pread(file, text.data(), text.size(), 0);
  if (got < 0) return fail_os(errno, "cannot read the memfd");
  text.resize(static_cast<std::size_t>(got));
  return decode_partition_status(text);
}

Result<void> write_status_file(int file, const PartitionStatus& status) {
  const std::string text = encode(status);
  std::size_t written = 0;
  while (written < text.size()) {
    const ssize_t put = ::write(file, text.data() + written, text.size() - written);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail_os(errno, "cannot write the status");
    written += static_cast<std::size_t>(put);
  }
  return {};
}

}  // namespace vmbusd::daemon
