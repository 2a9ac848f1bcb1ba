#include "storvsp/vstor_session.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace vmbusd::storvsp {
namespace {

using vstor::Operation;
using vstor::Status;

constexpr std::array<std::uint16_t, 5> kVersions = {vstor::kVersion2008, vstor::kVersionWin7,
                                                    vstor::kVersionWin8, vstor::kVersionWin81,
                                                    vstor::kVersionWin10};

template <typename T>
T read_body(VstorSession::Body body) {
  T value;
  std::memcpy(&value, body.data(), sizeof value);
  return value;
}

template <typename T>
void write_body(VstorSession::Body body, const T& value) {
  static_assert(sizeof(vstor::PacketHeader) + sizeof value <= vstor::kPacketSizeBeforeWin8);
  std::memcpy(body.data(), &value, sizeof value);
}

void clear(VstorSession::Body body) {
  std::fill(body.begin(), body.end(), std::byte{});
}

}  // namespace

VstorSession::Outcome VstorSession::receive(vstor::PacketHeader& header, Body body,
                                            std::size_t payload_size) {
  // Before a version is agreed on the answer has the request's size: a guest of the old kind knows no other.
  const std::size_t size = version_ != 0                        ? packet_size()
                           : payload_size >= vstor::kPacketSize ? vstor::kPacketSize
                                                                : vstor::kPacketSizeBeforeWin8;
  Outcome outcome{Next::kAnswer, size};
  Status status = Status::kInvalidParameter;
  if (payload_size < size) {
    clear(body);
  } else {
    switch (header.operation) {
      case Operation::kExecuteSrb:
        if (ready()) return {Next::kExecute, size};
        clear(body);
        status = Status::kInvalidDeviceState;
        break;
      case Operation::kResetLun:
      case Operation::kResetAdapter:
      case Operation::kResetBus:
        if (ready()) return {Next::kReset, size};
        clear(body);
        status = Status::kInvalidDeviceState;
        break;
      default:
        status = control(header.operation, body, outcome.sub_channels_granted);
        break;
    }
  }
  header = {Operation::kCompleteIo, 0, status};
  return outcome;
}

Result<void> VstorSession::restore(const SessionRecord& record) {
  const bool agreed = std::find(kVersions.begin(), kVersions.end(), record.version) != kVersions.end();
  const bool possible = sub_channel_ ? record.version == version_ && State{record.state} == State::kReady
                                     : record.state <= static_cast<std::uint8_t>(State::kReady) &&
                                           agreed == (State{record.state} > State::kVersion);
  if (!possible || (!agreed && record.version != 0)) {
    return fail(Errc::kProtocol, "a VSTOR session that cannot be");
  }
  version_ = record.version;
  state_ = State{record.state};
  sub_channels_created_ = record.sub_channels_created != 0;
  return {};
}

// Leaves the answer's body in `body`.
Status VstorSession::control(Operation operation, Body body, std::uint16_t& sub_channels_granted) {
  const auto step = [&](State from, State to) {
    clear(body);
    if (state_ != from) return Status::kInvalidDeviceState;
    state_ = to;
    return Status::kSuccess;
  };
  switch (operation) {
    case Operation::kBeginInitialization:
      return step(State::kBegin, State::kVersion);
    case Operation::kQueryProtocolVersion:
      return query_version(body);
    case Operation::kQueryProperties:
      return query_properties(body);
    case Operation::kEndInitialization:
      return step(State::kEnd, State::kReady);
    case Operation::kCreateSubChannels:
      return create_sub_channels(body, sub_channels_granted);
    default:
      // Operations of the host, of Fibre Channel, and what newer guests may know.
      clear(body);
      return Status::kInvalidDeviceRequest;
  }
}

// The answer repeats the version, refused or not.
Status VstorSession::query_version(Body body) {
  const std::uint16_t asked = read_body<vstor::ProtocolVersion>(body).major_minor;
  clear(body);
  write_body(body, vstor::ProtocolVersion{asked, 0});
  if (state_ != State::kVersion) return Status::kInvalidDeviceState;
  if (std::find(kVersions.begin(), kVersions.end(), asked) == kVersions.end())
    return Status::kRevisionMismatch;
  version_ = asked;
  state_ = State::kProperties;
  return Status::kSuccess;
}

// A guest may ask again at any later time.
Status VstorSession::query_properties(Body body) {
  clear(body);
  if (state_ < State::kProperties || sub_channel_) return Status::kInvalidDeviceState;
  if (state_ == State::kProperties) state_ = State::kEnd;
  vstor::ChannelProperties properties{};
  properties.max_transfer_bytes = limits_.max_transfer_bytes;
  if (version_ >= vstor::kVersionWin8 && limits_.max_sub_channels != 0) {
    properties.max_channel_count = limits_.max_sub_channels;
    properties.flags = vstor::kPropertyMultiChannel;
  }
  write_body(body, properties);
  return Status::kSuccess;
}

// Linux asks after END_INITIALIZATION, Windows perhaps before.
Status VstorSession::create_sub_channels(Body body, std::uint16_t& granted) {
  const std::uint16_t count = read_body<vstor::SubChannelRequest>(body).count;
  clear(body);
  if (sub_channel_ || state_ < State::kEnd) return Status::kInvalidDeviceState;
  if (version_ < vstor::kVersionWin8 || count == 0 || count > limits_.max_sub_channels ||
      sub_channels_created_) {
    return Status::kInvalidParameter;
  }
  sub_channels_created_ = true;
  granted = count;
  return Status::kSuccess;
}

}  // namespace vmbusd::storvsp
