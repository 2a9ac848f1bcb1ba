#include "storvsp/stor_channel.h"

#include <array>
#include <cerrno>
#include <map>
#include <random>
#include <set>

#include "storvsp/null_disk.h"
#include "tests/catch.h"
#include "tests/storvsp/ram_disk.h"
#include "tests/storvsp/ram_lun.h"
#include "tests/storvsp/stor_guest.h"

namespace vmbusd::storvsp {
namespace {

using vstor::DataIn;
using vstor::Operation;
using vstor::SrbStatus;
using vstor::Status;

constexpr std::uint64_t kDiskBytes = 4u << 20;

// A controller with RAM disks at LUN 0 and 5.
struct Controller {
  Controller() {
    state.limits = {.max_transfer_bytes = 1u << 20, .max_sub_channels = 0};
    disk = add(0);
    other_disk = add(5);
  }
  RamDisk* add(std::size_t lun) {
    const LunOptions options = ram_lun_options(kDiskBytes);
    auto ram = std::make_unique<RamDisk>(options.geometry);
    RamDisk* const raw = ram.get();
    state.luns[lun].disk = std::move(ram);
    state.luns[lun].unit = std::make_unique<LogicalUnit>(options);
    return raw;
  }
  std::unique_ptr<devices::ChannelHandler> channel() {
    return std::make_unique<StorChannel>(state,
                                         [this](std::uint32_t count) { sub_channels_offered = count; });
  }

