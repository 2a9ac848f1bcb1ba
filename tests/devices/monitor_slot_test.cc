#include "devices/monitor_slot.h"

#include <array>
#include <cstring>

#include "tests/catch.h"

namespace vmbusd::devices {
namespace {

using namespace std::chrono_literals;

struct Page {
  alignas(4096) std::array<std::byte, 4096> bytes{};
  // [reference: ring 8]
  [[nodiscard]] std::uint32_t word(std::size_t offset) const {
    std::uint32_t value = 0;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
  }
  void set_word(std::size_t offset, std::uint32_t value) {
    std::memcpy(bytes.data() + offset, &value, sizeof value);
  }
  void set_latency(std::size_t id, std::uint16_t value) {
    std::memcpy(bytes.data() + 0x240 + 2 * id, &value, sizeof value);
  }
};

TEST_CASE("a monitor slot stands in the page where the guest looks", "[devices]") {
  for (const std::uint8_t id : std::to_array<std::uint8_t>({0, 31, 32, 70, 127})) {
    Page page;
    MonitorSlot slot(page.bytes.data(), id, 0x2005);
    const std::size_t parameter = 0x440 + 8 * id;
    const std::size_t pending = 8 + 8 * (id / 32);
    slot.open();
    CHECK(page.word(0) == 1u << (id / 32));
    CHECK(page.word(parameter) == 0x2005);
    CHECK(page.word(parameter + 4) == 0);
    CHECK(slot.interval() == 100us);

    CHECK_FALSE(slot.take());
    page.set_word(pending, 0xffffffff);
    CHECK(slot.take());
    // The others are for the others.
    CHECK(page.word(pending) == ~(1u << (id % 32)));
    CHECK_FALSE(slot.take());

    page.set_word(pending, 0xffffffff);
    slot.close();
    CHECK(page.word(pending) == ~(1u << (id % 32)));
    CHECK(page.word(parameter) == 0);
  }
}

TEST_CASE("a guest chooses how often it is looked for, within bounds", "[devices]") {
  Page page;
  MonitorSlot slot(page.bytes.data(), 3, 0x2001);
  slot.open();
  page.set_latency(3, 500);
  CHECK(slot.interval() == 50us);  // as DPDK
  page.set_latency(3, 0);
  CHECK(slot.interval() == 10us);
  page.set_latency(3, 1);
  CHECK(slot.interval() == 10us);
  page.set_latency(3, 0xffff);
  CHECK(slot.interval() == 6553500ns);
}

}  // namespace
}  // namespace vmbusd::devices
