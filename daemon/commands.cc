#include "daemon/commands.h"

#include <optional>
#include <utility>

#include "base/overloaded.h"
#include "daemon/config.h"
#include "daemon/object_reader.h"

namespace vmbusd::daemon {

namespace {

constexpr const char* kDo = "do";
constexpr const char* kConfigure = "configure";
constexpr const char* kConfine = "confine";
constexpr const char* kAddIntegration = "add-integration";
constexpr const char* kAddScsi = "add-scsi";
constexpr const char* kAddNic = "add-nic";
constexpr const char* kStart = "start";
constexpr const char* kConnection = "connection";
constexpr const char* kChangeNic = "change-nic";
constexpr const char* kChangeDevices = "change-devices";
constexpr const char* kWhat = "what";
constexpr const char* kRemoveDevice = "remove-device";
constexpr const char* kAddDisk = "add-disk";
constexpr const char* kRemoveDisk = "remove-disk";
constexpr const char* kGrowDisk = "grow-disk";
constexpr const char* kLimitDisk = "limit-disk";
constexpr const char* kChanged = "changed";
constexpr const char* kConnectDisk = "connect-disk";
constexpr const char* kStatus = "status";
constexpr const char* kGuest = "guest";
constexpr const char* kLogLevel = "log-level";
constexpr const char* kStop = "stop";
constexpr const char* kRecoveryArea = "recovery-area";
constexpr const char* kKeptFd = "kept-fd";
constexpr const char* kKeepFd = "keep-fd";
constexpr const char* kDropFd = "drop-fd";
constexpr const char* kLeave = "leave";
constexpr const char* kStays = "stays";
constexpr const char* kTakenUp = "taken-up";
constexpr const char* kTakeUp = "take-up";
constexpr const char* kReport = "report";
constexpr const char* kReady = "ready";
constexpr const char* kConnectionEnded = "connection-ended";
constexpr const char* kBackendLost = "backend-lost";
constexpr const char* kChannel = "channel";
constexpr const char* kConnectionWanted = "connection-wanted";

// The descriptors beside a command, taken in the order in which its text mentions them.
class FdQueue {
 public:
  explicit FdQueue(std::vector<UniqueFd> fds) : fds_(std::move(fds)) {}

  [[nodiscard]] UniqueFd take() {
    if (taken_ == fds_.size()) {
      short_ = true;
      return {};
    }
    return std::move(fds_[taken_++]);
  }
  [[nodiscard]] bool all_taken() const { return taken_ == fds_.size() && !short_; }

