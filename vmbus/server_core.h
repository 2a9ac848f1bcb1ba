// The state machine behind Server. Its methods stand in these files: server_connection.cc (contact, unload,
// reset, what is sent), server_channels.cc (offers, open, close, rescind), server_gpadls.cc;
// server_recovery.cc saves it all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "base/serial.h"
#include "vmbus/gpadl_table.h"
#include "vmbus/message_table.h"
#include "vmbus/negotiation.h"
#include "vmbus/protocol.h"
#include "vmbus/server.h"

namespace vmbusd::vmbus {

// Control thread only. Each entry point first brings its own state up to date and queues what the
// surroundings shall do (Event), then deliver() hands the queue to ServerEvents. So an event may call any
// method back, *_done() above all, without finding anything half done; and loops over channels never see them
// change underneath.
class ServerCore {
 public:
  ServerCore(ServerEvents& events, std::uint32_t vp_count, LogScope& log, const ServerLimits& limits);
  ServerCore(const ServerCore&) = delete;
  ServerCore& operator=(const ServerCore&) = delete;

  // As Server's.
  void guest_message(std::uint32_t connection_id, std::span<const std::byte> message);
  [[nodiscard]] Result<Relid> offer(const Offer& offer);
  void rescind(Relid relid);
  void close_rescinded(Relid relid);
  void open_done(Relid relid, std::uint32_t status);
  void close_done(Relid relid);
  void retarget_done(Relid relid, std::uint32_t status);
  void gpadl_released(Relid relid, GpadlId gpadl);
  [[nodiscard]] std::shared_ptr<const Gpadl> find_gpadl(Relid relid, GpadlId gpadl) const;
  [[nodiscard]] std::vector<std::shared_ptr<const Gpadl>> gpadls_of(Relid relid) const;
  [[nodiscard]] bool holds_pages(Gpn first, std::uint64_t count) const;
  void reset();
  [[nodiscard]] bool idle() const { return phase_ == Phase::kDisconnected; }
  [[nodiscard]] Version version() const { return connected() ? version_ : Version::kNone; }
  [[nodiscard]] bool settled() const;
  void save(SerialWriter& out) const;
  [[nodiscard]] Result<void> restore(SerialReader& in, const std::function<Result<Offer>(Relid)>& offer_of);
  [[nodiscard]] Result<void> reopen(Relid relid);
  [[nodiscard]] bool awaits_reopen(Relid relid) const;

  // The guest's messages; called through message_table.cc, which checked length, phase and version.
  void on_initiate_contact(const InitiateContact& message, const Received& received);
  void on_request_offers(const RequestOffers& message);
  void on_unload(const Unload& message);
  void on_tl_connect_request(const TlConnectRequest& message);
  void on_open_channel(const OpenChannel& message);
  void on_close_channel(const CloseChannel& message);
  void on_modify_channel(const ModifyChannel& message);
  void on_relid_released(const RelidReleased& message);
  void on_open_reserved_channel(const OpenReservedChannel& message);
  void on_close_reserved_channel(const CloseReservedChannel& message);
  void on_gpadl_header(const GpadlHeader& message, const Received& received);
  void on_gpadl_body(const GpadlBody& message, const Received& received);
  void on_gpadl_teardown(const GpadlTeardown& message);

 private:
  // What is queued for ServerEvents.
  struct Send {
    std::uint32_t vp;
    std::vector<std::byte> bytes;
  };
  struct Open {
    Relid relid;
    OpenRequest request;
  };
  struct Close {
    Relid relid;
  };
  struct Retarget {
    Relid relid;
    std::uint32_t vp;
  };
  struct Release {
    std::shared_ptr<const Gpadl> gpadl;
  };
  struct OfferGone {
    Relid relid;
  };
  struct ConnectionEnded {};
  using Event = std::variant<Send, Open, Close, Retarget, Release, OfferGone, ConnectionEnded>;

  // What became of the offer.
  enum class OfferState : std::uint8_t {
    kOffered,
    kRevoking,  // to be rescinded when the channel is closed
    kRevoked,   // the guest was told and has not released the relid; the channel may be open
    kReleased,  // the guest let go; its GPADLs are being released
    kGone,      // offer_gone is queued
  };
  enum class RunState : std::uint8_t {
    kClosed,
    kOpening,  // open_channel is unanswered
    kOpen,
    kClosing,  // close_channel is unanswered
  };

