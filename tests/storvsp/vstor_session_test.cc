#include "storvsp/vstor_session.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "tests/catch.h"

namespace vmbusd::storvsp {
namespace {

using vstor::Operation;
using vstor::Status;
using Next = VstorSession::Next;

constexpr VstorLimits kLimits = {.max_transfer_bytes = 0x40000, .max_sub_channels = 3};

// One packet through a session, and what came of it.
struct Exchange {
  VstorSession::Outcome outcome;
  vstor::Packet packet;
};

Exchange send(VstorSession& session, Operation operation, std::vector<std::uint8_t> body = {},
              std::size_t size = vstor::kPacketSize) {
  Exchange exchange{};
  exchange.packet.header = {operation, vstor::kFlagCompletionRequested, Status::kSuccess};
  std::transform(body.begin(), body.end(), exchange.packet.body.begin(),
                 [](std::uint8_t byte) { return std::byte{byte}; });
  exchange.outcome = session.receive(exchange.packet.header, exchange.packet.body, size);
  return exchange;
}

std::vector<std::uint8_t> version_body(std::uint16_t version) {
  return {static_cast<std::uint8_t>(version), static_cast<std::uint8_t>(version >> 8), 1, 0};
}

std::vector<std::uint8_t> bytes_of(const vstor::Packet& packet) {
  std::vector<std::uint8_t> bytes(sizeof packet);
  std::memcpy(bytes.data(), &packet, sizeof packet);
  return bytes;
}

// Takes a session to the state that the steps name.
enum class Reached { kNothing, kBegun, kVersion, kProperties, kReady };

VstorSession session_at(Reached reached, std::uint16_t version = vstor::kVersionWin10,
                        const VstorLimits& limits = kLimits) {
  VstorSession session(limits);
  if (reached >= Reached::kBegun) (void)send(session, Operation::kBeginInitialization);
  if (reached >= Reached::kVersion)
    (void)send(session, Operation::kQueryProtocolVersion, version_body(version));
  if (reached >= Reached::kProperties) (void)send(session, Operation::kQueryProperties);
  if (reached >= Reached::kReady) (void)send(session, Operation::kEndInitialization);
  return session;
}

struct StateCase {
  const char* rule;
  Reached reached;
  Operation operation;
  Status status;
};
constexpr StateCase kStateCases[] = {
    {"begin starts", Reached::kNothing, Operation::kBeginInitialization, Status::kSuccess},
    {"version before begin", Reached::kNothing, Operation::kQueryProtocolVersion,
     Status::kInvalidDeviceState},
    {"properties before begin", Reached::kNothing, Operation::kQueryProperties, Status::kInvalidDeviceState},
    {"end before begin", Reached::kNothing, Operation::kEndInitialization, Status::kInvalidDeviceState},
    {"SRB before begin", Reached::kNothing, Operation::kExecuteSrb, Status::kInvalidDeviceState},
    {"bus reset before begin", Reached::kNothing, Operation::kResetBus, Status::kInvalidDeviceState},
    {"begin twice", Reached::kBegun, Operation::kBeginInitialization, Status::kInvalidDeviceState},
    {"properties before version", Reached::kBegun, Operation::kQueryProperties, Status::kInvalidDeviceState},
    {"end before version", Reached::kBegun, Operation::kEndInitialization, Status::kInvalidDeviceState},
    {"version twice", Reached::kVersion, Operation::kQueryProtocolVersion, Status::kInvalidDeviceState},
    {"properties after version", Reached::kVersion, Operation::kQueryProperties, Status::kSuccess},
    {"end before properties", Reached::kVersion, Operation::kEndInitialization, Status::kInvalidDeviceState},
    {"sub-channels before properties", Reached::kVersion, Operation::kCreateSubChannels,
     Status::kInvalidDeviceState},
    {"properties twice", Reached::kProperties, Operation::kQueryProperties, Status::kSuccess},
    {"SRB before end", Reached::kProperties, Operation::kExecuteSrb, Status::kInvalidDeviceState},
    {"LUN reset before end", Reached::kProperties, Operation::kResetLun, Status::kInvalidDeviceState},
    {"adapter reset before end", Reached::kProperties, Operation::kResetAdapter, Status::kInvalidDeviceState},
    {"end ends", Reached::kProperties, Operation::kEndInitialization, Status::kSuccess},
    {"begin again when ready", Reached::kReady, Operation::kBeginInitialization, Status::kInvalidDeviceState},
    {"version again when ready", Reached::kReady, Operation::kQueryProtocolVersion,
     Status::kInvalidDeviceState},
    {"properties when ready", Reached::kReady, Operation::kQueryProperties, Status::kSuccess},
    {"end twice", Reached::kReady, Operation::kEndInitialization, Status::kInvalidDeviceState},
    {"Fibre Channel data of a SCSI controller", Reached::kProperties, Operation::kFcHbaData,
     Status::kInvalidDeviceRequest},
    {"the host's own answer", Reached::kReady, Operation::kCompleteIo, Status::kInvalidDeviceRequest},
    {"the host's own remove", Reached::kReady, Operation::kRemoveDevice, Status::kInvalidDeviceRequest},
    {"the host's own enumerate", Reached::kReady, Operation::kEnumerateBus, Status::kInvalidDeviceRequest},
    {"event notification", Reached::kReady, Operation::kEventNotification, Status::kInvalidDeviceRequest},
    {"operation 0", Reached::kReady, static_cast<Operation>(0), Status::kInvalidDeviceRequest},
    {"operation 15", Reached::kReady, static_cast<Operation>(15), Status::kInvalidDeviceRequest},
    {"operation of all ones", Reached::kReady, static_cast<Operation>(~0u), Status::kInvalidDeviceRequest},
};

TEST_CASE("every operation has its states", "[storvsp]") {
  for (const StateCase& c : kStateCases) {
    DYNAMIC_SECTION(c.rule) {
      VstorSession session = session_at(c.reached);
      const Exchange exchange = send(session, c.operation, version_body(vstor::kVersionWin10));
      CHECK(exchange.outcome.next == Next::kAnswer);
      CHECK(exchange.outcome.answer_size == vstor::kPacketSize);
      CHECK(exchange.packet.header.operation == Operation::kCompleteIo);
      CHECK(exchange.packet.header.flags == 0);
      CHECK(exchange.packet.header.status == c.status);
    }
  }
}

TEST_CASE("a refused operation changes nothing", "[storvsp]") {
  for (const StateCase& c : kStateCases) {
    DYNAMIC_SECTION(c.rule) {
      VstorSession session = session_at(c.reached);
      const bool ready = session.ready();
      const std::uint16_t version = session.version();
      const Exchange exchange = send(session, c.operation, version_body(vstor::kVersionWin10));
      if (exchange.packet.header.status != Status::kSuccess) {
        CHECK(session.ready() == ready);
        CHECK(session.version() == version);
      }
    }
  }
}

TEST_CASE("SRBs and resets are legal when ready", "[storvsp]") {
  VstorSession session = session_at(Reached::kReady);
  CHECK(send(session, Operation::kExecuteSrb).outcome.next == Next::kExecute);
  CHECK(send(session, Operation::kResetLun).outcome.next == Next::kReset);
  CHECK(send(session, Operation::kResetBus).outcome.next == Next::kReset);
  CHECK(send(session, Operation::kResetAdapter).outcome.next == Next::kReset);
}

struct VersionCase {
  const char* rule;
  std::uint16_t version;
  Status status;
  std::size_t packet_size;  // after it was accepted
  bool sub_channels;
};
constexpr VersionCase kVersionCases[] = {
    {"2.0", 0x0200, Status::kSuccess, 48, false},
    {"4.2", 0x0402, Status::kSuccess, 48, false},
    {"5.1", 0x0501, Status::kSuccess, 64, true},
    {"6.0", 0x0600, Status::kSuccess, 64, true},
    {"6.2", 0x0602, Status::kSuccess, 64, true},
    {"0", 0x0000, Status::kRevisionMismatch, 0, false},
    {"1.0", 0x0100, Status::kRevisionMismatch, 0, false},
    {"3.0", 0x0300, Status::kRevisionMismatch, 0, false},
    {"6.1", 0x0601, Status::kRevisionMismatch, 0, false},
    {"7.0", 0x0700, Status::kRevisionMismatch, 0, false},
    {"all ones", 0xffff, Status::kRevisionMismatch, 0, false},
};

TEST_CASE("protocol versions", "[storvsp]") {
  for (const VersionCase& c : kVersionCases) {
    DYNAMIC_SECTION(c.rule) {
      VstorSession session = session_at(Reached::kBegun);
      const Exchange asked = send(session, Operation::kQueryProtocolVersion, version_body(c.version));
      CHECK(asked.packet.header.status == c.status);
      CHECK(std::to_integer<unsigned>(asked.packet.body[0]) == (c.version & 0xff));
      CHECK(std::to_integer<unsigned>(asked.packet.body[1]) == c.version >> 8);
      if (c.status == Status::kSuccess) {
        CHECK(session.version() == c.version);
        CHECK(session.packet_size() == c.packet_size);
        const Exchange properties = send(session, Operation::kQueryProperties);
        CHECK(properties.outcome.answer_size == c.packet_size);
        CHECK((properties.packet.body[4] == std::byte{3}) == c.sub_channels);
        CHECK((properties.packet.body[8] == std::byte{1}) == c.sub_channels);
      } else {
        // The guest goes on with a lower one.
        CHECK(session.version() == 0);
        const Exchange next = send(session, Operation::kQueryProtocolVersion, version_body(0x0501));
        CHECK(next.packet.header.status == Status::kSuccess);
      }
    }
  }
}

struct LengthCase {
  const char* rule;
  std::uint16_t version;  // 0: none yet
  std::size_t size;
  Status status;  // of QUERY_PROPERTIES, or BEGIN_INITIALIZATION without a version
  std::size_t answer_size;
};
constexpr LengthCase kLengthCases[] = {
    {"empty, no version", 0, 0, Status::kInvalidParameter, 48},
    {"header only, no version", 0, 16, Status::kInvalidParameter, 48},
    {"one unit short, no version", 0, 40, Status::kInvalidParameter, 48},
    {"old size, no version", 0, 48, Status::kSuccess, 48},
    {"between the sizes, no version", 0, 56, Status::kSuccess, 48},
    {"new size, no version", 0, 64, Status::kSuccess, 64},
    {"longer, no version", 0, 4096, Status::kSuccess, 64},
    {"old size, old version", 0x0402, 48, Status::kSuccess, 48},
    {"short, old version", 0x0402, 40, Status::kInvalidParameter, 48},
    {"new size, old version", 0x0402, 64, Status::kSuccess, 48},
    {"old size, new version", 0x0602, 48, Status::kInvalidParameter, 64},
    {"one unit short, new version", 0x0602, 56, Status::kInvalidParameter, 64},
    {"new size, new version", 0x0602, 64, Status::kSuccess, 64},
    {"longer, new version", 0x0602, 72, Status::kSuccess, 64},
};

TEST_CASE("packet lengths", "[storvsp]") {
  for (const LengthCase& c : kLengthCases) {
    DYNAMIC_SECTION(c.rule) {
      VstorSession session = session_at(c.version == 0 ? Reached::kNothing : Reached::kVersion, c.version);
      const Operation operation =
          c.version == 0 ? Operation::kBeginInitialization : Operation::kQueryProperties;
      const Exchange exchange = send(session, operation, {}, c.size);
      CHECK(exchange.packet.header.operation == Operation::kCompleteIo);
      CHECK(exchange.packet.header.status == c.status);
      CHECK(exchange.outcome.answer_size == c.answer_size);
    }
  }
}

TEST_CASE("an SRB that is too short is not executed", "[storvsp]") {
  VstorSession session = session_at(Reached::kReady);
  const Exchange exchange = send(session, Operation::kExecuteSrb, {}, 48);
  CHECK(exchange.outcome.next == Next::kAnswer);
  CHECK(exchange.packet.header.status == Status::kInvalidParameter);
}

struct SubChannelCase {
  const char* rule;
  std::uint16_t version;
  Reached reached;
  std::uint8_t count;
  Status status;
};
constexpr SubChannelCase kSubChannelCases[] = {
    {"as many as offered", 0x0602, Reached::kReady, 3, Status::kSuccess},
    {"fewer", 0x0602, Reached::kReady, 1, Status::kSuccess},
    {"before the end of initialisation, as Windows may", 0x0602, Reached::kProperties, 2, Status::kSuccess},
    {"none", 0x0602, Reached::kReady, 0, Status::kInvalidParameter},
    {"too many", 0x0602, Reached::kReady, 4, Status::kInvalidParameter},
    {"before they were invented", 0x0402, Reached::kReady, 1, Status::kInvalidParameter},
};

TEST_CASE("sub-channel requests", "[storvsp]") {
  for (const SubChannelCase& c : kSubChannelCases) {
    DYNAMIC_SECTION(c.rule) {
      VstorSession session = session_at(c.reached, c.version);
      const Exchange exchange = send(session, Operation::kCreateSubChannels, {c.count});
      CHECK(exchange.packet.header.status == c.status);
      CHECK(exchange.outcome.sub_channels_granted == (c.status == Status::kSuccess ? c.count : 0));
    }
  }
  SECTION("only once") {
    VstorSession session = session_at(Reached::kReady);
    CHECK(send(session, Operation::kCreateSubChannels, {1}).packet.header.status == Status::kSuccess);
    CHECK(send(session, Operation::kCreateSubChannels, {1}).packet.header.status ==
          Status::kInvalidParameter);
  }
  SECTION("not where none are offered") {
    VstorSession session = session_at(Reached::kReady, 0x0602, {0x40000, 0});
    CHECK(send(session, Operation::kCreateSubChannels, {1}).packet.header.status ==
          Status::kInvalidParameter);
  }
}

TEST_CASE("a sub-channel is ready at once and has no initialisation", "[storvsp]") {
  VstorSession session(kLimits, vstor::kVersionWin81);
  CHECK(session.ready());
  CHECK(send(session, Operation::kExecuteSrb).outcome.next == Next::kExecute);
  for (const Operation operation :
       {Operation::kBeginInitialization, Operation::kQueryProtocolVersion, Operation::kQueryProperties,
        Operation::kEndInitialization, Operation::kCreateSubChannels}) {
    CHECK(send(session, operation, {1}).packet.header.status == Status::kInvalidDeviceState);
  }
}

TEST_CASE("worked examples of the protocol", "[storvsp]") {
  SECTION("properties: 3 more channels, 256 KiB") {
    VstorSession session = session_at(Reached::kVersion);
    std::vector<std::uint8_t> expected = {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                          3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0};
    expected.resize(64);
    CHECK(bytes_of(send(session, Operation::kQueryProperties).packet) == expected);
  }
  SECTION("refused version 7.1") {
    VstorSession session = session_at(Reached::kBegun);
    std::vector<std::uint8_t> expected = {1, 0, 0, 0, 0, 0, 0, 0, 0x59, 0, 0, 0xc0, 0x01, 0x07};
    expected.resize(64);
    CHECK(bytes_of(send(session, Operation::kQueryProtocolVersion, version_body(0x0701)).packet) == expected);
  }
}

}  // namespace
}  // namespace vmbusd::storvsp
