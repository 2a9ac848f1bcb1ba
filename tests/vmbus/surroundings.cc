#include "tests/vmbus/surroundings.h"

#include <cstring>

namespace vmbusd::vmbus {
namespace {

template <WireStruct T>
T read(std::span<const std::byte> bytes) {
  T value;
  return read_wire(bytes, value) ? value : T{};
}

std::uint32_t number(Status status) {
  return static_cast<std::uint32_t>(status);
}

}  // namespace

std::string describe_message(std::span<const std::byte> bytes) {
  switch (read<MessageHeader>(bytes).type) {
    case MessageType::kOfferChannel: {
      const auto offer = read<OfferChannel>(bytes);
      if (offer.sub_channel_index == 0) return fmt::format("OFFERCHANNEL {}", offer.relid);
      return fmt::format("OFFERCHANNEL {} sub {}", offer.relid, offer.sub_channel_index);
    }
    case MessageType::kRescindChannelOffer:
      return fmt::format("RESCIND_CHANNELOFFER {}", read<RescindChannelOffer>(bytes).relid);
    case MessageType::kAllOffersDelivered:
      return "ALLOFFERS_DELIVERED";
    case MessageType::kOpenChannelResult: {
      const auto result = read<OpenChannelResult>(bytes);
      return fmt::format("OPENCHANNEL_RESULT {} {} {:#x}", result.relid, result.openid,
                         number(result.status));
    }
    case MessageType::kGpadlCreated: {
      const auto created = read<GpadlCreated>(bytes);
      return fmt::format("GPADL_CREATED {} {:#x} {:#x}", created.relid, created.gpadl,
                         number(created.status));
    }
    case MessageType::kGpadlTorndown:
      return fmt::format("GPADL_TORNDOWN {:#x}", read<GpadlTorndown>(bytes).gpadl);
    case MessageType::kVersionResponse: {
      const auto response = read<VersionResponse>(bytes);
      return fmt::format("VERSION_RESPONSE {} {} {:#x}", response.version_supported,
                         static_cast<unsigned>(response.connection_state), response.version_or_connection_id);
    }
    case MessageType::kUnloadResponse:
      return "UNLOAD_RESPONSE";
    case MessageType::kCloseReservedResponse:
      return fmt::format("CLOSE_RESERVED_RESPONSE {}", read<CloseReservedResponse>(bytes).relid);
    case MessageType::kTlConnectResult:
      return fmt::format("TL_CONNECT_RESULT {:#x}", number(read<TlConnectResult>(bytes).status));
    case MessageType::kModifyChannelResponse: {
      const auto response = read<ModifyChannelResponse>(bytes);
      return fmt::format("MODIFYCHANNEL_RESPONSE {} {:#x}", response.relid, number(response.status));
    }
    default:
      return fmt::format("message {}", static_cast<std::uint32_t>(read<MessageHeader>(bytes).type));
  }
}

}  // namespace vmbusd::vmbus
