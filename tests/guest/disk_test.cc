// Disk I/O from the guest's side, against vmbusd.
#include "tests/guest/host.h"

namespace vmbusd::guest {
namespace {

TEST_CASE("what the guest writes is in the image", "[guest]") {
  Host host;
  const auto child = host.attach();
  Driver driver(*child);
  // Across the largest transfer, at an odd block.
  const auto written = random_bytes((3 << 20) + 512, 1);
  must(driver.disk->write(512, written));
  must(driver.disk->flush());
  CHECK(host.image(512, written.size()) == written);
  CHECK(host.image(0, 512) == std::vector<std::byte>(512, std::byte{'i'}));
  CHECK(read_disk(*driver.disk, 512, written.size()) == written);
}

TEST_CASE("buffers begin anywhere in a page", "[guest]") {
  Host host;
  const auto child = host.attach();
  Driver driver(*child);
  const Pages pages = must(child->ram().take(4, Layout::kScattered));
  // 512 is what O_DIRECT takes in place; 4 and 1 need a bounce.
  for (const std::uint32_t offset : {0u, 512u, 2048u, 4u, 1u, 4095u}) {
    INFO("offset " << offset);
    const auto written = random_bytes(8192, offset);
    pages.write(offset, written);
    StorCommand command = block_command(scsi::Opcode::kWrite16, 64, 16);
    command.pages = pages.gpns().first((offset + 8192 + kPageSize - 1) / kPageSize);
    command.page_offset = offset;
    command.bytes = 8192;
    REQUIRE(succeeded(must(driver.stor->execute(command))));
    CHECK(host.image(64 * 512, 8192) == written);

    pages.write(0, std::vector<std::byte>(pages.bytes()));
    command.cdb[0] = static_cast<std::uint8_t>(scsi::Opcode::kRead16);
    command.direction = vstor::DataIn::kRead;
    REQUIRE(succeeded(must(driver.stor->execute(command))));
    std::vector<std::byte> all(pages.bytes());
    pages.read(0, all);
    CHECK(std::equal(written.begin(), written.end(), all.begin() + offset));
    // Not a byte beside the buffer was touched.
    CHECK(std::count(all.begin(), all.begin() + offset, std::byte{0}) == offset);
    CHECK(std::count(all.begin() + offset + 8192, all.end(), std::byte{0}) ==
          static_cast<std::ptrdiff_t>(all.size() - offset - 8192));
  }
}

TEST_CASE("a read-only disk refuses writes and serves reads", "[guest]") {
  Host host;
  const auto child = host.attach();
  Driver driver(*child);
  Disk disk(*driver.stor, 1);
  CHECK(read_disk(disk, 0, 4096) == std::vector<std::byte>(4096, std::byte{'i'}));
  CHECK(error_of(disk.write(0, random_bytes(4096, 1))) == Errc::kOs);
  CHECK(disk.last_sense() == Sense{scsi::SenseKey::kDataProtect, scsi::Asc::kWriteProtected});
  CHECK(read_disk(disk, 0, 4096) == std::vector<std::byte>(4096, std::byte{'i'}));
}

TEST_CASE("what a disk does not have or do is a sense, and the channel goes on", "[guest]") {
  Host host;
  const auto child = host.attach();
  Driver driver(*child);
  std::vector<std::byte> block(512);
  CHECK(error_of(driver.disk->read(kImageBytes, block)) == Errc::kOs);
  CHECK(driver.disk->last_sense() == Sense{scsi::SenseKey::kIllegalRequest, scsi::Asc::kLbaOutOfRange});
  StorCommand unknown;
  unknown.cdb[0] = 0xee;
  CHECK(sense_of(must(driver.stor->execute(unknown))) ==
        Sense{scsi::SenseKey::kIllegalRequest, scsi::Asc::kInvalidCommandOperationCode});
  Disk absent(*driver.stor, 7);
  CHECK(must(absent.inquiry()).qualifier_and_type == scsi::kNoLogicalUnit);
  CHECK(error_of(absent.read(0, block)) == Errc::kOs);
  CHECK(read_disk(*driver.disk, 0, 512) == std::vector<std::byte>(512, std::byte{'i'}));
}

// A command with a CDB of 16 bytes and data for the host.
vstor::SrbPacket send_out(Driver& driver, std::array<std::uint8_t, 16> cdb, std::uint8_t cdb_length,
                          std::span<const std::byte> data) {
  const Pages pages =
      must(driver.channel->child().ram().take((data.size() + kPageSize - 1) / kPageSize, Layout::kScattered));
  pages.write(0, data);
  StorCommand command;
  command.cdb = cdb;
  command.cdb_length = cdb_length;
  command.direction = vstor::DataIn::kWrite;
  command.pages = pages.gpns();
  command.bytes = static_cast<std::uint32_t>(data.size());
  return must(driver.stor->execute(command));
}

TEST_CASE("what the guest gives back is the host's again", "[guest]") {
  Host host;
  const auto child = host.attach();
  Driver driver(*child);
  const std::uint64_t before = host.image_bytes_kept();
  REQUIRE(before >= kImageBytes);
  // 4 MiB from 1 MiB on.
  std::array<std::byte, 24> list{};
  list[1] = std::byte{22};
  list[3] = std::byte{16};
  list[14] = std::byte{0x08};
  list[18] = std::byte{0x20};
  CHECK(succeeded(send_out(driver, {0x42, 0, 0, 0, 0, 0, 0, 0, 24}, 10, list)));
  CHECK(host.image_bytes_kept() <= before - (4 << 20));
  CHECK(host.image(1 << 20, 4096) == std::vector<std::byte>(4096));
  CHECK(read_disk(*driver.disk, 5 << 20, 512) == std::vector<std::byte>(512, std::byte{'i'}));
  // The other disk is read-only, and does not pretend.
  StorCommand command;
  command.cdb = {0x42, 0, 0, 0, 0, 0, 0, 0, 24};
  command.cdb_length = 10;
  command.lun = 1;
  CHECK(sense_of(must(driver.stor->execute(command))) ==
        Sense{scsi::SenseKey::kIllegalRequest, scsi::Asc::kInvalidCommandOperationCode});
  // 1 MiB of one block, from 6 MiB on.
  std::array<std::byte, 512> block{};
  block.fill(std::byte{0x5a});
  CHECK(succeeded(send_out(driver, {0x93, 0, 0, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 0x08}, 16, block)));
  CHECK(host.image(6 << 20, 1 << 20) == std::vector<std::byte>(1 << 20, std::byte{0x5a}));
  CHECK(host.image(7 << 20, 512) == std::vector<std::byte>(512, std::byte{'i'}));
}

// Commands in flight over the disk, each slot with a region of its own: writes, then reads back and compares.
// Random sizes up to 64 KiB, random order of completion.
struct LoadCase {
  const char* rule;
  GuestChannel::Options channel;
  std::uint32_t depth;
};
const LoadCase kLoadCases[] = {
    {"one at a time", {}, 1},
    {"queue depth 32", {}, 32},
    {"scattered ring pages", {.layout = Layout::kScattered}, 32},
    // 4 KiB of ring hold some 10 commands: the guest waits for room all the time.
    {"smallest rings, deep queue", {.to_host_pages = 2, .from_host_pages = 2}, 64},
    // 64 answers of 88 bytes do not fit: the host waits for room.
    {"small answers' ring", {.to_host_pages = 8, .from_host_pages = 2}, 64},
};

class Load {
 public:
  // The slots' regions begin at slot `first_slot` of the disk.
  Load(ChildPartition& child, StorClient& stor, std::uint32_t depth, std::uint32_t seed,
       std::uint64_t first_slot = 0)
      : stor_(stor), random_(seed), first_slot_(first_slot) {
    for (std::uint32_t slot = 0; slot < depth; ++slot) {
      slots_.push_back({must(child.ram().take(kSlotBytes / kPageSize, Layout::kScattered)), {}});
    }
  }

