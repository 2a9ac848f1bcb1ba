// A guest's answers to the integration components' questions, as hv_utils makes them.
#pragma once

#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "devices/integration/session.h"

namespace vmbusd::integration {

using Bytes = std::vector<std::byte>;

template <WireStruct T>
T& at(Bytes& message, std::size_t offset) {
  // Messages come from vectors, whose storage suits any of these.
  return *reinterpret_cast<T*>(message.data() + offset);
}
inline MessageHeader& header_of(Bytes& message) {
  return at<MessageHeader>(message, sizeof(PipeHeader));
}

inline Bytes copied(std::span<const std::byte> message) {
  return {message.begin(), message.end()};
}

// The question with the flags of an answer.
inline Bytes echoed(std::span<const std::byte> question, std::uint32_t status = kStatusOk) {
  Bytes answer = copied(question);
  header_of(answer).flags = kFlagTransaction | kFlagResponse;
  header_of(answer).status = status;
  return answer;
}

// [linux: vmbus_prep_negotiate_resp]
inline Bytes chosen(std::span<const std::byte> question, Version framework, Version message) {
  Bytes answer = echoed(question);
  header_of(answer).body_size = 0x10;
  at<NegotiateBody>(answer, kHeaderBytes) = {1, 1, 0};
  at<Version>(answer, kHeaderBytes + sizeof(NegotiateBody)) = framework;
  at<Version>(answer, kHeaderBytes + sizeof(NegotiateBody) + sizeof(Version)) = message;
  return answer;
}

}  // namespace vmbusd::integration
