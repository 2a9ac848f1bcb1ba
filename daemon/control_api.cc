#include "daemon/control_api.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <ctime>
#include <initializer_list>
#include <memory>
#include <optional>
#include <utility>

#include "daemon/metrics.h"
#include "daemon/object_reader.h"
#include "daemon/partition_view.h"
#include "devices/integration/kvp.h"
#include "devices/integration/vss.h"

namespace vmbusd::daemon {

namespace {

constexpr std::size_t kNamesMax = 3;

struct Route {
  std::string_view method;
  std::string_view path;
  void (ControlApi::*handle)(ControlApi::Names, const HttpRequest&, ControlApi::Respond);
};

constexpr std::array kRoutes = {
    Route{"GET", "/v1/version", &ControlApi::get_version},
    Route{"GET", "/metrics", &ControlApi::get_metrics},
    Route{"GET", "/v1/config", &ControlApi::get_config},
    Route{"GET", "/v1/config.toml", &ControlApi::get_config_text},
    Route{"GET", "/v1/events", &ControlApi::get_events},
    Route{"GET", "/v1/events/{after}", &ControlApi::await_events},
    Route{"GET", "/v1/partitions", &ControlApi::get_partitions},
    Route{"POST", "/v1/partitions", &ControlApi::add_partition},
    Route{"GET", "/v1/partitions/{partition}", &ControlApi::get_partition},
    Route{"DELETE", "/v1/partitions/{partition}", &ControlApi::remove_partition},
    Route{"POST", "/v1/partitions/{partition}/upgrade", &ControlApi::upgrade_partition},
    Route{"POST", "/v1/partitions/{partition}/guest/shutdown", &ControlApi::shut_down_guest},
    Route{"POST", "/v1/partitions/{partition}/guest/freeze", &ControlApi::freeze_guest},
    Route{"POST", "/v1/partitions/{partition}/guest/thaw", &ControlApi::thaw_guest},
    Route{"POST", "/v1/partitions/{partition}/guest/keys", &ControlApi::write_guest_key},
    Route{"POST", "/v1/partitions/{partition}/nics", &ControlApi::add_nic},
    Route{"PATCH", "/v1/partitions/{partition}/nics/{nic}", &ControlApi::change_nic},
    Route{"POST", "/v1/partitions/{partition}/scsi", &ControlApi::add_controller},
    Route{"POST", "/v1/partitions/{partition}/scsi/{controller}/disks", &ControlApi::add_disk},
    Route{"PATCH", "/v1/partitions/{partition}/scsi/{controller}/disks/{lun}", &ControlApi::change_disk},
    Route{"DELETE", "/v1/partitions/{partition}/scsi/{controller}/disks/{lun}", &ControlApi::remove_disk},
    Route{"POST", "/v1/partitions/{partition}/scsi/{controller}/disks/{lun}/resize",
          &ControlApi::resize_disk},
    Route{"DELETE", "/v1/partitions/{partition}/devices/{device}", &ControlApi::remove_device},
    Route{"GET", "/v1/log", &ControlApi::get_log},
    Route{"PATCH", "/v1/log", &ControlApi::change_log},
    Route{"POST", "/v1/reload", &ControlApi::reload},
};

constexpr std::array<std::pair<std::string_view, LogLevel>, 4> kLevels = {{{"debug", LogLevel::kDebug},
                                                                           {"info", LogLevel::kInfo},
                                                                           {"warning", LogLevel::kWarning},
                                                                           {"error", LogLevel::kError}}};

constexpr std::array<std::pair<std::string_view, GuestCommand::Ask>, 3> kShutdownActions = {
    {{"poweroff", GuestCommand::Ask::kPowerOff},
     {"reboot", GuestCommand::Ask::kReboot},
     {"hibernate", GuestCommand::Ask::kHibernate}}};

HttpResponse ok(const Json& json, unsigned status = 200) {
  return {status, dump(json) + "\n"};
}

HttpResponse done() {
  return {204, ""};
}

HttpResponse failure(unsigned status, const std::string& text) {
  return ok({{"error", text}}, status);
}

HttpResponse failure(unsigned status, const std::string& text, const std::vector<std::string>& problems) {
  return ok({{"error", text}, {"problems", problems}}, status);
}

// The part of `path` up to the next slash, taken off its front.
std::string_view take_part(std::string_view& path) {
  const std::string_view part = path.substr(0, path.find('/'));
  path.remove_prefix(std::min(path.size(), part.size() + 1));
  return part;
}

// The names in the target where it is what the route's path says.
struct Match {
  std::array<std::string_view, kNamesMax> names;
  std::size_t count = 0;
};
std::optional<Match> match(std::string_view path, std::string_view target) {
  if (std::count(path.begin(), path.end(), '/') != std::count(target.begin(), target.end(), '/')) {
    return std::nullopt;
  }
  Match match;
  while (!path.empty()) {
    const std::string_view wanted = take_part(path);
    const std::string_view found = take_part(target);
    if (!wanted.starts_with('{')) {
      if (wanted != found) return std::nullopt;
    } else if (found.empty()) {
      return std::nullopt;
    } else {
      match.names[match.count++] = found;
    }
  }
  return match;
}

// What is wrong with a body that is to have no members but these; empty where that holds.
std::string unknown_key(const Json& json, std::initializer_list<std::string_view> accepted) {
  const std::string all = fmt::format("{}", fmt::join(accepted, ", "));
  if (!json.is_object()) return fmt::format("the body is no JSON object; accepted: an object with {}", all);
  for (const auto& [name, value] : json.items()) {
    if (std::find(accepted.begin(), accepted.end(), name) == accepted.end())
      return fmt::format("{}: unknown key; accepted: {}", shown(name), all);
  }
  return {};
}

// The one member of a body that has no other: a text. Else why not.
struct OneText {
  std::string value;
  std::string problem;
};
OneText read_one_text(const std::string& body, const std::string& key) {
  const Json json = Json::parse(body, nullptr, false);
  if (!json.is_object()) return {"", fmt::format("the body is no JSON object; accepted: {{\"{}\": …}}", key)};
  for (const auto& [name, value] : json.items()) {
    if (name != key) return {"", fmt::format("{}: unknown key; accepted: {}", shown(name), key)};
    if (!value.is_string()) return {"", fmt::format("{}: is no text", key)};
    return {value.get<std::string>(), ""};
  }
  return {"", fmt::format("{}: is missing", key)};
}

Json to_json(const EventLog::Page& page) {
  Json events = Json::array();
  for (const Event& event : page.events) {
    const auto since_epoch =
        std::chrono::duration_cast<std::chrono::milliseconds>(event.time.time_since_epoch());
    const std::time_t seconds = since_epoch.count() / 1000;
    events.push_back({{"number", event.number},
                      {"time", fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(seconds),
                                           since_epoch.count() % 1000)},
                      {"event", kEventNames[static_cast<std::size_t>(event.kind)]},
                      {"partition", event.partition},
                      {"device", event.device},
                      {"text", event.text}});
  }
  return {{"events", std::move(events)}, {"last", page.last}, {"missed", page.missed}};
}

std::vector<std::string> problems_of(const std::vector<ConfigProblem>& problems) {
  std::vector<std::string> texts;
  for (const ConfigProblem& problem : problems) texts.push_back(format_problem("", problem));
  return texts;
}

// Where there are none, those that the host sees.
std::vector<std::string> problems_of(const std::vector<ConfigProblem>& problems, const Config& config) {
  return problems_of(problems.empty() ? check_host(config) : problems);
}

// Answers by this status, without a body, where there is no problem.
PartitionSupervisor::Done answer_with(unsigned status, HttpServer::Respond respond) {
  return [status, respond = std::move(respond)](const std::string& problem) {
    respond(problem.empty() ? HttpResponse{status, ""} : failure(409, problem));
  };
}

}  // namespace

