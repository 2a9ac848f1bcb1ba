#include "storvsp/null_disk.h"

#include "base/assert.h"

namespace vmbusd::storvsp {
namespace {

class NullQueue final : public DiskQueue {
 public:
  void submit(DiskRequest& request) noexcept override { request.disk_done(0); }
  void abort(DiskRequest& /*request*/) noexcept override {}
  void cancel() noexcept override {}

 private:
  void completed(DiskRequest& /*request*/, std::int32_t /*result*/) noexcept override {
    VMBUSD_ASSERT(false);  // nothing is ever submitted to the kernel
  }
};

}  // namespace

std::unique_ptr<DiskQueue> NullDisk::open_queue(io::Worker& /*worker*/) {
  return std::make_unique<NullQueue>();
}

}  // namespace vmbusd::storvsp
