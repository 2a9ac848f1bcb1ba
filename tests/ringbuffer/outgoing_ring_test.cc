// When the producer signals, how it waits for room, and what it does with a bad read_index.
#include "ringbuffer/outgoing_ring.h"

#include "tests/ringbuffer/test_ring.h"

namespace vmbusd::ring {
namespace {

constexpr std::uint32_t kSmall = OutgoingRing::packet_size(0, 8);  // 32

// [linux: hv_signal_on_write] `before` packets stand in the ring, unread.
struct SignalCase {
  const char* rule;
  int before;
  std::uint32_t mask;
  int packets;
  bool signal;
};
constexpr SignalCase kSignalCases[] = {
    {"empty, mask clear", 0, 0, 1, true},
    {"empty, mask set", 0, 1, 1, false},
    {"empty, mask has any bit", 0, 0x80000000, 1, false},
    {"not empty, mask clear", 1, 0, 1, false},
    {"not empty, mask set", 1, 1, 1, false},
    {"two packets into an empty ring", 0, 0, 2, true},
    {"two packets behind one", 1, 0, 2, false},
    {"nothing written, empty", 0, 0, 0, false},
    {"nothing written, not empty", 1, 0, 0, false},
};

TEST_CASE("the producer signals when an unmasked ring becomes non-empty", "[ringbuffer]") {
  for (const SignalCase& c : kSignalCases) {
    for (const std::uint32_t start : {0u, 0x2fe0u, 0x2ff0u}) {  // does not wrap, ends with the ring, wraps
      DYNAMIC_SECTION(c.rule << ", at " << start) {
        const TestRing ring(Shape::kPlain);
        ring.set_indices(start, start);
        OutgoingRing writer(ring.memory());
        REQUIRE(writer.attach());
        for (int i = 0; i < c.before; ++i) REQUIRE(writer.write({.payload = pattern(8)}) == true);
        REQUIRE(writer.commit());
        ring.control().interrupt_mask = c.mask;
        for (int i = 0; i < c.packets; ++i) REQUIRE(writer.write({.payload = pattern(8)}) == true);
        CHECK(writer.commit() == c.signal);
        CHECK(writer.commit() == false);
      }
    }
  }
}

TEST_CASE("emptiness is judged by the last published position", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain);
  OutgoingRing writer(ring.memory());
  REQUIRE(writer.attach());
  REQUIRE(writer.write({.payload = pattern(8)}) == true);
  REQUIRE(writer.commit() == true);
  // The consumer has read it when the next one is published, but not yet when that was written.
  REQUIRE(writer.write({.payload = pattern(8)}) == true);
  ring.control().read_index = kSmall;
  CHECK(writer.commit() == true);
}

TEST_CASE("attach declares pending_send_size and asks for no room", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain);
  ring.control().pending_send_size = 0x1000;
  OutgoingRing writer(ring.memory());
  REQUIRE(writer.attach());
  CHECK(ring.control().feature_bits == kFeaturePendingSendSize);
  CHECK(ring.control().pending_send_size == 0);
  CHECK(ring.control().interrupt_mask == 0);  // the consumer's
  CHECK_FALSE(writer.space_armed());
}

constexpr std::uint32_t kBadIndices[] = {0x3000,     0x3008, 0x5ff8, 0xfffffff8, 0xffffffff,
                                         0x80000000, 1,      4,      0x2fff};

TEST_CASE("the producer takes up a ring only at indices inside it", "[ringbuffer]") {
  for (const std::uint32_t bad : kBadIndices) {
    DYNAMIC_SECTION("index " << bad) {
      const TestRing ring(Shape::kPlain);
      ring.set_indices(bad, 0);
      CHECK(error_of(OutgoingRing(ring.memory()).attach()) == Errc::kRingCorrupt);
      ring.set_indices(0, bad);
      CHECK(error_of(OutgoingRing(ring.memory()).attach()) == Errc::kRingCorrupt);
    }
  }
}

TEST_CASE("a read_index that goes bad later is an error wherever it is needed", "[ringbuffer]") {
  for (const std::uint32_t bad : kBadIndices) {
    DYNAMIC_SECTION("index " << bad) {
      const TestRing ring(Shape::kMirrored);
      OutgoingRing writer(ring.memory());
      REQUIRE(writer.attach());
      const std::vector<std::byte> half = pattern(0x1800);
      REQUIRE(writer.write({.payload = half}) == true);
      ring.control().read_index = bad;
      CHECK(error_of(writer.write({.payload = half})) == Errc::kRingCorrupt);
      CHECK(error_of(writer.writable()) == Errc::kRingCorrupt);
      CHECK(error_of(writer.commit()) == Errc::kRingCorrupt);
      CHECK(error_of(writer.arm_space(0x100)) == Errc::kRingCorrupt);
    }
  }
}

TEST_CASE("what the guest writes into write_index is never read again", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain);
  OutgoingRing writer(ring.memory());
  REQUIRE(writer.attach());
  REQUIRE(writer.write({.payload = pattern(8)}) == true);
  ring.control().write_index = 0xfffffff0;
  REQUIRE(writer.commit() == true);
  CHECK(ring.control().write_index == kSmall);
}

