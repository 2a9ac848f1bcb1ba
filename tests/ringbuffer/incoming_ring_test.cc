// What the consumer accepts, and when it wakes the producer.
#include "ringbuffer/incoming_ring.h"

#include "tests/ringbuffer/test_ring.h"

namespace vmbusd::ring {
namespace {

// The rings below have 3 pages, 0x3000 bytes.

struct IndexCase {
  const char* rule;
  std::uint32_t index;
  bool ok;
};
constexpr IndexCase kIndexCases[] = {
    {"begin", 0, true},
    {"last word", 0x2ff8, true},
    {"ring size", 0x3000, false},
    {"beyond the ring, where a mirror would still be mapped", 0x3008, false},
    {"just below twice the ring size", 0x5ff8, false},
    {"largest multiple of 8", 0xfffffff8, false},
    {"all ones", 0xffffffff, false},
    {"sign bit", 0x80000000, false},
    {"misaligned by 1", 0x101, false},
    {"misaligned by 4", 0x104, false},
    {"misaligned by 7", 0x2fff, false},
};

TEST_CASE("the consumer takes up a ring only at indices inside it", "[ringbuffer]") {
  for (const IndexCase& c : kIndexCases) {
    DYNAMIC_SECTION(c.rule) {
      const TestRing ring(Shape::kMirrored);
      const auto expected = c.ok ? std::nullopt : std::optional(Errc::kRingCorrupt);
      ring.set_indices(0, c.index);
      CHECK(error_of(IncomingRing(ring.memory()).attach()) == expected);
      ring.set_indices(c.index, 0);
      CHECK(error_of(IncomingRing(ring.memory()).attach()) == expected);
    }
  }
}

TEST_CASE("a write_index that goes bad later is an error, not a packet", "[ringbuffer]") {
  for (const Shape shape : kAllShapes) {
    for (const IndexCase& c : kIndexCases) {
      if (c.ok) continue;
      DYNAMIC_SECTION(c.rule << ", " << name_of(shape)) {
        const TestRing ring(shape);
        IncomingRing reader(ring.memory());
        REQUIRE(reader.attach());
        ring.control().write_index = c.index;
        CHECK(error_of(reader.next()) == Errc::kRingCorrupt);
        CHECK(error_of(reader.readable()) == Errc::kRingCorrupt);
        CHECK_FALSE(reader.unmask());  // no sleep: next() is to report it
        CHECK(error_of(reader.next()) == Errc::kRingCorrupt);
        CHECK(ring.control().read_index == 0);
      }
    }
  }
}

TEST_CASE("what the guest writes into read_index is never read again", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain);
  OutgoingRing writer(ring.memory());
  IncomingRing reader(ring.memory());
  REQUIRE(writer.attach());
  REQUIRE(reader.attach());
  for (int i = 0; i < 2; ++i) REQUIRE(writer.write({.payload = pattern(8)}) == true);
  REQUIRE(writer.commit());
  take(reader);
  ring.control().read_index = 0xffffffff;
  take(reader);
  CHECK(reader.read_position() == 64);
  CHECK_FALSE(reader.release());
  CHECK(ring.control().read_index == 64);
}

struct DescriptorCase {
  const char* rule;
  PacketDescriptor wire;
  std::uint32_t written;  // bytes between read and write index
  std::optional<Errc> error;
};
constexpr PacketType kUnknown0{0};
constexpr PacketType kUnknown8{8};
constexpr PacketType kUnknown10{10};
constexpr PacketType kUnknown12{12};
constexpr PacketType kUnknown65535{0xffff};
constexpr DescriptorCase kDescriptorCases[] = {
    {"smallest legal packet", {PacketType::kInband, 2, 2, 0, 1}, 24, std::nullopt},
    {"with completion", {PacketType::kInband, 2, 2, 1, 1}, 24, std::nullopt},
    {"completion packet", {PacketType::kCompletion, 2, 3, 0, 1}, 32, std::nullopt},
    {"in-band packet with an extension", {PacketType::kInband, 3, 3, 0, 1}, 32, std::nullopt},
    {"smallest GPA-direct", {PacketType::kGpaDirect, 3, 3, 1, 1}, 32, std::nullopt},
    {"smallest transfer-pages", {PacketType::kTransferPages, 3, 3, 1, 1}, 32, std::nullopt},
    {"more behind it", {PacketType::kInband, 2, 2, 0, 1}, 48, std::nullopt},
    {"as long as the ring holds", {PacketType::kInband, 2, 0x5fe, 0, 1}, 0x2ff8, std::nullopt},
    {"nothing but 8 bytes", {PacketType::kInband, 2, 2, 0, 1}, 8, Errc::kBadPacket},
    {"descriptor without trailer", {PacketType::kInband, 2, 2, 0, 1}, 16, Errc::kBadPacket},
    {"trailer past what was written", {PacketType::kInband, 2, 3, 0, 1}, 24, Errc::kBadPacket},
    {"length past what was written", {PacketType::kInband, 2, 4, 0, 1}, 32, Errc::kBadPacket},
    {"length 0", {PacketType::kInband, 2, 0, 0, 1}, 24, Errc::kBadPacket},
    {"length below the header", {PacketType::kInband, 2, 1, 0, 1}, 24, Errc::kBadPacket},
    {"length 0 and offset 0", {PacketType::kInband, 0, 0, 0, 1}, 24, Errc::kBadPacket},
    {"largest length", {PacketType::kInband, 2, 0xffff, 0, 1}, 0x2ff8, Errc::kBadPacket},
    {"length of the whole ring", {PacketType::kInband, 2, 0x600, 0, 1}, 0x2ff8, Errc::kBadPacket},
    {"payload starts inside the descriptor", {PacketType::kInband, 1, 2, 0, 1}, 24, Errc::kBadPacket},
    {"payload starts at 0", {PacketType::kInband, 0, 2, 0, 1}, 24, Errc::kBadPacket},
    {"payload starts past the packet", {PacketType::kInband, 3, 2, 0, 1}, 24, Errc::kBadPacket},
    {"payload starts at the largest offset", {PacketType::kInband, 0xffff, 2, 0, 1}, 24, Errc::kBadPacket},
    {"GPA-direct without room for its count", {PacketType::kGpaDirect, 2, 2, 1, 1}, 24, Errc::kBadPacket},
    {"GPA-direct, extension past the packet", {PacketType::kGpaDirect, 3, 2, 1, 1}, 24, Errc::kBadPacket},
    {"transfer-pages without its header", {PacketType::kTransferPages, 2, 2, 1, 1}, 24, Errc::kBadPacket},
    {"flag bit 1", {PacketType::kInband, 2, 2, 2, 1}, 24, Errc::kBadPacket},
    {"flag bit 15", {PacketType::kInband, 2, 2, 0x8001, 1}, 24, Errc::kBadPacket},
    {"type 0", {kUnknown0, 2, 2, 0, 1}, 24, Errc::kBadPacket},
    {"type 8, by GPADL", {kUnknown8, 2, 2, 0, 1}, 24, Errc::kBadPacket},
    {"type 10, cancel", {kUnknown10, 2, 2, 0, 1}, 24, Errc::kBadPacket},
    {"type 12, additional packets", {kUnknown12, 2, 2, 0, 1}, 24, Errc::kBadPacket},
    {"type 65535", {kUnknown65535, 2, 2, 0, 1}, 24, Errc::kBadPacket},
};

// At offset 0; where only the descriptor's first word stands before the wrap; and where the packet ends with
// the ring.
TEST_CASE("incoming packet descriptors are bounded", "[ringbuffer]") {
  for (const Shape shape : kAllShapes) {
    for (const DescriptorCase& c : kDescriptorCases) {
      for (const std::uint32_t start : {0u, 0x2ff8u, 0x3000u - c.written}) {
        DYNAMIC_SECTION(c.rule << ", " << name_of(shape) << ", at " << start) {
          const TestRing ring(shape);
          ring.poke(start, wire_bytes(c.wire));
          ring.set_indices(start, (start + c.written) % ring.size());
          IncomingRing reader(ring.memory());
          REQUIRE(reader.attach());
          const Result<const Packet*> packet = reader.next();
          CHECK(error_of(packet) == c.error);
          CHECK(reader.read_position() ==
                (c.error ? start : (start + c.wire.length8 * 8u + kTrailerSize) % ring.size()));
          if (c.error) continue;
          REQUIRE(*packet != nullptr);
          CHECK((*packet)->type == c.wire.type);
          if ((*packet)->payload == nullptr) CHECK((*packet)->position == start);
          CHECK((*packet)->extension_size == c.wire.data_offset8 * 8u - 16);
          CHECK((*packet)->payload_size == (c.wire.length8 - c.wire.data_offset8) * 8u);
          std::vector<std::byte> all((*packet)->payload_size);
          reader.read_payload(**packet, 0, all);
        }
      }
    }
  }
}

TEST_CASE("a descriptor that changes after next() changes nothing", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain);
  ring.poke(0, wire_bytes(PacketDescriptor{PacketType::kInband, 2, 4, 1, 77}));
  ring.control().write_index = 40;
  IncomingRing reader(ring.memory());
  REQUIRE(reader.attach());
  const Packet packet = take(reader);
  ring.poke(0, std::vector<std::byte>(16, std::byte{0xff}));
  CHECK(packet.payload_size == 16);
  CHECK(packet.transaction_id == 77);
  CHECK(is_empty(reader));
  CHECK(reader.read_position() == 40);
}

