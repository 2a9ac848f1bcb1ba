// What the supervisor and a partition's worker process say to each other: one JSON object a datagram.
//
//   supervisor                            worker process
//   Configure            ------------>
//   Confine              ------------>    from here on it can reach nothing but what it is sent
//   RecoveryArea + 1 or 2 memfds ---->    the same for every worker process of the partition
//   AddScsi + image fds  ------------>    once for each controller
//   AddNic + queue fds   ------------>    once for each NIC; a TAP's steering table comes behind its queues
//   Start                ------------>
//                        <------------    Ready: devices stand, connections may come
//   KeptFd + 1 fd        ------------>    before a Connection that is taken up: once for each
//   Connection + 1 fd    ------------>    at most one at a time
//                        <------------    KeepFd + 1 fd, DropFd: what that connection needs beyond this
//                        worker
//                        <------------    TakenUp: a Connection that was taken up is served
//                        <------------    TakeUp + 1 fd: a VMM has given back what it kept of another
//                        supervisor's connection, the recovery area here, the rest by KeepFd before; the
//                        worker exits with status 0 for one that takes it up
//                        <------------    BackendLost: a NIC's TAP or peer is gone
//                        <------------    Channel: the guest opened or closed a device
//   ChangeNic + queue fds ----------->    at any time: its link, or what was opened in place of that
//   ChangeDevices + fds  ------------>    at any time after Start: what comes, goes or changes
//                        <------------    Changed: that is so, or not
//                        <------------    ConnectionWanted: an NBD disk needs a connection, and has none
//   ConnectDisk + 1 fd   ------------>    that it was asked for
//                        <------------    ConnectionEnded: nothing of it is in use any more
//   Status + 1 memfd     ------------>    at any time after Start
//                        <------------    Status: the memfd holds a PartitionStatus
//   LogLevel             ------------>    at any time
//   Leave                ------------>    exits with status 0 once its connection can be taken up ...
//                        <------------    Stays: ... or says that this did not come about
//   Stop                 ------------>    drains and exits with status 0; where it is a restart, it leaves
//                                         behind a connection that can be taken up, if it can
//   end of file          ------------>    the same in haste, for its supervisor has died
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "base/result.h"
#include "daemon/command_socket.h"
#include "daemon/sandbox.h"
#include "devices/integration/integration.h"
#include "netvsp/nic.h"
#include "partition/attach_server.h"
#include "storvsp/controller.h"

namespace vmbusd::daemon {

struct ConfigureCommand {
  std::string partition;
  std::uint32_t io_threads = 1;  // 1..kIoThreadsMax
  std::uint32_t poll_us = 0;     // 0..kPollUsMax
  bool polled_rings = false;     // some disk is polled

  friend bool operator==(const ConfigureCommand&, const ConfigureCommand&) = default;
};

// Then SandboxConfig as it is, and the devices: integration::Config, storvsp::ControllerConfig and
// netvsp::NicConfig as they are.

struct StartCommand {};

// Where the worker records what another needs to take up its connection.
struct RecoveryAreaCommand {
  UniqueFd file;
  UniqueFd for_vmm;  // the same, for a VMM to keep; perhaps none
};

// One that KeepFd gave.
struct KeptFdCommand {
  partition::FdKey key = 0;
  UniqueFd fd;
};

struct ConnectionCommand {
  UniqueFd socket;
  bool take_up = false;  // of a worker process that died
};

// Changes one NIC and leaves the devices beside it alone.
struct ChangeNicCommand {
  std::string nic;            // netvsp::NicConfig::name
  std::optional<bool> link;   // netvsp::Nic::set_link(); empty: as it is
  std::vector<UniqueFd> fds;  // netvsp::Nic::replace_backend(); empty: as it is
};

// What can happen to the devices while guests use them; ControllerConfig and NicConfig come with all that is
// theirs.
struct RemoveDevice {
  std::string device;  // its name in the partition
};
struct AddDisk {
  std::string controller;
  storvsp::DiskConfig disk;
};
struct RemoveDisk {
  std::string controller;
  std::uint8_t lun = 0;
};
struct GrowDisk {
  std::string controller;
  std::uint8_t lun = 0;
  std::uint64_t size_bytes = 0;
};
struct LimitDisk {
  std::string controller;
  std::uint8_t lun = 0;
  storvsp::DiskLimits limits;
};
using DeviceChange = std::variant<storvsp::ControllerConfig, netvsp::NicConfig, RemoveDevice, AddDisk,
                                  RemoveDisk, GrowDisk, LimitDisk>;
struct ChangeDevicesCommand {
  std::uint32_t id = 0;  // comes back in the report
  DeviceChange change;
};

// Gives an NBD disk a connection to its server.
struct ConnectDiskCommand {
  std::string controller;  // storvsp::ControllerConfig::name
  std::uint8_t lun = 0;
  UniqueFd socket;
};

// Asks how the partition is. The answer may be larger than a datagram, so a file carries it.
struct StatusCommand {
  std::uint32_t id = 0;  // comes back in the report
  UniqueFd file;         // memfd, empty
};

// Asks the guest for something that its integration components can do.
struct GuestCommand {
  enum class Ask : std::uint8_t { kPowerOff, kReboot, kHibernate, kFreeze, kThaw, kSetKey, kDeleteKey };

