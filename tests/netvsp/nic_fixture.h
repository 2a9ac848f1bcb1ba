// A NIC on real workers and rings, and a driver at the guest's end that does what netvsc does, or not.
#pragma once

#include <sys/eventfd.h>
#include <sys/uio.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "devices/gpadl_view.h"
#include "netvsp/nic.h"
#include "netvsp/nvsp_session.h"
#include "netvsp/rndis_packet.h"
#include "tests/catch.h"
#include "tests/devices/test_memory.h"
#include "tests/io/on_worker.h"
#include "tests/netvsp/frames.h"

namespace vmbusd::netvsp {

constexpr std::uint16_t kSetId = 0xcafe;
constexpr MacAddress kGuestMac{{0x02, 0, 0, 0, 0, 0x0a}};

// A frame as the guest's stack gets it.
struct GuestFrame {
  Bytes bytes;
  std::optional<std::uint32_t> checksum_info;
  std::optional<std::uint32_t> vlan_info;
  std::uint32_t fragments = 1;
  std::uint32_t channel = 0;
};

struct GuestOptions {
  std::uint32_t version = 0x60001;
  std::uint32_t mtu = 1500;
  std::uint32_t receive_pages = 1024;
  std::uint32_t ring_pages = 32;      // each way, control page included
  std::uint32_t capabilities = 0x88;  // 802.1Q, RSC
  bool rsc = true;                    // switched on
  std::uint32_t filter = kFilterDirected | kFilterBroadcast | kFilterAllMulticast;
  std::uint32_t sub_channels = 0;
};

class GuestNic final : private devices::DeviceHost {
 public:
  explicit GuestNic(NicConfig config, std::uint32_t workers = 1, std::uint32_t vps = partition::kMaxVps)
      : partition_(vps) {
    memory_.add_to(partition_.memory());
    for (std::uint32_t i = 0; i < workers; ++i) {
      workers_.push_back(std::move(*io::Worker::create({.name = "test"})));
      workers_.back()->start();
    }
    if (!config.mac) config.mac = kGuestMac;
    config.partition = "test";
    config.name = "nic0";
    auto made = make_nic(std::move(config));
    INFO((made ? std::string() : describe(made.error())));
    REQUIRE(made.has_value());
    nic_ = std::move(*made);
  }
  ~GuestNic() {
    close();
    for (const auto& worker : workers_) worker->stop();
  }

  [[nodiscard]] Nic& nic() { return *nic_; }

  // One open channel, from the guest's side.
  struct Link {
    std::unique_ptr<devices::Channel> host;
    io::Worker* worker = nullptr;
    std::optional<ring::OutgoingRing> to_host;
    std::optional<ring::IncomingRing> from_host;
    UniqueFd doorbell;
    bool complete_frames = true;  // as they come
    bool reading = true;
    std::map<std::uint64_t, Bytes> completions;
    std::deque<std::uint64_t> uncompleted;  // transfer-page packets
    std::uint64_t transfer_packets = 0;
  };
  [[nodiscard]] Link& link(std::uint32_t index = 0) { return *links_[index]; }

  // Life cycle.