TEST_CASE("write_index is loaded only when the packets seen so far are read", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain);
  OutgoingRing writer(ring.memory());
  IncomingRing reader(ring.memory());
  REQUIRE(writer.attach());
  REQUIRE(reader.attach());
  for (int i = 0; i < 2; ++i) REQUIRE(writer.write({.payload = pattern(8)}) == true);
  REQUIRE(writer.commit());
  take(reader);
  ring.control().write_index = 0xffffffff;
  take(reader);
  CHECK(error_of(reader.next()) == Errc::kRingCorrupt);
}

// The consumer's mask: set while it polls, clear while it sleeps.
TEST_CASE("unmask() refuses sleep while packets are there", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain);
  OutgoingRing writer(ring.memory());
  IncomingRing reader(ring.memory());
  REQUIRE(writer.attach());
  REQUIRE(reader.attach());
  CHECK(ring.control().interrupt_mask == 1);
  CHECK(reader.unmask());
  CHECK(ring.control().interrupt_mask == 0);
  reader.mask();
  CHECK(ring.control().interrupt_mask == 1);
  for (int i = 0; i < 2; ++i) REQUIRE(writer.write({.payload = pattern(8)}) == true);
  REQUIRE(writer.commit());
  CHECK_FALSE(reader.unmask());
  CHECK(ring.control().interrupt_mask == 1);
  take(reader);
  CHECK_FALSE(reader.release());
  CHECK_FALSE(reader.unmask());  // one is left: nobody will signal for it
  take(reader);
  CHECK_FALSE(reader.release());
  CHECK(reader.unmask());
}

