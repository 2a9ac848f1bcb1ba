// What comes, goes and changes among a partition's devices while it runs.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "daemon/disk_image.h"
#include "daemon/partition_supervisor.h"

namespace vmbusd::daemon {

namespace {

using boost::system::error_code;
using Backend = storvsp::DiskConfig::Backend;

// For the worker to follow, which waits for what is in flight at a disk that goes.
constexpr std::chrono::seconds kChangeTime{15};

std::size_t index_of(const ScsiConfig& scsi, std::uint8_t lun) {
  const auto& disks = scsi.controller.disks;
  const auto found =
      std::find_if(disks.begin(), disks.end(), [lun](const auto& disk) { return disk.lun == lun; });
  return static_cast<std::size_t>(found - disks.begin());
}

bool has_lun(const ScsiConfig& scsi, std::uint8_t lun) {
  return index_of(scsi, lun) < scsi.controller.disks.size();
}

constexpr const char* kPluggedOtherwise =
    "the configuration file has it, and another of that name came at run time: remove that first";

const std::string& name_of(const ScsiConfig& scsi) {
  return scsi.controller.name;
}
const std::string& name_of(const NicConfig& nic) {
  return nic.nic.name;
}

template <typename Device>
const Device* find_named(const std::vector<Device>& devices, const std::string& name) {
  const auto found = std::find_if(devices.begin(), devices.end(),
                                  [&](const Device& device) { return name_of(device) == name; });
  return found == devices.end() ? nullptr : &*found;
}

// Takes a disk out of a controller's configuration.
ScsiConfig one_disk(ScsiConfig& scsi, std::size_t index) {
  ScsiConfig one;
  one.controller.partition = scsi.controller.partition;
  one.controller.name = scsi.controller.name;
  one.controller.disks.push_back(std::move(scsi.controller.disks[index]));
  one.images.push_back(std::move(scsi.images[index]));
  return one;
}

std::string no_controller(const std::string& name) {
  return fmt::format("there is no controller {}", name);
}

std::string no_disk(const std::string& controller, std::uint8_t lun) {
  return fmt::format("there is no disk {}/{}", controller, lun);
}

}  // namespace

ScsiConfig* PartitionSupervisor::controller_of(const std::string& name) {
  for (ScsiConfig& scsi : config_.scsi) {
    if (scsi.controller.name == name) return &scsi;
  }
  return nullptr;
}

bool PartitionSupervisor::has_device(const std::string& name) const {
  return find_controller(name) != nullptr ||
         std::any_of(nics_.begin(), nics_.end(), [&](const auto& nic) { return nic->nic().name == name; });
}

const ScsiConfig* PartitionSupervisor::find_controller(const std::string& name) const {
  return const_cast<PartitionSupervisor*>(this)->controller_of(name);
}

const storvsp::DiskConfig* PartitionSupervisor::find_disk(const std::string& controller,
                                                          std::uint8_t lun) const {
  const ScsiConfig* const scsi = find_controller(controller);
  return scsi != nullptr && has_lun(*scsi, lun) ? &scsi->controller.disks[index_of(*scsi, lun)] : nullptr;
}

// Has the worker do what config_ says already, by a command of the number change_id_. A worker that is yet to
// come knows nothing else.
void PartitionSupervisor::change(EncodedCommand command, bool lends, Change change) {
  if (!worker_) {
    await_return(std::move(change.disks));
    return change.done("");
  }
  if (lends) {
    send_lending(std::move(command), config_.name);
  } else {
    worker_->send(command);
  }
  change.timer = std::make_unique<boost::asio::steady_timer>(context_);
  change.timer->expires_after(kChangeTime);
  change.timer->async_wait(lifetime_.guard([this, id = change_id_](error_code error) {
    if (error) return;
    const auto found = changes_.find(id);
    if (found == changes_.end() || !found->second.done) return;
    // What is held is held until the worker says more.
    const bool removes = found->second.nic != nullptr || !found->second.disks.empty();
    std::exchange(found->second.done, nullptr)(
        removes
            ? "it is out of the guest's reach, and its medium has not done yet what it was asked for; it is "
              "closed when it has"
            : "the partition's worker process does not answer");
  }));
  changes_.emplace(change_id_, std::move(change));
}

// A worker that is gone had lent them. Another may use them already, as far as its images go.
void PartitionSupervisor::await_return(std::vector<storvsp::DiskConfig> disks) {
  for (storvsp::DiskConfig& disk : disks) {
    if (!disk.fd) continue;
    unlock_image(disk.fd.get());
    returning_.push_back(std::move(disk.fd));
  }
}

void PartitionSupervisor::end_change(std::uint32_t id, const std::string& problem) {
  auto found = changes_.extract(id);
  if (found.empty()) return;
  Done done = std::move(found.mapped().done);
  if (!problem.empty() && found.mapped().undo) found.mapped().undo();
  found.mapped() = {};  // closed before the word is out
  if (done) done(problem);
}

// The worker is gone, and the next follows config_.
void PartitionSupervisor::end_changes() {
  for (auto& [id, change] : std::exchange(changes_, {})) {
    await_return(std::move(change.disks));
    if (change.done) change.done("");
  }
}

std::string PartitionSupervisor::name_conflict(const std::string& name,
                                               const std::optional<Guid>& instance) const {
  if (state_ == State::kStopping || state_ == State::kStopped) return "the partition stops";
  if (config_.scsi.size() >= kDevicesMax || nics_.size() >= kDevicesMax) {
    return fmt::format("there are {} of these devices already", kDevicesMax);
  }
  const auto taken = [&](const std::string& other, const std::optional<Guid>& other_instance) {
    if (other == name) return fmt::format("there is a device {} already", name);
    if (instance && instance == other_instance) return fmt::format("the instance is that of {}", other);
    return std::string();
  };
  for (const ScsiConfig& scsi : config_.scsi) {
    if (std::string problem = taken(scsi.controller.name, scsi.controller.instance); !problem.empty())
      return problem;
  }
  for (const auto& nic : nics_) {
    if (std::string problem = taken(nic->nic().name, nic->nic().instance); !problem.empty()) return problem;
  }
  return {};
}

// Disks.

void PartitionSupervisor::erase_disk(const std::string& controller, std::uint8_t lun) {
  ScsiConfig* const scsi = controller_of(controller);
  if (scsi == nullptr || !has_lun(*scsi, lun)) return;
  const auto index = static_cast<std::ptrdiff_t>(index_of(*scsi, lun));
  scsi->controller.disks.erase(scsi->controller.disks.begin() + index);
  scsi->images.erase(scsi->images.begin() + index);
  drop_servers();
}

// Of disks that are there no more. A worker that still uses one has its own socket to it.
void PartitionSupervisor::drop_servers() {
  std::erase_if(servers_, [this](const auto& server) {
    const storvsp::DiskConfig* const disk = find_disk(server.first.first, server.first.second);
    return disk == nullptr || disk->backend != Backend::kNbd;
  });
}

void PartitionSupervisor::add_disk(ScsiConfig added, Done done) {
  const std::string name = added.controller.name;
  storvsp::DiskConfig& disk = added.controller.disks.front();
  const std::uint8_t lun = disk.lun;
  ScsiConfig* const scsi = controller_of(name);
  if (state_ == State::kStopping || state_ == State::kStopped) return done("the partition stops");
  if (scsi == nullptr) return done(no_controller(name));
  if (has_lun(*scsi, lun)) return done(fmt::format("there is a disk {}/{} already", name, lun));
  if (const std::string problem = open_disk(added, 0, disk); !problem.empty()) return done(problem);
  scsi->controller.disks.push_back(std::move(disk));
  scsi->images.push_back(std::move(added.images.front()));
  if (const std::string problem = too_much(); !problem.empty()) {
    erase_disk(name, lun);
    return done(problem);
  }
  log_.info("{}: LUN {} added", name, lun);
  note(EventKind::kDeviceAdded, "", fmt::format("{}/{}", name, lun));
  Change change{std::move(done)};
  change.undo = [this, name, lun] { erase_disk(name, lun); };
  this->change(encode_change(++change_id_, name, scsi->controller.disks.back()), true, std::move(change));
}

void PartitionSupervisor::remove_disk(const std::string& controller, std::uint8_t lun, Done done) {
  ScsiConfig* const scsi = controller_of(controller);
  if (scsi == nullptr || !has_lun(*scsi, lun)) return done(no_disk(controller, lun));
  log_.info("{}: LUN {} removed", controller, lun);
  note(EventKind::kDeviceRemoved, "", fmt::format("{}/{}", controller, lun));
  Change change{std::move(done)};
  change.disks.push_back(std::move(scsi->controller.disks[index_of(*scsi, lun)]));
  change.disks.back().lun = lun;
  erase_disk(controller, lun);
  this->change(encode_change(++change_id_, RemoveDisk{controller, lun}), false, std::move(change));
}

void PartitionSupervisor::limit_disk(const std::string& controller, std::uint8_t lun,
                                     const storvsp::DiskLimits& limits, Done done) {
  ScsiConfig* const scsi = controller_of(controller);
  if (scsi == nullptr || !has_lun(*scsi, lun)) return done(no_disk(controller, lun));
  scsi->controller.disks[index_of(*scsi, lun)].limits = limits;
  this->change(encode_change(++change_id_, LimitDisk{controller, lun, limits}), false,
               Change{std::move(done)});
}

void PartitionSupervisor::grow_disk(const std::string& controller, std::uint8_t lun, std::uint64_t size_bytes,
                                    Done done) {
  ScsiConfig* const scsi = controller_of(controller);
  if (scsi == nullptr || !has_lun(*scsi, lun)) return done(no_disk(controller, lun));
  storvsp::DiskConfig& disk = scsi->controller.disks[index_of(*scsi, lun)];
  if (disk.backend == Backend::kNbd)
    return done(fmt::format("{}/{} is as large as its NBD server's export", controller, lun));
  std::uint64_t size_now = size_bytes;
  if (disk.backend == Backend::kFile) {
    const Result<std::uint64_t> grown = grow_image(disk.fd.get(), size_bytes);
    if (!grown) return done(fmt::format("{}/{}: {}", controller, lun, describe(grown.error())));
    size_now = *grown;
  } else {
    if (size_bytes < disk.size_bytes) return done(fmt::format("{}/{} does not shrink", controller, lun));
    disk.size_bytes = size_bytes;
  }
  log_.info("{}: LUN {} has {} bytes", controller, lun, size_now);
  note(EventKind::kDeviceResized, fmt::format("{} bytes", size_now), fmt::format("{}/{}", controller, lun));
  this->change(encode_change(++change_id_, GrowDisk{controller, lun, size_now}), false,
               Change{std::move(done)});
}

// Devices.

void PartitionSupervisor::add_controller(ScsiConfig added, Done done) {
  const std::string name = added.controller.name;
  if (std::string problem = name_conflict(name, added.controller.instance); !problem.empty())
    return done(problem);
  for (std::size_t i = 0; i < added.images.size(); ++i) {
    if (const std::string problem = open_disk(added, i, added.controller.disks[i]); !problem.empty())
      return done(problem);
  }
  added.controller.incarnation = incarnation_of(added.definition);
  config_.scsi.push_back(std::move(added));
  if (const std::string problem = too_much(); !problem.empty()) {
    config_.scsi.pop_back();
    return done(problem);
  }
  log_.info("controller {} added", name);
  note(EventKind::kDeviceAdded, "", name);
  Change change{std::move(done)};
  change.undo = [this, name] {
    std::erase_if(config_.scsi, [&](const ScsiConfig& scsi) { return scsi.controller.name == name; });
  };
  this->change(encode_change(++change_id_, config_.scsi.back().controller), true, std::move(change));
}

void PartitionSupervisor::add_nic(NicConfig added, Done done) {
  const std::string name = added.nic.name;
  if (std::string problem = name_conflict(name, added.nic.instance); !problem.empty()) return done(problem);
  nics_.push_back(make_keeper(std::move(added)));
  std::string problem = nics_.back()->open();
  if (problem.empty()) problem = too_much();
  if (!problem.empty()) {
    nics_.back()->stop();
    nics_.pop_back();
    return done(problem);
  }
  log_.info("NIC {} added", name);
  note(EventKind::kDeviceAdded, "", name);
  Change change{std::move(done)};
  change.undo = [this, name] {
    std::erase_if(nics_, [&](const auto& nic) { return nic->nic().name == name; });
  };
  this->change(encode_change(++change_id_, nics_.back()->nic()), false, std::move(change));
}

void PartitionSupervisor::remove_device(const std::string& device, Done done) {
  Change change{std::move(done)};
  if (ScsiConfig* const scsi = controller_of(device); scsi != nullptr) {
    change.disks = std::move(scsi->controller.disks);
    std::erase_if(config_.scsi, [&](const ScsiConfig& each) { return each.controller.name == device; });
    drop_servers();
  } else {
    const auto nic = std::find_if(nics_.begin(), nics_.end(),
                                  [&](const auto& each) { return each->nic().name == device; });
    if (nic == nics_.end()) return change.done(fmt::format("there is no device {}", device));
    (*nic)->stop();
    change.nic = std::move(*nic);
    nics_.erase(nic);
    links_off_.erase(device);
  }
  log_.info("{} removed", device);
  note(EventKind::kDeviceRemoved, "", device);
  this->change(encode_change(++change_id_, RemoveDevice{device}), false, std::move(change));
}

// Reload.

PartitionSupervisor::Done PartitionSupervisor::logged(const std::string& what) const {
  return [this, what](const std::string& problem) {
    if (!problem.empty()) log_.error("{}: {}", what, problem);
  };
}

void PartitionSupervisor::reload(PartitionConfig wanted) {
  std::vector<std::string> gone;
  for (const ScsiConfig& now : config_.scsi) {
    if (!now.plugged && find_named(wanted.scsi, now.controller.name) == nullptr)
      gone.push_back(now.controller.name);
  }
  for (const auto& now : nics_) {
    if (!now->plugged() && find_named(wanted.nics, now->nic().name) == nullptr)
      gone.push_back(now->nic().name);
  }
  for (const std::string& name : gone) remove_device(name, logged(name));
  for (ScsiConfig& scsi : wanted.scsi) reload_controller(std::move(scsi));
  for (NicConfig& nic : wanted.nics) reload_nic(std::move(nic));
}

void PartitionSupervisor::reload_controller(ScsiConfig wanted) {
  const std::string name = wanted.controller.name;
  ScsiConfig* const now = controller_of(name);
  if (now == nullptr) return add_controller(std::move(wanted), logged(name));
  if (now->definition != wanted.definition) {
    if (now->plugged) return logged(name)(kPluggedOtherwise);
    const auto added = std::make_shared<ScsiConfig>(std::move(wanted));
    return remove_device(name, [this, name, added](const std::string& problem) {
      if (!problem.empty()) return logged(name)(problem);
      add_controller(std::move(*added), logged(name));
    });
  }
  now->plugged = false;
  std::vector<std::uint8_t> gone;
  for (std::size_t i = 0; i < now->images.size(); ++i) {
    const std::uint8_t lun = now->controller.disks[i].lun;
    if (!now->images[i].plugged && !has_lun(wanted, lun)) gone.push_back(lun);
  }
  for (const std::uint8_t lun : gone) remove_disk(name, lun, logged(fmt::format("{}/{}", name, lun)));
  for (std::size_t i = 0; i < wanted.images.size(); ++i) reload_disk(one_disk(wanted, i));
}

void PartitionSupervisor::reload_disk(ScsiConfig wanted) {
  const std::string name = wanted.controller.name;
  const std::uint8_t lun = wanted.controller.disks.front().lun;
  const std::string subject = fmt::format("{}/{}", name, lun);
  ScsiConfig* const scsi = controller_of(name);
  if (!has_lun(*scsi, lun)) return add_disk(std::move(wanted), logged(subject));
  ImageConfig& now = scsi->images[index_of(*scsi, lun)];
  if (now.definition == wanted.images.front().definition) {
    now.plugged = false;
    const storvsp::DiskLimits& limits = wanted.controller.disks.front().limits;
    if (find_disk(name, lun)->limits != limits) limit_disk(name, lun, limits, logged(subject));
    return;
  }
  if (now.plugged) return logged(subject)(kPluggedOtherwise);
  const auto added = std::make_shared<ScsiConfig>(std::move(wanted));
  remove_disk(name, lun, [this, subject, added](const std::string& problem) {
    if (!problem.empty()) return logged(subject)(problem);
    add_disk(std::move(*added), logged(subject));
  });
}

void PartitionSupervisor::reload_nic(NicConfig wanted) {
  const std::string name = wanted.nic.name;
  const auto now =
      std::find_if(nics_.begin(), nics_.end(), [&](const auto& each) { return each->nic().name == name; });
  if (now == nics_.end()) return add_nic(std::move(wanted), logged(name));
  if ((*now)->definition() == wanted.definition) return (*now)->set_plugged(false);
  if ((*now)->plugged()) return logged(name)(kPluggedOtherwise);
  const auto added = std::make_shared<NicConfig>(std::move(wanted));
  remove_device(name, [this, name, added](const std::string& problem) {
    if (!problem.empty()) return logged(name)(problem);
    add_nic(std::move(*added), logged(name));
  });
}

}  // namespace vmbusd::daemon
