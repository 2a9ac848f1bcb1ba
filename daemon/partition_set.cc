#include "daemon/partition_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <utility>

namespace vmbusd::daemon {

namespace {

const LogScope kLog("vmbusd");

}  // namespace

PartitionSet::Entry& PartitionSet::insert(PartitionConfig config, bool from_file) {
  entries_.push_back(std::make_unique<Entry>());
  Entry& entry = *entries_.back();
  entry.from_file = from_file;
  PartitionSupervisor::Events events;
  events.ready = [this, &entry] { served(entry); };
  events.failed = [this, &entry] { failed(entry); };
  // Once more through the queue, so that what was queued for the partition before finds it still there.
  events.stopped = [this, &entry] { boost::asio::post(context_, [this, &entry] { left(entry); }); };
  const std::string name = config.name;
  events.noted = [this, name](EventKind kind, const std::string& device, std::string text) {
    event_log_.add(kind, name, device, std::move(text));
  };
  entry.partition = std::make_unique<PartitionSupervisor>(context_, std::move(config), sandbox_, log_level_,
                                                          std::move(events));
  if (given_sockets_ == nullptr) return entry;
  if (UniqueFd socket = given_sockets_->attach(name)) entry.partition->listen_on(std::move(socket));
  return entry;
}

bool PartitionSet::open(std::vector<PartitionConfig> partitions) {
  bool all = true;
  for (PartitionConfig& config : partitions) {
    all = insert(std::move(config), true).partition->open(true).empty() && all;
  }
  return all;
}

void PartitionSet::start() {
  awaited_ = entries_.size();
  if (awaited_ == 0) boost::asio::post(context_, events_.ready);
  for (const auto& entry : entries_) {
    entry->awaited = true;
    start(*entry);
  }
}

void PartitionSet::start(Entry& entry) {
  event_log_.add(EventKind::kPartitionAdded, entry.partition->config().name, "", "");
  entry.partition->start();
}

void PartitionSet::add(PartitionConfig config, Done done) {
  if (stopping_) return done("vmbusd is stopping");
  if (std::string problem = conflict(config); !problem.empty()) {
    if (entries_.size() >= kPartitionsMax) event_log_.add(EventKind::kLimitReached, config.name, "", problem);
    return done(problem);
  }
  Entry& entry = insert(std::move(config), false);
  const std::vector<std::string> problems = entry.partition->open();
  if (!problems.empty()) {
    entries_.pop_back();
    return done(fmt::format("{}", fmt::join(problems, "; ")));
  }
  entry.started = std::move(done);
  start(entry);
  events_.changed();
}

void PartitionSet::remove(const std::string& name, Done done) {
  Entry* const entry = entry_of(name);
  if (entry == nullptr) return done(fmt::format("there is no partition {}", name));
  entry->removed.push_back(std::move(done));
  leave(*entry);
}

void PartitionSet::reload(std::vector<PartitionConfig> partitions) {
  if (stopping_) return;
  for (const auto& entry : entries_) {
    const std::string& name = entry->partition->config().name;
    const bool stays = std::any_of(partitions.begin(), partitions.end(),
                                   [&](const PartitionConfig& config) { return config.name == name; });
    if (stays || !entry->from_file || entry->leaving) continue;
    entry->partition->log().info("is not in the configuration file any more: removing it");
    leave(*entry);
  }
  for (PartitionConfig& config : partitions) {
    if (const Entry* const entry = entry_of(config.name); entry != nullptr && entry->from_file) {
      PartitionSupervisor& partition = *entry->partition;
      if (entry->leaving) {
        partition.log().warning("is being removed and cannot come back before that is done; reload again");
        continue;
      }
      if (partition.config().definition != config.definition) {
        partition.log().warning(
            "has changed in the configuration file beside its devices, and runs as it was: to take the "
            "change "
            "up, remove the partition and reload, or restart vmbusd");
      }
      partition.reload(std::move(config));
      continue;
    }
    const std::string name = config.name;
    if (const std::string problem = conflict(config); !problem.empty()) {
      kLog.error("cannot add partition {}: {}", name, problem);
      continue;
    }
    kLog.info("partition {} is new in the configuration file", name);
    Entry& entry = insert(std::move(config), true);
    if (!entry.partition->open().empty()) {
      entries_.pop_back();
      continue;
    }
    start(entry);
  }
  events_.changed();
}

PartitionSet::Entry* PartitionSet::entry_of(const std::string& name) {
  for (const auto& entry : entries_) {
    if (entry->partition->config().name == name) return entry.get();
  }
  return nullptr;
}

PartitionSupervisor* PartitionSet::find(const std::string& name) {
  Entry* const entry = entry_of(name);
  return entry == nullptr ? nullptr : entry->partition.get();
}

std::vector<PartitionSupervisor*> PartitionSet::all() {
  std::vector<PartitionSupervisor*> all;
  for (const auto& entry : entries_) all.push_back(entry->partition.get());
  return all;
}

void PartitionSet::set_log_level(LogLevel level) {
  log_level_ = level;
  log_set_level(level);
  for (const auto& entry : entries_) entry->partition->set_log_level(level);
}

// What two partitions cannot share; images are guarded by their locks.
std::string PartitionSet::conflict(const PartitionConfig& config) const {
  if (entries_.size() >= kPartitionsMax)
    return fmt::format("there are {} partitions already", kPartitionsMax);
  for (const auto& entry : entries_) {
    const PartitionSupervisor& other = *entry->partition;
    if (other.config().name == config.name) {
      return fmt::format("there is a partition {} already{}", config.name,
                         entry->leaving ? ", on its way out" : "");
    }
    if (other.config().socket == config.socket) {
      return fmt::format("the socket {} is that of partition {}", config.socket, other.config().name);
    }
  }
  for (const NicConfig& nic : config.nics) {
    if (std::string problem = nic_conflict(nic); !problem.empty()) return problem;
  }
  return {};
}

std::string PartitionSet::nic_conflict(const NicConfig& nic) const {
  for (const auto& entry : entries_) {
    const PartitionSupervisor& other = *entry->partition;
    for (std::size_t i = 0; i < other.nic_count(); ++i) {
      const NicKeeper& theirs = other.nic(i);
      if (!nic.source.tap.empty() && nic.source.tap == theirs.source().tap) {
        return fmt::format("the interface {} is that of {}/{}", nic.source.tap, other.config().name,
                           theirs.nic().name);
      }
      if (nic.nic.mac && nic.nic.mac == theirs.nic().mac) {
        return fmt::format("the MAC address {} is that of {}/{}", nic.nic.mac->to_string(),
                           other.config().name, theirs.nic().name);
      }
    }
  }
  return {};
}

void PartitionSet::no_longer_awaited(Entry& entry) {
  if (!std::exchange(entry.awaited, false)) return;
  if (--awaited_ == 0 && !stopping_) events_.ready();
}

void PartitionSet::served(Entry& entry) {
  if (entry.started) std::exchange(entry.started, nullptr)("");
  no_longer_awaited(entry);
}

void PartitionSet::failed(Entry& entry) {
  if (entry.awaited) return events_.failed();
  entry.problem = "its worker process does not come up; the log tells why";
  leave(entry);
}

void PartitionSet::leave(Entry& entry) {
  if (entry.leaving) return;
  entry.leaving = true;
  // One that leaves alone has been removed, and does not come back.
  entry.partition->stop(stopping_);
}

void PartitionSet::left(Entry& entry) {
  stopped_badly_ = stopped_badly_ || entry.partition->stopped_badly();
  const std::string name = entry.partition->config().name;
  if (!stopping_) entry.partition->log().info("removed");
  event_log_.add(EventKind::kPartitionRemoved, name, "", "");
  no_longer_awaited(entry);
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const auto& each) { return each.get() == &entry; });
  const std::unique_ptr<Entry> gone = std::move(*found);
  entries_.erase(found);
  if (gone->started) {
    gone->started(gone->problem.empty() ? fmt::format("partition {} was removed meanwhile", name)
                                        : gone->problem);
  }
  for (const Done& done : gone->removed) done("");
  if (!stopping_) return events_.changed();
  if (entries_.empty()) events_.stopped();
}

void PartitionSet::stop() {
  if (stopping_) return;
  stopping_ = true;
  if (entries_.empty()) boost::asio::post(context_, events_.stopped);
  for (const auto& entry : entries_) leave(*entry);
}

void PartitionSet::kill() {
  for (const auto& entry : entries_) entry->partition->kill();
}

}  // namespace vmbusd::daemon
