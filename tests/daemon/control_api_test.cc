// The control API of a running vmbusd, held against docs/openapi.json.
#include "daemon/control_api.h"

#include <grp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/catch.h"
#include "tests/daemon/http_client.h"
#include "tests/daemon/running_daemon.h"
#include "tests/guest/host.h"

namespace vmbusd::daemon {
namespace {

using Json = nlohmann::json;

Json described() {
  std::ifstream file(VMBUSD_OPENAPI);
  return Json::parse(file);
}

std::string in_capitals(std::string word) {
  std::transform(word.begin(), word.end(), word.begin(), [](unsigned char c) { return std::toupper(c); });
  return word;
}

bool is_method(const std::string& key) {
  return key != "parameters";
}

constexpr const char* kDemo =
    "[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\nio_threads = 1\n[[partition.scsi]]\nname = 'scsi0'\n"
    "[[partition.scsi.disk]]\nlun = 0\npath = 'd.img'\n[[partition.nic]]\nname = 'nic0'\nbackend = "
    "'loopback'\n";

// A daemon with a control socket and a partition "demo".
class Host {
 public:
  explicit Host(const std::string& more = "", const std::string& before = "") {
    std::ofstream(directory_.path("d.img")) << std::string(guest::kImageBytes, 'i');
    daemon_ = std::make_unique<RunningDaemon>(directory_,
                                              "control_socket = 'control.sock'\n" + before + kDemo + more);
    REQUIRE(daemon_->wait_until_ready());
  }

  [[nodiscard]] RunningDaemon& daemon() { return *daemon_; }
  [[nodiscard]] const TemporaryDirectory& directory() const { return directory_; }
  [[nodiscard]] std::string control() const { return directory_.path("control.sock"); }
  [[nodiscard]] HttpAnswer ask(const std::string& method, const std::string& target,
                               const std::string& body = "") const {
    return daemon::ask(control(), method, target, body);
  }
  [[nodiscard]] Json get(const std::string& target) const { return Json::parse(ask("GET", target).body); }
  [[nodiscard]] std::set<std::string> partitions() const {
    std::set<std::string> names;
    const Json answer = get("/v1/partitions");
    for (const Json& partition : answer["partitions"]) names.insert(partition["name"]);
    return names;
  }
  // Replaces the configuration file.
  void configure(const std::string& partitions) const {
    std::ofstream(daemon_->config_path()) << "control_socket = 'control.sock'\n" << partitions;
  }
  [[nodiscard]] std::unique_ptr<guest::ChildPartition> attach() const {
    std::string error_text;
    auto child = guest::ChildPartition::attach({.socket_path = directory_.path("demo.sock")}, error_text);
    INFO(error_text);
    return guest::must(std::move(child));
  }

