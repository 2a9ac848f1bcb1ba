// The NIC as a driver sees it, with the loopback and null back ends.
#include "netvsp/nic.h"

#include "netvsp/backend.h"
#include "tests/netvsp/nic_fixture.h"

namespace vmbusd::netvsp {
namespace {

constexpr std::uint32_t kSeed = 4711;

TEST_CASE("frames of every size come back as they were, whichever way they are sent", "[netvsp]") {
  GuestNic guest(loopback_config());
  guest.start();
  Random random(kSeed);
  for (int round = 0; round < 300; ++round) {
    INFO("seed " << kSeed << " round " << round);
    const Bytes frame = frame_to_guest(14 + random() % 1501, random);
    const Bytes message = GuestNic::rndis_message(frame);
    std::uint64_t transaction = 0;
    switch (round % 4) {
      case 0:
        transaction = guest.send_section(0, random() % 42, message);
        break;
      case 1:
        transaction = guest.send_direct(0, message, 100 + random() % 3000);
        break;
      case 2:  // Linux: headers in a range of their own
        transaction = guest.send_direct(0, message, 44);
        break;
      default: {  // Linux "partial": header in the section, data in ranges
        const auto head = std::span(message).first(44);
        guest.send_section(0, 3, GuestNic::rndis_message(frame));
        CHECK(guest.next_frame().bytes == frame);
        transaction = guest.send_ranges(0, guest.spread(std::span(message).subspan(44), 600), false, 3, 44);
        CHECK(head.size() == 44);
      }
    }
    CHECK(guest.completion_of(transaction) == GuestNic::padded_status(NvspStatus::kSuccess));
    const GuestFrame back = guest.next_frame();
    CHECK(back.bytes == frame);
    CHECK_FALSE(back.checksum_info.has_value());
  }
  const QueueCounters counters = guest.nic().status().queues[0];
  CHECK(counters.tx_packets == counters.rx_packets);
  CHECK(counters.tx_bytes == counters.rx_bytes);
  CHECK(counters.tx_dropped + counters.rx_dropped + counters.tx_rejected == 0);
}

TEST_CASE("a frame goes whole into a receive buffer of several pieces", "[netvsp]") {
  Bytes frame(5000);
  Random random(kSeed);
  for (std::byte& byte : frame) byte = static_cast<std::byte>(random());
  const auto filled = std::make_unique<ReceiveBuffer>();
  std::array<Bytes, 3> pieces = {Bytes(1800), Bytes(1700), Bytes(2000)};  // 500 bytes more than it takes
  for (std::size_t i = 0; i < pieces.size(); ++i)
    filled->pieces[1 + i] = {pieces[i].data(), pieces[i].size()};
  filled->piece_count = pieces.size();
  filled->fill(frame);
  Bytes found;
  for (const Bytes& piece : pieces) found.insert(found.end(), piece.begin(), piece.end());
  CHECK(std::equal(frame.begin(), frame.end(), found.begin()));
  CHECK(std::all_of(found.begin() + 5000, found.end(), [](std::byte byte) { return byte == std::byte{}; }));
}

TEST_CASE("several messages in one packet are several frames, in order", "[netvsp]") {
  GuestNic guest(loopback_config());
  guest.start();
  Random random(kSeed);
  for (std::size_t align : {8u, 1u}) {
    std::vector<Bytes> frames;
    Bytes all;
    for (int i = 0; i < 8; ++i) {
      frames.push_back(frame_to_guest(60 + random() % 600, random));
      append(all, GuestNic::rndis_message(frames.back(), {}, align));
    }
    const std::uint64_t transaction = guest.send_section(0, 1, all);
    CHECK(guest.completion_of(transaction) == GuestNic::padded_status(NvspStatus::kSuccess));
    for (const Bytes& frame : frames) CHECK(guest.next_frame().bytes == frame);
  }
}

TEST_CASE("checksums are completed and told on the way back", "[netvsp]") {
  GuestNic guest(loopback_config());
  guest.start();
  Random random(kSeed);
  for (int round = 0; round < 100; ++round) {
    INFO("seed " << kSeed << " round " << round);
    FrameSpec spec;
    spec.ip_version = round % 2 == 0 ? 4 : 6;
    spec.udp = round % 4 < 2;
    spec.payload = random() % 1000;
    const BuiltFrame built = build_frame(spec, random);
    Bytes sent = built.bytes;
    put16(sent, built.transport + (spec.udp ? 6u : 16u), 0xdead);
    GuestNic::Ppis ppis;
    ppis.checksum = spec.udp ? kTxChecksumUdp : kTxChecksumTcp;
    guest.send_direct(0, GuestNic::rndis_message(sent, ppis));
    const GuestFrame back = guest.next_frame();
    CHECK(back.bytes == built.bytes);
    const std::uint32_t expected = spec.udp ? kRxChecksumUdpSucceeded : kRxChecksumTcpSucceeded;
    // Linux switches IPv4 header checksums off, as the fixture does.
    CHECK(back.checksum_info == expected);
  }
}

TEST_CASE("a VLAN tag goes as info both ways", "[netvsp]") {
  GuestNic guest(loopback_config());
  guest.start();
  Random random(kSeed);
  FrameSpec spec;
  const BuiltFrame built = build_frame(spec, random);
  GuestNic::Ppis ppis;
  ppis.vlan = vlan_info_from_tci(0x6123);
  ppis.checksum = kTxChecksumTcp;
  guest.send_section(0, 0, GuestNic::rndis_message(built.bytes, ppis));
  GuestFrame back = guest.next_frame();
  CHECK(back.bytes == built.bytes);
  CHECK(back.vlan_info == vlan_info_from_tci(0x6123));
  CHECK(back.checksum_info == kRxChecksumTcpSucceeded);
  // A second tag stays in the frame.
  spec.vlan = true;
  const BuiltFrame tagged = build_frame(spec, random);
  guest.send_section(0, 0, GuestNic::rndis_message(tagged.bytes, ppis));
  back = guest.next_frame();
  CHECK(back.bytes == tagged.bytes);
  CHECK(back.vlan_info == vlan_info_from_tci(0x6123));
}

TEST_CASE("without 802.1Q capability a tag stays in the frame", "[netvsp]") {
  GuestNic guest(loopback_config());
  GuestOptions options;
  options.capabilities = 0;
  options.rsc = false;
  guest.start(options);
  Random random(kSeed);
  FrameSpec spec;
  spec.vlan = true;
  const BuiltFrame built = build_frame(spec, random);
  guest.send_section(0, 0, GuestNic::rndis_message(built.bytes));
  const GuestFrame back = guest.next_frame();
  CHECK(back.bytes == built.bytes);
  CHECK_FALSE(back.vlan_info.has_value());
}

// As Linux leaves a large send.
Bytes large_send(const BuiltFrame& built, int ip_version) {
  Bytes sent = built.bytes;
  if (ip_version == 4) {
    put16(sent, built.ip + 2, 0);
    put16(sent, built.ip + 10, 0);
  } else {
    put16(sent, built.ip + 4, 0);
  }
  put16(sent, built.transport + 16, plain_pseudo_sum(sent, built.ip, 6, 0));
  return sent;
}

TEST_CASE("a large send comes back whole where the guest takes that", "[netvsp]") {
  GuestNic guest(loopback_config());
  guest.start();
  Random random(kSeed);
  for (int round = 0; round < 40; ++round) {
    INFO("seed " << kSeed << " round " << round);
    FrameSpec spec;
    spec.ip_version = round % 2 == 0 ? 4 : 6;
    spec.payload = 1500 + random() % 61000;
    const BuiltFrame built = build_frame(spec, random);
    GuestNic::Ppis ppis;
    ppis.large_send = 1400 | kLargeSendV2 | (spec.ip_version == 6 ? kLargeSendIpv6 : 0);
    if (round % 3 == 0) ppis.vlan = 0x10;
    guest.send_direct(0, GuestNic::rndis_message(large_send(built, spec.ip_version), ppis), 3000);
    const GuestFrame back = guest.next_frame();
    CHECK(back.bytes == built.bytes);
    CHECK(back.checksum_info == kRxChecksumTcpSucceeded);
    CHECK(back.vlan_info == ppis.vlan);
    CHECK((back.fragments > 1 || built.bytes.size() <= 1900));
  }
  CHECK(guest.nic().status().queues[0].rx_dropped == 0);
}

TEST_CASE("a large send is cut up where the guest does not take it whole", "[netvsp]") {
  GuestNic guest(loopback_config());
  GuestOptions options;
  options.rsc = false;
  guest.start(options);
  Random random(kSeed);
  for (int round = 0; round < 40; ++round) {
    INFO("seed " << kSeed << " round " << round);
    FrameSpec spec;
    spec.ip_version = round % 2 == 0 ? 4 : 6;
    spec.payload = 3000 + random() % 59000;
    const BuiltFrame built = build_frame(spec, random);
    GuestNic::Ppis ppis;
    const std::uint32_t mss = 1000 + random() % 400;
    ppis.large_send = mss | kLargeSendV2 | (spec.ip_version == 6 ? kLargeSendIpv6 : 0);
    guest.send_direct(0, GuestNic::rndis_message(large_send(built, spec.ip_version), ppis), 3000);
    Bytes payload;
    while (payload.size() < spec.payload) {
      const GuestFrame back = guest.next_frame();
      CHECK(back.bytes.size() <= 1514);
      CHECK(ip_good(back.bytes, built.ip));
      CHECK(transport_good(back.bytes, built.ip, built.transport, false));
      CHECK(back.checksum_info == kRxChecksumTcpSucceeded);
      append(payload, std::span(back.bytes).subspan(built.payload));
    }
    CHECK(std::equal(payload.begin(), payload.end(), built.bytes.begin() + built.payload, built.bytes.end()));
  }
  CHECK(guest.nic().status().queues[0].rx_dropped == 0);
}

TEST_CASE("jumbo frames pass where both sides say so", "[netvsp]") {
  NicConfig config = loopback_config();
  config.mtu = 9000;
  GuestNic guest(std::move(config));
  GuestOptions options;
  options.mtu = 9000;
  guest.start(options);
  CHECK(guest.nic().status().mtu == 9000);
  CHECK(guest.section().sub_allocation_size == 12288);
  Random random(kSeed);
  for (const std::uint32_t size : {1514u, 9013u, 9014u}) {
    const Bytes frame = frame_to_guest(size, random);
    guest.send_direct(0, GuestNic::rndis_message(frame));
    CHECK(guest.next_frame().bytes == frame);
  }
  // One more than a tag excuses.
  const std::uint64_t longer = guest.send_direct(0, GuestNic::rndis_message(frame_to_guest(9019, random)));
  CHECK(guest.completion_of(longer) == GuestNic::padded_status(NvspStatus::kInvalidRndisPacket));
}

TEST_CASE("old versions of the protocol have a data path as well", "[netvsp]") {
  for (const std::uint32_t version : {0x2u, 0x30002u, 0x40000u, 0x50000u, 0x60000u}) {
    GuestNic guest(loopback_config());
    GuestOptions options;
    options.version = version;
    options.receive_pages = version == 2 ? 8 : 256;  // iPXE's buffer is tiny
    guest.start(options);
    Random random(kSeed);
    for (int i = 0; i < 50; ++i) {
      const Bytes frame = frame_to_guest(60 + random() % 1400, random);
      guest.send_direct(0, GuestNic::rndis_message(frame));
      CHECK(guest.next_frame().bytes == frame);
    }
  }
}

TEST_CASE("only what the packet filter wants is delivered", "[netvsp]") {
  struct Case {
    const char* rule;
    std::uint32_t filter;
    const char* destination;
    bool delivered;
  };
  constexpr Case kCases[] = {
      {"own address", kFilterDirected, "02000000000a", true},
      {"another's", kFilterDirected | kFilterBroadcast | kFilterAllMulticast, "02000000000c", false},
      {"another's, promiscuous", kFilterPromiscuous, "02000000000c", true},
      {"broadcast", kFilterBroadcast, "ffffffffffff", true},
      {"broadcast not wanted", kFilterDirected | kFilterMulticast, "ffffffffffff", false},
      {"multicast by list", kFilterMulticast, "01005e000001", true},
      {"all multicast", kFilterAllMulticast, "333300000001", true},
      {"multicast not wanted", kFilterDirected | kFilterBroadcast, "333300000001", false},
      {"multicast, promiscuous", kFilterPromiscuous, "333300000001", true},
      {"own address not wanted", kFilterBroadcast, "02000000000a", false},
  };
  GuestNic guest(loopback_config());
  guest.start();
  Random random(kSeed);
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      REQUIRE(guest.set_filter(c.filter) == RndisStatus::kSuccess);
      Bytes frame = frame_to_guest(100, random);
      const Bytes destination = hex(c.destination);
      std::copy(destination.begin(), destination.end(), frame.begin());
      guest.send_section(0, 0, GuestNic::rndis_message(frame));
      if (c.delivered) {
        CHECK(guest.next_frame().bytes == frame);
      } else {
        CHECK(guest.quiet());
        CHECK(guest.nic().status().queues[0].rx_filtered == 1);
      }
    }
  }
  // Filter 0: nothing at all is taken from the back end.
  REQUIRE(guest.set_filter(0) == RndisStatus::kSuccess);
  guest.send_section(0, 0, GuestNic::rndis_message(frame_to_guest(100, random)));
  CHECK(guest.quiet());
}

