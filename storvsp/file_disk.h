// A disk in a raw file or on a block device.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "storvsp/blocking_calls.h"
#include "storvsp/disk.h"
#include "storvsp/kept_record.h"

namespace vmbusd::storvsp {

// What a descriptor says of the file behind it.
struct FileProbe {
  std::uint64_t size_bytes = 0;
  std::uint32_t logical_block_bytes = 512;   // smallest unit that it can read and write
  std::uint32_t physical_block_bytes = 512;  // unit without read-modify-write
  std::uint32_t memory_alignment = 1;        // of buffers' addresses and lengths; 1: none
  bool direct = false;                       // opened with O_DIRECT
  bool writable = false;                     // opened for writing, and the device is not read-only
  bool block_device = false;
  bool rotational = false;
  bool may_block = false;       // its file system makes whoever submits wait, see may_block() in the .cc
  bool discards = false;        // space can be given back
  bool discard_zeroes = false;  // and what was given back reads as zeros
  // Which file or device of the host it is.
  std::uint64_t device = 0;
  std::uint64_t inode = 0;  // of a file
};

// Errc::kConfig: neither a regular file nor a block device, or not open for reading; Errc::kOs: it cannot be
// examined. Any thread; may read from the file, and asks it to give back nothing where it is writable.
[[nodiscard]] Result<FileProbe> probe_file(int fd);

// Reads and writes go by io_uring straight between the file and the buffers. Only buffers that O_DIRECT
// cannot take (alignment) are copied through a bounded pool of the queue.
class FileDisk final : public Disk {
 public:
  struct Options {
    std::uint32_t max_transfer_bytes = 1u << 20;  // of one request
    bool ignore_flush = false;                    // CacheMode::kUnsafe
    // Reads and writes within a page go to the worker's polled ring, where it has one, until the kernel says
    // that they cannot. The file was opened with O_DIRECT.
    bool poll = false;
    std::string subject{};  // of the log
  };

  // `geometry` was made from the probe: its blocks are not smaller than the file's. `kept` is kKeep's.
  FileDisk(UniqueFd fd, const FileProbe& probe, const DiskGeometry& geometry, const Options& options,
           KeptRecord kept = KeptRecord());

  [[nodiscard]] const DiskGeometry& geometry() const override { return geometry_; }
  [[nodiscard]] std::unique_ptr<DiskQueue> open_queue(io::Worker& worker) override;
  void grow(std::uint64_t size_bytes) override { geometry_.size_bytes = size_bytes; }
  // Whether reads and writes are polled for. Any thread.
  [[nodiscard]] bool polls() const { return polls_.load(std::memory_order_relaxed); }

 private:
  friend class FileQueue;

  // The kernel refuses. Any I/O worker.
  void stop_polling();

  UniqueFd fd_;
  FileProbe probe_;
  DiskGeometry geometry_;
  Options options_;
  std::atomic<bool> polls_;  // stands for itself, so relaxed
  KeptRecord kept_;          // its calls are made one after the other
  BlockingCalls blocking_calls_;
};

}  // namespace vmbusd::storvsp
