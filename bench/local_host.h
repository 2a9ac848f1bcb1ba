// A device of vmbusd's and the driver of its primary channel on one thread: no attach socket, no daemon, no
// scheduling, so that what runs is the same each time.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "devices/channel.h"
#include "devices/device.h"
#include "guest/driver_channel.h"
#include "guest/ram.h"
#include "io/worker.h"
#include "partition/partition.h"

namespace vmbusd::bench {

// The driver's end is a DriverChannel whose wait() lets the host's end look at the rings. Life cycle: make(),
// initialise a client over it, run() once.
class LocalHost final : public guest::DriverChannel, private devices::DeviceHost {
 public:
  // `device` outlives it. `ring_pages`: of each ring, control page included.
  [[nodiscard]] static Result<std::unique_ptr<LocalHost>> make(devices::Device& device,
                                                               std::uint32_t ring_pages);
  ~LocalHost() override;

  // Runs the host's worker; after each of its turns, uncounted, `drive` plays the driver. Ends when `drive`
  // returns false, which it does with nothing in flight. What the worker does is counted (see counted.h).
  void run(std::function<bool()> drive);

  // guest::DriverChannel
  ring::OutgoingRing& to_host() override { return *to_host_; }
  ring::IncomingRing& from_host() override { return *from_host_; }
  Result<void> flush() override;
  Result<bool> wait(std::chrono::milliseconds patience) override;
  guest::Ram& ram() override { return *ram_; }
  Result<std::uint32_t> lend(std::span<const guest::Gpn> pages) override;

 private:
  // Plays the driver once a turn.
  class Driver final : public io::Pollable {
   public:
    Driver(LocalHost& host, std::function<bool()> drive) : host_(host), drive_(std::move(drive)) {}
    bool poll() noexcept override;
    bool prepare_sleep() noexcept override { return false; }
    void woken() noexcept override {}

   private:
    LocalHost& host_;
    std::function<bool()> drive_;
  };

  LocalHost() : partition_(1) {}
  [[nodiscard]] Result<void> open(devices::Device& device, std::uint32_t ring_pages);

  // devices::DeviceHost
  void find_gpadl(devices::Channel& channel, std::uint32_t gpadl,
                  std::function<void(std::shared_ptr<const vmbus::Gpadl>)> done) override;
  void offer_sub_channels(devices::Device& device, std::uint32_t count) override;

  std::unique_ptr<guest::Ram> ram_;
  partition::Partition partition_;
  guest::Pages ring_pages_;
  std::unique_ptr<io::Worker> worker_;
  std::optional<ring::OutgoingRing> to_host_;
  std::optional<ring::IncomingRing> from_host_;
  int doorbell_ = -1;  // the channel's
  std::map<std::uint32_t, std::shared_ptr<const vmbus::Gpadl>> gpadls_;
  std::function<void()> found_;  // a look-up that is to be answered
  bool stopped_ = false;
  std::unique_ptr<devices::Channel> channel_;
};

}  // namespace vmbusd::bench