  ControllerState state;
  RamDisk* disk = nullptr;
  RamDisk* other_disk = nullptr;
  std::atomic<std::uint32_t> sub_channels_offered{0};
};

Bytes read10(std::uint32_t lba, std::uint16_t blocks) {
  return {0x28,
          0,
          static_cast<std::uint8_t>(lba >> 24),
          static_cast<std::uint8_t>(lba >> 16),
          static_cast<std::uint8_t>(lba >> 8),
          static_cast<std::uint8_t>(lba),
          0,
          static_cast<std::uint8_t>(blocks >> 8),
          static_cast<std::uint8_t>(blocks),
          0};
}
Bytes write10(std::uint32_t lba, std::uint16_t blocks) {
  Bytes cdb = read10(lba, blocks);
  cdb[0] = 0x2a;
  return cdb;
}

bool good(const Completion& completion) {
  return completion.type == ring::PacketType::kCompletion &&
         completion.packet.header.operation == Operation::kCompleteIo &&
         completion.packet.header.status == Status::kSuccess &&
         completion.packet.srb.srb_status == static_cast<std::uint8_t>(SrbStatus::kSuccess) &&
         completion.packet.srb.scsi_status == 0;
}
bool invalid_request(const Completion& completion) {
  return completion.packet.header.operation == Operation::kCompleteIo &&
         completion.packet.header.status == Status::kInvalidDeviceRequest &&
         completion.packet.srb.srb_status == static_cast<std::uint8_t>(SrbStatus::kInvalidRequest) &&
         completion.packet.srb.scsi_status == 2 && completion.packet.srb.data_transfer_length == 0;
}

void fill_random(std::span<std::byte> bytes, std::uint32_t seed) {
  std::mt19937 random(seed);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
}

TEST_CASE("a channel negotiates and serves a disk", "[storvsp]") {
  for (const std::uint16_t version : {vstor::kVersionWin8, vstor::kVersionWin81, vstor::kVersionWin10}) {
    DYNAMIC_SECTION("version " << version) {
      Controller controller;
      StorGuest guest(controller.channel());
      CHECK(controller.state.ready_version == 0);
      guest.negotiate(version);
      CHECK(controller.state.ready_version == version);
      fill_random(controller.disk->medium, 1);
      const Completion completion = guest.command(read10(8, 8), DataIn::kRead, 4096);
      CHECK(good(completion));
      CHECK(completion.payload_size == 64);
      CHECK(completion.packet.srb.data_transfer_length == 4096);
      CHECK(std::memcmp(guest.data(), controller.disk->medium.data() + 4096, 4096) == 0);
    }
  }
}

TEST_CASE("old guests use packets of 48 bytes", "[storvsp]") {
  for (const std::uint16_t version : {vstor::kVersion2008, vstor::kVersionWin7}) {
    DYNAMIC_SECTION("version " << version) {
      Controller controller;
      StorGuest guest(controller.channel());
      guest.negotiate(version);
      const vstor::SrbPacket packet = StorGuest::srb(read10(0, 1), DataIn::kRead, 512);
      const Completion completion = guest.call(wire_bytes(packet).first(48), {StorGuest::range(512)});
      CHECK(good(completion));
      CHECK(completion.payload_size == 48);
    }
  }
}

TEST_CASE("the answer is the request with its outcome", "[storvsp]") {
  Controller controller;
  StorGuest guest(controller.channel());
  guest.negotiate();
  vstor::SrbPacket expected = StorGuest::srb(read10(0, 1), DataIn::kRead, 1024);
  expected.header = {Operation::kCompleteIo, 0, Status::kSuccess};
  expected.srb.srb_status = 1;
  expected.srb.sense_info_length = 0;
  expected.srb.data_transfer_length = 512;
  const Completion completion = guest.command(read10(0, 1), DataIn::kRead, 1024);
  CHECK(std::memcmp(&completion.packet, &expected, sizeof expected) == 0);
}

TEST_CASE("worked example: a refused write to a read-only disk", "[storvsp]") {
  Controller controller;
  LunOptions options = ram_lun_options(kDiskBytes);
  options.read_only = true;
  controller.state.luns[0].unit = std::make_unique<LogicalUnit>(options);
  StorGuest guest(controller.channel());
  guest.negotiate();
  const Completion completion = guest.command(write10(0, 1), DataIn::kWrite, 512);
  CHECK(completion.packet.header.operation == Operation::kCompleteIo);
  CHECK(completion.packet.header.status == Status::kIoDeviceError);
  CHECK(completion.packet.srb.srb_status == 0x84);
  CHECK(completion.packet.srb.scsi_status == 0x02);
  CHECK(completion.packet.srb.sense_info_length == 18);
  CHECK(completion.packet.srb.data_transfer_length == 0);
  constexpr std::array<std::uint8_t, 20> kSense = {0x70, 0, 7, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0, 0x27};
  CHECK(completion.packet.srb.cdb_or_sense == kSense);
}

TEST_CASE("sense is cut to the room that the guest has", "[storvsp]") {
  Controller controller;
  StorGuest guest(controller.channel());
  guest.negotiate();
  vstor::SrbPacket packet = StorGuest::srb({0xff, 0, 0, 0, 0, 0}, DataIn::kUnknown, 0);
  SECTION("some") {
    packet.srb.sense_info_length = 8;
    const Completion completion = guest.call(wire_bytes(packet));
    CHECK(completion.packet.srb.srb_status == 0x84);
    CHECK(completion.packet.srb.sense_info_length == 8);
    CHECK(completion.packet.srb.cdb_or_sense[12] == 0);
  }
  SECTION("none") {
    packet.srb.sense_info_length = 0;
    const Completion completion = guest.call(wire_bytes(packet));
    CHECK(completion.packet.srb.srb_status == 0x04);
    CHECK(completion.packet.srb.scsi_status == 0x02);
    CHECK(completion.packet.srb.sense_info_length == 0);
  }
  SECTION("more than there can be") {
    packet.srb.sense_info_length = 255;
    CHECK(guest.call(wire_bytes(packet)).packet.srb.sense_info_length == 18);
  }
}

TEST_CASE("absent LUNs and targets", "[storvsp]") {
  Controller controller;
  StorGuest guest(controller.channel());
  guest.negotiate();
  struct Case {
    const char* rule;
    std::uint8_t path, target, lun;
  };
  for (const Case& c : {Case{"LUN 1", 0, 0, 1}, Case{"LUN 63", 0, 0, 63}, Case{"LUN 64", 0, 0, 64},
                        Case{"LUN 255", 0, 0, 255}, Case{"target 1", 0, 1, 0}, Case{"path 7", 7, 0, 0}}) {
    DYNAMIC_SECTION(c.rule) {
      const auto at = [&](vstor::SrbPacket packet) {
        packet.srb.path_id = c.path;
        packet.srb.target_id = c.target;
        packet.srb.lun = c.lun;
        return packet;
      };
      const vstor::SrbPacket inquiry = at(StorGuest::srb({0x12, 0, 0, 0, 36, 0}, DataIn::kRead, 36));
      const Completion inquired = guest.call(wire_bytes(inquiry), {StorGuest::range(36)});
      CHECK(good(inquired));
      CHECK(inquired.packet.srb.data_transfer_length == 36);
      CHECK(guest.data()[0] == std::byte{0x7f});

      const vstor::SrbPacket ready = at(StorGuest::srb({0, 0, 0, 0, 0, 0}, DataIn::kUnknown, 0));
      const Completion asked = guest.call(wire_bytes(ready));
      CHECK(asked.packet.header.status == Status::kNoSuchDevice);
      CHECK(asked.packet.srb.srb_status == static_cast<std::uint8_t>(SrbStatus::kInvalidLun));
      CHECK(asked.packet.srb.scsi_status == 2);

      const vstor::SrbPacket report =
          at(StorGuest::srb({0xa0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0}, DataIn::kRead, 4096));
      const Completion reported = guest.call(wire_bytes(report), {StorGuest::range(4096)});
      CHECK(good(reported));
      CHECK(reported.packet.srb.data_transfer_length == (c.path == 0 && c.target == 0 ? 24 : 8));
    }
  }
}

// What a driver gets wrong about the buffer of a READ of one block.
struct BufferCase {
  const char* rule;
  std::uint32_t transfer_length;
  std::vector<GuestRange> ranges;
  bool good;
};

TEST_CASE("buffers that cannot be", "[storvsp]") {
  constexpr std::uint64_t kPage = StorGuest::kDataPage;
  std::vector<GuestRange> many;
  for (int i = 0; i < 1000; ++i) many.push_back({8, 0, {kPage + 2 * static_cast<std::uint64_t>(i % 2)}});
  const BufferCase cases[] = {
      {"as it should be", 512, {{512, 0, {kPage}}}, true},
      {"across pages", 512, {{512, 4000, {kPage, kPage + 1}}}, true},
      {"pages too many", 512, {{512, 0, {kPage, kPage + 1, kPage + 2}}}, true},
      {"several ranges", 512, {{256, 100, {kPage}}, {256, 0, {kPage + 7}}}, true},
      {"the same page twice", 512, {{256, 0, {kPage}}, {256, 0, {kPage}}}, true},
      {"longer than the transfer", 512, {{8192, 0, {kPage, kPage + 1}}}, true},
      {"shorter than the transfer", 1024, {{512, 0, {kPage}}}, false},
      {"no ranges", 512, {}, false},
      {"an empty range", 512, {{0, 0, {kPage}}, {512, 0, {kPage}}}, false},
      {"offset beyond the page", 512, {{512, 4096, {kPage, kPage + 1}}}, false},
      {"fewer pages than bytes", 512, {{512, 4000, {kPage}}}, false},
      {"a page outside memory", 512, {{512, 0, {StorGuest::kPages}}}, false},
      {"the second page outside memory", 512, {{512, 4000, {kPage, StorGuest::kPages}}}, false},
      {"the last page that a number can tell", 512, {{512, 0, {~std::uint64_t{0}}}}, false},
      {"a page whose address wraps", 512, {{512, 0, {std::uint64_t{1} << 52}}}, false},
      {"more bytes than a transfer may have", 512, {{0xffffffff, 0, {kPage}}}, false},
      {"pieces without end", 8000, many, false},
  };
  for (const BufferCase& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      Controller controller;
      StorGuest guest(controller.channel());
      guest.negotiate();
      const vstor::SrbPacket packet = StorGuest::srb(read10(0, 1), DataIn::kRead, c.transfer_length);
      const Completion completion = guest.call(wire_bytes(packet), c.ranges);
      CHECK(good(completion) == c.good);
      CHECK(invalid_request(completion) == !c.good);
      CHECK(controller.disk->operations == (c.good ? 1 : 0));
      // The channel lives on.
      CHECK(good(guest.command({0, 0, 0, 0, 0, 0})));
    }
  }
}

TEST_CASE("read-only guest memory takes no data", "[storvsp]") {
  Controller controller;
  StorGuest guest(controller.channel());
  guest.negotiate();
  // A second region behind the first, which the host may not write.
  const devices::TestMemory rom(4);
  (void)guest.on_worker([&] {
    return guest.partition.memory().add(StorGuest::kPages * 4096, rom.size(), rom.fd(), 0, false).has_value();
  });
  const std::vector<GuestRange> in_rom = {{512, 0, {StorGuest::kPages}}};
  const vstor::SrbPacket read = StorGuest::srb(read10(0, 1), DataIn::kRead, 512);
  CHECK(invalid_request(guest.call(wire_bytes(read), in_rom)));
  const vstor::SrbPacket write = StorGuest::srb(write10(0, 1), DataIn::kWrite, 512);
  CHECK(good(guest.call(wire_bytes(write), in_rom)));
  // Across the regions' border.
  const vstor::SrbPacket across = StorGuest::srb(write10(0, 16), DataIn::kWrite, 8192);
  CHECK(good(guest.call(wire_bytes(across), {{8192, 0, {StorGuest::kPages - 1, StorGuest::kPages}}})));
}

TEST_CASE("malformed SRBs", "[storvsp]") {
  Controller controller;
  StorGuest guest(controller.channel());
  guest.negotiate();
  SECTION("a CDB longer than 16 bytes") {
    vstor::SrbPacket packet = StorGuest::srb({0, 0, 0, 0, 0, 0}, DataIn::kUnknown, 0);
    packet.srb.cdb_length = 17;
    CHECK(invalid_request(guest.call(wire_bytes(packet))));
  }
  SECTION("too short for the version") {
    const vstor::SrbPacket packet = StorGuest::srb({0, 0, 0, 0, 0, 0}, DataIn::kUnknown, 0);
    const Completion completion = guest.call(wire_bytes(packet).first(48));
    CHECK(completion.packet.header.status == Status::kInvalidParameter);
    CHECK(completion.payload_size == 64);
  }
  SECTION("empty") {
    const Completion completion = guest.call({});
    CHECK(completion.packet.header.status == Status::kInvalidParameter);
  }
  SECTION("direction by flags where data_in does not tell") {
    vstor::SrbPacket packet = StorGuest::srb(read10(0, 1), DataIn::kUnknown, 512);
    packet.srb.srb_flags = vstor::kSrbFlagDataIn;
    CHECK(good(guest.call(wire_bytes(packet), {StorGuest::range(512)})));
    packet.srb.srb_flags = vstor::kSrbFlagDataOut;
    CHECK(guest.call(wire_bytes(packet), {StorGuest::range(512)}).packet.srb.srb_status == 0x84);
    packet.srb.srb_flags = 0;
    CHECK(guest.call(wire_bytes(packet), {StorGuest::range(512)}).packet.srb.srb_status == 0x84);
  }
  CHECK(good(guest.command({0, 0, 0, 0, 0, 0})));
}

TEST_CASE("without the completion flag nothing is answered", "[storvsp]") {
  Controller controller;
  StorGuest guest(controller.channel());
  guest.negotiate();
  const vstor::SrbPacket packet = StorGuest::srb(write10(0, 1), DataIn::kWrite, 512);
  guest.put(77, wire_bytes(packet), {StorGuest::range(512)}, false);
  guest.send();
  const Completion completion = guest.command({0, 0, 0, 0, 0, 0});
  CHECK(completion.id != 77);
  CHECK(controller.disk->operations == 1);
}

TEST_CASE("answers of the guest's that nobody asked for are dropped", "[storvsp]") {
  Controller controller;
  StorGuest guest(controller.channel());
  guest.negotiate();
  guest.put_raw({.type = ring::PacketType::kCompletion, .transaction_id = 5});
  guest.send();
  CHECK(good(guest.command({0, 0, 0, 0, 0, 0})));
}

TEST_CASE("a corrupt ring stops the channel, and it still closes", "[storvsp]") {
  Controller controller;
  controller.disk->hold = true;
  StorGuest guest(controller.channel());
  guest.negotiate();
  const vstor::SrbPacket packet = StorGuest::srb(read10(0, 1), DataIn::kRead, 512);
  guest.put(1, wire_bytes(packet), {StorGuest::range(512)});
  guest.send();
  while (controller.disk->operations == 0) std::this_thread::yield();
  reinterpret_cast<ring::ControlPage*>(guest.memory.page(1))->write_index = 0xfffffff0;
  guest.ring_doorbell();
  while (controller.disk->cancels < 1) std::this_thread::yield();
  CHECK(guest.on_worker([&] { return guest.channel->stopping() && guest.channel->in_flight() == 0; }));
  guest.stop();
}

TEST_CASE("host errors reach the guest as sense", "[storvsp]") {
  Controller controller;
  StorGuest guest(controller.channel());
  guest.negotiate();
  controller.disk->error = ENOSPC;
  const Completion failed = guest.command(write10(0, 1), DataIn::kWrite, 512);
  CHECK(failed.packet.srb.srb_status == 0x84);
  CHECK(failed.packet.srb.cdb_or_sense[2] == 7);
  CHECK(failed.packet.srb.cdb_or_sense[12] == 0x27);
  CHECK(failed.packet.srb.cdb_or_sense[13] == 0x07);
  // The other disk goes on, and this one does when the error is over.
  CHECK(good(guest.command(write10(0, 1), DataIn::kWrite, 512, 5)));
  controller.disk->error = 0;
  CHECK(good(guest.command(write10(0, 1), DataIn::kWrite, 512)));
}

TEST_CASE("a held disk does not hold up another", "[storvsp]") {
  Controller controller;
  controller.disk->hold = true;
  StorGuest guest(controller.channel());
  guest.negotiate();
  const vstor::SrbPacket slow = StorGuest::srb(read10(0, 1), DataIn::kRead, 512);
  guest.put(1000, wire_bytes(slow), {StorGuest::range(512)});
  guest.send();
  CHECK(good(guest.command(read10(0, 1), DataIn::kRead, 512, 5)));
  (void)guest.on_worker([&] { return controller.disk->release_held(), 0; });
  const std::optional<Completion> completion = guest.receive();
  REQUIRE(completion.has_value());
  CHECK(completion->id == 1000);
}

struct ResetCase {
  const char* rule;
  Operation operation;
  std::uint8_t lun;
  bool stubborn;                         // the disk cannot abort what it has begun
  std::vector<std::uint64_t> completed;  // before the disk moves, of 1 (LUN 0), the reset 2, and 3 (LUN 0)
  std::vector<std::uint64_t> later;
  std::uint16_t attention;  // that 3 gets, 0: none
};
const ResetCase kResetCases[] = {
    {"bus", Operation::kResetBus, 0, false, {1, 2, 3}, {}, 0x2902},
    {"adapter", Operation::kResetAdapter, 0, false, {1, 2, 3}, {}, 0x2902},
    {"this LUN", Operation::kResetLun, 0, false, {1, 2, 3}, {}, 0x2903},
    {"another LUN", Operation::kResetLun, 5, false, {2}, {3, 1}, 0},
    {"a LUN that is not there", Operation::kResetLun, 200, false, {2}, {3, 1}, 0},
    {"bus, and the disk has begun", Operation::kResetBus, 0, true, {}, {3, 1, 2}, 0},
};

// What TEST UNIT READY reports, as ASC and ASCQ; 0: nothing.
int attention_of(StorGuest& guest, std::uint8_t lun) {
  const Completion completion =
      guest.call(wire_bytes(StorGuest::srb({0, 0, 0, 0, 0, 0}, DataIn::kUnknown, 0, lun)));
  const auto& sense = completion.packet.srb.cdb_or_sense;
  return good(completion) ? 0 : sense[12] << 8 | sense[13];
}

bool aborted(const Completion& completion) {
  return completion.packet.header.status == Status::kCancelled &&
         completion.packet.srb.srb_status == static_cast<std::uint8_t>(SrbStatus::kAborted) &&
         completion.packet.srb.scsi_status == 2 && completion.packet.srb.data_transfer_length == 0;
}

vstor::SrbPacket reset_packet(Operation operation, std::uint8_t lun = 0) {
  vstor::SrbPacket packet{};
  packet.header = {operation, 1, Status::kSuccess};
  packet.srb.lun = lun;
  return packet;
}

TEST_CASE("a reset aborts what came before it, and is answered after that", "[storvsp]") {
  for (const ResetCase& c : kResetCases) {
    DYNAMIC_SECTION(c.rule) {
      Controller controller;
      controller.disk->hold = true;
      controller.disk->stubborn = c.stubborn;
      StorGuest guest(controller.channel());
      guest.negotiate();
      const vstor::SrbPacket slow = StorGuest::srb(read10(0, 1), DataIn::kRead, 512);
      guest.put(1, wire_bytes(slow), {StorGuest::range(512)});
      guest.put(2, wire_bytes(reset_packet(c.operation, c.lun)));
      guest.put(3, wire_bytes(slow), {StorGuest::range(512)});
      guest.send();
      for (const std::uint64_t id : c.completed) {
        const std::optional<Completion> completion = guest.receive();
        REQUIRE(completion.has_value());
        CHECK(completion->id == id);
        if (id == 1) CHECK(aborted(*completion));
        if (id == 2) CHECK(good(*completion));
        if (id == 3) {
          const auto& sense = completion->packet.srb.cdb_or_sense;
          CHECK(sense[2] == 6);
          CHECK((sense[12] << 8 | sense[13]) == c.attention);
        }
      }
      const int operations = c.later.empty() ? 1 : 2;
      while (controller.disk->operations < operations) std::this_thread::yield();
      CHECK(!guest.try_receive().has_value());
      // The disk goes newest first: 3, then 1 where it is held still, and the reset after it.
      (void)guest.on_worker([&] { return controller.disk->release_held(), 0; });
      for (const std::uint64_t id : c.later) {
        const std::optional<Completion> completion = guest.receive();
        REQUIRE(completion.has_value());
        CHECK(completion->id == id);
        CHECK(good(*completion));
      }
    }
  }
}

TEST_CASE("a reset is told by the LUNs that it was for, and by no other", "[storvsp]") {
  struct Case {
    const char* rule;
    Operation operation;
    std::uint8_t lun;
    int first;
    int second;
  };
  constexpr Case kCases[] = {
      {"the first LUN", Operation::kResetLun, 0, 0x2903, 0},
      {"the second LUN", Operation::kResetLun, 5, 0, 0x2903},
      {"the bus", Operation::kResetBus, 0, 0x2902, 0x2902},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Controller controller;
      StorGuest guest(controller.channel());
      guest.negotiate();
      while (attention_of(guest, 0) != 0 || attention_of(guest, 5) != 0) continue;
      CHECK(good(guest.call(wire_bytes(reset_packet(c.operation, c.lun)))));
      CHECK(attention_of(guest, 0) == c.first);
      CHECK(attention_of(guest, 5) == c.second);
    }
  }
}

