// One partition in the supervisor: its attach socket, its worker process, and the VMM that is connected.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "daemon/config.h"
#include "daemon/event_log.h"
#include "daemon/lifetime.h"
#include "daemon/nbd_keeper.h"
#include "daemon/nic_keeper.h"
#include "daemon/partition_status.h"
#include "daemon/sandbox.h"
#include "daemon/worker_process.h"

namespace vmbusd::daemon {

// Life cycle: open() -> start() -> ready -> stop() -> stopped. Keeps open what a worker needs, so that one
// that died is replaced without a path or a privilege. Supervisor's thread.
//
// A VMM's connection is accepted here and handed to the worker; a duplicate stays here until the worker is
// done with it. One at a time: while the VMM of the last one is gone and the worker still drains, the next
// waits; while it is there, another is refused in words.
//
// A worker that dies under a VMM is replaced at once, and the new one takes up what it left in the recovery
// area, if it can: neither the VMM nor its guest is told. One that dies too often is not followed. A VMM that
// brings the recovery area of a supervisor before this one is treated alike: its worker makes way for one
// that takes up its guest.
class PartitionSupervisor {
 public:
  struct Events {
    std::function<void()> ready;    // the first worker serves
    std::function<void()> failed;   // no worker came up at the start; the reason is logged
    std::function<void()> stopped;  // after stop(): the worker is gone
    // What clients may want to know. `device` is empty where it is the partition.
    std::function<void(EventKind kind, const std::string& device, std::string text)> noted =
        [](EventKind, const std::string&, const std::string&) {};
  };

  PartitionSupervisor(boost::asio::io_context& context, PartitionConfig config, const SandboxConfig& sandbox,
                      LogLevel log_level, Events events);
  ~PartitionSupervisor();
  PartitionSupervisor(const PartitionSupervisor&) = delete;
  PartitionSupervisor& operator=(const PartitionSupervisor&) = delete;

  // Before open(): VMMs come by this listening socket, in place of one that is made. Its file is its giver's.
  void listen_on(UniqueFd socket);
  // Opens images and NICs' back ends and binds the socket. Logs every failure and returns what was logged.
  // `restarted`: waits for what a supervisor before this one may have left behind, which takes no time where
  // there is nothing.
  [[nodiscard]] std::vector<std::string> open(bool restarted = false);
  void start();
  // Removes the socket and has the worker drain; one that does not stop in time is killed. `restart`: leaves
  // the guest such that another supervisor can take it up, where its VMM can have that.
  void stop(bool restart = false);
  // Not waiting for what is in flight.
  void kill();

  // Asks the worker how it is. `done` gets nullptr where there is no worker or it does not answer in time.
  void look(std::function<void(const PartitionStatus*)> done);
  // The operator's link state of a NIC, which lasts over the worker's death. False: no such NIC.
  [[nodiscard]] bool set_link(const std::string& nic, bool up);
  void set_log_level(LogLevel level);
  // Has the worker process make way for one of the program that stands where this one was started from, which
  // an update may have replaced. The guest sees a pause. `done` gets what went wrong, empty where it serves.
  void upgrade(std::function<void(const std::string& problem)> done);
  // Has the worker ask the guest for something; its id is chosen here. `done` gets nothing where it is done,
  // else why not.
  void ask_guest(GuestCommand command, std::function<void(const std::string& problem)> done);

