// A disk without a medium, for benchmarks: reads give what the buffer held, writes go nowhere, all at once.
#pragma once

#include "storvsp/disk.h"

namespace vmbusd::storvsp {

class NullDisk final : public Disk {
 public:
  explicit NullDisk(const DiskGeometry& geometry) : geometry_(geometry) {}

  [[nodiscard]] const DiskGeometry& geometry() const override { return geometry_; }
  [[nodiscard]] std::unique_ptr<DiskQueue> open_queue(io::Worker& worker) override;
  void grow(std::uint64_t size_bytes) override { geometry_.size_bytes = size_bytes; }

 private:
  DiskGeometry geometry_;
};

}  // namespace vmbusd::storvsp
