// The channel protocol from the guest's side, against vmbusd.
#include "tests/guest/host.h"

namespace vmbusd::guest {
namespace {

using vmbus::Version;

TEST_CASE("every VMBus version brings a guest to its disk", "[guest]") {
  Host host;
  const auto child = host.attach();
  for (const Version version : kAllVersions) {
    DYNAMIC_SECTION("version " << std::hex << static_cast<std::uint32_t>(version)) {
      Driver driver(*child, {.version = version});
      CHECK(must(driver.disk->capacity()).blocks * 512 == kImageBytes);
      const auto written = random_bytes(64 << 10, static_cast<std::uint32_t>(version));
      must(driver.disk->write(1 << 20, written));
      CHECK(read_disk(*driver.disk, 1 << 20, written.size()) == written);
      must(driver.channel->close());
      must(driver.bus.unload());
      CHECK(child->doorbells() == 0);
    }
  }
}

TEST_CASE("the newest version that both know is negotiated", "[guest]") {
  Host host;
  const auto child = host.attach();
  BusClient bus(*child);
  CHECK(must(bus.negotiate()) == Version::k6_0);
  constexpr std::array kOfTheFuture = {Version{0x00070000}, Version{0x00060001}, Version::k5_3};
  CHECK(must(bus.negotiate(kOfTheFuture)) == Version::k5_3);
  CHECK(error_of(bus.contact(Version::k0_13)) == Errc::kUnsupported);
  CHECK(error_of(bus.contact(Version{0})) == Errc::kUnsupported);
  CHECK(error_of(bus.contact(Version{0xffffffff})) == Errc::kUnsupported);
  must(bus.contact(Version::k5_3));
}

TEST_CASE("the offer stays the same over connections", "[guest]") {
  Host host;
  const auto child = host.attach();
  BusClient bus(*child);
  must(bus.contact(Version::k5_3));
  const vmbus::OfferChannel first = scsi_offer(must(bus.request_offers()));
  must(bus.unload());
  must(bus.contact(Version::k4_0));
  const vmbus::OfferChannel second = scsi_offer(must(bus.request_offers()));
  CHECK(first.instance == second.instance);
  CHECK(first.relid >= 1);
  CHECK(first.relid < 2048);
  CHECK(first.connection_id != 0);
  CHECK((first.interrupt_flags & vmbus::kDedicatedInterrupt) != 0);
}

TEST_CASE("a channel is closed and opened again", "[guest]") {
  Host host;
  const auto child = host.attach();
  Driver driver(*child);
  const auto written = random_bytes(8192, 1);
  must(driver.disk->write(0, written));

  SECTION("with a new GPADL, as hv_vmbus does") {
    must(driver.channel->close());
    CHECK(child->doorbells() == 0);
    driver.channel = must(GuestChannel::open(driver.bus, driver.offer));
  }
  SECTION("with the same GPADL, as uio_hv_generic does") {
    must(driver.channel->reopen());
  }
  StorClient again(*driver.channel, 1);
  must(again.initialize());
  Disk disk(again);
  CHECK(read_disk(disk, 0, written.size()) == written);
}

TEST_CASE("a guest that boots again finds its disk as it left it", "[guest]") {
  Host host;
  const auto child = host.attach();
  const auto written = random_bytes(8192, 2);
  {
    Driver driver(*child);
    must(driver.disk->write(4096, written));
    SECTION("after UNLOAD, the channel still open") {
      must(driver.bus.unload());
    }
    SECTION("without a word, as after kexec from a crash") {}
    SECTION("after the VMM's reset") {
      must(child->reset());
    }
  }
  Driver driver(*child);
  CHECK(child->doorbells() == 1);
  CHECK(read_disk(*driver.disk, 4096, written.size()) == written);
}

TEST_CASE("a hundred connections leave nothing behind", "[guest]") {
  Host host;
  const auto child = host.attach();
  { const Driver warm_up(*child); }
  const pid_t worker = host.daemon().worker_pid();
  const std::size_t before = daemon::open_descriptors(worker);
  for (int i = 0; i < 100; ++i) const Driver driver(*child);
  BusClient bus(*child);
  must(bus.contact(Version::k5_3));
  must(bus.unload());
  CHECK(child->doorbells() == 0);
  CHECK(daemon::open_descriptors(worker) <= before);
}

// A VMM that takes memory back waits for the I/O into it, and for nothing else: not for channels that are
// only open.
TEST_CASE("memory comes and goes under I/O", "[guest]") {
  constexpr std::uint64_t kGpa = std::uint64_t{1} << 30;
  Host host;
  const auto child = host.attach();
  const std::unique_ptr<Ram> more = must(Ram::create(8 * kPageSize));
  Driver driver(*child);
  std::vector<Gpn> pages;
  for (Gpn page = 0; page < 8; ++page) pages.push_back(kGpa / kPageSize + page);
  StorCommand command = block_command(scsi::Opcode::kRead16, 0, 64);
  command.pages = pages;
  command.bytes = 8 * kPageSize;
  for (int round = 0; round < 20; ++round) {
    must(child->client().add_memory(kGpa, more->size(), more->fd(), 0, true));
    CHECK(succeeded(must(driver.stor->execute(command))));
    CHECK(*more->host(0) == std::byte{'i'});
    std::memset(more->host(0), 0, more->size());

    while (must(driver.stor->submit(command))) {
    }
    must(driver.stor->flush());
    must(child->client().remove_memory(kGpa, more->size()));
    // Each was performed before, or is refused.
    while (driver.stor->in_flight() != 0) {
      must(driver.stor->poll([](const StorCompletion&) {}));
      if (driver.stor->in_flight() != 0) must(driver.stor->wait());
    }
    CHECK_FALSE(succeeded(must(driver.stor->execute(command))));
  }
}

TEST_CASE("interrupts move to another VP under I/O", "[guest]") {
  Host host;
  const auto child = host.attach("one", 4);
  Driver driver(*child);
  for (const std::uint32_t vp : {3u, 1u, 0u, 2u}) {
    CHECK(must(driver.channel->retarget(vp)) == vmbus::Status::kSuccess);
    const auto written = random_bytes(4096, vp);
    must(driver.disk->write(vp * 4096, written));
    CHECK(read_disk(*driver.disk, vp * 4096, 4096) == written);
  }
  CHECK(must(driver.channel->retarget(4)) != vmbus::Status::kSuccess);
  CHECK(read_disk(*driver.disk, 0, 4096) == random_bytes(4096, 0));
}

TEST_CASE("the host's messages come to the VP that asked", "[guest]") {
  Host host;
  const auto child = host.attach("one", 2);
  BusClient bus(*child);
  must(bus.contact(Version::k5_3, {.target_vp = 1}));
  (void)scsi_offer(must(bus.request_offers()));
  must(bus.unload());
}

// GPADLs of as many pages as one can have, so that one needs some 290 body messages.
TEST_CASE("a GPADL takes as many pages as its length field can say", "[guest]") {
  Host host;
  const auto child = host.attach();
  BusClient bus(*child);
  must(bus.contact(Version::k5_3));
  const vmbus::OfferChannel offer = scsi_offer(must(bus.request_offers()));
  const Pages page = must(child->ram().take(1));
  const std::vector<Gpn> pages(8190, page.gpns()[0]);
  const std::uint32_t gpadl = must(bus.create_gpadl(offer.relid, pages));
  must(bus.teardown_gpadl(offer.relid, gpadl));
  CHECK(error_of(bus.create_gpadl(offer.relid, std::array<Gpn, 1>{child->ram().size() / kPageSize})) ==
        Errc::kBadGpadl);
}

}  // namespace
}  // namespace vmbusd::guest
