#include "netvsp/rndis_packet.h"

#include <algorithm>
#include <random>

#include "tests/catch.h"
#include "tests/netvsp/bytes.h"

namespace vmbusd::netvsp {
namespace {

constexpr const char* kPlain =
    "01000000 68000000 24000000 3c000000 00000000 00000000 00000000 24000000 00000000 00000000 00000000";
constexpr const char* kFrame60 =
    "ffffffffffff 020000000001 0806 0000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000000000000";

Bytes ppi(std::uint32_t type, std::uint32_t value) {
  return bytes_of(Ppi{{16, static_cast<PpiType>(type), 12}, value});
}

// A message around a 60-byte frame with the given infos.
Bytes message_with(std::span<const Bytes> infos) {
  RndisPacket packet{};
  std::uint32_t size = 0;
  for (const Bytes& info : infos) size += static_cast<std::uint32_t>(info.size());
  packet.header = {RndisType::kPacket, static_cast<std::uint32_t>(sizeof packet) + size + 60};
  packet.data_offset = static_cast<std::uint32_t>(sizeof packet) + size - 8;
  packet.data_length = 60;
  packet.ppi_offset = size == 0 ? 0 : 36;
  packet.ppi_length = size;
  Bytes bytes = bytes_of(packet);
  for (const Bytes& info : infos) append(bytes, info);
  append(bytes, hex(kFrame60));
  return bytes;
}

TEST_CASE("a message without infos [reference: netvsp 12]", "[netvsp]") {
  Bytes bytes = hex(kPlain);
  append(bytes, hex(kFrame60));
  REQUIRE(bytes.size() == 104);
  const Result<TransmitMessage> message = parse_transmit_message(bytes, bytes.size());
  REQUIRE(message.has_value());
  CHECK(message->message_length == 104);
  CHECK(message->frame_offset == 44);
  CHECK(message->frame_size == 60);
  CHECK_FALSE(message->info.has_checksum);
}

TEST_CASE("every combination of infos is read, in any order", "[netvsp]") {
  struct Known {
    std::uint32_t type;
    std::uint32_t value;
  };
  // Hash value and packet id are there to be skipped.
  constexpr Known kKnown[] = {{0, 0x00220014}, {2, 0x400005b4}, {6, 0x645}, {8, 0xdeadbeef}, {0x80000001, 1}};
  std::mt19937 random(7);
  for (unsigned mask = 0; mask < 32; ++mask) {
    std::vector<Bytes> infos;
    for (unsigned i = 0; i < 5; ++i) {
      if ((mask >> i & 1) != 0) infos.push_back(ppi(kKnown[i].type, kKnown[i].value));
    }
    std::shuffle(infos.begin(), infos.end(), random);
    const Bytes bytes = message_with(infos);
    const Result<TransmitMessage> message = parse_transmit_message(bytes, bytes.size());
    INFO("mask " << mask);
    REQUIRE(message.has_value());
    CHECK(message->info.has_checksum == ((mask & 1) != 0));
    CHECK(message->info.has_large_send == ((mask & 2) != 0));
    CHECK(message->info.has_vlan == ((mask & 4) != 0));
    if (message->info.has_checksum) CHECK(message->info.checksum == 0x00220014);
    if (message->info.has_large_send) CHECK(message->info.large_send == 0x400005b4);
    if (message->info.has_vlan) CHECK(message->info.vlan == 0x645);
    CHECK(message->frame_offset == 44 + infos.size() * 16);
  }
}

TEST_CASE("lengths and offsets that lie are refused", "[netvsp]") {
  struct Case {
    const char* rule;
    std::size_t at;
    std::uint32_t value;
    bool ok;
  };
  constexpr Case kCases[] = {
      {"as it is", 0, 1, true},
      {"another type", 0, 5, false},
      {"message shorter than its header", 4, 43, false},
      {"message longer than what is there", 4, 121, false},
      {"message ends inside the frame", 4, 119, false},
      {"frame inside the header", 8, 35, false},
      {"frame outside", 8, 53, false},
      {"frame offset that wraps", 8, 0xfffffff8, false},
      {"frame shorter than its header", 12, 13, false},
      {"frame longer than the message", 12, 61, false},
      {"frame length that wraps", 12, 0xffffffff, false},
      {"out-of-band data is ignored", 16, 0xffffffff, true},
      {"infos inside the header", 28, 35, false},
      {"infos outside", 28, 0x1000, false},
      {"info offset that wraps", 28, 0xfffffff8, false},
      {"infos longer than the message", 32, 0x100, false},
      {"infos end inside one", 32, 15, false},
      {"no infos", 32, 0, true},
      {"info of no size", 44, 0, false},
      {"info shorter than its header", 44, 8, false},
      {"info of odd size", 44, 18, false},
      {"info longer than the infos", 44, 20, false},
      {"info whose data is outside", 52, 13, false},
      {"info whose data offset wraps", 52, 0xfffffffc, false},
      {"an unknown info's data is not looked at", 48, 77, true},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      const Bytes one = ppi(0, 1);
      Bytes bytes = message_with(std::span(&one, 1));
      REQUIRE(bytes.size() == 120);
      std::memcpy(bytes.data() + c.at, &c.value, sizeof c.value);
      CHECK(parse_transmit_message(bytes, bytes.size()).has_value() == c.ok);
    }
  }
  const Bytes plain = hex(kPlain);
  for (std::size_t size = 0; size < 44; ++size) {
    CHECK_FALSE(parse_transmit_message(std::span(plain).first(size), 1000).has_value());
  }
}

TEST_CASE("the head of a received message [reference: netvsp 12]", "[netvsp]") {
  ReceiveHead head = make_receive_head(44, 60);
  CHECK(head.size() == 44);
  // Infos that are not there have no offset: Linux complains of one.
  Bytes plain = hex(kPlain);
  plain[offsetof(RndisPacket, ppi_offset)] = std::byte{0};
  CHECK(bytes_of(head.packet) == plain);
  head = make_receive_head(60, 60);
  head.add(PpiType::kChecksum, kRxChecksumTcpSucceeded | kRxChecksumIpSucceeded);
  CHECK(head.size() == 60);
  CHECK(head.packet.data_offset == 52);
  CHECK(head.packet.ppi_offset == 36);
  CHECK(head.packet.ppi_length == 16);
  CHECK(bytes_of(head.infos[0]) == hex("10000000 00000000 0c000000 28000000"));
}

}  // namespace
}  // namespace vmbusd::netvsp