TEST_CASE("a foreign source address is stopped where that is wanted", "[netvsp]") {
  NicConfig config = loopback_config();
  config.check_source_mac = true;
  GuestNic guest(std::move(config));
  guest.start();
  Random random(kSeed);
  Bytes frame = frame_to_guest(100, random);
  guest.send_section(0, 0, GuestNic::rndis_message(frame));
  CHECK(guest.next_frame().bytes == frame);
  frame[11] = std::byte{0x77};
  const std::uint64_t foreign = guest.send_section(0, 0, GuestNic::rndis_message(frame));
  CHECK(guest.completion_of(foreign) == GuestNic::padded_status(NvspStatus::kSuccess));
  CHECK(guest.quiet());
  CHECK(guest.nic().status().queues[0].tx_rejected == 1);
}

TEST_CASE("packets that lie are refused by status, and the channel lives on", "[netvsp]") {
  GuestNic guest(loopback_config());
  guest.start();
  Random random(kSeed);
  const Bytes good = GuestNic::rndis_message(frame_to_guest(100, random));
  Bytes cut = good;
  cut.resize(43);
  Bytes longer = good;
  longer[4] = std::byte{0xff};
  Bytes ppi = good;
  ppi[32] = std::byte{0x50};
  const auto refused = [&](std::uint64_t transaction) {
    return guest.completion_of(transaction) == GuestNic::padded_status(NvspStatus::kInvalidRndisPacket);
  };
  CHECK(refused(guest.send_section(0, 0, cut)));
  CHECK(refused(guest.send_section(0, 0, longer)));
  CHECK(refused(guest.send_section(0, 0, ppi)));
  CHECK(refused(guest.send_section(0, 0, {})));
  CHECK(refused(guest.send_ranges(0, {}, false, 42, 100)));  // 64 pages have 42 sections
  CHECK(refused(guest.send_ranges(0, {}, false, 0xfffffffe, 100)));
  CHECK(refused(guest.send_ranges(0, {}, false, 0, 6145)));
  CHECK(refused(guest.send_ranges(0, {}, false, kNoSendSection, 0)));                    // nothing announced
  CHECK(refused(guest.send_ranges(0, {{8192 * 4096, 100}}, false, kNoSendSection, 0)));  // beyond memory
  CHECK(refused(guest.send_ranges(0, {{0xfffffffffff000, 100}}, false, kNoSendSection, 0)));
  CHECK(refused(guest.send_ranges(0, {{4096, 100}}, true, kNoSendSection, 0)));  // control: zeros
  // The good messages before a bad one are sent.
  Bytes both = good;
  append(both, cut);
  CHECK(refused(guest.send_section(0, 0, both)));
  CHECK(guest.next_frame().bytes.size() == 100);
  guest.send_section(0, 0, good);
  CHECK(guest.next_frame().bytes.size() == 100);
}

