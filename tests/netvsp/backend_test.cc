// The NIC on a TAP in a network namespace of its own, and on a stream socket.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "base/log.h"
#include "netvsp/offload.h"
#include "netvsp/steering_program.h"
#include "netvsp/virtio_net.h"
#include "tests/netvsp/network_namespace.h"
#include "tests/netvsp/nic_fixture.h"

namespace vmbusd::netvsp {
namespace {

constexpr std::uint32_t kSeed = 815;

class Tap {
 public:
  explicit Tap(std::uint32_t queues = 1) {
    for (std::uint32_t i = 0; i < queues; ++i) {
      UniqueFd fd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
      REQUIRE(fd);
      ifreq request{};
      std::strcpy(request.ifr_name, "tap0");
      request.ifr_flags =
          static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (queues > 1 ? IFF_MULTI_QUEUE : 0));
      REQUIRE(::ioctl(fd.get(), TUNSETIFF, &request) == 0);
      fds.push_back(std::move(fd));
    }
    const UniqueFd control(::socket(AF_INET, SOCK_DGRAM, 0));
    ifreq request{};
    std::strcpy(request.ifr_name, "tap0");
    request.ifr_mtu = 9000;
    REQUIRE(::ioctl(control.get(), SIOCSIFMTU, &request) == 0);
    set_interface("tap0", true);
    wire.reset(::socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0));
    const int on = 1;
    REQUIRE(::setsockopt(wire.get(), SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) == 0);
    const int large = 8 << 20;
    static_cast<void>(::setsockopt(wire.get(), SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof large));
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(ETH_P_ALL);
    address.sll_ifindex = static_cast<int>(::if_nametoindex("tap0"));
    REQUIRE(::bind(wire.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  }
  void put(std::span<const std::byte> frame, const VirtioNetHeader& header = {}) const {
    const iovec parts[] = {{const_cast<VirtioNetHeader*>(&header), sizeof header},
                           {const_cast<std::byte*>(frame.data()), frame.size()}};
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(parts);
    message.msg_iovlen = 2;
    INFO("errno " << errno);
    REQUIRE(::sendmsg(wire.get(), &message, 0) == static_cast<ssize_t>(sizeof header + frame.size()));
  }
  // A frame that came from the guest; the namespace's own chatter has another source.
  std::optional<std::pair<VirtioNetHeader, Bytes>> take(GuestNic& guest) const {
    std::optional<std::pair<VirtioNetHeader, Bytes>> taken;
    guest.wait([&] {
      Bytes buffer(70000);
      sockaddr_ll from{};
      socklen_t size = sizeof from;
      const ssize_t got =
          ::recvfrom(wire.get(), buffer.data(), buffer.size(), 0, reinterpret_cast<sockaddr*>(&from), &size);
      if (got < 10 || from.sll_pkttype == PACKET_OUTGOING) return false;
      const auto header = read_at<VirtioNetHeader>(buffer);
      taken.emplace(header, Bytes(buffer.begin() + 10, buffer.begin() + got));
      return true;
    });
    return taken;
  }

  std::vector<UniqueFd> fds;
  UniqueFd wire;
};

NicConfig tap_config(Tap& tap) {
  NicConfig config;
  config.backend = NicConfig::Backend::kTap;
  config.queues = static_cast<std::uint32_t>(tap.fds.size());
  for (const UniqueFd& fd : tap.fds) config.fds.emplace_back(dup(fd.get()));
  tap.fds.clear();
  return config;
}

// Without multicast: the namespace's own router solicitations are not ours to count.
GuestOptions quiet_options() {
  GuestOptions options;
  options.filter = kFilterDirected | kFilterBroadcast;
  return options;
}

TEST_CASE("a TAP carries frames both ways", "[netvsp][tap]") {
  NEED_NAMESPACE();
  Tap tap;
  GuestNic guest(tap_config(tap));
  guest.start(quiet_options());
  Random random(kSeed);
  for (int round = 0; round < 500; ++round) {
    INFO("seed " << kSeed << " round " << round);
    const Bytes in = frame_to_guest(60 + random() % 1450, random);
    tap.put(in);
    CHECK(guest.next_frame().bytes == in);
    const Bytes out = frame_to_guest(60 + random() % 1450, random);
    guest.send_direct(0, GuestNic::rndis_message(out), 700);
    const auto taken = tap.take(guest);
    REQUIRE(taken.has_value());
    CHECK(taken->second == out);
  }
}

TEST_CASE("a burst from a TAP keeps its order", "[netvsp][tap]") {
  NEED_NAMESPACE();
  Tap tap;
  GuestNic guest(tap_config(tap));
  guest.start(quiet_options());
  Random random(kSeed);
  for (int burst = 0; burst < 20; ++burst) {
    std::vector<Bytes> sent;
    for (int i = 0; i < 200; ++i) {
      sent.push_back(frame_to_guest(60 + random() % 100, random));
      tap.put(sent.back());
    }
    for (const Bytes& frame : sent) REQUIRE(guest.next_frame().bytes == frame);
  }
  CHECK(guest.nic().status().queues[0].rx_dropped == 0);
}

TEST_CASE("offloads pass a TAP in both directions", "[netvsp][tap]") {
  NEED_NAMESPACE();
  for (const bool rsc : {true, false}) {
    Tap tap;
    GuestNic guest(tap_config(tap));
    GuestOptions options = quiet_options();
    options.rsc = rsc;
    guest.start(options);
    Random random(kSeed);
    for (int round = 0; round < 40; ++round) {
      INFO("seed " << kSeed << " round " << round << " rsc " << rsc);
      FrameSpec spec;
      spec.ip_version = round % 2 == 0 ? 4 : 6;
      spec.payload = 2000 + random() % 60000;
      const BuiltFrame built = build_frame(spec, random);
      const bool v6 = spec.ip_version == 6;

      // Out: what the kernel got, it would complete to the frame that was meant.
      Bytes out = built.bytes;
      put16(out, built.transport + 16, 0xbeef);
      put16(out, built.ip + (v6 ? 4u : 2u), 0);
      GuestNic::Ppis ppis;
      ppis.large_send = 1400 | kLargeSendV2 | (v6 ? kLargeSendIpv6 : 0);
      guest.send_direct(0, GuestNic::rndis_message(out, ppis));
      auto taken = tap.take(guest);
      REQUIRE(taken.has_value());
      CHECK(taken->first.gso_type == (v6 ? 4 : 1));
      CHECK(taken->first.gso_size == 1400);
      CHECK(taken->first.flags == kVirtioNeedsChecksum);
      complete_checksum(taken->first, taken->second, {});
      CHECK(taken->second == built.bytes);

      // In: a packet of the kernel's own, its sum not complete.
      Bytes in = built.bytes;
      put16(in, built.transport + 16,
            plain_pseudo_sum(in, built.ip, 6, static_cast<std::uint32_t>(in.size()) - built.transport));
      tap.put(in, {kVirtioNeedsChecksum, static_cast<std::uint8_t>(v6 ? 4 : 1),
                   static_cast<std::uint16_t>(built.payload), 1400,
                   static_cast<std::uint16_t>(built.transport), 16});
      Bytes payload;
      while (payload.size() < spec.payload) {
        const GuestFrame back = guest.next_frame();
        CHECK(transport_good(back.bytes, built.ip, built.transport, false));
        CHECK(back.checksum_info == kRxChecksumTcpSucceeded);
        if (rsc) CHECK(back.bytes == built.bytes);
        append(payload, std::span(back.bytes).subspan(built.payload));
      }
      CHECK(
          std::equal(payload.begin(), payload.end(), built.bytes.begin() + built.payload, built.bytes.end()));
    }
  }
}

TEST_CASE("UDP with a partial sum is completed on its way in", "[netvsp][tap]") {
  NEED_NAMESPACE();
  Tap tap;
  GuestNic guest(tap_config(tap));
  guest.start(quiet_options());
  Random random(kSeed);
  for (int round = 0; round < 50; ++round) {
    FrameSpec spec;
    spec.ip_version = round % 2 == 0 ? 4 : 6;
    spec.udp = true;
    spec.payload = random() % 1400;
    const BuiltFrame built = build_frame(spec, random);
    Bytes in = built.bytes;
    put16(in, built.transport + 6,
          plain_pseudo_sum(in, built.ip, 17, static_cast<std::uint32_t>(in.size()) - built.transport));
    tap.put(in, {kVirtioNeedsChecksum, 0, 0, 0, static_cast<std::uint16_t>(built.transport), 6});
    const GuestFrame back = guest.next_frame();
    CHECK(back.bytes == built.bytes);
    CHECK(back.checksum_info == kRxChecksumUdpSucceeded);
  }
}

TEST_CASE("a TAP with queues serves a channel by each", "[netvsp][tap]") {
  NEED_NAMESPACE();
  Tap tap(3);
  GuestNic guest(tap_config(tap), 2);
  GuestOptions options = quiet_options();
  options.receive_pages = 2048;
  options.sub_channels = 2;
  guest.start(options);
  Random random(kSeed);
  const auto send_flows = [&] {
    std::array<std::uint32_t, 3> by_channel{};
    for (std::uint32_t flow = 0; flow < 64; ++flow) {
      FrameSpec spec;
      BuiltFrame built = build_frame(spec, random);
      put16(built.bytes, built.transport, 1000 + flow);
      tap.put(built.bytes);
      const GuestFrame back = guest.next_frame();
      CHECK(back.bytes == built.bytes);
      ++by_channel[back.channel];
    }
    return by_channel;
  };
  for (const std::uint32_t count : send_flows()) CHECK(count > 0);
  // The kernel spreads over the queues that are read, and no others.
  guest.close_channel(1);
  std::array<std::uint32_t, 3> by_channel = send_flows();
  CHECK(by_channel[1] == 0);
  CHECK(by_channel[0] + by_channel[2] == 64);
  guest.close_channel(2);
  CHECK(send_flows()[0] == 64);
  guest.open_channel(1, options.ring_pages);
  CHECK(send_flows()[1] > 0);
}

// RSS parameters as Linux sets them: 128 entries that name the channels in turn.
Bytes rss_parameters(std::span<const std::uint32_t> channels, std::uint16_t flags = 0) {
  NdisRssParameters p{};
  p.header = {kNdisObjectRssParameters, 2, sizeof p};
  p.flags = flags;
  p.hash_info = kHashToeplitz | kHashIpv4 | kHashTcpIpv4 | kHashIpv6 | kHashTcpIpv6;
  p.indirection_table_size = kRssIndirectionEntriesMax * sizeof(std::uint32_t);
  p.indirection_table_offset = sizeof p;
  p.hash_key_size = kRssKeySize;
  p.hash_key_offset = p.indirection_table_offset + p.indirection_table_size;
  Bytes bytes = bytes_of(p);
  for (std::size_t i = 0; i < kRssIndirectionEntriesMax; ++i)
    append(bytes, bytes_of(channels[i % channels.size()]));
  for (std::uint32_t i = 0; i < kRssKeySize; ++i) bytes.push_back(static_cast<std::byte>(0x6d * (i + 1)));
  return bytes;
}

TEST_CASE("a TAP's frames arrive on the channels of the guest's indirection table", "[netvsp][tap][rss]") {
  NEED_NAMESPACE();
  auto program = load_steering_program();
  if (!program) {
    WARN("nothing is tested: " << describe(program.error()) << " (wants CAP_BPF)");
    return;
  }
  const auto steered = [&program](Tap& tap) {
    REQUIRE(steer_tap(tap.fds[0].get(), program->program.get()).has_value());
    NicConfig config = tap_config(tap);
    config.steering.reset(dup(program->table.get()));
    return config;
  };
  auto tap = std::make_unique<Tap>(4);
  GuestNic guest(steered(*tap), 2);
  GuestOptions options = quiet_options();
  options.receive_pages = 2048;
  options.sub_channels = 3;
  guest.start(options);
  Random random(kSeed);
  using Counts = std::array<std::uint32_t, 4>;
  // The channels on which 64 TCP flows arrive.
  const auto send_flows = [&] {
    Counts by_channel{};
    for (std::uint32_t flow = 0; flow < 64; ++flow) {
      FrameSpec spec;
      spec.vlan = flow % 4 == 0;
      BuiltFrame built = build_frame(spec, random);
      put16(built.bytes, built.transport, 1000 + flow);
      tap->put(built.bytes);
      ++by_channel[guest.next_frame().channel];
    }
    return by_channel;
  };
  const auto set_rss = [&](std::initializer_list<std::uint32_t> channels, std::uint16_t flags = 0) {
    CHECK(guest.set(Oid::kGenReceiveScaleParameters,
                    rss_parameters(std::span(channels.begin(), channels.size()), flags)) ==
          RndisStatus::kSuccess);
  };
  const Counts all_on_primary = {64, 0, 0, 0};
  CHECK(send_flows() == all_on_primary);  // no RSS yet
  for (std::uint32_t only = 0; only < 4; ++only) {
    set_rss({only});
    CHECK(send_flows()[only] == 64);
  }
  set_rss({0, 1, 2, 3});
  Counts counts = send_flows();
  for (const std::uint32_t count : counts) CHECK(count > 0);
  CHECK(send_flows() == counts);
  set_rss({1, 3});
  counts = send_flows();
  CHECK(counts[1] > 0);
  CHECK(counts[3] > 0);
  CHECK(counts[1] + counts[3] == 64);
  // What is no IP packet, the primary has.
  const Bytes other = frame_to_guest(100, random);
  tap->put(other);
  CHECK(guest.next_frame().channel == 0);

  // The kernel moves the last queue's number when another is detached.
  guest.close_channel(1);
  counts = send_flows();
  CHECK(counts[0] > 0);  // in place of 1
  CHECK(counts[3] > 0);
  CHECK(counts[0] + counts[3] == 64);
  set_rss({2});
  CHECK(send_flows()[2] == 64);
  guest.close_channel(2);
  set_rss({3});
  CHECK(send_flows()[3] == 64);
  guest.open_channel(1, options.ring_pages);
  guest.open_channel(2, options.ring_pages);
  for (std::uint32_t only = 0; only < 4; ++only) {
    set_rss({only});
    CHECK(send_flows()[only] == 64);
  }
  set_rss({3}, kRssDisable);
  CHECK(send_flows() == all_on_primary);
  set_rss({3});

  // Another TAP goes on with what the guest has set.
  remove_interface("tap0");
  REQUIRE(guest.wait([&] { return !guest.nic().status().link_up; }));
  tap = std::make_unique<Tap>(4);
  REQUIRE(guest.nic().replace_backend(steered(*tap).fds).has_value());
  // The channels take their queues up one by one.
  CHECK(guest.wait([&] { return send_flows()[3] == 64; }));
  for (std::uint32_t only = 0; only < 4; ++only) {
    set_rss({only});
    CHECK(send_flows()[only] == 64);
  }

  // A new driver begins without.
  guest.close();
  guest.start(options);
  CHECK(send_flows() == all_on_primary);
  set_rss({2});
  CHECK(send_flows()[2] == 64);
}

TEST_CASE("opening and closing on a TAP leaves no read behind", "[netvsp][tap]") {
  NEED_NAMESPACE();
  Tap tap;
  GuestNic guest(tap_config(tap));
  Random random(kSeed);
  for (int round = 0; round < 20; ++round) {
    guest.start(quiet_options());
    const Bytes in = frame_to_guest(100, random);
    tap.put(in);
    CHECK(guest.next_frame().bytes == in);
    if (round % 3 == 0) {
      guest.take_back(0xb0d);
    } else if (round % 3 == 1) {
      devices::Channel& channel = *guest.link().host;
      std::promise<void> paused;
      guest.link().worker->post([&] { channel.pause([&] { paused.set_value(); }); });
      paused.get_future().get();
      CHECK(channel.in_flight() == 0);
      io::on_worker(*guest.link().worker, [&] {
        channel.resume();
        return true;
      });
      tap.put(in);
      CHECK(guest.next_frame().bytes == in);
    }
    guest.close();
  }
}

TEST_CASE("a TAP that is removed takes the link down until there is another", "[netvsp][tap]") {
  NEED_NAMESPACE();
  auto tap = std::make_unique<Tap>();
  GuestNic guest(tap_config(*tap));
  guest.start(quiet_options());
  guest.indications.clear();
  Random random(kSeed);
  const Bytes frame = frame_to_guest(100, random);
  for (int round = 0; round < 2; ++round) {
    tap->put(frame);
    CHECK(guest.next_frame().bytes == frame);
    remove_interface("tap0");
    REQUIRE(guest.wait([&] { return !guest.nic().status().link_up; }));
    CHECK(guest.nic().status().link_reason.find("TAP is gone") != std::string::npos);
    REQUIRE(guest.wait([&] { return !guest.indications.empty(); }));
    CHECK(read_at<RndisIndicateStatus>(guest.indications.front()).status == RndisStatus::kMediaDisconnect);
    guest.indications.clear();
    // What is sent now is lost, not held.
    CHECK(guest.completion_of(guest.send_section(0, 0, GuestNic::rndis_message(frame))) ==
          GuestNic::padded_status(NvspStatus::kSuccess));
    CHECK(guest.nic().status().queues[0].tx_dropped >= 1);
    tap = std::make_unique<Tap>();
    std::vector<UniqueFd> fds;
    fds.emplace_back(dup(tap->fds[0].get()));
    tap->fds.clear();
    REQUIRE(guest.nic().replace_backend(std::move(fds)).has_value());
    REQUIRE(guest.wait([&] { return !guest.indications.empty(); }));
    CHECK(read_at<RndisIndicateStatus>(guest.indications.front()).status == RndisStatus::kMediaConnect);
    guest.indications.clear();
    guest.send_section(0, 0, GuestNic::rndis_message(frame));
    const auto taken = tap->take(guest);
    REQUIRE(taken.has_value());
    CHECK(taken->second == frame);
  }
}

// vmbusd makes interfaces that are down until the operator sets them up.
TEST_CASE("a TAP that is set down and up keeps its NIC", "[netvsp][tap]") {
  NEED_NAMESPACE();
  for (const std::uint32_t queues : {1u, 2u}) {
    Tap tap(queues);
    set_interface("tap0", false);
    GuestNic guest(tap_config(tap), 2);
    int losses = 0;
    guest.nic().on_backend_lost([&losses] { ++losses; });
    GuestOptions options = quiet_options();
    options.sub_channels = queues - 1;
    guest.start(options);
    guest.indications.clear();
    Random random(kSeed);
    const Bytes frame = frame_to_guest(100, random);
    const Bytes message = GuestNic::rndis_message(frame);
    for (int round = 0; round < 3; ++round) {
      const std::uint64_t dropped = guest.nic().status().queues[0].tx_dropped;
      CHECK(guest.completion_of(guest.send_section(0, 0, message)) ==
            GuestNic::padded_status(NvspStatus::kSuccess));
      CHECK(guest.nic().status().queues[0].tx_dropped == dropped + 1);
      set_interface("tap0", true);
      guest.send_section(0, 0, message);
      const auto taken = tap.take(guest);
      REQUIRE(taken.has_value());
      CHECK(taken->second == frame);
      for (int i = 0; i < 20; ++i) {
        tap.put(frame);
        CHECK(guest.next_frame().bytes == frame);
      }
      set_interface("tap0", false);
    }
    CHECK(guest.nic().status().link_up);
    CHECK(guest.indications.empty());
    CHECK(losses == 0);
  }
}

TEST_CASE("a TAP's new queues that no channel reads get no packets", "[netvsp][tap]") {
  NEED_NAMESPACE();
  auto tap = std::make_unique<Tap>(3);
  GuestNic guest(tap_config(*tap));
  guest.start(quiet_options());
  remove_interface("tap0");
  REQUIRE(guest.wait([&] { return !guest.nic().status().link_up; }));
  tap = std::make_unique<Tap>(3);
  REQUIRE(guest.nic().replace_backend(std::move(tap_config(*tap).fds)).has_value());
  Random random(kSeed);
  for (std::uint32_t flow = 0; flow < 64; ++flow) {
    FrameSpec spec;
    BuiltFrame built = build_frame(spec, random);
    put16(built.bytes, built.transport, 1000 + flow);
    tap->put(built.bytes);
    CHECK(guest.next_frame().bytes == built.bytes);
  }
}

TEST_CASE("one removal of a TAP with queues is told once", "[netvsp][tap]") {
  NEED_NAMESPACE();
  auto tap = std::make_unique<Tap>(3);
  GuestNic guest(tap_config(*tap), 3);
  std::atomic<int> losses = 0;
  guest.nic().on_backend_lost([&losses] { ++losses; });
  GuestOptions options = quiet_options();
  options.sub_channels = 2;
  guest.start(options);
  for (int round = 1; round <= 20; ++round) {
    remove_interface("tap0");
    REQUIRE(guest.wait([&] { return losses == round; }));
    CHECK_FALSE(guest.nic().status().link_up);
    tap = std::make_unique<Tap>(3);
    REQUIRE(guest.nic().replace_backend(std::move(tap_config(*tap).fds)).has_value());
    CHECK(guest.nic().status().link_up);
  }
  guest.wait([] { return false; }, std::chrono::milliseconds(20));
  CHECK(losses == 20);
}

// Streams.

struct Stream {
  Stream() {
    int pair[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    nic.reset(pair[0]);
    peer.reset(pair[1]);
    REQUIRE(::fcntl(peer.get(), F_SETFL, O_NONBLOCK) == 0);
  }
  void put_bytes(GuestNic& guest, std::span<const std::byte> bytes) const {
    REQUIRE(guest.wait([&] {
      const ssize_t sent = ::send(peer.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent > 0) bytes = bytes.subspan(static_cast<std::size_t>(sent));
      return bytes.empty();
    }));
  }
  static Bytes framed(std::span<const std::byte> frame) {
    Bytes bytes(4);
    put32(bytes, 0, static_cast<std::uint32_t>(frame.size()));
    append(bytes, frame);
    return bytes;
  }
  // The next `size` bytes from the NIC.
  Bytes take_bytes(GuestNic& guest, std::size_t size) const {
    Bytes bytes(size);
    std::size_t have = 0;
    REQUIRE(guest.wait([&] {
      const ssize_t got = ::recv(peer.get(), bytes.data() + have, size - have, 0);
      if (got > 0) have += static_cast<std::size_t>(got);
      return have == size;
    }));
    return bytes;
  }
  Bytes take(GuestNic& guest) const {
    const Bytes length = take_bytes(guest, 4);
    const std::uint32_t size = get16(length, 0) << 16 | get16(length, 2);
    REQUIRE(size <= 65550);
    return take_bytes(guest, size);
  }

  UniqueFd nic;
  UniqueFd peer;
};

NicConfig stream_config(Stream& stream) {
  NicConfig config;
  config.backend = NicConfig::Backend::kStream;
  config.fds.push_back(std::move(stream.nic));
  return config;
}

TEST_CASE("a stream carries frames both ways, however it is cut", "[netvsp][stream]") {
  Stream stream;
  GuestNic guest(stream_config(stream));
  guest.start();
  Random random(kSeed);
  for (int round = 0; round < 100; ++round) {
    INFO("seed " << kSeed << " round " << round);
    Bytes bytes;
    std::vector<Bytes> sent;
    for (std::uint32_t i = 0; i < 1 + random() % 40; ++i) {
      sent.push_back(frame_to_guest(60 + random() % 1450, random));
      append(bytes, Stream::framed(sent.back()));
    }
    for (std::span<const std::byte> left(bytes); !left.empty();) {
      const std::size_t size = std::min<std::size_t>(left.size(), 1 + random() % 5000);
      stream.put_bytes(guest, left.first(size));
      left = left.subspan(size);
    }
    for (const Bytes& frame : sent) CHECK(guest.next_frame().bytes == frame);
    const Bytes out = frame_to_guest(60 + random() % 1450, random);
    guest.send_direct(0, GuestNic::rndis_message(out), 700);
    CHECK(stream.take(guest) == out);
  }
}

TEST_CASE("a stream's frames have complete checksums, large sends are cut up", "[netvsp][stream]") {
  Stream stream;
  GuestNic guest(stream_config(stream));
  guest.start();
  Random random(kSeed);
  for (int round = 0; round < 40; ++round) {
    INFO("seed " << kSeed << " round " << round);
    FrameSpec spec;
    spec.ip_version = round % 2 == 0 ? 4 : 6;
    spec.payload = round % 4 < 2 ? random() % 1400 : 2000 + random() % 60000;
    const BuiltFrame built = build_frame(spec, random);
    Bytes out = built.bytes;
    put16(out, built.transport + 16, 0xbeef);
    GuestNic::Ppis ppis;
    if (spec.payload < 1401) {
      ppis.checksum = kTxChecksumTcp;
    } else {
      ppis.large_send = 1400 | kLargeSendV2 | (spec.ip_version == 6 ? kLargeSendIpv6 : 0);
    }
    guest.send_direct(0, GuestNic::rndis_message(out, ppis));
    Bytes payload;
    do {
      const Bytes frame = stream.take(guest);
      CHECK(frame.size() <= 1514);
      CHECK(ip_good(frame, built.ip));
      CHECK(transport_good(frame, built.ip, built.transport, false));
      append(payload, std::span(frame).subspan(built.payload));
    } while (payload.size() < spec.payload);
    CHECK(std::equal(payload.begin(), payload.end(), built.bytes.begin() + built.payload, built.bytes.end()));
  }
}

TEST_CASE("a stream whose peer does not read makes the ring wait", "[netvsp][stream]") {
  Stream stream;
  GuestNic guest(stream_config(stream));
  guest.start();
  Random random(kSeed);
  std::vector<Bytes> sent;
  std::vector<std::uint64_t> transactions;
  for (int i = 0; i < 1000; ++i) {
    sent.push_back(frame_to_guest(1500, random));
    transactions.push_back(
        guest.send_section(0, static_cast<std::uint32_t>(i) % 42, GuestNic::rndis_message(sent.back())));
    // A section is free for the next frame once its packet is completed; far enough ahead it is not.
    if (!guest.wait([&] { return guest.link().completions.contains(transactions.back()); },
                    std::chrono::milliseconds(100))) {
      break;
    }
  }
  CHECK(sent.size() < 1000);
  CHECK(sent.size() > 300);
  for (const Bytes& frame : sent) CHECK(stream.take(guest) == frame);
  CHECK(guest.completion_of(transactions.back()) == GuestNic::padded_status(NvspStatus::kSuccess));
  CHECK(guest.nic().status().queues[0].tx_dropped == 0);
}

TEST_CASE("a stream's reader never finds a part of a frame", "[netvsp][stream]") {
  Stream stream;
  GuestNic guest(stream_config(stream));
  guest.start();
  Random random(kSeed);
  // As passt of Debian 12 reads: all that there is, which must be whole frames.
  std::size_t frames = 0;
  const auto read_all = [&] {
    Bytes bytes(1u << 20);
    const ssize_t got = ::recv(stream.peer.get(), bytes.data(), bytes.size(), 0);
    std::size_t at = 0;
    while (got > 0 && at + 4 < static_cast<std::size_t>(got)) {
      at += 4 + (std::size_t{get16(bytes, at)} << 16 | get16(bytes, at + 2));
      ++frames;
    }
    if (got > 0) REQUIRE(at == static_cast<std::size_t>(got));
  };
  std::size_t sent = 0;
  for (int round = 0; round < 100; ++round) {
    // One packet is as many frames as one send does not take, and sometimes more than the socket does.
    FrameSpec spec;
    spec.payload = 40000 + random() % 20000;
    for (std::uint32_t i = 0; i <= random() % 4; ++i) {
      GuestNic::Ppis ppis;
      const std::uint32_t segment_size = 100 + random() % 1300;
      ppis.large_send = segment_size | kLargeSendV2;
      sent += (spec.payload + segment_size - 1) / segment_size;
      guest.send_direct(0, GuestNic::rndis_message(build_frame(spec, random).bytes, ppis));
      guest.wait([] { return false; }, std::chrono::milliseconds(1));
    }
    read_all();
  }
  REQUIRE(guest.wait([&] {
    read_all();
    return frames == sent;
  }));
}

TEST_CASE("a stream that waits for us is not waited for without end", "[netvsp][stream]") {
  Stream stream;
  GuestNic guest(stream_config(stream));
  GuestOptions options;
  options.receive_pages = 64;
  guest.start(options);
  guest.link().complete_frames = false;
  Random random(kSeed);
  const Bytes message = GuestNic::rndis_message(frame_to_guest(1500, random));
  // The guest has all its buffers and completes none; the peer neither reads nor ...
  const Bytes in = Stream::framed(frame_to_guest(100, random));
  for (int i = 0; i < 200; ++i) stream.put_bytes(guest, in);
  // ... takes what is sent. Every packet is completed all the same.
  for (int i = 0; i < 1000; ++i) {
    REQUIRE(guest.completion_of(guest.send_section(0, 0, message)) ==
            GuestNic::padded_status(NvspStatus::kSuccess));
  }
  CHECK(guest.nic().status().queues[0].tx_dropped > 0);
}

TEST_CASE("a stream's end takes the link down until there is another", "[netvsp][stream]") {
  for (const bool garbage : {false, true}) {
    Stream stream;
    GuestNic guest(stream_config(stream));
    guest.start();
    guest.indications.clear();
    Random random(kSeed);
    const Bytes frame = frame_to_guest(100, random);
    // Half a frame, which the next stream must not see.
    const Bytes framed = Stream::framed(frame);
    stream.put_bytes(guest, std::span(framed).first(50));
    if (garbage) {
      stream.put_bytes(guest, Bytes(54));
      stream.put_bytes(guest, hex("ffffffff"));
    } else {
      stream.peer.reset();
    }
    REQUIRE(guest.wait([&] { return !guest.nic().status().link_up; }));
    REQUIRE(guest.wait([&] { return !guest.indications.empty(); }));
    CHECK(read_at<RndisIndicateStatus>(guest.indications.front()).status == RndisStatus::kMediaDisconnect);
    CHECK(guest.completion_of(guest.send_section(0, 0, GuestNic::rndis_message(frame))) ==
          GuestNic::padded_status(NvspStatus::kSuccess));
    guest.frames.clear();
    Stream next;
    std::vector<UniqueFd> fds;
    fds.push_back(std::move(next.nic));
    REQUIRE(guest.nic().replace_backend(std::move(fds)).has_value());
    REQUIRE(guest.wait([&] { return guest.nic().status().link_up; }));
    next.put_bytes(guest, Stream::framed(frame));
    CHECK(guest.next_frame().bytes == frame);
    guest.send_section(0, 0, GuestNic::rndis_message(frame));
    CHECK(next.take(guest) == frame);
  }
}

TEST_CASE("a stream that the NIC does not have yet comes later", "[netvsp][stream]") {
  NicConfig config;
  config.backend = NicConfig::Backend::kStream;
  GuestNic guest(std::move(config));
  CHECK_FALSE(guest.nic().status().link_up);
  guest.start();
  Stream stream;
  std::vector<UniqueFd> fds;
  fds.push_back(std::move(stream.nic));
  REQUIRE(guest.nic().replace_backend(std::move(fds)).has_value());
  Random random(kSeed);
  const Bytes frame = frame_to_guest(100, random);
  stream.put_bytes(guest, Stream::framed(frame));
  CHECK(guest.next_frame().bytes == frame);
  CHECK_FALSE(guest.nic().replace_backend({}).has_value());
}

TEST_CASE("a stream outlives its channels", "[netvsp][stream]") {
  Stream stream;
  GuestNic guest(stream_config(stream));
  Random random(kSeed);
  for (int round = 0; round < 10; ++round) {
    guest.start();
    const Bytes frame = frame_to_guest(100, random);
    const Bytes framed = Stream::framed(frame);
    stream.put_bytes(guest, std::span(framed).first(30));
    guest.wait([] { return false; }, std::chrono::milliseconds(5));
    guest.close();
    // The rest of it reaches the next opening, so the framing holds.
    guest.start();
    stream.put_bytes(guest, std::span(framed).subspan(30));
    CHECK(guest.next_frame().bytes == frame);
    guest.send_section(0, 0, GuestNic::rndis_message(frame));
    CHECK(stream.take(guest) == frame);
    guest.close();
  }
}

}  // namespace
}  // namespace vmbusd::netvsp
