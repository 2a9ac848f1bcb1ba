// A disk image that fails as its test wants it to: the one file of a file system in user space (FUSE), so
// that what vmbusd meets is the kernel's own behaviour, io_uring's included.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"

namespace vmbusd::guest {

// Any thread.
class FaultyFile {
 public:
  // A file of zeros. nullptr where FUSE or the right to mount is not had.
  [[nodiscard]] static std::unique_ptr<FaultyFile> create(std::uint64_t bytes);
  ~FaultyFile();
  FaultyFile(const FaultyFile&) = delete;
  FaultyFile& operator=(const FaultyFile&) = delete;

  // For processes of this user; no path of the host's file system. vmbusd opens it with O_DIRECT or without.
  [[nodiscard]] std::string path() const;

  // Of reads and writes from now on. `error`: what they fail with; 0: none.
  void fail_with(int error);
  // At most so many bytes are written by each. 0: as many as are asked for. (A short read is the end of the
  // file to the kernel.)
  void write_at_most(std::uint32_t bytes);
  // Each is left without an answer until release(), however long that takes.
  void hold();
  void release();
  [[nodiscard]] std::size_t held() const;
  // The file system is gone, and with it what was held: all fails from now on.
  void vanish();

 private:
  struct Request {
    std::vector<std::byte> bytes;
  };

  explicit FaultyFile(std::uint64_t bytes) : content_(bytes) {}
  [[nodiscard]] bool mount();
  void serve();
  void handle(const Request& request);
  void move(const Request& request);
  void answer(std::uint64_t unique, int error, const void* body = nullptr, std::size_t size = 0);

  UniqueFd device_;
  UniqueFd mount_;
  UniqueFd wake_;  // eventfd: the thread is to look
  std::thread thread_;

  mutable std::mutex mutex_;  // of all below
  std::vector<std::byte> content_;
  int error_ = 0;
  std::uint32_t written_max_ = 0;
  bool holding_ = false;
  bool stopping_ = false;
  std::vector<Request> held_;
};

}  // namespace vmbusd::guest
