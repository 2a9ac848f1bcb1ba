// The control API: what clients of the control socket may ask and change. docs/openapi.json describes it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/config.h"
#include "daemon/config_text.h"
#include "daemon/event_log.h"
#include "daemon/http_server.h"
#include "daemon/metrics.h"
#include "daemon/partition_set.h"

namespace vmbusd::daemon {

struct ApiRoute {
  std::string_view method;  // "GET"
  std::string_view path;    // "/v1/partitions/{partition}": braces stand for a name
};
// Every one that there is.
[[nodiscard]] std::vector<ApiRoute> api_routes();

// Answers requests from what the supervisor knows and what its workers say. Supervisor's thread.
class ControlApi {
 public:
  // Reads the configuration file again; what is wrong with it, a line each, or nothing.
  using Reload = std::function<std::vector<std::string>()>;

  // Relative paths in requests are taken from `directory`. `own` is what the configuration says beside
  // partitions.
  ControlApi(PartitionSet& partitions, EventLog& events, const Config& own, std::string directory,
             Reload reload)
      : partitions_(partitions),
        events_(events),
        own_(own),
        directory_(std::move(directory)),
        reload_(std::move(reload)) {}

  void handle(const HttpRequest& request, HttpServer::Respond respond);

  using Names = std::span<const std::string_view>;  // what stands in place of the path's braces
  using Respond = HttpServer::Respond;

  // One for each route.
  void get_version(Names names, const HttpRequest& request, Respond respond);
  void get_metrics(Names names, const HttpRequest& request, Respond respond);
  void get_config(Names names, const HttpRequest& request, Respond respond);
  void get_config_text(Names names, const HttpRequest& request, Respond respond);
  void get_events(Names names, const HttpRequest& request, Respond respond);
  void await_events(Names names, const HttpRequest& request, Respond respond);
  void get_partitions(Names names, const HttpRequest& request, Respond respond);
  void add_partition(Names names, const HttpRequest& request, Respond respond);
  void get_partition(Names names, const HttpRequest& request, Respond respond);
  void remove_partition(Names names, const HttpRequest& request, Respond respond);
  void upgrade_partition(Names names, const HttpRequest& request, Respond respond);
  void shut_down_guest(Names names, const HttpRequest& request, Respond respond);
  void freeze_guest(Names names, const HttpRequest& request, Respond respond);
  void thaw_guest(Names names, const HttpRequest& request, Respond respond);
  void write_guest_key(Names names, const HttpRequest& request, Respond respond);
  void add_nic(Names names, const HttpRequest& request, Respond respond);
  void change_nic(Names names, const HttpRequest& request, Respond respond);
  void add_controller(Names names, const HttpRequest& request, Respond respond);
  void remove_device(Names names, const HttpRequest& request, Respond respond);
  void add_disk(Names names, const HttpRequest& request, Respond respond);
  void remove_disk(Names names, const HttpRequest& request, Respond respond);
  void change_disk(Names names, const HttpRequest& request, Respond respond);
  void resize_disk(Names names, const HttpRequest& request, Respond respond);
  void get_log(Names names, const HttpRequest& request, Respond respond);
  void change_log(Names names, const HttpRequest& request, Respond respond);
  void reload(Names names, const HttpRequest& request, Respond respond);

 private:
  using Looked = std::function<void(const std::vector<PartitionSample>& samples)>;

  void ask_guest(std::string_view name, const GuestCommand& command, Respond respond);
  // nullptr, and the answer is given, where there is none; the same for a disk, whose LUN is a path's third
  // name.
  PartitionSupervisor* partition_of(Names names, const Respond& respond);
  struct Disk {
    PartitionSupervisor* partition;
    std::string controller;
    std::uint8_t lun;
    storvsp::DiskLimits limits;
  };
  std::optional<Disk> disk_of(Names names, const Respond& respond);
  // Asks all workers how their partitions are.
  void look_at_all(Looked done);

  [[nodiscard]] ConfigTable config() const;

  PartitionSet& partitions_;
  EventLog& events_;
  const Config& own_;
  std::string directory_;
  Reload reload_;
};

}  // namespace vmbusd::daemon
