#include "daemon/control_api.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <utility>

#include "daemon/metrics.h"
#include "daemon/object_reader.h"
#include "daemon/partition_view.h"

namespace vmbusd::daemon {

namespace {

constexpr std::size_t kNamesMax = 2;

struct Route {
  std::string_view method;
  std::string_view path;
  void (ControlApi::*handle)(ControlApi::Names, const HttpRequest&, ControlApi::Respond);
};

constexpr std::array kRoutes = {
    Route{"GET", "/v1/version", &ControlApi::get_version},
    Route{"GET", "/metrics", &ControlApi::get_metrics},
    Route{"GET", "/v1/partitions", &ControlApi::get_partitions},
    Route{"POST", "/v1/partitions", &ControlApi::add_partition},
    Route{"GET", "/v1/partitions/{partition}", &ControlApi::get_partition},
    Route{"DELETE", "/v1/partitions/{partition}", &ControlApi::remove_partition},
    Route{"POST", "/v1/partitions/{partition}/upgrade", &ControlApi::upgrade_partition},
    Route{"PATCH", "/v1/partitions/{partition}/nics/{nic}", &ControlApi::change_nic},
    Route{"GET", "/v1/log", &ControlApi::get_log},
    Route{"PATCH", "/v1/log", &ControlApi::change_log},
    Route{"POST", "/v1/reload", &ControlApi::reload},
};

constexpr std::array<std::pair<std::string_view, LogLevel>, 4> kLevels = {{{"debug", LogLevel::kDebug},
                                                                           {"info", LogLevel::kInfo},
                                                                           {"warning", LogLevel::kWarning},
                                                                           {"error", LogLevel::kError}}};

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

void ControlApi::get_metrics(Names, const HttpRequest&, Respond respond) {
  struct Gathering {
    std::vector<PartitionSample> samples;
    std::size_t missing = 0;
    Respond respond;
    void finish() {
      if (missing-- == 1) {
        respond({200, metrics_text(samples), "text/plain; version=0.0.4; charset=utf-8"});
      }
    }
  };
  const auto gathering = std::make_shared<Gathering>();
  gathering->respond = std::move(respond);
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

void ControlApi::get_partitions(Names, const HttpRequest&, Respond respond) {
  Json list = Json::array();
  for (const PartitionSupervisor* partition : partitions_.all())
    list.push_back(partition_summary(*partition));
  respond(ok({{"partitions", std::move(list)}}));
}

void ControlApi::add_partition(Names, const HttpRequest& request, Respond respond) {
  ParsedConfig parsed = parse_partition(request.body, directory_);
  std::vector<std::string> problems;
  for (const ConfigProblem& problem : parsed.problems) problems.push_back(format_problem("", problem));
  if (problems.empty()) {
    for (const ConfigProblem& problem : check_host(parsed.config))
      problems.push_back(format_problem("", problem));
  }
  if (!problems.empty()) return respond(failure(422, "the partition is not accepted", problems));
  const std::string name = parsed.config.partitions.front().name;
  partitions_.add(std::move(parsed.config.partitions.front()),
                  [this, name, respond = std::move(respond)](const std::string& problem) {
                    if (!problem.empty()) return respond(failure(409, problem));
                    respond(ok(partition_summary(*partitions_.find(name)), 201));
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
