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

  // Reads some of what it wrote, writes some anew. Errc::kProtocol: a byte is not what it was.
  [[nodiscard]] Result<void> check();
  [[nodiscard]] std::uint64_t commands() const { return commands_; }

 private:
  static constexpr std::size_t kBytes = 1 << 20;
  static constexpr std::size_t kPieceBytes = 16 << 10;

  Bystander(std::unique_ptr<ChildPartition> child, std::uint32_t seed)
      : child_(std::move(child)), bus_(*child_), random_(seed), expected_(kBytes) {}
  [[nodiscard]] Result<void> start();
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