TEST_CASE("a channel whose ring is broken is stopped, and can be opened anew", "[netvsp]") {
  GuestNic guest(loopback_config());
  guest.start();
  ring::PacketToWrite packet;
  packet.type = ring::PacketType::kTransferPages;
  const Bytes extension(8);
  packet.extension = extension;
  guest.write(guest.link(), packet);
  Random random(kSeed);
  const Bytes message = GuestNic::rndis_message(frame_to_guest(100, random));
  guest.send_section(0, 0, message);
  CHECK(guest.quiet());
  guest.close();
  guest.start();
  guest.send_section(0, 0, message);
  CHECK(guest.next_frame().bytes.size() == 100);
}

TEST_CASE("a guest that completes nothing starves itself, and recovers", "[netvsp]") {
  GuestNic guest(loopback_config());
  GuestOptions options;
  options.receive_pages = 64;  // 128 sub-allocations
  options.rsc = false;
  guest.start(options);
  guest.link().complete_frames = false;
  Random random(kSeed);
  const Bytes message = GuestNic::rndis_message(frame_to_guest(60, random));
  // Each is completed, whether it found a buffer or not.
  for (int i = 0; i < 300; ++i) guest.completion_of(guest.send_section(0, 0, message));
  guest.wait([&] { return false; }, std::chrono::milliseconds(50));
  const std::size_t delivered = guest.frames.size();
  CHECK(delivered < 128);
  CHECK(delivered > 64);
  CHECK(guest.nic().status().queues[0].tx_dropped + delivered == 300);
  // Control messages still come: some sub-allocations are kept for them.
  CHECK(guest.set_filter(kFilterDirected) == RndisStatus::kSuccess);
  guest.link().complete_frames = true;
  for (const std::uint64_t transaction : guest.link().uncompleted) guest.complete(0, transaction);
  guest.link().uncompleted.clear();
  guest.frames.clear();
  for (int i = 0; i < 300; ++i) {
    guest.send_section(0, 0, message);
    CHECK(guest.next_frame().bytes.size() == 60);
  }
}