 private:
  TemporaryDirectory directory_;
  std::unique_ptr<RunningDaemon> daemon_;
};

TEST_CASE("the description has the routes that there are", "[daemon][api]") {
  std::set<std::string> routes;
  for (const ApiRoute& route : api_routes()) {
    routes.insert(std::string(route.method) + " " + std::string(route.path));
  }
  std::set<std::string> paths;
  const Json api = described();
  for (const auto& [path, operations] : api["paths"].items()) {
    for (const auto& [method, operation] : operations.items()) {
      if (is_method(method)) paths.insert(in_capitals(method) + " " + path);
    }
  }
  CHECK(routes == paths);
}

TEST_CASE("every operation answers its example as described", "[daemon][api]") {
  Host host;
  const Json api = described();
  std::vector<std::string> paths;
  for (const auto& [path, operations] : api["paths"].items()) paths.push_back(path);
  // Removal comes last, as the others need what it removes; of what is in something else first.
  for (const bool removal : {false, true}) {
    if (removal) std::reverse(paths.begin(), paths.end());
    for (const std::string& path : paths) {
      const Json& operations = api["paths"][path];
      std::string target = path;
      for (const Json& parameter : operations.value("parameters", Json::array())) {
        const std::string braces = "{" + parameter["name"].get<std::string>() + "}";
        target.replace(target.find(braces), braces.size(), parameter["example"].get<std::string>());
      }
      for (const auto& [method, operation] : operations.items()) {
        if (!is_method(method) || (method == "delete") != removal) continue;
        INFO(method << " " << target);
        std::string body;
        if (operation.contains("requestBody")) {
          body = operation["requestBody"]["content"]["application/json"]["example"].dump();
        }
        const HttpAnswer answer = host.ask(in_capitals(method), target, body);
        INFO(answer.body);
        // No guest runs here.
        const bool of_guest = path.find("/guest/") != std::string::npos;
        CHECK((of_guest ? answer.status == 409 : answer.status / 100 == 2));
        const std::string status = std::to_string(answer.status);
        REQUIRE(operation["responses"].contains(status));
        if (!operation["responses"][status].contains("content")) {
          CHECK(answer.body.empty());
          continue;
        }
        const std::string type = operation["responses"][status]["content"].items().begin().key();
        CHECK(answer.header.find("Content-Type: " + type) != std::string::npos);
        // A body that is none, where one is wanted.
        if (body.empty()) continue;
        const HttpAnswer refused =
            host.ask(in_capitals(method), target, "{\"" + std::string(40, 'x') + "\": 1}");
        CHECK(refused.status == 422);
        CHECK(refused.body.find(std::string(40, 'x') + ": unknown key") != std::string::npos);
      }
    }
  }
}

TEST_CASE("a daemon that is started from the configuration's dump serves the same", "[daemon][api]") {
  const TemporaryDirectory directory;
  std::ofstream(directory.path("d.img")) << std::string(guest::kImageBytes, 'i');
  const auto dump = [&] { return ask(directory.path("control.sock"), "GET", "/v1/config.toml").body; };
  std::string text;
  {
    RunningDaemon daemon(directory, std::string("control_socket = 'control.sock'\n") + kDemo);
    REQUIRE(daemon.wait_until_ready());
    REQUIRE(
        ask(directory.path("control.sock"), "POST", "/v1/partitions",
            R"({"name": "late", "socket": "late.sock", "scsi": [{"name": "s", "disk": [{"lun": 3, "backend":
                "null", "size": "1G"}]}], "nic": [{"name": "n", "backend": "null"}]})")
            .status == 201);
    text = dump();
    daemon.signal(SIGTERM);
    REQUIRE(daemon.wait() == 0);
  }
  INFO(text);
  CHECK(text.find("name = \"late\"") != std::string::npos);
  const std::string path = directory.path("dump.toml");
  std::ofstream(path) << text;
  CHECK(run_vmbusd({"--check-config", "--config", path}).status == 0);

  RunningDaemon again(directory, text);
  REQUIRE(again.wait_until_ready());
  CHECK(dump() == text);
  CHECK(ask(directory.path("control.sock"), "POST", "/v1/reload").status == 204);
  CHECK(again.log().find("has changed in the configuration file") == std::string::npos);
  CHECK(dump() == text);
}

std::vector<std::string> events_after(const Host& host, std::uint64_t number) {
  std::vector<std::string> told;
  const Json page = host.get("/v1/events/" + std::to_string(number));
  for (const Json& event : page["events"]) {
    const auto device = event["device"].get<std::string>();
    told.push_back(event["event"].get<std::string>() + (device.empty() ? "" : " ") + device);
  }
  return told;
}