  // Changes of the devices while guests use them, in partition_changes.cc. config() has a change before
  // `done` comes: empty, when the worker process has followed and what was removed is closed; else why it is
  // not so. A worker process that dies meanwhile is followed by one that knows no other devices.
  using Done = std::function<void(const std::string& problem)>;
  // The one disk of `added`, for the controller of its name.
  void add_disk(ScsiConfig added, Done done);
  void remove_disk(const std::string& controller, std::uint8_t lun, Done done);
  // What is not limited any more is 0.
  void limit_disk(const std::string& controller, std::uint8_t lun, const storvsp::DiskLimits& limits,
                  Done done);
  // Makes the image so large, or takes it for as large as it is (0), and tells the guest.
  void grow_disk(const std::string& controller, std::uint8_t lun, std::uint64_t size_bytes, Done done);
  void add_controller(ScsiConfig added, Done done);
  void add_nic(NicConfig added, Done done);
  void remove_device(const std::string& device, Done done);
  // Makes the devices what a configuration file says now: removes, adds and changes what is different there,
  // and leaves alone what came at run time. What cannot be done is logged.
  void reload(PartitionConfig wanted);
  [[nodiscard]] bool has_device(const std::string& name) const;
  // nullptr: there is none.
  [[nodiscard]] const ScsiConfig* find_controller(const std::string& name) const;
  [[nodiscard]] const storvsp::DiskConfig* find_disk(const std::string& controller, std::uint8_t lun) const;

  [[nodiscard]] const PartitionConfig& config() const { return config_; }  // its NICs are nic(i)
  [[nodiscard]] std::size_t nic_count() const { return nics_.size(); }
  [[nodiscard]] const NicKeeper& nic(std::size_t index) const { return *nics_[index]; }
  // "starting", "serving", "waiting" (to start a worker anew) or "stopping".
  [[nodiscard]] const char* state() const;
  [[nodiscard]] bool stopping() const { return state_ == State::kStopping || state_ == State::kStopped; }
  [[nodiscard]] pid_t worker_pid() const { return worker_ ? worker_->pid() : 0; }  // 0: none
  [[nodiscard]] pid_t vmm_pid() const;                                             // 0: none attached
  [[nodiscard]] std::uint64_t worker_deaths() const { return worker_deaths_; }

  [[nodiscard]] const LogScope& log() const { return log_; }
  // The worker was killed or failed on the way down.
  [[nodiscard]] bool stopped_badly() const { return stopped_badly_; }

 private:
  enum class State : std::uint8_t {
    kNew,
    kStarting,  // a worker process is under way
    kServing,
    kWaiting,  // before the next try to start a worker
    kStopping,
    kStopped,
  };
  class Refusal;
  // A VMM that comes and goes, or a worker that a guest has taken over, is not to push others' out.
  static constexpr std::uint32_t kEventsPerSecond = 50;
  // One under way. Its worker may use what is held.
  struct Change {
    Done done;
    std::function<void()> undo{};  // the worker has refused
    std::vector<storvsp::DiskConfig> disks{};
    std::unique_ptr<NicKeeper> nic{};
    std::unique_ptr<boost::asio::steady_timer> timer{};
  };

  void note(EventKind kind, std::string text, const std::string& device = {});
  void spawn();
  void report(Report& report);
  void worker_ready();
  void status_ready(const StatusReport& report);
  void end_look(const PartitionStatus* status);
  void end_ask(std::uint32_t id, const std::string& problem);
  void backend_lost(const std::string& nic);
  void hand_over_backend(const netvsp::NicConfig& nic);
  [[nodiscard]] std::string open_export(const ScsiConfig& scsi, std::size_t index, storvsp::DiskConfig& disk);
  void connection_wanted(const ConnectionWantedReport& wanted);
  [[nodiscard]] bool medium_returned();
  void worker_died(int wait_status);
  void end_upgrade(const std::string& problem);
  [[nodiscard]] bool can_be_taken_up();
  void make_recovery_area();
  void use_recovery_area(Result<UniqueFd> file);
  void take_up_given();
  void take_up();
  void keep_fd(KeepFdReport& report);
  void forget_connection();
  void send_lending(EncodedCommand command, const std::string& subject);
  std::unique_ptr<NicKeeper> make_keeper(NicConfig nic);
  // What is behind a disk. A sentence for the operator where it cannot be had, else empty.
  [[nodiscard]] std::string open_disk(const ScsiConfig& scsi, std::size_t index, storvsp::DiskConfig& disk,
                                      bool restarted = false);
  [[nodiscard]] bool images_returned() const;
  // What the worker process may hold and do with these devices is no more than it was started for.
  [[nodiscard]] std::string too_much() const;

