#include "daemon/commands.h"

#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <variant>
#include <vector>

#include "daemon/command_socket.h"
#include "daemon/nbd_address.h"
#include "tests/catch.h"

namespace vmbusd::daemon {
namespace {

UniqueFd some_fd() {
  return UniqueFd(::eventfd(0, EFD_CLOEXEC));
}

// The command as it comes out at the other end of a socket pair.
Result<Command> carried(const EncodedCommand& command) {
  auto sockets = make_command_sockets().value();
  REQUIRE(send_command(sockets.first.get(), command.text, command.fds).has_value());
  return decode_command(receive_command(sockets.second.get()).value().value());
}

TEST_CASE("commands arrive as they were sent", "[daemon]") {
  const auto configure = std::get<ConfigureCommand>(carried(encode(ConfigureCommand{"demo", 3, 20})).value());
  CHECK(configure == ConfigureCommand{"demo", 3, 20});
  for (const SandboxConfig& sandbox : {SandboxConfig{UserIds{65534, 65533}, SeccompAction::kLog, 1u << 30},
                                       SandboxConfig{std::nullopt, SeccompAction::kKill, 0}}) {
    CHECK(std::get<SandboxConfig>(carried(encode(sandbox)).value()) == sandbox);
  }
  const integration::Config parts{"demo", false, true, false, true, false};
  CHECK(std::get<integration::Config>(carried(encode(parts)).value()) == parts);
  for (const GuestCommand& guest :
       {GuestCommand{7, GuestCommand::Ask::kHibernate, 0, "", ""},
        GuestCommand{8, GuestCommand::Ask::kFreeze, 600, "", ""},
        GuestCommand{9, GuestCommand::Ask::kSetKey, 0, "key", "gr\u00fc\u00dfe"}}) {
    CHECK(std::get<GuestCommand>(carried(encode(guest)).value()) == guest);
  }
  CHECK(std::holds_alternative<StartCommand>(carried(encode(StartCommand{})).value()));
  CHECK(std::holds_alternative<StopCommand>(carried(encode(StopCommand{})).value()));
  const UniqueFd vmm = some_fd();
  CHECK(std::get<ConnectionCommand>(carried(encode_connection(vmm.get(), false)).value()).socket);
}

TEST_CASE("a full controller fits into one datagram", "[daemon]") {
  storvsp::ControllerConfig controller;
  controller.partition = std::string(64, 'p');
  controller.name = std::string(64, 'n');
  controller.instance = Guid::derive("a", "b");
  controller.channels = storvsp::kMaxChannels;
  for (std::uint32_t lun = 0; lun < storvsp::kMaxLuns; ++lun) {
    storvsp::DiskConfig& disk = controller.disks.emplace_back();
    disk.lun = static_cast<std::uint8_t>(lun);
    disk.fd = some_fd();
    disk.reservations = some_fd();
    disk.limits = {100'000'000, std::uint64_t{1} << 50, 10'000};
    disk.read_only = true;
    disk.discard = false;
    disk.poll = true;
    disk.cache = storvsp::CacheMode::kUnsafe;
    disk.logical_block_bytes = 4096;
    disk.physical_block_bytes = 65536;
    disk.vendor = std::string(8, '"');  // each takes two bytes in JSON
    disk.product = std::string(16, '"');
    disk.revision = std::string(4, '"');
    disk.serial = std::string(36, '"');
    disk.identity = Guid::derive("c", std::to_string(lun));
  }
  const auto got = std::get<storvsp::ControllerConfig>(carried(encode(controller)).value());
  CHECK(got.partition == controller.partition);
  CHECK(got.name == controller.name);
  CHECK(got.instance == controller.instance);
  CHECK(got.channels == storvsp::kMaxChannels);
  REQUIRE(got.disks.size() == storvsp::kMaxLuns);
  const storvsp::DiskConfig& last = got.disks.back();
  CHECK(last.lun == storvsp::kMaxLuns - 1);
  CHECK(last.fd);
  CHECK(last.reservations);
  CHECK(last.limits == controller.disks.back().limits);
  CHECK(last.read_only);
  CHECK(!last.discard);
  CHECK(last.poll);
  CHECK(last.cache == storvsp::CacheMode::kUnsafe);
  CHECK(last.logical_block_bytes == 4096);
  CHECK(last.physical_block_bytes == 65536);
  CHECK(last.serial == controller.disks.back().serial);
  CHECK(last.identity == controller.disks.back().identity);
}

TEST_CASE("a full controller of NBD disks fits into one datagram", "[daemon]") {
  storvsp::ControllerConfig controller;
  controller.partition = std::string(64, 'p');
  controller.name = std::string(64, 'n');
  for (std::uint32_t lun = 0; lun < storvsp::kMaxLuns; ++lun) {
    storvsp::DiskConfig& disk = controller.disks.emplace_back();
    disk.lun = static_cast<std::uint8_t>(lun);
    disk.backend = storvsp::DiskConfig::Backend::kNbd;
    disk.limits = {100'000'000, std::uint64_t{1} << 50, 10'000};
    disk.nbd.export_name = std::string(kExportNameBytesMax, '"');
    disk.nbd.reconnect_delay_s = storvsp::kReconnectDelayMax;
    disk.nbd.found.size_bytes = std::uint64_t{1} << 60;
    disk.nbd.found.block_bytes = 4096;
    disk.nbd.found.writable = disk.nbd.found.fua = disk.nbd.found.extents = true;
    disk.vendor = std::string(8, '"');
    disk.product = std::string(16, '"');
    disk.revision = std::string(4, '"');
    disk.serial = std::string(36, '"');
    disk.identity = Guid::derive("c", std::to_string(lun));
  }
  const auto got = std::get<storvsp::ControllerConfig>(carried(encode(controller)).value());
  REQUIRE(got.disks.size() == storvsp::kMaxLuns);
  const storvsp::DiskConfig& last = got.disks.back();
  CHECK(last.nbd.export_name == controller.disks.back().nbd.export_name);
  CHECK(last.nbd.reconnect_delay_s == storvsp::kReconnectDelayMax);
  CHECK(last.nbd.found == controller.disks.back().nbd.found);

  const UniqueFd socket = some_fd();
  const auto connect =
      std::get<ConnectDiskCommand>(carried(encode_connect_disk("s", 63, socket.get())).value());
  CHECK(connect.controller == "s");
  CHECK(connect.lun == 63);
  CHECK(connect.socket);
}

TEST_CASE("a NIC arrives with its queues", "[daemon]") {
  netvsp::NicConfig nic;
  nic.partition = "p";
  nic.name = "nic0";
  nic.mac = netvsp::MacAddress{{2, 0, 0, 0, 0, 1}};
  nic.mtu = 9000;
  nic.backend = netvsp::NicConfig::Backend::kTap;
  nic.queues = netvsp::kMaxQueues;
  for (std::uint32_t i = 0; i < nic.queues; ++i) nic.fds.push_back(some_fd());
  nic.steering = some_fd();
  nic.check_source_mac = true;
  nic.link_speed_mbps = 25'000;
  nic.monitored = true;
  nic.friendly_name = "uplink";
  nic.null_receive_bytes = 60;
  const auto got = std::get<netvsp::NicConfig>(carried(encode(nic)).value());
  CHECK(got.partition == nic.partition);
  CHECK(got.name == nic.name);
  CHECK_FALSE(got.instance.has_value());
  CHECK(got.mac == nic.mac);
  CHECK(got.mtu == nic.mtu);
  CHECK(got.backend == nic.backend);
  CHECK(got.queues == nic.queues);
  CHECK(got.fds.size() == nic.fds.size());
  CHECK(got.steering);
  CHECK(got.check_source_mac);
  CHECK(got.link_speed_mbps == nic.link_speed_mbps);
  CHECK(got.monitored);
  CHECK(got.friendly_name == nic.friendly_name);
  CHECK(got.null_receive_bytes == nic.null_receive_bytes);
}

TEST_CASE("changes of devices arrive as they were sent", "[daemon]") {
  const auto change = [](const EncodedCommand& command) {
    return std::get<ChangeDevicesCommand>(carried(command).value());
  };
  storvsp::DiskConfig disk;
  disk.lun = 9;
  disk.incarnation = 77;
  disk.fd = some_fd();
  disk.limits = {5, 6, 7};
  const ChangeDevicesCommand added = change(encode_change(3, "scsi0", disk));
  CHECK(added.id == 3);
  CHECK(std::get<AddDisk>(added.change).controller == "scsi0");
  CHECK(std::get<AddDisk>(added.change).disk.lun == 9);
  CHECK(std::get<AddDisk>(added.change).disk.incarnation == 77);
  CHECK(std::get<AddDisk>(added.change).disk.fd);
  CHECK(std::get<AddDisk>(added.change).disk.limits == disk.limits);

  storvsp::ControllerConfig controller;
  controller.name = "scsi1";
  controller.incarnation = 4;
  controller.disks.push_back(std::move(disk));
  const auto plugged = std::get<storvsp::ControllerConfig>(change(encode_change(4, controller)).change);
  CHECK(plugged.name == "scsi1");
  CHECK(plugged.incarnation == 4);
  CHECK(plugged.disks.front().incarnation == 77);
  netvsp::NicConfig nic;
  nic.name = "nic1";
  nic.incarnation = 5;
  CHECK(std::get<netvsp::NicConfig>(change(encode_change(5, nic)).change).incarnation == 5);

  CHECK(std::get<RemoveDevice>(change(encode_change(6, RemoveDevice{"nic1"})).change).device == "nic1");
  const auto removed = std::get<RemoveDisk>(change(encode_change(7, RemoveDisk{"scsi0", 63})).change);
  CHECK((removed.controller == "scsi0" && removed.lun == 63));
  const auto grown = std::get<GrowDisk>(change(encode_change(8, GrowDisk{"s", 1, 1ull << 50})).change);
  CHECK((grown.controller == "s" && grown.lun == 1 && grown.size_bytes == 1ull << 50));
  const auto limited = std::get<LimitDisk>(change(encode_change(9, LimitDisk{"s", 2, {8, 9, 10}})).change);
  CHECK((limited.controller == "s" && limited.lun == 2));
  CHECK(limited.limits == storvsp::DiskLimits{8, 9, 10});
  CHECK_FALSE(decode_command({"{\"do\": \"change-devices\", \"id\": 1, \"what\": \"paint\"}", {}}));
}

TEST_CASE("descriptors go to the disks that have an image", "[daemon]") {
  storvsp::ControllerConfig controller;
  controller.name = "s";
  controller.disks.resize(2);
  controller.disks[0].backend = storvsp::DiskConfig::Backend::kNull;
  controller.disks[0].size_bytes = 1 << 20;
  controller.disks[1].lun = 1;
  controller.disks[1].fd = some_fd();
  const auto got = std::get<storvsp::ControllerConfig>(carried(encode(controller)).value());
  CHECK_FALSE(got.disks[0].fd);
  CHECK(got.disks[0].size_bytes == 1 << 20);
  CHECK_FALSE(got.disks[0].identity.has_value());
  CHECK(got.disks[1].fd);
}

TEST_CASE("a change of a NIC arrives with what is changed", "[daemon]") {
  const auto down = std::get<ChangeNicCommand>(carried(encode_change_nic("nic0", false, {})).value());
  CHECK(down.nic == "nic0");
  CHECK(down.link == false);
  CHECK(down.fds.empty());
  std::vector<UniqueFd> queues;
  for (std::uint32_t i = 0; i < netvsp::kMaxQueues; ++i) queues.push_back(some_fd());
  const auto moved = std::get<ChangeNicCommand>(carried(encode_change_nic("nic1", {}, queues)).value());
  CHECK_FALSE(moved.link.has_value());
  CHECK(moved.fds.size() == netvsp::kMaxQueues);
}

TEST_CASE("reports arrive as they were sent", "[daemon]") {
  const auto reported = [](const Report& report) { return decode_report({encode(report), {}}).value(); };
  CHECK(std::holds_alternative<ReadyReport>(reported(ReadyReport{})));
  CHECK(std::holds_alternative<ConnectionEndedReport>(reported(ConnectionEndedReport{})));
  CHECK(std::get<BackendLostReport>(reported(BackendLostReport{"nic0"})).nic == "nic0");
  const auto channel = std::get<ChannelReport>(reported(ChannelReport{"scsi0\n", true}));
  CHECK(channel.device == "scsi0?");
  CHECK(channel.open);
  const auto wanted = std::get<ConnectionWantedReport>(reported(ConnectionWantedReport{"scsi0", 63}));
  CHECK(wanted.controller == "scsi0");
  CHECK(wanted.lun == 63);
  const auto guest = std::get<GuestReport>(reported(GuestReport{7, "it refuses\x1b[2J"}));
  CHECK(guest.id == 7);
  CHECK(guest.problem == "it refuses?[2J");
}

TEST_CASE("anything else is no command and no report", "[daemon]") {
  for (const char* text : {"",
                           "x",
                           "[]",
                           "1",
                           "null",
                           "{}",
                           R"({"do":1})",
                           R"({"do":"fly"})",
                           R"({"do":"configure"})",
                           R"({"do":"configure","partition":"a","io_threads":0,"poll_us":0})",
                           R"({"do":"configure","partition":"a","io_threads":-1,"poll_us":0})",
                           R"({"do":"configure","partition":1,"io_threads":1,"poll_us":0})",
                           R"({"do":"connection"})",
                           R"({"report":"happy"})",
                           R"({"report":"backend-lost"})",
                           R"({"report":"connection-wanted","controller":"scsi0","lun":64})",
                           R"({"report":"backend-lost","nic":1})",
                           R"({"report":"channel","device":"scsi0"})",
                           R"({"report":"channel","device":"scsi0","open":1})",
                           R"({"do":"change-nic","nic":"n","fds":0})",
                           R"({"do":"change-nic","nic":"n","link":1,"fds":0})",
                           R"({"do":"change-nic","nic":"n","link":true,"fds":1})",
                           R"({"do":"change-nic","link":true,"fds":0})",
                           "{\"report\":\"ready\"",
                           "\xff"}) {
    INFO(text);
    CHECK_FALSE(decode_command({text, {}}).has_value());
    CHECK_FALSE(decode_report({text, {}}).has_value());
  }
  CommandDatagram surplus{encode(StopCommand{}).text, {}};
  surplus.fds.push_back(some_fd());
  CHECK_FALSE(decode_command(std::move(surplus)).has_value());
}

TEST_CASE("the command socket keeps datagrams and their bounds", "[daemon]") {
  auto sockets = make_command_sockets().value();
  CHECK_FALSE(receive_command(sockets.second.get()).value().has_value());
  REQUIRE(send_command(sockets.first.get(), "one").has_value());
  REQUIRE(send_command(sockets.first.get(), std::string(kCommandBytesMax, 'x')).has_value());
  CHECK(receive_command(sockets.second.get()).value()->text == "one");
  CHECK(receive_command(sockets.second.get()).value()->text.size() == kCommandBytesMax);

  const std::string too_long(kCommandBytesMax + 1, 'x');
  REQUIRE(::write(sockets.first.get(), too_long.data(), too_long.size()) ==
          static_cast<ssize_t>(too_long.size()));
  CHECK(receive_command(sockets.second.get()).error().code == Errc::kProtocol);

  Result<void> sent;
  for (int i = 0; i < 1000 && sent; ++i) sent = send_command(sockets.first.get(), std::string(1000, 'x'));
  CHECK(sent.error().code == Errc::kLimit);

  sockets.second.reset();
  CHECK(send_command(sockets.first.get(), "x").error().code == Errc::kClosed);
}

TEST_CASE("the most descriptors that a command may have arrive", "[daemon]") {
  auto sockets = make_command_sockets().value();
  const UniqueFd fd = some_fd();
  const std::vector<int> fds(kCommandFdsMax, fd.get());
  REQUIRE(send_command(sockets.first.get(), "x", fds).has_value());
  CHECK(receive_command(sockets.second.get()).value()->fds.size() == kCommandFdsMax);
  sockets.first.reset();
  CHECK(receive_command(sockets.second.get()).error().code == Errc::kClosed);
}

}  // namespace
}  // namespace vmbusd::daemon
