#include "daemon/metrics.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <utility>

namespace vmbusd::daemon {

namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

class Family {
 public:
  Family(const char* name, const char* help, MetricType type) : family_{name, help, type, {}} {}

  void add(Labels labels, double value) {
    ClientMetric metric;
    metric.label = std::move(labels);
    if (family_.type == MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    family_.metric.push_back(std::move(metric));
  }
  [[nodiscard]] MetricFamily take() { return std::move(family_); }

 private:
  MetricFamily family_;
};

// One number of each channel or each queue of a NIC.
template <typename Of>
struct Column {
  const char* name;
  const char* help;
  MetricType type;
  std::uint64_t (*value)(const Of&);
};

using devices::ChannelStatus;
using netvsp::QueueCounters;

std::uint64_t fill(const ring::RingView& ring) {
  if (ring.read_index >= ring.size || ring.write_index >= ring.size) return 0;  // the guest's own business
  return ring::ring_distance(ring.read_index, ring.write_index, ring.size);
}

constexpr Column<ChannelStatus> kChannelColumns[] = {
    {"vmbusd_channel_doorbells_total", "Signals of the guest that the channel was woken by.",
     MetricType::Counter, [](const ChannelStatus& c) { return c.doorbells; }},
    {"vmbusd_channel_interrupts_total", "Interrupts that were raised in the guest.", MetricType::Counter,
     [](const ChannelStatus& c) { return c.interrupts; }},
    {"vmbusd_channel_interrupts_saved_total", "Interrupts that were pending already.", MetricType::Counter,
     [](const ChannelStatus& c) { return c.interrupts_saved; }},
    {"vmbusd_channel_in_flight", "Operations that are under way.", MetricType::Gauge,
     [](const ChannelStatus& c) { return std::uint64_t{c.in_flight}; }},
    {"vmbusd_channel_incoming_ring_bytes", "Bytes in the guest's ring that wait to be read.",
     MetricType::Gauge, [](const ChannelStatus& c) { return fill(c.incoming); }},
    {"vmbusd_channel_outgoing_ring_bytes", "Bytes that wait for the guest.", MetricType::Gauge,
     [](const ChannelStatus& c) { return fill(c.outgoing); }},
};

constexpr Column<ChannelStatus> kDiskColumns[] = {
    {"vmbusd_disk_reads_total", "Reads that succeeded, since the channel was opened.", MetricType::Counter,
     [](const ChannelStatus& c) { return c.io.reads; }},
    {"vmbusd_disk_read_bytes_total", "Bytes of those reads.", MetricType::Counter,
     [](const ChannelStatus& c) { return c.io.read_bytes; }},
    {"vmbusd_disk_writes_total", "Writes that succeeded, since the channel was opened.", MetricType::Counter,
     [](const ChannelStatus& c) { return c.io.writes; }},
    {"vmbusd_disk_written_bytes_total", "Bytes of those writes.", MetricType::Counter,
     [](const ChannelStatus& c) { return c.io.written_bytes; }},
    {"vmbusd_disk_flushes_total", "Flushes that succeeded, since the channel was opened.",
     MetricType::Counter, [](const ChannelStatus& c) { return c.io.flushes; }},
    {"vmbusd_disk_errors_total", "Operations that the host's medium failed.", MetricType::Counter,
     [](const ChannelStatus& c) { return c.io.errors; }},
};

// "transmit" is what the guest sends.
constexpr Column<QueueCounters> kQueueColumns[] = {
    {"vmbusd_nic_transmit_packets_total", "Packets that the guest sent; a large send counts once.",
     MetricType::Counter, [](const QueueCounters& q) { return q.tx_packets; }},
    {"vmbusd_nic_transmit_bytes_total", "Bytes of those packets.", MetricType::Counter,
     [](const QueueCounters& q) { return q.tx_bytes; }},
    {"vmbusd_nic_transmit_dropped_total", "Packets of the guest that could not be sent.", MetricType::Counter,
     [](const QueueCounters& q) { return q.tx_dropped; }},
    {"vmbusd_nic_transmit_rejected_total", "Packets of the guest that were malformed or not permitted.",
     MetricType::Counter, [](const QueueCounters& q) { return q.tx_rejected; }},
    {"vmbusd_nic_receive_packets_total", "Packets that the guest got; a coalesced one counts once.",
     MetricType::Counter, [](const QueueCounters& q) { return q.rx_packets; }},
    {"vmbusd_nic_receive_bytes_total", "Bytes of those packets.", MetricType::Counter,
     [](const QueueCounters& q) { return q.rx_bytes; }},
    {"vmbusd_nic_receive_dropped_total", "Packets for the guest that it had no room for.",
     MetricType::Counter, [](const QueueCounters& q) { return q.rx_dropped; }},
    {"vmbusd_nic_receive_filtered_total", "Packets that the guest's filter did not want.",
     MetricType::Counter, [](const QueueCounters& q) { return q.rx_filtered; }},
};

bool is_nic(const PartitionStatus& status, const std::string& device) {
  for (const DeviceStatus& each : status.devices) {
    if (each.name == device) return each.nic.has_value();
  }
  return false;
}

// One family a column: calls `add_all` with a function that takes labels and the row that they stand for.
template <typename Of, std::size_t Count, typename AddAll>
void add_columns(std::vector<MetricFamily>& families, const Column<Of> (&columns)[Count], AddAll add_all) {
  for (const Column<Of>& column : columns) {
    Family family(column.name, column.help, column.type);
    add_all([&](Labels labels, const Of& row) {
      family.add(std::move(labels), static_cast<double>(column.value(row)));
    });
    families.push_back(family.take());
  }
}

}  // namespace

std::string metrics_text(const std::vector<PartitionSample>& samples) {
  std::vector<MetricFamily> families;

  Family info("vmbusd_build_info", "Always 1; the version is its label.", MetricType::Gauge);
  info.add({{"version", VMBUSD_VERSION}}, 1);
  families.push_back(info.take());
  Family serving("vmbusd_partition_serving", "1: a VMM can attach or has.", MetricType::Gauge);
  Family attached("vmbusd_partition_attached", "1: a VMM is attached.", MetricType::Gauge);
  Family deaths("vmbusd_partition_worker_deaths_total", "Worker processes that ended unexpectedly.",
                MetricType::Counter);
  Family answers("vmbusd_partition_worker_answers", "0: the worker process does not say how it is.",
                 MetricType::Gauge);
  Family heartbeat("vmbusd_guest_heartbeat", "1: the guest answers; 0: it did, and does not any more.",
                   MetricType::Gauge);
  Family frozen("vmbusd_guest_frozen", "1: the guest's file systems are frozen, or not yet thawed.",
                MetricType::Gauge);
  Family link("vmbusd_nic_link_up", "1: the guest sees the link up.", MetricType::Gauge);
  for (const PartitionSample& sample : samples) {
    const Labels labels = {{"partition", sample.name}};
    serving.add(labels, sample.serving ? 1 : 0);
    attached.add(labels, sample.attached ? 1 : 0);
    deaths.add(labels, static_cast<double>(sample.worker_deaths));
    answers.add(labels, sample.status ? 1 : 0);
    if (!sample.status) continue;
    if (const integration::Health health = sample.status->guest.health;
        health != integration::Health::kUnknown) {
      heartbeat.add(labels, health == integration::Health::kOk ? 1 : 0);
    }
    frozen.add(labels, sample.status->guest.freeze == integration::FreezeState::kThawed ? 0 : 1);
    for (const DeviceStatus& device : sample.status->devices) {
      if (device.nic) {
        link.add({{"partition", sample.name}, {"device", device.name}}, device.nic->link_up ? 1 : 0);
      }
    }
  }
  for (Family* const family : {&serving, &attached, &deaths, &answers, &heartbeat, &frozen, &link})
    families.push_back(family->take());

  const auto channels = [&](bool disks_only) {
    return [&samples, disks_only](const auto& add) {
      for (const PartitionSample& sample : samples) {
        if (!sample.status) continue;
        for (const ChannelStatus& channel : sample.status->bus.channels) {
          // Integration components move next to nothing.
          if (channel.device.starts_with("integration/")) continue;
          if (disks_only && is_nic(*sample.status, channel.device)) continue;
          add({{"partition", sample.name},
               {"device", channel.device},
               {"channel", std::to_string(channel.sub_channel_index)}},
              channel);
        }
      }
    };
  };
  add_columns(families, kChannelColumns, channels(false));
  add_columns(families, kDiskColumns, channels(true));
  add_columns(families, kQueueColumns, [&](const auto& add) {
    for (const PartitionSample& sample : samples) {
      if (!sample.status) continue;
      for (const DeviceStatus& device : sample.status->devices) {
        if (!device.nic) continue;
        for (std::size_t i = 0; i < device.nic->queues.size(); ++i) {
          add({{"partition", sample.name}, {"device", device.name}, {"queue", std::to_string(i)}},
              device.nic->queues[i]);
        }
      }
    }
  });
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace vmbusd::daemon
