// The integration components of one partition: small devices by which the host asks the guest how it is, and
// to do things that only a guest can do well.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "devices/device.h"
#include "devices/integration/shutdown.h"
#include "devices/integration/status.h"

namespace vmbusd::integration {

struct Config {
  std::string partition;  // for logs
  bool heartbeat = true;
  bool shutdown = true;
  bool timesync = true;
  bool kvp = true;
  bool vss = true;

  friend bool operator==(const Config&, const Config&) = default;
};

// Control thread, unless said otherwise. Lives as long as the partition's worker process.
//
//   Integration -- ComponentDevice -- (message to an I/O worker) --> ComponentChannel -- Component
//        ^                                                                                    |
//        +------------------------------ StatusBoard <----------------------------------------+
class Integration {
 public:
  explicit Integration(const Config& config);
  ~Integration();

  // Those that are on, for the bus to offer.
  [[nodiscard]] std::vector<devices::Device*> devices();
  // As of now. Any thread.
  [[nodiscard]] Status status() const { return board_.get(); }

  // `done` is called once, from any thread, or not at all where a worker hangs. Here and below.
  void shut_down(ShutdownAction action, Done done);
  void freeze(std::chrono::seconds time, Done done);
  void thaw(Done done);
  // Empty value: the guest is to forget the key.
  void write_key(const std::string& key, const std::optional<std::string>& value, Done done);

 private:
  template <typename T>
  class ComponentDevice;

  StatusBoard board_;
  std::unique_ptr<ComponentDevice<class Heartbeat>> heartbeat_;
  std::unique_ptr<ComponentDevice<Shutdown>> shutdown_;
  std::unique_ptr<ComponentDevice<class TimeSync>> time_sync_;
  std::unique_ptr<ComponentDevice<class Kvp>> kvp_;
  std::unique_ptr<ComponentDevice<class Vss>> vss_;
};

// How operators name what is told; "" for none.
[[nodiscard]] const char* part_name(Part part);
[[nodiscard]] const char* state_name(PartState state);
[[nodiscard]] const char* health_name(Health health);
[[nodiscard]] const char* freeze_name(FreezeState state);

}  // namespace vmbusd::integration