TEST_CASE("clients can follow what happens", "[daemon][api]") {
  Host host;
  const auto named = described()["components"]["schemas"]["Event"]["properties"]["event"]["enum"];
  CHECK(std::vector<std::string>(named.begin(), named.end()) ==
        std::vector<std::string>(kEventNames.begin(), kEventNames.end()));
  CHECK(events_after(host, 0) == std::vector<std::string>{"partition-added", "worker-serving"});
  const auto has = [&](const std::string& event, std::size_t count = 1) {
    return eventually([&] {
      const std::vector<std::string> all = events_after(host, 0);
      return static_cast<std::size_t>(std::count(all.begin(), all.end(), event)) == count;
    });
  };

  const auto last = host.get("/v1/events")["last"].get<std::uint64_t>();
  std::vector<std::string> told;
  std::thread waiting([&] { told = events_after(host, last); });
  CHECK(host.ask("PATCH", "/v1/partitions/demo/nics/nic0", "{\"link\": \"down\"}").status == 204);
  waiting.join();
  CHECK(told == std::vector<std::string>{"link-switched nic0"});

  {
    auto child = host.attach();
    const guest::Driver driver(*child, {.depth = 4});
    CHECK(has("vmm-attached"));
    CHECK(has("channel-opened scsi0"));
    ::kill(host.daemon().worker_pid(), SIGKILL);
    CHECK(has("worker-died"));
    CHECK(has("worker-serving", 2));
    CHECK(has("guest-taken-up"));
  }
  CHECK(has("vmm-detached"));
  CHECK(has("channel-opened scsi0"));  // once, whatever died meanwhile
  CHECK(host.ask("DELETE", "/v1/partitions/demo").status == 204);
  CHECK(has("partition-removed"));
}

TEST_CASE("what is not described is refused", "[daemon][api]") {
  const Host host;
  struct Case {
    const char* rule;
    const char* method;
    const char* target;
    const char* body;
    int status;
  };
  constexpr Case kCases[] = {
      {"an unknown path", "GET", "/v2/partitions", "", 404},
      {"a path that goes on", "GET", "/v1/partitions/demo/more", "", 404},
      {"a name that is empty", "GET", "/v1/partitions/", "", 404},
      {"a query", "GET", "/v1/partitions?all", "", 404},
      {"an absolute target", "GET", "http://vmbusd/v1/version", "", 404},
      {"a method that the path has not", "PUT", "/v1/partitions", "", 405},
      {"a method that nobody has", "BREW", "/v1/version", "", 405},
      {"an unknown partition", "GET", "/v1/partitions/none", "", 404},
      {"a guest of an unknown partition", "POST", "/v1/partitions/none/guest/shutdown",
       "{\"action\": \"reboot\"}", 404},
      {"an unknown way to shut down", "POST", "/v1/partitions/demo/guest/shutdown",
       "{\"action\": \"explode\"}", 422},
      {"no time for a freeze", "POST", "/v1/partitions/demo/guest/freeze", "{}", 422},
      {"too much time for a freeze", "POST", "/v1/partitions/demo/guest/freeze", "{\"timeout_s\": 601}", 422},
      {"a freeze of no time", "POST", "/v1/partitions/demo/guest/freeze", "{\"timeout_s\": 0}", 422},
      {"a key without a name", "POST", "/v1/partitions/demo/guest/keys", "{\"key\": \"\", \"value\": \"\"}",
       422},
      {"a key without a value", "POST", "/v1/partitions/demo/guest/keys", "{\"key\": \"k\"}", 422},
      {"a key with a NUL", "POST", "/v1/partitions/demo/guest/keys",
       "{\"key\": \"k\\u0000\", \"value\": \"\"}", 422},
      {"an unknown NIC", "PATCH", "/v1/partitions/demo/nics/nic9", "{\"link\": \"up\"}", 404},
      {"a disk taken for a NIC", "PATCH", "/v1/partitions/demo/nics/scsi0", "{\"link\": \"up\"}", 404},
      {"an event's number that is none", "GET", "/v1/events/x", "", 422},
      {"an unknown value", "PATCH", "/v1/log", "{\"level\": \"loud\"}", 422},
      {"a value of another type", "PATCH", "/v1/log", "{\"level\": 1}", 422},
      {"no body", "PATCH", "/v1/log", "", 422},
      {"a body that is no JSON", "POST", "/v1/partitions", "{", 422},
      {"a body that is no object", "POST", "/v1/partitions", "[]", 422},
      {"a partition without a name", "POST", "/v1/partitions", "{\"socket\": \"x.sock\"}", 422},
      {"a name with a slash", "POST", "/v1/partitions", "{\"name\": \"a/b\", \"socket\": \"x.sock\"}", 422},
      {"a number with a fraction", "POST", "/v1/partitions",
       "{\"name\": \"a\", \"socket\": \"x.sock\", \"poll_us\": 1.5}", 422},
      {"a name that is taken", "POST", "/v1/partitions", "{\"name\": \"demo\", \"socket\": \"x.sock\"}", 409},
      {"a socket that is taken", "POST", "/v1/partitions", "{\"name\": \"x\", \"socket\": \"demo.sock\"}",
       409},
      {"an image that is in use", "POST", "/v1/partitions",
       "{\"name\": \"x\", \"socket\": \"x.sock\", \"scsi\": [{\"name\": \"s\", \"disk\": [{\"lun\": 0, "
       "\"path\": "
       "\"d.img\"}]}]}",
       409},
      {"an image that is not there", "POST", "/v1/partitions",
       "{\"name\": \"x\", \"socket\": \"x.sock\", \"scsi\": [{\"name\": \"s\", \"disk\": [{\"lun\": 0, "
       "\"path\": "
       "\"none.img\"}]}]}",
       422},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      const HttpAnswer answer = host.ask(c.method, c.target, c.body);
      INFO(answer.body);
      CHECK(answer.status == c.status);
      CHECK(Json::parse(answer.body).contains("error"));
      CHECK(host.partitions() == std::set<std::string>{"demo"});
    }
  }
}

