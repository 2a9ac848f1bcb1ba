// The C face of the attach client.
#include "attach/vmbus-attach.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include "partition/attach_client.h"

namespace {

using vmbusd::Errc;
using vmbusd::Error;
using vmbusd::Result;
using vmbusd::UniqueFd;
using vmbusd::partition::AttachClient;
using vmbusd::partition::AttachClientEvents;

static_assert(VMBUS_ATTACH_SIGNAL_BY_MESSAGE == vmbusd::partition::kFeatureSignalByMessage &&
              VMBUS_ATTACH_TAKE_UP == vmbusd::partition::kFeatureTakeUp);
static_assert(VMBUS_ATTACH_SYNIC_ENABLED == vmbusd::partition::kSynicEnabled &&
              VMBUS_ATTACH_SYNIC_MESSAGE_PAGE == vmbusd::partition::kSynicMessagePage &&
              VMBUS_ATTACH_SYNIC_EVENT_PAGE == vmbusd::partition::kSynicEventPage);

std::string text_of(const Error& error) {
  std::string text = error.text;
  if (error.os_error != 0) text += std::string(": ") + std::strerror(error.os_error);
  return text;
}

int errno_of(const Error& error) {
  switch (error.code) {
    case Errc::kOs:
      return error.os_error == 0 ? -EIO : -error.os_error;
    case Errc::kClosed:
      return -ENOTCONN;
    case Errc::kLimit:
      return -ENOBUFS;
    case Errc::kProtocol:
      return -EPROTO;
    case Errc::kUnsupported:
      return -ENOTSUP;
    case Errc::kWrongState:
      return -EBUSY;
    default:
      return -EINVAL;
  }
}

int result_of(const Result<void>& result) {
  return result ? 0 : errno_of(result.error());
}

void put_text(const std::string& text, char* out, size_t out_size) {
  if (out == nullptr || out_size == 0) return;
  out[text.copy(out, out_size - 1)] = '\0';
}

// No exception reaches C: memory and threads are all that can be lacking.
template <typename Call>
int guarded(Call&& call) noexcept {
  try {
    return call();
  } catch (const std::system_error& error) {
    return -error.code().value();
  } catch (const std::exception&) {
    return -ENOMEM;
  }
}

}  // namespace

struct vmbus_attach final : private AttachClientEvents {
  vmbus_attach(const vmbus_attach_events& given_events, void* given_context)
      : events(given_events), context(given_context) {}

  int connect(const AttachClient::Options& options, std::string& problem) {
    Result<std::unique_ptr<AttachClient>> connected = AttachClient::connect(options, *this, problem);
    if (!connected) {
      if (problem.empty()) problem = text_of(connected.error());
      return errno_of(connected.error());
    }
    client = *std::move(connected);
    return 0;
  }

  std::unique_ptr<AttachClient> client;

 private:
  Result<void> doorbell_attach(std::uint32_t connection_id, UniqueFd eventfd) override {
    return outcome_of(events.doorbell_attach(context, connection_id, eventfd.release()));
  }
  Result<void> doorbell_detach(std::uint32_t connection_id) override {
    return outcome_of(events.doorbell_detach(context, connection_id));
  }
  void host_message(std::uint64_t cookie, std::uint32_t vp, std::uint32_t sint, std::uint32_t message_type,
                    std::span<const std::uint8_t> payload) override {
    events.host_message(context, cookie, vp, sint, message_type, payload.data(), payload.size());
  }
  void signal_event(std::uint32_t vp, std::uint32_t sint, std::uint32_t flag) override {
    events.signal_event(context, vp, sint, flag);
  }
  void recovery_area(UniqueFd file, bool taken_up, std::uint64_t guest_messages) override {
    events.recovery_area(context, file.release(), taken_up ? 1 : 0, guest_messages);
  }
  void disconnected(const Error& reason) override { events.disconnected(context, text_of(reason).c_str()); }

  static Result<void> outcome_of(int error) {
    if (error == 0) return {};
    return vmbusd::fail_os(error < 0 ? -error : error, "the VMM refused");
  }

  const vmbus_attach_events events;
  void* const context;
};

