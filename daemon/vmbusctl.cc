// vmbusctl: shows what a running vmbusd does, and changes it. vmbusctl(1) is its manual.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "daemon/api_client.h"
#include "daemon/key_values.h"

namespace vmbusd::daemon {
namespace {

using Json = nlohmann::json;

// Documented in vmbusctl(1).
constexpr int kExitOk = 0;
constexpr int kExitRefused = 1;
constexpr int kExitUsage = 2;
constexpr int kExitUnreachable = 3;

constexpr const char* kDefaultSocket = "/run/vmbusd/control.sock";

struct Failure {
  int status;
  std::string text;
};

class Control {
 public:
  explicit Control(std::string socket) : socket_(std::move(socket)) {}

  // The answer's body; throws Failure where vmbusd cannot be reached or refuses.
  [[nodiscard]] std::string ask(const std::string& method, const std::string& target,
                                const Json& body = nullptr) {
    const auto answer = ask_vmbusd(socket_, method, target, body.is_null() ? std::string() : body.dump());
    if (!answer) {
      throw Failure{kExitUnreachable,
                    fmt::format("cannot reach vmbusd at {}: {}; is it running with --control-socket?",
                                socket_, answer.error())};
    }
    if (answer->status / 100 == 2) return answer->body;
    throw Failure{kExitRefused, why(answer->body, answer->status)};
  }
  [[nodiscard]] Json get(const std::string& target) {
    Json json = Json::parse(ask("GET", target), nullptr, false);
    if (!json.is_object()) throw Failure{kExitUnreachable, "what answered is no vmbusd"};
    return json;
  }

 private:
  static std::string why(const std::string& body, unsigned status) {
    const Json json = Json::parse(body, nullptr, false);
    if (!json.is_object() || !json.contains("error")) return fmt::format("HTTP status {}", status);
    std::string text = json["error"].get<std::string>();
    for (const Json& problem : json.value("problems", Json::array())) {
      text += "\n  " + problem.get<std::string>();
    }
    return text;
  }

