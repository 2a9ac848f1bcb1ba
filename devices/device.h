// What a synthetic device is to the bus.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "devices/channel.h"
#include "vmbus/server.h"

namespace vmbusd::devices {

class Device;

// What the bus does for a device. All methods may be called from any thread, and act on the control thread.
class DeviceHost {
 public:
  // Looks up a GPADL that the guest lent to the channel; `done` runs on that channel's worker, with nullptr
  // where there is none, and not at all where the channel closes first. The pages may be used until
  // ChannelHandler::release_gpadl or ChannelHandler::stop has ended.
  virtual void find_gpadl(Channel& channel, std::uint32_t gpadl,
                          std::function<void(std::shared_ptr<const vmbus::Gpadl>)> done) = 0;
  // Offers sub-channels 1..count of `device`, in place of none: a device has them once per opening of its
  // primary.
  virtual void offer_sub_channels(Device& device, std::uint32_t count) = 0;

 protected:
  ~DeviceHost() = default;
};

// A device of one partition: disk controller, NIC, integration component. Lives as long as it is configured,
// over many connections of guests. Control thread, unless said otherwise.
class Device {
 public:
  virtual ~Device() = default;

  // "guest1/scsi0"
  [[nodiscard]] virtual const std::string& name() const = 0;
  // Tells it from devices of the same instance that were there before it, for a guest that is taken up.
  [[nodiscard]] virtual std::uint64_t incarnation() const { return 1; }
  // What to offer for the primary channel; sub-channels are offered likewise with their index.
  [[nodiscard]] virtual vmbus::Offer offer() const = 0;
  // The guest opens channel `sub_channel_index` (0: primary): makes its handler. `host` outlives the handler.
  // `worker` is the one that will run it.
  [[nodiscard]] virtual Result<std::unique_ptr<ChannelHandler>> open(std::uint32_t sub_channel_index,
                                                                     DeviceHost& host,
                                                                     io::Worker& worker) = 0;
  // Whether its channels can be taken up by another worker process. Where not, the guest sees the device go
  // and come back.
  [[nodiscard]] virtual bool can_be_taken_up() const = 0;
  // The guest is about to be told that the device goes: from then on its driver may be able to answer
  // nothing. `done` is called when it has answered what needs an answer; on any thread.
  virtual void leave(std::function<void()> done) { done(); }
  // The guest is gone or starts over: all handlers are destroyed. Protocol state goes, configuration stays.
  virtual void reset() {}
};

}  // namespace vmbusd::devices