int vmbus_attach_connect(const char* socket_path, uint32_t vp_count, uint64_t features,
                         const vmbus_attach_events* events, void* context, vmbus_attach** attach, char* error,
                         size_t error_size) {
  *attach = nullptr;
  put_text("", error, error_size);
  return guarded([&] {
    const bool signals = (features & VMBUS_ATTACH_SIGNAL_BY_MESSAGE) != 0;
    const bool keeps = (features & VMBUS_ATTACH_TAKE_UP) != 0;
    const bool whole = events->doorbell_attach != nullptr && events->doorbell_detach != nullptr &&
                       events->host_message != nullptr && events->disconnected != nullptr &&
                       (events->signal_event != nullptr || !signals) &&
                       (events->recovery_area != nullptr || !keeps);
    if (!whole || (features & ~(VMBUS_ATTACH_SIGNAL_BY_MESSAGE | VMBUS_ATTACH_TAKE_UP)) != 0) {
      put_text(whole ? "a feature that this library does not know" : "an event has no function", error,
               error_size);
      return -EINVAL;
    }
    auto made = std::make_unique<vmbus_attach>(*events, context);
    std::string problem;
    AttachClient::Options options;
    options.socket_path = socket_path;
    options.vp_count = vp_count;
    options.features = features;
    const int result = made->connect(options, problem);
    put_text(problem, error, error_size);
    if (result == 0) *attach = made.release();
    return result;
  });
}

void vmbus_attach_close(vmbus_attach* attach) {
  attach->client->close();
}

void vmbus_attach_free(vmbus_attach* attach) {
  delete attach;
}

uint64_t vmbus_attach_features(const vmbus_attach* attach) {
  return attach->client->features();
}

int vmbus_attach_serves(const vmbus_attach* attach, uint32_t connection_id) {
  return attach->client->serves_message_connection(connection_id) ? 1 : 0;
}

void vmbus_attach_error(const vmbus_attach* attach, char* error, size_t error_size) {
  guarded([&] {
    put_text(attach->client->error_text(), error, error_size);
    return 0;
  });
}

int vmbus_attach_add_memory(vmbus_attach* attach, uint64_t gpa, uint64_t size, int fd, uint64_t offset,
                            int writable) {
  return guarded([&] { return result_of(attach->client->add_memory(gpa, size, fd, offset, writable != 0)); });
}

int vmbus_attach_remove_memory(vmbus_attach* attach, uint64_t gpa, uint64_t size) {
  return guarded([&] { return result_of(attach->client->remove_memory(gpa, size)); });
}

int vmbus_attach_set_vp_interrupt(vmbus_attach* attach, uint32_t vp, uint32_t sint, int eventfd) {
  return guarded([&] { return result_of(attach->client->set_vp_interrupt(vp, sint, eventfd)); });
}

int vmbus_attach_set_synic_state(vmbus_attach* attach, uint32_t vp, uint32_t flags, uint64_t message_page_gpa,
                                 uint64_t event_page_gpa) {
  return guarded([&] {
    return result_of(attach->client->set_synic_state(vp, flags, message_page_gpa, event_page_gpa));
  });
}

int vmbus_attach_reset(vmbus_attach* attach) {
  return guarded([&] { return result_of(attach->client->reset()); });
}

int vmbus_attach_keep_doorbell(vmbus_attach* attach, uint32_t connection_id, int eventfd) {
  return guarded([&] { return result_of(attach->client->keep_doorbell(connection_id, eventfd)); });
}

int vmbus_attach_take_up(vmbus_attach* attach, int recovery_area) {
  return guarded([&] { return result_of(attach->client->take_up(recovery_area)); });
}

int vmbus_attach_post_guest_message(vmbus_attach* attach, uint32_t vp, uint32_t connection_id,
                                    uint32_t message_type, const void* payload, size_t payload_size) {
  return guarded([&] {
    const std::span bytes(static_cast<const std::uint8_t*>(payload), payload_size);
    return result_of(attach->client->post_guest_message(vp, connection_id, message_type, bytes));
  });
}

void vmbus_attach_host_message_done(vmbus_attach* attach, uint64_t cookie) {
  attach->client->host_message_done(cookie);
}
