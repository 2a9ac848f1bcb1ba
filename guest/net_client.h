// The driver of a synthetic NIC, as netvsc has it: initialisation, then frames both ways, many in flight.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "guest/driver_channel.h"
#include "netvsp/mac_address.h"
#include "netvsp/ndis.h"
#include "netvsp/nvsp.h"
#include "netvsp/rndis.h"

namespace vmbusd::guest {

// Uses the channel's thread. No allocation between send() and poll(). Sends from the send buffer, a section a
// frame, or, for large sends, from where the frame is.
class NetClient {
 public:
  struct Options {
    netvsp::NvspVersion version = netvsp::NvspVersion::k61;
    std::uint32_t mtu = 1500;
    std::uint32_t receive_pages = 4096;  // Linux asks for as much: 16 MiB
    std::uint32_t send_pages = 256;
    std::uint32_t filter = netvsp::kFilterDirected | netvsp::kFilterBroadcast | netvsp::kFilterAllMulticast;
  };
  struct Statistics {
    std::uint64_t sent = 0;       // frames handed to the host
    std::uint64_t completed = 0;  // of them, taken with success
    std::uint64_t refused = 0;    // of them, not
    std::uint64_t received = 0;
  };

  // `channel` outlives it.
  explicit NetClient(DriverChannel& channel) : channel_(channel) {}
  NetClient(const NetClient&) = delete;
  NetClient& operator=(const NetClient&) = delete;

  // From INIT to the packet filter. Errc::kUnsupported where the host refuses a step.
  [[nodiscard]] Result<void> initialize(const Options& options);
  [[nodiscard]] Result<void> initialize() { return initialize(Options()); }
  [[nodiscard]] netvsp::MacAddress mac() const { return mac_; }
  // An RNDIS SET of `info`. Nothing may be in flight.
  [[nodiscard]] Result<netvsp::RndisStatus> set(netvsp::Oid oid, std::span<const std::byte> info);

  // Frames that can be in flight.
  [[nodiscard]] std::uint32_t sections() const { return sections_; }
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
    return sections_ - static_cast<std::uint32_t>(free_.size());
  }
  [[nodiscard]] const Statistics& statistics() const { return statistics_; }

 private:
  static constexpr std::uint32_t kHeadSize = 64;     // of a message that is sent from where its frame is
  static constexpr std::uint64_t kCallId = 0x10000;  // above all sections

  // The next packet that is no completion of a frame, and whose ranges poll() is to look at; nullptr where
  // none is there.
  [[nodiscard]] Result<const ring::Packet*> next_transfer();
  [[nodiscard]] Result<void> complete_frame(const ring::Packet& packet);
  // The message at a range of the receive buffer: empty where it is no data.
  [[nodiscard]] Result<std::span<const std::byte>> frame_at(const ring::TransferPageRange& range) const;
  [[nodiscard]] Result<void> give_back(const ring::Packet& packet);

  // Writes a message that has a completion, and waits for that.
  [[nodiscard]] Result<void> request(std::span<const std::byte> message, std::span<std::byte> completion);
  [[nodiscard]] Result<void> post(std::span<const std::byte> message);
  // An RNDIS control message and its reply.
  [[nodiscard]] Result<std::vector<std::byte>> control(std::span<const std::byte> message);
  [[nodiscard]] Result<ring::Packet> wait_packet();
  [[nodiscard]] Result<void> lend_buffers(const Options& options);
  [[nodiscard]] Result<void> set_up_adapter(const Options& options);

  DriverChannel& channel_;
  netvsp::MacAddress mac_{};
  Pages receive_;
  Pages send_;
  Pages heads_;  // kHeadSize bytes for each section
  std::uint32_t section_size_ = 0;
  std::uint32_t sections_ = 0;
  std::vector<std::uint32_t> free_;  // sections
  std::vector<bool> busy_;           // by section
  std::vector<std::uint64_t> extension_;
  Statistics statistics_;
};

template <typename Received>
Result<std::uint32_t> NetClient::poll(Received received) {
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
