#include "guest/bus_client.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/assert.h"

namespace vmbusd::guest {

using vmbus::Status;
using vmbus::Version;

Result<void> BusClient::contact(Version version, const ContactOptions& options) {
  if (monitor_pages_.gpns().empty()) {
    VMBUSD_TRY(monitor_pages_, child_.ram().take(3));
  }
  const std::uint64_t interrupt_page = monitor_pages_.gpa(2);
  vmbus::InitiateContact message;
  message.version = version;
  message.target_vp = options.target_vp;
  message.parent_to_child_monitor_gpa = monitor_pages_.gpa(0);
  message.child_to_parent_monitor_gpa = monitor_pages_.gpa(1);
  if (version < Version::k5_0) {
    message.target = std::bit_cast<vmbus::InitiateTarget>(interrupt_page);
    message_connection_ = vmbus::kMessageConnectionBelow5;
  } else {
    message.target.sint = vmbus::kMessageSint;
    if (version >= Version::k6_0) message.target.feature_flags = options.feature_flags;
    message_connection_ = vmbus::kMessageConnectionFrom5;
  }
  message_vp_ = version >= Version::k3_0 ? options.target_vp : 0;
  version_ = Version::kNone;
  kept_.clear();
  VMBUSD_CHECK(post(message));

  VMBUSD_TRY(const Bytes bytes, take([](const Bytes& candidate) {
               return type_of(candidate) == vmbus::MessageType::kVersionResponse;
             }));
  vmbus::VersionResponse response;
  if (!read_wire(std::span<const std::byte>(bytes), response)) {
    return fail(Errc::kBadMessage, "VERSION_RESPONSE is too short");
  }
  if (response.version_supported == 0 || response.connection_state != vmbus::ConnectionState::kOk) {
    return fail(Errc::kUnsupported, "the host does not take this version");
  }
  if (version >= Version::k5_0) message_connection_ = response.version_or_connection_id;
  vmbus::VersionResponseWithFeatures features;
  feature_flags_ = read_wire(std::span<const std::byte>(bytes), features) ? features.feature_flags : 0;
  if (version < Version::k2_4) child_.vp(0).use_interrupt_page(interrupt_page);
  version_ = version;
  return {};
}

Result<Version> BusClient::negotiate(std::span<const Version> versions) {
  for (const Version version : versions) {
    const Result<void> outcome = contact(version);
    if (outcome) return version;
    if (outcome.error().code != Errc::kUnsupported) return tl::unexpected(outcome.error());
  }
  return fail(Errc::kUnsupported, "the host takes none of the versions");
}

Result<std::vector<vmbus::OfferChannel>> BusClient::request_offers() {
  VMBUSD_CHECK(post(vmbus::RequestOffers{}));
  std::vector<vmbus::OfferChannel> offers;
  for (;;) {
    VMBUSD_TRY(const Bytes bytes, take([](const Bytes& candidate) {
                 return type_of(candidate) == vmbus::MessageType::kOfferChannel ||
                        type_of(candidate) == vmbus::MessageType::kAllOffersDelivered;
               }));
    if (type_of(bytes) == vmbus::MessageType::kAllOffersDelivered) return offers;
    if (!read_wire(std::span<const std::byte>(bytes), offers.emplace_back())) {
      return fail(Errc::kBadMessage, "OFFERCHANNEL is too short");
    }
  }
}

Result<vmbus::OfferChannel> BusClient::wait_offer() {
  return expect<vmbus::OfferChannel>([](const vmbus::OfferChannel&) { return true; });
}

Result<std::uint32_t> BusClient::wait_rescind() {
  VMBUSD_TRY(const vmbus::RescindChannelOffer rescind,
             expect<vmbus::RescindChannelOffer>([](const vmbus::RescindChannelOffer&) { return true; }));
  return rescind.relid;
}

Result<void> BusClient::release_relid(std::uint32_t relid) {
  vmbus::RelidReleased message;
  message.relid = relid;
  return post(message);
}

Result<std::uint32_t> BusClient::create_gpadl(std::uint32_t relid, std::span<const Gpn> pages) {
  // The range buffer, as values of 8 bytes: one range header, then the page numbers.
  const vmbus::GpaRangeHeader range = {.byte_count = static_cast<std::uint32_t>(pages.size() * kPageSize),
                                       .byte_offset = 0};
  std::vector<std::uint64_t> values = {std::bit_cast<std::uint64_t>(range)};
  values.insert(values.end(), pages.begin(), pages.end());

  vmbus::GpadlHeader header;
  header.relid = relid;
  header.gpadl = next_gpadl_++;
  header.range_buflen = static_cast<std::uint16_t>(values.size() * sizeof(std::uint64_t));
  header.rangecount = 1;
  VMBUSD_ASSERT(header.range_buflen / sizeof(std::uint64_t) == values.size());
  vmbus::GpadlBody body;
  body.gpadl = header.gpadl;

  std::span<const std::uint64_t> left(values);
  const auto post_part = [&](std::span<const std::byte> fixed, std::size_t values_max) {
    const std::span<const std::uint64_t> part = left.first(std::min(values_max, left.size()));
    left = left.subspan(part.size());
    Bytes message(fixed.begin(), fixed.end());
    const std::span<const std::byte> bytes = std::as_bytes(part);
    message.insert(message.end(), bytes.begin(), bytes.end());
    return post(std::span<const std::byte>(message));
  };
  VMBUSD_CHECK(post_part(wire_bytes(header), vmbus::kGpadlHeaderValuesMax));
  while (!left.empty()) {
    VMBUSD_CHECK(post_part(wire_bytes(body), vmbus::kGpadlBodyValuesMax));
    ++body.msgnumber;
  }
  VMBUSD_TRY(const vmbus::GpadlCreated created,
             expect<vmbus::GpadlCreated>([&](const vmbus::GpadlCreated& answer) {
               return answer.relid == relid && answer.gpadl == header.gpadl;
             }));
  if (created.status != Status::kSuccess) return fail(Errc::kBadGpadl, "the host refuses the GPADL");
  return header.gpadl;
}

Result<void> BusClient::teardown_gpadl(std::uint32_t relid, std::uint32_t gpadl) {
  vmbus::GpadlTeardown message;
  message.relid = relid;
  message.gpadl = gpadl;
  VMBUSD_CHECK(post(message));
  VMBUSD_CHECK(expect<vmbus::GpadlTorndown>(
      [&](const vmbus::GpadlTorndown& answer) { return answer.gpadl == gpadl; }));
  return {};
}

Result<Status> BusClient::open_channel(const OpenParameters& parameters) {
  vmbus::OpenChannel message;
  message.relid = parameters.relid;
  message.openid = parameters.relid ^ 0x5a5a0000;  // any value: the host is to echo it
  message.ring_gpadl = parameters.gpadl;
  message.target_vp = parameters.target_vp;
  message.downstream_page_offset = parameters.to_host_pages;
  VMBUSD_CHECK(post(message));
  VMBUSD_TRY(const vmbus::OpenChannelResult result,
             expect<vmbus::OpenChannelResult>([&](const vmbus::OpenChannelResult& answer) {
               return answer.relid == message.relid && answer.openid == message.openid;
             }));
  return result.status;
}

Result<void> BusClient::close_channel(std::uint32_t relid) {
  vmbus::CloseChannel message;
  message.relid = relid;
  return post(message);
}

Result<Status> BusClient::modify_channel(std::uint32_t relid, std::uint32_t target_vp) {
  vmbus::ModifyChannel message;
  message.relid = relid;
  message.target_vp = target_vp;
  VMBUSD_CHECK(post(message));
  if (version_ < Version::k5_3) return Status::kSuccess;
  VMBUSD_TRY(const vmbus::ModifyChannelResponse response,
             expect<vmbus::ModifyChannelResponse>(
                 [&](const vmbus::ModifyChannelResponse& answer) { return answer.relid == relid; }));
  return response.status;
}

Result<void> BusClient::unload() {
  VMBUSD_CHECK(post(vmbus::Unload{}));
  VMBUSD_CHECK(expect<vmbus::UnloadResponse>([](const vmbus::UnloadResponse&) { return true; }));
  version_ = Version::kNone;
  kept_.clear();
  return {};
}

void BusClient::set_monitor_bit(std::uint8_t monitor_id) {
  constexpr std::uint32_t kGroupSize = vmbus::MonitorPage::kGroupSize;
  // seq_cst, as Linux's locked instruction: the host that finds the bit sees what was written into the ring.
  std::atomic_ref(monitor_page().triggers[monitor_id / kGroupSize].pending)
      .fetch_or(1u << monitor_id % kGroupSize, std::memory_order_seq_cst);
}

Result<void> BusClient::post(std::span<const std::byte> message) {
  return child_.post_message(message_connection_, message, message_vp_);
}

vmbus::MessageType BusClient::type_of(const Bytes& message) {
  vmbus::MessageHeader header;
  return read_wire(std::span<const std::byte>(message), header) ? header.type : vmbus::MessageType::kInvalid;
}

Result<BusClient::Bytes> BusClient::take(const std::function<bool(const Bytes&)>& wanted,
                                         std::chrono::milliseconds patience) {
  const auto kept = std::find_if(kept_.begin(), kept_.end(), wanted);
  if (kept != kept_.end()) {
    Bytes bytes = std::move(*kept);
    kept_.erase(kept);
    return bytes;
  }
  const Clock::time_point deadline = Clock::now() + patience;
  for (;;) {
    VMBUSD_TRY(VirtualProcessor::Message message, child_.take_message(message_vp_, deadline));
    if (wanted(message.payload)) return std::move(message.payload);
    if (kept_.size() == kMaxKept) return fail(Errc::kLimit, "the host sends messages that nobody expects");
    kept_.push_back(std::move(message.payload));
  }
}

}  // namespace vmbusd::guest
