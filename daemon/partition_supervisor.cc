#include "daemon/partition_supervisor.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>

#include "base/overloaded.h"
#include "daemon/disk_image.h"
#include "daemon/partition_worker.h"
#include "devices/recovery_area.h"
#include "partition/attach_protocol.h"
#include "partition/attach_status.h"
#include "partition/seqpacket.h"

namespace vmbusd::daemon {

namespace {

using boost::asio::posix::descriptor_base;
using boost::system::error_code;
using namespace std::chrono_literals;

constexpr std::chrono::milliseconds kRetryFirst = 100ms;
constexpr std::chrono::milliseconds kRetryMax = 30s;
constexpr auto kStableAfter = 60s;  // a worker that served so long is no part of a series of failures
// A worker gives up by itself after kDrainTime; this is for one that cannot even do that.
constexpr std::chrono::seconds kStopTime = kDrainTime + 5s;
constexpr auto kLookTime = 2s;  // within which a worker that is well says how it is
// The same for what it asks the guest, who has 10 s for his answer.
constexpr auto kAskTime = 15s;
// A worker that died so often within so long dies of what it takes up.
constexpr std::size_t kDeathsMax = 5;
constexpr auto kDeathsTime = 2s;
constexpr auto kReturnPoll = 5ms;          // between two looks whether images are returned
constexpr auto kReturnTime = 60s;          // within which the medium should have done what it was asked for
constexpr std::size_t kKeptFdsMax = 8192;  // regions, VPs and channels are far fewer
constexpr int kRefusalsMax = 16;           // VMMs that are being told so; more are cut off without a word

std::uint32_t io_threads_of(const PartitionConfig& config) {
  constexpr long kThreadsUnasked = 4;  // a guest with more to do is worth a line in its configuration
  if (config.io_threads != 0) return config.io_threads;
  return static_cast<std::uint32_t>(std::clamp(::sysconf(_SC_NPROCESSORS_ONLN), 1L, kThreadsUnasked));
}

std::uint32_t queues_of(const std::vector<std::unique_ptr<NicKeeper>>& nics) {
  std::uint32_t queues = 0;
  for (const auto& nic : nics) queues += nic->nic().queues;
  return queues;
}

// What a worker may hold beside its guest's memory: several times what its devices reserve at their bounds,
// as most of that is never touched. One that grows beyond it fails, and its partition alone.
std::uint64_t own_bytes_max(const PartitionConfig& config, std::uint32_t queues) {
  constexpr std::uint64_t kMiB = 1u << 20;
  constexpr std::uint64_t kBase = 1024 * kMiB;       // lists of GPADLs' pages among it: 3 MiB at most
  constexpr std::uint64_t kThread = 32 * kMiB;       // its stack takes 8
  constexpr std::uint64_t kDiskChannel = 96 * kMiB;  // as kQueue, and requests' vectors take 17
  constexpr std::uint64_t kDiskQueue = 64 * kMiB;    // a disk's bounce buffers take 32
  constexpr std::uint64_t kDisk = 16 * kMiB;         // its helper's stack takes 8
  constexpr std::uint64_t kQueue = 64 * kMiB;        // without a recovery area, 32 for what would be there
  const std::uint32_t io_threads = io_threads_of(config);
  std::uint64_t bytes = kBase + io_threads * kThread + queues * kQueue;
  for (const ScsiConfig& scsi : config.scsi) {
    const std::uint64_t channels = scsi.controller.channels == 0 ? io_threads : scsi.controller.channels;
    const std::uint64_t disks = scsi.controller.disks.size();
    bytes += channels * (kDiskChannel + disks * kDiskQueue) + disks * kDisk;
  }
  return bytes;
}

bool has_polled_disk(const PartitionConfig& config) {
  return std::any_of(config.scsi.begin(), config.scsi.end(), [](const ScsiConfig& scsi) {
    const auto& disks = scsi.controller.disks;
    return std::any_of(disks.begin(), disks.end(), [](const storvsp::DiskConfig& disk) { return disk.poll; });
  });
}

bool hung_up(const UniqueFd& socket) {
  pollfd poll{socket.get(), POLLRDHUP, 0};
  return ::poll(&poll, 1, 0) > 0 && (poll.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

std::optional<pid_t> peer_pid(const UniqueFd& socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid <= 0)
    return std::nullopt;
  return peer.pid;
}

// "process 1234"
std::string peer_of(const UniqueFd& socket) {
  const std::optional<pid_t> pid = peer_pid(socket);
  return pid ? fmt::format("process {}", *pid) : "a process";
}

}  // namespace

// Waits for a VMM's Hello, as closing before it is read would cut off the answer, then says why not. Owns
// itself.
class PartitionSupervisor::Refusal : public std::enable_shared_from_this<Refusal> {
 public:
  Refusal(boost::asio::io_context& context, UniqueFd socket, std::string reason, std::shared_ptr<int> count)
      : socket_(context), timer_(context), reason_(std::move(reason)), count_(std::move(count)) {
    ++*count_;
    error_code ignored;
    socket_.assign(socket.release(), ignored);
  }
  ~Refusal() { --*count_; }
  Refusal(const Refusal&) = delete;
  Refusal& operator=(const Refusal&) = delete;

