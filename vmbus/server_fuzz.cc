// Fuzz target of the VMBus server: the input is a list of actions of a guest that lies, a host that offers
// and rescinds, and devices that answer in any order. Around the server stands a model of what each of them
// may see; a server that breaks a promise aborts.
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/log.h"
#include "fuzz/fuzz_target.h"
#include "vmbus/protocol.h"
#include "vmbus/server.h"

namespace vmbusd::vmbus {
namespace {

using fuzz::Input;
using fuzz::promise;

constexpr std::uint32_t kVpCount = 3;
constexpr Gpn kGuestPages = 0x1000;
// Small, so that the limits are within a short input's reach.
constexpr ServerLimits kLimits{.gpadls = 8, .gpadls_in_progress = 3, .gpadl_pages = 400};
constexpr std::array kVersions = {Version::k5_3, Version::k6_0, Version::k5_0, Version::k4_1,
                                  Version::k4_0, Version::k2_4, Version::k1_1, Version::k0_13};

Offer scsi(std::uint32_t index) {
  Offer offer;
  offer.interface_type = kClassScsi;
  offer.instance.bytes[0] = static_cast<std::uint8_t>(1 + index);
  offer.monitored = index != 1;
  return offer;
}

using GpadlKey = std::pair<Relid, GpadlId>;

class World final : public ServerEvents {
 public:
  void run(Input input);

  // ServerEvents: what the devices and the VMM see.
  bool send(std::uint32_t vp, std::span<const std::byte> message) override;
  bool page_exists(Gpn page) const override { return page < kGuestPages; }
  void open_channel(Relid relid, const OpenRequest& request) override;
  void close_channel(Relid relid) override;
  void retarget_channel(Relid relid, std::uint32_t vp) override;
  void release_gpadl(Relid relid, const std::shared_ptr<const Gpadl>& gpadl) override;
  void offer_gone(Relid relid) override;
  void connection_ended() override;

 private:
  enum class Run : std::uint8_t { kOpening, kOpen, kClosing };
  struct DeviceChannel {
    Run run;
    GpadlId ring;
    bool retargeting = false;
  };
  struct OfferModel {
    Offer offer;
    bool revoked = false;  // by the host
  };
  // An event that a device has not answered.
  struct Unanswered {
    enum class Kind : std::uint8_t { kOpen, kClose, kRetarget, kRelease } kind;
    Relid relid;
    GpadlId gpadl;
  };
  // What the guest waits for; forgotten when its connection ends.
  struct GuestModel {
    bool connected = false;
    bool offers_requested = false;
    bool offers_wanted = false;                            // ALLOFFERS_DELIVERED is owed
    std::map<Relid, Guid> told;                            // primaries by instance; sub-channels have none
    std::map<Relid, std::uint8_t> monitors;                // ids of those that have one
    std::uint64_t monitor_page = 0;                        // by which it signals
    std::set<Relid> rescinded;                             // and not released
    std::multiset<std::pair<Relid, std::uint32_t>> opens;  // OPENCHANNELs (relid, openid)
    std::multiset<GpadlKey> headers;
    std::multiset<GpadlId> teardowns;
    std::multiset<Relid> modifies;
    std::uint32_t tl_connects = 0;
    // Answers that must have come when all devices have answered.
    std::set<std::pair<Relid, std::uint32_t>> open_results_owed;
    std::set<GpadlKey> torndowns_owed;
  };

  void act(Input& input);
  void act_rarely(Input& input);
  void post(std::uint32_t connection_id, std::span<const std::byte> message);
  template <WireStruct T>
  void post(const T& message) {
    post(kMessageConnectionFrom5, wire_bytes(message));
  }
  void expect(std::span<const std::byte> message);  // updates the model for a message that the guest posts
  void initiate(Input& input);
  void post_gpadl(Input& input, bool whole);
  void post_open(Input& input);
  void post_raw(Input& input);
  void offer(const Offer& offer);
  void answer(std::size_t index, std::uint32_t status);
  void answer_all();
  void start_connected();
  void start_open();
  void check_quiet() const;
  [[nodiscard]] bool all_returned() const { return channels_.empty() && lent_.empty() && releasing_.empty(); }

