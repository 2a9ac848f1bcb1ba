// Disks that come, go, grow and are limited while a guest uses the controller.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <future>
#include <optional>

#include "base/assert.h"
#include "storvsp/controller.h"
#include "tests/catch.h"
#include "tests/storvsp/stor_guest.h"

namespace vmbusd::storvsp {
namespace {

constexpr std::uint64_t kDiskBytes = 1u << 20;
constexpr Bytes::value_type kOkay = 1;  // SRB status
constexpr Bytes::value_type kInvalidLun = 0x20;
const Bytes kTestUnitReady = {0, 0, 0, 0, 0, 0};

UniqueFd memory_file(std::uint64_t size = kDiskBytes) {
  UniqueFd fd(::memfd_create("disk", MFD_CLOEXEC));
  VMBUSD_ASSERT(fd && ::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  return fd;
}

DiskConfig disk_at(std::uint8_t lun, UniqueFd file = memory_file()) {
  DiskConfig disk;
  disk.lun = lun;
  disk.fd = std::move(file);
  return disk;
}

class NoHost final : public devices::DeviceHost {
 public:
  void find_gpadl(devices::Channel& /*channel*/, std::uint32_t /*gpadl*/,
                  std::function<void(std::shared_ptr<const vmbus::Gpadl>)> /*done*/) override {}
  void offer_sub_channels(devices::Device& /*device*/, std::uint32_t /*count*/) override {}
};

// A controller with a disk at LUN 0, its primary channel open, and a control thread.
class Plugged {
 public:
  Plugged()
      : control_(std::move(*io::Worker::create({.name = "control"}))),
        controller_(make_controller(config()).value()),
        guest(controller_->open(0, host_, *control_).value()) {
    control_->start();
    workers_ = {&guest.channel->worker()};
    guest.negotiate();
    CHECK(sense(0) == 0x2900);
  }
  ~Plugged() {
    guest.stop();
    control_->stop();
  }

  template <typename Change>
  auto change(Change change) {
    std::promise<decltype(change(*controller_, threads()))> promise;
    control_->post([&] { promise.set_value(change(*controller_, threads())); });
    return promise.get_future().get();
  }
  [[nodiscard]] bool add(DiskConfig disk) {
    return change([&](Controller& controller, const Threads& threads) {
      return controller.add_disk(std::move(disk), threads).has_value();
    });
  }
  // What is fulfilled once nothing is left of the disk.
  [[nodiscard]] std::future<void> remove(std::uint8_t lun) {
    const auto gone = std::make_shared<std::promise<void>>();
    VMBUSD_ASSERT(change([&](Controller& controller, const Threads& threads) {
      return controller.remove_disk(lun, threads, [gone] { gone->set_value(); }).has_value();
    }));
    return gone->get_future();
  }

  // The guest is told that LUNs came or went.
  [[nodiscard]] bool hears_of_luns() {
    const std::optional<Completion> packet = guest.receive();
    return packet && packet->type == ring::PacketType::kInband && packet->id == 0 &&
           packet->payload_size == vstor::kPacketSize &&
           packet->packet.header.operation == vstor::Operation::kEnumerateBus;
  }
  // TEST UNIT READY's sense, ASC << 8 | ASCQ; 0 where it goes well.
  unsigned sense(std::uint8_t lun) {
    const vstor::Srb srb = guest.command(kTestUnitReady, vstor::DataIn::kUnknown, 0, lun).packet.srb;
    if (srb.srb_status == kOkay) return 0;
    CHECK(srb.srb_status == 0x84);
    CHECK(srb.cdb_or_sense[2] == 6);
    return static_cast<unsigned>(srb.cdb_or_sense[12]) << 8 | srb.cdb_or_sense[13];
  }
  std::uint8_t status(std::uint8_t lun) {
    return guest.command(kTestUnitReady, vstor::DataIn::kUnknown, 0, lun).packet.srb.srb_status;
  }
  // By READ CAPACITY.
  std::uint64_t blocks(std::uint8_t lun) {
    (void)guest.command({0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, vstor::DataIn::kRead, 8, lun);
    const auto byte = [&](int at) { return std::to_integer<std::uint64_t>(guest.data()[at]); };
    return (byte(0) << 24 | byte(1) << 16 | byte(2) << 8 | byte(3)) + 1;
  }

 private:
  static ControllerConfig config() {
    ControllerConfig config;
    config.partition = "guest1";
    config.name = "scsi0";
    config.disks.push_back(disk_at(0));
    return config;
  }
  [[nodiscard]] Threads threads() { return {*control_, workers_}; }

  NoHost host_;
  std::unique_ptr<io::Worker> control_;
  std::unique_ptr<Controller> controller_;
  std::vector<io::Worker*> workers_;

 public:
  StorGuest guest;
};

std::vector<std::uint8_t> reported_luns(StorGuest& guest) {
  (void)guest.command({0xa0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0}, vstor::DataIn::kRead, 512);
  const std::size_t size = std::to_integer<std::size_t>(guest.data()[3]);
  std::vector<std::uint8_t> luns;
  for (std::size_t at = 8; at < 8 + size; at += 8) {
    luns.push_back(std::to_integer<std::uint8_t>(guest.data()[at + 1]));
  }
  return luns;
}

TEST_CASE("a disk comes at run time, and the guest hears of it", "[storvsp]") {
  Plugged plugged;
  CHECK(plugged.status(5) == kInvalidLun);
  REQUIRE(plugged.add(disk_at(5)));
  CHECK(plugged.hears_of_luns());
  CHECK(reported_luns(plugged.guest) == std::vector<std::uint8_t>{0, 5});
  CHECK(plugged.sense(0) == 0x3f0e);
  CHECK(plugged.sense(0) == 0);
  CHECK(plugged.sense(5) == 0x2900);
  CHECK(plugged.sense(5) == 0);
  CHECK(plugged.blocks(5) == kDiskBytes / 512);
}

TEST_CASE("a LUN that is taken takes no other disk", "[storvsp]") {
  Plugged plugged;
  CHECK(!plugged.add(disk_at(0)));
  CHECK(plugged.status(0) == kOkay);
}

TEST_CASE("a disk goes at run time, with its file", "[storvsp]") {
  Plugged plugged;
  UniqueFd file = memory_file();
  const int number = file.get();
  REQUIRE(plugged.add(disk_at(5, std::move(file))));
  CHECK(plugged.hears_of_luns());
  plugged.remove(5).get();
  CHECK(::fcntl(number, F_GETFD) == -1);
  CHECK(plugged.hears_of_luns());
  CHECK(plugged.status(5) == kInvalidLun);
  CHECK(reported_luns(plugged.guest) == std::vector<std::uint8_t>{0});
  CHECK(plugged.sense(0) == 0x3f0e);
}

TEST_CASE("the last disk goes and another comes in its place", "[storvsp]") {
  Plugged plugged;
  plugged.remove(0).get();
  CHECK(plugged.hears_of_luns());
  CHECK(plugged.status(0) == kInvalidLun);
  REQUIRE(plugged.add(disk_at(0, memory_file(2 * kDiskBytes))));
  CHECK(plugged.hears_of_luns());
  CHECK(plugged.sense(0) == 0x2900);
  CHECK(plugged.blocks(0) == 2 * kDiskBytes / 512);
}

TEST_CASE("what waits at a disk that goes is aborted", "[storvsp]") {
  Plugged plugged;
  DiskConfig disk = disk_at(5);
  disk.limits.operations = 1;  // so that the second waits, for longer than any test
  disk.limits.burst_ms = 0;
  REQUIRE(plugged.add(std::move(disk)));
  CHECK(plugged.hears_of_luns());
  CHECK(plugged.sense(5) == 0x2900);
  const vstor::SrbPacket read =
      StorGuest::srb({0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0}, vstor::DataIn::kRead, 4096, 5);
  for (std::uint64_t id = 100; id < 104; ++id) {
    plugged.guest.put(id, wire_bytes(read), {StorGuest::range(4096, (id - 100) * 4096)});
  }
  plugged.guest.send();
  CHECK(plugged.guest.receive()->packet.srb.srb_status == kOkay);
  plugged.remove(5).get();
  for (int i = 0; i < 3; ++i) CHECK(plugged.guest.receive()->packet.srb.srb_status == 2);
  CHECK(plugged.hears_of_luns());
  CHECK(plugged.status(5) == kInvalidLun);
}

TEST_CASE("a disk grows under its guest, and never shrinks", "[storvsp]") {
  Plugged plugged;
  const auto grow = [&](std::uint64_t size) {
    return plugged.change([&](Controller& controller, const Threads& threads) {
      return controller.grow_disk(0, size, threads).has_value();
    });
  };
  CHECK(!grow(kDiskBytes - 512));
  CHECK(grow(kDiskBytes));
  CHECK(plugged.sense(0) == 0);
  CHECK(grow(3 * kDiskBytes + 100));
  CHECK(plugged.hears_of_luns());
  CHECK(plugged.sense(0) == 0x2a09);
  CHECK(plugged.sense(0) == 0);
  CHECK(plugged.blocks(0) == 3 * kDiskBytes / 512);
}

TEST_CASE("a disk's limits come, change and go under its guest", "[storvsp]") {
  Plugged plugged;
  const auto limit = [&](std::uint32_t operations) {
    DiskLimits limits;
    limits.operations = operations;
    limits.burst_ms = 0;
    CHECK(plugged.change([&](Controller& controller, const Threads& threads) {
      return controller.limit_disk(0, limits, threads).has_value();
    }));
  };
  const vstor::SrbPacket read = StorGuest::srb({0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0}, vstor::DataIn::kRead, 4096);
  limit(1);
  for (std::uint64_t id = 100; id < 140; ++id)
    plugged.guest.put(id, wire_bytes(read), {StorGuest::range(4096)});
  plugged.guest.send();
  // By the first limit all take 39 s.
  CHECK(plugged.guest.receive()->id == 100);
  limit(0);
  for (std::uint64_t id = 101; id < 140; ++id) CHECK(plugged.guest.receive()->id == id);
  limit(1'000'000);
  CHECK(plugged.guest.command({0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0}, vstor::DataIn::kRead, 4096)
            .packet.srb.srb_status == kOkay);
}

TEST_CASE("a hundred disks come, grow and go beside one in use", "[storvsp]") {
  Plugged plugged;
  const vstor::SrbPacket write =
      StorGuest::srb({0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0}, vstor::DataIn::kWrite, 4096);
  const vstor::SrbPacket other =
      StorGuest::srb({0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0}, vstor::DataIn::kRead, 4096, 7);
  constexpr std::uint64_t kDepth = 8;
  std::uint64_t next_id = 1000;
  std::uint64_t waiting = 0;
  std::uint64_t notices = 0;
  const auto submit = [&] {
    while (waiting < kDepth) {
      const std::uint64_t id = next_id++;
      plugged.guest.put(id, wire_bytes(id % 2 == 0 ? write : other), {StorGuest::range(4096)});
      ++waiting;
    }
    plugged.guest.send();
  };
  // LUN 0 must go on; LUN 7 is there or not.
  const auto receive = [&](std::uint64_t down_to) {
    while (waiting > down_to) {
      const std::optional<Completion> completion = plugged.guest.receive();
      REQUIRE(completion);
      if (completion->type == ring::PacketType::kInband) {
        ++notices;
        continue;
      }
      --waiting;
      const vstor::Srb& srb = completion->packet.srb;
      const bool attention = srb.srb_status == 0x84 && srb.cdb_or_sense[2] == 6;
      if (completion->id % 2 == 0) CHECK((srb.srb_status == kOkay || attention));
    }
  };
  const auto descriptors = [] { return ::dup(0); };
  const int before = descriptors();
  ::close(before);
  for (int round = 0; round < 100; ++round) {
    submit();
    REQUIRE(plugged.add(disk_at(7)));
    receive(kDepth / 2);
    submit();
    CHECK(plugged.change([&](Controller& controller, const Threads& threads) {
      return controller.grow_disk(7, 2 * kDiskBytes, threads).has_value();
    }));
    receive(kDepth / 2);
    submit();
    std::future<void> gone = plugged.remove(7);
    receive(kDepth / 2);
    gone.get();
  }
  receive(0);
  const int after = descriptors();
  ::close(after);
  CHECK(after == before);
  CHECK(notices > 0);
  while (plugged.guest.try_receive()) {
  }
}

}  // namespace
}  // namespace vmbusd::storvsp
