#include "storvsp/null_disk.h"

#include <cerrno>

#include "base/assert.h"

namespace vmbusd::storvsp {
namespace {

class NullQueue final : public DiskQueue {
 public:
  explicit NullQueue(const DiskGeometry& geometry) : geometry_(geometry) {}

  void submit(DiskRequest& request) noexcept override {
    if (request.io.op == DiskOp::kKeep) return request.disk_done(EOPNOTSUPP);
    if (request.io.op == DiskOp::kMap) {
      request.extent = {geometry_.size_bytes - request.io.offset, true};
    }
    request.disk_done(0);
  }
  void abort(DiskRequest& /*request*/) noexcept override {}
  void cancel() noexcept override {}

 private:
  void completed(DiskRequest& /*request*/, std::int32_t /*result*/) noexcept override {
    VMBUSD_ASSERT(false);  // nothing is ever submitted to the kernel
  }

  const DiskGeometry& geometry_;
};

}  // namespace

std::unique_ptr<DiskQueue> NullDisk::open_queue(io::Worker& /*worker*/) {
  return std::make_unique<NullQueue>(geometry_);
}

}  // namespace vmbusd::storvsp