  void start() {
    timer_.expires_after(5s);
    timer_.async_wait([self = shared_from_this()](error_code error) {
      error_code ignored;
      if (!error) self->socket_.close(ignored);
    });
    socket_.async_wait(descriptor_base::wait_read, [self = shared_from_this()](error_code error) {
      if (!error) self->answer();
      self->timer_.cancel();
    });
  }

 private:
  void answer() {
    partition::AttachHello hello{};
    // Descriptors beside it are dropped by the kernel for want of a place.
    if (::recv(socket_.native_handle(), &hello, sizeof hello, MSG_DONTWAIT) < 0) return;
    partition::AttachHelloReply reply{};
    reply.header.type = partition::AttachType::kHelloReply;
    reply.header.size = sizeof reply;
    reply.header.cookie = hello.header.cookie;
    reply.status = partition::AttachStatus::kState;
    reply.major = partition::kAttachMajor;
    reply.minor = partition::kAttachMinor;
    reply.text = partition::to_text_field(reason_);
    // A VMM that does not take it is cut off just the same.
    (void)partition::send_datagram(socket_.native_handle(), wire_bytes(reply), {}, false);
  }

  boost::asio::posix::stream_descriptor socket_;
  boost::asio::steady_timer timer_;
  std::string reason_;
  std::shared_ptr<int> count_;
};

PartitionSupervisor::PartitionSupervisor(boost::asio::io_context& context, PartitionConfig config,
                                         const SandboxConfig& sandbox, LogLevel log_level, Events events)
    : context_(context),
      config_(std::move(config)),
      sandbox_(sandbox),
      log_level_(log_level),
      events_(std::move(events)),
      log_(config_.name),
      listener_(context),
      accept_pause_(context),
      retry_delay_(kRetryFirst),
      retry_timer_(context),
      stop_timer_(context),
      program_(kOwnProgram),
      look_timer_(context) {
  for (NicConfig& nic : config_.nics) nics_.push_back(make_keeper(std::move(nic)));
  config_.nics.clear();
}

std::unique_ptr<NicKeeper> PartitionSupervisor::make_keeper(NicConfig nic) {
  const std::string name = nic.nic.name;
  nic.nic.incarnation = incarnation_of(nic.definition);
  return std::make_unique<NicKeeper>(context_, config_.name, std::move(nic), [this, name] {
    for (const auto& each : nics_) {
      if (each->nic().name == name) hand_over_backend(each->nic());
    }
  });
}

PartitionSupervisor::~PartitionSupervisor() {
  if (worker_) worker_->forget();
  if (socket_bound_) ::unlink(config_.socket.c_str());
}

std::vector<std::string> PartitionSupervisor::open(bool restarted) {
  std::vector<std::string> problems;
  const auto complain = [&](const std::string& subject, const std::string& text) {
    log_write(LogLevel::kError, subject, text);
    problems.push_back(fmt::format("{}: {}", subject, text));
  };
  for (ScsiConfig& scsi : config_.scsi) {
    scsi.controller.incarnation = incarnation_of(scsi.definition);
    for (std::size_t i = 0; i < scsi.images.size(); ++i) {
      const std::string problem = open_disk(scsi, i, scsi.controller.disks[i], restarted);
      if (!problem.empty()) complain(fmt::format("{}/{}", config_.name, scsi.controller.name), problem);
    }
  }
  for (const auto& nic : nics_) {
    if (const std::string problem = nic->open(restarted); !problem.empty()) {
      complain(fmt::format("{}/{}", config_.name, nic->nic().name), problem);
    }
  }
  if (listener_.is_open()) return problems;
  Result<UniqueFd> listener = partition::listen_seqpacket(config_.socket);
  if (listener) {
    socket_bound_ = true;
    error_code ignored;
    listener_.assign(listener->release(), ignored);
  } else {
    complain(config_.name, fmt::format("attach socket {}: {}", config_.socket, describe(listener.error())));
  }
  return problems;
}

std::string PartitionSupervisor::open_disk(const ScsiConfig& scsi, std::size_t index,
                                           storvsp::DiskConfig& disk, bool restarted) {
  using Backend = storvsp::DiskConfig::Backend;
  const std::string& definition = scsi.images[index].definition;
  disk.incarnation = incarnation_of(definition);
  const LogScope log(fmt::format("{}/{}", config_.name, scsi.controller.name));
  std::string problem;
  if (disk.backend == Backend::kFile) problem = open_disk_image(scsi.images[index], log, disk, restarted);
  if (disk.backend == Backend::kNbd) problem = open_export(scsi, index, disk);
  if (!problem.empty()) return fmt::format("LUN {}: {}", disk.lun, problem);
  // Another file of the same name is another disk.
  if (disk.backend == Backend::kFile)
    disk.incarnation = incarnation_of(definition + image_identity(disk.fd.get()));
  return {};
}

std::string PartitionSupervisor::open_export(const ScsiConfig& scsi, std::size_t index,
                                             storvsp::DiskConfig& disk) {
  const std::string& controller = scsi.controller.name;
  const LogScope log(fmt::format("{}/{} LUN {}", config_.name, controller, disk.lun));
  auto keeper = std::make_unique<NbdKeeper>(context_, scsi.images[index].nbd, log.subject(),
                                            [this, controller, lun = disk.lun](int socket) {
                                              if (worker_)
                                                worker_->send(encode_connect_disk(controller, lun, socket));
                                            });
  if (std::string problem = keeper->probe(disk.nbd.found); !problem.empty()) return problem;
  if (const Result<void> checked = storvsp::check_disk(disk); !checked) return describe(checked.error());
  if (!disk.nbd.found.flushes && !disk.read_only) {
    log.warning("the NBD server has no flush: what is durable there, nobody knows");
  }
  servers_[{controller, disk.lun}] = std::move(keeper);
  return {};
}

void PartitionSupervisor::listen_on(UniqueFd socket) {
  error_code ignored;
  listener_.assign(socket.release(), ignored);
}

void PartitionSupervisor::start() {
  spawn();
  wait_for_vmm();
}

void PartitionSupervisor::note(EventKind kind, std::string text, const std::string& device) {
  std::uint32_t dropped = 0;
  const bool granted = event_budget_.take(dropped);
  if (dropped != 0) events_.noted(EventKind::kEventsDropped, "", std::to_string(dropped));
  if (granted) events_.noted(kind, device, std::move(text));
}

void PartitionSupervisor::spawn() {
  WorkerProcess::Events events;
  events.report = [this](Report& report) { this->report(report); };
  events.died = [this](int wait_status) { worker_died(wait_status); };
  auto worker = WorkerProcess::spawn(context_, program_, log_, log_level_, std::move(events));
  if (!worker) {
    log_.error("{}", describe(worker.error()));
    if (was_ready_) {
      forget_connection();
      return retry_later();
    }
    state_ = State::kWaiting;
    boost::asio::post(context_, events_.failed);
    return;
  }
  state_ = State::kStarting;
  worker_ = *std::move(worker);
  // Before the first command: the threads that it makes then are as nice.
  if (config_.nice != 0 &&
      ::setpriority(PRIO_PROCESS, static_cast<id_t>(worker_->pid()), static_cast<int>(config_.nice)) != 0) {
    log_.warning("its worker process cannot be made as nice as {}: {}", config_.nice, std::strerror(errno));
  }
  ConfigureCommand configure;
  configure.partition = config_.name;
  configure.poll_us = config_.poll_us;
  configure.polled_rings = granted_polling_ = has_polled_disk(config_);
  configure.io_threads = io_threads_of(config_);
  worker_->send(encode(configure));
  SandboxConfig sandbox = sandbox_;
  constexpr std::uint64_t kRoomForMore = std::uint64_t{4} << 30;  // for what comes at run time
  sandbox.own_bytes_max = granted_bytes_ = own_bytes_max(config_, queues_of(nics_)) + kRoomForMore;
  worker_->send(encode(sandbox));
  if (!recovery_file_) make_recovery_area();
  if (recovery_file_) worker_->send(encode_recovery_area(recovery_file_.get(), area_for_vmm_.get()));
  ++lent_number_;
  images_lent_ = true;
  returning_.clear();
  worker_->send(encode(config_.integration));
  for (const ScsiConfig& scsi : config_.scsi) {
    send_lending(encode(scsi.controller), scsi.controller.name);
  }
  for (const auto& nic : nics_) {
    if (was_ready_) nic->renew();
    worker_->send(encode(nic->nic()));
  }
  for (const std::string& nic : links_off_) worker_->send(encode_change_nic(nic, false, {}));
  worker_->send(encode(StartCommand{}));
}

std::string PartitionSupervisor::too_much() const {
  const char* const remedy = "; vmbusctl upgrade gives the partition a new one, and its guest goes on";
  if (own_bytes_max(config_, queues_of(nics_)) > granted_bytes_ && worker_) {
    return fmt::format("the worker process was started with memory for fewer devices{}", remedy);
  }
  if (has_polled_disk(config_) && !granted_polling_ && worker_) {
    return "poll: the worker process was started without a polled disk; restart the partition with one";
  }
  return {};
}

void PartitionSupervisor::make_recovery_area() {
  use_recovery_area(devices::RecoveryArea::make_file());
  if (!recovery_file_) log_.warning("a worker process that dies takes its guest's devices along");
}

void PartitionSupervisor::use_recovery_area(Result<UniqueFd> file) {
  recovery_file_.reset();
  area_for_vmm_.reset();
  if (!file) return log_.warning("{}", describe(file.error()));
  recovery_file_ = *std::move(file);
  Result<UniqueFd> for_vmm = devices::RecoveryArea::open_for_vmm(recovery_file_.get());
  if (for_vmm) {
    area_for_vmm_ = *std::move(for_vmm);
  } else {
    log_.warning("{}: a guest's devices go with this vmbusd", describe(for_vmm.error()));
  }
}

// Each worker process gets images of its own, so that it shows when the last of what it did with them is
// over. `command` names images only.
void PartitionSupervisor::send_lending(EncodedCommand command, const std::string& subject) {
  std::vector<UniqueFd> lent;
  for (int& image : command.fds) {
    Result<UniqueFd> fd = lend_image(image, lent_number_);
    if (!fd) {
      log_.warning("{}: {}: a worker process that dies takes its guest's devices along", subject,
                   describe(fd.error()));
      images_lent_ = false;
      continue;
    }
    lent.push_back(*std::move(fd));
    image = lent.back().get();
  }
  worker_->send(command);
}

void PartitionSupervisor::report(Report& report) {
  std::visit(Overloaded{[this](const ReadyReport&) { worker_ready(); },
                        [this](const ConnectionEndedReport&) {
                          forget_connection();
                          end_upgrade("the connection ended; the log says why");
                        },
                        [this](const BackendLostReport& lost) { backend_lost(lost.nic); },
                        [this](const ChannelReport& channel) {
                          note(channel.open ? EventKind::kChannelOpened : EventKind::kChannelClosed, "",
                               channel.device);
                        },
                        [this](const ConnectionWantedReport& wanted) { connection_wanted(wanted); },
                        [this](const StatusReport& status) { status_ready(status); },
                        [this](const GuestReport& guest) { end_ask(guest.id, guest.problem); },
                        [this](const ChangedReport& changed) { end_change(changed.id, changed.problem); },
                        [this](KeepFdReport& keep) { keep_fd(keep); },
                        [this](const DropFdReport& drop) { kept_fds_.erase(drop.key); },
                        [this](TakeUpReport& take_up) { given_area_ = std::move(take_up.area); },
                        [this](const StaysReport&) {
                          program_ = kOwnProgram;
                          end_upgrade("the guest or its VMM keeps changing something; try again");
                        },
                        [this](const TakenUpReport&) {
                          end_upgrade("");
                          const auto took = std::chrono::steady_clock::now() - died_at_;
                          const std::string after = fmt::format(
                              "after {} ms",
                              std::chrono::duration_cast<std::chrono::milliseconds>(took).count());
                          log_.info("the guest goes on {}", after);
                          note(EventKind::kGuestTakenUp, after);
                        }},
             report);
  if (state_ == State::kServing && !attached_ && next_) hand_over(std::move(next_));
}

void PartitionSupervisor::worker_ready() {
  if (state_ != State::kStarting) return;
  state_ = State::kServing;
  serving_since_ = std::chrono::steady_clock::now();
  log_.info("serving on {} (worker process {})", config_.socket, worker_->pid());
  note(EventKind::kWorkerServing, fmt::format("process {}", worker_->pid()));
  if (attached_) {  // by a worker process that died
    for (const auto& [key, fd] : kept_fds_) worker_->send(encode_kept_fd(key, fd.get()));
    worker_->send(encode_connection(attached_.get(), true));
  } else {
    end_upgrade("");
  }
  if (was_ready_) return;
  was_ready_ = true;
  events_.ready();
}

void PartitionSupervisor::backend_lost(const std::string& nic) {
  for (const auto& each : nics_) {
    if (each->nic().name != nic) continue;
    note(EventKind::kBackendLost, "", nic);
    each->lost();
  }
}

void PartitionSupervisor::connection_wanted(const ConnectionWantedReport& wanted) {
  const auto found = servers_.find({wanted.controller, wanted.lun});
  if (found != servers_.end()) found->second->wanted();
}

void PartitionSupervisor::hand_over_backend(const netvsp::NicConfig& nic) {
  note(EventKind::kBackendRestored, "", nic.name);
  // A worker that is yet to come gets it with the NIC.
  if (worker_) worker_->send(encode_change_nic(nic.name, std::nullopt, nic.fds));
}

void PartitionSupervisor::worker_died(int wait_status) {
  const pid_t pid = worker_->pid();
  worker_.reset();
  for (const auto& [disk, server] : servers_) server->worker_died();
  end_look(nullptr);
  while (!asked_.empty()) end_ask(asked_.begin()->first, "the partition's worker process died");
  end_changes();
  const bool was_attached = static_cast<bool>(attached_);
  if (given_area_ && wait_status == 0 && attached_ && state_ == State::kServing) return take_up_given();
  given_area_.reset();
  // Whoever takes up memory that is gone dies of it as well.
  const bool taken_up = can_be_taken_up() && !lost_memory(wait_status);
  if (!taken_up) forget_connection();
  if (state_ == State::kStopping) {
    end_upgrade("the partition stops");
    if (wait_status != 0) {
      stopped_badly_ = true;
      log_.error("worker process {} did not stop in order: {}", pid, describe_wait_status(wait_status));
    }
    return finish_stop();
  }
  if (upgraded_ && wait_status == 0 && state_ == State::kServing) {
    log_.info("worker process {} makes way for {}", pid, program_);
    state_ = State::kWaiting;
    died_at_ = std::chrono::steady_clock::now();
    return take_up();
  }
  // A new program that does not come up is not tried again.
  if (state_ == State::kStarting) program_ = kOwnProgram;
  end_upgrade("the worker process ended; the log says why");
  ++worker_deaths_;
  note(EventKind::kWorkerDied, fmt::format("process {} {}", pid, describe_wait_status(wait_status)));
  log_.error("worker process {} ended unexpectedly: {}{}", pid, describe_wait_status(wait_status),
             taken_up       ? "; another takes up its guest"
             : was_attached ? "; its VMM has lost its devices and must attach again"
                            : "");
  if (!was_ready_) {
    state_ = State::kWaiting;
    return events_.failed();
  }
  if (taken_up) {
    state_ = State::kWaiting;
    died_at_ = std::chrono::steady_clock::now();
    return take_up();
  }
  if (state_ == State::kServing && std::chrono::steady_clock::now() - serving_since_ >= kStableAfter) {
    retry_delay_ = kRetryFirst;
  }
  retry_later();
}

bool PartitionSupervisor::can_be_taken_up() {
  const auto now = std::chrono::steady_clock::now();
  deaths_.push_back(now);
  if (deaths_.size() > kDeathsMax) deaths_.pop_front();
  const bool too_often = deaths_.size() == kDeathsMax && now - deaths_.front() < kDeathsTime;
  if (too_often && attached_) note(EventKind::kLimitReached, "worker processes die too often to be followed");
  return attached_ && !hung_up(attached_) && was_ready_ && recovery_file_ && images_lent_ && !too_often &&
         (state_ == State::kServing || state_ == State::kStarting);
}

// The worker has made way for one that takes up what a VMM has given back.
void PartitionSupervisor::take_up_given() {
  const UniqueFd given = std::exchange(given_area_, {});
  end_upgrade("the VMM had its guest taken up meanwhile; try again");
  state_ = State::kWaiting;
  died_at_ = std::chrono::steady_clock::now();
  Result<UniqueFd> area = devices::RecoveryArea::adopt(given.get());
  if (area && images_lent_) {
    log_.info("the VMM, {}, has kept a guest of another vmbusd's", peer_of(attached_));
    use_recovery_area(std::move(area));
    return take_up();
  }
  log_.warning("cannot take up the guest of {}: {}", peer_of(attached_),
               area ? "when its images are at rest cannot be told" : describe(area.error()));
  forget_connection();
  retry_later();
}

// Whether kernel and servers are done with what the dead process asked for.
bool PartitionSupervisor::medium_returned() {
  // Each is asked, as asking takes from it the answers that it still has.
  bool servers = true;
  for (const auto& [disk, server] : servers_) servers = server->ended() && servers;
  return servers && images_returned();
}

// Once the medium is done with what the dead process asked for: a write of its must not come behind
// one of the next process's, nor a read overwrite memory that the guest has put to other use. Where the
// recovery area was another supervisor's, once its workers are gone too, for the same reason; it is ours
// then.
void PartitionSupervisor::take_up() {
  if (medium_returned() && devices::RecoveryArea::lock(recovery_file_.get())) return spawn();
  if (std::chrono::steady_clock::now() - died_at_ >= kReturnTime) {
    log_.error(
        "after {} s a worker process before this one is still there, or the medium has not done what it was "
        "asked for: not waiting longer; the VMM must attach again",
        kReturnTime.count());
    forget_connection();
    use_recovery_area(devices::RecoveryArea::make_file());
    return retry_later();
  }
  retry_timer_.expires_after(kReturnPoll);
  retry_timer_.async_wait(lifetime_.guard([this](error_code error) {
    if (!error && state_ == State::kWaiting) take_up();
  }));
}

bool PartitionSupervisor::images_returned() const {
  const auto returned = [this](const UniqueFd& image) {
    return !image || image_returned(image.get(), lent_number_);
  };
  return std::all_of(returning_.begin(), returning_.end(), returned) &&
         std::all_of(config_.scsi.begin(), config_.scsi.end(), [&](const ScsiConfig& scsi) {
           const auto& disks = scsi.controller.disks;
           return std::all_of(disks.begin(), disks.end(),
                              [&](const auto& disk) { return returned(disk.fd); });
         });
}

void PartitionSupervisor::keep_fd(KeepFdReport& report) {
  if (kept_fds_.size() < kKeptFdsMax || kept_fds_.contains(report.key)) {
    kept_fds_.insert_or_assign(report.key, std::move(report.fd));
  }
}

void PartitionSupervisor::forget_connection() {
  if (attached_) note(EventKind::kVmmDetached, "");
  attached_.reset();
  kept_fds_.clear();
}

void PartitionSupervisor::retry_later() {
  state_ = State::kWaiting;
  log_.info("starting a new worker process in {} ms", retry_delay_.count());
  retry_timer_.expires_after(retry_delay_);
  retry_timer_.async_wait(lifetime_.guard([this](error_code error) {
    if (!error && state_ == State::kWaiting) spawn();
  }));
  retry_delay_ = std::min(retry_delay_ * 2, kRetryMax);
}

void PartitionSupervisor::upgrade(std::function<void(const std::string& problem)> done) {
  std::error_code error;
  std::string path = std::filesystem::read_symlink(kOwnProgram, error).string();
  constexpr std::string_view kReplaced = " (deleted)";  // [proc(5): /proc/pid/exe]
  if (path.ends_with(kReplaced)) path.resize(path.size() - kReplaced.size());
  if (error || ::access(path.c_str(), X_OK) != 0) return done(fmt::format("cannot run {}", path));
  if (upgraded_) return done("an upgrade is under way");
  if (state_ != State::kServing) return done("the partition has no worker process that serves");
  if (!recovery_file_ || !images_lent_) return done("its guest cannot be taken up; the log says why");
  upgraded_ = std::move(done);
  program_ = std::move(path);
  worker_->send(encode(LeaveCommand{}));
}

void PartitionSupervisor::end_upgrade(const std::string& problem) {
  if (const auto done = std::exchange(upgraded_, nullptr)) done(problem);
}

void PartitionSupervisor::stop(bool restart) {
  if (state_ == State::kStopping || state_ == State::kStopped) return;
  state_ = State::kStopping;
  error_code ignored;
  listener_.close(ignored);
  accept_pause_.cancel();
  retry_timer_.cancel();
  for (const auto& nic : nics_) nic->stop();
  for (const auto& [disk, server] : servers_) server->stop();
  next_.reset();
  if (!worker_) {
    forget_connection();
    end_upgrade("the partition stops");
  }
  if (socket_bound_) ::unlink(config_.socket.c_str());
  socket_bound_ = false;
  if (!worker_) return finish_stop();
  worker_->send(encode(StopCommand{restart}));
  stop_timer_.expires_after(kStopTime);
  stop_timer_.async_wait(lifetime_.guard([this](error_code error) {
    if (error) return;
    log_.error("worker process did not stop within {} s: killing it", kStopTime.count());
    kill();
  }));
}

void PartitionSupervisor::finish_stop() {
  state_ = State::kStopped;
  stop_timer_.cancel();
  boost::asio::post(context_, events_.stopped);
}

void PartitionSupervisor::kill() {
  if (worker_) worker_->kill();
}

void PartitionSupervisor::look(std::function<void(const PartitionStatus*)> done) {
  if (!lookers_.empty()) return lookers_.push_back(std::move(done));
  Result<UniqueFd> file = make_status_file();
  if (state_ != State::kServing || !file) {
    // The partition may be gone by then.
    boost::asio::post(context_, [done = std::move(done)] { done(nullptr); });
    return;
  }
  lookers_.push_back(std::move(done));
  look_file_ = *std::move(file);
  worker_->send(encode_status(++look_id_, look_file_.get()));
  look_timer_.expires_after(kLookTime);
  look_timer_.async_wait(lifetime_.guard([this, id = look_id_](error_code error) {
    if (!error && id == look_id_) end_look(nullptr);
  }));
}

void PartitionSupervisor::status_ready(const StatusReport& report) {
  if (report.id != look_id_ || !look_file_) return;  // it comes too late
  const Result<PartitionStatus> status = read_status_file(look_file_.get());
  if (!status) log_.warning("worker process {}: {}", worker_->pid(), describe(status.error()));
  end_look(status ? &*status : nullptr);
}

void PartitionSupervisor::end_look(const PartitionStatus* status) {
  look_timer_.cancel();
  look_file_.reset();
  for (const auto& done : std::exchange(lookers_, {})) done(status);
}

bool PartitionSupervisor::set_link(const std::string& nic, bool up) {
  const bool known =
      std::any_of(nics_.begin(), nics_.end(), [&](const auto& each) { return each->nic().name == nic; });
  if (!known) return false;
  if (up) {
    links_off_.erase(nic);
  } else {
    links_off_.insert(nic);
  }
  log_.info("{}: link switched {}", nic, up ? "on" : "off");
  note(EventKind::kLinkSwitched, up ? "up" : "down", nic);
  if (worker_) worker_->send(encode_change_nic(nic, up, {}));
  return true;
}

void PartitionSupervisor::ask_guest(GuestCommand command, std::function<void(const std::string&)> done) {
  if (state_ != State::kServing) return done("the partition is not served at the moment");
  command.id = ++ask_id_;
  Asked& asked =
      asked_.emplace(command.id, Asked{std::move(done), boost::asio::steady_timer(context_)}).first->second;
  asked.timer.expires_after(kAskTime + std::chrono::seconds(command.timeout_s));
  asked.timer.async_wait(lifetime_.guard([this, id = command.id](error_code error) {
    if (!error) end_ask(id, "the partition's worker process does not answer");
  }));
  worker_->send(encode(command));
}

void PartitionSupervisor::end_ask(std::uint32_t id, const std::string& problem) {
  auto asked = asked_.extract(id);
  if (!asked.empty()) asked.mapped().done(problem);
}

void PartitionSupervisor::set_log_level(LogLevel level) {
  log_level_ = level;
  if (worker_) worker_->send(encode(LogLevelCommand{level}));
}

const char* PartitionSupervisor::state() const {
  switch (state_) {
    case State::kNew:
    case State::kStarting:
      return "starting";
    case State::kServing:
      return "serving";
    case State::kWaiting:
      return "waiting";
    case State::kStopping:
    case State::kStopped:
      break;
  }
  return "stopping";
}

pid_t PartitionSupervisor::vmm_pid() const {
  if (!attached_) return 0;
  return peer_pid(attached_).value_or(0);
}

void PartitionSupervisor::wait_for_vmm() {
  listener_.async_wait(descriptor_base::wait_read, lifetime_.guard([this](error_code error) {
    if (!error) accept_vmms();
  }));
}

void PartitionSupervisor::accept_vmms() {
  if (!listener_.is_open()) return;  // it was ready before stop()
  // Bounded, so that one partition's flood of connections leaves the others their turn.
  constexpr int kAcceptsPerTurn = 16;
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    UniqueFd socket(::accept4(listener_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket) {
      take_vmm(std::move(socket));
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EAGAIN) break;
    // Out of descriptors or memory: the connection stays pending, so waiting for readiness would spin.
    log_.error("cannot accept a VMM's connection: {}", std::strerror(errno));
    note(EventKind::kLimitReached, fmt::format("cannot accept a VMM's connection: {}", std::strerror(errno)));
    accept_pause_.expires_after(1s);
    accept_pause_.async_wait(lifetime_.guard([this](error_code error) {
      if (!error) wait_for_vmm();
    }));
    return;
  }
  wait_for_vmm();
}

void PartitionSupervisor::take_vmm(UniqueFd socket) {
  if (next_ && hung_up(next_)) next_.reset();
  const bool place_free = !attached_ || hung_up(attached_);
  if (next_ || !place_free) return refuse(std::move(socket));
  if (state_ == State::kServing && !attached_) return hand_over(std::move(socket));
  next_ = std::move(socket);
}

void PartitionSupervisor::hand_over(UniqueFd socket) {
  log_.info("VMM attaches: {}", peer_of(socket));
  note(EventKind::kVmmAttached, peer_of(socket));
  attached_ = std::move(socket);
  worker_->send(encode_connection(attached_.get(), false));
}

void PartitionSupervisor::refuse(UniqueFd socket) {
  const std::string holder = peer_of(next_ ? next_ : attached_);
  log_.guest("refused {}: {} is attached", peer_of(socket), holder);
  note(EventKind::kVmmRefused, fmt::format("{}: {} is attached", peer_of(socket), holder));
  if (*refusals_ >= kRefusalsMax) return;
  std::make_shared<Refusal>(context_, std::move(socket),
                            fmt::format("partition {} is in use by another VMM: {}", config_.name, holder),
                            refusals_)
      ->start();
}

}  // namespace vmbusd::daemon