std::vector<ApiRoute> api_routes() {
  std::vector<ApiRoute> routes;
  for (const Route& route : kRoutes) routes.push_back({route.method, route.path});
  return routes;
}

void ControlApi::handle(const HttpRequest& request, Respond respond) {
  std::string allow;
  for (const Route& route : kRoutes) {
    const std::optional<Match> found = match(route.path, request.target);
    if (!found) continue;
    if (route.method == request.method) {
      return (this->*route.handle)(Names(found->names).first(found->count), request, std::move(respond));
    }
    allow += allow.empty() ? "" : ", ";
    allow += route.method;
  }
  if (allow.empty()) return respond(failure(404, "there is no such path"));
  HttpResponse response = failure(405, fmt::format("not a method of this path; accepted: {}", allow));
  response.allow = allow;
  respond(std::move(response));
}

void ControlApi::get_version(Names, const HttpRequest&, Respond respond) {
  respond(ok({{"version", VMBUSD_VERSION}, {"api", 1}, {"pid", ::getpid()}}));
}

void ControlApi::look_at_all(Looked done) {
  struct Gathering {
    std::vector<PartitionSample> samples;
    std::size_t missing = 0;
    Looked done;
    void finish() {
      if (missing-- == 1) done(samples);
    }
  };
  const auto gathering = std::make_shared<Gathering>();
  gathering->done = std::move(done);
  const std::vector<PartitionSupervisor*> partitions = partitions_.all();
  gathering->missing = partitions.size() + 1;
  gathering->samples.resize(partitions.size());
  for (std::size_t i = 0; i < partitions.size(); ++i) {
    gathering->samples[i].name = partitions[i]->config().name;
    gathering->samples[i].serving = std::string_view(partitions[i]->state()) == "serving";
    gathering->samples[i].attached = partitions[i]->vmm_pid() != 0;
    gathering->samples[i].worker_deaths = partitions[i]->worker_deaths();
    partitions[i]->look([gathering, i](const PartitionStatus* status) {
      if (status != nullptr) gathering->samples[i].status = *status;
      gathering->finish();
    });
  }
  gathering->finish();
}

