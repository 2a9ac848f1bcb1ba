#include "daemon/partition_worker.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/log.h"
#include "base/overloaded.h"
#include "daemon/command_socket.h"
#include "daemon/commands.h"
#include "daemon/lost_memory.h"
#include "daemon/options.h"
#include "daemon/partition_status.h"
#include "daemon/sandbox.h"
#include "devices/bus.h"
#include "devices/device.h"
#include "devices/integration/heartbeat.h"
#include "devices/integration/integration.h"
#include "devices/recovery_area.h"
#include "io/worker.h"
#include "netvsp/nic.h"
#include "storvsp/controller.h"

namespace vmbusd::daemon {

namespace {

bool has_one_cpu() {
  cpu_set_t cpus;
  return ::sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) == 1;
}

// Everything but stop_io() is called on the control thread.
//
//   run() -> commands -> begin_stop() -> [bus drains] -> end() -> run() returns
class PartitionWorker {
 public:
  PartitionWorker(io::Worker& control, UniqueFd socket, UniqueFd signals)
      : control_(control),
        socket_(std::move(socket)),
        signals_(std::move(signals)),
        drain_timer_(*this),
        leave_timer_(*this),
        rest_timer_(*this),
        thaw_timer_(*this) {}
  PartitionWorker(const PartitionWorker&) = delete;
  PartitionWorker& operator=(const PartitionWorker&) = delete;

  int run() {
    control_.post([this] {
      socket_watch_.start(control_, socket_.get(), [this] { read_commands(); });
      signal_watch_.start(control_, signals_.get(), [this] { begin_stop(true); });
    });
    control_.run();
    for (const auto& worker : io_workers_) worker->stop();
    return status_;
  }

 private:
  class DrainTimer final : public io::Timer {
   public:
    explicit DrainTimer(PartitionWorker& owner) : owner_(owner) {}
    void expired() noexcept override { owner_.give_up(); }

   private:
    PartitionWorker& owner_;
  };

  class LeaveTimer final : public io::Timer {
   public:
    explicit LeaveTimer(PartitionWorker& owner) : owner_(owner) {}
    void expired() noexcept override { owner_.leave(tries); }
    int tries = 0;

   private:
    PartitionWorker& owner_;
  };

  class RestTimer final : public io::Timer {
   public:
    explicit RestTimer(PartitionWorker& owner) : owner_(owner) {}
    void expired() noexcept override { owner_.leave_in_flight(); }

   private:
    PartitionWorker& owner_;
  };

  class ThawTimer final : public io::Timer {
   public:
    explicit ThawTimer(PartitionWorker& owner) : owner_(owner) {}
    void expired() noexcept override { owner_.no_longer_thaw(); }

   private:
    PartitionWorker& owner_;
  };
  // A guest that opens or closes something is done with it soon.
  static constexpr int kLeaveTries = 50;
  static constexpr std::chrono::milliseconds kLeaveInterval{20};
  // For what is in flight to end, while nothing else of the guest's is served.
  static constexpr std::chrono::seconds kRestTime{1};
  static constexpr std::uint32_t kChannelReportsPerSecond = 100;
  static constexpr std::chrono::seconds kThawTime{3};  // for the guest to answer when vmbusd stops