  void open_channel(std::uint32_t index, std::uint32_t ring_pages) {
    vmbus::Gpadl gpadl{1, index + 1, {{2 * ring_pages * 4096, 0, pages(2 * ring_pages, false)}}};
    recycle_ = std::max(recycle_, next_page_);
    for (const vmbus::Gpn page : gpadl.ranges[0].pages) std::memset(memory_.page(page), 0, 4096);
    auto host_rings = std::move(*devices::make_rings(partition_.memory(), gpadl, ring_pages));
    auto guest_rings = std::move(*devices::make_rings(partition_.memory(), gpadl, ring_pages));
    auto link = std::make_unique<Link>();
    link->worker = workers_[index % workers_.size()].get();
    link->doorbell.reset(eventfd(0, EFD_NONBLOCK));
    auto handler = nic_->open(index, *this, *link->worker);
    REQUIRE(handler.has_value());
    devices::Channel::Config config;
    config.name = "test/nic0";
    config.relid = index + 1;
    config.sub_channel_index = index;
    config.target_vp = vmbus::kNoInterruptVp;
    link->host = std::make_unique<devices::Channel>(
        std::move(config), partition_, *link->worker, std::move(host_rings.incoming),
        std::move(host_rings.outgoing), std::move(*handler), UniqueFd(dup(link->doorbell.get())),
        std::make_shared<devices::RecoveryRegion>(*devices::RecoveryRegion::make_private()));
    link->to_host.emplace(std::move(guest_rings.incoming));
    link->from_host.emplace(std::move(guest_rings.outgoing));
    REQUIRE(link->to_host->attach().has_value());
    REQUIRE(link->from_host->attach().has_value());
    devices::Channel& channel = *link->host;
    REQUIRE(io::on_worker(*link->worker, [&channel] { return channel.start().has_value(); }));
    if (links_.size() <= index) links_.resize(index + 1);
    links_[index] = std::move(link);
  }
  void close_channel(std::uint32_t index) {
    std::unique_ptr<Link> link = std::move(links_[index]);
    if (link == nullptr) return;
    std::promise<void> stopped;
    link->worker->post([&] { link->host->stop([&] { stopped.set_value(); }); });
    stopped.get_future().get();
  }
  // The primary first: the worse order.
  void close() {
    for (std::uint32_t i = 0; i < links_.size(); ++i) close_channel(i);
    links_.clear();
    nic_->reset();
    next_page_ = recycle_ = kFirstPage;
    const std::lock_guard lock(mutex_);
    offered_ = 0;
  }

  // From OPEN to the packet filter, as Linux goes. [reference: netvsp 2.2]
  void start(const GuestOptions& options = {}) {
    options_ = options;
    open_channel(0, options.ring_pages);
    const NvspVersion version{options.version};
    REQUIRE(
        read_at<NvspInitComplete>(request(bytes_of(NvspInit{NvspType::kInit, version, version}))).status ==
        NvspStatus::kSuccess);
    if (version >= NvspVersion::k2) {
      send_plain(bytes_of(
          NvspSendNdisConfig{NvspType::kSendNdisConfig, options.mtu + 14, 0, options.capabilities, 0}));
    }
    send_plain(bytes_of(NvspSendNdisVersion{NvspType::kSendNdisVersion, 6, 30}));
    lend_receive_buffer(options.receive_pages);
    lend_send_buffer(256);
    REQUIRE(control(hex("02000000 18000000 01000000 01000000 00000000 00400000")).size() == 52);
    if (version >= NvspVersion::k61) {
      Bytes parameters = hex("80031c00 01 04 04 04 04 00 00 02 02 00 00 00 00000000 00 00 01 01 00 00 0000");
      parameters[22] = parameters[23] = options.rsc ? std::byte{2} : std::byte{1};
      CHECK(set(Oid::kTcpOffloadParameters, parameters) == RndisStatus::kSuccess);
    }
    if (options.sub_channels != 0) {
      const auto done = read_at<NvspSubChannelComplete>(request(
          bytes_of(NvspSubChannelRequest{NvspType::kSubChannel, kSubChannelAllocate, options.sub_channels})));
      REQUIRE(done.status == NvspStatus::kSuccess);
      REQUIRE(wait([&] { return offered() == done.count; }));
      for (std::uint32_t i = 1; i <= done.count; ++i) open_channel(i, options.ring_pages);
      REQUIRE(wait([&] { return !inband_.empty(); }));
    }
    CHECK(set_filter(options.filter) == RndisStatus::kSuccess);
  }

  void lend_receive_buffer(std::uint32_t count) {
    receive_ = lend(0xb0d, count);
    const auto done = read_at<NvspSendReceiveBufferComplete>(
        request(bytes_of(NvspSendBuffer{NvspType::kSendReceiveBuffer, 0xb0d, kSetId, 0})));
    REQUIRE(done.status == NvspStatus::kSuccess);
    section_ = done.section;
  }
  void lend_send_buffer(std::uint32_t count) {
    send_ = lend(0xb0e, count);
    const auto done = read_at<NvspSendSendBufferComplete>(
        request(bytes_of(NvspSendBuffer{NvspType::kSendSendBuffer, 0xb0e, 0, 0})));
    REQUIRE(done.status == NvspStatus::kSuccess);
    section_size_ = done.section_size;
  }
  // TEARDOWN of a GPADL: returns when the host lets go of it.
  void take_back(std::uint32_t gpadl) {
    std::promise<void> released;
    devices::Channel& channel = *link().host;
    link().worker->post([&] { channel.handler().release_gpadl(gpadl, [&] { released.set_value(); }); });
    released.get_future().get();
    const std::lock_guard lock(mutex_);
    gpadls_.erase(gpadl);
  }