void ControlApi::get_metrics(Names, const HttpRequest&, Respond respond) {
  look_at_all([respond = std::move(respond)](const std::vector<PartitionSample>& samples) {
    respond({200, metrics_text(samples), "text/plain; version=0.0.4; charset=utf-8"});
  });
}

ConfigTable ControlApi::config() const {
  ConfigTable table = to_table(own_);
  for (const PartitionSupervisor* partition : partitions_.all()) {
    if (!partition->stopping()) table["partition"].push_back(partition_table(*partition));
  }
  return table;
}

void ControlApi::get_config(Names, const HttpRequest&, Respond respond) {
  respond({200, config().dump(-1, ' ', false, ConfigTable::error_handler_t::replace) + "\n"});
}

void ControlApi::get_config_text(Names, const HttpRequest&, Respond respond) {
  respond({200, to_toml(config()), "application/toml"});
}

void ControlApi::get_events(Names, const HttpRequest&, Respond respond) {
  respond(ok(to_json(events_.after(0))));
}

void ControlApi::await_events(Names names, const HttpRequest&, Respond respond) {
  std::uint64_t number = 0;
  const char* const end = names[0].data() + names[0].size();
  const auto [parsed, error] = std::from_chars(names[0].data(), end, number);
  if (error != std::errc() || parsed != end)
    return respond(failure(422, fmt::format("{} is no event's number", shown(names[0]))));
  const bool taken =
      events_.wait_for(number, [respond](const EventLog::Page& page) { respond(ok(to_json(page))); });
  if (!taken) respond(failure(429, fmt::format("{} clients wait for events already", EventLog::kWaitersMax)));
}

void ControlApi::get_partitions(Names, const HttpRequest&, Respond respond) {
  look_at_all([this, respond = std::move(respond)](const std::vector<PartitionSample>& samples) {
    Json list = Json::array();
    for (const PartitionSample& sample : samples) {
      // Gone meanwhile.
      const PartitionSupervisor* const partition = partitions_.find(sample.name);
      if (partition == nullptr) continue;
      list.push_back(partition_summary(*partition, sample.status ? &*sample.status : nullptr));
    }
    respond(ok({{"partitions", std::move(list)}}));
  });
}

void ControlApi::add_partition(Names, const HttpRequest& request, Respond respond) {
  ParsedConfig parsed = parse_partition(request.body, directory_);
  const std::vector<std::string> problems = problems_of(parsed.problems, parsed.config);
  if (!problems.empty()) return respond(failure(422, "the partition is not accepted", problems));
  const std::string name = parsed.config.partitions.front().name;
  partitions_.add(std::move(parsed.config.partitions.front()),
                  [this, name, respond = std::move(respond)](const std::string& problem) {
                    if (!problem.empty()) return respond(failure(409, problem));
                    respond(ok(partition_summary(*partitions_.find(name), nullptr), 201));
                  });
}

