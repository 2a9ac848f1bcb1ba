#include "netvsp/offload.h"

#include <algorithm>

#include "netvsp/segment.h"
#include "tests/catch.h"
#include "tests/netvsp/frames.h"

namespace vmbusd::netvsp {
namespace {

constexpr std::uint32_t kSeed = 20240;  // any; printed with each failure by Catch's INFO

FrameSpec random_spec(Random& random) {
  FrameSpec spec;
  spec.ip_version = random() % 2 == 0 ? 4 : 6;
  spec.udp = random() % 2 == 0;
  spec.vlan = random() % 4 == 0;
  spec.ip_options = random() % 3 == 0 ? 8 * (random() % 3) : 0;
  spec.tcp_options = 4 * (random() % 4);
  spec.payload = random() % 1200;
  return spec;
}

iovec rest_of(Bytes& frame, std::size_t offset) {
  return {frame.data() + offset, frame.size() - offset};
}

TEST_CASE("the checksum is the one of RFC 1071, in any pieces", "[netvsp]") {
  Random random(kSeed);
  for (int i = 0; i < 500; ++i) {
    INFO("seed " << kSeed << " round " << i);
    Bytes bytes(random() % 3000);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    ChecksumSum sum;
    std::span<const std::byte> left(bytes);
    while (!left.empty()) {
      const std::size_t size = std::min<std::size_t>(left.size(), 1 + random() % 200);
      sum.add(left.first(size));
      left = left.subspan(size);
    }
    const std::uint16_t folded = sum.fold();
    const std::uint32_t in_order = (folded & 0xffu) << 8 | folded >> 8;
    const std::uint32_t expected = plain_sum(bytes);
    // Zero has two forms.
    CHECK(in_order % 0xffff == expected % 0xffff);
  }
  const Bytes ones(70000, std::byte{0xff});
  ChecksumSum sum;
  sum.add(ones);
  CHECK(sum.checksum() == 0);
}

TEST_CASE("frames are parsed to where their layers are", "[netvsp]") {
  Random random(kSeed);
  for (int i = 0; i < 500; ++i) {
    INFO("seed " << kSeed << " round " << i);
    const FrameSpec spec = random_spec(random);
    const BuiltFrame built = build_frame(spec, random);
    const std::span<const std::byte> head(built.bytes.data(),
                                          std::min<std::size_t>(built.bytes.size(), kFrameHeadMax));
    const FrameLayout layout = parse_frame(head);
    CHECK(layout.ip_version == spec.ip_version);
    CHECK(layout.ip_offset == built.ip);
    CHECK(layout.protocol == (spec.udp ? 17 : 6));
    CHECK(layout.transport_offset == built.transport);
    CHECK(layout.payload_offset == built.payload);
    CHECK(layout.ip_end == built.bytes.size());
    // Cut anywhere, nothing outside is pointed at.
    for (std::size_t size = 0; size < head.size(); ++size) {
      const FrameLayout cut = parse_frame(head.first(size));
      CHECK(cut.payload_offset <= size);
      if (size < built.payload) CHECK(cut.protocol == 0);
    }
  }
}

TEST_CASE("frames without a transport header have none", "[netvsp]") {
  struct Case {
    const char* rule;
    const char* frame;
    int ip_version;
  };
  constexpr Case kCases[] = {
      {"ARP", "ffffffffffff 02000000000b 0806 0001 0800 0604 0001", 0},
      {"IPv4 version nibble is wrong",
       "02000000000a 02000000000b 0800 55000028 12340000 40060000 0a000001 0a000002"
       "00000000 00000000 00000000 50000000 00000000",
       0},
      {"IPv4 header shorter than 20",
       "02000000000a 02000000000b 0800 44000028 12340000 40060000 0a000001 0a000002"
       "00000000 00000000 00000000 50000000 00000000",
       0},
      {"IPv4 fragment, more to come",
       "02000000000a 02000000000b 0800 45000028 12342000 40060000 0a000001 0a000002"
       "00000000 00000000 00000000 50000000 00000000",
       4},
      {"IPv4 fragment, later one",
       "02000000000a 02000000000b 0800 45000028 12340001 40060000 0a000001 0a000002"
       "00000000 00000000 00000000 50000000 00000000",
       4},
      {"TCP header shorter than 20",
       "02000000000a 02000000000b 0800 45000028 12340000 40060000 0a000001 0a000002"
       "00000000 00000000 00000000 40000000 00000000",
       4},
      {"ICMP",
       "02000000000a 02000000000b 0800 45000028 12340000 40010000 0a000001 0a000002"
       "00000000 00000000 00000000 50000000 00000000",
       4},
      {"three VLAN tags", "02000000000a 02000000000b 88a80001 81000002 81000003 0800 45000028", 0},
      {"IPv6 fragment",
       "02000000000a 02000000000b 86dd 60000000 00182c40 00000000 00000000 00000000 00000000"
       "00000000 00000000 00000000 00000000 0600 0001 00000000 00000000 00000000 00000000 50000000 00000000",
       6},
      {"IPv6 routing header with segments left",
       "02000000000a 02000000000b 86dd 60000000 001c2b40 00000000 00000000 00000000 00000000"
       "00000000 00000000 00000000 00000000 0600 0401 00000000 00000000 00000000 00000000 50000000 00000000",
       6},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      const FrameLayout layout = parse_frame(hex(c.frame));
      CHECK(layout.protocol == 0);
      CHECK(layout.ip_version == c.ip_version);
    }
  }
}

TEST_CASE("a transmitted frame's checksums are right after any back end", "[netvsp]") {
  Random random(kSeed);
  for (int i = 0; i < 1000; ++i) {
    INFO("seed " << kSeed << " round " << i);
    const FrameSpec spec = random_spec(random);
    const BuiltFrame built = build_frame(spec, random);
    Bytes frame = built.bytes;
    // What guests leave in the fields is not to be relied on. [reference: netvsp 9.1]
    put16(frame, built.transport + (spec.udp ? 6u : 16u), random() & 0xffff);
    TransmitInfo info;
    info.has_checksum = true;
    info.checksum = spec.udp ? kTxChecksumUdp : kTxChecksumTcp;
    if (spec.ip_version == 4) {
      put16(frame, built.ip + 10, random() & 0xffff);
      info.checksum |= kTxChecksumIpHeader;
    }
    const std::size_t padding = random() % 3 == 0 ? random() % 7 : 0;
    for (std::size_t p = 0; p < padding; ++p) frame.push_back(std::byte{0xa5});  // garbage, not zeros

    const std::size_t head_size = std::min<std::size_t>(frame.size(), kFrameHeadMax);
    const Result<TransmitPlan> plan = plan_transmit(std::span(frame).first(head_size),
                                                    static_cast<std::uint32_t>(frame.size()), info, 1500);
    REQUIRE(plan.has_value());
    CHECK(plan->frame_size == built.bytes.size());
    frame.resize(plan->frame_size);
    CHECK(plan->header.flags == kVirtioNeedsChecksum);
    CHECK(plan->header.gso_type == kVirtioGsoNone);
    CHECK(plan->header.checksum_start == built.transport);
    CHECK(plan->header.checksum_offset == (spec.udp ? 6 : 16));
    CHECK(ip_good(frame, built.ip));

    const std::size_t split = std::min(head_size, frame.size());
    const iovec rest = rest_of(frame, split);
    complete_checksum(plan->header, std::span(frame).first(split), std::span(&rest, 1));
    CHECK(transport_good(frame, built.ip, built.transport, spec.udp));
    CHECK(frame == built.bytes);
  }
}

TEST_CASE("transmit infos that do not fit their frame are refused", "[netvsp]") {
  Random random(kSeed);
  struct Case {
    const char* rule;
    FrameSpec spec;
    TransmitInfo info;
    bool ok;
  };
  TransmitInfo none;
  TransmitInfo tcp;
  tcp.has_checksum = true;
  tcp.checksum = kTxChecksumTcp;
  TransmitInfo udp = tcp;
  udp.checksum = kTxChecksumUdp;
  const auto lso = [](std::uint32_t value) {
    TransmitInfo info;
    info.has_large_send = true;
    info.large_send = value;
    return info;
  };
  FrameSpec tcp4;
  FrameSpec udp4;
  udp4.udp = true;
  FrameSpec tcp6;
  tcp6.ip_version = 6;
  FrameSpec longest;
  longest.payload = 1460;
  FrameSpec too_long;
  too_long.payload = 1465;  // one byte more than a tag could excuse
  FrameSpec large;
  large.payload = 60000;
  FrameSpec too_large;
  too_large.payload = 65496;  // 65535 is the most that IPv4 can say
  const Case cases[] = {
      {"plain", tcp4, none, true},
      {"as long as the MTU allows", longest, none, true},
      {"longer", too_long, none, false},
      {"TCP sum of UDP", udp4, tcp, false},
      {"UDP sum of TCP", tcp4, udp, false},
      {"LSO", large, lso(1460 | kLargeSendV2), true},
      {"LSO version 1", large, lso(1460), false},
      {"LSO of UDP", udp4, lso(1460 | kLargeSendV2), false},
      {"LSO for IPv6 of IPv4", large, lso(1460 | kLargeSendV2 | kLargeSendIpv6), false},
      {"LSO for IPv4 of IPv6", tcp6, lso(1440 | kLargeSendV2), false},
      {"LSO without MSS", large, lso(kLargeSendV2), false},
      {"LSO of nearly nothing each", large, lso(7 | kLargeSendV2), false},
      {"LSO of more than the MTU each", large, lso(1461 | kLargeSendV2), false},
      {"LSO longer than IP", too_large, lso(1460 | kLargeSendV2), false},
  };
  for (const Case& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      Bytes frame = build_frame(c.spec, random).bytes;
      const Result<TransmitPlan> plan =
          plan_transmit(std::span(frame).first(std::min<std::size_t>(frame.size(), kFrameHeadMax)),
                        static_cast<std::uint32_t>(frame.size()), c.info, 1500);
      CHECK(plan.has_value() == c.ok);
    }
  }
}