  void read_commands() {
    // The supervisor sends a command for each device and connection: there is no flood to bound.
    while (!stopping_) {
      auto datagram = receive_command(socket_.get());
      if (!datagram) {
        if (datagram.error().code != Errc::kClosed) {
          log().error("lost the supervisor: {}", describe(datagram.error()));
        }
        return lost_supervisor();
      }
      if (!*datagram) return;
      Result<Command> command = decode_command(**std::move(datagram));
      if (!command) return give_notice(describe(command.error()));
      std::visit(Overloaded{[this](ConfigureCommand&& configure) { this->configure(std::move(configure)); },
                            [this](SandboxConfig&& sandbox) { confine(sandbox); },
                            [this](integration::Config&& integration) { add(integration); },
                            [this](storvsp::ControllerConfig&& controller) { add(std::move(controller)); },
                            [this](netvsp::NicConfig&& nic) { add(std::move(nic)); },
                            [this](StartCommand&&) { started(); },
                            [this](RecoveryAreaCommand&& area) { map_recovery(std::move(area)); },
                            [this](KeptFdCommand&& kept) { kept_fds_[kept.key] = std::move(kept.fd); },
                            [this](ConnectionCommand&& connection) { connect(std::move(connection)); },
                            [this](ChangeNicCommand&& change) { this->change(std::move(change)); },
                            [this](ChangeDevicesCommand&& change) { this->change(std::move(change)); },
                            [this](ConnectDiskCommand&& connection) { connect_disk(std::move(connection)); },
                            [this](StatusCommand&& status) { look(std::move(status)); },
                            [this](GuestCommand&& guest) { ask(guest); },
                            [](LogLevelCommand&& level) { log_set_level(level.level); },
                            [this](LeaveCommand&&) { leave(kLeaveTries); },
                            [this](StopCommand&& stop) { begin_stop(stop.restart); }},
                 *std::move(command));
    }
  }

  void configure(ConfigureCommand configure) {
    if (log_) return give_notice("configured twice");
    log_ = std::make_unique<LogScope>(configure.partition);
    // Polling on the only CPU would keep off the guest whose request it waits for.
    takes_turns_ = has_one_cpu();
    for (std::uint32_t i = 0; i < configure.io_threads; ++i) {
      io::WorkerOptions options;
      options.name = fmt::format("io{}", i);
      options.poll_time_max = std::chrono::microseconds(takes_turns_ ? 0 : configure.poll_us);
      options.polled_ring = configure.polled_rings;
      auto worker = io::Worker::create(options);
      if (!worker) return give_notice(io::explain_setup_error(worker.error()));
      workers_.push_back(worker->get());
      io_workers_.push_back(*std::move(worker));
    }
  }

  // There is no other thread yet, and every io_uring that will be.
  void confine(const SandboxConfig& sandbox) {
    if (!log_ || !devices_.empty() || ready_) return give_notice("confined at the wrong time");
    const auto missing = enter_sandbox(sandbox);
    if (!missing) return give_notice(describe(missing.error()));
    if (missing->empty()) return;
    log().warning("this worker process is confined less than it could be: {}", fmt::join(*missing, "; "));
  }

  void add(const integration::Config& config) {
    if (!log_ || integration_ || ready_) return give_notice("integration components come at the wrong time");
    integration_ = std::make_unique<integration::Integration>(config);
  }

  void add(storvsp::ControllerConfig controller) {
    const std::string name = controller.name;
    keep(name, make(std::move(controller)));
  }

  // An NBD disk, whose sockets come later, one at a time.
  void connect_to_server(const std::string& controller, storvsp::DiskConfig& disk) {
    if (disk.backend != storvsp::DiskConfig::Backend::kNbd) return;
    storvsp::NbdConnection::Options options;
    options.export_name = disk.nbd.export_name;
    options.expected = disk.nbd.found;
    options.reconnect_delay = std::chrono::seconds(disk.nbd.reconnect_delay_s);
    options.subject = fmt::format("{}/{} LUN {}", log().subject(), controller, disk.lun);
    // Before the workers stop, every channel has, so nobody calls behind the control thread's end.
    options.wanted = [this, controller, lun = disk.lun] {
      control_.post([this, controller, lun] {
        if (!stopping_) report(ConnectionWantedReport{controller, lun});
      });
    };
    disk.nbd_connection = storvsp::NbdConnection::make(std::move(options));
    servers_[{controller, disk.lun}] = disk.nbd_connection;
  }

  void connect_disk(ConnectDiskCommand command) {
    const auto found = servers_.find({command.controller, command.lun});
    // It may have gone meanwhile.
    const auto connection = found == servers_.end() ? nullptr : found->second.lock();
    if (connection != nullptr) connection->connect(std::move(command.socket));
  }

  void add(netvsp::NicConfig nic) {
    const std::string name = nic.name;
    keep(name, make(std::move(nic)));
  }

