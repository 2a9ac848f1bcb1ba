// The VMBus server of one partition: version negotiation, offers, GPADLs, open and close, rescind, unload. A
// state machine: it takes bytes and calls, and answers through ServerEvents; it has no thread, no I/O, no
// guest memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/guid.h"
#include "base/log.h"
#include "base/result.h"
#include "base/serial.h"

namespace vmbusd::vmbus {

using Relid = std::uint32_t;  // 1..kMaxChannels: a channel's number on the wire, and its id in this interface
using GpadlId = std::uint32_t;  // chosen by the guest; unique per channel
using Gpn = std::uint64_t;

inline constexpr std::uint32_t kMaxChannels = 2047;  // event flags 1..2047 [TLFS: SynIC event flags]
inline constexpr std::uint32_t kNoInterruptVp = 0xffffffff;

// What a device wants offered. [linux: struct vmbus_channel_offer]
struct Offer {
  Guid interface_type;
  Guid instance;
  std::uint16_t sub_channel_index = 0;  // 0: primary
  bool pipe_message_mode = false;       // integration components
  bool monitored = false;               // the guest may signal by its monitor page
  std::uint16_t mmio_megabytes = 0;
  std::array<std::uint8_t, 120> user_defined{};
};

// Guest memory that the guest lent to a channel. Immutable once created; holders keep it alive, but the pages
// may be used only until Server::gpadl_released() was called for it.
struct Gpadl {
  struct Range {
    std::uint32_t byte_count;
    std::uint32_t byte_offset;  // into the first page, < 4096
    std::vector<Gpn> pages;
  };
  GpadlId id;
  Relid relid;
  std::vector<Range> ranges;
};

// What the guest asked for in OPENCHANNEL. [linux: struct vmbus_channel_open_channel]
struct OpenRequest {
  std::shared_ptr<const Gpadl> ring;  // its pages: incoming ring, then outgoing ring
  std::uint32_t incoming_pages =
      0;                         // of the incoming ring, its control page included; >= 2, and >= 2 are left
  std::uint32_t target_vp = 0;   // < VP count, or kNoInterruptVp
  std::uint32_t event_flag = 0;  // to set in the target VP's event flags
  // GPA of a page in guest memory, for connections below 2.4 only, else 0: such guests take an interrupt as
  // bit `event_flag` of this page's first half, followed by event flag 0. [reference: vmbus 8]
  std::uint64_t interrupt_page = 0;
  std::uint32_t connection_id = 0;  // that the guest signals
  // Of a monitored channel: GPA of the page in guest memory where the guest may signal by the bit of
  // `monitor_id` (0..127) instead; else 0.
  std::uint64_t monitor_page = 0;
  std::uint8_t monitor_id = 0;
  std::array<std::uint8_t, 120> user_data{};
};

// What the server asks of its surroundings. Called on the control thread, from inside Server's methods; may
// call Server's methods back at once.
class ServerEvents {
 public:
  // A message for the guest's SINT 2 on `vp`, at most 240 bytes, in order. Returns false where the guest's
  // queue is full (it does not take its messages): the server drops the connection then.
  [[nodiscard]] virtual bool send(std::uint32_t vp, std::span<const std::byte> message) = 0;
  // Checks that a page lies in guest memory.
  [[nodiscard]] virtual bool page_exists(Gpn page) const = 0;
  // Start the device's channel; answer with Server::open_done().
  virtual void open_channel(Relid relid, const OpenRequest& request) = 0;
  // Stop the channel: no ring access, no interrupt, nothing in flight; answer with Server::close_done().
  // Comes once for each open_channel that succeeded or is still unanswered; an unanswered open is answered by
  // close_done() alone. An open that fails from inside open_channel() may have crossed with it, too.
  virtual void close_channel(Relid relid) = 0;
  // Interrupts go to another VP (or none); answer with Server::retarget_done(). One at a time per channel; a
  // close_channel that comes first is answered by close_done() alone.
  virtual void retarget_channel(Relid relid, std::uint32_t vp) = 0;
  // The guest takes a GPADL back that is not an open channel's ring; answer with Server::gpadl_released()
  // when the device does not touch it any more. Comes after close_channel was answered where the channel
  // closes first.
  virtual void release_gpadl(Relid relid, const std::shared_ptr<const Gpadl>& gpadl) = 0;
  // A revoked offer is gone and its relid free: the guest released it, or there is no connection.
  virtual void offer_gone(Relid relid) = 0;
  // The guest unloaded, reset or started over: devices forget their protocol state. All channels are closed
  // by now, all sub-channel offers gone, all GPADLs released.
  virtual void connection_ended() = 0;

