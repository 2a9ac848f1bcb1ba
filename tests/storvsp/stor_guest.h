// The guest's end of a storage channel: its memory, its rings, and packets as a driver makes them. The host's
// end is a real Channel on a real worker.
#pragma once

#include <sys/eventfd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <future>
#include <memory>
#include <numeric>
#include <optional>
#include <thread>
#include <vector>

#include "devices/channel.h"
#include "devices/gpadl_view.h"
#include "storvsp/vstor.h"
#include "tests/devices/test_memory.h"
#include "tests/io/on_worker.h"

namespace vmbusd::storvsp {

using Bytes = std::vector<std::uint8_t>;

// One range of a GPA-direct packet.
struct GuestRange {
  std::uint32_t byte_count;
  std::uint32_t byte_offset;
  std::vector<std::uint64_t> pages;
};

struct Completion {
  std::uint64_t id;
  ring::PacketType type;
  std::uint32_t payload_size;
  vstor::SrbPacket packet;
};

class StorGuest {
 public:
  static constexpr std::uint64_t kPages = 1024;
  static constexpr std::uint64_t kDataPage = 200;  // from here on pages are for buffers

  struct Options {
    std::uint32_t incoming_pages = 16;
    std::uint32_t outgoing_pages = 16;
    std::uint32_t sub_channel_index = 0;
    // False: the host's end runs on this thread too, whenever poll() is called, and nothing reaches the
    // kernel.
    bool own_thread = true;
    std::shared_ptr<devices::RecoveryRegion> region = nullptr;  // nullptr: one of its own
    bool recovered = false;  // the region is another's that died, and what it had in hand is this one's
  };

  static std::shared_ptr<devices::RecoveryRegion> new_region() {
    return std::make_shared<devices::RecoveryRegion>(*devices::RecoveryRegion::make_private());
  }

  template <typename Function>
  auto on_worker(Function function) {
    if (!own_thread_) return function();
    return io::on_worker(*worker_, std::move(function));
  }

  StorGuest(std::unique_ptr<devices::ChannelHandler> handler, const Options& options)
      : own_thread_(options.own_thread), worker_(std::move(*io::Worker::create({.name = "stor-test"}))) {
    memory.add_to(partition.memory());
    doorbell_.reset(::eventfd(0, EFD_NONBLOCK));
    devices::RingPair host = rings(options);
    devices::RingPair guest = rings(options);
    to_host.emplace(std::move(guest.incoming));
    from_host.emplace(std::move(guest.outgoing));
    channel = std::make_unique<devices::Channel>(
        devices::Channel::Config{.name = "test/scsi0",
                                 .relid = 1,
                                 .sub_channel_index = options.sub_channel_index,
                                 .target_vp = vmbus::kNoInterruptVp,
                                 .event_flag = 1,
                                 .recovered = options.recovered},
        partition, *worker_, std::move(host.incoming), std::move(host.outgoing), std::move(handler),
        UniqueFd(::dup(doorbell_.get())), options.region != nullptr ? options.region : new_region());
    if (own_thread_) worker_->start();
    running_ = on_worker([this] { return channel->start().has_value(); });
    VMBUSD_ASSERT(running_);
  }
  explicit StorGuest(std::unique_ptr<devices::ChannelHandler> handler)
      : StorGuest(std::move(handler), Options()) {}
  ~StorGuest() {
    if (running_) stop();
    worker_->stop();
  }

  // Closes the channel; returns when nothing is in flight.
  void stop() {
    running_ = false;
    if (!own_thread_) {
      worker_->post([this] { channel->stop([this] { worker_->stop(); }); });
      worker_->run();
      return;
    }
    std::promise<void> stopped;
    worker_->post([&] { channel->stop([&] { stopped.set_value(); }); });
    stopped.get_future().get();
  }
  // Has the host's end look at the rings, where it has no thread of its own.
  void poll() { (void)channel->poll(); }

  void put(std::uint64_t id, std::span<const std::byte> payload, const std::vector<GuestRange>& ranges = {},
           bool completion_requested = true) {
    Bytes extension;
    if (!ranges.empty()) {
      append(extension, std::uint32_t{0xdeadbeef});  // reserved: garbage, as some drivers leave there
      append(extension, static_cast<std::uint32_t>(ranges.size()));
      for (const GuestRange& range : ranges) {
        append(extension, range.byte_count);
        append(extension, range.byte_offset);
        for (const std::uint64_t page : range.pages) append(extension, page);
      }
    }
    put_raw({.type = ranges.empty() ? ring::PacketType::kInband : ring::PacketType::kGpaDirect,
             .completion_requested = completion_requested,
             .transaction_id = id,
             .extension = std::as_bytes(std::span(extension)),
             .payload = payload});
  }
  void put_raw(const ring::PacketToWrite& packet) { VMBUSD_ASSERT(to_host->write(packet).value()); }
  // Publishes what was put, and rings the doorbell as the host wishes.
  void send() {
    if (to_host->commit().value()) ring_doorbell();
  }
  void ring_doorbell() { VMBUSD_ASSERT(::eventfd_write(doorbell_.get(), 1) == 0); }