TEST_CASE("completions of packets that were not sent are ignored", "[netvsp]") {
  GuestNic guest(loopback_config());
  guest.start();
  Random random(kSeed);
  for (int i = 0; i < 200; ++i) guest.complete(0, random() % 5000);
  for (const std::uint64_t transaction : {~0ull, 1ull << 32, 2048ull}) guest.complete(0, transaction);
  for (int i = 0; i < 3000; ++i) {
    const Bytes frame = frame_to_guest(60, random);
    guest.send_section(0, 0, GuestNic::rndis_message(frame));
    REQUIRE(guest.next_frame().bytes == frame);
  }
}

TEST_CASE("a guest that does not read its ring stalls its channel only", "[netvsp]") {
  GuestNic guest(loopback_config());
  GuestOptions options;
  options.ring_pages = 4;
  guest.start(options);
  Random random(kSeed);
  const Bytes frame = frame_to_guest(60, random);
  const Bytes message = GuestNic::rndis_message(frame);
  guest.link().reading = false;
  std::vector<std::uint64_t> transactions;
  // More completions than the ring holds; those that wait are bounded, and then our ring stays full.
  for (std::uint32_t i = 0; i < 120; ++i) transactions.push_back(guest.send_section(0, i, message));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  guest.link().reading = true;
  for (const std::uint64_t transaction : transactions) {
    CHECK(guest.completion_of(transaction) == GuestNic::padded_status(NvspStatus::kSuccess));
  }
  CHECK(guest.wait([&] {
    const QueueCounters counters = guest.nic().status().queues[0];
    return guest.frames.size() + counters.tx_dropped == 120;
  }));
}