  // Messages.

  // Writes a packet and rings the doorbell; false where the ring is full.
  bool write(Link& to, const ring::PacketToWrite& packet) {
    const Result<bool> written = to.to_host->write(packet);
    REQUIRE(written.has_value());
    REQUIRE(to.to_host->commit().has_value());
    ring_doorbell(to);
    return *written;
  }
  static void ring_doorbell(Link& to) {
    const std::uint64_t one = 1;
    static_cast<void>(::write(to.doorbell.get(), &one, sizeof one));
  }
  void send_plain(std::span<const std::byte> message) {
    Bytes padded(message.begin(), message.end());
    padded.resize(std::max<std::size_t>(padded.size(), 40));
    ring::PacketToWrite packet;
    packet.transaction_id = ++transaction_;
    packet.payload = padded;
    REQUIRE(write(link(), packet));
  }
  // An in-band message and its completion's payload.
  Bytes request(std::span<const std::byte> message, std::uint32_t channel = 0) {
    Bytes padded(message.begin(), message.end());
    padded.resize(std::max<std::size_t>(padded.size(), 40));
    ring::PacketToWrite packet;
    packet.completion_requested = true;
    packet.transaction_id = ++transaction_;
    packet.payload = padded;
    REQUIRE(write(link(channel), packet));
    return completion_of(packet.transaction_id, channel);
  }
  Bytes completion_of(std::uint64_t transaction, std::uint32_t channel = 0) {
    INFO("completion " << transaction);
    REQUIRE(wait([&] { return link(channel).completions.contains(transaction); }));
    return link(channel).completions.extract(transaction).mapped();
  }
  // An RNDIS control message in a page of its own, and the reply.
  Bytes control(std::span<const std::byte> message) {
    const vmbus::Gpn page = pages(1, false).front();
    std::memcpy(memory_.page(page), message.data(), message.size());
    const std::uint64_t transaction =
        send_ranges(0, {{page * 4096 + 0, message.size()}}, true, kNoSendSection, 0);
    REQUIRE(completion_of(transaction) == padded_status(NvspStatus::kSuccess));
    REQUIRE(wait([&] { return !controls.empty(); }));
    Bytes reply = std::move(controls.front());
    controls.pop_front();
    return reply;
  }
  RndisStatus set(Oid oid, std::span<const std::byte> info) {
    RndisRequest message{};
    message.header = {RndisType::kSet, static_cast<std::uint32_t>(sizeof message + info.size())};
    message.request_id = 7;
    message.oid = static_cast<std::uint32_t>(oid);
    message.info_length = static_cast<std::uint32_t>(info.size());
    message.info_offset = 20;
    Bytes bytes = bytes_of(message);
    append(bytes, info);
    return read_at<RndisStatusComplete>(control(bytes)).status;
  }
  RndisStatus set_filter(std::uint32_t filter) { return set(Oid::kGenCurrentPacketFilter, bytes_of(filter)); }

  // Data.