TEST_CASE("the tree shows what a guest does", "[daemon][api]") {
  Host host;
  auto child = host.attach();
  guest::Driver driver(*child, {.depth = 4});
  const guest::Pages page = guest::must(child->ram().take(1));
  for (int i = 0; i < 3; ++i) {
    guest::StorCommand command = guest::block_command(guest::scsi::Opcode::kWrite16, 0, 8);
    command.pages = page.gpns();
    command.bytes = 4096;
    CHECK(guest::succeeded(guest::must(driver.stor->execute(command))));
  }
  const Json tree = host.get("/v1/partitions/demo");
  INFO(tree.dump(2));
  CHECK(tree["vmm_pid"] == ::getpid());
  CHECK(tree["worker_pid"] == host.daemon().worker_pid());
  CHECK(tree["worker_answers"] == true);
  CHECK(tree["vmbus_version"].is_string());
  const Json& channel = tree["devices"][0]["channels"][0];
  CHECK(channel["state"] == "running");
  CHECK(channel["writes"] == 3);
  CHECK(channel["written_bytes"] == 3 * 4096);
  CHECK(channel["errors"] == 0);
  CHECK(channel["in_flight"] == 0);
  CHECK(channel["doorbells"].get<int>() > 0);
  CHECK(channel["incoming"]["read_index"] == channel["incoming"]["write_index"]);
  CHECK(tree["devices"][1]["link_up"] == true);
  CHECK(tree["devices"][1]["channels"].empty());
  const std::string metrics = host.ask("GET", "/metrics").body;
  CHECK(metrics.find("vmbusd_disk_writes_total{partition=\"demo\",device=\"scsi0\",channel=\"0\"} 3") !=
        std::string::npos);
}

TEST_CASE("partitions come and go and nothing is left of them", "[daemon][api]") {
  Host host;
  const std::size_t before = open_descriptors(host.daemon().pid());
  const std::string body =
      described()["paths"]["/v1/partitions"]["post"]["requestBody"]["content"]["application/json"]["example"]
          .dump();
  for (int i = 0; i < 20; ++i) {
    REQUIRE(host.ask("POST", "/v1/partitions", body).status == 201);
    CHECK(host.partitions() == std::set<std::string>{"demo", "extra"});
    CHECK(host.get("/v1/partitions/extra")["worker_answers"] == true);
    REQUIRE(host.ask("DELETE", "/v1/partitions/extra").status == 204);
    CHECK(::access(host.directory().path("extra.sock").c_str(), F_OK) != 0);
  }
  CHECK(host.partitions() == std::set<std::string>{"demo"});
  CHECK(eventually([&] { return open_descriptors(host.daemon().pid()) == before; }));
}

