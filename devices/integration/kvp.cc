#include "devices/integration/kvp.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "devices/integration/utf16.h"
#include "vmbus/protocol.h"

namespace vmbusd::integration {

const Kind Kvp::kKind = {Part::kKvp,        "kvp",
                         vmbus::kClassKvp,  Guid::literal("242ff919-07db-4180-9c2e-b86cb68c8c55"),
                         MessageType::kKvp, kVersions};

void Kvp::write(const std::string& key, const std::optional<std::string>& value, TimePoint now, Done done) {
  if (!ready_) return done("no daemon for keys is running in the guest; Linux's is hv_kvp_daemon");
  if (write_ != Write::kNone) return done("the guest is being asked already");
  bool fits = !key.empty() && key.size() <= kKeyBytesMax;
  if (value) {
    KvpSetBody body{};
    body.header = {KvpOperation::kSet, KvpPool::kExternal, 0};
    body.entry.type = kKvpString;
    const auto key_size = write_field(key, body.entry.key);
    const auto value_size = write_field(*value, body.entry.value);
    fits = fits && key_size && value_size && value->size() <= kValueBytesMax;
    body.entry.key_size = key_size.value_or(0);
    body.entry.value_size = value_size.value_or(0);
    std::memcpy(writing_.data(), &body, sizeof body);
  } else {
    KvpDeleteBody body{};
    body.header = {KvpOperation::kDelete, KvpPool::kExternal, 0};
    const auto key_size = write_field(key, body.key);
    fits = fits && key_size;
    body.key_size = key_size.value_or(0);
    std::memcpy(writing_.data(), &body, sizeof body);
  }
  if (!fits) return done("the key or the value is not text of the size that a guest takes");
  write_ = Write::kWaits;
  done_ = std::move(done);
  answer_by_ = now + kAnswerTime;
}

void Kvp::ready(Version, TimePoint now) {
  ready_ = true;
  next_ = now;
}

void Kvp::tick(TimePoint now) {
  if (!done_ || now < answer_by_) return;
  if (write_ == Write::kWaits) write_ = Write::kNone;
  finish(fmt::format("the guest does not answer within {} s", kAnswerTime.count()));
}

std::span<const std::byte> Kvp::next(TimePoint now) {
  if (write_ == Write::kWaits) {
    write_ = Write::kAsked;
    return writing_;
  }
  if (next_ != kNever) {
    if (now < next_) return {};
    next_ = kNever;
    entry_ = {};
    entry_.header.pool = KvpPool::kAuto;
    gathered_.clear();
  }
  entry_.header.operation = KvpOperation::kEnumerate;
  return wire_bytes(entry_);
}

void Kvp::answered(std::uint32_t status, std::span<const std::byte> body, TimePoint now) {
  if (write_ == Write::kAsked) {
    write_ = Write::kNone;
    finish(status == kStatusOk ? "" : fmt::format("the guest refuses, status {:#x}", status));
    return;
  }
  entry_answered(status, body, now);
}

// Whatever is no entry ends the pool: that there are no more, or that the daemon has gone.
void Kvp::entry_answered(std::uint32_t status, std::span<const std::byte> body, TimePoint now) {
  KvpEnumerateBody answer{};
  if (status != kStatusOk || !read_wire(body, answer)) return pool_ends(now);
  KeyValue entry;
  entry.key = text_of_field(answer.entry.key, answer.entry.key_size);
  entry.value = text_of_field(answer.entry.value, answer.entry.value_size);
  gathered_.push_back(std::move(entry));
  if (++entry_.index == kEntriesMax) pool_ends(now);
}

void Kvp::pool_ends(TimePoint now) {
  const bool facts = entry_.header.pool == KvpPool::kAuto;
  board_.change([&](Status& status) { (facts ? status.facts : status.keys).swap(gathered_); });
  gathered_.clear();
  entry_.index = 0;
  if (facts) {
    entry_.header.pool = KvpPool::kGuest;
  } else {
    next_ = now + kInterval;
  }
}

TimePoint Kvp::due() const {
  return std::min(next_, done_ ? answer_by_ : kNever);
}

void Kvp::closed() {
  board_.change([](Status& status) {
    status.facts.clear();
    status.keys.clear();
  });
  finish("the guest closed its channel for keys");
}

void Kvp::finish(std::string problem) {
  if (done_) std::exchange(done_, nullptr)(std::move(problem));
}

}  // namespace vmbusd::integration