TEST_CASE("closing cancels what waits and answers nothing", "[storvsp]") {
  Controller controller;
  controller.disk->hold = true;
  controller.disk->stubborn = true;
  StorGuest guest(controller.channel());
  guest.negotiate();
  const vstor::SrbPacket packet = StorGuest::srb(read10(0, 1), DataIn::kRead, 512);
  for (std::uint64_t id = 1; id <= 5; ++id) guest.put(id, wire_bytes(packet), {StorGuest::range(512)});
  guest.put(6, wire_bytes(reset_packet(Operation::kResetBus)));
  guest.send();
  while (controller.disk->operations < 5) std::this_thread::yield();
  guest.stop();
  CHECK(controller.disk->cancels == 1);
  CHECK(!guest.try_receive().has_value());
}

// Lets the disk complete what it holds; each of the commands is answered, once.
void release_and_receive(Controller& controller, StorGuest& guest, std::set<std::uint64_t> expected) {
  controller.disk->hold = false;
  (void)guest.on_worker([&] { return controller.disk->release_held(), 0; });
  while (!expected.empty()) {
    const std::optional<Completion> completion = guest.receive();
    REQUIRE(completion.has_value());
    CHECK(expected.erase(completion->id) == 1);
  }
}

TEST_CASE("more requests than the pool holds wait in the ring", "[storvsp]") {
  Controller controller;
  controller.disk->hold = true;
  StorGuest guest(controller.channel());
  guest.negotiate();
  // 60 KiB of ring: pool of 588 / 512 at most; packets of 120 bytes fill it with 512 and some more behind.
  const vstor::SrbPacket packet = StorGuest::srb(read10(0, 1), DataIn::kRead, 512);
  std::set<std::uint64_t> expected;
  std::uint64_t id = 0;
  const auto put = [&](int count) {
    for (int i = 0; i < count; ++i) {
      expected.insert(++id);
      guest.put(id, wire_bytes(packet), {StorGuest::range(512)});
    }
    guest.send();
  };
  put(400);
  while (controller.disk->operations < 400) std::this_thread::yield();
  put(300);
  while (controller.disk->operations < 512) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(controller.disk->operations == 512);
  release_and_receive(controller, guest, std::move(expected));
}