  void run(std::uint32_t rounds) { run({this}, rounds); }
  // All at once, each on its channel.
  static void run(const std::vector<Load*>& loads, std::uint32_t rounds) {
    for (std::uint32_t round = 0; round < rounds; ++round) {
      for (Load* const load : loads) load->fill();
      run_all(loads, scsi::Opcode::kWrite16);
      for (Load* const load : loads) load->clear();
      run_all(loads, scsi::Opcode::kRead16);
      for (const Load* const load : loads) load->check();
    }
  }

 private:
  static constexpr std::size_t kSlotBytes = 64 << 10;
  struct Slot {
    Pages pages;
    std::vector<std::byte> expected;
  };

  static void run_all(const std::vector<Load*>& loads, scsi::Opcode opcode) {
    for (Load* const load : loads) load->next_ = load->completed_ = 0;
    for (bool done = false; !done;) {
      done = true;
      for (Load* const load : loads) {
        const bool moved = load->pump(opcode);
        if (load->completed_ == load->slots_.size()) continue;
        done = false;
        if (!moved && loads.size() == 1) (void)must(load->stor_.wait());
      }
    }
    for (const Load* const load : loads) REQUIRE(load->stor_.in_flight() == 0);
  }

  void fill() {
    for (Slot& slot : slots_) {
      slot.expected =
          random_bytes((1 + random_() % (kSlotBytes / 512)) * 512, static_cast<std::uint32_t>(random_()));
      slot.pages.write(0, slot.expected);
    }
  }
  void clear() {
    for (const Slot& slot : slots_) slot.pages.write(0, std::vector<std::byte>(kSlotBytes));
  }
  void check() const {
    for (const Slot& slot : slots_) {
      std::vector<std::byte> read(slot.expected.size());
      slot.pages.read(0, read);
      REQUIRE(read == slot.expected);
    }
  }