TEST_CASE("a large send is mended to what virtio_net_hdr promises", "[netvsp]") {
  Random random(kSeed);
  for (int i = 0; i < 300; ++i) {
    INFO("seed " << kSeed << " round " << i);
    FrameSpec spec = random_spec(random);
    spec.udp = false;
    spec.payload = 1 + random() % 60000;
    const std::uint8_t kCwrAck = 0x90;
    if (random() % 2 == 0) spec.tcp_flags = kCwrAck;
    const BuiltFrame built = build_frame(spec, random);
    Bytes frame = built.bytes;
    const auto size = static_cast<std::uint32_t>(frame.size());
    // As Linux leaves it. [linux: netvsc_xmit]
    if (spec.ip_version == 4) {
      put16(frame, built.ip + 2, 0);
      put16(frame, built.ip + 10, 0);
    } else {
      put16(frame, built.ip + 4, 0);
    }
    put16(frame, built.transport + 16, plain_pseudo_sum(frame, built.ip, 6, 0));
    const std::uint32_t mss = 536 + random() % 800;
    TransmitInfo info;
    info.has_large_send = true;
    info.large_send = mss | kLargeSendV2 | (spec.ip_version == 6 ? kLargeSendIpv6 : 0);
    const Result<TransmitPlan> plan =
        plan_transmit(std::span(frame).first(std::min<std::size_t>(size, kFrameHeadMax)), size, info, 1500);
    REQUIRE(plan.has_value());
    CHECK(plan->frame_size == size);
    CHECK(plan->header.flags == kVirtioNeedsChecksum);
    CHECK(plan->header.checksum_start == built.transport);
    CHECK(plan->header.checksum_offset == 16);
    CHECK(ip_good(frame, built.ip));
    if (size - built.payload > mss) {
      CHECK(plan->header.gso_type ==
            ((spec.ip_version == 4 ? 1 : 4) | (spec.tcp_flags == kCwrAck ? 0x80 : 0)));
      CHECK(plan->header.gso_size == mss);
      CHECK(plan->header.header_length == built.payload);
    } else {
      CHECK(plan->header.gso_type == 0);
    }
    CHECK(get16(frame, built.transport + 16) % 0xffff ==
          plain_pseudo_sum(frame, built.ip, 6, size - built.transport) % 0xffff);
    const iovec rest = rest_of(frame, std::min<std::size_t>(size, kFrameHeadMax));
    complete_checksum(plan->header, std::span(frame).first(std::min<std::size_t>(size, kFrameHeadMax)),
                      std::span(&rest, 1));
    CHECK(frame == built.bytes);
  }
}