TEST_CASE("sub-channels carry data, by shares of one receive buffer", "[netvsp]") {
  NicConfig config = loopback_config();
  config.queues = 4;
  GuestNic guest(std::move(config), 2);
  GuestOptions options;
  options.receive_pages = 2048;
  options.sub_channels = 7;  // granted: 3
  guest.start(options);
  REQUIRE(guest.inband_.size() == 1);
  CHECK(guest.inband_[0].size() == 104);
  CHECK(read_at<std::uint32_t>(guest.inband_[0], 0) == 134);
  CHECK(read_at<std::uint32_t>(guest.inband_[0], 40 + 4 * 7) == 3);
  CHECK(guest.nic().status().channels == 4);
  Random random(kSeed);
  for (int round = 0; round < 400; ++round) {
    const Bytes frame = frame_to_guest(60 + random() % 1400, random);
    const std::uint32_t channel = random() % 4;
    guest.send_section(channel, random() % 42, GuestNic::rndis_message(frame));
    const GuestFrame back = guest.next_frame();
    CHECK(back.bytes == frame);
    CHECK(back.channel == channel);
  }
  for (const QueueCounters& queue : guest.nic().status().queues) CHECK(queue.rx_packets > 50);
  // Control is the primary's.
  CHECK(guest.request(bytes_of(NvspInit{NvspType::kInit, NvspVersion::k1, NvspVersion::k1}), 1).empty());
  // One may close alone and come back.
  guest.close_channel(2);
  guest.open_channel(2, options.ring_pages);
  const Bytes frame = frame_to_guest(60, random);
  guest.send_section(2, 0, GuestNic::rndis_message(frame));
  CHECK(guest.next_frame().channel == 2);
}

