// Descriptors of all kinds, for tests of what takes and checks them.
#pragma once

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <iterator>

#include "base/fd.h"
#include "tests/catch.h"

namespace vmbusd::test {

inline UniqueFd make_memfd(std::uint64_t size, unsigned flags = 0) {
  UniqueFd fd(::memfd_create("guest", MFD_CLOEXEC | flags));
  REQUIRE(fd);
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  return fd;
}

inline UniqueFd make_read_only_memfd(std::uint64_t size) {
  const UniqueFd fd = make_memfd(size);
  UniqueFd read_only(::open(("/proc/self/fd/" + std::to_string(fd.get())).c_str(), O_RDONLY | O_CLOEXEC));
  REQUIRE(read_only);
  return read_only;
}

inline UniqueFd make_sealed_memfd(std::uint64_t size) {
  UniqueFd fd = make_memfd(size, MFD_ALLOW_SEALING);
  REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE) == 0);
  return fd;
}

inline UniqueFd make_eventfd() {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC));
  REQUIRE(fd);
  return fd;
}

inline UniqueFd make_timerfd() {
  UniqueFd fd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
  REQUIRE(fd);
  return fd;
}

inline UniqueFd make_pipe_end() {
  std::array<int, 2> ends{};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  ::close(ends[0]);
  return UniqueFd(ends[1]);
}

inline UniqueFd open_path(const char* path, int flags) {
  UniqueFd fd(::open(path, flags | O_CLOEXEC));
  REQUIRE(fd);
  return fd;
}

// To see that none leaks.
inline std::ptrdiff_t count_open_fds() {
  const std::filesystem::directory_iterator open_fds("/proc/self/fd");
  return std::distance(begin(open_fds), end(open_fds));
}

}  // namespace vmbusd::test