  // Submits what there is room for and takes what is there; false where nothing was.
  bool pump(scsi::Opcode opcode) {
    while (next_ < slots_.size()) {
      const std::size_t bytes = slots_[next_].expected.size();
      StorCommand command = block_command(opcode, (first_slot_ + next_) * kSlotBytes / 512,
                                          static_cast<std::uint32_t>(bytes / 512));
      command.pages = slots_[next_].pages.gpns().first((bytes + kPageSize - 1) / kPageSize);
      command.bytes = static_cast<std::uint32_t>(bytes);
      if (!must(stor_.submit(command))) break;
      ++next_;
    }
    must(stor_.flush());
    const std::uint32_t count =
        must(stor_.poll([](const StorCompletion& completion) { REQUIRE(succeeded(completion.packet)); }));
    completed_ += count;
    return count != 0;
  }

  StorClient& stor_;
  std::mt19937 random_;
  std::uint64_t first_slot_;
  std::vector<Slot> slots_;
  std::size_t next_ = 0;
  std::size_t completed_ = 0;
};

TEST_CASE("many commands in flight keep their data apart", "[guest]") {
  const std::uint32_t seed = std::random_device()();
  for (const LoadCase& c : kLoadCases) {
    DYNAMIC_SECTION(c.rule) {
      UNSCOPED_INFO("seed " << seed);
      Host host;
      const auto child = host.attach();
      Driver driver(*child, {.channel = c.channel, .depth = c.depth});
      Load load(*child, *driver.stor, c.depth, seed);
      load.run(5);
      must(driver.channel->close());
    }
  }
}

// A sub-channel as a driver opens it: its own rings and VP, no initialisation.
struct SubChannel {
  SubChannel(Driver& primary, std::uint32_t depth)
      : offer(must(primary.bus.wait_offer())),
        channel(must(GuestChannel::open(primary.bus, offer, {.target_vp = offer.sub_channel_index}))),
        stor(*channel, depth) {}