TEST_CASE("readable() counts what waits, across the wrap", "[ringbuffer]") {
  const TestRing ring(Shape::kSegmented);
  ring.set_indices(0x2ff0, 0x2ff0);
  OutgoingRing writer(ring.memory());
  IncomingRing reader(ring.memory());
  REQUIRE(writer.attach());
  REQUIRE(reader.attach());
  CHECK(reader.readable() == 0u);
  REQUIRE(writer.write({.payload = pattern(40)}) == true);
  CHECK(reader.readable() == 0u);
  REQUIRE(writer.commit());
  CHECK(reader.readable() == 64u);
  take(reader);
  CHECK(reader.readable() == 0u);
}

// A producer waits in a ring of 0x3000 bytes: free = 0x3000 - 8 - readable. The consumer hands back one
// packet of `read` bytes out of `readable`.
struct SpaceCase {
  const char* rule;
  std::uint32_t pending;
  std::uint32_t readable;
  std::uint32_t read;
  bool signal;
};
constexpr std::uint32_t kMost = 0x3000 - 8;
constexpr SpaceCase kSpaceCases[] = {
    {"nobody waits", 0, 0x1000, 0x100, false},
    {"nobody waits, ring becomes empty", 0, 0x100, 0x100, false},
    {"still too little by 8", kMost - 0x1000 + 0x108, 0x1000, 0x100, false},
    {"exactly enough", kMost - 0x1000 + 0x100, 0x1000, 0x100, true},
    {"crossed", kMost - 0x1000 + 8, 0x1000, 0x100, true},
    {"had been enough before", kMost - 0x1000, 0x1000, 0x100, false},
    {"8 bytes wanted, plenty there", 8, 0x1000, 0x100, false},
    {"8 bytes wanted, ring was full", 8, kMost, 0x20, true},
    {"8 bytes wanted, ring becomes empty", 8, 0x100, 0x100, true},
    {"the whole ring wanted, still not empty", kMost, 0x200, 0x100, false},
    {"the whole ring wanted, becomes empty", kMost, 0x100, 0x100, true},
    {"ring size - 1 wanted, as some guests write", 0x3000 - 1, 0x100, 0x100, true},
    {"ring size - 1 wanted, not yet empty", 0x3000 - 1, 0x200, 0x100, false},
    {"more than the ring wanted: clamped", 0xffffffff, 0x100, 0x100, true},
    {"more than the ring wanted, not yet empty", 0xffffffff, 0x200, 0x100, false},
    {"low bits ignored: crossed", (kMost - 0x1000 + 0x100) | 7, 0x1000, 0x100, true},
};

