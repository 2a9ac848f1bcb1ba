#include "netvsp/memory_backends.h"

#include <algorithm>
#include <cstring>

#include "netvsp/nic_state.h"
#include "netvsp/offload.h"

namespace vmbusd::netvsp {

namespace {

// What both have in common: nothing is ever in flight.
class MemoryQueue : public BackendQueue {
 public:
  void attach(QueueUser& user, io::Worker&) override {
    user_ = &user;
    running_ = true;
  }
  void detach() override { running_ = false; }
  void pause() override { running_ = false; }
  void resume() override { running_ = true; }
  bool receive(std::uint32_t) override { return false; }
  void transmit_completed(TransmitFrame&, std::int32_t) override {}
  void receive_completed(ReceiveBuffer&, std::int32_t) override {}
  void replace(UniqueFd) override {}
  void refresh() override {}

 protected:
  QueueUser* user_ = nullptr;
  bool running_ = false;
};

class NullQueue final : public MemoryQueue {
 public:
  NullQueue(std::uint32_t receive_bytes, std::uint64_t destination) : frame_(receive_bytes) {
    if (frame_.empty()) return;
    std::memcpy(frame_.data(), &destination, kMacSource);
    frame_[kMacSource] = std::byte{0x02};
    store_be16(frame_, kEtherType, 0x88b5);  // IEEE 802: for local experiments
  }

  Sent transmit(TransmitFrame&) override { return Sent::kDone; }

  bool receive(std::uint32_t budget) override {
    if (frame_.empty() || !running_) return false;
    bool made = false;
    for (; budget != 0; --budget) {
      ReceiveBuffer* const buffer = user_->take_buffer();
      if (buffer == nullptr) break;
      made = true;
      buffer->header = {};
      buffer->fill(frame_);
      user_->received(*buffer, static_cast<std::uint32_t>(frame_.size()));
    }
    return made;
  }

 private:
  std::vector<std::byte> frame_;
};

class LoopbackQueue final : public MemoryQueue {
 public:
  Sent transmit(TransmitFrame& frame) override {
    ReceiveBuffer* const buffer = running_ ? user_->take_buffer() : nullptr;
    if (buffer == nullptr) return Sent::kLost;
    buffer->header = frame.header;
    // A frame may be longer than the buffer: that one is counted as dropped by the receiver.
    std::span<const std::byte> part = frame.head();
    std::uint32_t piece = 1;
    std::size_t used = 0;
    for (std::uint32_t segment = 0;;) {
      if (part.empty()) {
        if (++segment > frame.segment_count) break;
        part = {static_cast<const std::byte*>(frame.segments[segment].iov_base),
                frame.segments[segment].iov_len};
        continue;
      }
      if (piece > buffer->piece_count) break;
      const iovec& out = buffer->pieces[piece];
      if (used == out.iov_len) {
        ++piece;
        used = 0;
        continue;
      }
      const std::size_t size = std::min(part.size(), out.iov_len - used);
      std::memcpy(static_cast<std::byte*>(out.iov_base) + used, part.data(), size);
      used += size;
      part = part.subspan(size);
    }
    user_->received(*buffer, frame.frame_size);
    return Sent::kDone;
  }
};

template <typename Make>
Backend make_memory_backend(std::uint32_t queues, Make&& make) {
  Backend backend;
  backend.offloads = kAllChecksums | kAllLso | kAllRsc;
  for (std::uint32_t i = 0; i < queues; ++i) backend.queues.push_back(make());
  return backend;
}

}  // namespace

Backend make_null_backend(std::uint32_t queues, std::uint32_t receive_bytes, std::uint64_t destination) {
  return make_memory_backend(queues, [receive_bytes, destination] {
    return std::make_unique<NullQueue>(receive_bytes, destination);
  });
}

Backend make_loopback_backend(std::uint32_t queues) {
  Backend backend = make_memory_backend(queues, [] { return std::make_unique<LoopbackQueue>(); });
  backend.large_receive = true;
  return backend;
}

}  // namespace vmbusd::netvsp