  vmbus::OfferChannel offer;
  std::unique_ptr<GuestChannel> channel;
  StorClient stor;
};

TEST_CASE("sub-channels move data side by side", "[guest]") {
  constexpr std::uint32_t kDepth = 32;  // slots of 64 KiB: 4 channels fill the disk
  Host host;
  const auto child = host.attach("one", 4);
  Driver driver(*child, {.depth = kDepth});
  const vstor::ChannelProperties& properties = driver.stor->properties();
  CHECK(properties.flags == vstor::kPropertyMultiChannel);
  REQUIRE(properties.max_channel_count == 3);
  CHECK(must(driver.stor->create_sub_channels(4)) == vstor::Status::kInvalidParameter);
  REQUIRE(must(driver.stor->create_sub_channels(3)) == vstor::Status::kSuccess);
  CHECK(must(driver.stor->create_sub_channels(1)) == vstor::Status::kInvalidParameter);
  std::vector<std::unique_ptr<SubChannel>> sub_channels;
  for (std::uint16_t i = 1; i <= 3; ++i) {
    sub_channels.push_back(std::make_unique<SubChannel>(driver, kDepth));
    CHECK(sub_channels.back()->offer.sub_channel_index == i);
    CHECK(sub_channels.back()->offer.instance == driver.offer.instance);
  }

  std::vector<std::unique_ptr<Load>> loads;
  loads.push_back(std::make_unique<Load>(*child, *driver.stor, kDepth, 1));
  for (std::uint32_t i = 0; i < 3; ++i) {
    loads.push_back(std::make_unique<Load>(*child, sub_channels[i]->stor, kDepth, 2 + i, (i + 1) * kDepth));
  }
  // Every completion comes on the channel that asked: each client knows only the ids that it gave.
  Load::run({loads[0].get(), loads[1].get(), loads[2].get(), loads[3].get()}, 5);

  SECTION("a reset on the primary waits for all of them") {
    const Pages buffer = must(child->ram().take(16, Layout::kContiguous));
    for (const auto& sub_channel : sub_channels) {
      StorCommand command = block_command(scsi::Opcode::kWrite16, 0, 128);
      command.pages = buffer.gpns();
      command.bytes = 64 << 10;
      for (std::uint32_t i = 0; i < kDepth; ++i) REQUIRE(must(sub_channel->stor.submit(command)));
      must(sub_channel->stor.flush());
    }
    vstor::Packet reset{};
    reset.header = {vstor::Operation::kResetBus, vstor::kFlagCompletionRequested, vstor::Status::kSuccess};
    must(driver.stor->call(reset));
    CHECK(reset.header.status == vstor::Status::kSuccess);
    for (const auto& sub_channel : sub_channels) {
      while (sub_channel->stor.in_flight() != 0) {
        if (must(sub_channel->stor.poll([](const StorCompletion&) {})) == 0) {
          (void)must(sub_channel->stor.wait());
        }
      }
    }
  }
  SECTION("closing the primary takes them back, and they can be asked for again") {
    must(driver.channel->close());
    for (std::uint16_t i = 0; i < 3; ++i) (void)must(driver.bus.wait_rescind());
    for (const auto& sub_channel : sub_channels) {
      must(sub_channel->channel->close());
      must(driver.bus.release_relid(sub_channel->channel->relid()));
    }
    driver.channel = must(GuestChannel::open(driver.bus, driver.offer));
    StorClient again(*driver.channel, kDepth);
    must(again.initialize());
    REQUIRE(must(again.create_sub_channels(1)) == vstor::Status::kSuccess);
    CHECK(must(driver.bus.wait_offer()).sub_channel_index == 1);
  }
}

TEST_CASE("a VMM that dies under I/O disturbs no other partition", "[guest]") {
  Host host;
  const auto other = host.attach("two");
  Driver bystander(*other);
  Load load(*other, *bystander.stor, 16, 1);
  for (int i = 0; i < 20; ++i) {
    auto victim = host.attach("one");
    auto driver = std::make_unique<Driver>(*victim);
    const Pages buffer = must(victim->ram().take(256, Layout::kScattered));
    StorCommand command = block_command(scsi::Opcode::kWrite16, 0, 2048);
    command.pages = buffer.gpns();
    command.bytes = 1 << 20;
    while (must(driver->stor->submit(command))) {
    }
    must(driver->stor->flush());
    victim->disconnect();
    load.run(1);
  }
  const auto again = host.attach("one");
  Driver driver(*again);
  CHECK(must(driver.disk->capacity()).blocks * 512 == kImageBytes);
}

}  // namespace
}  // namespace vmbusd::guest
