// What the supervisor and a partition's worker process say to each other: one JSON object a datagram.
//
//   supervisor                            worker process
//   Configure            ------------>
//   AddScsi + image fds  ------------>    once for each controller
//   AddNic + queue fds   ------------>    once for each NIC
//   Start                ------------>
//                        <------------    Ready: devices stand, connections may come
//   Connection + 1 fd    ------------>    at most one at a time
//                        <------------    ConnectionEnded: nothing of it is in use any more
//   Stop, or end of file ------------>    drains and exits with status 0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "daemon/command_socket.h"
#include "netvsp/nic.h"
#include "storvsp/controller.h"

namespace vmbusd::daemon {

struct ConfigureCommand {
  std::string partition;
  std::uint32_t io_threads = 1;  // 1..kIoThreadsMax
  std::uint32_t poll_us = 0;     // 0..kPollUsMax

  friend bool operator==(const ConfigureCommand&, const ConfigureCommand&) = default;
};

// Then the devices: storvsp::ControllerConfig and netvsp::NicConfig as they are.

struct StartCommand {};

struct ConnectionCommand {
  UniqueFd socket;
};

struct StopCommand {};

using Command = std::variant<ConfigureCommand, storvsp::ControllerConfig, netvsp::NicConfig, StartCommand,
                             ConnectionCommand, StopCommand>;

// A command ready to be sent; the descriptors stay their owner's.
struct EncodedCommand {
  std::string text;
  std::vector<int> fds;
};

enum class Report : std::uint8_t { kReady, kConnectionEnded };

[[nodiscard]] EncodedCommand encode(const ConfigureCommand& command);
[[nodiscard]] EncodedCommand encode(const storvsp::ControllerConfig& controller);
[[nodiscard]] EncodedCommand encode(const netvsp::NicConfig& nic);
[[nodiscard]] EncodedCommand encode(const StartCommand& command);
[[nodiscard]] EncodedCommand encode(const StopCommand& command);
[[nodiscard]] EncodedCommand encode_connection(int socket);
[[nodiscard]] std::string encode(Report report);

// Errc::kProtocol for anything that encode() does not make. The supervisor does not trust a worker, which a
// guest may have taken over.
[[nodiscard]] Result<Command> decode_command(CommandDatagram datagram);
[[nodiscard]] Result<Report> decode_report(std::string_view text);

}  // namespace vmbusd::daemon