  Result<std::unique_ptr<storvsp::Controller>> make(storvsp::ControllerConfig controller) {
    const std::string name = controller.name;
    // More channels than threads would only spread interrupts.
    if (controller.channels == 0) controller.channels = static_cast<std::uint32_t>(io_workers_.size());
    for (storvsp::DiskConfig& disk : controller.disks) connect_to_server(name, disk);
    auto made = storvsp::make_controller(std::move(controller));
    if (made) controllers_[name] = made->get();
    return made;
  }

  Result<std::unique_ptr<netvsp::Nic>> make(netvsp::NicConfig nic) {
    const std::string name = nic.name;
    Result<std::unique_ptr<netvsp::Nic>> made = netvsp::make_nic(std::move(nic));
    if (made) {
      nics_[name] = made->get();
      // Before the workers stop, every channel has, so nobody calls behind the control thread's end.
      (*made)->on_backend_lost([this, name] {
        control_.post([this, name] {
          if (!stopping_) report(BackendLostReport{name});
        });
      });
    }
    return made;
  }

  // Changes of the devices at run time. A name that the supervisor should know better is no reason to end.

  void change(ChangeDevicesCommand command) {
    if (!ready_) return give_notice("a device changes at the wrong time");
    const std::uint32_t id = command.id;
    const auto done = [this, id](const Result<void>& result) {
      if (!stopping_) report(ChangedReport{id, result ? std::string() : describe(result.error())});
    };
    const auto gone = [done] { done({}); };
    std::visit(Overloaded{[&](storvsp::ControllerConfig&& controller) { done(plug(std::move(controller))); },
                          [&](netvsp::NicConfig&& nic) { done(plug(std::move(nic))); },
                          [&](RemoveDevice&& remove) { unplug(remove.device, done); },
                          [&](AddDisk&& add) {
                            done(with_controller(add.controller, [&](storvsp::Controller& controller) {
                              connect_to_server(add.controller, add.disk);
                              return controller.add_disk(std::move(add.disk), threads());
                            }));
                          },
                          [&](RemoveDisk&& remove) {
                            const Result<void> begun =
                                with_controller(remove.controller, [&](storvsp::Controller& controller) {
                                  return controller.remove_disk(remove.lun, threads(), gone);
                                });
                            if (!begun) done(begun);
                          },
                          [&](GrowDisk&& grow) {
                            done(with_controller(grow.controller, [&](storvsp::Controller& controller) {
                              return controller.grow_disk(grow.lun, grow.size_bytes, threads());
                            }));
                          },
                          [&](LimitDisk&& limit) {
                            done(with_controller(limit.controller, [&](storvsp::Controller& controller) {
                              return controller.limit_disk(limit.lun, limit.limits, threads());
                            }));
                          }},
               std::move(command.change));
  }

  template <typename Change>
  Result<void> with_controller(const std::string& name, Change change) {
    const auto found = controllers_.find(name);
    if (found == controllers_.end()) return fail(Errc::kConfig, "there is no such controller");
    return change(*found->second);
  }

  template <typename Config>
  Result<void> plug(Config config) {
    VMBUSD_TRY(auto device, make(std::move(config)));
    if (bus_) bus_->add_device(*device);
    devices_.push_back(std::move(device));
    return {};
  }

  void unplug(const std::string& name, std::function<void(const Result<void>&)> done) {
    const auto found = std::find_if(devices_.begin(), devices_.end(),
                                    [&](const auto& device) { return own_name(device->name()) == name; });
    if (found == devices_.end()) return done(fail(Errc::kConfig, "there is no such device"));
    controllers_.erase(name);
    nics_.erase(name);
    leaving_.push_back(std::move(*found));
    devices_.erase(found);
    devices::Device* const device = leaving_.back().get();
    auto gone = [this, device, done = std::move(done)] {
      std::erase_if(leaving_, [device](const auto& each) { return each.get() == device; });
      done({});
    };
    if (bus_) return bus_->remove_device(*device, std::move(gone));
    gone();
  }

  [[nodiscard]] storvsp::Threads threads() { return {control_, workers_}; }

