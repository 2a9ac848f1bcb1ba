// A vmbusd with disks, and the user-space child partition attached to it.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/temporary_directory.h"
#include "guest/child_partition.h"
#include "guest/disk.h"
#include "guest/guest_channel.h"
#include "guest/stor_client.h"
#include "tests/catch.h"
#include "tests/daemon/running_daemon.h"

namespace vmbusd::guest {

inline constexpr std::uint64_t kImageBytes = 8 << 20;

// Requires a result's value; says the error where there is none.
template <typename T>
T must(Result<T> result) {
  INFO((result ? std::string() : describe(result.error())));
  REQUIRE(result.has_value());
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

template <typename T>
std::optional<Errc> error_of(const Result<T>& result) {
  if (result) return std::nullopt;
  return result.error().code;
}

// A running vmbusd with the partitions "one" and "two". Each has one controller with two disks of
// kImageBytes: LUN 0 is writable, LUN 1 read-only; a guest may have 4 channels, on 2 I/O threads.
class Host {
 public:
  struct DeathsExpected {};
  static constexpr DeathsExpected kDeathsExpected{};
  // For tests that a worker does not outlive.
  explicit Host(DeathsExpected) : Host() { deaths_expected_ = true; }
  // `more`: further tables of each partition; `all`: keys before all partitions.
  explicit Host(const std::string& more = "", const std::string& all = "") {
    std::string config = all;
    for (const std::string name : {"one", "two"}) {
      for (const std::string image : {"-0.img", "-1.img"}) {
        std::ofstream(directory_.path(name + image)) << std::string(kImageBytes, 'i');
      }
      config += "[[partition]]\nname = '" + name + "'\nsocket = '" + name + ".sock'\nio_threads = 2\n" +
                "[[partition.scsi]]\nname = 'scsi0'\nchannels = 4\n" +  //
                "[[partition.scsi.disk]]\nlun = 0\npath = '" + name + "-0.img'\n" +
                "[[partition.scsi.disk]]\nlun = 1\nreadonly = true\npath = '" + name + "-1.img'\n" + more;
    }
    daemon_ = std::make_unique<daemon::RunningDaemon>(directory_, config);
    const bool ready = daemon_->wait_until_ready();
    INFO(daemon_->log());
    REQUIRE(ready);
  }
  // Every test's last word: whatever the guest did, the daemon lives, has lost no worker, and no sanitizer
  // found anything to say.
  ~Host() {
    const std::string log = daemon_->log();
    INFO(log);
    CHECK(daemon::is_alive(daemon_->pid()));
    CHECK((deaths_expected_ || log.find("ended unexpectedly") == std::string::npos));
    CHECK(log.find("Sanitizer: ") == std::string::npos);
    CHECK(log.find("runtime error: ") == std::string::npos);
  }

  [[nodiscard]] std::unique_ptr<ChildPartition> attach(const std::string& partition = "one",
                                                       std::uint32_t vp_count = 1) {
    std::string error_text;
    auto child = ChildPartition::attach({.socket_path = socket(partition), .vp_count = vp_count}, error_text);
    INFO(error_text);
    return must(std::move(child));
  }

  // Its attach socket.
  [[nodiscard]] std::string socket(const std::string& partition) const {
    return directory_.path(partition + ".sock");
  }

  // Bytes of a disk's image, as the host has them.
  [[nodiscard]] std::vector<std::byte> image(std::uint64_t offset, std::size_t size,
                                             const std::string& partition = "one") const {
    std::ifstream file(directory_.path(partition + "-0.img"), std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    std::vector<std::byte> bytes(size);
    file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
    REQUIRE(file.gcount() == static_cast<std::streamsize>(size));
    return bytes;
  }
  // What the file system keeps of it.
  [[nodiscard]] std::uint64_t image_bytes_kept(const std::string& partition = "one") const {
    struct stat status {};
    REQUIRE(::stat(directory_.path(partition + "-0.img").c_str(), &status) == 0);
    return static_cast<std::uint64_t>(status.st_blocks) * 512;
  }
  [[nodiscard]] daemon::RunningDaemon& daemon() { return *daemon_; }

 private:
  TemporaryDirectory directory_;
  std::unique_ptr<daemon::RunningDaemon> daemon_;
  bool deaths_expected_ = false;
};

inline vmbus::OfferChannel scsi_offer(std::span<const vmbus::OfferChannel> offers) {
  const auto found = std::find_if(offers.begin(), offers.end(), [](const vmbus::OfferChannel& offer) {
    return offer.interface_type == vmbus::kClassScsi && offer.sub_channel_index == 0;
  });
  REQUIRE(found != offers.end());
  return *found;
}

// A driver that has come as far as its disk: connection, channel, storage handshake.
class Driver {
 public:
  struct Options {
    vmbus::Version version = vmbus::Version::k5_3;
    GuestChannel::Options channel{};
    std::uint32_t depth = 32;
  };
  Driver(ChildPartition& child, const Options& options) : bus(child) {
    must(bus.contact(options.version));
    offer = scsi_offer(must(bus.request_offers()));
    channel = must(GuestChannel::open(bus, offer, options.channel));
    stor = std::make_unique<StorClient>(*channel, options.depth);
    must(stor->initialize());
    disk = std::make_unique<Disk>(*stor);
    must(disk->ready());
    static_cast<void>(Disk(*stor, 1).ready());  // where there is one
  }
  explicit Driver(ChildPartition& child) : Driver(child, Options()) {}

  BusClient bus;
  vmbus::OfferChannel offer;
  std::unique_ptr<GuestChannel> channel;
  std::unique_ptr<StorClient> stor;
  std::unique_ptr<Disk> disk;
};

// Bytes that differ for each seed and do not repeat within a disk.
inline std::vector<std::byte> random_bytes(std::size_t size, std::uint32_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

inline std::vector<std::byte> read_disk(Disk& disk, std::uint64_t offset, std::size_t size) {
  std::vector<std::byte> bytes(size);
  must(disk.read(offset, bytes));
  return bytes;
}

}  // namespace vmbusd::guest
