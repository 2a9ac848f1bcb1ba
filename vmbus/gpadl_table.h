// The GPADLs of one connection: assembles them from HEADER and BODY messages, bounds them, and knows which
// the guest has taken back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/serial.h"
#include "vmbus/protocol.h"
#include "vmbus/server.h"

namespace vmbusd::vmbus {

// Control thread only. Life of an entry:
//
//   begin --> assembling --append--> live --want_release--> wanted --take_wanted--> releasing --erase
//                 |                    |
//                 +-- erase (torn down, or malformed)
class GpadlTable {
 public:
  enum class State : std::uint8_t {
    kAssembling,  // bodies are missing
    kLive,        // the guest was told that it exists
    kWanted,      // to be released when its channel allows
    kReleasing,   // the device was asked to let go
  };

  // `page_exists` tells whether a GPN lies in guest memory.
  GpadlTable(const ServerLimits& limits, std::function<bool(Gpn)> page_exists)
      : limits_(limits), page_exists_(std::move(page_exists)) {}

  // Starts a GPADL; `values` is what followed the fixed part of the message. True where it is complete, and
  // so live. Errc::kBadGpadl where it is malformed or outside guest memory, kWrongState where the handle is
  // in use, kLimit beyond the limits; nothing is kept of it then.
  [[nodiscard]] Result<bool> begin(const GpadlHeader& header, std::span<const std::byte> values);
  // The channel of the GPADL that is being assembled under this handle: bodies do not name it.
  [[nodiscard]] std::optional<Relid> assembling(GpadlId id) const;
  // Continues one that is being assembled, as begin().
  [[nodiscard]] Result<bool> append(GpadlId id, std::span<const std::byte> values);

  [[nodiscard]] std::optional<State> state(Relid relid, GpadlId id) const;
  // The GPADL where it is live, else nothing.
  [[nodiscard]] std::shared_ptr<const Gpadl> live(Relid relid, GpadlId id) const;
  // All live ones of a channel.
  [[nodiscard]] std::vector<std::shared_ptr<const Gpadl>> live(Relid relid) const;

  // A live one is taken back; `answer` says whether TORNDOWN is owed.
  void want_release(Relid relid, GpadlId id, bool answer);
  // The guest leaves the channel: those being assembled go, live ones are wanted back without an answer.
  void abandon(Relid relid);
  // Moves a channel's wanted ones to releasing and returns them.
  [[nodiscard]] std::vector<std::shared_ptr<const Gpadl>> take_wanted(Relid relid);
  // Forgets one that is being assembled or released; returns whether TORNDOWN is owed.
  bool erase(Relid relid, GpadlId id);

  // Whether a page in [first, first + count) belongs to a GPADL that is not forgotten.
  [[nodiscard]] bool holds(Gpn first, std::uint64_t count) const;
  [[nodiscard]] bool any(Relid relid) const;
  [[nodiscard]] bool empty() const { return entries_.empty(); }
  [[nodiscard]] std::size_t size() const { return entries_.size(); }

  // Whether all are live: neither being assembled nor on their way back.
  [[nodiscard]] bool settled() const;
  // All, which are live.
  void save(SerialWriter& out) const;
  // The next one that save() wrote, checked as one that comes from the guest. `has` tells whether a channel
  // may have one.
  [[nodiscard]] Result<void> restore(SerialReader& in, const std::function<bool(Relid)>& has);

 private:
  struct Key {
    Relid relid;
    GpadlId id;
    friend constexpr auto operator<=>(const Key&, const Key&) = default;
  };
  struct Entry {
    State state = State::kAssembling;
    bool answer = false;
    std::uint16_t range_count = 0;
    std::size_t values_expected = 0;
    std::vector<std::uint64_t> values;   // so far, while assembling
    std::shared_ptr<const Gpadl> gpadl;  // from then on
    std::uint64_t pages_charged = 0;     // against limits_.gpadl_pages
  };
  using Entries = std::map<Key, Entry>;

  [[nodiscard]] Result<bool> add_values(Entries::iterator entry, std::span<const std::byte> bytes);
  Entries::iterator erase(Entries::iterator entry);
  [[nodiscard]] Entries::iterator first_of(Relid relid) { return entries_.lower_bound(Key{relid, 0}); }

  ServerLimits limits_;
  std::function<bool(Gpn)> page_exists_;
  Entries entries_;
  std::map<GpadlId, Relid> assembling_;  // handles are unique connection-wide while assembling
  std::uint64_t pages_charged_ = 0;
};

// Parses a whole range buffer into `range_count` ranges, each page checked; values after the last range are
// ignored. Errc::kBadGpadl otherwise.
[[nodiscard]] Result<std::vector<Gpadl::Range>> parse_ranges(std::span<const std::uint64_t> values,
                                                             std::uint32_t range_count,
                                                             const std::function<bool(Gpn)>& page_exists);

}  // namespace vmbusd::vmbus