  std::map<Relid, OfferModel> offers_;
  std::map<Relid, DeviceChannel> channels_;
  std::set<GpadlKey> lent_;       // the guest was told that they exist, and they have not been released
  std::set<GpadlKey> releasing_;  // of these, asked of the device
  std::vector<Unanswered> unanswered_;
  bool prompt_ = false;  // devices answer inside the event
  std::uint32_t sends_refused_ = 0;

  GuestModel guest_;
  bool version_owed_ = false;               // an INITIATE_CONTACT is unanswered; outlives connections
  bool unload_owed_ = false;                // the same of UNLOAD
  std::uint64_t contact_monitor_page_ = 0;  // of the latest INITIATE_CONTACT
  std::uint32_t closes_reserved_ = 0;
  std::uint32_t last_openid_ = 0;

  LogScope log_{"fuzz"};
  Server server_{*this, kVpCount, log_, kLimits};
};

template <WireStruct T>
T read(std::span<const std::byte> bytes) {
  T value;
  promise(read_wire(bytes, value), "messages to the guest are full-size");
  return value;
}

// --- What the server says ---

bool World::send(std::uint32_t vp, std::span<const std::byte> message) {
  promise(vp < kVpCount, "messages go to VPs that exist");
  promise(message.size() <= kMessagePayloadBytesMax, "messages fit their slot");
  if (sends_refused_ != 0) {
    --sends_refused_;
    // A GPADL exists, even though the guest will not know.
    GpadlCreated created{.header = read<MessageHeader>(message)};
    if (read_wire(message, created) && created.header.type == MessageType::kGpadlCreated &&
        created.status == Status::kSuccess) {
      lent_.insert({created.relid, created.gpadl});
    }
    guest_ = {};
    const MessageType type = created.header.type;
    if (type == MessageType::kVersionResponse) version_owed_ = unload_owed_ = false;
    if (type == MessageType::kUnloadResponse) unload_owed_ = false;
    return false;
  }
  const auto take = [](auto& waiting, const auto& key, const char* text) {
    const auto found = waiting.find(key);
    promise(found != waiting.end(), text);
    waiting.erase(found);
  };
  const std::uint32_t version = server_.version();
  switch (read<MessageHeader>(message).type) {
    case MessageType::kVersionResponse: {
      promise(version_owed_, "VERSION_RESPONSE answers INITIATE_CONTACT");
      promise(all_returned(), "a new connection starts when nothing is left of the old one");
      version_owed_ = false;
      guest_ = {};
      guest_.connected = read<VersionResponse>(message).version_supported != 0;
      guest_.monitor_page = contact_monitor_page_;
      promise(!guest_.connected ||
                  (guest_.monitor_page % kPageBytes == 0 && page_exists(guest_.monitor_page / kPageBytes)),
              "monitor pages lie in guest memory");
      break;
    }
    case MessageType::kOfferChannel: {
      const auto offer = read<OfferChannel>(message);
      promise(guest_.offers_requested, "offers come when asked for");
      promise(offer.relid >= 1 && offer.relid <= kMaxChannels, "relids have an event flag");
      promise(offers_.contains(offer.relid), "what is offered exists");
      if (offer.sub_channel_index == 0) {
        for (const auto& [relid, instance] : guest_.told) {
          promise(instance != offer.instance, "a device is offered once");
        }
      }
      promise((offer.monitor_flags == kMonitorAllocated) == (offer.monitor_id != kNoMonitor),
              "a monitor id says whether it is one");
      promise((offer.monitor_id != kNoMonitor) ==
                  (offers_.at(offer.relid).offer.monitored && guest_.monitor_page != 0),
              "what is monitored has a monitor id, where the guest has a page");
      if (offer.monitor_id != kNoMonitor) {
        promise(offer.monitor_id < kMonitorIds, "monitor ids have a bit");
        for (const auto& [relid, id] : guest_.monitors) promise(id != offer.monitor_id, "each has its bit");
        guest_.monitors[offer.relid] = offer.monitor_id;
      }
      const Guid identity = offer.sub_channel_index == 0 ? offer.instance : Guid{};
      promise(guest_.told.emplace(offer.relid, identity).second, "a relid is offered once");
      break;
    }
    case MessageType::kAllOffersDelivered:
      promise(std::exchange(guest_.offers_wanted, false), "ALLOFFERS_DELIVERED answers REQUESTOFFERS");
      break;
    case MessageType::kRescindChannelOffer: {
      const Relid relid = read<RescindChannelOffer>(message).relid;
      promise(guest_.told.contains(relid), "what is rescinded was offered");
      promise(guest_.rescinded.insert(relid).second, "an offer is rescinded once");
      const auto channel = channels_.find(relid);
      promise(channel == channels_.end() || channel->second.run != Run::kClosing,
              "a channel that closes is rescinded when it has closed");
      break;
    }
    case MessageType::kOpenChannelResult: {
      const auto result = read<OpenChannelResult>(message);
      const std::pair key{result.relid, result.openid};
      take(guest_.opens, key, "OPENCHANNEL_RESULT answers OPENCHANNEL");
      guest_.open_results_owed.erase(key);
      const auto channel = channels_.find(result.relid);
      promise(result.status != Status::kSuccess ||
                  (channel != channels_.end() && channel->second.run == Run::kOpen),
              "a channel that is said to be open is open");
      break;
    }
    case MessageType::kGpadlCreated: {
      const auto created = read<GpadlCreated>(message);
      const GpadlKey key{created.relid, created.gpadl};
      take(guest_.headers, key, "GPADL_CREATED answers GPADL_HEADER");
      if (created.status != Status::kSuccess) break;
      promise(guest_.told.contains(created.relid), "GPADLs belong to offers");
      promise(lent_.insert(key).second, "a handle is in use once per channel");
      promise(lent_.size() <= kLimits.gpadls, "GPADLs are bounded");
      const auto gpadl = server_.find_gpadl(created.relid, created.gpadl);
      promise(gpadl != nullptr && !gpadl->ranges.empty(), "a GPADL that exists is found");
      for (const Gpadl::Range& range : gpadl->ranges) {
        promise(range.byte_count != 0 && range.byte_offset < kPageBytes, "ranges are sane");
        promise(range.pages.size() ==
                    (std::uint64_t{range.byte_offset} + range.byte_count + kPageBytes - 1) / kPageBytes,
                "ranges have as many pages as they take");
        for (const Gpn page : range.pages) promise(page_exists(page), "GPADLs lie in guest memory");
      }
      break;
    }
    case MessageType::kGpadlTorndown: {
      const GpadlId id = read<GpadlTorndown>(message).gpadl;
      take(guest_.teardowns, id, "GPADL_TORNDOWN answers GPADL_TEARDOWN");
      for (const GpadlKey& key : guest_.torndowns_owed) {
        if (key.second != id || lent_.contains(key)) continue;
        guest_.torndowns_owed.erase(key);
        break;
      }
      break;
    }
    case MessageType::kUnloadResponse:
      promise(std::exchange(unload_owed_, false), "UNLOAD_RESPONSE answers UNLOAD");
      promise(all_returned(), "an unloaded guest has all its memory back");
      guest_ = {};
      break;
    case MessageType::kModifyChannelResponse:
      promise(version >= 0x00050003, "MODIFYCHANNEL_RESPONSE came with 5.3");
      take(guest_.modifies, read<ModifyChannelResponse>(message).relid,
           "MODIFYCHANNEL_RESPONSE answers MODIFYCHANNEL");
      break;
    case MessageType::kTlConnectResult:
      promise(version >= 0x00040001, "TL_CONNECT_RESULT came with 4.1");
      promise(guest_.tl_connects-- != 0, "TL_CONNECT_RESULT answers TL_CONNECT_REQUEST");
      break;
    case MessageType::kCloseReservedResponse:
      promise(closes_reserved_-- != 0, "CLOSE_RESERVED_RESPONSE answers CLOSE_RESERVED_CHANNEL");
      break;
    default:
      promise(false, "the host sends what a host may send");
  }
  return true;
}

void World::open_channel(Relid relid, const OpenRequest& request) {
  promise(offers_.contains(relid), "what opens is offered");
  promise(!channels_.contains(relid), "a channel opens when it is closed");
  promise(request.ring != nullptr && request.ring->relid == relid, "a ring is the channel's own");
  const GpadlKey ring{relid, request.ring->id};
  promise(lent_.contains(ring) && !releasing_.contains(ring), "a ring is lent");
  promise(request.ring->ranges.size() == 1 && request.ring->ranges[0].byte_offset == 0, "rings are pages");
  const std::size_t pages = request.ring->ranges[0].pages.size();
  promise(request.incoming_pages >= 2 && request.incoming_pages + 2ULL <= pages, "rings have data pages");
  promise(request.target_vp < kVpCount || request.target_vp == kNoInterruptVp, "interrupts go to VPs");
  promise(request.event_flag == relid && request.connection_id == (0x2000 | relid),
          "signals are the relid's");
  const auto monitor = guest_.monitors.find(relid);
  if (!guest_.told.contains(relid)) {
    // Its connection broke while this was queued; a close follows.
  } else if (monitor == guest_.monitors.end()) {
    promise(request.monitor_page == 0, "a guest signals by the bit that it was told");
  } else {
    promise(request.monitor_page == guest_.monitor_page && request.monitor_id == monitor->second,
            "a device looks where the guest signals");
    promise(server_.holds_pages(request.monitor_page / kPageBytes, 1), "the monitor page stays");
  }
  const Offer& offer = offers_.at(relid).offer;
  bool primary_open = false;
  for (const auto& [other_relid, channel] : channels_) {
    const Offer& other = offers_.at(other_relid).offer;
    if (other.instance != offer.instance) continue;
    promise(offer.sub_channel_index != 0, "a primary opens when its sub-channels are closed");
    if (other.sub_channel_index == 0) primary_open = channel.run == Run::kOpen;
  }
  promise(offer.sub_channel_index == 0 || primary_open, "a sub-channel opens while its primary is open");
  channels_[relid] = {Run::kOpening, request.ring->id};
  unanswered_.push_back({Unanswered::Kind::kOpen, relid, 0});
  if (prompt_) answer(unanswered_.size() - 1, 0);
}

void World::close_channel(Relid relid) {
  const auto channel = channels_.find(relid);
  promise(channel != channels_.end() && channel->second.run != Run::kClosing, "what closes was open");
  channel->second.run = Run::kClosing;
  unanswered_.push_back({Unanswered::Kind::kClose, relid, 0});
  if (prompt_) answer(unanswered_.size() - 1, 0);
}

void World::retarget_channel(Relid relid, std::uint32_t vp) {
  const auto channel = channels_.find(relid);
  promise(channel != channels_.end() && channel->second.run == Run::kOpen, "what is retargeted is open");
  promise(!std::exchange(channel->second.retargeting, true), "one retarget at a time");
  promise(vp < kVpCount || vp == kNoInterruptVp, "interrupts go to VPs");
  unanswered_.push_back({Unanswered::Kind::kRetarget, relid, 0});
  if (prompt_) answer(unanswered_.size() - 1, 0);
}

void World::release_gpadl(Relid relid, const std::shared_ptr<const Gpadl>& gpadl) {
  const GpadlKey key{relid, gpadl->id};
  promise(lent_.contains(key), "what is released was lent");
  promise(releasing_.insert(key).second, "a GPADL is released once");
  const auto channel = channels_.find(relid);
  promise(channel == channels_.end() || channel->second.run != Run::kClosing,
          "a closing channel closes first");
  promise(channel == channels_.end() || channel->second.ring != gpadl->id, "a ring outlives its channel");
  unanswered_.push_back({Unanswered::Kind::kRelease, relid, gpadl->id});
  if (prompt_) answer(unanswered_.size() - 1, 0);
}

void World::offer_gone(Relid relid) {
  const auto offer = offers_.find(relid);
  promise(offer != offers_.end(), "what goes was offered");
  promise(offer->second.revoked || offer->second.offer.sub_channel_index != 0, "primaries go when revoked");
  promise(!channels_.contains(relid), "what goes is closed");
  for (const GpadlKey& key : lent_) promise(key.first != relid, "what goes has no GPADLs");
  offers_.erase(offer);
  guest_.told.erase(relid);
  guest_.monitors.erase(relid);
  guest_.rescinded.erase(relid);
}

void World::connection_ended() {
  promise(all_returned(), "a connection ends when all is closed and released");
  promise(unanswered_.empty(), "nothing is asked of devices after the end");
  for (const auto& [relid, model] : offers_) {
    promise(model.offer.sub_channel_index == 0 && !model.revoked, "only live primaries outlast a connection");
  }
}

// --- What devices answer ---

void World::answer(std::size_t index, std::uint32_t status) {
  const Unanswered event = unanswered_[index];
  unanswered_.erase(unanswered_.begin() + static_cast<std::ptrdiff_t>(index));
  switch (event.kind) {
    case Unanswered::Kind::kOpen: {
      DeviceChannel& channel = channels_.at(event.relid);
      if (channel.run == Run::kOpening) {  // else it crosses a close
        if (status == 0) {
          channel.run = Run::kOpen;
        } else {
          channels_.erase(event.relid);
        }
      }
      server_.open_done(event.relid, status);
      break;
    }
    case Unanswered::Kind::kClose:
      channels_.erase(event.relid);
      // It answers what else was asked of the channel.
      std::erase_if(unanswered_, [&event](const Unanswered& other) {
        return other.relid == event.relid && other.kind != Unanswered::Kind::kRelease;
      });
      server_.close_done(event.relid);
      break;
    case Unanswered::Kind::kRetarget:
      channels_.at(event.relid).retargeting = false;
      server_.retarget_done(event.relid, status);
      break;
    case Unanswered::Kind::kRelease: {
      const GpadlKey key{event.relid, event.gpadl};
      lent_.erase(key);
      releasing_.erase(key);
      server_.gpadl_released(event.relid, event.gpadl);
      break;
    }
  }
}

void World::answer_all() {
  while (!unanswered_.empty()) answer(0, 0);
}

// --- What the guest posts ---

void World::expect(std::span<const std::byte> message) {
  MessageHeader header;
  if (message.size() > kMessagePayloadBytesMax || !read_wire(message, header)) return;
  switch (header.type) {
    case MessageType::kInitiateContact: {
      InitiateContact contact;
      if (!read_wire(message, contact)) return;
      contact_monitor_page_ = contact.child_to_parent_monitor_gpa;
      guest_ = {};
      version_owed_ = true;
      unload_owed_ = false;
      break;
    }
    case MessageType::kUnload:
      // An unload behind a contact that waits does not forget the contact.
      guest_ = {};
      unload_owed_ = true;
      break;
    case MessageType::kRequestOffers:
      if (!guest_.connected || guest_.offers_requested) return;
      guest_.offers_requested = guest_.offers_wanted = true;
      break;
    case MessageType::kOpenChannel: {
      OpenChannel open;
      if (!read_wire(message, open)) return;
      if (!guest_.offers_requested) return;
      guest_.opens.emplace(open.relid, open.openid);
      const auto offer = offers_.find(open.relid);
      const bool revoked =
          offer != offers_.end() && (offer->second.revoked || offer->second.offer.sub_channel_index != 0);
      if (!revoked) guest_.open_results_owed.emplace(open.relid, open.openid);
      break;
    }
    case MessageType::kGpadlHeader: {
      GpadlHeader gpadl;
      if (guest_.offers_requested && read_wire(message, gpadl))
        guest_.headers.emplace(gpadl.relid, gpadl.gpadl);
      break;
    }
    case MessageType::kGpadlTeardown: {
      GpadlTeardown teardown;
      if (!guest_.offers_requested || !read_wire(message, teardown)) return;
      const GpadlKey key{teardown.relid, teardown.gpadl};
      if (guest_.told.contains(key.first) && lent_.contains(key) && !releasing_.contains(key)) {
        guest_.torndowns_owed.insert(key);
      }
      guest_.teardowns.insert(teardown.gpadl);
      break;
    }
    case MessageType::kRelidReleased: {
      RelidReleased released;
      if (!read_wire(message, released)) return;
      if (guest_.rescinded.erase(released.relid) == 0) return;
      guest_.told.erase(released.relid);
      guest_.monitors.erase(released.relid);
      break;
    }
    case MessageType::kModifyChannel: {
      ModifyChannel modify;
      if (guest_.offers_requested && read_wire(message, modify)) guest_.modifies.insert(modify.relid);
      break;
    }
    case MessageType::kTlConnectRequest:
      ++guest_.tl_connects;
      break;
    case MessageType::kCloseReservedChannel:
      ++closes_reserved_;
      break;
    default:
      break;
  }
}

void World::post(std::uint32_t connection_id, std::span<const std::byte> message) {
  expect(message);
  server_.guest_message(connection_id, message);
}

void World::initiate(Input& input) {
  InitiateContact contact;
  contact.version = kVersions[input.below(kVersions.size())];
  contact.target_vp = input.below(kVpCount + 1);
  const std::uint8_t lie = input.byte();
  if (contact.version >= Version::k5_0) {
    contact.target.sint = lie == 1 ? 3 : kMessageSint;
    contact.target.vtl = lie == 2 ? 1 : 0;
    contact.target.feature_flags = lie;
  }
  if (lie == 3 || (lie & 0x10) != 0) contact.parent_to_child_monitor_gpa = 0x1000;
  if ((lie & 0x10) != 0) {
    contact.child_to_parent_monitor_gpa = (lie & 0x20) != 0 ? kGuestPages * kPageBytes : 0x2000;
  }
  const bool low = (contact.version < Version::k5_0) != (lie == 4);
  post(low ? kMessageConnectionBelow5 : kMessageConnectionFrom5, wire_bytes(contact));
}

void World::post_gpadl(Input& input, bool whole) {
  GpadlHeader header;
  header.relid = input.below(6);
  header.gpadl = input.below(4);
  const std::uint32_t pages = 1 + input.below(70);
  const std::uint8_t lie = input.byte();
  std::vector<std::uint64_t> values = {
      std::bit_cast<std::uint64_t>(GpaRangeHeader{lie == 1 ? 0 : pages * kPageBytes, lie == 2   ? 0x1000U
                                                                                     : lie == 3 ? 7U
                                                                                                : 0U})};
  for (std::uint32_t i = 0; i < pages; ++i) values.push_back(lie == 4 ? kGuestPages : 0x10 + i);
  header.rangecount = lie == 5 ? 2 : 1;
  header.range_buflen = static_cast<std::uint16_t>(values.size() * 8 + (lie == 6 ? 4 : 0));

  const auto bytes_with = [](std::span<const std::byte> fixed, std::span<const std::uint64_t> rest) {
    std::vector<std::byte> bytes(fixed.begin(), fixed.end());
    const auto more = std::as_bytes(rest);
    bytes.insert(bytes.end(), more.begin(), more.end());
    return bytes;
  };
  const std::size_t first = std::min(values.size(), kGpadlHeaderValuesMax);
  post(kMessageConnectionFrom5, bytes_with(wire_bytes(header), std::span(values).first(first)));
  if (!whole) return;
  for (std::size_t at = first; at < values.size(); at += kGpadlBodyValuesMax) {
    const std::size_t count = std::min(values.size() - at, kGpadlBodyValuesMax);
    post(kMessageConnectionFrom5,
         bytes_with(wire_bytes(GpadlBody{.gpadl = header.gpadl}), std::span(values).subspan(at, count)));
  }
}

void World::post_open(Input& input) {
  OpenChannel open;
  open.relid = input.below(6);
  open.openid = ++last_openid_;
  open.ring_gpadl = input.below(4);
  const std::uint8_t details = input.byte();
  open.downstream_page_offset = details % 4 == 3 ? details : 2;
  open.target_vp = details / 4 % 8 == 7 ? kNoInterruptVp : details / 4 % 8 == 6 ? kVpCount : 0;
  post(open);
}

void World::post_raw(Input& input) {
  std::vector<std::byte> bytes(input.byte());
  const auto type = static_cast<std::uint32_t>(input.byte() % 32);
  for (std::size_t i = 8; i < bytes.size() && !input.empty() && i < 40; ++i) {
    bytes[i] = static_cast<std::byte>(input.byte());
  }
  if (bytes.size() >= sizeof type) std::memcpy(bytes.data(), &type, sizeof type);
  post(input.below(2) == 0 ? kMessageConnectionBelow5 : kMessageConnectionFrom5, bytes);
}

// --- What the host does ---

void World::offer(const Offer& offer) {
  // Known to the model before the guest is told of it: relids are handed out lowest first.
  Relid relid = 1;
  while (offers_.contains(relid)) ++relid;
  offers_[relid] = {offer};
  const Result<Relid> result = server_.offer(offer);
  if (!result) {
    offers_.erase(relid);
    return;
  }
  promise(*result == relid, "relids are handed out lowest first");
}

// What ends a connection is rare, so that the rest gets somewhere.
void World::act(Input& input) {
  switch (input.below(16)) {
    case 0:
    case 1:
      post_gpadl(input, true);
      break;
    case 2:
    case 3:
      post_open(input);
      break;
    case 4:
      post(CloseChannel{.relid = input.below(6)});
      break;
    case 5:
      post(GpadlTeardown{.relid = input.below(6), .gpadl = input.below(4)});
      break;
    case 6:
      post(ModifyChannel{.relid = input.below(6), .target_vp = input.below(kVpCount + 1)});
      break;
    case 7:
      post(RelidReleased{.relid = input.below(6)});
      break;
    case 8:
    case 9: {
      Offer device = scsi(input.below(3));
      device.sub_channel_index = static_cast<std::uint16_t>(input.below(4));
      offer(device);
      break;
    }
    case 10:
    case 11:
    case 12:
      if (!unanswered_.empty()) {
        const std::size_t index = input.byte() % unanswered_.size();
        answer(index, input.below(6) == 0 ? 0xc0000001 : 0);
      }
      break;
    case 13:
      answer_all();
      check_quiet();
      break;
    default:
      act_rarely(input);
  }
}

void World::act_rarely(Input& input) {
  switch (input.below(16)) {
    case 0:
      initiate(input);
      break;
    case 1:
    case 2:
      post(RequestOffers{});
      break;
    case 3:
      post(Unload{});
      break;
    case 4:
      guest_ = {};
      version_owed_ = unload_owed_ = false;
      server_.reset();
      break;
    case 5:
      sends_refused_ = 1;
      break;
    case 6:
      prompt_ = !prompt_;
      break;
    case 7:
      post(TlConnectRequest{});
      break;
    case 8:
      post(CloseReservedChannel{.relid = 1, .target_vp = input.below(4), .target_sint = 2});
      break;
    case 9:
    case 10: {
      const Relid relid = 1 + input.below(5);
      const auto model = offers_.find(relid);
      if (model == offers_.end()) break;
      // Guests that hold on to a channel are not waited for without end.
      if (model->second.revoked) {
        server_.close_rescinded(relid);
        break;
      }
      model->second.revoked = true;  // with it go its sub-channels: the model lets those go at any time
      server_.rescind(relid);
      break;
    }
    case 11:
      post_gpadl(input, false);
      break;
    case 12:
    case 13: {
      const std::uint64_t value = input.below(3) == 0 ? kGuestPages : 0x20;
      std::array<std::byte, sizeof(GpadlBody) + sizeof value> bytes{};
      const GpadlBody body{.gpadl = input.below(4)};
      std::memcpy(bytes.data(), &body, sizeof body);
      std::memcpy(bytes.data() + sizeof body, &value, sizeof value);
      post(kMessageConnectionFrom5, bytes);
      break;
    }
    default:
      post_raw(input);
  }
}

// Every device has answered all: the guest must have its answers, too.
void World::check_quiet() const {
  promise(guest_.open_results_owed.empty(), "every OPENCHANNEL is answered");
  promise(guest_.torndowns_owed.empty(), "every GPADL_TEARDOWN is answered");
  promise(!version_owed_, "every INITIATE_CONTACT is answered");
}

// Starts closer to where most of it happens: two devices are offered and known to the guest,
void World::start_connected() {
  for (std::uint32_t device = 0; device < 2; ++device) offer(scsi(device));
  post(InitiateContact{.version = Version::k5_3,
                       .target = {.sint = kMessageSint},
                       .parent_to_child_monitor_gpa = 0x1000,
                       .child_to_parent_monitor_gpa = 0x2000});
  post(RequestOffers{});
}

// and the first is open with a sub-channel.
void World::start_open() {
  const auto open = [this](Relid relid) {
    const std::vector<std::uint8_t> ring = {static_cast<std::uint8_t>(relid), 0, 3};
    Input ring_input(ring);
    post_gpadl(ring_input, true);
    post(OpenChannel{.relid = relid, .openid = ++last_openid_, .downstream_page_offset = 2});
    answer_all();
  };
  open(1);
  Offer sub_channel = scsi(0);
  sub_channel.sub_channel_index = 1;
  offer(sub_channel);
  open(3);
}

void World::run(Input input) {
  const std::uint32_t start = input.below(3);
  if (start > 0) start_connected();
  if (start > 1) start_open();
  while (!input.empty()) act(input);
  sends_refused_ = 0;
  answer_all();
  check_quiet();
  guest_ = {};
  version_owed_ = unload_owed_ = false;
  server_.reset();
  answer_all();
  promise(server_.idle(), "a reset ends");
  promise(all_returned(), "a reset returns everything");
}

}  // namespace
}  // namespace vmbusd::vmbus

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const bool quiet = (vmbusd::log_init(vmbusd::LogLevel::kError), true);
  (void)quiet;
  // What matters happens early; longer inputs only cost time.
  vmbusd::vmbus::World().run(vmbusd::vmbus::Input({data, std::min<std::size_t>(size, 4096)}));
  return 0;
}
