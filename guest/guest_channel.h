// An open channel, from the driver's side: two rings in guest memory, a doorbell, an interrupt.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>

#include "base/result.h"
#include "guest/bus_client.h"
#include "guest/driver_channel.h"

namespace vmbusd::guest {

// Life cycle: open(), close(). Destruction without close() leaves the host with the channel, as a guest that
// crashes does: its pages are never used again. One thread for the rings and wait(), which is also the only
// one to wait on the target VP; the bus is the opener's.
class GuestChannel final : public DriverChannel {
 public:
  struct Options {
    std::uint32_t to_host_pages = 32;  // of each ring, control page included: storvsc's default
    std::uint32_t from_host_pages = 32;
    std::uint32_t target_vp = 0;
    Layout layout = Layout::kContiguous;
  };

  [[nodiscard]] static Result<std::unique_ptr<GuestChannel>> open(BusClient& bus,
                                                                  const vmbus::OfferChannel& offer,
                                                                  const Options& options);
  [[nodiscard]] static Result<std::unique_ptr<GuestChannel>> open(BusClient& bus,
                                                                  const vmbus::OfferChannel& offer) {
    return open(bus, offer, Options());
  }
  ~GuestChannel() override;
  GuestChannel(const GuestChannel&) = delete;
  GuestChannel& operator=(const GuestChannel&) = delete;

  // CLOSECHANNEL, then takes the ring's GPADL back: nothing of the host's touches the pages any more.
  [[nodiscard]] Result<void> close();
  // CLOSECHANNEL and OPENCHANNEL again with the same GPADL, as uio_hv_generic does.
  [[nodiscard]] Result<void> reopen();

  [[nodiscard]] ring::OutgoingRing& to_host() override { return to_host_; }
  [[nodiscard]] ring::IncomingRing& from_host() override { return from_host_; }
  [[nodiscard]] Result<void> flush() override;
  // HvSignalEvent, or the bit of a monitored channel; needed or not.
  void ring_doorbell();
  [[nodiscard]] Result<bool> wait(std::chrono::milliseconds patience) override;
  [[nodiscard]] Result<bool> wait() { return wait(kPatience); }
  [[nodiscard]] Ram& ram() override { return child().ram(); }
  [[nodiscard]] Result<std::uint32_t> lend(std::span<const Gpn> pages) override {
    return bus_.create_gpadl(offer_.relid, pages);
  }
  // MODIFYCHANNEL: interrupts go to another VP.
  [[nodiscard]] Result<vmbus::Status> retarget(std::uint32_t vp);

  [[nodiscard]] const vmbus::OfferChannel& offer() const { return offer_; }
  [[nodiscard]] std::uint32_t relid() const { return offer_.relid; }
  [[nodiscard]] BusClient& bus() { return bus_; }
  [[nodiscard]] ChildPartition& child() { return bus_.child(); }
  [[nodiscard]] std::uint64_t doorbells() const { return doorbells_; }
  // Ring bytes that went each way, as of the last flush().
  struct RingBytes {
    std::uint64_t to_host = 0;
    std::uint64_t from_host = 0;
  };
  [[nodiscard]] const RingBytes& ring_bytes() const { return ring_bytes_; }
  // The rings' control pages, for tests that misbehave.
  [[nodiscard]] ring::ControlPage& to_host_control() { return control_at(0); }
  [[nodiscard]] ring::ControlPage& from_host_control() { return control_at(options_.to_host_pages); }

 private:
  GuestChannel(BusClient& bus, const vmbus::OfferChannel& offer, const Options& options, Pages pages,
               std::uint32_t gpadl);
  [[nodiscard]] ring::RingMemory ring_memory(std::uint32_t first_page, std::uint32_t count);
  [[nodiscard]] ring::ControlPage& control_at(std::uint32_t page) {
    return *reinterpret_cast<ring::ControlPage*>(pages_.host(page));
  }
  [[nodiscard]] Result<void> start();

  BusClient& bus_;
  vmbus::OfferChannel offer_;
  Options options_;
  Pages pages_;
  std::uint32_t gpadl_;
  ring::OutgoingRing to_host_;
  ring::IncomingRing from_host_;
  Doorbell doorbell_;
  bool open_ = false;
  std::uint64_t doorbells_ = 0;
  RingBytes ring_bytes_;
  // As of then.
  std::uint32_t to_host_position_ = 0;
  std::uint32_t from_host_position_ = 0;
};

}  // namespace vmbusd::guest
