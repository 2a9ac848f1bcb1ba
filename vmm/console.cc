#include "vmm/console.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

namespace vmbusd::vmm {

Result<Console> Console::open(const std::string& where) {
  Console console;
  console.give_up_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!console.give_up_) return fail_os(errno, "cannot create an eventfd");
  if (where == "none") return console;
  if (where != "stdio") {
    console.file_.reset(::open(where.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!console.file_) return fail_os(errno, "cannot open the console's file");
    console.output_ = console.file_.get();
    return console;
  }
  console.output_ = STDOUT_FILENO;
  console.input_ = STDIN_FILENO;
  if (::isatty(STDIN_FILENO) == 1 && ::tcgetattr(STDIN_FILENO, &console.saved_) == 0) {
    termios raw = console.saved_;
    ::cfmakeraw(&raw);
    raw.c_oflag |= OPOST;  // log lines on the same terminal need their carriage returns
    console.raw_ = ::tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
  }
  return console;
}

Console::Console(Console&& other) noexcept
    : file_(std::move(other.file_)),
      give_up_(std::move(other.give_up_)),
      output_(std::exchange(other.output_, -1)),
      input_(std::exchange(other.input_, -1)),
      raw_(std::exchange(other.raw_, false)),
      saved_(other.saved_) {}

Console::~Console() {
  if (raw_) ::tcsetattr(STDIN_FILENO, TCSANOW, &saved_);
}

void Console::write(std::span<const std::uint8_t> bytes) {
  if (output_ < 0) return;
  while (!bytes.empty()) {
    std::array<pollfd, 2> ready = {{{output_, POLLOUT, 0}, {give_up_.get(), POLLIN, 0}}};
    if (::poll(ready.data(), ready.size(), -1) < 0 && errno != EINTR) return;
    if (ready[1].revents != 0) return;
    if (ready[0].revents == 0) continue;
    // What a pipe takes without blocking once it is ready.
    const std::size_t size = std::min<std::size_t>(bytes.size(), PIPE_BUF);
    const ssize_t written = ::write(output_, bytes.data(), size);
    if (written >= 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    } else if (errno != EINTR && errno != EAGAIN) {
      return;
    }
  }
}

void Console::give_up() {
  const std::uint64_t one = 1;
  (void)!::write(give_up_.get(), &one, sizeof one);
}

std::span<std::uint8_t> EscapeFilter::filter(std::span<std::uint8_t> bytes, bool& quit) {
  constexpr std::uint8_t kControlA = 0x01;
  std::size_t kept = 0;
  for (const std::uint8_t byte : bytes) {
    if (escaped_) {
      escaped_ = false;
      if (byte == 'x') {
        quit = true;
        break;
      }
      if (byte == kControlA) bytes[kept++] = byte;
    } else if (byte == kControlA) {
      escaped_ = true;
    } else {
      bytes[kept++] = byte;
    }
  }
  return bytes.first(kept);
}

}  // namespace vmbusd::vmm