TEST_CASE("a guest gets no more channels than it has a use for", "[netvsp]") {
  const auto granted = [](std::uint32_t vps, std::uint32_t receive_pages) {
    NicConfig config = loopback_config();
    config.queues = 8;
    GuestNic guest(std::move(config), 1, vps);
    GuestOptions options;
    options.receive_pages = receive_pages;
    options.sub_channels = 7;
    guest.start(options);
    return guest.nic().status().channels;
  };
  CHECK(granted(64, 2048) == 8);
  CHECK(granted(3, 2048) == 3);  // VPs
  CHECK(granted(64, 128) == 4);  // shares of 64 sub-allocations
}

TEST_CASE("sub-channels that were not granted do not open", "[netvsp]") {
  NicConfig config = loopback_config();
  config.queues = 4;
  GuestNic guest(std::move(config));
  GuestOptions options;
  options.sub_channels = 1;
  guest.start(options);
  class NoHost final : public devices::DeviceHost {
    void find_gpadl(devices::Channel&, std::uint32_t,
                    std::function<void(std::shared_ptr<const vmbus::Gpadl>)>) override {}
    void offer_sub_channels(devices::Device&, std::uint32_t) override {}
  } host;
  CHECK_FALSE(guest.nic().open(2, host, *guest.link().worker).has_value());
}

