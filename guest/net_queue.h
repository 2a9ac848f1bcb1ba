// Frames over one channel of a synthetic NIC, many in flight: what netvsc does for each of its queues.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "guest/driver_channel.h"
#include "netvsp/nvsp.h"

namespace vmbusd::guest {

// Memory that the driver lent to the host; all channels of the NIC use it.
struct NetBuffers {
  Pages receive;
  Pages send;
  Pages heads;  // of messages that are sent from where their frames are: kNetHeadSize bytes for each section
  std::uint32_t section_size = 0;
  std::uint32_t sections = 0;
};
inline constexpr std::uint32_t kNetHeadSize = 64;

// Uses the channel's thread. No allocation between send() and poll(). Sends from the send buffer, a section a
// frame, or, for large sends, from where the frame is.
class NetQueue {
 public:
  struct Statistics {
    std::uint64_t sent = 0;       // frames handed to the host
    std::uint64_t completed = 0;  // of them, taken with success
    std::uint64_t refused = 0;    // of them, not
    std::uint64_t received = 0;
  };

  // `channel` outlives it.
  explicit NetQueue(DriverChannel& channel) : channel_(channel) {}
  NetQueue(const NetQueue&) = delete;
  NetQueue& operator=(const NetQueue&) = delete;

  // Before the first frame, and with none in flight: what it sends from, `count` sections from `first` on
  // that no other queue has. `buffers` outlives it.
  void use(const NetBuffers& buffers, std::uint32_t first, std::uint32_t count);

  // Frames that can be in flight.
  [[nodiscard]] std::uint32_t sections() const { return static_cast<std::uint32_t>(busy_.size()); }
  // Copies the frame to a section and writes its packet into the ring; the host may see it before flush(),
  // but need not. False where no section is free or the ring has no room now. `checksum`: kTxChecksum*, 0:
  // none.
  [[nodiscard]] Result<bool> send(std::span<const std::byte> frame, std::uint32_t checksum = 0);
  // A TCP packet of `bytes` bytes in `pages`, to be cut up by segments of `mss` bytes (LSOv2).
  [[nodiscard]] Result<bool> send_large(const Pages& pages, std::uint32_t bytes, std::uint32_t mss);
  [[nodiscard]] Result<void> flush() { return channel_.flush(); }
  // Takes all that is there: completions, and frames, for each of which received(std::span<const std::byte>)
  // is called with the bytes where they stand in the receive buffer; how many packets there were.
  // Errc::kProtocol: the host broke the protocol.
  template <typename Received>
  [[nodiscard]] Result<std::uint32_t> poll(Received received);
  [[nodiscard]] Result<bool> wait(std::chrono::milliseconds patience = kPatience) {
    return channel_.wait(patience);
  }

  [[nodiscard]] std::uint32_t in_flight() const {
    return sections() - static_cast<std::uint32_t>(free_.size());
  }
  [[nodiscard]] const Statistics& statistics() const { return statistics_; }

 protected:
  [[nodiscard]] DriverChannel& channel() { return channel_; }
  // Completes a transfer-page packet: its ranges are the host's again.
  [[nodiscard]] Result<void> give_back(const ring::Packet& packet);

 private:
  // The next packet that is no completion of a frame, and whose ranges poll() is to look at; nullptr where
  // none is there.
  [[nodiscard]] Result<const ring::Packet*> next_transfer();
  [[nodiscard]] Result<void> complete_frame(const ring::Packet& packet);
  // The message at a range of the receive buffer: empty where it is no data.
  [[nodiscard]] Result<std::span<const std::byte>> frame_at(const ring::TransferPageRange& range) const;
  // A frame of this section is on its way.
  void take(std::uint32_t section);

  DriverChannel& channel_;
  const NetBuffers* buffers_ = nullptr;  // from use() on
  std::uint32_t first_section_ = 0;
  std::vector<std::uint32_t> free_;  // sections
  std::vector<bool> busy_;           // by section from first_section_ on
  std::vector<std::uint64_t> extension_;
  Statistics statistics_;
};

template <typename Received>
Result<std::uint32_t> NetQueue::poll(Received received) {
  for (std::uint32_t count = 0;; ++count) {
    VMBUSD_TRY(const ring::Packet* const packet, next_transfer());
    if (!packet) return count;
    ring::TransferPageHeader header;
    channel_.from_host().read_extension(*packet, 0, wire_bytes_writable(header));
    if (packet->extension_size < sizeof header + header.range_count * sizeof(ring::TransferPageRange)) {
      return fail(Errc::kProtocol, "a transfer-page packet has more ranges than room");
    }
    for (std::uint32_t i = 0; i < header.range_count; ++i) {
      ring::TransferPageRange range;
      channel_.from_host().read_extension(
          *packet, static_cast<std::uint32_t>(sizeof header + i * sizeof range), wire_bytes_writable(range));
      VMBUSD_TRY(const std::span<const std::byte> frame, frame_at(range));
      if (frame.empty()) continue;  // an indication
      ++statistics_.received;
      received(frame);
    }
    VMBUSD_CHECK(give_back(*packet));
  }
}

}  // namespace vmbusd::guest