void ControlApi::get_partition(Names names, const HttpRequest&, Respond respond) {
  const std::string name(names[0]);
  PartitionSupervisor* const partition = partitions_.find(name);
  if (partition == nullptr)
    return respond(failure(404, fmt::format("there is no partition {}", shown(name))));
  partition->look([this, name, respond = std::move(respond)](const PartitionStatus* status) {
    const PartitionSupervisor* const found = partitions_.find(name);
    if (found == nullptr) return respond(failure(404, fmt::format("there is no partition {}", shown(name))));
    respond(ok(partition_tree(*found, status)));
  });
}

void ControlApi::remove_partition(Names names, const HttpRequest&, Respond respond) {
  const std::string name(names[0]);
  if (partitions_.find(name) == nullptr) {
    return respond(failure(404, fmt::format("there is no partition {}", shown(name))));
  }
  partitions_.remove(name, [respond = std::move(respond)](const std::string&) { respond(done()); });
}

void ControlApi::upgrade_partition(Names names, const HttpRequest&, Respond respond) {
  PartitionSupervisor* const partition = partitions_.find(std::string(names[0]));
  if (partition == nullptr) {
    return respond(failure(404, fmt::format("there is no partition {}", shown(names[0]))));
  }
  partition->upgrade([respond = std::move(respond)](const std::string& problem) {
    respond(problem.empty() ? done() : failure(409, problem));
  });
}

void ControlApi::shut_down_guest(Names names, const HttpRequest& request, Respond respond) {
  const OneText action = read_one_text(request.body, "action");
  if (!action.problem.empty()) return respond(failure(422, action.problem));
  for (const auto& [name, meaning] : kShutdownActions) {
    if (action.value != name) continue;
    GuestCommand command;
    command.ask = meaning;
    return ask_guest(names[0], command, std::move(respond));
  }
  respond(failure(422, fmt::format("action: {} is not accepted; accepted: poweroff, reboot, hibernate",
                                   shown(action.value))));
}

void ControlApi::freeze_guest(Names names, const HttpRequest& request, Respond respond) {
  constexpr auto kMax = static_cast<std::uint64_t>(integration::Vss::kFreezeTimeMax.count());
  const Json json = Json::parse(request.body, nullptr, false);
  if (std::string problem = unknown_key(json, {"timeout_s"}); !problem.empty())
    return respond(failure(422, problem));
  const auto timeout = json.find("timeout_s");
  const bool number = timeout != json.end() && timeout->is_number_unsigned();
  const std::uint64_t seconds = number ? timeout->get<std::uint64_t>() : 0;
  if (seconds < 1 || seconds > kMax) {
    return respond(failure(422, fmt::format("timeout_s: accepted: an integer from 1 to {}", kMax)));
  }
  GuestCommand command;
  command.ask = GuestCommand::Ask::kFreeze;
  command.timeout_s = static_cast<std::uint32_t>(seconds);
  ask_guest(names[0], command, std::move(respond));
}

void ControlApi::thaw_guest(Names names, const HttpRequest&, Respond respond) {
  GuestCommand command;
  command.ask = GuestCommand::Ask::kThaw;
  ask_guest(names[0], command, std::move(respond));
}