TEST_CASE("a link that was switched off stays off when the worker dies", "[daemon][api]") {
  Host host;
  REQUIRE(host.ask("PATCH", "/v1/partitions/demo/nics/nic0", "{\"link\": \"down\"}").status == 204);
  CHECK(host.get("/v1/partitions/demo")["devices"][1]["link_up"] == false);
  const pid_t worker = host.daemon().worker_pid();
  ::kill(worker, SIGKILL);
  REQUIRE(host.daemon().worker_pid(worker) > 0);
  REQUIRE(eventually([&] { return host.get("/v1/partitions/demo")["worker_answers"] == true; }));
  const Json tree = host.get("/v1/partitions/demo");
  CHECK(tree["worker_deaths"] == 1);
  CHECK(tree["devices"][1]["link_up"] == false);
  CHECK(tree["devices"][1]["link_reason"] == "switched off");
  REQUIRE(host.ask("PATCH", "/v1/partitions/demo/nics/nic0", "{\"link\": \"up\"}").status == 204);
  CHECK(host.get("/v1/partitions/demo")["devices"][1]["link_up"] == true);
}

TEST_CASE("a worker that hangs holds nobody up", "[daemon][api]") {
  Host host;
  const pid_t worker = host.daemon().worker_pid();
  ::kill(worker, SIGSTOP);
  const Json tree = host.get("/v1/partitions/demo");
  CHECK(tree["worker_answers"] == false);
  CHECK(tree["devices"].size() == 2);
  CHECK(host.ask("GET", "/metrics").body.find("vmbusd_partition_worker_answers{partition=\"demo\"} 0") !=
        std::string::npos);
  ::kill(worker, SIGCONT);
  CHECK(eventually([&] { return host.get("/v1/partitions/demo")["worker_answers"] == true; }));
}

TEST_CASE("SIGHUP takes up partitions that are new and drops those that are missing", "[daemon][api]") {
  const std::string second = "[[partition]]\nname = 'second'\nsocket = 'second.sock'\n";
  const std::string third = "[[partition]]\nname = 'third'\nsocket = 'third.sock'\n";
  Host host(second);
  const pid_t demo = host.get("/v1/partitions/demo")["worker_pid"];
  host.configure(kDemo + third);
  host.daemon().signal(SIGHUP);
  CHECK(eventually([&] { return host.partitions() == std::set<std::string>{"demo", "third"}; }));
  CHECK(host.get("/v1/partitions/demo")["worker_pid"] == demo);

  SECTION("a file that is wrong changes nothing") {
    host.configure("[[partition]]\nname = 'demo'\nsoket = 'x'\n");
    host.daemon().signal(SIGHUP);
    CHECK(host.daemon().wait_for_log("runs on as before"));
    CHECK(host.partitions() == std::set<std::string>{"demo", "third"});
    const HttpAnswer answer = host.ask("POST", "/v1/reload");
    CHECK(answer.status == 422);
    CHECK(answer.body.find("did you mean") != std::string::npos);
  }
  SECTION("what has changed beside devices runs on as it was, and is told") {
    host.configure("[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\npoll_us = 77\n" + third);
    CHECK(host.ask("POST", "/v1/reload").status == 204);
    CHECK(host.daemon().wait_for_log("demo: has changed in the configuration file"));
    CHECK(host.get("/v1/partitions/demo")["worker_pid"] == demo);
  }
  SECTION("what came by the API stays") {
    REQUIRE(host.ask("POST", "/v1/partitions", "{\"name\": \"x\", \"socket\": \"x.sock\"}").status == 201);
    CHECK(host.ask("POST", "/v1/reload").status == 204);
    CHECK(host.partitions() == std::set<std::string>{"demo", "third", "x"});
  }
}

TEST_CASE("the level of the log changes in both kinds of process", "[daemon][api]") {
  const Host host;
  CHECK(host.get("/v1/log")["level"] == "info");
  REQUIRE(host.ask("PATCH", "/v1/log", "{\"level\": \"error\"}").status == 204);
  CHECK(host.get("/v1/log")["level"] == "error");
}

