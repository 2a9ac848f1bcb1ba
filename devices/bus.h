// The bus of one attached partition: joins the VMBus server, the attach server, the devices and the I/O
// workers.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "base/result.h"
#include "base/serial.h"
#include "devices/attach_socket.h"
#include "devices/channel.h"
#include "devices/device.h"
#include "devices/recovery_area.h"
#include "devices/status.h"
#include "io/worker.h"
#include "partition/attach_server.h"
#include "vmbus/server.h"

namespace vmbusd::devices {

// One VMM connection, from its first datagram to its end. Owns the socket, the partition's memory and the
// open channels; devices and workers outlive it. Control thread only, the DeviceHost methods apart.
//
//   VMM -- AttachSocket -- AttachServer -- Bus -- vmbus::Server
//                                           |
//                             Channel (on an io::Worker) -- ChannelHandler -- Device
class Bus final : private partition::AttachServerEvents, private vmbus::ServerEvents, private DeviceHost {
 public:
  struct Config {
    std::string name;                  // of the partition
    std::vector<Device*> devices;      // in offer order
    std::vector<io::Worker*> workers;  // at least one
    // For a connection that is to outlive this process: where its state goes (outlives the Bus), and who
    // keeps descriptors of these keys beyond this process. None: it does not.
    RecoveryArea* recovery = nullptr;
    std::function<void(partition::FdKey, int fd)> keep_fd{};
    std::function<void(partition::FdKey)> drop_fd{};
    std::function<void()> recovered{};  // recover() has come to its end
    // For a connection that is to outlive the supervisor, too: what the VMM is to keep of `recovery`, and who
    // is told what it gave back to have its guest taken up, after the descriptors that it gave. -1: it does
    // not.
    int area_for_vmm = -1;
    std::function<void(UniqueFd area)> take_up{};
    // A device's primary channel was opened or closed by its guest; not where it was taken up.
    std::function<void(const std::string& device, bool open)> primary_changed{};
  };
  using KeptFds = std::map<partition::FdKey, UniqueFd>;

  // For `socket` (connected, SOCK_SEQPACKET). `control` is the worker whose thread this is. `ended` is
  // called once, from the control worker's loop, when the VMM is gone and nothing is in use any more: the Bus
  // may be destroyed in it.
  Bus(Config config, io::Worker& control, UniqueFd socket, std::function<void()> ended);
  ~Bus();

  // One of both, once. start() serves a VMM that has yet to say Hello. recover() takes up what another Bus
  // recorded in config.recovery and `fds`, which is not trusted: where it cannot be, the connection ends as
  // by shut_down().
  void start();
  void recover(KeptFds fds);

  // Calls `done` on the control thread while every channel is at rest, with nothing in flight, and all
  // workers wait for it: true where another process could take up the connection from here. Not at all where
  // it ends first.
  void at_rest(std::function<void(bool recorded)> done);

  // At run time: offers the device, at once or when another of the same instance has left the guest.
  void add_device(Device& device);
  // Takes it from the guest, which is served until it lets go, for a few seconds at most; `done` is called
  // from the control worker's loop, when nothing of it is in use and it may be destroyed.
  void remove_device(Device& device, std::function<void()> done);

  // For what is not at rest in time: whether another process could take up the connection with what is in
  // flight, as from one that is killed now.
  [[nodiscard]] bool recorded();

  // Whether the VMM can have its guest taken up by another supervisor's worker.
  [[nodiscard]] bool can_be_taken_up() const { return attach_.can_be_taken_up(); }

  // Ends the connection: closes all channels, drains, then calls `ended`. Again: nothing.
  void shut_down();

  // Calls `done` from the control worker's loop, once each open channel's worker has told its part: not at
  // all where a worker hangs or the Bus is destroyed first. One at a time; another before is refused by
  // false.
  [[nodiscard]] bool look(std::function<void(BusStatus)> done);

  // The names of channels that are not closed yet, for the log line of a shutdown that takes too long.
  [[nodiscard]] std::vector<std::string> open_channels() const;

