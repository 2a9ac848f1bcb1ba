// The objects (OIDs) that a guest's driver queries and sets: one table, no I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "base/wire.h"
#include "netvsp/nic_state.h"
#include "netvsp/rndis.h"

namespace vmbusd::netvsp {

// The longest answer: kGenFriendlyName.
inline constexpr std::size_t kOidAnswerMax = kFriendlyNameSize;

// An answer under construction. What exceeds its room is cut off, which the table's tests rule out.
class OidAnswer {
 public:
  explicit OidAnswer(std::span<std::byte> out) : out_(out) {}

  void bytes(std::span<const std::byte> data) {
    const std::size_t size = data.size() < out_.size() - size_ ? data.size() : out_.size() - size_;
    if (size != 0) std::memcpy(out_.data() + size_, data.data(), size);
    size_ += size;
  }
  void u16(std::uint16_t value) { bytes(wire_bytes(value)); }
  void u32(std::uint32_t value) { bytes(wire_bytes(value)); }
  void u64(std::uint64_t value) { bytes(wire_bytes(value)); }

  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  std::span<std::byte> out_;
  std::size_t size_ = 0;
};

// What a set changed, for the channel to act on.
inline constexpr std::uint32_t kFilterChanged = 1u << 0;
inline constexpr std::uint32_t kOffloadsChanged = 1u << 1;
inline constexpr std::uint32_t kRssChanged = 1u << 2;
inline constexpr std::uint32_t kMacChanged = 1u << 3;

// `input`: the request's information buffer, a private copy. `totals` is asked for when a counter is wanted.
class CounterSource {
 public:
  [[nodiscard]] virtual QueueCounters totals() const = 0;

 protected:
  ~CounterSource() = default;
};

[[nodiscard]] RndisStatus query_oid(const NicState& state, const CounterSource& counters, std::uint32_t oid,
                                    std::span<const std::byte> input, OidAnswer& answer);
// Adds k*Changed bits to `changes`. Where it fails, nothing is changed.
[[nodiscard]] RndisStatus set_oid(NicState& state, std::uint32_t oid, std::span<const std::byte> input,
                                  std::uint32_t& changes);

// The NDIS_OFFLOAD that says `offloads`, cut to the revision that fits into `size_limit` bytes; its
// header.size is the length to send. `size_limit` is at least kNdisOffloadSize1.
[[nodiscard]] NdisOffload make_offload_object(std::uint32_t offloads, std::uint32_t size_limit);
// The NDIS_OFFLOAD length that drivers of this NVSP version know.
[[nodiscard]] std::uint32_t offload_size_of(NvspVersion version);

}  // namespace vmbusd::netvsp
