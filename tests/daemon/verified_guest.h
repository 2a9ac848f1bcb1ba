// Disk commands and frames that know what must come of them, for guests whose daemon dies under them.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "guest/net_client.h"
#include "tests/guest/host.h"

namespace vmbusd::daemon {

using guest::must;

inline constexpr std::uint32_t kBlockBytes = 512;

// Commands of one kind after the other on a part of the disk of its own, all of whose blocks it knows.
class Area {
 public:
  static constexpr std::uint32_t kBlocks = 256;
  static constexpr std::uint32_t kBlocksMax = 64;  // of one command

  Area(guest::ChildPartition& child, std::uint32_t number, std::uint32_t seed)
      : first_(number * kBlocks),
        random_(seed),
        written_(kBlocks),
        pages_(must(child.ram().take(kBlocksMax * kBlockBytes / 4096))) {}

  // Puts the next command into the ring.
  void submit(guest::StorClient& client) {
    blocks_ = below(kBlocksMax) + 1;
    begin_ = below(kBlocks - blocks_ + 1);
    writes_ = below(3) != 0;
    if (writes_) {
      ++generation_;
      for (std::uint32_t i = 0; i < blocks_; ++i)
        pages_.write(i * kBlockBytes, pattern(begin_ + i, generation_));
    } else {
      pages_.write(0, std::vector<std::byte>(blocks_ * kBlockBytes));
    }
    guest::StorCommand command = guest::block_command(
        writes_ ? guest::scsi::Opcode::kWrite16 : guest::scsi::Opcode::kRead16, first_ + begin_, blocks_);
    command.pages = pages_.gpns();
    command.bytes = blocks_ * kBlockBytes;
    const auto id = must(client.submit(command));
    REQUIRE(id.has_value());
    id_ = *id;
  }
  [[nodiscard]] std::uint64_t id() const { return id_; }

  // That command is over: a read found what was written last.
  void completed(const guest::vstor::SrbPacket& packet) {
    REQUIRE(guest::succeeded(packet));
    REQUIRE(packet.srb.data_transfer_length == blocks_ * kBlockBytes);
    for (std::uint32_t i = 0; i < blocks_; ++i) {
      if (writes_) {
        written_[begin_ + i] = generation_;
        // Memory of a command that is over is the guest's: what still writes it out shows.
        pages_.write(i * kBlockBytes, std::vector<std::byte>(kBlockBytes, std::byte{0xee}));
        continue;
      }
      std::vector<std::byte> found(kBlockBytes);
      pages_.read(i * kBlockBytes, found);
      REQUIRE(found == pattern(begin_ + i, written_[begin_ + i]));
    }
  }

  void check_image(std::ifstream& image) const {
    for (std::uint32_t block = 0; block < kBlocks; ++block) {
      std::vector<std::byte> found(kBlockBytes);
      image.seekg(static_cast<std::streamoff>(first_ + block) * kBlockBytes);
      image.read(reinterpret_cast<char*>(found.data()), kBlockBytes);
      REQUIRE(found == pattern(block, written_[block]));
    }
  }

 private:
  // What write number `generation` puts into a block; 0: the image as it was made.
  [[nodiscard]] std::vector<std::byte> pattern(std::uint32_t block, std::uint64_t generation) const {
    std::vector<std::byte> bytes(kBlockBytes, std::byte{'i'});
    if (generation == 0) return bytes;
    const std::uint64_t word = (std::uint64_t{first_ + block} << 40) ^ generation;
    for (std::size_t at = 0; at < kBlockBytes; at += sizeof word) std::memcpy(&bytes[at], &word, sizeof word);
    return bytes;
  }

  [[nodiscard]] std::uint32_t below(std::uint32_t bound) {
    return std::uniform_int_distribution<std::uint32_t>(0, bound - 1)(random_);
  }

  std::uint32_t first_;  // block of the disk
  std::mt19937 random_;
  std::vector<std::uint64_t> written_;  // by block: the last write that is over
  guest::Pages pages_;
  std::uint64_t generation_ = 0;
  std::uint64_t id_ = 0;
  std::uint32_t begin_ = 0;
  std::uint32_t blocks_ = 0;
  bool writes_ = false;
};

// Keeps `depth` commands in flight, each on an area of its own.
class VerifiedLoad {
 public:
  VerifiedLoad(guest::ChildPartition& child, guest::StorClient& stor, std::uint32_t depth, std::uint32_t seed)
      : stor_(stor) {
    for (std::uint32_t i = 0; i < depth; ++i) areas_.emplace_back(child, i, seed + i);
    for (Area& area : areas_) submit(area);
    must(stor_.flush());
  }

