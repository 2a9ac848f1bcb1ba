#include "vmm/message_slots.h"

#include <array>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "tests/catch.h"

namespace vmbusd::vmm {

namespace {

constexpr std::uint32_t kSint = 2;
constexpr std::size_t kSlotSize = 256;

struct alignas(8) Page {
  std::array<std::byte, kMessagePageSize> bytes{};

  [[nodiscard]] MessageHeader header(std::uint32_t sint = kSint) const {
    MessageHeader header;
    std::memcpy(&header, bytes.data() + sint * kSlotSize, sizeof header);
    return header;
  }
  void set_type(std::uint32_t type, std::uint32_t sint = kSint) {
    std::memcpy(bytes.data() + sint * kSlotSize, &type, sizeof type);
  }
};

const std::vector<std::uint8_t> kPayload = {1, 2, 3};

}  // namespace

TEST_CASE("a free slot takes a message", "[vmm]") {
  Page page;
  MessageSlots slots;
  slots.set_page(page.bytes.data());
  CHECK(slots.page() == page.bytes.data());
  CHECK(slots.post(kSint, 1, kPayload));
  const MessageHeader header = page.header();
  CHECK(header.type == 1);
  CHECK(header.payload_size == 3);
  CHECK(header.flags == 0);
  CHECK(page.bytes[kSint * kSlotSize + 16] == std::byte{1});
  CHECK(page.bytes[kSint * kSlotSize + 18] == std::byte{3});
  CHECK(page.header(kSint - 1).type == 0);
  CHECK(page.header(kSint + 1).type == 0);
}

TEST_CASE("the largest message stays in its slot", "[vmm]") {
  Page page;
  MessageSlots slots;
  slots.set_page(page.bytes.data());
  const std::vector<std::uint8_t> payload(kMessagePayloadMax, 0xff);
  CHECK(slots.post(15, 1, payload));
  CHECK(page.header(15).payload_size == 240);
  CHECK(page.bytes.back() == std::byte{0xff});
  CHECK(slots.post(14, 1, payload));
  CHECK(page.header(15).type == 1);
}

TEST_CASE("a busy slot is left alone", "[vmm]") {
  Page page;
  MessageSlots slots;
  slots.set_page(page.bytes.data());
  page.set_type(7);
  CHECK_FALSE(slots.post(kSint, 1, kPayload));
  CHECK(page.header().type == 7);
  CHECK(page.header().flags == 0);
}

TEST_CASE("a message that must wait leaves the pending flag", "[vmm]") {
  Page page;
  MessageSlots slots;
  slots.set_page(page.bytes.data());
  page.set_type(7);
  CHECK_FALSE(slots.post_or_mark_pending(kSint, 1, kPayload));
  CHECK(page.header().type == 7);
  CHECK(page.header().flags == kMessagePending);
  // The guest frees the slot; the next message clears the flag.
  page.set_type(0);
  CHECK(slots.post(kSint, 1, kPayload));
  CHECK(page.header().flags == 0);
}

TEST_CASE("a pending flag of the guest's own making does no harm", "[vmm]") {
  Page page;
  MessageSlots slots;
  slots.set_page(page.bytes.data());
  page.bytes[kSint * kSlotSize + 5] = std::byte{0xff};
  CHECK(slots.post(kSint, 1, kPayload));
  CHECK(page.header().flags == 0);
}

TEST_CASE("without a page every message waits", "[vmm]") {
  MessageSlots slots;
  CHECK(slots.page() == nullptr);
  CHECK_FALSE(slots.post(kSint, 1, kPayload));
  CHECK_FALSE(slots.post_or_mark_pending(kSint, 1, kPayload));
}

TEST_CASE("no message and no end of message is lost between producer and guest", "[vmm]") {
  // The guest of message_slots.h on another thread; its EOM is an atomic counter that the producer waits on.
  // A lost notification hangs this test.
  constexpr std::uint32_t kMessages = 20'000;
  Page page;
  MessageSlots slots;
  slots.set_page(page.bytes.data());
  std::atomic<std::uint32_t> eom{0};
  std::byte* const slot = page.bytes.data() + kSint * kSlotSize;

  std::thread guest([&] {
    std::atomic_ref type(*reinterpret_cast<std::uint32_t*>(slot));
    std::atomic_ref flags(*reinterpret_cast<std::uint8_t*>(slot + 5));
    for (std::uint32_t expected = 0; expected < kMessages; ++expected) {
      while (type.load(std::memory_order_acquire) == 0) std::this_thread::yield();
      std::uint32_t payload;
      std::memcpy(&payload, slot + 16, sizeof payload);
      if (payload != expected) std::abort();
      type.store(0, std::memory_order_seq_cst);
      if ((flags.load(std::memory_order_seq_cst) & kMessagePending) != 0) {
        eom.fetch_add(1);
        eom.notify_one();
      }
    }
  });
  for (std::uint32_t i = 0; i < kMessages; ++i) {
    std::array<std::uint8_t, 4> payload;
    std::memcpy(payload.data(), &i, sizeof i);
    for (;;) {
      const std::uint32_t seen = eom.load();
      if (slots.post_or_mark_pending(kSint, 1, payload)) break;
      eom.wait(seen);
    }
  }
  guest.join();
  CHECK(page.header().type == 0);
}

}  // namespace vmbusd::vmm