TEST_CASE("more bytes than a channel may move at once wait in the ring", "[storvsp]") {
  Controller controller;
  controller.disk->hold = true;
  StorGuest guest(controller.channel());
  guest.negotiate();
  // 64 of the largest transfers; 60 KiB of ring have room for 24 of them, of 2.2 KiB each.
  constexpr std::uint32_t kTransfer = 1u << 20;
  constexpr int kAtOnce = 64;
  GuestRange range{kTransfer, 0, {}};
  for (std::uint64_t i = 0; i < kTransfer / 4096; ++i) range.pages.push_back(StorGuest::kDataPage + i);
  const vstor::SrbPacket packet = StorGuest::srb(read10(0, kTransfer / 512), DataIn::kRead, kTransfer);
  std::set<std::uint64_t> expected;
  for (std::uint64_t id = 1; id <= kAtOnce + 16; ++id) {
    expected.insert(id);
    guest.put(id, wire_bytes(packet), {range});
    guest.send();
    while (id <= kAtOnce && controller.disk->operations < static_cast<int>(id)) std::this_thread::yield();
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(controller.disk->operations == kAtOnce);
  release_and_receive(controller, guest, std::move(expected));
}

TEST_CASE("a guest that does not read its answers gets them when it does", "[storvsp]") {
  Controller controller;
  // One data page of answers: 46 of 88 bytes.
  StorGuest guest(controller.channel(), {.incoming_pages = 16, .outgoing_pages = 2, .sub_channel_index = 0});
  guest.negotiate();
  const vstor::SrbPacket packet = StorGuest::srb({0, 0, 0, 0, 0, 0}, DataIn::kUnknown, 0);
  for (std::uint64_t id = 1; id <= 300; ++id) guest.put(id, wire_bytes(packet));
  guest.send();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  for (std::uint64_t id = 1; id <= 300; ++id) {
    const std::optional<Completion> completion = guest.receive();
    REQUIRE(completion.has_value());
    CHECK(completion->id == id);
  }
}

TEST_CASE("a guest that never reads its answers can still close", "[storvsp]") {
  Controller controller;
  StorGuest guest(controller.channel(), {.incoming_pages = 16, .outgoing_pages = 2, .sub_channel_index = 0});
  guest.negotiate();
  const vstor::SrbPacket packet = StorGuest::srb({0, 0, 0, 0, 0, 0}, DataIn::kUnknown, 0);
  for (std::uint64_t id = 1; id <= 300; ++id) guest.put(id, wire_bytes(packet));
  guest.send();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  guest.stop();
}

TEST_CASE("transfers of the largest size, scattered", "[storvsp]") {
  Controller controller;
  StorGuest guest(controller.channel());
  guest.negotiate();
  fill_random(controller.disk->medium, 2);
  // 256 pages, every second one, last to first: no two are neighbours.
  GuestRange range{1u << 20, 0, {}};
  for (std::uint64_t i = 0; i < 256; ++i) range.pages.push_back(StorGuest::kDataPage + 2 * (255 - i));
  const vstor::SrbPacket read = StorGuest::srb(read10(16, 2048), DataIn::kRead, 1u << 20);
  const Completion completion = guest.call(wire_bytes(read), {range});
  CHECK(good(completion));
  CHECK(completion.packet.srb.data_transfer_length == 1u << 20);
  for (std::uint64_t i = 0; i < 256; ++i) {
    CHECK(std::memcmp(guest.memory.page(range.pages[i]), controller.disk->medium.data() + 16 * 512 + i * 4096,
                      4096) == 0);
  }
  const vstor::SrbPacket write = StorGuest::srb(write10(4096, 2048), DataIn::kWrite, 1u << 20);
  CHECK(good(guest.call(wire_bytes(write), {range})));
  CHECK(std::memcmp(controller.disk->medium.data() + 4096 * 512, controller.disk->medium.data() + 16 * 512,
                    1u << 20) == 0);
}

// A second channel of the controller, on a worker of its own.
struct SubChannel : StorGuest {
  explicit SubChannel(Controller& controller, std::shared_ptr<devices::RecoveryRegion> region = nullptr,
                      bool recovered = false)
      : StorGuest(std::make_unique<StorChannel>(controller.state, controller.state.ready_version.load()),
                  {.incoming_pages = 4,
                   .outgoing_pages = 4,
                   .sub_channel_index = 1,
                   .region = std::move(region),
                   .recovered = recovered}) {}
};

TEST_CASE("sub-channels serve at once and are asked for on the primary", "[storvsp]") {
  Controller controller;
  controller.state.limits.max_sub_channels = 2;
  StorGuest primary(controller.channel());
  primary.negotiate();
  CHECK(primary.control(Operation::kCreateSubChannels, {2}).packet.header.status == Status::kSuccess);
  CHECK(primary.on_worker([&] { return controller.sub_channels_offered.load(); }) == 2);
  SubChannel sub_channel(controller);
  CHECK(good(sub_channel.command(read10(0, 1), DataIn::kRead, 512)));
  CHECK(sub_channel.control(Operation::kBeginInitialization).packet.header.status ==
        Status::kInvalidDeviceState);
}

TEST_CASE("a reset reaches the requests of every channel", "[storvsp]") {
  Controller controller;
  StorGuest primary(controller.channel());
  primary.negotiate();
  SubChannel sub_channel(controller);
  controller.disk->hold = true;
  const vstor::SrbPacket slow = StorGuest::srb(write10(0, 1), DataIn::kWrite, 512);
  sub_channel.put(7, wire_bytes(slow), {StorGuest::range(512)});
  sub_channel.send();
  while (controller.disk->operations < 1) std::this_thread::yield();

  SECTION("and aborts them") {
    CHECK(good(primary.call(wire_bytes(reset_packet(Operation::kResetBus)))));
    // Nothing more can reach the medium: the other channel's request is over.
    CHECK(sub_channel.on_worker([&] { return sub_channel.channel->in_flight(); }) == 0);
    const std::optional<Completion> completion = sub_channel.receive();
    REQUIRE(completion.has_value());
    CHECK(completion->id == 7);
    CHECK(aborted(*completion));
  }
  SECTION("and waits for those that cannot be aborted") {
    controller.disk->stubborn = true;
    primary.put(1, wire_bytes(reset_packet(Operation::kResetBus)));
    primary.send();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(!primary.try_receive().has_value());
    (void)sub_channel.on_worker([&] { return controller.disk->release_held(), 0; });
    CHECK(good(primary.receive().value()));
    CHECK(good(sub_channel.receive().value()));
  }
  SECTION("also those of a channel that closes meanwhile") {
    primary.put(1, wire_bytes(reset_packet(Operation::kResetLun)));
    primary.send();
    sub_channel.stop();
    CHECK(good(primary.receive().value()));
  }
  SECTION("and is forgotten where its channel closes first") {
    controller.disk->stubborn = true;
    primary.put(1, wire_bytes(reset_packet(Operation::kResetBus)));
    primary.send();
    while (primary.on_worker([&] { return primary.channel->in_flight(); }) == 0) std::this_thread::yield();
    std::thread closer([&] { primary.stop(); });
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    (void)sub_channel.on_worker([&] { return controller.disk->release_held(), 0; });
    closer.join();
    CHECK(!primary.try_receive().has_value());
    CHECK(good(sub_channel.receive().value()));
  }
}

// A channel's region as it stands now, for one whose rings are new.
std::shared_ptr<devices::RecoveryRegion> left_by(StorGuest& guest) {
  auto left = StorGuest::new_region();
  guest.on_worker([&] {
    const std::span<std::byte> from = guest.channel->shared_region()->bytes();
    std::copy(from.begin(), from.begin() + (1 << 20), left->bytes().begin());
  });
  constexpr std::size_t kIndices = sizeof(devices::PublicationCounts);  // behind them
  std::fill_n(left->bytes().begin() + kIndices, 4 * sizeof(std::uint32_t), std::byte{0});
  return left;
}

TEST_CASE("what came before a reset is not done after it, though the process dies in between",
          "[storvsp][recovery]") {
  Controller died;
  StorGuest primary(died.channel());
  primary.negotiate();
  SubChannel sub_channel(died);
  died.disk->hold = died.disk->stubborn = true;
  const vstor::SrbPacket write = StorGuest::srb(write10(0, 1), DataIn::kWrite, 512);
  sub_channel.put(7, wire_bytes(write), {StorGuest::range(512)});
  sub_channel.send();
  while (died.disk->operations < 1) std::this_thread::yield();
  primary.put(1, wire_bytes(reset_packet(Operation::kResetLun)));
  primary.send();
  while (primary.on_worker([&] { return primary.channel->in_flight(); }) == 0) std::this_thread::yield();
  const auto primary_left = left_by(primary);
  const auto sub_channel_left = left_by(sub_channel);
  (void)sub_channel.on_worker([&] { return died.disk->release_held(), 0; });

  Controller controller;
  StorGuest next_primary(controller.channel(), {.region = primary_left, .recovered = true});
  const std::optional<Completion> reset = next_primary.receive();
  REQUIRE(reset.has_value());
  CHECK(reset->id == 1);
  CHECK(good(*reset));
  SubChannel next_sub_channel(controller, sub_channel_left, true);
  const std::optional<Completion> completion = next_sub_channel.receive();
  REQUIRE(completion.has_value());
  CHECK(completion->id == 7);
  CHECK(aborted(*completion));
  CHECK(controller.disk->operations == 0);
  // The next reset is a reset like any other, and so is what comes after it.
  CHECK(good(next_primary.call(wire_bytes(reset_packet(Operation::kResetLun)))));
}

// Commands of several operations.

Bytes compare_and_write(std::uint32_t lba) {
  Bytes cdb(16);
  cdb[0] = 0x89;
  cdb[8] = static_cast<std::uint8_t>(lba >> 8);
  cdb[9] = static_cast<std::uint8_t>(lba);
  cdb[13] = 1;
  return cdb;
}
Bytes verify16(std::uint32_t blocks) {
  Bytes cdb(16);
  cdb[0] = 0x8f;
  for (std::size_t i = 0; i < 4; ++i) cdb[10 + i] = static_cast<std::uint8_t>(blocks >> (24 - 8 * i));
  return cdb;
}

TEST_CASE("a command of several operations completes once", "[storvsp]") {
  Controller controller;
  StorGuest guest(controller.channel());
  guest.negotiate();
  fill_random(controller.disk->medium, 3);
  std::memcpy(guest.data(), controller.disk->medium.data() + 512, 512);
  std::memset(guest.data() + 512, 0x42, 512);
  const Completion swapped = guest.command(compare_and_write(1), DataIn::kWrite, 1024);
  CHECK(good(swapped));
  CHECK(swapped.packet.srb.data_transfer_length == 1024);
  CHECK(controller.disk->medium[512] == std::byte{0x42});
  const Completion differs = guest.command(compare_and_write(1), DataIn::kWrite, 1024);
  CHECK(differs.packet.srb.srb_status == 0x84);
  CHECK(differs.packet.srb.cdb_or_sense[2] == 0xe);
  // 4 MiB in 64 operations.
  CHECK(good(guest.command(verify16(kDiskBytes / 512))));
  controller.disk->error = EIO;
  CHECK(guest.command(verify16(1)).packet.srb.cdb_or_sense[2] == 3);
}

TEST_CASE("a job that never waits lets others have their turn", "[storvsp]") {
  Controller controller;
  // 1 GiB in 16384 operations that end at once.
  const DiskGeometry geometry{std::uint64_t{1} << 30, 512, 4096, false, false, false};
  LunOptions options = ram_lun_options(geometry.size_bytes);
  controller.state.luns[1].disk = std::make_unique<NullDisk>(geometry);
  controller.state.luns[1].unit = std::make_unique<LogicalUnit>(options);
  StorGuest guest(controller.channel());
  guest.negotiate();
  const vstor::SrbPacket verify =
      StorGuest::srb(verify16(static_cast<std::uint32_t>(geometry.size_bytes / 512)), DataIn::kUnknown, 0, 1);
  guest.put(1, wire_bytes(verify));
  const vstor::SrbPacket read = StorGuest::srb(read10(0, 1), DataIn::kRead, 512);
  guest.put(2, wire_bytes(read), {StorGuest::range(512)});
  guest.send();
  CHECK(guest.receive().value().id == 2);
  CHECK(good(guest.receive().value()));
}

TEST_CASE("more jobs than there is memory for wait for their turn", "[storvsp]") {
  Controller controller;
  controller.disk->hold = true;
  StorGuest guest(controller.channel());
  guest.negotiate();
  const vstor::SrbPacket verify = StorGuest::srb(verify16(1), DataIn::kUnknown, 0);
  for (std::uint64_t id = 1; id <= 20; ++id) guest.put(id, wire_bytes(verify));
  guest.send();
  while (controller.disk->operations < 4) std::this_thread::yield();
  // Others are served meanwhile.
  const vstor::SrbPacket ready = StorGuest::srb({0, 0, 0, 0, 0, 0}, DataIn::kUnknown, 0);
  guest.put(21, wire_bytes(ready));
  guest.send();
  CHECK(guest.receive().value().id == 21);
  CHECK(controller.disk->operations == 4);
  SECTION("and come to it") {
    controller.disk->hold = false;
    (void)guest.on_worker([&] { return controller.disk->release_held(), 0; });
    std::set<std::uint64_t> ids;
    for (int i = 0; i < 20; ++i) {
      const std::optional<Completion> completion = guest.receive();
      REQUIRE(completion.has_value());
      CHECK(good(*completion));
      CHECK(ids.insert(completion->id).second);
    }
  }
  SECTION("and are aborted with the others") {
    guest.put(22, wire_bytes(reset_packet(Operation::kResetBus)));
    guest.send();
    for (int i = 0; i < 20; ++i) CHECK(aborted(guest.receive().value()));
    CHECK(good(guest.receive().value()));
    CHECK(guest.on_worker([&] { return guest.channel->in_flight(); }) == 0);
  }
  SECTION("and closing forgets them") {
    guest.stop();
    CHECK(!guest.try_receive().has_value());
  }
}

TEST_CASE("an exclusive command is alone on its LUN", "[storvsp]") {
  Controller controller;
  StorGuest primary(controller.channel());
  primary.negotiate();
  SubChannel sub_channel(controller);
  controller.disk->hold = true;
  const vstor::SrbPacket write = StorGuest::srb(write10(0, 1), DataIn::kWrite, 512);
  sub_channel.put(7, wire_bytes(write), {StorGuest::range(512)});
  sub_channel.send();
  while (controller.disk->operations < 1) std::this_thread::yield();
  const vstor::SrbPacket swap = StorGuest::srb(compare_and_write(0), DataIn::kWrite, 1024);
  primary.put(1, wire_bytes(swap), {StorGuest::range(1024)});
  primary.send();
  while (primary.on_worker([&] { return primary.channel->in_flight(); }) == 0) std::this_thread::yield();
  const vstor::SrbPacket read = StorGuest::srb(read10(0, 1), DataIn::kRead, 512);
  // Held on both channels; LUN 5 goes on.
  sub_channel.put(8, wire_bytes(read), {StorGuest::range(512, 4096)});
  sub_channel.send();
  primary.put(2, wire_bytes(read), {StorGuest::range(512, 4096)});
  primary.send();
  const vstor::SrbPacket other = StorGuest::srb(read10(0, 1), DataIn::kRead, 512, 5);
  primary.put(3, wire_bytes(other), {StorGuest::range(512, 8192)});
  sub_channel.put(9, wire_bytes(other), {StorGuest::range(512, 8192)});
  primary.send();
  sub_channel.send();
  CHECK(primary.receive().value().id == 3);
  CHECK(sub_channel.receive().value().id == 9);
  CHECK(controller.disk->operations == 1);

  SECTION("it begins when the others have ended, and they go on after it") {
    std::memset(primary.data() + 512, 0x42, 512);
    controller.disk->hold = false;
    (void)sub_channel.on_worker([&] { return controller.disk->release_held(), 0; });
    CHECK(sub_channel.receive().value().id == 7);
    CHECK(good(primary.receive().value()));  // the write was of zeros, as is what is compared
    CHECK(primary.receive().value().id == 2);
    CHECK(sub_channel.receive().value().id == 8);
    // Both read what the command wrote, whatever lay between.
    CHECK(primary.data()[4096] == std::byte{0x42});
    CHECK(sub_channel.data()[4096] == std::byte{0x42});
  }
  SECTION("a reset ends it and what it held") {
    primary.put(4, wire_bytes(reset_packet(Operation::kResetLun)));
    primary.send();
    std::map<std::uint64_t, Completion> completions;
    for (int i = 0; i < 3; ++i) {
      const Completion completion = primary.receive().value();
      completions.emplace(completion.id, completion);
    }
    CHECK(aborted(completions.at(1)));
    CHECK(aborted(completions.at(2)));
    CHECK(good(completions.at(4)));
    CHECK(aborted(sub_channel.receive().value()));
    CHECK(aborted(sub_channel.receive().value()));
    // Open for others again, once the reset was told of.
    controller.disk->hold = false;
    CHECK(!good(primary.command(read10(0, 1), DataIn::kRead, 512)));
    CHECK(good(primary.command(read10(0, 1), DataIn::kRead, 512)));
  }
  SECTION("its channel closes, and the others go on") {
    std::thread closer([&] { primary.stop(); });
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    controller.disk->hold = false;
    (void)sub_channel.on_worker([&] { return controller.disk->release_held(), 0; });
    closer.join();
    CHECK(sub_channel.receive().value().id == 7);
    CHECK(good(sub_channel.receive().value()));
  }
  SECTION("a channel that it holds up closes") {
    controller.disk->hold = false;
    sub_channel.stop();
    CHECK(primary.receive().value().id == 1);
    CHECK(good(primary.receive().value()));
  }
}

TEST_CASE("commands of all kinds on several channels at once", "[storvsp]") {
  // For the thread sanitizer, too: the medium has no lock of its own. Each channel adds up in a block that
  // all share.
  Controller controller;
  StorGuest primary(controller.channel(), {.incoming_pages = 4, .outgoing_pages = 4});
  primary.negotiate();
  SubChannel first(controller);
  SubChannel second(controller);
  constexpr std::uint64_t kRounds = 200;
  const auto run = [](StorGuest& guest, std::uint32_t own_lba) {
    std::uint64_t swaps = 0;
    while (swaps < kRounds) {
      if (!good(guest.command(read10(0, 1), DataIn::kRead, 512))) return false;
      std::uint64_t value = 0;
      std::memcpy(&value, guest.data(), sizeof value);
      std::memcpy(guest.data() + 512, guest.data(), 512);
      ++value;
      std::memcpy(guest.data() + 512, &value, sizeof value);
      const Completion swapped = guest.command(compare_and_write(0), DataIn::kWrite, 1024);
      swaps += good(swapped) ? 1 : 0;
      if (!good(guest.command(write10(own_lba, 1), DataIn::kWrite, 512))) return false;
      if (!good(guest.command(verify16(1)))) return false;
    }
    return true;
  };
  std::array<bool, 3> results{};
  std::thread one([&] { results[0] = run(primary, 8); });
  std::thread two([&] { results[1] = run(first, 9); });
  std::thread three([&] { results[2] = run(second, 10); });
  one.join();
  two.join();
  three.join();
  CHECK((results[0] && results[1] && results[2]));
  std::uint64_t value = 0;
  std::memcpy(&value, controller.disk->medium.data(), sizeof value);
  CHECK(value == 3 * kRounds);
}

}  // namespace
}  // namespace vmbusd::storvsp
