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
  Load(ChildPartition& child, StorClient& stor, std::uint32_t depth, std::uint32_t seed)
      : stor_(stor), random_(seed) {
    for (std::uint32_t slot = 0; slot < depth; ++slot) {
      slots_.push_back({must(child.ram().take(kSlotBytes / kPageSize, Layout::kScattered)), {}, false});
    }
  }

  void run(std::uint32_t rounds) {
    for (std::uint32_t round = 0; round < rounds; ++round) {
      for (Slot& slot : slots_) {
        slot.expected =
            random_bytes((1 + random_() % (kSlotBytes / 512)) * 512, static_cast<std::uint32_t>(random_()));
        slot.pages.write(0, slot.expected);
      }
      run_all(scsi::Opcode::kWrite16);
      for (const Slot& slot : slots_) slot.pages.write(0, std::vector<std::byte>(kSlotBytes));
      run_all(scsi::Opcode::kRead16);
      for (const Slot& slot : slots_) {
        std::vector<std::byte> read(slot.expected.size());
        slot.pages.read(0, read);
        REQUIRE(read == slot.expected);
      }
    }
  }

 private:
  static constexpr std::size_t kSlotBytes = 64 << 10;
  struct Slot {
    Pages pages;
    std::vector<std::byte> expected;
    bool done;
  };

  void run_all(scsi::Opcode opcode) {
    std::vector<std::size_t> slot_of_id(stor_.depth() + 1);
    std::size_t next = 0;
    std::size_t completed = 0;
    while (completed < slots_.size()) {
      while (next < slots_.size()) {
        const std::size_t bytes = slots_[next].expected.size();
        StorCommand command =
            block_command(opcode, next * kSlotBytes / 512, static_cast<std::uint32_t>(bytes / 512));
        command.pages = slots_[next].pages.gpns().first((bytes + kPageSize - 1) / kPageSize);
        command.bytes = static_cast<std::uint32_t>(bytes);
        const std::optional<std::uint64_t> id = must(stor_.submit(command));
        if (!id) break;
        slot_of_id[*id] = next++;
      }
      must(stor_.flush());
      const std::uint32_t count =
          must(stor_.poll([](const StorCompletion& completion) { REQUIRE(succeeded(completion.packet)); }));
      completed += count;
      if (count == 0) (void)must(stor_.wait());
    }
    REQUIRE(stor_.in_flight() == 0);
  }

  StorClient& stor_;
  std::mt19937 random_;
  std::vector<Slot> slots_;
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