 private:
  // A channel between the guest's OPENCHANNEL and the server's close_done.
  struct OpenChannel {
    enum class Phase : std::uint8_t {
      kAttaching,  // the VMM is asked to attach the doorbell
      kStarting,   // the worker takes up the rings
      kOpen,
      kStopping,   // the worker stops
      kDetaching,  // the VMM is asked to detach the doorbell
    };
    std::string name;
    std::unique_ptr<Channel> channel;
    std::uint32_t connection_id;
    Phase phase = Phase::kAttaching;
    bool close_wanted = false;
    bool primary = false;
    bool was_open = false;
    std::uint32_t status = 0;            // why opening failed
    std::set<vmbus::GpadlId> releasing;  // asked of the handler and not answered
  };
  struct Offered {
    Device* device;  // nullptr: it is gone, and the guest has not let go of the channel
    Guid interface_type;
    Guid instance;
    std::uint64_t incarnation;
    std::uint32_t sub_channel_index;
  };
  // Each step when the guest has done its part, or is due.
  struct Removal {
    enum class Step : std::uint8_t {
      kLeaving,  // the device stops what its guest could not answer any more
      kTold,     // the offer is rescinded, and served until the guest lets go
      kClosing,
    };
    Device* device;
    std::function<void()> done;
    io::Clock::time_point due;
    Step step = Step::kLeaving;
  };
  class RemovalTimer final : public io::Timer {
   public:
    explicit RemovalTimer(Bus& bus) : bus_(bus) {}
    void expired() noexcept override { bus_.removals_due(); }

   private:
    Bus& bus_;
  };
  struct Change {
    std::function<void()> change;
    std::function<void()> done;
  };

  // partition::AttachServerEvents
  void send(std::span<const std::byte> bytes, std::span<const int> fds) override;
  void attached(partition::Partition& partition) override;
  void change_partition(bool drain, std::function<void()> change, std::function<void()> done) override;
  bool region_lent(std::uint64_t gpa, std::uint64_t size) const override;
  void guest_message(std::uint32_t vp, std::uint32_t connection_id, std::uint32_t message_type,
                     std::span<const std::byte> payload) override;
  void reset(std::function<void()> done) override;
  void keep_fd(partition::FdKey key, int fd) override;
  void drop_fd(partition::FdKey key) override;
  int area_for_vmm() const override { return config_.area_for_vmm; }
  bool doorbell_kept(std::uint32_t connection_id, int eventfd) override;
  Result<void> take_up(UniqueFd area) override;

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

  // What a worker's thread has the control thread do.
  void post_back(std::function<void()> function);
  void begin_transition();
  void end_transition();
  void record();
  [[nodiscard]] bool settled() const;
  void save(SerialWriter& out) const;
  [[nodiscard]] Result<void> restore(std::span<const std::byte> snapshot);
  [[nodiscard]] Result<vmbus::Offer> offer_of(vmbus::Relid relid) const;
  void recovered_channel(vmbus::Relid relid);
  void exchange_devices();
  void offer(Device& device, std::uint32_t sub_channel_index);
  void offer_missing();
  [[nodiscard]] std::optional<vmbus::Relid> primary_of(const Device& device) const;
  void tell_of_removal(const Device& device);
  void removals_due();
  void arm_removals();
  void advance_removals();
  [[nodiscard]] bool removed(const Device* device) const;
  void start_channel(vmbus::Relid relid);

  [[nodiscard]] Result<std::unique_ptr<Channel>> make_channel(vmbus::Relid relid,
                                                              const vmbus::OpenRequest& request);
  void doorbell_attached(vmbus::Relid relid, const Result<void>& result);
  void tell_of_primary(const OpenChannel& channel, bool open);
  void channel_started(vmbus::Relid relid, const Result<void>& result);
  void stop_channel(vmbus::Relid relid);
  void detach_doorbell(vmbus::Relid relid);
  void channel_closed(vmbus::Relid relid);
  void gpadl_released(vmbus::Relid relid, vmbus::GpadlId gpadl);
  void looked(ChannelStatus status);
  void next_change();
  void drained(vmbus::Relid relid);
  void disconnected(const Error& reason);

  Config config_;
  io::Worker& control_;
  LogScope log_;
  std::function<void()> ended_;
  bool connected_ = true;
  partition::AttachServer attach_;
  AttachSocket socket_;
  std::unique_ptr<vmbus::Server> server_;  // after Hello
  std::map<vmbus::Relid, Offered> offered_;
  std::map<vmbus::Relid, OpenChannel> channels_;
  std::vector<Removal> removals_;
  RemovalTimer removal_timer_{*this};
  std::function<void()> reset_done_;
  std::deque<Change> changes_;       // that drain; the first is under way
  std::set<vmbus::Relid> draining_;  // channels that the first change waits for
  std::set<vmbus::Relid> paused_;    // to be resumed after it
  bool in_transition_ = true;        // of config_.recovery, which begins with one
  bool end_posted_ = false;          // end_transition() will be called
  bool recovering_ = false;
  std::size_t reopening_ = 0;  // channels that recover() waits for
  KeptFds kept_fds_;           // for recover(), until they are taken
  SerialWriter snapshot_;
  std::shared_ptr<Bus*> self_ = std::make_shared<Bus*>(this);  // for what is posted and may come too late
  BusStatus looked_;                                           // what look() has gathered so far
  std::size_t looking_ = 0;                                    // channels whose part is missing
  std::function<void(BusStatus)> look_done_;
};

}  // namespace vmbusd::devices