TEST_CASE("requests that are none, or too large, end their connection only", "[daemon][api]") {
  Host host;
  CHECK(send_and_read(host.control(), "rubbish\r\n\r\n").status == 400);
  CHECK(
      send_and_read(host.control(), "GET / HTTP/1.1\r\nX: " + std::string(20'000, 'x') + "\r\n\r\n").status ==
      431);
  CHECK(send_and_read(host.control(), "POST /v1/partitions HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n")
            .status == 413);
  const std::size_t before = open_descriptors(host.daemon().pid());
  std::minstd_rand random(20261123);
  const std::string whole =
      "POST /v1/partitions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = whole;
    for (std::size_t flips = 1 + random() % 4; flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    const UniqueFd connection = connect_control(host.control());
    REQUIRE(connection);
    (void)::send(connection.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  CHECK(host.partitions() == std::set<std::string>{"demo"});
  CHECK(eventually([&] { return open_descriptors(host.daemon().pid()) == before; }));
}

TEST_CASE("clients that connect and say nothing hold nobody up", "[daemon][api]") {
  Host host;
  const std::size_t before = open_descriptors(host.daemon().pid());
  std::vector<UniqueFd> silent;
  for (std::size_t i = 0; i < 2 * HttpServer::kConnectionsMax; ++i) {
    silent.push_back(connect_control(host.control()));
    REQUIRE(silent.back());
  }
  CHECK(host.ask("GET", "/v1/version").status == 200);
  CHECK(open_descriptors(host.daemon().pid()) <= before + HttpServer::kConnectionsMax);
  silent.clear();
  CHECK(eventually([&] { return open_descriptors(host.daemon().pid()) == before; }));
}

TEST_CASE("a second vmbusd does not take the control socket, one after a crash does", "[daemon][api]") {
  Host host;
  const TemporaryDirectory other;
  const std::string config =
      "control_socket = '" + host.control() + "'\n[[partition]]\nname = 'x'\nsocket = 'x.sock'\n";
  RunningDaemon second(other, config);
  CHECK(second.wait() == 1);
  CHECK(second.log().find("control socket " + host.control() + ": cannot bind the socket") !=
        std::string::npos);
  CHECK(host.ask("GET", "/v1/version").status == 200);
  host.daemon().signal(SIGKILL);
  REQUIRE(host.daemon().wait() == -1);
  RunningDaemon third(other, config);
  REQUIRE(third.wait_until_ready());
  CHECK(host.ask("GET", "/v1/version").status == 200);
  third.signal(SIGTERM);
  CHECK(third.wait() == 0);
  CHECK(::access(host.control().c_str(), F_OK) != 0);
}

// As another user, for which the test must be root.
bool others_get_an_answer(const std::string& socket, gid_t group) {
  const pid_t child = ::fork();
  if (child == 0) {
    constexpr uid_t kNobody = 65534;
    const bool other = ::setgroups(0, nullptr) == 0 && ::setgid(group) == 0 && ::setuid(kNobody) == 0;
    const bool answered = other && ask(socket, "GET", "/v1/version").status == 200;
    ::_exit(answered ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST_CASE("only root, vmbusd's own user and the group get an answer", "[daemon][api]") {
  if (::geteuid() != 0) return;
  constexpr gid_t kGroup = 12345;
  constexpr gid_t kOther = 12346;
  const Host host("", "socket_group = '12345'\n");
  struct stat file {};
  REQUIRE(::stat(host.control().c_str(), &file) == 0);
  CHECK((file.st_mode & 0777) == 0660);
  CHECK(file.st_gid == kGroup);
  // Whoever loosens the file's mode has not let anybody in.
  ::chmod(host.directory().path("").c_str(), 0755);
  ::chmod(host.control().c_str(), 0666);
  CHECK(others_get_an_answer(host.control(), kGroup));
  CHECK_FALSE(others_get_an_answer(host.control(), kOther));
}

}  // namespace
}  // namespace vmbusd::daemon
