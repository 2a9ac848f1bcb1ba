// Fuzz target of what one process leaves to the next of a server's state: whatever a byte was changed to, it
// is refused, or the server that comes of it can be used, saved and reset as any other.
//
// Input: how many changes of a server's saved state (1), then three bytes each: position (2), bits to be
// inverted (1).
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/log.h"
#include "fuzz/fuzz_target.h"
#include "vmbus/protocol.h"
#include "vmbus/server.h"

namespace vmbusd::vmbus {
namespace {

using fuzz::promise;

constexpr Relid kPrimary = 1;
constexpr Relid kSubChannel = 2;

Offer offer(std::uint16_t sub_channel_index) {
  Offer offer;
  offer.interface_type = kClassScsi;
  offer.sub_channel_index = sub_channel_index;
  return offer;
}

// Devices and a guest that answer at once.
class Partition final : public ServerEvents {
 public:
  template <WireStruct T>
  void post(const T& message, std::span<const std::uint64_t> values = {}) {
    std::vector<std::byte> bytes(sizeof message + values.size_bytes());
    const auto tail = std::as_bytes(values);
    std::copy_n(wire_bytes(message).begin(), sizeof message, bytes.begin());
    std::copy(tail.begin(), tail.end(), bytes.begin() + sizeof message);
    server.guest_message(kMessageConnectionFrom5, bytes);
  }
  void lend(Relid relid, GpadlId id) {
    constexpr std::array<std::uint64_t, 5> kValues = {4 * kPageBytes, 0x100, 0x101, 0x102, 0x103};
    post(GpadlHeader{.relid = relid, .gpadl = id, .range_buflen = sizeof kValues, .rangecount = 1}, kValues);
  }
  void open(Relid relid, GpadlId ring) {
    lend(relid, ring);
    post(OpenChannel{.relid = relid, .ring_gpadl = ring, .downstream_page_offset = 2});
  }

  bool send(std::uint32_t vp, std::span<const std::byte>) override {
    promise(vp < kVps, "messages go to VPs that are there");
    return true;
  }
  bool page_exists(Gpn page) const override { return page < 0x1000; }
  void open_channel(Relid relid, const OpenRequest& request) override {
    promise(request.ring != nullptr && request.ring->relid == relid, "a ring is the channel's own");
    promise(request.target_vp < kVps || request.target_vp == kNoInterruptVp, "interrupts go to VPs");
    server.open_done(relid, 0);
  }
  void close_channel(Relid relid) override { server.close_done(relid); }
  void retarget_channel(Relid relid, std::uint32_t) override { server.retarget_done(relid, 0); }
  void release_gpadl(Relid relid, const std::shared_ptr<const Gpadl>& gpadl) override {
    server.gpadl_released(relid, gpadl->id);
  }
  void offer_gone(Relid) override {}
  void connection_ended() override { ended = true; }

  static constexpr std::uint32_t kVps = 4;
  LogScope log{"fuzz"};
  Server server{*this, kVps, log};
  bool ended = false;
};

std::vector<std::byte> saved(const Server& server) {
  SerialWriter out;
  server.save(out);
  return {out.bytes().begin(), out.bytes().end()};
}

std::vector<std::byte> make_state() {
  Partition partition;
  promise(partition.server.offer(offer(0)) == kPrimary, "the first relid is 1");
  InitiateContact contact;
  contact.version = Version::k5_3;
  contact.target.sint = kMessageSint;
  partition.post(contact);
  partition.post(RequestOffers{});
  partition.open(kPrimary, 0x10);
  promise(partition.server.offer(offer(1)) == kSubChannel, "the second relid is 2");
  partition.open(kSubChannel, 0x11);
  partition.lend(kPrimary, 0x12);
  return saved(partition.server);
}

}  // namespace
}  // namespace vmbusd::vmbus

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmbusd;
  using namespace vmbusd::vmbus;
  static const std::vector<std::byte> state = make_state();
  std::vector<std::byte> bytes = state;
  fuzz::Input input({data, size});
  for (std::uint32_t changes = input.below(16); changes != 0; --changes) {
    const std::size_t position = (std::size_t{input.byte()} << 8 | input.byte()) % bytes.size();
    bytes[position] ^= std::byte{input.byte()};
  }

  Partition partition;
  Server& server = partition.server;
  SerialReader in(bytes);
  const auto offer_of = [](Relid relid) -> Result<Offer> {
    if (relid != kPrimary && relid != kSubChannel) return fail(Errc::kProtocol, "no such offer");
    return offer(relid == kPrimary ? 0 : 1);
  };
  const auto restore = [&]() -> Result<void> {
    VMBUSD_CHECK(server.restore(in, offer_of));
    VMBUSD_CHECK(server.reopen(kPrimary));
    return server.reopen(kSubChannel);
  };
  const bool restored = restore().has_value();
  fuzz::promise(restored || bytes != state, "what was saved can be restored");
  if (restored && in.at_end()) {
    fuzz::promise(server.settled(), "what was restored is settled");
    const std::vector<std::byte> again = saved(server);
    fuzz::promise(bytes != state || again == state, "what was restored is what was saved");
    partition.open(kPrimary, 0x30);
    partition.post(CloseChannel{.relid = kPrimary});
  }
  server.reset();
  fuzz::promise(partition.ended && server.idle(), "a server that was reset is idle");
  return 0;
}
