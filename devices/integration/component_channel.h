// An integration component's channel: carries its questions and the guest's answers.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>

#include "devices/channel.h"
#include "devices/integration/component.h"
#include "devices/integration/session.h"

namespace vmbusd::integration {

class ComponentChannel;

// The way from the device, on the control thread, to the channel that it has open: a message to the worker
// finds the channel there or does not. Only that worker looks into it.
struct Link {
  ComponentChannel* channel = nullptr;  // between its start and its stop
};

// On the channel's worker, but for construction and destruction.
class ComponentChannel final : public devices::ChannelHandler {
 public:
  // `board` outlives it.
  using MakeComponent = std::function<std::unique_ptr<Component>(LogScope& log)>;
  ComponentChannel(const Kind& kind, StatusBoard& board, std::shared_ptr<Link> link, MakeComponent make)
      : kind_(kind),
        board_(board),
        link_(std::move(link)),
        make_(std::move(make)),
        session_(kind.type, kind.versions) {}

  void start(devices::Channel& channel) override;
  [[nodiscard]] Result<bool> service(std::uint32_t budget) override;
  // A new negotiation makes up for all that the dead process knew; see send().
  [[nodiscard]] Result<void> recover() override { return {}; }
  void stop() override;

  [[nodiscard]] Component& component() { return *component_; }
  [[nodiscard]] TimePoint now() const { return channel_->worker().now(); }
  // The component has something to ask.
  void wake() { channel_->activate(); }

 private:
  class Alarm final : public io::Timer {
   public:
    explicit Alarm(ComponentChannel& channel) : channel_(channel) {}
    void expired() noexcept override { channel_.wake(); }

   private:
    ComponentChannel& channel_;
  };

  // A guest that goes on sending what nobody asked for is not served.
  static constexpr std::uint32_t kUnaskedMax = 64;

  [[nodiscard]] Result<void> receive(const ring::Packet& packet);
  // True where something was sent.
  [[nodiscard]] Result<bool> send();

  const Kind& kind_;
  StatusBoard& board_;
  std::shared_ptr<Link> link_;
  MakeComponent make_;
  Session session_;
  std::unique_ptr<Component> component_;  // from start() on
  devices::Channel* channel_ = nullptr;
  Alarm alarm_{*this};
  bool drained_ = true;  // the guest's ring held nothing of a process that died
  std::uint32_t unasked_ = 0;
  std::uint64_t next_id_ = 0;
  std::span<const std::byte> unsent_;  // a message of the session's that the ring had no room for
  std::array<std::byte, kMessageBytesMax> received_{};
};

}  // namespace vmbusd::integration