  struct Ppis {
    std::optional<std::uint32_t> checksum;
    std::optional<std::uint32_t> large_send;
    std::optional<std::uint32_t> vlan;
  };
  static Bytes rndis_message(std::span<const std::byte> frame, const Ppis& ppis = {}, std::size_t align = 8) {
    Bytes infos;
    const auto info = [&infos](PpiType type, const std::optional<std::uint32_t>& value) {
      if (value) append(infos, bytes_of(Ppi{{16, type, 12}, *value}));
    };
    info(PpiType::kChecksum, ppis.checksum);
    info(PpiType::kLargeSend, ppis.large_send);
    info(PpiType::k8021q, ppis.vlan);
    RndisPacket head{};
    const std::size_t size = (sizeof head + infos.size() + frame.size() + align - 1) / align * align;
    head.header = {RndisType::kPacket, static_cast<std::uint32_t>(size)};
    head.data_offset = static_cast<std::uint32_t>(sizeof head + infos.size() - 8);
    head.data_length = static_cast<std::uint32_t>(frame.size());
    head.ppi_offset = 36;
    head.ppi_length = static_cast<std::uint32_t>(infos.size());
    Bytes bytes = bytes_of(head);
    append(bytes, infos);
    append(bytes, frame);
    bytes.resize(size);
    return bytes;
  }
  // By a send section.
  std::uint64_t send_section(std::uint32_t channel, std::uint32_t section, std::span<const std::byte> bytes) {
    send_->copy_in(std::uint64_t{section} * section_size_, bytes);
    return send_ranges(channel, {}, false, section, static_cast<std::uint32_t>(bytes.size()));
  }
  // By GPA-direct ranges over pages of its own, `split` bytes in each.
  std::uint64_t send_direct(std::uint32_t channel, std::span<const std::byte> bytes,
                            std::size_t split = 4096) {
    return send_ranges(channel, spread(bytes, split), false, kNoSendSection, 0);
  }
  struct Range {
    std::uint64_t gpa;
    std::uint64_t size;  // inside one page
  };
  // Copies the bytes to scattered pages, with each range at some offset.
  std::vector<Range> spread(std::span<const std::byte> bytes, std::size_t split) {
    std::vector<Range> ranges;
    while (!bytes.empty()) {
      const std::size_t size = std::min(bytes.size(), split);
      const std::uint64_t gpa = pages(1, true).front() * 4096 + (4096 - size) / 2;
      std::memcpy(memory_.page(0) + gpa, bytes.data(), size);
      ranges.push_back({gpa, size});
      bytes = bytes.subspan(size);
    }
    return ranges;
  }
  std::uint64_t send_ranges(std::uint32_t channel, const std::vector<Range>& ranges, bool control,
                            std::uint32_t section, std::uint32_t section_size) {
    Bytes extension;
    if (!ranges.empty()) {
      append(extension, bytes_of(ring::GpaDirectHeader{0, static_cast<std::uint32_t>(ranges.size())}));
      for (const Range& range : ranges) {
        append(extension, bytes_of(ring::GpaRange{static_cast<std::uint32_t>(range.size),
                                                  static_cast<std::uint32_t>(range.gpa % 4096)}));
        append(extension, bytes_of(range.gpa / 4096));
      }
    }
    Bytes payload = bytes_of(NvspSendRndisPacket{NvspType::kSendRndisPacket,
                                                 control ? NvspChannelType::kControl : NvspChannelType::kData,
                                                 section, section_size});
    payload.resize(40);
    ring::PacketToWrite packet;
    packet.type = ranges.empty() ? ring::PacketType::kInband : ring::PacketType::kGpaDirect;
    packet.completion_requested = true;
    packet.transaction_id = ++transaction_;
    packet.extension = extension;
    packet.payload = payload;
    REQUIRE(wait([&] { return write(link(channel), packet); }));
    return packet.transaction_id;
  }
  static Bytes padded_status(NvspStatus status) {
    Bytes bytes = bytes_of(NvspStatusMessage{NvspType::kSendRndisPacketComplete, status});
    bytes.resize(40);
    return bytes;
  }

  // Reads what the host has written, on all channels.
  void pump() {
    for (std::uint32_t i = 0; i < links_.size(); ++i) {
      if (links_[i] != nullptr && links_[i]->reading) pump(i);
    }
  }
  template <typename Condition>
  bool wait(Condition condition, std::chrono::milliseconds patience = std::chrono::seconds(20)) {
    const auto end = std::chrono::steady_clock::now() + patience;
    do {
      pump();
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    } while (std::chrono::steady_clock::now() < end);
    return false;
  }
  // Nothing comes for a while.
  bool quiet() {
    return !wait([&] { return !frames.empty(); }, std::chrono::milliseconds(100));
  }
  GuestFrame next_frame() {
    REQUIRE(wait([&] { return !frames.empty(); }));
    GuestFrame frame = std::move(frames.front());
    frames.pop_front();
    return frame;
  }
  // Gives a transfer-page packet back.
  void complete(std::uint32_t channel, std::uint64_t transaction) {
    const Bytes status = padded_status(NvspStatus::kSuccess);
    ring::PacketToWrite packet;
    packet.type = ring::PacketType::kCompletion;
    packet.transaction_id = transaction;
    packet.payload = status;
    REQUIRE(wait_write(link(channel), packet));
  }
  std::uint32_t offered() {
    const std::lock_guard lock(mutex_);
    return offered_;
  }
  [[nodiscard]] const NvspReceiveBufferSection& section() const { return section_; }
  [[nodiscard]] std::byte* page(vmbus::Gpn page) { return memory_.page(page); }

