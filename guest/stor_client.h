// The driver of a synthetic SCSI controller, as storvsc has it: initialisation, then commands, many in
// flight.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "guest/driver_channel.h"
#include "storvsp/vstor.h"

namespace vmbusd::guest {

namespace vstor = storvsp::vstor;

// A SCSI command and the guest memory that it moves.
struct StorCommand {
  std::array<std::uint8_t, vstor::kCdbSizeMax> cdb{};
  std::uint8_t cdb_length = vstor::kCdbSizeMax;
  vstor::DataIn direction = vstor::DataIn::kUnknown;  // kUnknown: no data
  std::span<const Gpn> pages{};                       // all pages of the buffer
  std::uint32_t page_offset = 0;                      // into the first, < 4096
  std::uint32_t bytes = 0;
  std::uint8_t path = 0;
  std::uint8_t target = 0;
  std::uint8_t lun = 0;
};

struct StorCompletion {
  std::uint64_t id;         // that submit() gave
  vstor::SrbPacket packet;  // srb.data_transfer_length, srb_status, scsi_status, sense
};

// Uses the channel's thread. No allocation between submit() and poll().
class StorClient {
 public:
  // `channel` outlives it. At most `depth` commands are in flight.
  StorClient(DriverChannel& channel, std::uint32_t depth);
  StorClient(const StorClient&) = delete;
  StorClient& operator=(const StorClient&) = delete;

  // The handshake on the primary channel. Errc::kUnsupported where the host refuses the version.
  [[nodiscard]] Result<void> initialize(std::uint16_t version = vstor::kVersionWin10);
  [[nodiscard]] const vstor::ChannelProperties& properties() const { return properties_; }
  // Asks for sub-channels, which are offered then; they need no initialisation of their own.
  [[nodiscard]] Result<vstor::Status> create_sub_channels(std::uint16_t count);

  // Writes a command into the ring; the host may see it before flush(), but need not. Its id, or empty where
  // `depth` are in flight or the ring has no room now.
  [[nodiscard]] Result<std::optional<std::uint64_t>> submit(const StorCommand& command);
  [[nodiscard]] Result<void> flush() { return channel_.flush(); }
  // Calls completed(const StorCompletion&) for every completion that is there; how many. It may submit.
  // Errc::kProtocol: the host completed what is not in flight.
  template <typename Completed>
  [[nodiscard]] Result<std::uint32_t> poll(Completed completed);
  // Sleeps until there is something to poll(), or `patience` is over.
  [[nodiscard]] Result<bool> wait(std::chrono::milliseconds patience = kPatience) {
    return channel_.wait(patience);
  }
  // submit() and the completion. Nothing else may be in flight.
  [[nodiscard]] Result<vstor::SrbPacket> execute(const StorCommand& command);
  // Any other operation, answered in one packet; `packet` becomes the answer.
  [[nodiscard]] Result<void> call(vstor::Packet& packet);

  [[nodiscard]] std::uint32_t in_flight() const { return depth() - static_cast<std::uint32_t>(free_.size()); }
  [[nodiscard]] std::uint32_t depth() const { return static_cast<std::uint32_t>(busy_.size()); }
  // ENUMERATE_BUS packets that came.
  [[nodiscard]] std::uint32_t bus_changes() const { return bus_changes_; }
  [[nodiscard]] DriverChannel& channel() { return channel_; }

 private:
  // The next completion; empty where none is there.
  [[nodiscard]] Result<std::optional<StorCompletion>> next_completion();
  [[nodiscard]] Result<StorCompletion> wait_for_completion();
  [[nodiscard]] std::size_t packet_size() const {
    return version_ < vstor::kVersionWin8 ? vstor::kPacketSizeBeforeWin8 : vstor::kPacketSize;
  }

  DriverChannel& channel_;
  std::uint16_t version_ = vstor::kVersionWin10;
  vstor::ChannelProperties properties_{};
  std::vector<std::uint64_t> free_;       // ids; 1 to depth
  std::vector<bool> busy_;                // by id - 1
  std::vector<std::uint64_t> extension_;  // of the packet that is being written
  std::uint32_t bus_changes_ = 0;
};

template <typename Completed>
Result<std::uint32_t> StorClient::poll(Completed completed) {
  for (std::uint32_t count = 0;; ++count) {
    VMBUSD_TRY(const std::optional<StorCompletion> completion, next_completion());
    if (!completion) return count;
    completed(*completion);
  }
}

}  // namespace vmbusd::guest