 protected:
  ~ServerEvents() = default;
};

// Bounds on what one guest can make the server hold.
struct ServerLimits {
  std::uint32_t gpadls = 1024;             // per connection
  std::uint32_t gpadls_in_progress = 64;   // bodies still missing
  std::uint64_t gpadl_pages = 320 * 1024;  // per connection: 1.25 GiB, as Hyper-V [reference: vmbus 5.1]
};

// Control thread only.
class Server {
 public:
  // HvPostMessage connection ids that are ours. [openvmm: vmbus_core/src/protocol.rs]
  static constexpr std::array<std::uint32_t, 2> kMessageConnections = {1, 4};
  // The id that the guest signals a channel by: unique and clear of the ids of messages. [openvmm:
  // vmbus_server/src/channels.rs, ConnectionId of an offered channel]
  [[nodiscard]] static constexpr std::uint32_t signal_connection(Relid relid) { return relid | 2u << 12; }
  static constexpr std::uint32_t kMessageType = 1;  // of every VMBus message, both ways

  Server(ServerEvents& events, std::uint32_t vp_count, LogScope& log, const ServerLimits& limits = {});
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // A message that the guest posted to `connection_id`. `message` is a private copy. A bad one is logged
  // (rate-limited) and dropped, or answered with the status that its reply has.
  void guest_message(std::uint32_t connection_id, std::span<const std::byte> message);

  // Adds an offer; a connected guest is told at once, others when they ask. The relid stays the same until
  // offer_gone(). Guests number devices in the order of these calls. Errc::kLimit where all relids are in
  // use (monitor ids: one more monitored channel is offered without); Errc::kWrongState where the same (type,
  // instance, index) is offered already, or for a sub-channel whose primary is not open. Sub-channels live as
  // long as the primary stays open: its closing revokes them.
  [[nodiscard]] Result<Relid> offer(const Offer& offer);
  // Takes an offer back: the guest is told. A channel that is open, and its sub-channels, are served on until
  // the guest closes them or releases their relids; offer_gone() follows.
  void rescind(Relid relid);
  // Serves a rescinded channel no longer: closes it and its sub-channels. Not open any more, or not
  // rescinded: nothing.
  void close_rescinded(Relid relid);

  // `status` 0 is success; others are NTSTATUS values for the guest.
  void open_done(Relid relid, std::uint32_t status);
  void close_done(Relid relid);
  void retarget_done(Relid relid, std::uint32_t status);
  void gpadl_released(Relid relid, GpadlId gpadl);

  // For devices whose protocol names a GPADL (netvsp's buffers); empty where the channel has none of that id.
  [[nodiscard]] std::shared_ptr<const Gpadl> find_gpadl(Relid relid, GpadlId gpadl) const;
  // All of a channel's.
  [[nodiscard]] std::vector<std::shared_ptr<const Gpadl>> gpadls_of(Relid relid) const;

  // Whether the guest has lent a page in [first, first + count): by a GPADL, as its interrupt page, or as
  // its monitor page while a monitored channel is open. Such pages must stay mapped.
  [[nodiscard]] bool holds_pages(Gpn first, std::uint64_t count) const;

  // The VMM resets the guest, or is gone: as UNLOAD, but without an answer. connection_ended() follows when
  // all is closed (at once where nothing is open).
  void reset();
  // True while nothing of a connection is left: no guest memory is in use.
  [[nodiscard]] bool idle() const;

  // Whether nothing waits for an answer of ours or of the surroundings, so that save() tells it all.
  [[nodiscard]] bool settled() const;
  // For a host that is restarted under its guest: writes what restore() on a new Server needs. Only while
  // settled().
  void save(SerialWriter& out) const;
  // First of all, in place of offer(): takes up what save() wrote. That is not trusted: Errc::kProtocol (and
  // what GPADLs can fail by) where it is not what a guest can have brought about; destroy the Server then.
  // `offer_of` gives each channel's offer.
  [[nodiscard]] Result<void> restore(SerialReader& in, const std::function<Result<Offer>(Relid)>& offer_of);
  // Then, for each channel, primaries before their sub-channels: where it was open, open_channel() follows;
  // its open_done() tells the guest nothing.
  [[nodiscard]] Result<void> reopen(Relid relid);
  // Whether the guest takes it for open and reopen() was not called.
  [[nodiscard]] bool awaits_reopen(Relid relid) const;

  // Negotiated version, major << 16 | minor; 0 without a connection.
  [[nodiscard]] std::uint32_t version() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace vmbusd::vmbus