TEST_CASE("8 bytes stay free, at every start", "[ringbuffer]") {
  for (const Shape shape : kAllShapes) {
    DYNAMIC_SECTION(name_of(shape)) {
      const TestRing ring(shape, 1);
      const std::vector<std::byte> rest = pattern(ring.size() - 8 - 2 * kSmall - 24);
      for (std::uint32_t start = 0; start < ring.size(); start += 8) {
        INFO("start " << start);
        ring.set_indices(start, start);
        OutgoingRing writer(ring.memory());
        REQUIRE(writer.attach());
        REQUIRE(writer.writable() == ring.size() - 8);
        REQUIRE(writer.write({.payload = pattern(8)}) == true);
        REQUIRE(writer.write({.payload = rest}) == true);
        REQUIRE(writer.writable() == kSmall);
        REQUIRE(writer.write({.payload = pattern(9)}) == false);
        REQUIRE(writer.write({.payload = pattern(8)}) == true);
        REQUIRE(writer.write({}) == false);
        REQUIRE(writer.writable() == 0u);
        REQUIRE(writer.commit());
        REQUIRE(ring.control().write_index == (start + ring.size() - 8) % ring.size());
        // Reading the first makes room for exactly as much.
        ring.control().read_index = (start + kSmall) % ring.size();
        REQUIRE(writer.write({.payload = pattern(8)}) == true);
        REQUIRE(writer.write({}) == false);
      }
    }
  }
}

TEST_CASE("a packet that no empty ring holds is refused", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain, 1);
  OutgoingRing writer(ring.memory());
  REQUIRE(writer.attach());
  CHECK(error_of(writer.write({.payload = pattern(ring.size() - 8 - 24 + 1)})) == Errc::kLimit);
  CHECK(writer.write({.payload = pattern(ring.size() - 8 - 24)}) == true);
  const TestRing large(Shape::kPlain, 256);  // 1 MiB: the descriptor's length field is the bound
  OutgoingRing large_writer(large.memory());
  REQUIRE(large_writer.attach());
  CHECK(error_of(large_writer.write({.payload = pattern(kMaxPacketSize - 16 + 1)})) == Errc::kLimit);
  CHECK(large_writer.write({.payload = pattern(kMaxPacketSize - 16)}) == true);
}

struct ArmCase {
  const char* rule;
  std::uint32_t bytes;
  std::uint32_t asked;  // pending_send_size
};
constexpr ArmCase kArmCases[] = {
    {"small packets wait for a quarter of the ring", 32, 0xc00},
    {"exactly a quarter", 0xc00, 0xc00},
    {"more than a quarter", 0xc08, 0xc08},
    {"rounded up to whole words", 0xc09, 0xc10},
    {"the whole ring", 0x2ff8, 0x2ff8},
};

TEST_CASE("a blocked producer asks for room that can come", "[ringbuffer]") {
  for (const ArmCase& c : kArmCases) {
    DYNAMIC_SECTION(c.rule) {
      const TestRing ring(Shape::kPlain);
      OutgoingRing writer(ring.memory());
      REQUIRE(writer.attach());
      REQUIRE(writer.write({.payload = pattern(ring.size() - 8 - 24)}) == true);
      REQUIRE(writer.commit());
      CHECK(writer.arm_space(c.bytes) == true);
      CHECK(writer.space_armed());
      CHECK(ring.control().pending_send_size == c.asked);
      writer.clear_space();
      CHECK_FALSE(writer.space_armed());
      CHECK(ring.control().pending_send_size == 0);
    }
  }
}

TEST_CASE("room that came meanwhile is used without waiting", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain);
  OutgoingRing writer(ring.memory());
  REQUIRE(writer.attach());
  REQUIRE(writer.write({.payload = pattern(ring.size() - 8 - 24)}) == true);
  REQUIRE(writer.commit());
  REQUIRE(writer.write({.payload = pattern(8)}) == false);
  ring.control().read_index = kSmall;
  CHECK(writer.arm_space(kSmall) == false);
  CHECK_FALSE(writer.space_armed());
  CHECK(ring.control().pending_send_size == 0);
  CHECK(writer.write({.payload = pattern(8)}) == true);
}

// The order that a device's loop has: it writes, is out of room, arms, and commits at its end.
TEST_CASE("arming publishes what waits, and the signal for that is not lost", "[ringbuffer]") {
  const TestRing ring(Shape::kPlain);
  OutgoingRing writer(ring.memory());
  IncomingRing reader(ring.memory());
  REQUIRE(writer.attach());
  REQUIRE(reader.attach());
  REQUIRE(reader.unmask());
  const std::vector<std::byte> most = pattern(ring.size() - 8 - 24);
  REQUIRE(writer.write({.payload = most}) == true);
  REQUIRE(writer.write({.payload = pattern(8)}) == false);
  REQUIRE(writer.arm_space(kSmall) == true);
  CHECK(ring.control().write_index == ring.size() - 8);
  CHECK(writer.commit() == true);
  CHECK(writer.commit() == false);
  take(reader);
  CHECK(reader.release());  // the consumer saw the whole of what was written, so it sees the room come
  CHECK(writer.write({.payload = pattern(8)}) == true);
}

}  // namespace
}  // namespace vmbusd::ring