  // --- partition_changes.cc
  void change(EncodedCommand command, bool lends, Change change);
  void end_change(std::uint32_t id, const std::string& problem);
  void end_changes();
  void await_return(std::vector<storvsp::DiskConfig> disks);
  [[nodiscard]] std::string name_conflict(const std::string& name, const std::optional<Guid>& instance) const;
  [[nodiscard]] ScsiConfig* controller_of(const std::string& name);
  void drop_servers();
  void erase_disk(const std::string& controller, std::uint8_t lun);
  [[nodiscard]] Done logged(const std::string& what) const;
  void reload_controller(ScsiConfig wanted);
  void reload_disk(ScsiConfig wanted);
  void reload_nic(NicConfig wanted);
  void retry_later();
  void finish_stop();

  void wait_for_vmm();
  void accept_vmms();
  void take_vmm(UniqueFd socket);
  void hand_over(UniqueFd socket);
  void refuse(UniqueFd socket);

  boost::asio::io_context& context_;
  Lifetime lifetime_;
  PartitionConfig config_;  // its NICs are with nics_
  std::vector<std::unique_ptr<NicKeeper>> nics_;
  // Of NBD disks, by controller and LUN.
  std::map<std::pair<std::string, std::uint8_t>, std::unique_ptr<NbdKeeper>> servers_;
  const SandboxConfig sandbox_;
  LogLevel log_level_;
  Events events_;
  LogScope log_;
  LineBudget event_budget_{kEventsPerSecond};
  State state_ = State::kNew;
  bool was_ready_ = false;
  bool stopped_badly_ = false;

  boost::asio::posix::stream_descriptor listener_;
  boost::asio::steady_timer accept_pause_;  // after accept() failed
  bool socket_bound_ = false;

  std::shared_ptr<WorkerProcess> worker_;
  std::chrono::steady_clock::time_point serving_since_;
  std::chrono::milliseconds retry_delay_;
  boost::asio::steady_timer retry_timer_;

  // For a worker process that takes up what another left.
  UniqueFd recovery_file_;
  UniqueFd area_for_vmm_;                          // the same for a VMM to keep; perhaps none
  UniqueFd given_area_;                            // by a VMM, until its worker has made way
  std::map<partition::FdKey, UniqueFd> kept_fds_;  // of the connection
  std::vector<UniqueFd> returning_;                // images that were removed from a worker that died
  std::uint32_t lent_number_ = 0;                  // of the worker's access to its images
  bool images_lent_ = true;                        // so that it is known when the kernel is done with them
  std::deque<std::chrono::steady_clock::time_point> deaths_;  // the latest few
  std::chrono::steady_clock::time_point died_at_;

  UniqueFd attached_;  // the VMM that the worker serves
  UniqueFd next_;      // the VMM that waits for the worker
  std::uint64_t worker_deaths_ = 0;
  boost::asio::steady_timer stop_timer_;
  std::set<std::string> links_off_;  // NICs that the operator has switched off

  std::map<std::uint32_t, Change> changes_;  // of the devices, by the command's id
  std::uint32_t change_id_ = 0;
  std::uint64_t granted_bytes_ = 0;  // the worker's bound
  bool granted_polling_ = false;

  std::string program_;                                       // of the next worker process
  std::function<void(const std::string& problem)> upgraded_;  // an upgrade is under way

  // One question at a time; who asks meanwhile gets the same answer.
  std::vector<std::function<void(const PartitionStatus*)>> lookers_;
  std::uint32_t look_id_ = 0;
  UniqueFd look_file_;
  boost::asio::steady_timer look_timer_;

  // What the guest is asked for, by the command's id.
  struct Asked {
    std::function<void(const std::string& problem)> done;
    boost::asio::steady_timer timer;
  };
  std::map<std::uint32_t, Asked> asked_;
  std::uint32_t ask_id_ = 0;

  std::shared_ptr<int> refusals_ = std::make_shared<int>(0);
};

}  // namespace vmbusd::daemon
