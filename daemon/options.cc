#include "daemon/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <map>

namespace vmbusd::daemon {

std::variant<Options, int> parse_options(int argc, char** argv) {
  Options options;
  CLI::App app("Serves VMBus devices to the guests that attach to it.", "vmbusd");
  app.set_version_flag("--version", "vmbusd " VMBUSD_VERSION, "print the version and exit");
  CLI::Option* config =
      app.add_option("-c,--config", options.config_path, "the configuration file, see vmbusd.toml(5)")
          ->type_name("FILE");
  app.add_flag("--check-config", options.check_config,
               "check the configuration file, print what is wrong with it, and exit");
  app.add_flag("--print-capabilities", options.print_capabilities,
               "print what this vmbusd and this host can do, as JSON, and exit");
  app.add_option("--control-socket", options.control_socket,
                 "serve the control API on this Unix socket; wins over control_socket in FILE")
      ->type_name("PATH")
      ->check([](const std::string& path) {
        return path.starts_with('/') ? std::string() : "PATH is not absolute: " + path;
      });
  app.add_option_function<std::vector<std::string>>(
         "--fd",
         [&](const std::vector<std::string>& words) {
           for (const std::string& word : words) {
             const std::size_t equals = word.find('=');
             int fd = -1;
             const char* const end = word.data() + word.size();
             const char* const digits = word.data() + std::min(word.size(), equals + 1);
             const auto [parsed, error] = std::from_chars(digits, end, fd);
             if (equals == std::string::npos || error != std::errc() || parsed != end)
               throw CLI::ValidationError("--fd", word + " is not of the form NAME=NUMBER");
             options.sockets.emplace_back(word.substr(0, equals), fd);
           }
         },
         "listen on this descriptor: control=N in place of the control socket's path, attach.PARTITION=N in "
         "place of a partition's")
      ->type_name("NAME=N")
      ->allow_extra_args(false);
  app.add_option("--socket-group", options.socket_group,
                 "let this group use the control socket too; wins over socket_group in FILE")
      ->type_name("GROUP");
  app.add_option("--worker-user", options.worker_user,
                 "whom worker processes become where vmbusd is root; wins over worker_user in FILE")
      ->type_name("USER");
  const std::map<std::string, SeccompAction> actions = {{"kill", SeccompAction::kKill},
                                                        {"trap", SeccompAction::kTrap},
                                                        {"log", SeccompAction::kLog},
                                                        {"none", SeccompAction::kNone}};
  app.add_option_function<std::string>(
         "--seccomp", [&](const std::string& name) { options.seccomp = actions.at(name); },
         "what a system call that workers do not need leads to: kill, trap, log, none; wins over seccomp in "
         "FILE")
      ->check(CLI::IsMember({"kill", "trap", "log", "none"}))
      ->type_name("ACTION");
  const std::map<std::string, LogLevel> levels = {{"debug", LogLevel::kDebug},
                                                  {"info", LogLevel::kInfo},
                                                  {"warning", LogLevel::kWarning},
                                                  {"error", LogLevel::kError}};
  app.add_option_function<std::string>(
         "--log-level", [&](const std::string& name) { options.log_level = levels.at(name); },
         "least level that is logged: debug, info (default), warning, error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->type_name("LEVEL");
  const std::map<std::string, LogFormat> formats = {{"text", LogFormat::kText}, {"json", LogFormat::kJson}};
  app.add_option_function<std::string>(
         "--log-format", [&](const std::string& name) { options.log_format = formats.at(name); },
         "how log lines are written: text (default), json")
      ->check(CLI::IsMember({"text", "json"}))
      ->type_name("FORMAT");
  // Not for operators, so in no group that --help shows.
  CLI::Option* worker = app.add_option("--partition-worker", options.partition_worker_fd)
                            ->check(CLI::NonNegativeNumber)
                            ->group("");
  app.footer("Exit status: 0 success, 1 failure while running, 2 wrong command line or configuration.");

  try {
    app.parse(argc, argv);
    if (config->count() == 0 && worker->count() == 0 && !options.print_capabilities)
      throw CLI::RequiredError("--config FILE");
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return options;
}

}  // namespace vmbusd::daemon