  [[nodiscard]] std::optional<Completion> try_receive() {
    const auto packet = from_host->next();
    VMBUSD_ASSERT(packet.has_value());
    if (!*packet) return std::nullopt;
    Completion completion{(*packet)->transaction_id, (*packet)->type, (*packet)->payload_size, {}};
    const std::size_t size = std::min<std::size_t>(sizeof completion.packet, completion.payload_size);
    from_host->read_payload(**packet, 0, wire_bytes_writable(completion.packet).first(size));
    if (from_host->release()) ring_doorbell();
    return completion;
  }
  // Waits up to 2 s.
  [[nodiscard]] std::optional<Completion> receive() {
    for (int i = 0; i < 20000; ++i) {
      if (auto completion = try_receive()) return completion;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    return std::nullopt;
  }

  Completion call(std::span<const std::byte> payload, const std::vector<GuestRange>& ranges = {}) {
    put(++next_id_, payload, ranges);
    send();
    const std::optional<Completion> completion = receive();
    VMBUSD_ASSERT(completion && completion->id == next_id_);
    return *completion;
  }
  Completion control(vstor::Operation operation, const Bytes& body = {},
                     std::size_t size = vstor::kPacketSize) {
    vstor::Packet packet{};
    packet.header = {operation, vstor::kFlagCompletionRequested, vstor::Status::kSuccess};
    std::transform(body.begin(), body.end(), packet.body.begin(),
                   [](std::uint8_t byte) { return std::byte{byte}; });
    return call(wire_bytes(packet).first(size));
  }
  void negotiate(std::uint16_t version = vstor::kVersionWin10) {
    const std::size_t size =
        version < vstor::kVersionWin8 ? vstor::kPacketSizeBeforeWin8 : vstor::kPacketSize;
    const Bytes version_body = {static_cast<std::uint8_t>(version), static_cast<std::uint8_t>(version >> 8)};
    for (const auto& [operation, body] : {std::pair{vstor::Operation::kBeginInitialization, Bytes{}},
                                          std::pair{vstor::Operation::kQueryProtocolVersion, version_body},
                                          std::pair{vstor::Operation::kQueryProperties, Bytes{}},
                                          std::pair{vstor::Operation::kEndInitialization, Bytes{}}}) {
      const Completion completion = control(operation, body, size);
      VMBUSD_ASSERT(completion.packet.header.status == vstor::Status::kSuccess);
    }
  }

  // An SRB as Linux fills it.
  static vstor::SrbPacket srb(const Bytes& cdb, vstor::DataIn data_in, std::uint32_t length,
                              std::uint8_t lun = 0) {
    vstor::SrbPacket packet{};
    packet.header = {vstor::Operation::kExecuteSrb, vstor::kFlagCompletionRequested, vstor::Status::kSuccess};
    packet.srb.length = sizeof packet.srb;
    packet.srb.lun = lun;
    packet.srb.cdb_length = static_cast<std::uint8_t>(cdb.size());
    packet.srb.sense_info_length = vstor::kSenseSizeMax;
    packet.srb.data_in = data_in;
    packet.srb.data_transfer_length = length;
    std::copy(cdb.begin(), cdb.end(), packet.srb.cdb_or_sense.begin());
    packet.srb.queue_tag = 0xff;
    packet.srb.queue_action = 0x20;
    packet.srb.time_out_value = 60;
    return packet;
  }
  // One range of `length` bytes at `offset` into the buffer pages.
  static GuestRange range(std::uint32_t length, std::uint64_t offset = 0) {
    GuestRange range{length, static_cast<std::uint32_t>(offset % 4096), {}};
    range.pages.resize((range.byte_offset + length + 4095) / 4096);
    std::iota(range.pages.begin(), range.pages.end(), kDataPage + offset / 4096);
    return range;
  }
  // A command with its whole buffer at the start of the buffer pages.
  Completion command(const Bytes& cdb, vstor::DataIn data_in = vstor::DataIn::kUnknown,
                     std::uint32_t length = 0, std::uint8_t lun = 0) {
    const vstor::SrbPacket packet = srb(cdb, data_in, length, lun);
    return length == 0 ? call(wire_bytes(packet)) : call(wire_bytes(packet), {range(length)});
  }
  [[nodiscard]] std::byte* data() const { return memory.page(kDataPage); }

  devices::TestMemory memory{kPages};
  partition::Partition partition{1};
  std::optional<ring::OutgoingRing> to_host;
  std::optional<ring::IncomingRing> from_host;
  std::unique_ptr<devices::Channel> channel;

 private:
  template <typename T>
  static void append(Bytes& bytes, T value) {
    const std::size_t at = bytes.size();
    bytes.resize(at + sizeof value);
    std::memcpy(bytes.data() + at, &value, sizeof value);
  }
  devices::RingPair rings(const Options& options) {
    vmbus::Gpadl gpadl{1, 1, {{(options.incoming_pages + options.outgoing_pages) * 4096, 0, {}}}};
    gpadl.ranges[0].pages.resize(options.incoming_pages + options.outgoing_pages);
    std::iota(gpadl.ranges[0].pages.begin(), gpadl.ranges[0].pages.end(), 1u);
    return std::move(*devices::make_rings(partition.memory(), gpadl, options.incoming_pages));
  }

  const bool own_thread_;
  UniqueFd doorbell_;
  std::unique_ptr<io::Worker> worker_;
  bool running_ = false;
  std::uint64_t next_id_ = 0;
};

}  // namespace vmbusd::storvsp
