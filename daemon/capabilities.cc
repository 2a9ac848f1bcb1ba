#include "daemon/capabilities.h"

#include <fmt/format.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "io/worker.h"
#include "partition/attach_protocol.h"

namespace vmbusd::daemon {

std::string capabilities() {
  io::WorkerOptions options;
  options.name = "probe";
  const auto worker = io::Worker::create(options);
  const nlohmann::json io_uring = {{"usable", worker.has_value()},
                                   {"problem", worker ? "" : io::explain_setup_error(worker.error())}};
  const nlohmann::json capabilities = {
      {"type", "vmbus"},
      {"version", VMBUSD_VERSION},
      {"attach_protocol", fmt::format("{}.{}", partition::kAttachMajor, partition::kAttachMinor)},
      {"control_api", 1},
      {"disk_backends", {"file", "null"}},
      {"nic_backends", {"tap", "stream", "null", "loopback"}},
      {"io_uring", io_uring},
      {"tap", ::access("/dev/net/tun", R_OK | W_OK) == 0},
  };
  return capabilities.dump(2);
}

}  // namespace vmbusd::daemon
