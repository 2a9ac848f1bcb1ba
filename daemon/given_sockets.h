// Listening sockets that vmbusd was started with, in place of those that it makes.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/result.h"

namespace vmbusd::daemon {

// By name: "control", and "attach." with a partition's name behind it. The files of such sockets are their
// giver's: they are not removed, and have the mode that they have.
class GivenSockets {
 public:
  GivenSockets() = default;

  // What a service manager gave: $LISTEN_FDS from descriptor 3 on, named by $LISTEN_FDNAMES. Takes the
  // variables out of the environment, and does nothing where they are another process's.
  // [systemd: sd_listen_fds_with_names(3)] Errors as add(), and Errc::kConfig for variables that are none;
  // what it is about stands in `subject`.
  [[nodiscard]] Result<void> take_from_environment(std::string& subject);
  // Takes over a descriptor of this process's. Errc::kConfig: the name is none or given twice, or the
  // descriptor is no Unix socket of the kind that the name asks for, on which is listened.
  [[nodiscard]] Result<void> add(std::string_view name, int fd);

  // Another descriptor of the same socket, non-blocking and close-on-exec; none where none was given.
  [[nodiscard]] UniqueFd control() const { return duplicate("control"); }
  [[nodiscard]] UniqueFd attach(const std::string& partition) const {
    return duplicate("attach." + partition);
  }

 private:
  [[nodiscard]] UniqueFd duplicate(const std::string& name) const;

  std::map<std::string, UniqueFd, std::less<>> sockets_;
};

}  // namespace vmbusd::daemon