TEST_CASE("a buffer that is taken back is not touched any more", "[netvsp]") {
  NicConfig config = loopback_config();
  config.queues = 2;
  GuestNic guest(std::move(config), 2);
  GuestOptions options;
  options.sub_channels = 1;
  guest.start(options);
  Random random(kSeed);
  const Bytes message = GuestNic::rndis_message(frame_to_guest(60, random));
  for (int round = 0; round < 5; ++round) {
    guest.send_plain(bytes_of(NvspRevokeBuffer{NvspType::kRevokeReceiveBuffer, kSetId, 0}));
    guest.take_back(0xb0d);
    // Sends still go, by pages of their own.
    CHECK(guest.completion_of(guest.send_direct(0, message)) ==
          GuestNic::padded_status(NvspStatus::kSuccess));
    guest.take_back(0xb0e);
    CHECK(guest.completion_of(guest.send_ranges(0, {}, false, 0, 104)) ==
          GuestNic::padded_status(NvspStatus::kInvalidRndisPacket));
    CHECK(guest.completion_of(guest.send_ranges(1, {}, false, 0, 104), 1) ==
          GuestNic::padded_status(NvspStatus::kInvalidRndisPacket));
    guest.lend_receive_buffer(256);
    guest.lend_send_buffer(16);
    guest.frames.clear();
    guest.send_section(0, 0, message);
    CHECK(guest.next_frame().bytes.size() == 60);
  }
}

TEST_CASE("guest memory can change under an open NIC", "[netvsp]") {
  GuestNic guest(loopback_config());
  guest.start();
  Random random(kSeed);
  devices::Channel& channel = *guest.link().host;
  for (int round = 0; round < 20; ++round) {
    std::promise<void> paused;
    guest.link().worker->post([&] { channel.pause([&] { paused.set_value(); }); });
    paused.get_future().get();
    io::on_worker(*guest.link().worker, [&] {
      channel.resume();
      return true;
    });
    const Bytes frame = frame_to_guest(60 + random() % 1000, random);
    guest.send_section(0, 0, GuestNic::rndis_message(frame));
    CHECK(guest.next_frame().bytes == frame);
  }
}

TEST_CASE("the guest is told when the link goes, not more often than it looks", "[netvsp]") {
  GuestNic guest(loopback_config());
  guest.start();
  guest.indications.clear();  // of the offloads
  guest.nic().set_link(false);
  REQUIRE(guest.wait([&] { return !guest.indications.empty(); }));
  CHECK(read_at<RndisIndicateStatus>(guest.indications[0]).status == RndisStatus::kMediaDisconnect);
  CHECK_FALSE(guest.nic().status().link_up);
  // Back within the two seconds in which Linux does not look.
  const auto begin = std::chrono::steady_clock::now();
  guest.nic().set_link(true);
  REQUIRE(guest.wait([&] { return guest.indications.size() == 2; }));
  CHECK(std::chrono::steady_clock::now() - begin > std::chrono::milliseconds(1900));
  CHECK(read_at<RndisIndicateStatus>(guest.indications[1]).status == RndisStatus::kMediaConnect);
}

TEST_CASE("offload changes are indicated for Windows", "[netvsp]") {
  GuestNic guest(loopback_config());
  guest.start();
  REQUIRE(guest.wait([&] { return !guest.indications.empty(); }));
  const auto indication = read_at<RndisIndicateStatus>(guest.indications[0]);
  CHECK(indication.status == RndisStatus::kTaskOffloadCurrentConfig);
  CHECK(indication.buffer_length == 156);
  const auto object = read_at<NdisOffload>(guest.indications[0], sizeof indication);
  CHECK(object.rsc_ipv4 == 1);
  CHECK(object.ipv4.tx_flags == (kChecksumTcp | kChecksumTcpOptions | kChecksumIpOptions | kChecksumUdp));
}

