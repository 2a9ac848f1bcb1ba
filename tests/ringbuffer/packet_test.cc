// Packets, byte by byte, and where they wrap.
#include "tests/ringbuffer/test_ring.h"

namespace vmbusd::ring {
namespace {

std::vector<std::byte> payload_of(const IncomingRing& ring, const Packet& packet) {
  std::vector<std::byte> bytes(packet.payload_size);
  ring.read_payload(packet, 0, bytes);
  return bytes;
}

std::vector<std::byte> extension_of(const IncomingRing& ring, const Packet& packet) {
  std::vector<std::byte> bytes(packet.extension_size);
  ring.read_extension(packet, 0, bytes);
  return bytes;
}

// What a driver or we write, and the ring bytes that it must give.
struct GoldenCase {
  const char* rule;
  PacketType type;
  bool completion_requested;
  std::uint64_t transaction_id;
  std::vector<std::byte> extension;
  std::vector<std::byte> payload;
  std::vector<std::byte> ring;
};

std::vector<GoldenCase> golden_cases() {
  return {
      {"NVSP INIT 6.1: in-band, 40 bytes, completion requested",
       PacketType::kInband,
       true,
       1,
       {},
       bytes_of({1, 0, 0, 0, 1, 0, 6, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}),
       bytes_of({0x06, 0, 0x02, 0, 0x07, 0, 0x01, 0, 0x01, 0, 0, 0, 0, 0, 0, 0,  //
                 1,    0, 0,    0, 1,    0, 6,    0, 1,    0, 6, 0, 0, 0, 0, 0,  //
                 0,    0, 0,    0, 0,    0, 0,    0, 0,    0, 0, 0, 0, 0, 0, 0,
                 0,    0, 0,    0, 0,    0, 0,    0, 0,    0, 0, 0, 0, 0, 0, 0})},
      {"its completion",
       PacketType::kCompletion,
       false,
       1,
       {},
       std::vector<std::byte>(40),
       bytes_of({0x0b, 0, 0x02, 0, 0x07, 0, 0, 0, 0x01, 0, 0, 0, 0, 0, 0, 0,  //
                 0,    0, 0,    0, 0,    0, 0, 0, 0,    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                 0,    0, 0,    0, 0,    0, 0, 0, 0,    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})},
      {"READ(10) over two pages: GPA-direct", PacketType::kGpaDirect, true, 0x2a,
       bytes_of({0, 0,    0, 0, 1, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x02, 0, 0,  //
                 0, 0x50, 0, 0, 0, 0, 0, 0, 1, 0x50, 0, 0, 0, 0,    0, 0}),
       bytes_of({0x03, 0, 0,    0,    1,    0,    0, 0, 0,    0,    0, 0, 0x34, 0, 0, 0,  //
                 0,    0, 0,    0,    0x0a, 0x14, 1, 0, 0,    0x10, 0, 0, 0x28, 0, 0, 0,  //
                 0,    0, 0,    0,    8,    0,    0, 0, 0,    0,    0, 0, 0,    0, 0, 0,  //
                 0,    0, 0xff, 0x20, 0x4a, 1,    0, 0, 0x3c, 0,    0, 0, 0,    0, 0, 0}),
       bytes_of({0x09, 0,    0x06, 0,    0x0e, 0,    0x01, 0, 0x2a, 0,    0, 0, 0,    0,    0, 0,  //
                 0,    0,    0,    0,    1,    0,    0,    0, 0,    0x10, 0, 0, 0,    0x02, 0, 0,  //
                 0,    0x50, 0,    0,    0,    0,    0,    0, 1,    0x50, 0, 0, 0,    0,    0, 0,  //
                 0x03, 0,    0,    0,    1,    0,    0,    0, 0,    0,    0, 0, 0x34, 0,    0, 0,  //
                 0,    0,    0,    0,    0x0a, 0x14, 1,    0, 0,    0x10, 0, 0, 0x28, 0,    0, 0,  //
                 0,    0,    0,    0,    8,    0,    0,    0, 0,    0,    0, 0, 0,    0,    0, 0,  //
                 0,    0,    0xff, 0x20, 0x4a, 1,    0,    0, 0x3c, 0,    0, 0, 0,    0,    0, 0,  //
                 0,    0,    0,    0,    0,    0,    0,    0})},
      {"one RNDIS message: transfer pages", PacketType::kTransferPages, true, 7,
       bytes_of({0xfe, 0xca, 0, 0, 1, 0, 0, 0, 0x68, 0, 0, 0, 0, 0, 0, 0}),
       bytes_of({0x6b, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
                 0,    0, 0, 0, 0, 0, 0, 0, 0,    0,    0,    0,    0, 0, 0, 0, 0, 0, 0, 0}),
       bytes_of({0x07, 0,    0x04, 0, 0x09, 0, 0x01, 0, 0x07, 0,    0,    0,    0, 0, 0, 0,  //
                 0xfe, 0xca, 0,    0, 1,    0, 0,    0, 0x68, 0,    0,    0,    0, 0, 0, 0,  //
                 0x6b, 0,    0,    0, 0,    0, 0,    0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,  //
                 0,    0,    0,    0, 0,    0, 0,    0, 0,    0,    0,    0,    0, 0, 0, 0,
                 0,    0,    0,    0, 0,    0, 0,    0,  //
                 0,    0,    0,    0, 0,    0, 0,    0})},
      {"payload of 3 bytes is padded with zeros",
       PacketType::kInband,
       false,
       0x1122334455667788,
       {},
       bytes_of({0xa1, 0xa2, 0xa3}),
       bytes_of({0x06, 0,    0x02, 0, 0x03, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,  //
                 0xa1, 0xa2, 0xa3, 0, 0,    0, 0, 0, 0,    0,    0,    0,    0,    0,    0,    0})},
      {"no payload at all", PacketType::kCompletion, false, 9, {}, {}, bytes_of({0x0b, 0, 0x02, 0, 0x02, 0,
                                                                                 0,    0, 9,    0, 0,    0,
                                                                                 0,    0, 0,    0, 0,    0,
                                                                                 0,    0, 0,    0, 0,    0})},
  };
}

TEST_CASE("packets have the bytes that drivers expect", "[ringbuffer]") {
  for (const Shape shape : kAllShapes) {
    for (const GoldenCase& c : golden_cases()) {
      DYNAMIC_SECTION(c.rule << ", " << name_of(shape)) {
        const TestRing ring(shape);
        // Stale bytes of a former lap, which must not show in the padding.
        ring.poke(0, std::vector<std::byte>(ring.size(), std::byte{0xee}));
        OutgoingRing writer(ring.memory());
        REQUIRE(writer.attach());
        REQUIRE(writer.write({.type = c.type,
                              .completion_requested = c.completion_requested,
                              .transaction_id = c.transaction_id,
                              .extension = c.extension,
                              .payload = c.payload}) == true);
        CHECK(ring.control().write_index == 0);
        REQUIRE(writer.commit());
        CHECK(ring.control().write_index == c.ring.size());
        CHECK(c.ring.size() == OutgoingRing::packet_size(c.extension.size(), c.payload.size()));
        CHECK(ring.peek(0, static_cast<std::uint32_t>(c.ring.size())) == c.ring);

        IncomingRing reader(ring.memory());
        REQUIRE(reader.attach());
        const Packet packet = take(reader);
        CHECK(packet.type == c.type);
        CHECK(packet.completion_requested() == c.completion_requested);
        CHECK(packet.transaction_id == c.transaction_id);
        CHECK(extension_of(reader, packet) == c.extension);
        std::vector<std::byte> padded = c.payload;
        padded.resize((padded.size() + 7) / 8 * 8);
        CHECK(payload_of(reader, packet) == padded);
      }
    }
  }
}

TEST_CASE("the trailer names the offset where its packet began", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain);
  ring.set_indices(0x1230, 0x1230);
  OutgoingRing writer(ring.memory());
  REQUIRE(writer.attach());
  REQUIRE(writer.write({.payload = pattern(8)}) == true);
  CHECK(ring.peek(0x1230 + 24, 8) == bytes_of({0, 0, 0, 0, 0x30, 0x12, 0, 0}));
}

// 3 pages: no power of two, as Linux' utilities have it, so that a masked wrap would show. The packet has
// every part: descriptor, extension, two payload parts that meet inside a word, padding, trailer.
TEST_CASE("packets wrap at every 8-byte offset", "[ringbuffer]") {
  const std::vector<std::byte> extension = pattern(24, 1);
  const std::vector<std::byte> head = pattern(13, 2);
  const std::vector<std::byte> tail = pattern(30, 3);
  const std::uint32_t packet_size = OutgoingRing::packet_size(24, 43);
  for (const Shape shape : kAllShapes) {
    DYNAMIC_SECTION(name_of(shape)) {
      const TestRing ring(shape);
      for (std::uint32_t start = ring.size() - packet_size - 8; start < ring.size(); start += 8) {
        INFO("start " << start);
        ring.set_indices(start, start);
        OutgoingRing writer(ring.memory());
        IncomingRing reader(ring.memory());
        REQUIRE(writer.attach());
        REQUIRE(reader.attach());
        for (std::uint64_t id = 0; id < 2; ++id) {  // the second stands behind one that wrapped
          REQUIRE(writer.write({.type = PacketType::kGpaDirect,
                                .transaction_id = id,
                                .extension = extension,
                                .payload = head,
                                .payload_tail = tail}) == true);
        }
        REQUIRE(writer.commit());
        CHECK(ring.control().write_index == (start + 2 * packet_size) % ring.size());
        for (std::uint64_t id = 0; id < 2; ++id) {
          const Packet packet = take(reader);
          REQUIRE(packet.transaction_id == id);
          REQUIRE(extension_of(reader, packet) == extension);
          const std::vector<std::byte> payload = payload_of(reader, packet);
          REQUIRE(payload.size() == 48);
          REQUIRE(std::equal(head.begin(), head.end(), payload.begin()));
          REQUIRE(std::equal(tail.begin(), tail.end(), payload.begin() + 13));
          REQUIRE(std::count(payload.begin() + 43, payload.end(), std::byte{0}) == 5);
          // Parts of the payload, and words of the extension, come out the same.
          std::array<std::byte, 5> part{};
          reader.read_payload(packet, 11, part);
          REQUIRE(std::equal(part.begin(), part.end(), payload.begin() + 11));
          std::uint64_t word = 0;
          std::memcpy(&word, extension.data() + 16, sizeof word);
          REQUIRE(reader.extension_word(packet, 16) == word);
        }
        REQUIRE(is_empty(reader));
        REQUIRE_FALSE(reader.release());
        REQUIRE(ring.control().read_index == ring.control().write_index);
      }
    }
  }
}

}  // namespace
}  // namespace vmbusd::ring