  std::deque<GuestFrame> frames;
  std::deque<Bytes> controls;  // RNDIS replies; indications apart
  std::deque<Bytes> indications;
  std::deque<Bytes> inband_;

 private:
  void find_gpadl(devices::Channel& channel, std::uint32_t gpadl,
                  std::function<void(std::shared_ptr<const vmbus::Gpadl>)> done) override {
    std::shared_ptr<const vmbus::Gpadl> found;
    {
      const std::lock_guard lock(mutex_);
      const auto entry = gpadls_.find(gpadl);
      if (entry != gpadls_.end()) found = entry->second;
    }
    channel.worker().post([found, done = std::move(done)] { done(found); });
  }
  void offer_sub_channels(devices::Device&, std::uint32_t count) override {
    const std::lock_guard lock(mutex_);
    offered_ = count;
  }

  // Pages that nobody has; scattered ones do not follow each other. Recycled from the beginning when all were
  // given, which is long after any use in these tests.
  std::vector<vmbus::Gpn> pages(std::uint32_t count, bool scattered) {
    std::vector<vmbus::Gpn> list;
    for (std::uint32_t i = 0; i < count; ++i) {
      if (next_page_ >= kPages) next_page_ = recycle_;
      list.push_back(next_page_);
      next_page_ += scattered ? 2 : 1;
    }
    return list;
  }
  std::optional<devices::GpadlView> lend(std::uint32_t id, std::uint32_t count) {
    std::vector<vmbus::Gpn> list = pages(count, false);
    std::reverse(list.begin(), list.end());  // no two pages follow each other in the host's memory
    recycle_ = std::max(recycle_, next_page_);
    auto gpadl = std::make_shared<vmbus::Gpadl>(vmbus::Gpadl{id, 1, {{count * 4096, 0, std::move(list)}}});
    auto view = devices::GpadlView::make(partition_.memory(), *gpadl);
    REQUIRE(view.has_value());
    const std::lock_guard lock(mutex_);
    gpadls_[id] = std::move(gpadl);
    return std::move(*view);
  }

  void pump(std::uint32_t index) {
    Link& from = *links_[index];
    while (true) {
      auto packet = from.from_host->next();
      REQUIRE(packet.has_value());
      if (!*packet) break;
      Bytes payload((*packet)->payload_size);
      from.from_host->read_payload(**packet, 0, payload);
      switch ((*packet)->type) {
        case ring::PacketType::kCompletion:
          CHECK(from.completions.emplace((*packet)->transaction_id, std::move(payload)).second);
          break;
        case ring::PacketType::kInband:
          inband_.push_back(std::move(payload));
          break;
        case ring::PacketType::kTransferPages:
          take_transfer(index, from, **packet, payload);
          break;
        default:
          FAIL("unexpected packet");
      }
    }
    if (from.from_host->release()) ring_doorbell(from);
  }

  void take_transfer(std::uint32_t index, Link& from, const ring::Packet& packet, const Bytes& payload) {
    CHECK(payload.size() == 40);
    const auto rndis = read_at<NvspSendRndisPacket>(payload);
    CHECK(rndis.type == NvspType::kSendRndisPacket);
    CHECK(rndis.send_section_index == kNoSendSection);
    CHECK(packet.completion_requested());
    // DPDK's and Linux' bounds.
    CHECK(packet.transaction_id < section_.sub_allocations);
    Bytes extension(packet.extension_size);
    from.from_host->read_extension(packet, 0, extension);
    const auto header = read_at<ring::TransferPageHeader>(extension);
    CHECK(header.transfer_page_set_id == kSetId);
    CHECK(header.range_count * 8 + 8 == extension.size());
    CHECK(header.range_count <= 375);
    ++from.transfer_packets;
    GuestFrame coalesced;
    for (std::uint32_t i = 0; i < header.range_count; ++i) {
      const auto range = read_at<ring::TransferPageRange>(extension, 8 + i * 8);
      CHECK(range.byte_offset % section_.sub_allocation_size == 0);
      CHECK(range.byte_count <= section_.sub_allocation_size - kReceiveTail);
      REQUIRE(range.byte_offset + range.byte_count <= section_.end_offset);
      Bytes message(range.byte_count);
      receive_->copy_out(range.byte_offset, message);
      if (rndis.channel_type == NvspChannelType::kControl) {
        const bool indication = read_at<RndisHeader>(message).type == RndisType::kIndicateStatus;
        (indication ? indications : controls).push_back(std::move(message));
      } else {
        take_message(index, message, coalesced);
      }
    }
    CHECK(coalesced.bytes.empty());
    if (from.complete_frames) {
      complete(index, packet.transaction_id);
    } else {
      from.uncompleted.push_back(packet.transaction_id);
    }
  }

