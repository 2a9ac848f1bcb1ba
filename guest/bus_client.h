// The guest's half of the VMBus channel protocol, as hv_vmbus has it.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/guid.h"
#include "base/result.h"
#include "guest/child_partition.h"
#include "vmbus/protocol.h"

namespace vmbusd::guest {

// Versions that vmbusd serves, newest first.
inline constexpr std::array kAllVersions = {vmbus::Version::k6_0, vmbus::Version::k5_3, vmbus::Version::k5_2,
                                            vmbus::Version::k5_1, vmbus::Version::k5_0, vmbus::Version::k4_1,
                                            vmbus::Version::k4_0, vmbus::Version::k3_0, vmbus::Version::k2_4,
                                            vmbus::Version::k1_1};

// Each request waits for its answer, at most kPatience (Errc::kOs with ETIMEDOUT then). Offers and rescinds
// that come meanwhile are kept. One thread.
class BusClient {
 public:
  explicit BusClient(ChildPartition& child) : child_(child) {}
  BusClient(const BusClient&) = delete;
  BusClient& operator=(const BusClient&) = delete;

  struct ContactOptions {
    std::uint32_t target_vp = 0;  // takes the host's messages
    std::uint32_t feature_flags = 0;
  };
  // INITIATE_CONTACT. Errc::kUnsupported where the host refuses the version.
  [[nodiscard]] Result<void> contact(vmbus::Version version, const ContactOptions& options);
  [[nodiscard]] Result<void> contact(vmbus::Version version) { return contact(version, {}); }
  // As hv_vmbus: from the newest of `versions` down to one that the host takes.
  [[nodiscard]] Result<vmbus::Version> negotiate(std::span<const vmbus::Version> versions = kAllVersions);
  [[nodiscard]] vmbus::Version version() const { return version_; }
  [[nodiscard]] std::uint32_t feature_flags() const { return feature_flags_; }

  // REQUESTOFFERS; what was offered until ALLOFFERS_DELIVERED.
  [[nodiscard]] Result<std::vector<vmbus::OfferChannel>> request_offers();
  // An offer that came later: hot-added, or a sub-channel.
  [[nodiscard]] Result<vmbus::OfferChannel> wait_offer();
  // The relid of an offer that the host took back.
  [[nodiscard]] Result<std::uint32_t> wait_rescind();
  [[nodiscard]] Result<void> release_relid(std::uint32_t relid);

  // One range over whole pages; the id is chosen here. A host that refuses is Errc::kBadGpadl.
  [[nodiscard]] Result<std::uint32_t> create_gpadl(std::uint32_t relid, std::span<const Gpn> pages);
  [[nodiscard]] Result<void> teardown_gpadl(std::uint32_t relid, std::uint32_t gpadl);

  struct OpenParameters {
    std::uint32_t relid = 0;
    std::uint32_t gpadl = 0;
    std::uint32_t to_host_pages = 0;  // of the guest-to-host ring, control page included
    std::uint32_t target_vp = 0;
  };
  // The status that the host answered.
  [[nodiscard]] Result<vmbus::Status> open_channel(const OpenParameters& parameters);
  // Has no answer.
  [[nodiscard]] Result<void> close_channel(std::uint32_t relid);
  // Waits for the answer where the version has one (5.3), else kSuccess.
  [[nodiscard]] Result<vmbus::Status> modify_channel(std::uint32_t relid, std::uint32_t target_vp);

  // UNLOAD and its answer: no connection from then on.
  [[nodiscard]] Result<void> unload();

  // Signals a monitored channel: sets its bit in the child-to-parent monitor page.
  void set_monitor_bit(std::uint8_t monitor_id);
  [[nodiscard]] vmbus::MonitorPage& monitor_page() const {
    return *reinterpret_cast<vmbus::MonitorPage*>(monitor_pages_.host(1));
  }

  // Posts a message as it is, to where this connection's version wants it. For tests that misbehave.
  [[nodiscard]] Result<void> post(std::span<const std::byte> message);
  template <WireStruct T>
  [[nodiscard]] Result<void> post(const T& message) {
    return post(wire_bytes(message));
  }
  // The next message of T's type for which `matches` holds; others of that type are kept.
  template <WireStruct T, typename Matches>
  [[nodiscard]] Result<T> expect(Matches matches, std::chrono::milliseconds patience = kPatience) {
    const vmbus::MessageType type = T{}.header.type;
    T message{};
    VMBUSD_CHECK(take(
        [&](const Bytes& bytes) {
          return type_of(bytes) == type && read_wire(std::span<const std::byte>(bytes), message) &&
                 matches(message);
        },
        patience));
    return message;
  }

  [[nodiscard]] ChildPartition& child() { return child_; }

 private:
  using Bytes = std::vector<std::byte>;

  static constexpr std::size_t kMaxKept = 8192;  // more than all offers of a full bus

  [[nodiscard]] static vmbus::MessageType type_of(const Bytes& message);
  // Takes the first message that `wanted` wants, from those kept, then from the host.
  [[nodiscard]] Result<Bytes> take(const std::function<bool(const Bytes&)>& wanted,
                                   std::chrono::milliseconds patience = kPatience);

  ChildPartition& child_;
  vmbus::Version version_ = vmbus::Version::kNone;
  std::uint32_t feature_flags_ = 0;
  std::uint32_t message_connection_ = vmbus::kMessageConnectionFrom5;
  std::uint32_t message_vp_ = 0;
  std::uint32_t next_gpadl_ = 0xe1e10;  // where Linux begins, too
  Pages monitor_pages_;                 // parent to child, child to parent, interrupt page
  std::deque<Bytes> kept_;              // came when something else was waited for
};

}  // namespace vmbusd::guest
