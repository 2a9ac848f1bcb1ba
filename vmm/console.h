// The host's end of the guest's serial port: the terminal, a file, or nothing.
#pragma once

#include <termios.h>

#include <cstdint>
#include <span>
#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace vmbusd::vmm {

// write() and give_up() may be called by any thread, the rest by one.
class Console {
 public:
  // "stdio", "none" or a file's path. The file is created, or emptied. A terminal on standard input is
  // switched to raw mode until destruction.
  [[nodiscard]] static Result<Console> open(const std::string& where);
  Console(Console&& other) noexcept;
  Console& operator=(Console&&) = delete;
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;
  ~Console();

  // Bytes that the host does not take (a full disk, a closed pipe) are lost. Waits for a reader that is slow.
  void write(std::span<const std::uint8_t> bytes);
  // Ends a write() that waits, and all later ones at once.
  void give_up();
  // The descriptor to read input from, -1 where there is none.
  [[nodiscard]] int input() const { return input_; }
  [[nodiscard]] bool raw_terminal() const { return raw_; }

 private:
  Console() = default;

  UniqueFd file_;
  UniqueFd give_up_;  // eventfd, readable from give_up() on
  int output_ = -1;
  int input_ = -1;
  bool raw_ = false;
  termios saved_{};
};

// Finds the escape sequence, Ctrl-A x, in what a user types at a raw terminal. Ctrl-A Ctrl-A stands for
// Ctrl-A.
class EscapeFilter {
 public:
  // Moves what is the guest's to the front of `bytes` and returns that part; `quit` is set where the user has
  // enough.
  [[nodiscard]] std::span<std::uint8_t> filter(std::span<std::uint8_t> bytes, bool& quit);

 private:
  bool escaped_ = false;
};

}  // namespace vmbusd::vmm
