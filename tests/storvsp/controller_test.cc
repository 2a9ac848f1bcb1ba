#include "storvsp/controller.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "storvsp/vstor.h"
#include "tests/catch.h"
#include "tests/storvsp/stor_guest.h"

namespace vmbusd::storvsp {
namespace {

constexpr std::uint64_t kDiskBytes = 1u << 20;

UniqueFd memory_file(std::uint64_t size = kDiskBytes) {
  UniqueFd fd(::memfd_create("disk", MFD_CLOEXEC));
  VMBUSD_ASSERT(fd && ::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  return fd;
}

DiskConfig file_disk(std::uint8_t lun = 0, std::uint64_t size = kDiskBytes) {
  DiskConfig disk;
  disk.lun = lun;
  disk.fd = memory_file(size);
  return disk;
}

struct DiskCase {
  const char* rule;
  void (*change)(DiskConfig&);
  bool ok;
};
const DiskCase kDiskCases[] = {
    {"as it is", [](DiskConfig&) {}, true},
    {"LUN 63", [](DiskConfig& d) { d.lun = 63; }, true},
    {"LUN 64", [](DiskConfig& d) { d.lun = 64; }, false},
    {"no file", [](DiskConfig& d) { d.fd.reset(); }, false},
    {"a file that cannot be written", [](DiskConfig& d) { d.fd.reset(::open("/proc/self/exe", O_RDONLY)); },
     false},
    {"the same, read-only",
     [](DiskConfig& d) {
       d.fd.reset(::open("/proc/self/exe", O_RDONLY));
       d.read_only = true;
     },
     true},
    {"empty file", [](DiskConfig& d) { d.fd = memory_file(0); }, false},
    {"half a block", [](DiskConfig& d) { d.fd = memory_file(256); }, false},
    {"a block and a half", [](DiskConfig& d) { d.fd = memory_file(768); }, true},
    {"blocks of 4096", [](DiskConfig& d) { d.logical_block_bytes = 4096; }, true},
    {"blocks of 520", [](DiskConfig& d) { d.logical_block_bytes = 520; }, false},
    {"blocks of 1024", [](DiskConfig& d) { d.logical_block_bytes = 1024; }, false},
    {"physical blocks of 65536", [](DiskConfig& d) { d.physical_block_bytes = 65536; }, true},
    {"physical blocks of 131072", [](DiskConfig& d) { d.physical_block_bytes = 131072; }, false},
    {"physical blocks of 3000", [](DiskConfig& d) { d.physical_block_bytes = 3000; }, false},
    {"physical smaller than logical blocks",
     [](DiskConfig& d) {
       d.logical_block_bytes = 4096;
       d.physical_block_bytes = 512;
     },
     false},
    {"longest texts",
     [](DiskConfig& d) {
       d.vendor = "12345678";
       d.product = "1234567890123456";
       d.revision = "1234";
       d.serial = std::string(36, 'S');
     },
     true},
    {"vendor too long", [](DiskConfig& d) { d.vendor = "123456789"; }, false},
    {"product too long", [](DiskConfig& d) { d.product = "12345678901234567"; }, false},
    {"revision too long", [](DiskConfig& d) { d.revision = "12345"; }, false},
    {"serial too long", [](DiskConfig& d) { d.serial = std::string(37, 'S'); }, false},
    {"vendor not ASCII", [](DiskConfig& d) { d.vendor = "caf\xc3\xa9"; }, false},
    {"serial with a line feed", [](DiskConfig& d) { d.serial = "a\nb"; }, false},
    {"null disk",
     [](DiskConfig& d) {
       d.backend = DiskConfig::Backend::kNull;
       d.fd.reset();
       d.size_bytes = std::uint64_t{1} << 40;
     },
     true},
    {"null disk without a size",
     [](DiskConfig& d) {
       d.backend = DiskConfig::Backend::kNull;
       d.fd.reset();
     },
     false},
};

TEST_CASE("disk configurations", "[storvsp]") {
  for (const DiskCase& c : kDiskCases) {
    DYNAMIC_SECTION(c.rule) {
      DiskConfig disk = file_disk();
      c.change(disk);
      CHECK(check_disk(disk).has_value() == c.ok);
      ControllerConfig controller;
      controller.partition = "guest1";
      controller.name = "scsi0";
      controller.disks.push_back(std::move(disk));
      const auto made = make_controller(std::move(controller));
      CHECK(made.has_value() == c.ok);
      CHECK((made.has_value() || made.error().code == Errc::kConfig));
    }
  }
}

TEST_CASE("controller configurations", "[storvsp]") {
  ControllerConfig config;
  config.partition = "guest1";
  config.name = "scsi0";
  SECTION("no disks") {
    CHECK(make_controller(std::move(config)).has_value());
  }
  SECTION("a LUN twice") {
    config.disks.push_back(file_disk(3));
    config.disks.push_back(file_disk(3));
    CHECK(!make_controller(std::move(config)).has_value());
  }
  SECTION("transfers of no page") {
    config.max_transfer_bytes = 0;
    CHECK(!make_controller(std::move(config)).has_value());
  }
  SECTION("transfers of a page and a half") {
    config.max_transfer_bytes = 6144;
    CHECK(!make_controller(std::move(config)).has_value());
  }
  SECTION("transfers that are too large") {
    config.max_transfer_bytes = kMaxTransferBytes + 4096;
    CHECK(!make_controller(std::move(config)).has_value());
  }
  SECTION("no channels") {
    config.channels = 0;
    CHECK(!make_controller(std::move(config)).has_value());
  }
  SECTION("too many channels") {
    config.channels = kMaxChannels + 1;
    CHECK(!make_controller(std::move(config)).has_value());
  }
  SECTION("all channels") {
    config.channels = kMaxChannels;
    CHECK(make_controller(std::move(config)).has_value());
  }
  SECTION("the largest transfers") {
    config.max_transfer_bytes = kMaxTransferBytes;
    CHECK(make_controller(std::move(config)).has_value());
  }
}

TEST_CASE("identities are stable and differ", "[storvsp]") {
  const auto instance = [](const char* partition, const char* name) {
    ControllerConfig config;
    config.partition = partition;
    config.name = name;
    return make_controller(std::move(config)).value()->offer().instance;
  };
  CHECK(instance("guest1", "scsi0") == instance("guest1", "scsi0"));
  CHECK(instance("guest1", "scsi0") != instance("guest1", "scsi1"));
  CHECK(instance("guest1", "scsi0") != instance("guest2", "scsi0"));

  ControllerConfig config;
  config.partition = "guest1";
  config.name = "scsi0";
  config.instance = Guid::literal("00112233-4455-6677-8899-aabbccddeeff");
  const auto controller = make_controller(std::move(config)).value();
  CHECK(controller->name() == "guest1/scsi0");
  CHECK(controller->offer().interface_type == vstor::kScsiControllerClass);
  CHECK(controller->offer().instance == Guid::literal("00112233-4455-6677-8899-aabbccddeeff"));
  CHECK(controller->offer().sub_channel_index == 0);
  CHECK(!controller->offer().pipe_message_mode);
}

// What a controller asks of the bus.
class TestHost final : public devices::DeviceHost {
 public:
  void find_gpadl(devices::Channel& /*channel*/, std::uint32_t /*gpadl*/,
                  std::function<void(std::shared_ptr<const vmbus::Gpadl>)> /*done*/) override {}
  void offer_sub_channels(devices::Device& /*device*/, std::uint32_t /*count*/) override {}
};

// The first command that a new guest sends to a LUN hears of the power-on.
void take_attention(StorGuest& guest) {
  const Completion completion = guest.command({0, 0, 0, 0, 0, 0});
  CHECK(completion.packet.srb.scsi_status == 2);
  CHECK(completion.packet.srb.cdb_or_sense[2] == 6);
  CHECK(completion.packet.srb.cdb_or_sense[12] == 0x29);
  CHECK(completion.packet.srb.cdb_or_sense[13] == 0);
  CHECK(guest.command({0, 0, 0, 0, 0, 0}).packet.srb.srb_status == 1);
}

// The device of `config` with its primary channel open.
struct Served {
  explicit Served(ControllerConfig config)
      : device(make_controller(std::move(config)).value()),
        opener(std::move(*io::Worker::create({.name = "unused"}))),
        guest(device->open(0, host, *opener).value()) {
    guest.negotiate();
    take_attention(guest);
  }

  std::unique_ptr<devices::Device> device;
  TestHost host;
  std::unique_ptr<io::Worker> opener;  // open() takes no more than its address
  StorGuest guest;
};

ControllerConfig one_disk(DiskConfig disk) {
  ControllerConfig config;
  config.partition = "guest1";
  config.name = "scsi0";
  config.disks.push_back(std::move(disk));
  return config;
}

TEST_CASE("what the operator names is what the guest sees", "[storvsp]") {
  DiskConfig disk = file_disk();
  disk.vendor = "ACME";
  disk.product = "Fast Disk";
  disk.revision = "2.1";
  disk.serial = "S-123";
  Served served(one_disk(std::move(disk)));
  (void)served.guest.command({0x12, 0, 0, 0, 96, 0}, vstor::DataIn::kRead, 96);
  CHECK(std::memcmp(served.guest.data() + 8, "ACME    Fast Disk       2.1 ", 28) == 0);
  const Completion serial = served.guest.command({0x12, 1, 0x80, 0, 96, 0}, vstor::DataIn::kRead, 96);
  CHECK(serial.packet.srb.data_transfer_length == 9);
  CHECK(std::memcmp(served.guest.data() + 4, "S-123", 5) == 0);
}

TEST_CASE("a disk without a serial number has one all the same", "[storvsp]") {
  Served served(one_disk(file_disk()));
  const Completion serial = served.guest.command({0x12, 1, 0x80, 0, 96, 0}, vstor::DataIn::kRead, 96);
  CHECK(serial.packet.srb.data_transfer_length == 4 + 32);
}

TEST_CASE("data goes through to the file", "[storvsp]") {
  DiskConfig disk = file_disk(0, kDiskBytes + 100);  // the rest is not reachable
  const UniqueFd file(::dup(disk.fd.get()));
  Served served(one_disk(std::move(disk)));
  for (std::size_t i = 0; i < 8192; ++i) served.guest.data()[i] = static_cast<std::byte>(i * 7);
  const Completion written =
      served.guest.command({0x2a, 0x08, 0, 0, 0, 8, 0, 0, 16, 0}, vstor::DataIn::kWrite, 8192);
  CHECK(written.packet.srb.srb_status == 1);
  CHECK(written.packet.srb.data_transfer_length == 8192);
  std::vector<std::byte> content(8192);
  REQUIRE(::pread(file.get(), content.data(), content.size(), 4096) == 8192);
  CHECK(std::memcmp(content.data(), served.guest.data(), 8192) == 0);
  CHECK(served.guest.command({0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0}).packet.srb.srb_status == 1);
  (void)served.guest.command({0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, vstor::DataIn::kRead, 8);
  CHECK(served.guest.data()[2] == std::byte{0x07});
  CHECK(served.guest.data()[3] == std::byte{0xff});
}

// PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY: to be kept. The SRB status.
unsigned register_key(StorGuest& guest, std::uint8_t key) {
  std::memset(guest.data(), 0, 24);
  guest.data()[15] = std::byte{key};
  guest.data()[20] = std::byte{1};
  return guest.command({0x5f, 6, 0, 0, 0, 0, 0, 0, 24, 0}, vstor::DataIn::kWrite, 24).packet.srb.srb_status;
}
// The key that is registered; 0 where none is.
std::uint8_t registered_key(StorGuest& guest) {
  std::memset(guest.data(), 0, 16);
  (void)guest.command({0x5e, 0, 0, 0, 0, 0, 0, 0, 16, 0}, vstor::DataIn::kRead, 16);
  return std::to_integer<std::uint8_t>(guest.data()[15]);
}

TEST_CASE("reservations outlast the device where they have a file", "[storvsp]") {
  const UniqueFd reservations = memory_file(0);
  const auto serve = [&](std::uint8_t lun = 0) {
    DiskConfig disk = file_disk(lun);
    disk.reservations.reset(::dup(reservations.get()));
    return one_disk(std::move(disk));
  };
  {
    Served served(serve());
    CHECK(registered_key(served.guest) == 0);
    CHECK(register_key(served.guest, 9) == 1);
    CHECK(registered_key(served.guest) == 9);
  }
  {
    Served served(serve());
    CHECK(registered_key(served.guest) == 9);
    CHECK(register_key(served.guest, 10) == 1);
  }
  {
    Served served(serve());
    CHECK(registered_key(served.guest) == 10);
  }
  ControllerConfig other = serve();
  other.disks[0].identity = Guid::derive("another", "disk");
  Served served(std::move(other));
  CHECK(registered_key(served.guest) == 0);
}

TEST_CASE("without a file reservations are not to be kept", "[storvsp]") {
  Served served(one_disk(file_disk()));
  CHECK(register_key(served.guest, 9) == 0x84);
  CHECK(registered_key(served.guest) == 0);
}

TEST_CASE("a write-through disk shows no cache and cannot be given one", "[storvsp]") {
  DiskConfig disk = file_disk();
  disk.cache = CacheMode::kWritethrough;
  Served served(one_disk(std::move(disk)));
  (void)served.guest.command({0x1a, 0, 0x08, 0, 24, 0}, vstor::DataIn::kRead, 24);
  CHECK(served.guest.data()[6] == std::byte{0});
  served.guest.data()[6] = std::byte{4};
  const Completion selected = served.guest.command({0x15, 0x10, 0, 0, 24, 0}, vstor::DataIn::kWrite, 24);
  CHECK(selected.packet.srb.srb_status == 0x84);
}

TEST_CASE("a guest that starts over finds the defaults", "[storvsp]") {
  ControllerConfig config = one_disk(file_disk());
  const auto device = make_controller(std::move(config)).value();
  TestHost host;
  const auto opener = std::move(*io::Worker::create({.name = "unused"}));
  {
    StorGuest guest(device->open(0, host, *opener).value());
    guest.negotiate();
    take_attention(guest);
    (void)guest.command({0x1a, 0, 0x08, 0, 24, 0}, vstor::DataIn::kRead, 24);
    CHECK(guest.data()[6] == std::byte{4});
    std::memset(guest.data(), 0, 4);
    guest.data()[6] = std::byte{0};
    CHECK(guest.command({0x15, 0x10, 0, 0, 24, 0}, vstor::DataIn::kWrite, 24).packet.srb.srb_status == 1);
    CHECK(device->open(1, host, *opener).has_value());
  }
  device->reset();
  CHECK(device->open(1, host, *opener).error().code == Errc::kWrongState);
  StorGuest guest(device->open(0, host, *opener).value());
  guest.negotiate();
  take_attention(guest);
  (void)guest.command({0x1a, 0, 0x08, 0, 24, 0}, vstor::DataIn::kRead, 24);
  CHECK(guest.data()[6] == std::byte{4});
}

}  // namespace
}  // namespace vmbusd::storvsp