  void change(ChangeNicCommand change) {
    const auto found = nics_.find(change.nic);
    if (found == nics_.end()) return;  // it was removed meanwhile
    netvsp::Nic& nic = *found->second;
    if (change.link) nic.set_link(*change.link);
    if (change.fds.empty()) return;
    const Result<void> replaced = nic.replace_backend(std::move(change.fds));
    if (replaced) return;
    // Gone again while it was on its way, as a rule.
    log().warning("{}: {}", change.nic, describe(replaced.error()));
    report(BackendLostReport{change.nic});
  }

  void look(StatusCommand status) {
    // While an earlier one is on its way round the I/O workers, and for ever where one of them hangs, only
    // the latest is kept: it is answered with what the earlier one finds.
    asked_ = std::move(status);
    if (!bus_) return tell({});
    (void)bus_->look([this](devices::BusStatus bus) { tell(std::move(bus)); });
  }

  void ask(const GuestCommand& guest) {
    using Ask = GuestCommand::Ask;
    using integration::ShutdownAction;
    if (!integration_) return give_notice("a guest is asked by components that are not there");
    const auto done = [this, id = guest.id](const std::string& problem) {
      control_.post([this, id, problem] {
        if (!stopping_) report(GuestReport{id, problem});
      });
    };
    switch (guest.ask) {
      case Ask::kPowerOff:
        return integration_->shut_down(ShutdownAction::kPowerOff, done);
      case Ask::kReboot:
        return integration_->shut_down(ShutdownAction::kReboot, done);
      case Ask::kHibernate:
        return integration_->shut_down(ShutdownAction::kHibernate, done);
      case Ask::kFreeze:
        return integration_->freeze(std::chrono::seconds(guest.timeout_s), done);
      case Ask::kThaw:
        return integration_->thaw(done);
      case Ask::kSetKey:
        return integration_->write_key(guest.key, guest.value, done);
      case Ask::kDeleteKey:
        return integration_->write_key(guest.key, std::nullopt, done);
    }
  }

  void tell(devices::BusStatus bus) {
    if (!asked_.file) return;
    PartitionStatus status;
    status.attached = bus_ != nullptr;
    status.bus = std::move(bus);
    for (devices::ChannelStatus& channel : status.bus.channels) channel.device = own_name(channel.device);
    for (const auto& device : devices_) {
      DeviceStatus& told = status.devices.emplace_back();
      told.name = own_name(device->name());
      if (const auto nic = nics_.find(told.name); nic != nics_.end()) told.nic = nic->second->status();
    }
    if (integration_) {
      const integration::Status guest = integration_->status();
      status.guest = {integration::Heartbeat::health(guest, io::Clock::now()), guest.parts, guest.freeze,
                      guest.facts, guest.keys};
    }
    const StatusCommand asked = std::exchange(asked_, {});
    const Result<void> written = write_status_file(asked.file.get(), status);
    if (!written) return log().error("{}", describe(written.error()));
    report(StatusReport{asked.id});
  }

  template <typename T>
  void keep(const std::string& name, Result<std::unique_ptr<T>> device) {
    if (!log_ || ready_) return give_notice("a device comes at the wrong time");
    if (!device) return give_notice(fmt::format("device {}: {}", name, describe(device.error())));
    devices_.push_back(*std::move(device));
  }

  void started() {
    if (!log_ || ready_) return give_notice("started at the wrong time");
    ready_ = true;
    for (const auto& worker : io_workers_) {
      if (takes_turns_) worker->take_turns();
      worker->start();
    }
    report(ReadyReport{});
  }

  void map_recovery(RecoveryAreaCommand files) {
    auto area = devices::RecoveryArea::map(std::move(files.file));
    // It serves without.
    if (!area) return log().warning("{}", describe(area.error()));
    recovery_ = *std::move(area);
    area_for_vmm_ = std::move(files.for_vmm);
  }

