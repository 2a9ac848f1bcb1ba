// A disk on an NBD server.
#pragma once

#include <cstdint>
#include <memory>

#include "storvsp/disk.h"
#include "storvsp/nbd_connection.h"

namespace vmbusd::storvsp {

// All queues share one connection, so that a flush on any of them covers what was written on the others,
// whatever the server says of several. A buffer of one piece is sent from and received into in place; others
// are copied through a bounded pool of the queue, as libnbd takes no vectors. [libnbd(3): nbd_aio_pread]
class NbdDisk final : public Disk {
 public:
  struct Options {
    std::uint32_t max_transfer_bytes = 1u << 20;  // of one request
    bool ignore_flush = false;                    // CacheMode::kUnsafe
  };

  NbdDisk(std::shared_ptr<NbdConnection> connection, const DiskGeometry& geometry, const Options& options)
      : connection_(std::move(connection)), geometry_(geometry), options_(options) {}

  [[nodiscard]] const DiskGeometry& geometry() const override { return geometry_; }
  [[nodiscard]] std::unique_ptr<DiskQueue> open_queue(io::Worker& worker) override;

 private:
  friend class NbdQueue;

  std::shared_ptr<NbdConnection> connection_;
  DiskGeometry geometry_;
  Options options_;
};

}  // namespace vmbusd::storvsp
