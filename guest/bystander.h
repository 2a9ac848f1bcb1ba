// A guest that behaves, beside one that does not: its disk keeps what it wrote.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/result.h"
#include "guest/bus_client.h"
#include "guest/child_partition.h"
#include "guest/disk.h"
#include "guest/guest_channel.h"
#include "guest/stor_client.h"

namespace vmbusd::guest {

// One thread.
class Bystander {
 public:
  // Attaches to a partition whose first controller has a writable LUN 0, and writes all of the first kBytes.
  [[nodiscard]] static Result<std::unique_ptr<Bystander>> attach(const std::string& socket_path,
                                                                 std::uint32_t seed);

  // One command of kPieceBytes: reads what it wrote, now and then writes anew. Errc::kProtocol: a byte is not
  // what it was.
  [[nodiscard]] Result<void> step();
  // Several of them, a write among them.
  [[nodiscard]] Result<void> check();
  // All that it wrote.
  [[nodiscard]] Result<void> check_all();
  [[nodiscard]] std::uint64_t commands() const { return commands_; }
  // For those who send commands of their own between two of these calls.
  [[nodiscard]] ChildPartition& child() { return *child_; }
  [[nodiscard]] StorClient& client() { return *client_; }

  static constexpr std::size_t kBytes = 1 << 20;
  static constexpr std::size_t kPieceBytes = 16 << 10;

 private:
  static constexpr std::size_t kPieces = kBytes / kPieceBytes;

  Bystander(std::unique_ptr<ChildPartition> child, std::uint32_t seed)
      : child_(std::move(child)), bus_(*child_), random_(seed), expected_(kBytes) {}
  [[nodiscard]] Result<void> start();
  [[nodiscard]] Result<void> read_piece(std::size_t offset);
  [[nodiscard]] Result<void> write_piece(std::size_t offset);

  std::unique_ptr<ChildPartition> child_;
  BusClient bus_;
  std::unique_ptr<GuestChannel> channel_;
  std::unique_ptr<StorClient> client_;
  std::unique_ptr<Disk> disk_;
  std::mt19937 random_;
  std::vector<std::byte> expected_;
  std::uint64_t commands_ = 0;
};

}  // namespace vmbusd::guest
