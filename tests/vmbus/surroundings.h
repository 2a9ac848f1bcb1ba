// A guest, a VMM and devices around a vmbus::Server, for tests: everything the server says is noted in order,
// and answered at once or when the test says so.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/log.h"
#include "vmbus/protocol.h"
#include "vmbus/server.h"

namespace vmbusd::vmbus {

using Bytes = std::vector<std::byte>;

inline Bytes bytes_of(std::span<const std::byte> span) {
  return {span.begin(), span.end()};
}

// "0e 00 ..." as the reference prints its examples.
inline Bytes hex(std::string_view text) {
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  Bytes bytes;
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] == ' ' || text[i] == '\n') continue;
    bytes.push_back(static_cast<std::byte>(digit(text[i]) << 4 | digit(text[i + 1])));
    ++i;
  }
  return bytes;
}

template <WireStruct T>
Bytes message(const T& value) {
  return bytes_of(wire_bytes(value));
}

// A message as one line: "OPENCHANNEL_RESULT 1 7 0x0".
std::string describe_message(std::span<const std::byte> bytes);

inline constexpr std::uint32_t kVpCount = 4;
inline constexpr Gpn kGuestPages = 0x10000;  // 256 MiB of guest memory, from GPA 0

class Surroundings : public ServerEvents {
 public:
  explicit Surroundings(const ServerLimits& limits = {}) : server(*this, kVpCount, log, limits) {}
  virtual ~Surroundings() = default;

  // What happened since the last call, in order: messages as describe_message() has them, with "@VP " before
  // where the VP is not 0, and events as "open 1", "close 1", "retarget 1 3", "release 1 0x10", "gone 1",
  // "ended".
  std::vector<std::string> take() { return std::exchange(seen, {}); }

  // --- The guest ---
  void post(std::span<const std::byte> bytes) { server.guest_message(message_connection, bytes); }
  template <WireStruct T>
  void post(const T& value) {
    post(wire_bytes(value));
  }
  // Also switches message_connection to what the version demands.
  void initiate(Version version, std::uint32_t target_vp = 0) {
    InitiateContact contact;
    contact.version = version;
    contact.target_vp = target_vp;
    if (version >= Version::k5_0) contact.target.sint = kMessageSint;
    message_connection = version >= Version::k5_0 ? kMessageConnectionFrom5 : kMessageConnectionBelow5;
    post(contact);
  }
  // INITIATE_CONTACT and REQUESTOFFERS; forgets what was seen.
  void connect(Version version = Version::k5_3) {
    initiate(version);
    post(RequestOffers{});
    take();
  }
  // One range of `pages` consecutive pages, in as many messages as it takes.
  void post_gpadl(Relid relid, GpadlId id, std::uint32_t pages, Gpn first = 0x1000) {
    std::vector<std::uint64_t> values = {
        std::bit_cast<std::uint64_t>(GpaRangeHeader{.byte_count = pages * kPageBytes})};
    for (std::uint32_t i = 0; i < pages; ++i) values.push_back(first + i);
    post_gpadl_values(relid, id, 1, values);
  }
  void post_gpadl_values(Relid relid, GpadlId id, std::uint16_t ranges,
                         std::span<const std::uint64_t> values) {
    post_values(GpadlHeader{.relid = relid,
                            .gpadl = id,
                            .range_buflen = static_cast<std::uint16_t>(values.size() * 8),
                            .rangecount = ranges},
                values.first(std::min(values.size(), kGpadlHeaderValuesMax)));
    for (std::size_t at = kGpadlHeaderValuesMax; at < values.size(); at += kGpadlBodyValuesMax) {
      post_values(GpadlBody{.gpadl = id},
                  values.subspan(at, std::min(values.size() - at, kGpadlBodyValuesMax)));
    }
  }
  template <WireStruct T>
  void post_values(const T& fixed, std::span<const std::uint64_t> values) {
    Bytes bytes = bytes_of(wire_bytes(fixed));
    const auto rest = std::as_bytes(values);
    bytes.insert(bytes.end(), rest.begin(), rest.end());
    post(bytes);
  }
  // Pages 0..1 of the ring GPADL are the guest-to-host ring.
  void post_open(Relid relid, std::uint32_t openid, GpadlId ring, std::uint32_t target_vp = 0) {
    post(OpenChannel{.relid = relid,
                     .openid = openid,
                     .ring_gpadl = ring,
                     .target_vp = target_vp,
                     .downstream_page_offset = 2});
  }
  // A ring GPADL of four pages and OPENCHANNEL, openid 7; forgets what was seen.
  void open(Relid relid, GpadlId ring = 0x10) {
    post_gpadl(relid, ring, 4);
    post_open(relid, 7, ring);
    take();
  }

  // --- ServerEvents ---
  bool send(std::uint32_t vp, std::span<const std::byte> bytes) override {
    last_message = bytes_of(bytes);
    if (guest_queue_full) return false;
    seen.push_back((vp == 0 ? "" : fmt::format("@{} ", vp)) + describe_message(bytes));
    return true;
  }
  bool page_exists(Gpn page) const override { return page < kGuestPages; }
  void open_channel(Relid relid, const OpenRequest& request) override {
    seen.push_back(fmt::format("open {}", relid));
    last_open = request;
    if (prompt) server.open_done(relid, open_status);
  }
  void close_channel(Relid relid) override {
    seen.push_back(fmt::format("close {}", relid));
    if (prompt) server.close_done(relid);
  }
  void retarget_channel(Relid relid, std::uint32_t vp) override {
    seen.push_back(fmt::format("retarget {} {}", relid, vp));
    if (prompt) server.retarget_done(relid, 0);
  }
  void release_gpadl(Relid relid, const std::shared_ptr<const Gpadl>& gpadl) override {
    seen.push_back(fmt::format("release {} {:#x}", relid, gpadl->id));
    if (prompt) server.gpadl_released(relid, gpadl->id);
  }
  void offer_gone(Relid relid) override { seen.push_back(fmt::format("gone {}", relid)); }
  void connection_ended() override { seen.push_back("ended"); }

  std::uint32_t message_connection = kMessageConnectionFrom5;
  bool prompt = true;             // events are answered at once
  std::uint32_t open_status = 0;  // how
  bool guest_queue_full = false;
  std::vector<std::string> seen;
  Bytes last_message;
  OpenRequest last_open;
  LogScope log{"test"};
  Server server;
};

// Devices that tests offer; `index` makes the instance.
inline Offer scsi(std::uint8_t index = 0) {
  Offer offer;
  offer.interface_type = kClassScsi;
  offer.instance = Guid::literal("11223344-5566-7788-99aa-bbccddeeff00");
  offer.instance.bytes[15] = index;
  return offer;
}
inline Offer sub_channel(Offer offer, std::uint16_t index) {
  offer.sub_channel_index = index;
  return offer;
}

using Seen = std::vector<std::string>;

}  // namespace vmbusd::vmbus