 private:
  std::vector<UniqueFd> fds_;
  std::size_t taken_ = 0;
  bool short_ = false;
};

SandboxConfig read_sandbox(ObjectReader& object) {
  SandboxConfig sandbox;
  const bool becomes = object.boolean("becomes");
  const UserIds ids{object.integer("user", 0, UINT32_MAX), object.integer("group", 0, UINT32_MAX)};
  if (becomes) sandbox.user = ids;
  sandbox.seccomp = static_cast<SeccompAction>(
      object.integer("seccomp", 0, static_cast<std::uint32_t>(SeccompAction::kNone)));
  sandbox.own_bytes_max = object.integer64("own_bytes_max");
  return sandbox;
}

integration::Config read_integration(ObjectReader& object) {
  integration::Config config;
  config.partition = object.text("partition");
  config.heartbeat = object.boolean("heartbeat");
  config.shutdown = object.boolean("shutdown");
  config.timesync = object.boolean("timesync");
  config.kvp = object.boolean("kvp");
  config.vss = object.boolean("vss");
  return config;
}

std::uint8_t read_lun(ObjectReader& object) {
  return static_cast<std::uint8_t>(object.integer("lun", 0, storvsp::kMaxLuns - 1));
}

storvsp::DiskLimits read_limits(ObjectReader& object) {
  storvsp::DiskLimits limits;
  limits.operations = object.integer("operations_max", 0, kDiskOperationsMax);
  limits.bytes = object.integer64("bytes_max");
  limits.burst_ms = object.integer("burst_ms", 0, kBurstMsMax);
  return limits;
}

storvsp::NbdConfig read_nbd(ObjectReader& object) {
  storvsp::NbdConfig nbd;
  nbd.export_name = object.text("export");
  nbd.reconnect_delay_s = object.integer("reconnect_delay", 1, storvsp::kReconnectDelayMax);
  nbd.found.size_bytes = object.integer64("size_bytes");
  nbd.found.block_bytes = object.integer("block_bytes", 512, 4096);
  nbd.found.preferred_bytes = object.integer("preferred_bytes", 1, UINT32_MAX);
  nbd.found.transfer_bytes_max = object.integer("transfer_bytes_max", 4096, UINT32_MAX);
  nbd.found.writable = object.boolean("writable");
  nbd.found.rotational = object.boolean("rotational");
  nbd.found.flushes = object.boolean("flushes");
  nbd.found.fua = object.boolean("fua");
  nbd.found.trims = object.boolean("trims");
  nbd.found.zeroes = object.boolean("zeroes");
  nbd.found.extents = object.boolean("extents");
  return nbd;
}

storvsp::DiskConfig read_disk(ObjectReader& object, FdQueue& fds) {
  using Backend = storvsp::DiskConfig::Backend;
  storvsp::DiskConfig disk;
  disk.lun = read_lun(object);
  disk.incarnation = object.integer64("incarnation");
  disk.backend =
      static_cast<Backend>(object.integer("backend", 0, static_cast<std::uint32_t>(Backend::kNull)));
  if (disk.backend == Backend::kFile) disk.fd = fds.take();
  if (disk.backend == Backend::kNbd) {
    ObjectReader nbd = object.object("nbd");
    disk.nbd = read_nbd(nbd);
    if (!nbd.ok()) object.refuse();
  }
  if (object.boolean("reservations")) disk.reservations = fds.take();
  disk.size_bytes = object.integer64("size_bytes");
  disk.limits = read_limits(object);
  disk.read_only = object.boolean("read_only");
  disk.poll = object.boolean("poll");
  disk.discard = object.boolean("discard");
  disk.cache = static_cast<storvsp::CacheMode>(
      object.integer("cache", 0, static_cast<std::uint32_t>(storvsp::CacheMode::kUnsafe)));
  disk.logical_block_bytes = object.integer("logical_block_bytes", 0, 4096);
  disk.physical_block_bytes = object.integer("physical_block_bytes", 0, 65536);
  disk.vendor = object.text("vendor");
  disk.product = object.text("product");
  disk.revision = object.text("revision");
  disk.serial = object.text("serial");
  disk.identity = object.guid("identity");
  return disk;
}

storvsp::ControllerConfig read_controller(ObjectReader& object, FdQueue& fds) {
  storvsp::ControllerConfig controller;
  controller.partition = object.text("partition");
  controller.name = object.text("name");
  controller.instance = object.guid("instance");
  controller.incarnation = object.integer64("incarnation");
  controller.max_transfer_bytes = object.integer("max_transfer_bytes", 4096, storvsp::kMaxTransferBytes);
  controller.channels = object.integer("channels", 0, storvsp::kMaxChannels);
  object.array("disks", storvsp::kMaxLuns,
               [&](ObjectReader& disk) { controller.disks.push_back(read_disk(disk, fds)); });
  return controller;
}

std::vector<UniqueFd> read_queues(ObjectReader& object, FdQueue& fds) {
  std::vector<UniqueFd> queues(object.integer("fds", 0, netvsp::kMaxQueues));
  for (UniqueFd& queue : queues) queue = fds.take();
  return queues;
}

netvsp::NicConfig read_nic(ObjectReader& object, FdQueue& fds) {
  using Backend = netvsp::NicConfig::Backend;
  netvsp::NicConfig nic;
  nic.partition = object.text("partition");
  nic.name = object.text("name");
  nic.instance = object.guid("instance");
  nic.incarnation = object.integer64("incarnation");
  nic.mac = object.mac("mac");
  nic.mtu = object.integer("mtu", netvsp::kMtuMin, netvsp::kMtuMax);
  nic.backend =
      static_cast<Backend>(object.integer("backend", 0, static_cast<std::uint32_t>(Backend::kLoopback)));
  nic.fds = read_queues(object, fds);
  if (object.boolean("steering")) nic.steering = fds.take();
  nic.queues = object.integer("queues", 1, netvsp::kMaxQueues);
  nic.check_source_mac = object.boolean("check_source_mac");
  nic.link_speed_mbps = object.integer("link_speed_mbps", 1, UINT32_MAX);
  nic.monitored = object.boolean("monitor");
  nic.friendly_name = object.text("friendly_name");
  nic.null_receive_bytes = object.integer("null_receive_bytes", 0, UINT16_MAX);
  return nic;
}

std::optional<DeviceChange> read_change(ObjectReader& object, FdQueue& fds) {
  const std::string what = object.text(kWhat);
  if (what == kAddScsi) return read_controller(object, fds);
  if (what == kAddNic) return read_nic(object, fds);
  if (what == kRemoveDevice) return RemoveDevice{object.text("device")};
  const std::string controller = object.text("controller");
  if (what == kAddDisk) return AddDisk{controller, read_disk(object, fds)};
  const std::uint8_t lun = read_lun(object);
  if (what == kRemoveDisk) return RemoveDisk{controller, lun};
  if (what == kGrowDisk) return GrowDisk{controller, lun, object.integer64("size_bytes")};
  if (what == kLimitDisk) return LimitDisk{controller, lun, read_limits(object)};
  return std::nullopt;
}

std::optional<Command> read_command(ObjectReader& object, FdQueue& fds) {
  const std::string what = object.text(kDo);
  if (what == kConfigure) {
    ConfigureCommand command;
    command.partition = object.text("partition");
    command.io_threads = object.integer("io_threads", 1, kIoThreadsMax);
    command.poll_us = object.integer("poll_us", 0, kPollUsMax);
    command.polled_rings = object.boolean("polled_rings");
    return command;
  }
  if (what == kConfine) return read_sandbox(object);
  if (what == kAddIntegration) return read_integration(object);
  if (what == kAddScsi) return read_controller(object, fds);
  if (what == kAddNic) return read_nic(object, fds);
  if (what == kStart) return StartCommand{};
  if (what == kRecoveryArea) {
    RecoveryAreaCommand command;
    command.file = fds.take();
    if (object.boolean("for_vmm")) command.for_vmm = fds.take();
    return command;
  }
  if (what == kKeptFd) {
    const partition::FdKey key = object.integer64("key");
    return KeptFdCommand{key, fds.take()};
  }
  if (what == kConnection) {
    const bool take_up = object.boolean("take_up");
    return ConnectionCommand{fds.take(), take_up};
  }
  if (what == kChangeNic) {
    ChangeNicCommand command;
    command.nic = object.text("nic");
    command.link = object.boolean_or_null("link");
    command.fds = read_queues(object, fds);
    return command;
  }
  if (what == kChangeDevices) {
    const std::uint32_t id = object.integer("id", 0, UINT32_MAX);
    std::optional<DeviceChange> change = read_change(object, fds);
    if (!change) return std::nullopt;
    return ChangeDevicesCommand{id, *std::move(change)};
  }
  if (what == kConnectDisk) {
    ConnectDiskCommand command;
    command.controller = object.text("controller");
    command.lun = read_lun(object);
    command.socket = fds.take();
    return command;
  }
  if (what == kStatus) {
    StatusCommand command;
    command.id = object.integer("id", 0, UINT32_MAX);
    command.file = fds.take();
    return command;
  }
  if (what == kGuest) {
    constexpr auto kMax = static_cast<std::uint32_t>(GuestCommand::Ask::kDeleteKey);
    GuestCommand command;
    command.id = object.integer("id", 0, UINT32_MAX);
    command.ask = static_cast<GuestCommand::Ask>(object.integer("ask", 0, kMax));
    command.timeout_s = object.integer("timeout_s", 0, UINT32_MAX);
    command.key = object.text("key");
    command.value = object.text("value");
    return command;
  }
  if (what == kLogLevel) {
    constexpr auto kMax = static_cast<std::uint32_t>(LogLevel::kError);
    return LogLevelCommand{static_cast<LogLevel>(object.integer("level", 0, kMax))};
  }
  if (what == kLeave) return LeaveCommand{};
  if (what == kStop) return StopCommand{object.boolean("restart")};
  return std::nullopt;
}

std::optional<Report> read_report(ObjectReader& object, FdQueue& fds) {
  const std::string what = object.text(kReport);
  if (what == kReady) return ReadyReport{};
  if (what == kConnectionEnded) return ConnectionEndedReport{};
  if (what == kBackendLost) return BackendLostReport{object.text("nic")};
  if (what == kChannel) return ChannelReport{object.shown_text("device"), object.boolean("open")};
  if (what == kConnectionWanted) {
    ConnectionWantedReport report;
    report.controller = object.text("controller");
    report.lun = read_lun(object);
    return report;
  }
  if (what == kStatus) return StatusReport{object.integer("id", 0, UINT32_MAX)};
  if (what == kGuest) {
    const std::uint32_t id = object.integer("id", 0, UINT32_MAX);
    return GuestReport{id, object.shown_text("problem")};
  }
  if (what == kChanged) {
    const std::uint32_t id = object.integer("id", 0, UINT32_MAX);
    return ChangedReport{id, object.shown_text("problem")};
  }
  if (what == kKeepFd) {
    const partition::FdKey key = object.integer64("key");
    return KeepFdReport{key, fds.take()};
  }
  if (what == kDropFd) return DropFdReport{object.integer64("key")};
  if (what == kTakenUp) return TakenUpReport{};
  if (what == kTakeUp) return TakeUpReport{fds.take()};
  if (what == kStays) return StaysReport{};
  return std::nullopt;
}

Json write(const storvsp::NbdConfig& nbd) {
  return {{"export", nbd.export_name},
          {"reconnect_delay", nbd.reconnect_delay_s},
          {"size_bytes", nbd.found.size_bytes},
          {"block_bytes", nbd.found.block_bytes},
          {"preferred_bytes", nbd.found.preferred_bytes},
          {"transfer_bytes_max", nbd.found.transfer_bytes_max},
          {"writable", nbd.found.writable},
          {"rotational", nbd.found.rotational},
          {"flushes", nbd.found.flushes},
          {"fua", nbd.found.fua},
          {"trims", nbd.found.trims},
          {"zeroes", nbd.found.zeroes},
          {"extents", nbd.found.extents}};
}

Json guid_or_null(const std::optional<Guid>& guid) {
  return guid ? Json(guid->to_string()) : Json(nullptr);
}

// The text to be, and the descriptors beside it.
struct Writing {
  Json json;
  std::vector<int> fds;
};

Json write_limits(const storvsp::DiskLimits& limits) {
  return {{"operations_max", limits.operations}, {"bytes_max", limits.bytes}, {"burst_ms", limits.burst_ms}};
}

Json write(const storvsp::DiskConfig& disk, std::vector<int>& fds) {
  if (disk.backend == storvsp::DiskConfig::Backend::kFile) fds.push_back(disk.fd.get());
  if (disk.reservations) fds.push_back(disk.reservations.get());
  Json json = write_limits(disk.limits);
  json.update({{"lun", disk.lun},
               {"incarnation", disk.incarnation},
               {"backend", static_cast<std::uint32_t>(disk.backend)},
               {"size_bytes", disk.size_bytes},
               {"reservations", static_cast<bool>(disk.reservations)},
               {"read_only", disk.read_only},
               {"poll", disk.poll},
               {"discard", disk.discard},
               {"cache", static_cast<std::uint32_t>(disk.cache)},
               {"logical_block_bytes", disk.logical_block_bytes},
               {"physical_block_bytes", disk.physical_block_bytes},
               {"vendor", disk.vendor},
               {"product", disk.product},
               {"revision", disk.revision},
               {"serial", disk.serial},
               {"identity", guid_or_null(disk.identity)}});
  if (disk.backend == storvsp::DiskConfig::Backend::kNbd) json["nbd"] = write(disk.nbd);
  return json;
}

std::vector<int> numbers_of(std::span<const UniqueFd> fds) {
  std::vector<int> numbers;
  for (const UniqueFd& fd : fds) numbers.push_back(fd.get());
  return numbers;
}

Writing write(const storvsp::ControllerConfig& controller) {
  Writing writing;
  Json disks = Json::array();
  for (const storvsp::DiskConfig& disk : controller.disks) disks.push_back(write(disk, writing.fds));
  writing.json = {{"partition", controller.partition},
                  {"name", controller.name},
                  {"instance", guid_or_null(controller.instance)},
                  {"incarnation", controller.incarnation},
                  {"max_transfer_bytes", controller.max_transfer_bytes},
                  {"channels", controller.channels},
                  {"disks", std::move(disks)}};
  return writing;
}

Writing write(const netvsp::NicConfig& nic) {
  Writing writing;
  writing.fds = numbers_of(nic.fds);
  if (nic.steering) writing.fds.push_back(nic.steering.get());
  writing.json = {{"partition", nic.partition},
                  {"name", nic.name},
                  {"instance", guid_or_null(nic.instance)},
                  {"incarnation", nic.incarnation},
                  {"mac", nic.mac ? Json(nic.mac->to_string()) : Json(nullptr)},
                  {"mtu", nic.mtu},
                  {"backend", static_cast<std::uint32_t>(nic.backend)},
                  {"fds", nic.fds.size()},
                  {"steering", static_cast<bool>(nic.steering)},
                  {"queues", nic.queues},
                  {"check_source_mac", nic.check_source_mac},
                  {"link_speed_mbps", nic.link_speed_mbps},
                  {"monitor", nic.monitored},
                  {"friendly_name", nic.friendly_name},
                  {"null_receive_bytes", nic.null_receive_bytes}};
  return writing;
}

EncodedCommand change_of(std::uint32_t id, const char* what, Writing writing) {
  writing.json.update({{kDo, kChangeDevices}, {kWhat, what}, {"id", id}});
  return {dump(writing.json), std::move(writing.fds)};
}

}  // namespace

EncodedCommand encode(const ConfigureCommand& command) {
  return {dump({{kDo, kConfigure},
                {"partition", command.partition},
                {"io_threads", command.io_threads},
                {"poll_us", command.poll_us},
                {"polled_rings", command.polled_rings}}),
          {}};
}

EncodedCommand encode(const SandboxConfig& sandbox) {
  const UserIds ids = sandbox.user.value_or(UserIds{});
  return {dump({{kDo, kConfine},
                {"becomes", sandbox.user.has_value()},
                {"user", ids.user},
                {"group", ids.group},
                {"seccomp", static_cast<std::uint32_t>(sandbox.seccomp)},
                {"own_bytes_max", sandbox.own_bytes_max}}),
          {}};
}

EncodedCommand encode(const integration::Config& integration) {
  return {dump({{kDo, kAddIntegration},
                {"partition", integration.partition},
                {"heartbeat", integration.heartbeat},
                {"shutdown", integration.shutdown},
                {"timesync", integration.timesync},
                {"kvp", integration.kvp},
                {"vss", integration.vss}}),
          {}};
}

EncodedCommand encode(const storvsp::ControllerConfig& controller) {
  Writing writing = write(controller);
  writing.json[kDo] = kAddScsi;
  return {dump(writing.json), std::move(writing.fds)};
}

EncodedCommand encode(const netvsp::NicConfig& nic) {
  Writing writing = write(nic);
  writing.json[kDo] = kAddNic;
  return {dump(writing.json), std::move(writing.fds)};
}

EncodedCommand encode_change(std::uint32_t id, const storvsp::ControllerConfig& added) {
  return change_of(id, kAddScsi, write(added));
}
EncodedCommand encode_change(std::uint32_t id, const netvsp::NicConfig& added) {
  return change_of(id, kAddNic, write(added));
}
EncodedCommand encode_change(std::uint32_t id, const std::string& controller,
                             const storvsp::DiskConfig& added) {
  Writing writing;
  writing.json = write(added, writing.fds);
  writing.json["controller"] = controller;
  return change_of(id, kAddDisk, std::move(writing));
}
EncodedCommand encode_change(std::uint32_t id, const RemoveDevice& change) {
  return change_of(id, kRemoveDevice, {{{"device", change.device}}, {}});
}
EncodedCommand encode_change(std::uint32_t id, const RemoveDisk& change) {
  return change_of(id, kRemoveDisk, {{{"controller", change.controller}, {"lun", change.lun}}, {}});
}
EncodedCommand encode_change(std::uint32_t id, const GrowDisk& change) {
  return change_of(
      id, kGrowDisk,
      {{{"controller", change.controller}, {"lun", change.lun}, {"size_bytes", change.size_bytes}}, {}});
}
EncodedCommand encode_change(std::uint32_t id, const LimitDisk& change) {
  Writing writing{write_limits(change.limits), {}};
  writing.json.update({{"controller", change.controller}, {"lun", change.lun}});
  return change_of(id, kLimitDisk, std::move(writing));
}

EncodedCommand encode(const StartCommand&) {
  return {dump({{kDo, kStart}}), {}};
}
EncodedCommand encode(const LeaveCommand&) {
  return {dump({{kDo, kLeave}}), {}};
}
EncodedCommand encode(const StopCommand& command) {
  return {dump({{kDo, kStop}, {"restart", command.restart}}), {}};
}
EncodedCommand encode_recovery_area(int file, int for_vmm) {
  EncodedCommand encoded{dump({{kDo, kRecoveryArea}, {"for_vmm", for_vmm >= 0}}), {file}};
  if (for_vmm >= 0) encoded.fds.push_back(for_vmm);
  return encoded;
}
EncodedCommand encode_kept_fd(partition::FdKey key, int fd) {
  return {dump({{kDo, kKeptFd}, {"key", key}}), {fd}};
}
EncodedCommand encode_connection(int socket, bool take_up) {
  return {dump({{kDo, kConnection}, {"take_up", take_up}}), {socket}};
}

EncodedCommand encode_change_nic(const std::string& nic, std::optional<bool> link,
                                 std::span<const UniqueFd> fds) {
  return {dump({{kDo, kChangeNic},
                {"nic", nic},
                {"link", link ? Json(*link) : Json(nullptr)},
                {"fds", fds.size()}}),
          numbers_of(fds)};
}

EncodedCommand encode_connect_disk(const std::string& controller, std::uint8_t lun, int socket) {
  return {dump({{kDo, kConnectDisk}, {"controller", controller}, {"lun", lun}}), {socket}};
}

EncodedCommand encode_status(std::uint32_t id, int file) {
  return {dump({{kDo, kStatus}, {"id", id}}), {file}};
}

EncodedCommand encode(const GuestCommand& command) {
  return {dump({{kDo, kGuest},
                {"id", command.id},
                {"ask", static_cast<std::uint32_t>(command.ask)},
                {"timeout_s", command.timeout_s},
                {"key", command.key},
                {"value", command.value}}),
          {}};
}

EncodedCommand encode(const LogLevelCommand& command) {
  return {dump({{kDo, kLogLevel}, {"level", static_cast<std::uint32_t>(command.level)}}), {}};
}

std::string encode(const Report& report) {
  return std::visit(
      Overloaded{[](const ReadyReport&) {
                   return dump({{kReport, kReady}});
                 },
                 [](const ConnectionEndedReport&) {
                   return dump({{kReport, kConnectionEnded}});
                 },
                 [](const BackendLostReport& lost) {
                   return dump({{kReport, kBackendLost}, {"nic", lost.nic}});
                 },
                 [](const ChannelReport& channel) {
                   return dump({{kReport, kChannel}, {"device", channel.device}, {"open", channel.open}});
                 },
                 [](const ConnectionWantedReport& wanted) {
                   return dump({{kReport, kConnectionWanted},
                                {"controller", wanted.controller},
                                {"lun", wanted.lun}});
                 },
                 [](const StatusReport& status) {
                   return dump({{kReport, kStatus}, {"id", status.id}});
                 },
                 [](const KeepFdReport& keep) {
                   return dump({{kReport, kKeepFd}, {"key", keep.key}});
                 },
                 [](const DropFdReport& drop) {
                   return dump({{kReport, kDropFd}, {"key", drop.key}});
                 },
                 [](const TakenUpReport&) {
                   return dump({{kReport, kTakenUp}});
                 },
                 [](const TakeUpReport&) {
                   return dump({{kReport, kTakeUp}});
                 },
                 [](const GuestReport& guest) {
                   return dump({{kReport, kGuest}, {"id", guest.id}, {"problem", guest.problem}});
                 },
                 [](const ChangedReport& changed) {
                   return dump({{kReport, kChanged}, {"id", changed.id}, {"problem", changed.problem}});
                 },
                 [](const StaysReport&) {
                   return dump({{kReport, kStays}});
                 }},
      report);
}

Result<Command> decode_command(CommandDatagram datagram) {
  const Json json = Json::parse(datagram.text, nullptr, false);
  ObjectReader object(json);
  FdQueue fds(std::move(datagram.fds));
  std::optional<Command> command = read_command(object, fds);
  if (!command || !object.ok() || !fds.all_taken()) return fail(Errc::kProtocol, "not a command");
  return *std::move(command);
}

Result<Report> decode_report(CommandDatagram datagram) {
  const Json json = Json::parse(datagram.text, nullptr, false);
  ObjectReader object(json);
  FdQueue fds(std::move(datagram.fds));
  std::optional<Report> report = read_report(object, fds);
  if (!report || !object.ok() || !fds.all_taken()) return fail(Errc::kProtocol, "not a report");
  return *std::move(report);
}

}  // namespace vmbusd::daemon