void ControlApi::write_guest_key(Names names, const HttpRequest& request, Respond respond) {
  using integration::Kvp;
  const Json json = Json::parse(request.body, nullptr, false);
  if (std::string problem = unknown_key(json, {"key", "value"}); !problem.empty())
    return respond(failure(422, problem));
  const auto text = [&json](const char* name, std::size_t size_min, std::size_t size_max) {
    const auto member = json.find(name);
    if (member == json.end() || !member->is_string()) return false;
    const auto& value = member->get_ref<const std::string&>();
    return value.size() >= size_min && value.size() <= size_max && value.find('\0') == std::string::npos;
  };
  if (!text("key", 1, Kvp::kKeyBytesMax)) {
    return respond(failure(422, fmt::format("key: accepted: text of 1 to {} bytes", Kvp::kKeyBytesMax)));
  }
  const bool forget = json.contains("value") && json["value"].is_null();
  if (!forget && !text("value", 0, Kvp::kValueBytesMax)) {
    return respond(
        failure(422, fmt::format("value: accepted: text of at most {} bytes, or null to delete the key",
                                 Kvp::kValueBytesMax)));
  }
  GuestCommand command;
  command.ask = forget ? GuestCommand::Ask::kDeleteKey : GuestCommand::Ask::kSetKey;
  command.key = json["key"].get<std::string>();
  if (!forget) command.value = json["value"].get<std::string>();
  ask_guest(names[0], command, std::move(respond));
}

void ControlApi::ask_guest(std::string_view name, const GuestCommand& command, Respond respond) {
  PartitionSupervisor* const partition = partitions_.find(std::string(name));
  if (partition == nullptr)
    return respond(failure(404, fmt::format("there is no partition {}", shown(name))));
  partition->ask_guest(command, [respond = std::move(respond)](const std::string& problem) {
    respond(problem.empty() ? done() : failure(409, problem));
  });
}

void ControlApi::change_nic(Names names, const HttpRequest& request, Respond respond) {
  const OneText link = read_one_text(request.body, "link");
  if (!link.problem.empty()) return respond(failure(422, link.problem));
  if (link.value != "up" && link.value != "down") {
    return respond(
        failure(422, fmt::format("link: {} is not accepted; accepted: up, down", shown(link.value))));
  }
  PartitionSupervisor* const partition = partitions_.find(std::string(names[0]));
  if (partition == nullptr || !partition->set_link(std::string(names[1]), link.value == "up")) {
    return respond(failure(404, fmt::format("there is no NIC {}/{}", shown(names[0]), shown(names[1]))));
  }
  respond(done());
}

PartitionSupervisor* ControlApi::partition_of(Names names, const Respond& respond) {
  PartitionSupervisor* const partition = partitions_.find(std::string(names[0]));
  if (partition == nullptr) respond(failure(404, fmt::format("there is no partition {}", shown(names[0]))));
  return partition;
}

std::optional<ControlApi::Disk> ControlApi::disk_of(Names names, const Respond& respond) {
  PartitionSupervisor* const partition = partitions_.find(std::string(names[0]));
  const std::string controller(names[1]);
  std::uint8_t lun = storvsp::kMaxLuns;
  const auto [end, error] = std::from_chars(names[2].data(), names[2].data() + names[2].size(), lun);
  const bool number = error == std::errc() && end == names[2].data() + names[2].size();
  const storvsp::DiskConfig* const disk =
      partition != nullptr && number ? partition->find_disk(controller, lun) : nullptr;
  if (disk == nullptr) {
    respond(failure(
        404, fmt::format("there is no disk {}/{}/{}", shown(names[0]), shown(names[1]), shown(names[2]))));
    return std::nullopt;
  }
  return Disk{partition, controller, lun, disk->limits};
}

void ControlApi::add_nic(Names names, const HttpRequest& request, Respond respond) {
  PartitionSupervisor* const partition = partition_of(names, respond);
  if (partition == nullptr) return;
  ParsedConfig parsed = parse_nic(request.body, partition->config().name, directory_);
  if (const auto problems = problems_of(parsed.problems); !problems.empty()) {
    return respond(failure(422, "the NIC is not accepted", problems));
  }
  NicConfig& nic = parsed.config.partitions.front().nics.front();
  if (const std::string problem = partitions_.nic_conflict(nic); !problem.empty())
    return respond(failure(409, problem));
  nic.plugged = true;
  partition->add_nic(std::move(nic), answer_with(201, std::move(respond)));
}

void ControlApi::add_controller(Names names, const HttpRequest& request, Respond respond) {
  PartitionSupervisor* const partition = partition_of(names, respond);
  if (partition == nullptr) return;
  ParsedConfig parsed = parse_controller(request.body, partition->config().name, directory_);
  if (const auto problems = problems_of(parsed.problems, parsed.config); !problems.empty()) {
    return respond(failure(422, "the controller is not accepted", problems));
  }
  ScsiConfig& scsi = parsed.config.partitions.front().scsi.front();
  scsi.plugged = true;
  for (ImageConfig& image : scsi.images) image.plugged = true;
  partition->add_controller(std::move(scsi), answer_with(201, std::move(respond)));
}

