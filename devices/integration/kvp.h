// Key-value exchange: what the guest's daemon tells of the guest, and short texts both ways.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "devices/integration/component.h"

namespace vmbusd::integration {

// Asks for all that the guest has in two pools, an entry a message, again and again; what the operator wants
// written goes between. hv_utils answers nothing, not even the negotiation, before hv_kvp_daemon has come.
// [linux: hv_kvp.c, hv_kvp_onchannelcallback]
class Kvp final : public Component {
 public:
  static constexpr std::chrono::seconds kInterval{8};  // from the end of one round to the next
  static constexpr std::chrono::seconds kAnswerTime{10};
  static constexpr std::uint32_t kEntriesMax = 64;  // of a pool; a guest may have more, which nobody sees
  // Bytes of UTF-8 that fit the guest's own buffers, too. [linux: HV_KVP_EXCHANGE_MAX_KEY_SIZE]
  static constexpr std::size_t kKeyBytesMax = 255;
  static constexpr std::size_t kValueBytesMax = 1023;
  static constexpr std::array<Version, 2> kVersions = {{{3, 0}, {4, 0}}};
  static const Kind kKind;

  Kvp(StatusBoard& board, LogScope&) : board_(board) {}

  // Has the guest keep a value for a key of the pool that is the host's, or forget the key. One at a time.
  void write(const std::string& key, const std::optional<std::string>& value, TimePoint now, Done done);

  void ready(Version version, TimePoint now) override;
  void tick(TimePoint now) override;
  [[nodiscard]] std::span<const std::byte> next(TimePoint now) override;
  void answered(std::uint32_t status, std::span<const std::byte> body, TimePoint now) override;
  [[nodiscard]] TimePoint due() const override;
  void closed() override;

 private:
  enum class Write : std::uint8_t { kNone, kWaits, kAsked };

  void entry_answered(std::uint32_t status, std::span<const std::byte> body, TimePoint now);
  void pool_ends(TimePoint now);
  void finish(std::string problem);

  StatusBoard& board_;
  bool ready_ = false;

  KvpEnumerateBody entry_{};  // that is asked for
  TimePoint next_ = kNever;   // when to begin a round; kNever: one is under way
  std::vector<KeyValue> gathered_;

  std::array<std::byte, sizeof(KvpEnumerateBody)> writing_{};
  Write write_ = Write::kNone;
  Done done_;  // of the write, until it is told
  TimePoint answer_by_ = kNever;
};

}  // namespace vmbusd::integration
