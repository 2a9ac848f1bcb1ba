#include "devices/integration/session.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace vmbusd::integration {

namespace {

// Both that Linux knows; versions of Windows from 8 on take the newer. [linux: hv_util.c, fw_versions]
constexpr std::array<Version, 2> kFrameworks = {{{1, 0}, {3, 0}}};
constexpr std::size_t kVersionsMax = 8;  // of a component's messages

}  // namespace

std::span<const std::byte> Session::compose(MessageType type, std::span<const std::byte> body) {
  VMBUSD_ASSERT(!outstanding_ && !body.empty() && body.size() <= kBodyBytesMax);
  outstanding_ = true;
  const PipeHeader pipe = {kPipeData, static_cast<std::uint32_t>(sizeof(MessageHeader) + body.size())};
  MessageHeader header{};
  header.framework = framework_;
  header.type = type;
  header.message = version_;
  header.body_size = static_cast<std::uint16_t>(body.size());
  header.transaction_id = ++transaction_id_;
  header.flags = kFlagTransaction | kFlagRequest;
  std::memcpy(message_.data(), &pipe, sizeof pipe);
  std::memcpy(message_.data() + sizeof pipe, &header, sizeof header);
  std::memcpy(message_.data() + kHeaderBytes, body.data(), body.size());
  return std::span(message_).first(kHeaderBytes + body.size());
}

std::span<const std::byte> Session::negotiate() {
  VMBUSD_ASSERT(state_ == State::kNew && versions_.size() <= kVersionsMax);
  state_ = State::kNegotiating;
  std::array<std::byte, sizeof(NegotiateBody) + (kFrameworks.size() + kVersionsMax) * sizeof(Version)> body{};
  const NegotiateBody counts = {static_cast<std::uint16_t>(kFrameworks.size()),
                                static_cast<std::uint16_t>(versions_.size()), 0};
  std::byte* at = body.data();
  std::memcpy(at, &counts, sizeof counts);
  at += sizeof counts;
  std::memcpy(at, kFrameworks.data(), sizeof kFrameworks);
  at += sizeof kFrameworks;
  std::memcpy(at, versions_.data(), versions_.size_bytes());
  at += versions_.size_bytes();
  return compose(MessageType::kNegotiate, {body.data(), at});
}

std::span<const std::byte> Session::request(std::span<const std::byte> body) {
  VMBUSD_ASSERT(state_ == State::kReady);
  return compose(type_, body);
}

Result<std::optional<Session::Answer>> Session::receive(std::span<const std::byte> message) {
  VMBUSD_ASSERT(message.size() <= kMessageBytesMax);
  PipeHeader pipe{};
  MessageHeader header{};
  if (!read_wire(message, pipe) || !read_wire(message.subspan(sizeof pipe), header)) {
    return fail(Errc::kBadMessage, "shorter than its headers");
  }
  const MessageType asked = state_ == State::kNegotiating ? MessageType::kNegotiate : type_;
  const bool answers = outstanding_ && pipe.type == kPipeData && (header.flags & kFlagResponse) != 0 &&
                       header.type == asked && header.transaction_id == transaction_id_;
  if (!answers) return fail(Errc::kBadMessage, "answers nothing that was asked");
  outstanding_ = false;
  std::span<const std::byte> body = message.subspan(kHeaderBytes);
  body = body.first(std::min<std::size_t>(body.size(), header.body_size));
  if (state_ == State::kNegotiating) {
    take_versions(body);
    return std::optional<Answer>();
  }
  return Answer{header.status, body};
}

// Counts of zero say that nothing suits.
void Session::take_versions(std::span<const std::byte> body) {
  state_ = State::kRefused;
  NegotiateBody counts{};
  std::array<Version, 2> chosen{};
  if (!read_wire(body, counts) || counts.framework_count != 1 || counts.message_count != 1 ||
      !read_wire(body.subspan(sizeof counts), chosen)) {
    return;
  }
  const auto offered = [](std::span<const Version> list, Version version) {
    return std::find(list.begin(), list.end(), version) != list.end();
  };
  if (!offered(kFrameworks, chosen[0]) || !offered(versions_, chosen[1])) return;
  framework_ = chosen[0];
  version_ = chosen[1];
  state_ = State::kReady;
}

}  // namespace vmbusd::integration