TEST_CASE("segments are what the sender would have made itself", "[netvsp]") {
  Random random(kSeed);
  for (int i = 0; i < 200; ++i) {
    INFO("seed " << kSeed << " round " << i);
    FrameSpec spec = random_spec(random);
    spec.udp = false;
    spec.payload = random() % 20000;
    spec.tcp_flags = 0x99;                                           // CWR, ACK, PSH, FIN
    spec.ip_id = static_cast<std::uint16_t>(0xfffe + random() % 2);  // wraps
    spec.sequence = 0xffffff00;                                      // wraps
    const BuiltFrame whole = build_frame(spec, random);
    const std::uint32_t mss = 100 + random() % 1400;
    const auto head = std::span(whole.bytes).first(std::min<std::size_t>(whole.bytes.size(), kFrameHeadMax));
    const TcpSegmenter segmenter(head, parse_frame(head), static_cast<std::uint32_t>(whole.bytes.size()),
                                 mss);
    CHECK(segmenter.count() == std::max(1u, (spec.payload + mss - 1) / mss));
    std::uint32_t done = 0;
    for (std::uint32_t n = 0; n < segmenter.count(); ++n) {
      const TcpSegmenter::Segment segment = segmenter.segment(n);
      CHECK(segment.payload_offset == whole.payload + done);
      const auto payload = std::span(whole.bytes).subspan(segment.payload_offset, segment.payload_size);
      ChecksumSum sum;
      sum.add(payload);
      Bytes made(segmenter.header_size());
      segmenter.write_header(n, sum, made);
      append(made, payload);

      // The same segment, from its fields: the headers of the whole frame with lengths, id, sequence, flags.
      Bytes expected(whole.bytes.begin(), whole.bytes.begin() + whole.payload);
      const std::uint32_t ip_size = whole.payload - whole.ip + segment.payload_size;
      if (spec.ip_version == 4) {
        put16(expected, whole.ip + 2, ip_size);
        put16(expected, whole.ip + 4, (spec.ip_id + n) & 0xffff);
        put16(expected, whole.ip + 10, 0);
        const std::size_t ip_header = whole.transport - whole.ip;
        put16(expected, whole.ip + 10, ~plain_sum(std::span(expected).subspan(whole.ip, ip_header)) & 0xffff);
      } else {
        put16(expected, whole.ip + 4, ip_size - 40);
      }
      put32(expected, whole.transport + 4, spec.sequence + done);
      const bool last = n + 1 == segmenter.count();
      expected[whole.transport + 13] = static_cast<std::byte>((n == 0 ? 0x80 : 0) | 0x10 | (last ? 0x09 : 0));
      append(expected, payload);
      put16(expected, whole.transport + 16, 0);
      const std::uint32_t pseudo = plain_pseudo_sum(
          expected, whole.ip, 6, static_cast<std::uint32_t>(expected.size()) - whole.transport);
      put16(expected, whole.transport + 16,
            ~plain_sum(std::span(expected).subspan(whole.transport), pseudo) & 0xffff);
      CHECK(made == expected);
      CHECK(transport_good(made, whole.ip, whole.transport, false));
      done += segment.payload_size;
    }
    CHECK(done == spec.payload);
  }
}

