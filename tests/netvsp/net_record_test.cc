// What another worker process left of a NIC's channel, and what is made of it.
#include "netvsp/net_record.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "devices/gpadl_view.h"
#include "netvsp/receiver.h"
#include "netvsp/transmitter.h"
#include "tests/catch.h"
#include "tests/devices/test_memory.h"

namespace vmbusd::netvsp {
namespace {

// Both indices were published so often when the process died.
constexpr devices::PublicationCounts kCounts = {10, 20};
constexpr std::uint64_t kNever = ReceiveRecord::kNever;

// Eight sub-allocations of 2 KiB, of which the guest has, or has not, a packet from 1 on.
struct Left {
  Left() { guest.add_to(memory); }

  [[nodiscard]] Result<void> open(const ReceiveRecord& record) {
    records[1] = record;
    records[2].next = 3;
    vmbus::Gpadl gpadl{1, 1, {{4 * 4096, 0, {0, 1, 2, 3}}}};
    return receiver.open(BufferMap(*devices::GpadlView::make(memory, gpadl)), {2048, 8}, 0, 8, 0xcafe, false,
                         {records, &kCounts, true});
  }
  // Sub-allocations that frames are read into: the first of those that are free.
  [[nodiscard]] std::vector<std::uint32_t> armed() {
    std::vector<std::uint32_t> slots;
    std::vector<ReceiveBuffer*> buffers;
    while (ReceiveBuffer* const buffer = receiver.take_buffer()) {
      slots.push_back(buffer->slots[0]);
      buffers.push_back(buffer);
    }
    for (auto buffer = buffers.rbegin(); buffer != buffers.rend(); ++buffer) receiver.returned(**buffer);
    return slots;
  }

  devices::TestMemory guest{4};
  partition::GuestMemory memory;
  std::array<ReceiveRecord, 8> records{};
  QueueCounters counters;
  Receiver receiver{counters};
};

struct ReceiveCase {
  const char* rule;
  ReceiveRecord record;
  std::vector<std::uint32_t> armed;
};

TEST_CASE("sub-allocations that the guest has stay the guest's", "[netvsp][recovery]") {
  const ReceiveCase cases[] = {
      {"none was delivered", {0, 0, 0, 0}, {0, 1, 2, 3}},
      {"delivered", {20, kNever, 2, 2}, {0, 3, 4, 5}},
      {"written, and not delivered", {21, kNever, 2, 2}, {0, 1, 2, 3}},
      {"given back", {20, 10, 2, 2}, {0, 1, 2, 3}},
      {"given back, but the guest has its completion still", {20, 11, 2, 2}, {0, 3, 4, 5}},
  };
  for (const ReceiveCase& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      Left left;
      REQUIRE(left.open(c.record).has_value());
      CHECK(left.armed() == c.armed);
      left.receiver.close();
    }
  }
}

TEST_CASE("what the guest had is free once it gives it back", "[netvsp][recovery]") {
  const std::uint64_t read_before = GENERATE(kNever, std::uint64_t{11});
  Left left;
  REQUIRE(left.open({20, read_before, 2, 2}).has_value());
  left.receiver.completed(1);
  left.receiver.completed(1);  // once is enough
  CHECK(left.records[1].count == 2);
  CHECK(left.records[1].given_back == kCounts.releases + 1);
  left.receiver.published();
  CHECK(left.records[1].count == 0);
  left.receiver.close();
}

TEST_CASE("packets that cannot be with the guest are refused", "[netvsp][recovery]") {
  const ReceiveCase cases[] = {
      {"it goes on outside", {20, kNever, 8, 2}, {}},
      {"it comes back to itself", {20, kNever, 1, 2}, {}},
      {"it is longer than all", {20, kNever, 2, 0xffffffff}, {}},
  };
  for (const ReceiveCase& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      Left left;
      const Result<void> opened = left.open(c.record);
      REQUIRE_FALSE(opened.has_value());
      CHECK(opened.error().code == Errc::kProtocol);
    }
  }
}

TEST_CASE("completions that were owed are owed", "[netvsp][recovery]") {
  struct Case {
    const char* rule;
    TransmitRecord record;
    bool owed;
  };
  constexpr Case kCases[] = {
      {"nothing was taken", {0, 0, 0}, false},
      {"taken", {7, 10, TransmitRecord::kOwed}, true},
      {"read, and the guest has it still", {7, 11, TransmitRecord::kOwed}, false},
      {"completed", {7, 10, 20}, false},
      {"its completion was written, and not published", {7, 10, 21}, true},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      CHECK(c.record.owed(kCounts) == c.owed);
    }
  }
}

TEST_CASE("a completion is owed to those who asked for one", "[netvsp][recovery]") {
  const bool wanted = GENERATE(false, true);
  const devices::TestMemory guest{4};
  partition::GuestMemory memory;
  guest.add_to(memory);
  const vmbus::Gpadl gpadl{1, 1, {{2 * 4096, 0, {0, 1}}}};
  const BufferMap send_buffer(*devices::GpadlView::make(memory, gpadl));
  const ring::IncomingRing ring(
      ring::RingMemory::plain(reinterpret_cast<ring::ControlPage*>(memory.translate_writable(2 * 4096, 4096)),
                              memory.translate_writable(3 * 4096, 4096), 4096));

  std::array<TransmitRecord, kTransmitPackets> records{};
  QueueCounters counters;
  Transmitter transmitter(counters);
  transmitter.start(records, kCounts, false);
  ring::Packet packet{};
  packet.type = ring::PacketType::kInband;
  packet.flags = wanted ? ring::kFlagCompletionRequested : std::uint16_t{0};
  const NvspSendRndisPacket rndis = {NvspType::kSendRndisPacket, NvspChannelType::kData, 0, 64};
  REQUIRE(transmitter.begin(ring, packet, rndis, &send_buffer, memory).has_value());
  // The process dies when the ring has been released, with the packet half sent.
  const devices::PublicationCounts at_death = {kCounts.releases + 1, kCounts.commits};
  CHECK(std::count_if(records.begin(), records.end(), [&](const TransmitRecord& record) {
          return record.owed(at_death);
        }) == (wanted ? 1 : 0));
  transmitter.abandon();
}

}  // namespace
}  // namespace vmbusd::netvsp