TEST_CASE("opening and closing again and again leaves nothing behind", "[netvsp]") {
  NicConfig config = loopback_config();
  config.queues = 3;
  GuestNic guest(std::move(config), 2);
  Random random(kSeed);
  for (int round = 0; round < 10; ++round) {
    GuestOptions options;
    options.receive_pages = 256;
    options.sub_channels = 2;
    guest.start(options);
    for (std::uint32_t channel = 0; channel < 3; ++channel) {
      guest.send_section(channel, 0, GuestNic::rndis_message(frame_to_guest(60, random)));
      CHECK(guest.next_frame().channel == channel);
    }
    guest.close();
  }
}

TEST_CASE("the null back end takes everything and invents frames", "[netvsp]") {
  NicConfig config;
  config.null_receive_bytes = 64;
  GuestNic guest(std::move(config));
  guest.start();
  REQUIRE(guest.wait([&] { return guest.frames.size() > 5000; }));
  CHECK(guest.frames[0].bytes.size() == 64);
  CHECK(guest.set_filter(0) == RndisStatus::kSuccess);
  const QueueCounters counters = guest.nic().status().queues[0];
  INFO(counters.rx_packets << " frames in " << counters.rx_transfer_packets << " packets");
  CHECK(counters.rx_packets >= 8 * counters.rx_transfer_packets);
}

TEST_CASE("configuration that cannot be is refused", "[netvsp]") {
  const auto refused = [](auto change) {
    NicConfig config;
    config.partition = "test";
    config.name = "nic0";
    change(config);
    const auto nic = make_nic(std::move(config));
    return !nic.has_value() && (nic.error().code == Errc::kConfig || nic.error().code == Errc::kOs);
  };
  CHECK_FALSE(refused([](NicConfig&) {}));
  CHECK(refused([](NicConfig& c) { c.mtu = 67; }));
  CHECK(refused([](NicConfig& c) { c.mtu = 9217; }));
  CHECK(refused([](NicConfig& c) { c.queues = 0; }));
  CHECK(refused([](NicConfig& c) { c.queues = 65; }));
  CHECK(refused([](NicConfig& c) { c.mac = MacAddress{{1, 0, 0, 0, 0, 1}}; }));
  CHECK(refused([](NicConfig& c) { c.link_speed_mbps = 0; }));
  CHECK(refused([](NicConfig& c) { c.friendly_name = "tab\t"; }));
  CHECK(refused([](NicConfig& c) { c.null_receive_bytes = 59; }));
  CHECK(refused([](NicConfig& c) { c.null_receive_bytes = 1515; }));
  CHECK(refused([](NicConfig& c) { c.fds.emplace_back(dup(0)); }));
  CHECK(refused([](NicConfig& c) {
    c.backend = NicConfig::Backend::kTap;
    c.fds.emplace_back(eventfd(0, 0));
  }));
  CHECK(refused([](NicConfig& c) {
    c.backend = NicConfig::Backend::kStream;
    c.fds.emplace_back(eventfd(0, 0));
  }));
  CHECK(refused([](NicConfig& c) {
    c.backend = NicConfig::Backend::kStream;
    c.queues = 2;
  }));
}

TEST_CASE("identity stays the same over restarts", "[netvsp]") {
  const auto make = [](const char* partition, const char* name) {
    NicConfig config;
    config.partition = partition;
    config.name = name;
    return std::move(*make_nic(std::move(config)));
  };
  const auto one = make("guest1", "nic0");
  CHECK(one->offer().instance == make("guest1", "nic0")->offer().instance);
  CHECK(one->offer().instance != make("guest1", "nic1")->offer().instance);
  CHECK(one->offer().interface_type.to_string() == "f8615163-df3e-46c5-913f-f2d2f965ed0e");
  CHECK_FALSE(one->offer().pipe_message_mode);
  CHECK(one->status().mac == make("guest1", "nic0")->status().mac);
}

}  // namespace
}  // namespace vmbusd::netvsp