TEST_CASE("received frames are told as good only where they are", "[netvsp]") {
  Random random(kSeed);
  FrameSpec tcp4;
  FrameSpec udp4;
  udp4.udp = true;
  FrameSpec tcp6;
  tcp6.ip_version = 6;
  FrameSpec udp6 = tcp6;
  udp6.udp = true;
  FrameSpec big4;
  big4.payload = 30000;
  FrameSpec big6 = big4;
  big6.ip_version = 6;
  constexpr std::uint32_t kAll = kAllChecksums | kAllRsc;
  constexpr VirtioNetHeader kNone{};
  constexpr VirtioNetHeader kValid{kVirtioDataValid, 0, 0, 0, 0, 0};
  const auto needs = [](std::uint16_t start, std::uint16_t offset) {
    return VirtioNetHeader{kVirtioNeedsChecksum, 0, 0, 0, start, offset};
  };
  const auto gso = [](std::uint8_t type, std::uint16_t start) {
    return VirtioNetHeader{kVirtioNeedsChecksum, type, 54, 1448, start, 16};
  };
  struct Case {
    const char* rule;
    FrameSpec spec;
    VirtioNetHeader header;
    std::uint32_t offloads;
    ReceiveAction action;
    bool complete;
    std::uint32_t info;
  };
  const Case cases[] = {
      {"nothing known", tcp4, kNone, kAll, ReceiveAction::kDeliver, false, 0},
      {"checked TCP", tcp4, kValid, kAll, ReceiveAction::kDeliver, false,
       kRxChecksumTcpSucceeded | kRxChecksumIpSucceeded},
      {"checked UDP", udp4, kValid, kAll, ReceiveAction::kDeliver, false,
       kRxChecksumUdpSucceeded | kRxChecksumIpSucceeded},
      {"checked TCP over IPv6", tcp6, kValid, kAll, ReceiveAction::kDeliver, false, kRxChecksumTcpSucceeded},
      {"checked UDP over IPv6", udp6, kValid, kAll, ReceiveAction::kDeliver, false, kRxChecksumUdpSucceeded},
      {"checked, but the guest has it off", tcp4, kValid, 0, ReceiveAction::kDeliver, false, 0},
      {"checked, the guest wants the IP header's only", tcp4, kValid, kRxIpv4Checksum,
       ReceiveAction::kDeliver, false, kRxChecksumIpSucceeded},
      {"partial TCP", tcp4, needs(34, 16), kAll, ReceiveAction::kDeliver, true,
       kRxChecksumTcpSucceeded | kRxChecksumIpSucceeded},
      {"partial UDP over IPv6", udp6, needs(54, 6), kAll, ReceiveAction::kDeliver, true,
       kRxChecksumUdpSucceeded},
      {"partial, and the guest has it off: completed all the same", tcp4, needs(34, 16), 0,
       ReceiveAction::kDeliver, true, 0},
      {"partial sum of something inside", tcp4, needs(74, 16), kAll, ReceiveAction::kDeliver, true,
       kRxChecksumIpSucceeded},
      {"partial sum outside the frame", tcp4, needs(140, 16), kAll, ReceiveAction::kDrop, true, 0},
      {"large, RSC on", big4, gso(1, 34), kAll, ReceiveAction::kCoalesced, true,
       kRxChecksumTcpSucceeded | kRxChecksumIpSucceeded},
      {"large with CWR, RSC on", big4, gso(0x81, 34), kAll, ReceiveAction::kCoalesced, true,
       kRxChecksumTcpSucceeded | kRxChecksumIpSucceeded},
      {"large over IPv6, RSC on", big6, gso(4, 54), kAll, ReceiveAction::kCoalesced, true,
       kRxChecksumTcpSucceeded},
      {"large, RSC off", big4, gso(1, 34), kAllChecksums, ReceiveAction::kSegment, true,
       kRxChecksumTcpSucceeded | kRxChecksumIpSucceeded},
      {"large, RSC on for the other family", big4, gso(1, 34), kAllChecksums | kRscIpv6,
       ReceiveAction::kSegment, true, kRxChecksumTcpSucceeded | kRxChecksumIpSucceeded},
      {"large UDP: never asked for", udp4, gso(5, 34), kAll, ReceiveAction::kDrop, false, 0},
      {"large TCPv4 that is IPv6", big6, gso(1, 54), kAll, ReceiveAction::kDrop, false, 0},
      {"large without a segment size", big4, {1, 1, 54, 0, 34, 16}, kAll, ReceiveAction::kDrop, false, 0},
  };
  for (const Case& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      const BuiltFrame built = build_frame(c.spec, random);
      const auto head =
          std::span(built.bytes).first(std::min<std::size_t>(built.bytes.size(), kFrameHeadMax));
      const ReceivePlan plan =
          plan_receive(c.header, head, static_cast<std::uint32_t>(built.bytes.size()), c.offloads);
      CHECK(plan.action == c.action);
      CHECK(plan.complete == c.complete);
      if (c.action != ReceiveAction::kDrop) CHECK(plan.checksum_info == c.info);
    }
  }
}