  std::uint32_t id = 0;  // comes back in the report
  Ask ask = Ask::kPowerOff;
  std::uint32_t timeout_s = 0;  // kFreeze: 1 to Vss::kFreezeTimeMax
  std::string key;              // kSetKey, kDeleteKey
  std::string value;            // kSetKey

  friend bool operator==(const GuestCommand&, const GuestCommand&) = default;
};

struct LogLevelCommand {
  LogLevel level = LogLevel::kInfo;
};

struct LeaveCommand {};

struct StopCommand {
  bool restart = false;  // another supervisor may come, and take up its guest
};

using Command = std::variant<ConfigureCommand, SandboxConfig, RecoveryAreaCommand, integration::Config,
                             storvsp::ControllerConfig, netvsp::NicConfig, StartCommand, KeptFdCommand,
                             ConnectionCommand, ChangeNicCommand, ConnectDiskCommand, ChangeDevicesCommand,
                             StatusCommand, GuestCommand, LogLevelCommand, LeaveCommand, StopCommand>;

// A command ready to be sent; the descriptors stay their owner's.
struct EncodedCommand {
  std::string text;
  std::vector<int> fds;
};

struct ReadyReport {};

struct ConnectionEndedReport {};

struct BackendLostReport {
  std::string nic;  // netvsp::NicConfig::name
};

// A device's primary channel.
struct ChannelReport {
  std::string device;  // without the partition's name
  bool open = false;
};

struct ConnectionWantedReport {
  std::string controller;
  std::uint8_t lun = 0;
};

struct StatusReport {
  std::uint32_t id = 0;
};

struct KeepFdReport {
  partition::FdKey key = 0;
  UniqueFd fd;
};

struct DropFdReport {
  partition::FdKey key = 0;
};

struct TakenUpReport {};

struct TakeUpReport {
  UniqueFd area;  // not looked at
};

struct StaysReport {};

// What came of a GuestCommand.
struct GuestReport {
  std::uint32_t id = 0;
  std::string problem;  // empty: it is done
};

// What came of a ChangeDevicesCommand. What goes is out of use then.
struct ChangedReport {
  std::uint32_t id = 0;
  std::string problem;  // empty: it is done
};

using Report = std::variant<ReadyReport, ConnectionEndedReport, BackendLostReport, ChannelReport,
                            ConnectionWantedReport, StatusReport, GuestReport, ChangedReport, KeepFdReport,
                            DropFdReport, TakenUpReport, TakeUpReport, StaysReport>;

[[nodiscard]] EncodedCommand encode(const ConfigureCommand& command);
[[nodiscard]] EncodedCommand encode(const SandboxConfig& sandbox);
[[nodiscard]] EncodedCommand encode(const integration::Config& integration);
[[nodiscard]] EncodedCommand encode(const storvsp::ControllerConfig& controller);
[[nodiscard]] EncodedCommand encode(const netvsp::NicConfig& nic);
[[nodiscard]] EncodedCommand encode(const StartCommand& command);
[[nodiscard]] EncodedCommand encode(const LeaveCommand& command);
[[nodiscard]] EncodedCommand encode(const StopCommand& command);
// `for_vmm`: -1 for none.
[[nodiscard]] EncodedCommand encode_recovery_area(int file, int for_vmm);
[[nodiscard]] EncodedCommand encode_kept_fd(partition::FdKey key, int fd);
[[nodiscard]] EncodedCommand encode_connection(int socket, bool take_up);
[[nodiscard]] EncodedCommand encode_change_nic(const std::string& nic, std::optional<bool> link,
                                               std::span<const UniqueFd> fds);
// ChangeDevicesCommand, of each kind.
[[nodiscard]] EncodedCommand encode_change(std::uint32_t id, const storvsp::ControllerConfig& added);
[[nodiscard]] EncodedCommand encode_change(std::uint32_t id, const netvsp::NicConfig& added);
[[nodiscard]] EncodedCommand encode_change(std::uint32_t id, const std::string& controller,
                                           const storvsp::DiskConfig& added);
[[nodiscard]] EncodedCommand encode_change(std::uint32_t id, const RemoveDevice& change);
[[nodiscard]] EncodedCommand encode_change(std::uint32_t id, const RemoveDisk& change);
[[nodiscard]] EncodedCommand encode_change(std::uint32_t id, const GrowDisk& change);
[[nodiscard]] EncodedCommand encode_change(std::uint32_t id, const LimitDisk& change);
[[nodiscard]] EncodedCommand encode_connect_disk(const std::string& controller, std::uint8_t lun, int socket);
[[nodiscard]] EncodedCommand encode_status(std::uint32_t id, int file);
[[nodiscard]] EncodedCommand encode(const GuestCommand& command);
[[nodiscard]] EncodedCommand encode(const LogLevelCommand& command);
// The descriptor of a KeepFdReport or TakeUpReport goes beside it.
[[nodiscard]] std::string encode(const Report& report);

// Errc::kProtocol for anything that encode() does not make. The supervisor does not trust a worker, which a
// guest may have taken over.
[[nodiscard]] Result<Command> decode_command(CommandDatagram datagram);
[[nodiscard]] Result<Report> decode_report(CommandDatagram datagram);

}  // namespace vmbusd::daemon