  struct Channel {
    Relid relid = 0;
    std::uint64_t ordinal = 0;  // of the offer() call: guests number devices in this order
    Offer offer;
    std::optional<std::uint8_t> monitor_id;
    OfferState offer_state = OfferState::kOffered;
    bool told = false;  // this connection's guest has the OFFERCHANNEL
    RunState run_state = RunState::kClosed;
    OpenChannel opened;   // while opening or open: by this message
    bool reopen = false;  // was open before a restart of the host, and waits for reopen()
    std::optional<std::uint32_t> open_result;  // the openid of an OPENCHANNEL_RESULT that is owed
    std::optional<OpenChannel> queued_open;    // checked; waits for the channel (or a sub-channel) to close
    bool retargeting = false;                  // retarget_channel is unanswered
    std::uint32_t retargeting_to = 0;          // by that
    std::optional<std::uint32_t> next_vp;      // the latest MODIFYCHANNEL that came meanwhile

    [[nodiscard]] bool running() const {
      return run_state == RunState::kOpening || run_state == RunState::kOpen;
    }
    [[nodiscard]] bool primary() const { return offer.sub_channel_index == 0; }
  };

  // Where to answer a guest that has no connection, or lost it.
  struct Peer {
    Version version;
    std::uint32_t target_vp;
  };

  // --- server_connection.cc
  void deliver();
  void perform(const Send& event);
  void perform(const Open& event) { events_.open_channel(event.relid, event.request); }
  void perform(const Close& event) { events_.close_channel(event.relid); }
  void perform(const Retarget& event) { events_.retarget_channel(event.relid, event.vp); }
  void perform(const Release& event) { events_.release_gpadl(event.gpadl->relid, event.gpadl); }
  void perform(const OfferGone& event);
  void perform(const ConnectionEnded& /*event*/) { events_.connection_ended(); }
  template <WireStruct T>
  void send(std::uint32_t vp, const T& message) {
    const std::span<const std::byte> bytes = wire_bytes(message);
    static_assert(sizeof message <= kMessagePayloadBytesMax);
    queue_.emplace_back(Send{vp, {bytes.begin(), bytes.end()}});
  }
  // To the connected guest; nothing where the connection is ending, since none of its answers are due any
  // more.
  template <WireStruct T>
  void tell(const T& message) {
    if (connected()) send(target_vp_, message);
  }
  void drop_queued_messages();
  [[nodiscard]] bool connected() const {
    return phase_ == Phase::kConnected || phase_ == Phase::kOffersRequested;
  }
  void contact(const ContactRequest& request);
  void connect(const ContactRequest& request, const ContactOutcome& outcome);
  void unload();
  void disconnect();
  void advance_connection();

  // --- server_channels.cc
  [[nodiscard]] Channel* find_channel(Relid relid);
  [[nodiscard]] Channel* find_told(Relid relid);
  [[nodiscard]] Channel* find_primary(const Channel& sub_channel);
  [[nodiscard]] bool offered_already(const Offer& offer) const;
  [[nodiscard]] std::optional<Relid> free_relid() const;
  [[nodiscard]] std::optional<std::uint8_t> free_monitor_id() const;
  [[nodiscard]] static bool same_device(const Offer& a, const Offer& b);
  void send_offer(Channel& channel);
  [[nodiscard]] Status check_open(const Channel& channel, const OpenChannel& message);
  [[nodiscard]] bool may_start(const Channel& channel) const;
  [[nodiscard]] bool target_vp_valid(std::uint32_t vp) const;
  void start(Channel& channel);
  void stop(Channel& channel);
  void withdraw(Channel& channel);
  void revoke(Channel& channel);
  void retire(Channel& channel);
  void advance(Channel& channel);
  void answer_open(Channel& channel, Status status);
  void cancel_queued_open(Channel& channel);
  void retarget(Channel& channel, std::uint32_t vp);
  void answer_modify(Relid relid, Status status);

  // --- server_gpadls.cc
  void answer_gpadl(Relid relid, GpadlId id, const Result<bool>& complete);
  void release_wanted(Relid relid);

  ServerEvents& events_;
  LogScope& log_;
  const std::uint32_t vp_count_;

  Phase phase_ = Phase::kDisconnected;
  ContactRequest contacted_{};  // the next five: of the connection
  Version version_ = Version::kNone;
  std::uint32_t target_vp_ = 0;
  std::uint64_t interrupt_page_ = 0;
  std::uint64_t monitor_page_ = 0;
  std::optional<Peer> last_peer_;                // of the newest connection since reset()
  std::optional<ContactRequest> contact_after_;  // when disconnected: the INITIATE_CONTACT to answer,
  bool unload_after_ = false;                    // then the UNLOAD

  std::map<Relid, Channel> channels_;
  std::uint64_t next_ordinal_ = 0;
  GpadlTable gpadls_;

  std::deque<Event> queue_;
  bool delivering_ = false;
};

}  // namespace vmbusd::vmbus
