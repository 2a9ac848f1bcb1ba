// The partitions of a running daemon: those of its configuration file, and those that come and go.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "daemon/config.h"
#include "daemon/event_log.h"
#include "daemon/given_sockets.h"
#include "daemon/partition_supervisor.h"

namespace vmbusd::daemon {

// Life cycle: open() -> start() -> ready -> add(), remove(), reload() -> stop() -> stopped. Supervisor's
// thread.
class PartitionSet {
 public:
  struct Events {
    std::function<void()> ready;            // all partitions that were there at the start serve
    std::function<void()> failed;           // one of them does not; the reason is logged
    std::function<void()> stopped;          // after stop(): all are gone
    std::function<void()> changed = [] {};  // there are more or fewer
  };
  // What came of it: empty, or why it was not done.
  using Done = std::function<void(const std::string& problem)>;

  // What happens to the partitions is noted in `event_log`.
  PartitionSet(boost::asio::io_context& context, LogLevel log_level, EventLog& event_log, Events events)
      : context_(context), log_level_(log_level), event_log_(event_log), events_(std::move(events)) {}

  // Of the workers that start from here on.
  void set_sandbox(const SandboxConfig& sandbox) { sandbox_ = sandbox; }

  // Before open(). `sockets` outlives this.
  void set_given_sockets(const GivenSockets& sockets) { given_sockets_ = &sockets; }

  // At the start; false, and logged, where a partition cannot be had.
  [[nodiscard]] bool open(std::vector<PartitionConfig> partitions);
  void start();

  // At run time. `config` is checked for itself; here it is compared with those that are there. `done` comes
  // when the partition serves or is gone again.
  void add(PartitionConfig config, Done done);
  // `done` comes when nothing of it is left.
  void remove(const std::string& name, Done done);
  // Makes those partitions that came from the configuration file what the file says now: removes those that
  // are missing, adds those that are new, and changes the devices of the others as far as they differ. What
  // else differs is logged, and takes effect when they are removed and added or at the next start.
  void reload(std::vector<PartitionConfig> partitions);

  // What keeps a partition, new or there already, from a NIC; empty where nothing does.
  [[nodiscard]] std::string nic_conflict(const NicConfig& nic) const;

  [[nodiscard]] PartitionSupervisor* find(const std::string& name);
  // In order of their coming.
  [[nodiscard]] std::vector<PartitionSupervisor*> all();
  void set_log_level(LogLevel level);
  [[nodiscard]] LogLevel log_level() const { return log_level_; }

  void stop();
  // Not waiting for what is in flight.
  void kill();
  [[nodiscard]] bool stopped_badly() const { return stopped_badly_; }

 private:
  struct Entry {
    std::unique_ptr<PartitionSupervisor> partition;
    bool from_file = false;
    bool awaited = false;  // it is of the start, and does not serve yet
    bool leaving = false;
    Done started;               // of add()
    std::vector<Done> removed;  // of remove()
    std::string problem;        // why it leaves again
  };

  Entry& insert(PartitionConfig config, bool from_file);
  [[nodiscard]] Entry* entry_of(const std::string& name);
  [[nodiscard]] std::string conflict(const PartitionConfig& config) const;
  void start(Entry& entry);
  void no_longer_awaited(Entry& entry);
  void served(Entry& entry);
  void failed(Entry& entry);
  void leave(Entry& entry);
  void left(Entry& entry);

  boost::asio::io_context& context_;
  LogLevel log_level_;
  EventLog& event_log_;
  Events events_;
  SandboxConfig sandbox_;
  const GivenSockets* given_sockets_ = nullptr;
  std::vector<std::unique_ptr<Entry>> entries_;
  std::size_t awaited_ = 0;  // entries that are
  bool stopping_ = false;
  bool stopped_badly_ = false;
};

}  // namespace vmbusd::daemon