  void connect(ConnectionCommand connection) {
    if (!ready_ || bus_) return give_notice("a VMM comes at the wrong time");
    devices::Bus::Config config;
    config.name = log_->subject();
    for (const auto& device : devices_) config.devices.push_back(device.get());
    if (integration_) {
      for (devices::Device* const device : integration_->devices()) config.devices.push_back(device);
    }
    config.workers = workers_;
    if (recovery_ != nullptr) {
      config.recovery = recovery_.get();
      config.keep_fd = [this](partition::FdKey key, int fd) { keep_fd(key, fd); };
      config.drop_fd = [this](partition::FdKey key) { report(DropFdReport{key}); };
      config.recovered = [this] { report(TakenUpReport{}); };
      config.area_for_vmm = area_for_vmm_.get();
      config.take_up = [this](const UniqueFd& area) { make_way(area); };
    }
    config.primary_changed = [this](const std::string& device, bool open) {
      std::uint32_t dropped = 0;  // shows in the supervisor, whose bound is lower
      if (!stopping_ && channel_budget_.take(dropped)) report(ChannelReport{own_name(device), open});
    };
    bus_ = std::make_unique<devices::Bus>(std::move(config), control_, std::move(connection.socket), [this] {
      // The bus cannot be destroyed inside its own call.
      control_.post([this] { disconnected(); });
    });
    if (!connection.take_up) return bus_->start();
    if (recovery_ == nullptr) return bus_->shut_down();
    bus_->recover(std::exchange(kept_fds_, {}));
  }

  [[nodiscard]] std::string own_name(const std::string& device) const {
    return device.substr(log().subject().size() + 1);
  }

  // Has another process go on with what the VMM has given back: this one has got no further than its Hello.
  void make_way(const UniqueFd& area) {
    const int file = area.get();
    const Result<void> sent = send_command(socket_.get(), encode(TakeUpReport{}), std::span(&file, 1));
    if (sent) ::_exit(kExitOk);
    give_notice(describe(sent.error()));
  }

  // Has another process go on: this one ends without a word to the VMM.
  void leave(int tries) {
    if (bus_ == nullptr) ::_exit(kExitOk);
    if (tries == kLeaveTries) control_.arm(rest_timer_, io::Clock::now() + kRestTime);
    bus_->at_rest([this, tries](bool recorded) {
      if (recorded) ::_exit(kExitOk);
      if (tries == 0) control_.disarm(rest_timer_);
      if (tries == 0 && stopping_) return bus_->shut_down();
      if (tries == 0) return report(StaysReport{});
      leave_timer_.tries = tries - 1;
      control_.arm(leave_timer_, io::Clock::now() + kLeaveInterval);
    });
  }

  // A disk may wait for its server for as long as it was told to.
  void leave_in_flight() {
    if (bus_ != nullptr && bus_->recorded()) ::_exit(kExitOk);
    control_.arm(rest_timer_, io::Clock::now() + kLeaveInterval);
  }

  void keep_fd(partition::FdKey key, int fd) {
    const Result<void> sent = send_command(socket_.get(), encode(KeepFdReport{key, {}}), std::span(&fd, 1));
    if (!sent && sent.error().code != Errc::kClosed) give_notice(describe(sent.error()));
  }

  void disconnected() {
    control_.disarm(rest_timer_);
    bus_.reset();
    log().info("VMM is gone");
    report(ConnectionEndedReport{});
    if (stopping_) end();
  }

  // For what the supervisor should not have done or the host refuses: no worker is better than half of one.
  void give_notice(const std::string& reason) {
    log().error("{}", reason);
    status_ = kExitRuntime;
    begin_stop(false);
  }

  // Another's worker takes up the guest as from one that was killed, which this one is about to be as well.
  void lost_supervisor() {
    if (bus_ != nullptr && bus_->can_be_taken_up() && !stopping_) ::_exit(kExitRuntime);
    begin_stop(false);
  }

  // `restart`: the VMM may come to have its guest taken up by another supervisor's worker.
  void begin_stop(bool restart) {
    if (stopping_) return;
    stopping_ = true;
    control_.arm(drain_timer_, io::Clock::now() + kDrainTime);
    if (!bus_) return end();
    leaves_ = restart && bus_->can_be_taken_up();
    const bool frozen = integration_ && integration_->status().freeze != integration::FreezeState::kThawed;
    if (!frozen) return leave_guest();
    // Its file systems would wait for a host that is gone. Whether it thaws or will not: enough is enough.
    integration_->thaw([this](const std::string&) { control_.post([this] { leave_guest(); }); });
    control_.arm(thaw_timer_, io::Clock::now() + kThawTime);
  }