TEST_CASE("room is signalled when it crosses what the producer waits for", "[ringbuffer]") {
  for (const SpaceCase& c : kSpaceCases) {
    for (const std::uint32_t start : {0u, 0x2f80u}) {  // read_index does not wrap, and does
      DYNAMIC_SECTION(c.rule << ", from " << start) {
        const TestRing ring(Shape::kMirrored);
        ring.poke(start, wire_bytes(PacketDescriptor{PacketType::kInband, 2,
                                                     static_cast<std::uint16_t>(c.read / 8 - 1), 0, 0}));
        ring.set_indices(start, (start + c.readable) % ring.size());
        IncomingRing reader(ring.memory());
        REQUIRE(reader.attach());
        take(reader);
        ring.control().pending_send_size = c.pending;
        CHECK(reader.release() == c.signal);
        CHECK(ring.control().read_index == (start + c.read) % ring.size());
        CHECK_FALSE(reader.release());  // nothing new to hand back
      }
    }
  }
}

TEST_CASE("room is signalled once for a batch, by what the batch hands back", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain);
  OutgoingRing writer(ring.memory());
  IncomingRing reader(ring.memory());
  REQUIRE(writer.attach());
  REQUIRE(reader.attach());
  const std::vector<std::byte> payload = pattern(0x3e8);  // 0x400 bytes of ring with descriptor and trailer
  for (int i = 0; i < 11; ++i) REQUIRE(writer.write({.payload = payload}) == true);
  REQUIRE(writer.write({.payload = payload}) == false);
  REQUIRE(writer.commit());
  REQUIRE(writer.arm_space(0x400) == true);  // waits for a quarter of the ring, 0xc00; 0x3f8 are free
  take(reader);
  CHECK_FALSE(reader.release());
  for (int i = 0; i < 4; ++i) take(reader);
  CHECK(reader.release());
  take(reader);
  CHECK_FALSE(reader.release());
}

TEST_CASE("a corrupt write_index does not cost the producer its signal", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain);
  OutgoingRing writer(ring.memory());
  IncomingRing reader(ring.memory());
  REQUIRE(writer.attach());
  REQUIRE(reader.attach());
  REQUIRE(writer.write({.payload = pattern(8)}) == true);
  REQUIRE(writer.commit());
  take(reader);
  ring.control().pending_send_size = 64;
  ring.control().write_index = 0x3001;
  CHECK(reader.release());
  CHECK(error_of(reader.next()) == Errc::kRingCorrupt);
}

}  // namespace
}  // namespace vmbusd::ring