  // Takes what is over and, with `more`, puts others in its place; waits for some time where nothing is.
  // Requires that something comes within kPatience.
  void turn(bool more, const RunningDaemon& daemon) {
    const Result<std::uint32_t> polled = stor_.poll([&](const guest::StorCompletion& completion) {
      const auto found = in_flight_.find(completion.id);
      REQUIRE(found != in_flight_.end());
      Area& area = *found->second;
      in_flight_.erase(found);
      area.completed(completion.packet);
      ++commands_;
      if (more) submit(area);
    });
    INFO("after " << commands_ << " commands");
    const std::uint32_t count = must(polled);
    must(stor_.flush());
    const auto now = guest::Clock::now();
    if (count != 0) {
      longest_ =
          std::max(longest_, std::chrono::duration_cast<std::chrono::milliseconds>(now - last_completion_));
      last_completion_ = now;
    } else if (!in_flight_.empty()) {
      static_cast<void>(must(stor_.wait(std::chrono::milliseconds(500))));
      INFO("while waiting for " << in_flight_.size() << "\n" << daemon.log());
      REQUIRE(guest::Clock::now() - last_completion_ < kPatience);
    }
  }
  [[nodiscard]] std::size_t in_flight() const { return in_flight_.size(); }
  [[nodiscard]] std::uint64_t commands() const { return commands_; }
  [[nodiscard]] std::chrono::milliseconds longest_pause() const { return longest_; }

  void check_image(const std::string& path) const {
    std::ifstream image(path, std::ios::binary);
    for (const Area& area : areas_) area.check_image(image);
  }

 private:
  void submit(Area& area) {
    area.submit(stor_);
    REQUIRE(in_flight_.emplace(area.id(), &area).second);
  }

  guest::StorClient& stor_;
  std::vector<Area> areas_;
  std::map<std::uint64_t, Area*> in_flight_;  // by command id
  std::uint64_t commands_ = 0;
  std::chrono::milliseconds longest_{0};
  guest::Clock::time_point last_completion_ = guest::Clock::now();
};

class DiskHost {
 public:
  DiskHost() { std::ofstream(directory_.path("d.img")) << std::string(guest::kImageBytes, 'i'); }

  // `disk`: what is behind it.
  [[nodiscard]] static std::string config(const std::string& disk = "path = 'd.img'") {
    return "[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\nio_threads = 2\n[[partition.scsi]]\nname = "
           "'scsi0'\nchannels = 2\n[[partition.scsi.disk]]\nlun = 0\n" +
           disk + "\n";
  }
  [[nodiscard]] const TemporaryDirectory& directory() const { return directory_; }
  [[nodiscard]] std::string image() const { return directory_.path("d.img"); }

 private:
  TemporaryDirectory directory_;
};

// Frames to itself, each with a number and bytes that follow from it.
class Echo {
 public:
  explicit Echo(guest::NetClient& net) : net_(net) {}

  void send_all() {
    for (;;) {
      std::vector<std::byte> frame(64 + sent_ % 1400);
      std::memcpy(frame.data(), net_.mac().bytes.data(), 6);
      std::memcpy(frame.data() + kNumberAt, &sent_, sizeof sent_);
      fill(std::span(frame).subspan(kBytesAt), sent_);
      if (!must(net_.send(frame))) break;
      ++sent_;
    }
    must(net_.flush());
  }
  std::uint32_t poll() {
    const std::uint64_t completed = net_.statistics().completed;
    const std::uint32_t packets = must(net_.poll([this](std::span<const std::byte> frame) {
      std::uint64_t number = 0;
      REQUIRE(frame.size() >= 64);
      std::memcpy(&number, frame.data() + kNumberAt, sizeof number);
      REQUIRE(number < sent_);
      REQUIRE(frame.size() == 64 + number % 1400);
      std::vector<std::byte> bytes(frame.size() - kBytesAt);
      fill(bytes, number);
      REQUIRE(std::equal(bytes.begin(), bytes.end(), frame.begin() + kBytesAt));
      ++received_;
    }));
    must(net_.flush());
    return packets + static_cast<std::uint32_t>(net_.statistics().completed - completed);
  }
  [[nodiscard]] std::uint64_t sent() const { return sent_; }
  [[nodiscard]] std::uint64_t received() const { return received_; }

 private:
  static constexpr std::size_t kNumberAt = 16;
  static constexpr std::size_t kBytesAt = 24;

  static void fill(std::span<std::byte> bytes, std::uint64_t number) {
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(number + i);
  }

  guest::NetClient& net_;
  std::uint64_t sent_ = 0;
  std::uint64_t received_ = 0;
};

}  // namespace vmbusd::daemon
