// A guest that breaks every rule of the ring, the storage protocol and the control messages. Whatever it
// does, it stops its own channel at most: another partition's I/O goes on, the worker lives, and the channel
// serves again after close and open.
#include <atomic>
#include <thread>

#include "tests/guest/host.h"

namespace vmbusd::guest {
namespace {

using ring::PacketType;

// Writes raw words where the guest-to-host ring goes on (its first page: nothing wraps) and publishes
// `bytes`.
void publish_raw(GuestChannel& channel, std::span<const std::uint64_t> words, std::uint32_t bytes) {
  auto& control = channel.to_host_control();
  std::byte* const data = reinterpret_cast<std::byte*>(&control) + kPageSize;
  std::memcpy(data + control.write_index, words.data(), words.size_bytes());
  std::atomic_ref(control.write_index).store(control.write_index + bytes);
  channel.ring_doorbell();
}

std::uint64_t descriptor_word(std::uint64_t type, std::uint64_t offset8, std::uint64_t length8,
                              std::uint64_t flags = 1) {
  return type | offset8 << 16 | length8 << 32 | flags << 48;
}

// A READ(10) of one block with this range list and payload size in place of the right ones.
void send_read(GuestChannel& channel, const std::vector<std::uint64_t>& extension,
               std::size_t payload_bytes = vstor::kPacketSize, std::uint32_t transfer_bytes = 512) {
  vstor::SrbPacket packet{};
  packet.header.operation = vstor::Operation::kExecuteSrb;
  packet.srb.length = sizeof packet.srb;
  packet.srb.cdb_length = 10;
  packet.srb.sense_info_length = vstor::kSenseSizeMax;
  packet.srb.data_in = vstor::DataIn::kRead;
  packet.srb.data_transfer_length = transfer_bytes;
  packet.srb.cdb_or_sense[0] = static_cast<std::uint8_t>(scsi::Opcode::kRead10);
  packet.srb.cdb_or_sense[8] = 1;
  REQUIRE(must(channel.to_host().write({.type = PacketType::kGpaDirect,
                                        .completion_requested = true,
                                        .transaction_id = 1,
                                        .extension = std::as_bytes(std::span(extension)),
                                        .payload = wire_bytes(packet).first(payload_bytes)})));
  must(channel.to_host().commit());
  channel.ring_doorbell();
}

std::uint64_t range(std::uint64_t byte_count, std::uint64_t byte_offset) {
  return byte_offset << 32 | byte_count;
}
constexpr std::uint64_t kOneRange = std::uint64_t{1} << 32;

struct Crime {
  const char* what;
  void (*commit)(GuestChannel& channel);
};
const Crime kCrimes[] = {
    {"write_index beyond the ring",
     [](GuestChannel& channel) {
       channel.to_host_control().write_index = 0x7ffffff8;
       channel.ring_doorbell();
     }},
    {"write_index misaligned",
     [](GuestChannel& channel) {
       channel.to_host_control().write_index += 4;
       channel.ring_doorbell();
     }},
    {"write_index at the ring's size",
     [](GuestChannel& channel) {
       channel.to_host_control().write_index = 31 * kPageSize;
       channel.ring_doorbell();
     }},
    {"read_index of the host's ring beyond it, with an answer due",
     [](GuestChannel& channel) {
       channel.from_host_control().read_index = 0xfffffff8;
       channel.from_host_control().interrupt_mask = 0;
       send_read(channel, {kOneRange, range(512, 0), 1});
     }},
    {"read_index of its own ring changed",
     [](GuestChannel& channel) {
       channel.to_host_control().read_index = 0x12345;
       channel.ring_doorbell();
     }},
    {"packet of length 0",
     [](GuestChannel& channel) {
       publish_raw(channel, std::array<std::uint64_t, 2>{descriptor_word(6, 2, 0), 1}, 64);
     }},
    {"packet longer than what was written",
     [](GuestChannel& channel) {
       publish_raw(channel, std::array<std::uint64_t, 2>{descriptor_word(6, 2, 0xffff), 1}, 64);
     }},
    {"payload before the descriptor's end",
     [](GuestChannel& channel) {
       publish_raw(channel, std::array<std::uint64_t, 2>{descriptor_word(6, 0, 7), 1}, 64);
     }},
    {"unknown packet type",
     [](GuestChannel& channel) {
       publish_raw(channel, std::array<std::uint64_t, 2>{descriptor_word(12, 2, 7), 1}, 64);
     }},
    {"unknown flags",
     [](GuestChannel& channel) {
       publish_raw(channel, std::array<std::uint64_t, 2>{descriptor_word(6, 2, 7, 0x8000), 1}, 64);
     }},
    {"GPA-direct without ranges",
     [](GuestChannel& channel) {
       send_read(channel, {0, range(512, 0), 1});
     }},
    {"GPA-direct with 2^32 - 1 ranges",
     [](GuestChannel& channel) {
       send_read(channel, {0xffffffffull << 32, range(512, 0), 1});
     }},
    {"GPA-direct with an empty range",
     [](GuestChannel& channel) {
       send_read(channel, {kOneRange, range(0, 0), 1});
     }},
    {"GPA-direct that starts beyond its page",
     [](GuestChannel& channel) {
       send_read(channel, {kOneRange, range(512, 0x1000), 1, 2});
     }},
    {"GPA-direct with fewer pages than bytes",
     [](GuestChannel& channel) {
       send_read(channel, {kOneRange, range(0xffffffff, 0), 1});
     }},
    {"page outside guest memory",
     [](GuestChannel& channel) {
       send_read(channel, {kOneRange, range(512, 0), 0xffffff});
     }},
    {"page number of all ones",
     [](GuestChannel& channel) {
       send_read(channel, {kOneRange, range(512, 0), ~std::uint64_t{0}});
     }},
    {"transfer longer than the buffer",
     [](GuestChannel& channel) {
       send_read(channel, {kOneRange, range(512, 0), 1}, vstor::kPacketSize, 0xfffff000);
     }},
    {"storage packet cut short",
     [](GuestChannel& channel) {
       send_read(channel, {kOneRange, range(512, 0), 1}, 8);
     }},
    {"storage packet without a body",
     [](GuestChannel& channel) {
       send_read(channel, {kOneRange, range(512, 0), 1}, 0);
     }},
    {"completion that nobody asked for",
     [](GuestChannel& channel) {
       publish_raw(channel, std::array<std::uint64_t, 2>{descriptor_word(11, 2, 7, 0), 4711}, 64);
     }},
    {"transfer pages from the guest",
     [](GuestChannel& channel) {
       publish_raw(channel, std::array<std::uint64_t, 3>{descriptor_word(7, 3, 7), 1, 0}, 64);
     }},
    {"pending_send_size of all ones, for a signal a packet",
     [](GuestChannel& channel) {
       channel.to_host_control().pending_send_size = 0xffffffff;
       send_read(channel, {kOneRange, range(512, 0), 1});
     }},
    {"a thousand doorbells for nothing",
     [](GuestChannel& channel) {
       for (int i = 0; i < 1000; ++i) channel.ring_doorbell();
     }},
};

TEST_CASE("a guest that breaks its rings hurts itself only, and not for good", "[guest][hostile]") {
  Host host;
  const pid_t worker = host.daemon().worker_pid();
  const auto other = host.attach("two");
  Driver bystander(*other);
  const auto child = host.attach("one");
  for (const Crime& crime : kCrimes) {
    DYNAMIC_SECTION(crime.what) {
      Driver driver(*child);
      crime.commit(*driver.channel);
      must(bystander.disk->write(0, random_bytes(4096, 1)));
      CHECK(read_disk(*bystander.disk, 0, 4096) == random_bytes(4096, 1));
      must(driver.channel->close());

      driver.channel = must(GuestChannel::open(driver.bus, driver.offer));
      StorClient stor(*driver.channel, 4);
      must(stor.initialize());
      Disk disk(stor);
      must(disk.write(8192, random_bytes(4096, 2)));
      CHECK(read_disk(disk, 8192, 4096) == random_bytes(4096, 2));
      CHECK(host.daemon().worker_pid() == worker);
    }
  }
}

// Requests go out while another thread writes anything anywhere into both rings: what the host has checked
// changes before it is used.
TEST_CASE("rings that change under the host's hands", "[guest][hostile]") {
  Host host;
  const auto child = host.attach();
  const std::uint32_t seed = std::random_device()();
  UNSCOPED_INFO("seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 20; ++round) {
    Driver driver(*child);
    std::byte* const rings = reinterpret_cast<std::byte*>(&driver.channel->to_host_control());
    std::atomic<bool> stop{false};
    std::thread vandal([&, vandal_seed = random()] {
      std::mt19937 own(vandal_seed);
      while (!stop) {
        // Mostly in the first packets, where the host is reading; indices now and then.
        const std::size_t at = own() % 16 == 0 ? own() % 16 : kPageSize + own() % 1024;
        std::atomic_ref(reinterpret_cast<std::uint8_t&>(rings[at])).store(static_cast<std::uint8_t>(own()));
      }
    });
    const Pages buffer = must(child->ram().take(8, Layout::kScattered));
    for (int i = 0; i < 50; ++i) {
      StorCommand command = block_command(scsi::Opcode::kRead16, random() % 1024, 64);
      command.pages = buffer.gpns();
      command.bytes = 32 << 10;
      // Its own rings are broken as well: errors are the point.
      (void)driver.stor->submit(command);
      (void)driver.channel->to_host().commit();
      driver.channel->ring_doorbell();
    }
    stop = true;
    vandal.join();
    must(driver.bus.unload());
  }
  Driver driver(*child);
  CHECK(must(driver.disk->capacity()).blocks * 512 == kImageBytes);
}

TEST_CASE("control messages of any type and length", "[guest][hostile]") {
  Host host;
  const auto child = host.attach();
  const std::uint32_t seed = std::random_device()();
  UNSCOPED_INFO("seed " << seed);
  std::mt19937 random(seed);
  BusClient bus(*child);
  must(bus.contact(vmbus::Version::k5_3));
  const vmbus::OfferChannel offer = scsi_offer(must(bus.request_offers()));
  for (int i = 0; i < 5000; ++i) {
    std::vector<std::byte> message(random() % (vmbus::kMessagePayloadBytesMax + 1));
    for (std::byte& byte : message) byte = static_cast<std::byte>(random() % 4 == 0 ? random() : 0);
    // Mostly a type that exists, mostly of the channel that exists.
    if (message.size() >= 12) {
      const std::uint32_t type = random() % 32;
      std::memcpy(message.data(), &type, sizeof type);
      if (random() % 4 != 0) std::memcpy(message.data() + 8, &offer.relid, sizeof offer.relid);
    }
    must(bus.post(std::span<const std::byte>(message)));
    // The host's answers are taken, as a guest's interrupt handler does.
    while (child->take_message(0, Clock::time_point())) {
    }
  }
  must(child->reset());  // drops the answers that are still under way
  Driver driver(*child);
  CHECK(must(driver.disk->capacity()).blocks * 512 == kImageBytes);
}

// Thousands of offers asked for and never taken: the host's queue for this guest is bounded.
TEST_CASE("a guest that takes no messages", "[guest][hostile]") {
  Host host;
  {
    const auto child = host.attach();
    BusClient bus(*child);
    must(bus.contact(vmbus::Version::k5_3));
    const Result<void> posted = [&]() -> Result<void> {
      for (int i = 0; i < 20'000; ++i) {
        vmbus::GpadlTeardown message;  // of a GPADL that is not there
        message.relid = 1;
        VMBUSD_CHECK(bus.post(message));
        vmbus::InitiateContact contact;
        contact.version = vmbus::Version{0x00990000};
        VMBUSD_CHECK(bus.post(contact));
      }
      return {};
    }();
    // Served to the end or cut off: both are right.
    CHECK((posted || posted.error().code == Errc::kClosed || posted.error().code == Errc::kOs));
  }
  const auto child = host.attach();
  Driver driver(*child);
  CHECK(must(driver.disk->capacity()).blocks * 512 == kImageBytes);
}

}  // namespace
}  // namespace vmbusd::guest