  // [linux: rndis_filter_receive_data]
  void take_message(std::uint32_t index, const Bytes& message, GuestFrame& coalesced) {
    const auto head = read_at<RndisPacket>(message);
    REQUIRE(head.header.type == RndisType::kPacket);
    CHECK(head.header.message_length == message.size());
    REQUIRE(8 + head.data_offset + head.data_length <= message.size());
    GuestFrame frame;
    frame.channel = index;
    std::optional<std::uint32_t> id;
    for (std::uint32_t at = 8 + head.ppi_offset, end = at + head.ppi_length; at < end;) {
      const auto ppi = read_at<Ppi>(message, at);
      REQUIRE(ppi.header.size == 16);
      REQUIRE(ppi.header.data_offset == 12);
      if (ppi.header.type == PpiType::kChecksum) frame.checksum_info = ppi.data;
      if (ppi.header.type == PpiType::k8021q) frame.vlan_info = ppi.data;
      if (ppi.header.type == PpiType::kPacketId) id = ppi.data;
      at += ppi.header.size;
    }
    const auto data = std::span(message).subspan(8 + head.data_offset, head.data_length);
    if (!id || (*id & kPacketIdFirst) != 0) {
      frame.bytes.assign(data.begin(), data.end());
      coalesced = std::move(frame);
    } else {
      append(coalesced.bytes, data);
      ++coalesced.fragments;
    }
    if (!id || (*id & kPacketIdLast) != 0) {
      frames.push_back(std::move(coalesced));
      coalesced = GuestFrame();
    }
  }
  bool wait_write(Link& to, const ring::PacketToWrite& packet) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!write(to, packet)) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return true;
  }

  static constexpr vmbus::Gpn kPages = 8192;
  devices::TestMemory memory_{kPages};
  static constexpr vmbus::Gpn kFirstPage = 16;
  vmbus::Gpn next_page_ = kFirstPage;
  vmbus::Gpn recycle_ = kFirstPage;
  partition::Partition partition_;
  std::vector<std::unique_ptr<io::Worker>> workers_;
  std::unique_ptr<Nic> nic_;
  std::vector<std::unique_ptr<Link>> links_;
  std::mutex mutex_;
  std::map<std::uint32_t, std::shared_ptr<const vmbus::Gpadl>> gpadls_;
  std::uint32_t offered_ = 0;
  GuestOptions options_;
  std::optional<devices::GpadlView> receive_;
  std::optional<devices::GpadlView> send_;
  NvspReceiveBufferSection section_{};
  std::uint32_t section_size_ = 0;
  std::uint64_t transaction_ = 0;
};

// A frame to the guest itself, so that a loopback's filter lets it pass.
inline Bytes frame_to_guest(std::uint32_t size, Random& random) {
  Bytes frame(size);
  for (std::byte& byte : frame) byte = static_cast<std::byte>(random());
  std::memcpy(frame.data(), kGuestMac.bytes.data(), 6);
  std::memcpy(frame.data() + 6, kGuestMac.bytes.data(), 6);
  put16(frame, 12, 0x88b5);  // local experiments: nothing that a parser knows
  return frame;
}

inline NicConfig loopback_config() {
  NicConfig config;
  config.backend = NicConfig::Backend::kLoopback;
  return config;
}

}  // namespace vmbusd::netvsp