TEST_CASE("a bad IPv4 header checksum is told", "[netvsp]") {
  Random random(kSeed);
  BuiltFrame built = build_frame({}, random);
  built.bytes[built.ip + 8] = std::byte{1};  // TTL
  const ReceivePlan plan = plan_receive({kVirtioDataValid, 0, 0, 0, 0, 0}, built.bytes,
                                        static_cast<std::uint32_t>(built.bytes.size()), kAllChecksums);
  CHECK(plan.checksum_info == (kRxChecksumTcpSucceeded | kRxChecksumIpFailed));
}

TEST_CASE("a large packet whose IP length is not its own is cut up, never coalesced", "[netvsp]") {
  Random random(kSeed);
  FrameSpec spec;
  spec.payload = 5000;
  BuiltFrame built = build_frame(spec, random);
  put16(built.bytes, built.ip + 2, 0);
  const ReceivePlan plan =
      plan_receive({kVirtioNeedsChecksum, 1, 54, 1448, 34, 16}, std::span(built.bytes).first(kFrameHeadMax),
                   static_cast<std::uint32_t>(built.bytes.size()), kAllChecksums | kAllRsc);
  CHECK(plan.action == ReceiveAction::kSegment);
}

TEST_CASE("a VLAN tag is inserted behind the addresses", "[netvsp]") {
  Bytes room = hex("ffffffff 0102030405060708090a0b0c 0800 4500");
  insert_vlan_tag(room.data() + 4, 0xa064);
  CHECK(room == hex("0102030405060708090a0b0c 8100a064 0800 4500"));
  CHECK(vlan_info_from_tci(0xa064) == 0x645);
}

}  // namespace
}  // namespace vmbusd::netvsp
