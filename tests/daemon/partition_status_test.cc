#include "daemon/partition_status.h"

#include <unistd.h>

#include <string>
#include <vector>

#include "tests/catch.h"

namespace vmbusd::daemon {
namespace {

PartitionStatus full_status() {
  PartitionStatus status;
  status.attached = true;
  status.bus.vp_count = 4;
  status.bus.vmbus_version = 5u << 16 | 3;
  devices::ChannelStatus channel;
  channel.device = "scsi0";
  channel.sub_channel_index = 1;
  channel.relid = 7;
  channel.state = "running";
  channel.target_vp = 3;
  channel.in_flight = 2;
  channel.incoming = {16384, 80, 40, 1, 0};
  channel.outgoing = {16384, 8, 16, 0, 96};
  channel.doorbells = 1;
  channel.interrupts = 2;
  channel.interrupts_saved = UINT64_MAX;
  channel.io = {3, 4, 5, 6, 7, 8};
  status.bus.channels = {channel};
  netvsp::NicStatus nic;
  nic.link_reason = "switched off";
  nic.mtu = 1500;
  nic.queues = {netvsp::QueueCounters{.tx_packets = 9, .rx_bytes = 10}};
  status.guest.health = integration::Health::kLost;
  status.guest.freeze = integration::FreezeState::kFrozen;
  status.guest.facts = {{"OSName", "Debian"}};
  status.guest.keys = {{"k", std::string(3000, 'v')}};
  status.guest.parts[0] = {integration::PartState::kReady, {3, 1}};
  status.devices = {{"scsi0", std::nullopt}, {"nic0", nic}};
  return status;
}

TEST_CASE("a status arrives as it was sent", "[daemon]") {
  const UniqueFd file = make_status_file().value();
  REQUIRE(write_status_file(file.get(), full_status()).has_value());
  const PartitionStatus got = read_status_file(file.get()).value();
  CHECK(encode(got) == encode(full_status()));
  CHECK(got.bus.channels.at(0).interrupts_saved == UINT64_MAX);
  CHECK(got.bus.channels.at(0).outgoing.pending_send_size == 96);
  CHECK(got.guest.health == integration::Health::kLost);
  CHECK(got.guest.freeze == integration::FreezeState::kFrozen);
  CHECK(got.guest.facts == full_status().guest.facts);
  CHECK(got.guest.keys == full_status().guest.keys);
  CHECK(got.guest.parts[0].version == integration::Version{3, 1});
  CHECK(got.devices.at(1).nic->queues.at(0).rx_bytes == 10);
}

TEST_CASE("what a worker that was taken over says is not believed", "[daemon]") {
  struct Case {
    const char* rule;
    std::string text;
  };
  const std::string good = encode(full_status());
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return text;
  };
  const std::vector<Case> cases = {
      {"nothing", ""},
      {"no JSON", "{"},
      {"another type", "[]"},
      {"a member less", with("\"vps\":4", "\"vp\":4")},
      {"a number below 0", with("\"vps\":4", "\"vps\":-4")},
      {"a number with a fraction", with("\"vps\":4", "\"vps\":4.5")},
      {"a number of more than 32 bits", with("\"vps\":4", "\"vps\":4294967296")},
      {"a number of more than 64 bits", with("18446744073709551615", "18446744073709551616")},
      {"a text for a number", with("\"relid\":7", "\"relid\":\"7\"")},
      {"a ring that is a number", with("\"incoming\":{", "\"incoming\":1,\"x\":{")},
      {"deep nesting", std::string(1'000'000, '[')},
      {"no UTF-8", with("running", "run\xffning")},
  };
  for (const Case& c : cases) {
    DYNAMIC_SECTION(c.rule) {
      CHECK_FALSE(decode_partition_status(c.text).has_value());
    }
  }
}

TEST_CASE("texts of a worker cannot move a terminal's cursor", "[daemon]") {
  PartitionStatus status = full_status();
  status.bus.channels[0].device = "a\x1b[2J" + std::string(1000, 'b');
  const std::string shown = decode_partition_status(encode(status)).value().bus.channels[0].device;
  CHECK(shown.starts_with("a?[2Jb"));
  status.bus.channels[0].device = "a\xc2\x9b" + std::string(252, 'b') + "\xc3\xbc";
  const std::string cut = decode_partition_status(encode(status)).value().bus.channels[0].device;
  CHECK(cut == "a??" + std::string(252, 'b'));
  CHECK(shown.size() == 256);
}

TEST_CASE("a status file of a size that cannot be is not read", "[daemon]") {
  const UniqueFd file = make_status_file().value();
  CHECK_FALSE(read_status_file(file.get()).has_value());
  REQUIRE(::ftruncate(file.get(), static_cast<off_t>(kStatusBytesMax) + 1) == 0);
  CHECK_FALSE(read_status_file(file.get()).has_value());
}

}  // namespace
}  // namespace vmbusd::daemon
