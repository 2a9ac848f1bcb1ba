#include "vmbus/message_table.h"

#include <algorithm>
#include <array>
#include <type_traits>

#include "vmbus/server_core.h"

namespace vmbusd::vmbus {
namespace {

// Copies the fixed part out and calls the handler, which may also want to see how and with what more it came.
template <WireStruct T, auto Handler>
void handle(ServerCore& core, const Received& received) {
  T message;
  if (!read_wire(received.bytes, message)) return;  // not reached: the rule's length was checked
  if constexpr (std::is_invocable_v<decltype(Handler), ServerCore&, const T&, const Received&>) {
    (core.*Handler)(message, received);
  } else {
    (core.*Handler)(message);
  }
}

template <typename... Phases>
constexpr std::uint8_t in(Phases... phases) {
  return static_cast<std::uint8_t>((static_cast<unsigned>(phases) | ...));
}
constexpr std::uint8_t kLinked = in(Phase::kConnected, Phase::kOffersRequested);
constexpr std::uint8_t kOffers = in(Phase::kOffersRequested);
constexpr std::uint8_t kAlways =
    in(Phase::kDisconnected, Phase::kConnected, Phase::kOffersRequested, Phase::kDisconnecting);

// clang-format off
constexpr std::array kRules = {
  MessageRule{MessageType::kRequestOffers, "REQUESTOFFERS", sizeof(RequestOffers), Version::k1_1, 0,
              in(Phase::kConnected), &handle<RequestOffers, &ServerCore::on_request_offers>},
  MessageRule{MessageType::kOpenChannel, "OPENCHANNEL", sizeof(OpenChannel), Version::k1_1, 0,
              kOffers, &handle<OpenChannel, &ServerCore::on_open_channel>},
  MessageRule{MessageType::kCloseChannel, "CLOSECHANNEL", sizeof(CloseChannel), Version::k1_1, 0,
              kOffers, &handle<CloseChannel, &ServerCore::on_close_channel>},
  MessageRule{MessageType::kGpadlHeader, "GPADL_HEADER", sizeof(GpadlHeader), Version::k1_1, 0,
              kOffers, &handle<GpadlHeader, &ServerCore::on_gpadl_header>},
  MessageRule{MessageType::kGpadlBody, "GPADL_BODY", sizeof(GpadlBody), Version::k1_1, 0,
              kOffers, &handle<GpadlBody, &ServerCore::on_gpadl_body>},
  MessageRule{MessageType::kGpadlTeardown, "GPADL_TEARDOWN", sizeof(GpadlTeardown), Version::k1_1, 0,
              kOffers, &handle<GpadlTeardown, &ServerCore::on_gpadl_teardown>},
  MessageRule{MessageType::kRelidReleased, "RELID_RELEASED", sizeof(RelidReleased), Version::k1_1, 0,
              kOffers, &handle<RelidReleased, &ServerCore::on_relid_released>},
  MessageRule{MessageType::kInitiateContact, "INITIATE_CONTACT", sizeof(InitiateContact), Version::kNone, 0,
              kAlways, &handle<InitiateContact, &ServerCore::on_initiate_contact>},
  MessageRule{MessageType::kUnload, "UNLOAD", sizeof(Unload), Version::kNone, 0,
              kAlways, &handle<Unload, &ServerCore::on_unload>},
  MessageRule{MessageType::kOpenReservedChannel, "OPEN_RESERVED_CHANNEL", sizeof(OpenReservedChannel),
              Version::k4_0, 0, kLinked,
              &handle<OpenReservedChannel, &ServerCore::on_open_reserved_channel>},
  MessageRule{MessageType::kCloseReservedChannel, "CLOSE_RESERVED_CHANNEL", sizeof(CloseReservedChannel),
              Version::kNone, 0, kAlways,
              &handle<CloseReservedChannel, &ServerCore::on_close_reserved_channel>},
  MessageRule{MessageType::kTlConnectRequest, "TL_CONNECT_REQUEST", sizeof(TlConnectRequest), Version::k4_0, 0,
              kLinked, &handle<TlConnectRequest, &ServerCore::on_tl_connect_request>},
  MessageRule{MessageType::kModifyChannel, "MODIFYCHANNEL", sizeof(ModifyChannel), Version::k4_1, 0,
              kOffers, &handle<ModifyChannel, &ServerCore::on_modify_channel>},
  MessageRule{MessageType::kModifyConnection, "MODIFY_CONNECTION", sizeof(ModifyConnection), Version::k6_0,
              kFeatureModifyConnection, kLinked, nullptr},
  MessageRule{MessageType::kPause, "PAUSE", sizeof(Pause), Version::k6_0, kFeaturePauseResume,
              kLinked, nullptr},
  MessageRule{MessageType::kResume, "RESUME", sizeof(Resume), Version::k6_0, kFeaturePauseResume,
              kLinked, nullptr},
};
// clang-format on

}  // namespace

std::span<const MessageRule> message_rules() {
  return kRules;
}

const MessageRule* find_message_rule(MessageType type) {
  const auto found = std::find_if(kRules.begin(), kRules.end(),
                                  [type](const MessageRule& rule) { return rule.type == type; });
  return found == kRules.end() ? nullptr : &*found;
}

const char* refuse_message(const MessageRule& rule, std::size_t bytes, Phase phase, Version version) {
  if (bytes < rule.bytes_min) return "too short";
  if ((rule.phases & static_cast<std::uint8_t>(phase)) == 0) return "not allowed in this state";
  if (version < rule.since) return "not part of the negotiated version";
  if ((rule.feature & ~kFeaturesGranted) != 0) return "its feature was not granted";
  return nullptr;
}

}  // namespace vmbusd::vmbus
