// A worker process's loop on a thread of the test, which plays the supervisor.
#include "daemon/partition_worker.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <future>
#include <string>
#include <utility>
#include <vector>

#include "daemon/command_socket.h"
#include "daemon/commands.h"
#include "daemon/options.h"
#include "tests/catch.h"
#include "tests/daemon/running_daemon.h"

namespace vmbusd::daemon {
namespace {

class Worker {
 public:
  Worker() {
    auto sockets = make_command_sockets().value();
    socket_ = std::move(sockets.first);
    status_ = std::async(std::launch::async, [socket = std::move(sockets.second)]() mutable {
      return run_partition_worker(std::move(socket));
    });
    send(encode(ConfigureCommand{"test", 1, 0}));
  }
  void send(const EncodedCommand& command) const {
    REQUIRE(send_command(socket_.get(), command.text, command.fds).has_value());
  }
  [[nodiscard]] Report next_report() const {
    pollfd readable{socket_.get(), POLLIN, 0};
    REQUIRE(::poll(&readable, 1, static_cast<int>(std::chrono::milliseconds(kPatience).count())) == 1);
    return decode_report(receive_command(socket_.get()).value().value()).value();
  }
  [[nodiscard]] int exit_status() { return status_.get(); }

 private:
  UniqueFd socket_;
  std::future<int> status_;
};

netvsp::NicConfig stream_nic() {
  netvsp::NicConfig nic;
  nic.partition = "test";
  nic.name = "nic0";
  nic.backend = netvsp::NicConfig::Backend::kStream;
  return nic;
}

TEST_CASE("a NIC is changed while it runs", "[daemon][nic]") {
  Worker worker;
  worker.send(encode(stream_nic()));
  worker.send(encode(StartCommand{}));
  CHECK(std::holds_alternative<ReadyReport>(worker.next_report()));
  worker.send(encode_change_nic("nic0", false, {}));
  int pair[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
  const UniqueFd peer(pair[1]);
  std::vector<UniqueFd> fds;
  fds.emplace_back(pair[0]);
  worker.send(encode_change_nic("nic0", true, fds));

  // What cannot be used is as good as gone.
  fds[0].reset(::eventfd(0, EFD_CLOEXEC));
  worker.send(encode_change_nic("nic0", std::nullopt, fds));
  CHECK(std::get<BackendLostReport>(worker.next_report()).nic == "nic0");

  worker.send(encode(StopCommand{}));
  CHECK(worker.exit_status() == kExitOk);
}

TEST_CASE("a change of a NIC that was removed meanwhile is passed over", "[daemon][nic]") {
  Worker worker;
  worker.send(encode(stream_nic()));
  worker.send(encode(StartCommand{}));
  worker.send(encode_change_nic("nic1", true, {}));
  worker.send(encode(StopCommand{}));
  CHECK(worker.exit_status() == kExitOk);
}

}  // namespace
}  // namespace vmbusd::daemon
