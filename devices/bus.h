// The bus of one attached partition: joins the VMBus server, the attach server, the devices and the I/O
// workers.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "devices/channel.h"
#include "devices/device.h"
#include "io/worker.h"
#include "partition/attach_server.h"
#include "vmbus/server.h"

namespace vmbusd::devices {

// One VMM connection, from its first datagram to its end. Owns the socket, the partition's memory and the
// open channels; devices and workers outlive it. Control thread only; `control` is the worker whose thread
// that is.
class Bus final : private partition::AttachServerEvents, private vmbus::ServerEvents, private DeviceHost {
 public:
  struct Config {
    std::string name;                  // of the partition
    std::vector<Device*> devices;      // in offer order
    std::vector<io::Worker*> workers;  // at least one
  };

  // Serves `socket` (connected, SOCK_SEQPACKET). `ended` is called once, when the VMM is gone and nothing is
  // in use any more: the Bus may be destroyed then, not inside the call.
  Bus(Config config, io::Worker& control, UniqueFd socket, std::function<void()> ended);
  ~Bus();

  // Ends the connection: closes all channels, drains, then calls `ended`.
  void shut_down();

 private:
  struct OpenChannel;

  // partition::AttachServerEvents
  void send(std::span<const std::byte> bytes, std::span<const int> fds) override;
  void attached(partition::Partition& partition) override;
  void change_partition(bool drain, std::function<void()> change, std::function<void()> done) override;
  void guest_message(std::uint32_t vp, std::uint32_t connection_id, std::uint32_t message_type,
                     std::span<const std::byte> payload) override;
  void reset(std::function<void()> done) override;

  // vmbus::ServerEvents
  bool send(std::uint32_t vp, std::span<const std::byte> message) override;
  bool page_exists(vmbus::Gpn page) const override;
  void open_channel(vmbus::Relid relid, const vmbus::OpenRequest& request) override;
  void close_channel(vmbus::Relid relid) override;
  void retarget_channel(vmbus::Relid relid, std::uint32_t vp) override;
  void release_gpadl(vmbus::Relid relid, const std::shared_ptr<const vmbus::Gpadl>& gpadl) override;
  void offer_gone(vmbus::Relid relid) override;
  void connection_ended() override;

  // DeviceHost
  void find_gpadl(Channel& channel, std::uint32_t gpadl,
                  std::function<void(std::shared_ptr<const vmbus::Gpadl>)> done) override;
  void offer_sub_channels(Device& device, std::uint32_t count) override;

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace vmbusd::devices