void ControlApi::remove_device(Names names, const HttpRequest&, Respond respond) {
  PartitionSupervisor* const partition = partition_of(names, respond);
  if (partition == nullptr) return;
  const std::string device(names[1]);
  if (!partition->has_device(device)) {
    return respond(failure(404, fmt::format("there is no device {}/{}", shown(names[0]), shown(device))));
  }
  partition->remove_device(device, answer_with(204, std::move(respond)));
}

void ControlApi::add_disk(Names names, const HttpRequest& request, Respond respond) {
  PartitionSupervisor* const partition = partition_of(names, respond);
  if (partition == nullptr) return;
  const std::string controller(names[1]);
  if (partition->find_controller(controller) == nullptr) {
    return respond(
        failure(404, fmt::format("there is no controller {}/{}", shown(names[0]), shown(controller))));
  }
  ParsedConfig parsed = parse_disk(request.body, partition->config().name, controller, directory_);
  if (const auto problems = problems_of(parsed.problems, parsed.config); !problems.empty()) {
    return respond(failure(422, "the disk is not accepted", problems));
  }
  ScsiConfig& scsi = parsed.config.partitions.front().scsi.front();
  scsi.images.front().plugged = true;
  partition->add_disk(std::move(scsi), answer_with(201, std::move(respond)));
}

void ControlApi::remove_disk(Names names, const HttpRequest&, Respond respond) {
  const std::optional<Disk> disk = disk_of(names, respond);
  if (disk) disk->partition->remove_disk(disk->controller, disk->lun, answer_with(204, std::move(respond)));
}

void ControlApi::change_disk(Names names, const HttpRequest& request, Respond respond) {
  std::optional<Disk> disk = disk_of(names, respond);
  if (!disk) return;
  if (const auto problems = problems_of(parse_limits(request.body, disk->limits)); !problems.empty()) {
    return respond(failure(422, "the change is not accepted", problems));
  }
  disk->partition->limit_disk(disk->controller, disk->lun, disk->limits,
                              answer_with(204, std::move(respond)));
}

void ControlApi::resize_disk(Names names, const HttpRequest& request, Respond respond) {
  const std::optional<Disk> disk = disk_of(names, respond);
  if (!disk) return;
  const Json json = Json::parse(request.body, nullptr, false);
  if (std::string problem = unknown_key(json, {"size"}); !problem.empty())
    return respond(failure(422, problem));
  std::uint64_t size_bytes = 0;  // as it is
  if (const auto size = json.find("size"); size != json.end()) {
    size_bytes = size->is_string() ? parse_size(size->get_ref<const std::string&>()).value_or(0) : 0;
    if (size_bytes == 0) {
      return respond(failure(422, "size: accepted: bytes with a binary suffix, such as \"512M\", \"10G\""));
    }
  }
  disk->partition->grow_disk(disk->controller, disk->lun, size_bytes, answer_with(204, std::move(respond)));
}

void ControlApi::get_log(Names, const HttpRequest&, Respond respond) {
  for (const auto& [name, level] : kLevels) {
    if (level == partitions_.log_level()) return respond(ok({{"level", name}}));
  }
}

void ControlApi::change_log(Names, const HttpRequest& request, Respond respond) {
  const OneText wanted = read_one_text(request.body, "level");
  if (!wanted.problem.empty()) return respond(failure(422, wanted.problem));
  for (const auto& [name, level] : kLevels) {
    if (wanted.value != name) continue;
    partitions_.set_log_level(level);
    return respond(done());
  }
  respond(failure(422, fmt::format("level: {} is not accepted; accepted: debug, info, warning, error",
                                   shown(wanted.value))));
}

void ControlApi::reload(Names, const HttpRequest&, Respond respond) {
  const std::vector<std::string> problems = reload_();
  respond(problems.empty() ? done() : failure(422, "the configuration file is not accepted", problems));
}

}  // namespace vmbusd::daemon