  std::string socket_;
};

std::string text_of(const Json& value) {
  if (value.is_null()) return "-";
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// Names become part of a path.
std::string checked_name(const std::string& name) {
  const bool good = !name.empty() && name.find_first_not_of(
                                         "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                         "0123456789._-") == std::string::npos;
  if (!good) throw Failure{kExitUsage, fmt::format("\"{}\" is no name; accepted: A-Z a-z 0-9 . _ -", name)};
  return name;
}

void show_status(Control& control, bool json) {
  const Json answer = control.get("/v1/partitions");
  if (json) return fmt::print("{}\n", answer.dump(2));
  fmt::print("{:<24} {:<10} {:>8} {:>8} {:>7} {:<8}  {}\n", "PARTITION", "STATE", "WORKER", "VMM", "DEATHS",
             "GUEST", "SOCKET");
  for (const Json& partition : answer["partitions"]) {
    fmt::print("{:<24} {:<10} {:>8} {:>8} {:>7} {:<8}  {}\n", text_of(partition["name"]),
               text_of(partition["state"]), text_of(partition["worker_pid"]), text_of(partition["vmm_pid"]),
               text_of(partition["worker_deaths"]), text_of(partition["guest"]["health"]),
               text_of(partition["socket"]));
    const Json& guest = partition["guest"];
    if (guest["name"].get<std::string>().empty()) continue;
    fmt::print("  {}, {},", text_of(guest["name"]), text_of(guest["os"]));
    for (const Json& address : guest["addresses"]) fmt::print(" {}", text_of(address));
    fmt::print("\n");
  }
}

void print_tree(const Json& json, int depth) {
  const std::string indent(static_cast<std::size_t>(depth) * 2, ' ');
  for (const auto& [key, value] : json.items()) {
    if (value.is_object()) {
      fmt::print("{}{}:\n", indent, key);
      print_tree(value, depth + 1);
    } else if (value.is_array()) {
      for (std::size_t i = 0; i < value.size(); ++i) {
        const Json& element = value[i];
        if (!element.is_object()) {
          fmt::print("{}{}/{}: {}\n", indent, key, i, text_of(element));
          continue;
        }
        fmt::print("{}{}/{}:\n", indent, key,
                   element.contains("name") ? text_of(element["name"]) : std::to_string(i));
        print_tree(element, depth + 1);
      }
    } else {
      fmt::print("{}{}: {}\n", indent, key, text_of(value));
    }
  }
}

// One step down: a member, or an element by its name or its number; nullptr where there is none.
const Json* step(const Json& json, const std::string& word) {
  if (json.is_object()) {
    const auto member = json.find(word);
    return member == json.end() ? nullptr : &*member;
  }
  if (!json.is_array()) return nullptr;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const bool named = json[i].is_object() && json[i].contains("name") && json[i]["name"] == word;
    if (named || word == std::to_string(i)) return &json[i];
  }
  return nullptr;
}

// "PARTITION[/DEVICE[/channels/0/incoming/...]]"
void inspect(Control& control, const std::string& path, bool json) {
  const std::size_t slash = path.find('/');
  const Json tree = control.get("/v1/partitions/" + checked_name(path.substr(0, slash)));
  const Json* node = &tree;
  std::string rest = slash == std::string::npos ? "" : path.substr(slash + 1);
  for (bool first = true; !rest.empty(); first = false) {
    const std::size_t end = rest.find('/');
    const std::string word = rest.substr(0, end);
    rest = end == std::string::npos ? "" : rest.substr(end + 1);
    const Json* next = step(*node, word);
    if (next == nullptr && first) next = step(tree["devices"], word);
    if (next == nullptr) throw Failure{kExitRefused, fmt::format("{}: there is no {}", path, word)};
    node = next;
  }
  if (json) {
    fmt::print("{}\n", node->dump(2));
  } else if (node->is_structured()) {
    print_tree(node->is_array() ? Json{{"", *node}} : *node, 0);
  } else {
    fmt::print("{}\n", text_of(*node));
  }
}

// What top shows of one channel: counters now, to be compared with those of the last time.
struct ChannelNumbers {
  double operations = 0;
  double bytes = 0;
  double doorbells = 0;
  double interrupts = 0;
  std::uint64_t in_flight = 0;
  std::uint64_t incoming = 0;  // per cent of the ring that waits to be read
  std::uint64_t outgoing = 0;
};

std::uint64_t fill_percent(const Json& ring) {
  const auto size = ring.value("size", std::uint64_t{0});
  const auto write = ring.value("write_index", std::uint64_t{0});
  const auto read = ring.value("read_index", std::uint64_t{0});
  if (size == 0 || write >= size || read >= size) return 0;
  return (write + size - read) % size * 100 / size;
}

std::map<std::string, ChannelNumbers> sample_channels(Control& control) {
  std::map<std::string, ChannelNumbers> channels;
  const Json answer = control.get("/v1/partitions");
  for (const Json& partition : answer["partitions"]) {
    const std::string name = partition["name"];
    const Json tree = control.get("/v1/partitions/" + checked_name(name));
    for (const Json& device : tree["devices"]) {
      for (const Json& channel : device.value("channels", Json::array())) {
        const auto index = channel.value("index", std::size_t{0});
        const auto number = [](const Json& from, const char* key) { return from.value(key, 0.0); };
        ChannelNumbers numbers;
        numbers.operations =
            number(channel, "reads") + number(channel, "writes") + number(channel, "flushes");
        numbers.bytes = number(channel, "read_bytes") + number(channel, "written_bytes");
        const Json queues = device.value("queues", Json::array());
        if (index < queues.size()) {
          numbers.operations += number(queues[index], "tx_packets") + number(queues[index], "rx_packets");
          numbers.bytes += number(queues[index], "tx_bytes") + number(queues[index], "rx_bytes");
        }
        numbers.doorbells = number(channel, "doorbells");
        numbers.interrupts = number(channel, "interrupts");
        numbers.in_flight = channel.value("in_flight", std::uint64_t{0});
        numbers.incoming = fill_percent(channel["incoming"]);
        numbers.outgoing = fill_percent(channel["outgoing"]);
        channels[fmt::format("{}/{}.{}", name, text_of(device["name"]), index)] = numbers;
      }
    }
  }
  return channels;
}

void top(Control& control, double interval_s, std::uint32_t rounds, bool json) {
  using Clock = std::chrono::steady_clock;
  auto before = sample_channels(control);
  auto then = Clock::now();
  for (std::uint32_t round = 0; rounds == 0 || round < rounds; ++round) {
    std::this_thread::sleep_for(std::chrono::duration<double>(interval_s));
    const auto now = sample_channels(control);
    const double seconds = std::chrono::duration<double>(Clock::now() - then).count();
    then = Clock::now();
    Json rows = Json::array();
    for (const auto& [name, numbers] : now) {
      const ChannelNumbers& last = before[name];
      // A channel that was closed and opened again counts from 0.
      const auto since = [](double after, double earlier) {
        return after >= earlier ? after - earlier : after;
      };
      const double operations = since(numbers.operations, last.operations);
      const auto per_operation = [&](double count) { return operations == 0 ? 0 : count / operations; };
      rows.push_back({{"channel", name},
                      {"operations_per_s", operations / seconds},
                      {"bytes_per_s", since(numbers.bytes, last.bytes) / seconds},
                      {"doorbells_per_operation", per_operation(since(numbers.doorbells, last.doorbells))},
                      {"interrupts_per_operation", per_operation(since(numbers.interrupts, last.interrupts))},
                      {"in_flight", numbers.in_flight},
                      {"incoming_percent", numbers.incoming},
                      {"outgoing_percent", numbers.outgoing}});
    }
    before = now;
    if (json) {
      fmt::print("{}\n", rows.dump());
      std::fflush(stdout);
      continue;
    }
    if (::isatty(STDOUT_FILENO) != 0) fmt::print("\x1b[H\x1b[J");
    fmt::print("{:<32} {:>10} {:>10} {:>7} {:>7} {:>6} {:>4} {:>4}\n", "CHANNEL", "OPS/S", "MB/S", "BELL/OP",
               "INTR/OP", "FLIGHT", "IN%", "OUT%");
    for (const Json& row : rows) {
      fmt::print("{:<32} {:>10.0f} {:>10.2f} {:>7.2f} {:>7.2f} {:>6} {:>4} {:>4}\n", text_of(row["channel"]),
                 row["operations_per_s"].get<double>(), row["bytes_per_s"].get<double>() / 1e6,
                 row["doorbells_per_operation"].get<double>(), row["interrupts_per_operation"].get<double>(),
                 row["in_flight"].dump(), row["incoming_percent"].dump(), row["outgoing_percent"].dump());
    }
    std::fflush(stdout);
  }
}

void print_events(const Json& page, bool json) {
  if (const auto missed = page["missed"].get<std::uint64_t>(); missed != 0 && !json) {
    fmt::print("{} events are not kept any more\n", missed);
  }
  for (const Json& event : page["events"]) {
    if (json) {
      fmt::print("{}\n", event.dump());
      continue;
    }
    const auto device = event["device"].get<std::string>();
    const std::string text = text_of(event["text"]);
    fmt::print("{} {}{}{} {}{}{}\n", text_of(event["time"]), text_of(event["partition"]),
               device.empty() ? "" : "/", device, text_of(event["event"]), text.empty() ? "" : ": ", text);
  }
  std::fflush(stdout);
}

void show_events(Control& control, bool follow, bool json) {
  Json page = control.get("/v1/events");
  print_events(page, json);
  while (follow) {
    page = control.get(fmt::format("/v1/events/{}", page["last"].get<std::uint64_t>()));
    print_events(page, json);
  }
}

Json table_of(const std::vector<std::string>& words) {
  KeyValues parsed = parse_key_values(words);
  if (!parsed.problem.empty()) throw Failure{kExitUsage, parsed.problem};
  return Json::parse(parsed.json);
}

// The names of "PARTITION/DEVICE/LUN", or of its front.
std::vector<std::string> names_of(const std::string& path, std::size_t count_min, std::size_t count_max,
                                  std::string_view form) {
  std::vector<std::string> names;
  std::size_t begin = 0;
  for (std::size_t end = 0; end != std::string::npos; begin = end + 1) {
    end = path.find('/', begin);
    names.push_back(checked_name(path.substr(begin, end - begin)));
  }
  if (names.size() < count_min || names.size() > count_max) {
    throw Failure{kExitUsage, fmt::format("{} is not of the form {}", path, form)};
  }
  return names;
}

std::string disk_target(const std::string& path) {
  const auto names = names_of(path, 3, 3, "PARTITION/CONTROLLER/LUN");
  return fmt::format("/v1/partitions/{}/scsi/{}/disks/{}", names[0], names[1], names[2]);
}

// A partition, given as KEY=VALUE..., or "PARTITION[/CONTROLLER] KIND KEY=VALUE...".
void add(Control& control, std::vector<std::string> words, bool json) {
  if (words.front().find('=') != std::string::npos) {
    const std::string answer = control.ask("POST", "/v1/partitions", table_of(words));
    if (json) fmt::print("{}", answer);
    return;
  }
  const std::string kind = words.size() > 1 ? words[1] : "";
  const bool disk = kind == "disk";
  if (!disk && kind != "nic" && kind != "scsi") {
    throw Failure{kExitUsage, fmt::format("{} is followed by disk, nic or scsi, and KEY=VALUE...", words[0])};
  }
  const auto names =
      disk ? names_of(words[0], 2, 2, "PARTITION/CONTROLLER") : names_of(words[0], 1, 1, "PARTITION");
  words.erase(words.begin(), words.begin() + 2);
  const std::string target = disk            ? fmt::format("scsi/{}/disks", names[1])
                             : kind == "nic" ? std::string("nics")
                                             : kind;
  (void)control.ask("POST", fmt::format("/v1/partitions/{}/{}", names[0], target), table_of(words));
}

void remove(Control& control, const std::string& path) {
  const auto names = names_of(path, 1, 3, "PARTITION[/DEVICE[/LUN]]");
  if (names.size() == 3) {
    (void)control.ask("DELETE", disk_target(path));
  } else if (names.size() == 2) {
    (void)control.ask("DELETE", fmt::format("/v1/partitions/{}/devices/{}", names[0], names[1]));
  } else {
    (void)control.ask("DELETE", "/v1/partitions/" + names[0]);
  }
}

int run(int argc, char** argv) {
  CLI::App app("Shows what a running vmbusd does, and changes it.", "vmbusctl");
  app.set_version_flag("--version", "vmbusctl " VMBUSD_VERSION, "print the version and exit");
  std::string socket;
  app.add_option("-s,--socket", socket, "vmbusd's control socket")
      ->type_name("PATH")
      ->envname("VMBUSD_CONTROL_SOCKET")
      ->default_val(kDefaultSocket);
  bool json = false;
  app.add_flag("--json", json, "print JSON");
  app.require_subcommand(1);
  app.fallthrough();
  app.footer("Exit status: 0 success, 1 vmbusd refused, 2 wrong command line, 3 vmbusd cannot be reached.");

  std::string path;
  std::string name;
  std::string value;
  std::vector<std::string> words;
  double interval_s = 1;
  std::uint32_t rounds = 0;
  bool reboot = false;
  bool hibernate = false;
  std::uint32_t timeout_s = 30;
  bool forget = false;
  bool follow = false;
  CLI::Option* has_value = nullptr;
  std::map<CLI::App*, std::function<void(Control&)>> commands;
  const auto command = [&](const char* word, const char* help, std::function<void(Control&)> action) {
    CLI::App* const made = app.add_subcommand(word, help);
    commands[made] = std::move(action);
    return made;
  };

  command("status", "list the partitions", [&](Control& control) { show_status(control, json); });
  command("inspect", "show a partition, or the part of it at PATH",
          [&](Control& control) { inspect(control, path, json); })
      ->add_option("PATH", path, "PARTITION[/DEVICE[/channels/0[/incoming...]]]")
      ->required();
  CLI::App* const live = command("top", "show what the channels do, until interrupted",
                                 [&](Control& control) { top(control, interval_s, rounds, json); });
  live->add_option("-d,--delay", interval_s, "seconds between two looks")->check(CLI::Range(0.1, 3600.0));
  live->add_option("-n,--rounds", rounds, "stop after so many; 0: never");
  command("events", "print what has happened to partitions", [&](Control& control) {
    show_events(control, follow, json);
  })->add_flag("-f,--follow", follow, "and what happens from now on, until interrupted");
  command("config", "print a configuration file that says what vmbusd serves now",
          [&](Control& control) {
            fmt::print("{}", control.ask("GET", json ? "/v1/config" : "/v1/config.toml"));
          })
      ->require_subcommand(1)
      ->add_subcommand("dump", "print it: vmbusd.toml(5), or with --json the same as an object");
  command("metrics", "print the counters as Prometheus reads them",
          [](Control& control) { fmt::print("{}", control.ask("GET", "/metrics")); });
  command("add", "add a partition, or a disk, NIC or controller to one, given as KEY=VALUE...",
          [&](Control& control) { add(control, words, json); })
      ->add_option("KEY=VALUE", words,
                   "keys of vmbusd.toml(5): name=g1 socket=/run/g1.sock scsi.name=scsi0 ...; or g1/scsi0 "
                   "disk lun=1 ...; g1 nic name=nic1 ...; g1 scsi name=scsi1 ...")
      ->required();
  command("remove", "remove a partition, a device or a disk, when its I/O in flight has ended",
          [&](Control& control) { remove(control, name); })
      ->add_option("PARTITION[/DEVICE[/LUN]]", name)
      ->required();
  CLI::App* const set =
      command("set", "change a disk's limits while its guest uses it",
              [&](Control& control) { (void)control.ask("PATCH", disk_target(name), table_of(words)); });
  set->add_option("PARTITION/CONTROLLER/LUN", name)->required();
  set->add_option("KEY=VALUE", words, "iops=500 rate=100M burst=200; 0 takes iops or rate away")->required();
  CLI::App* const resize =
      command("resize", "tell a guest that a disk's image has grown, or make it grow", [&](Control& control) {
        (void)control.ask("POST", disk_target(name) + "/resize",
                          value.empty() ? Json::object() : Json{{"size", value}});
      });
  resize->add_option("PARTITION/CONTROLLER/LUN", name)->required();
  resize->add_option("SIZE", value, "of the image from now on, such as 20G; without: as it is");
  command("upgrade", "replace a partition's worker process by the program that is installed now",
          [&](Control& control) {
            (void)control.ask("POST", fmt::format("/v1/partitions/{}/upgrade", checked_name(name)));
          })
      ->add_option("PARTITION", name)
      ->required();
  CLI::App* const shutdown = command(
      "shutdown", "have a guest power itself off, once it has said that it will", [&](Control& control) {
        const char* const action = reboot ? "reboot" : hibernate ? "hibernate" : "poweroff";
        (void)control.ask("POST", fmt::format("/v1/partitions/{}/guest/shutdown", checked_name(name)),
                          {{"action", action}});
      });
  shutdown->add_option("PARTITION", name)->required();
  CLI::Option* const rebooting = shutdown->add_flag("--reboot", reboot, "restart instead");
  shutdown->add_flag("--hibernate", hibernate, "hibernate instead")->excludes(rebooting);
  CLI::App* const freeze = command(
      "freeze", "have a guest write out and hold its file systems, until thaw", [&](Control& control) {
        (void)control.ask("POST", fmt::format("/v1/partitions/{}/guest/freeze", checked_name(name)),
                          {{"timeout_s", timeout_s}});
      });
  freeze->add_option("PARTITION", name)->required();
  freeze->add_option("--timeout", timeout_s, "seconds until it is thawed in any case")
      ->check(CLI::Range(1, 600))
      ->capture_default_str();
  command("thaw", "have a frozen guest go on; fails where its time was over before",
          [&](Control& control) {
            (void)control.ask("POST", fmt::format("/v1/partitions/{}/guest/thaw", checked_name(name)));
          })
      ->add_option("PARTITION", name)
      ->required();
  CLI::App* const key = command("key", "tell a guest a value for a key", [&](Control& control) {
    if (forget == (has_value->count() > 0)) throw Failure{kExitUsage, "key takes either VALUE or --delete"};
    (void)control.ask("POST", fmt::format("/v1/partitions/{}/guest/keys", checked_name(name)),
                      {{"key", path}, {"value", forget ? Json(nullptr) : Json(value)}});
  });
  key->add_option("PARTITION", name)->required();
  key->add_option("KEY", path)->required();
  has_value = key->add_option("VALUE", value);
  key->add_flag("--delete", forget, "have it forget the key");
  CLI::App* const link = command("link", "switch a NIC's link", [&](Control& control) {
    const std::size_t slash = name.find('/');
    if (slash == std::string::npos) throw Failure{kExitUsage, name + " is not of the form PARTITION/NIC"};
    (void)control.ask("PATCH",
                      fmt::format("/v1/partitions/{}/nics/{}", checked_name(name.substr(0, slash)),
                                  checked_name(name.substr(slash + 1))),
                      {{"link", value}});
  });
  link->add_option("PARTITION/NIC", name)->required();
  link->add_option("STATE", value, "up or down")->required()->check(CLI::IsMember({"up", "down"}));
  command("log-level", "show the least level that is logged, or change it",
          [&](Control& control) {
            if (value.empty()) return fmt::print("{}\n", text_of(control.get("/v1/log")["level"]));
            (void)control.ask("PATCH", "/v1/log", {{"level", value}});
          })
      ->add_option("LEVEL", value, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}));
  command("reload", "have vmbusd read its configuration file again",
          [](Control& control) { (void)control.ask("POST", "/v1/reload"); });

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  Control control(socket);
  try {
    commands.at(app.get_subcommands().front())(control);
  } catch (const Failure& failure) {
    fmt::print(stderr, "vmbusctl: {}\n", failure.text);
    return failure.status;
  } catch (const Json::exception&) {
    fmt::print(stderr,
               "vmbusctl: vmbusd answered what this vmbusctl does not know; are their versions the same?\n");
    return kExitUnreachable;
  }
  return kExitOk;
}

}  // namespace
}  // namespace vmbusd::daemon

int main(int argc, char** argv) {
  return vmbusd::daemon::run(argc, argv);
}