  void leave_guest() {
    if (!bus_ || std::exchange(left_, true)) return;
    if (!leaves_) return bus_->shut_down();
    log().info("leaving the guest for its VMM to have it taken up again");
    leave(kLeaveTries);
  }

  void end() {
    control_.disarm(drain_timer_);
    control_.disarm(leave_timer_);
    control_.disarm(rest_timer_);
    control_.disarm(thaw_timer_);
    socket_watch_.stop([this] { signal_watch_.stop([this] { control_.stop(); }); });
  }

  void no_longer_thaw() { leave_guest(); }

  // The threads and descriptors that hang cannot be taken down in order, so the process goes at once.
  [[noreturn]] void give_up() {
    std::string names;
    for (const auto& device : devices_) names += (names.empty() ? "" : ", ") + device->name();
    log().error("I/O in flight did not end within {} s; leaving it behind on one of: {}", kDrainTime.count(),
                names);
    ::_exit(kExitRuntime);
  }

  void report(const Report& report) {
    const Result<void> sent = send_command(socket_.get(), encode(report));
    // A supervisor that is gone shows on the socket.
    if (!sent && sent.error().code != Errc::kClosed) give_notice(describe(sent.error()));
  }

  [[nodiscard]] const LogScope& log() const {
    static const LogScope unnamed("worker");
    return log_ ? *log_ : unnamed;
  }

  io::Worker& control_;
  UniqueFd socket_;
  UniqueFd signals_;
  io::FdWatch socket_watch_;
  io::FdWatch signal_watch_;
  DrainTimer drain_timer_;
  LeaveTimer leave_timer_;
  RestTimer rest_timer_;
  ThawTimer thaw_timer_;
  std::unique_ptr<LogScope> log_;  // once configured
  std::vector<std::unique_ptr<devices::Device>> devices_;
  std::vector<std::unique_ptr<devices::Device>> leaving_;  // until nothing of them is in use
  std::unique_ptr<integration::Integration> integration_;
  std::map<std::string, netvsp::Nic*> nics_;  // of devices_, by their own names
  std::map<std::string, storvsp::Controller*> controllers_;
  // Of devices_' disks, by controller and LUN.
  std::map<std::pair<std::string, std::uint8_t>, std::weak_ptr<storvsp::NbdConnection>> servers_;
  std::vector<std::unique_ptr<io::Worker>> io_workers_;  // stopped before the devices go
  std::vector<io::Worker*> workers_;                     // io_workers_
  bool takes_turns_ = false;                             // the I/O workers, with the guest
  std::unique_ptr<devices::RecoveryArea> recovery_;
  UniqueFd area_for_vmm_;
  devices::Bus::KeptFds kept_fds_;  // for the connection that is taken up
  std::unique_ptr<devices::Bus> bus_;
  LineBudget channel_budget_{kChannelReportsPerSecond};
  StatusCommand asked_;  // without a file: nobody asks
  bool ready_ = false;
  bool stopping_ = false;
  bool leaves_ = false;  // in a state to be taken up, when it stops
  bool left_ = false;
  int status_ = kExitOk;
};

}  // namespace

int run_partition_worker(UniqueFd socket) {
  const LogScope log("worker");
  log_serve_one_guest();
  // Nothing outlives a supervisor that was killed; one that is gone already shows on the socket.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  end_on_lost_memory();
  std::signal(SIGHUP, SIG_IGN);  // means the supervisor, whoever else it is sent to
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigaddset(&stop_signals, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);
  UniqueFd signals(::signalfd(-1, &stop_signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals) {
    log.error("cannot make a signalfd: {}", std::strerror(errno));
    return kExitRuntime;
  }
  io::WorkerOptions options;
  options.name = "vmbusd";  // the process's own name
  const auto control = io::Worker::create(options);
  if (!control) {
    log.error("{}", io::explain_setup_error(control.error()));
    return kExitRuntime;
  }
  return PartitionWorker(**control, std::move(socket), std::move(signals)).run();
}

}  // namespace vmbusd::daemon
