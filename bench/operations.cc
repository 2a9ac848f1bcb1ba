#include "bench/operations.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/assert.h"
#include "bench/counted.h"
#include "bench/frames.h"
#include "bench/local_host.h"
#include "guest/disk.h"
#include "guest/net_client.h"
#include "guest/stor_client.h"
#include "netvsp/nic.h"
#include "ringbuffer/incoming_ring.h"
#include "ringbuffer/outgoing_ring.h"
#include "storvsp/controller.h"

namespace vmbusd::bench {
namespace {

constexpr std::uint32_t kRingBytes = 64 << 10;
constexpr std::uint32_t kRingPages = 128;  // netvsc's and more than storvsc's

// Write, commit, read, release of 64 B, `Batch` packets at a time. All is counted: both ends are ours.
template <std::uint32_t Batch>
Result<void> ring_cycle(std::uint64_t count) {
  alignas(4096) static ring::ControlPage control;
  alignas(4096) static std::array<std::byte, kRingBytes> data;
  control = {};
  ring::OutgoingRing out(ring::RingMemory::plain(&control, data.data(), kRingBytes));
  ring::IncomingRing in(ring::RingMemory::plain(&control, data.data(), kRingBytes));
  VMBUSD_CHECK(out.attach());
  VMBUSD_CHECK(in.attach());
  std::array<std::byte, 64> sent{};
  std::array<std::byte, 64> received{};
  start_counting();
  for (std::uint64_t done = 0; done < count; done += Batch) {
    for (std::uint32_t i = 0; i < Batch; ++i) {
      VMBUSD_TRY(const bool written, out.write({.transaction_id = done, .payload = sent}));
      VMBUSD_ASSERT(written);
    }
    VMBUSD_TRY(const bool signal_reader, out.commit());
    for (std::uint32_t i = 0; i < Batch; ++i) {
      VMBUSD_TRY(const ring::Packet* const packet, in.next());
      VMBUSD_ASSERT(packet && packet->payload_size >= received.size());
      in.read_payload(*packet, 0, received);
    }
    VMBUSD_ASSERT(!in.release() && !signal_reader);
  }
  stop_counting();
  return {};
}

// 4 KiB reads from a file in the page cache, 32 in flight: io_uring completes them as they are submitted.
Result<void> storage_read(std::uint64_t count) {
  constexpr std::uint32_t kDepth = 32;
  constexpr std::uint32_t kBlockBytes = 4096;
  // Not in /tmp, which may be of a kind that io_uring hands to a thread of the kernel's.
  UniqueFd file(::open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file) return fail_os(errno, "cannot make a file in /var/tmp");
  const std::vector<std::byte> content(kDepth * kBlockBytes, std::byte{1});
  if (::write(file.get(), content.data(), content.size()) != static_cast<ssize_t>(content.size())) {
    return fail_os(errno, "cannot write to a file in /var/tmp");
  }
  storvsp::ControllerConfig config;
  config.partition = config.name = "bench";
  config.disks.emplace_back();
  config.disks.front().fd = std::move(file);
  VMBUSD_TRY(const std::unique_ptr<storvsp::Controller> controller,
             storvsp::make_controller(std::move(config)));
  VMBUSD_TRY(const std::unique_ptr<LocalHost> host, LocalHost::make(*controller, kRingPages));
  guest::StorClient client(*host, kDepth);
  VMBUSD_CHECK(client.initialize());
  VMBUSD_CHECK(guest::Disk(client).ready());
  VMBUSD_TRY(const guest::Pages buffers, host->ram().take(kDepth));

  std::uint64_t submitted = 0;
  std::uint64_t completed = 0;
  Result<void> result;
  const auto read = [&](std::uint32_t slot) -> Result<void> {
    guest::StorCommand command =
        guest::block_command(storvsp::scsi::Opcode::kRead16, slot * (kBlockBytes / 512), kBlockBytes / 512);
    command.pages = buffers.gpns().subspan(slot, 1);
    command.bytes = kBlockBytes;
    VMBUSD_TRY(const std::optional<std::uint64_t> id, client.submit(command));
    VMBUSD_ASSERT(id.has_value());
    ++submitted;
    return {};
  };
  const auto drive = [&]() -> Result<void> {
    VMBUSD_TRY(const std::uint32_t polled, client.poll([](const guest::StorCompletion& completion) {
      VMBUSD_ASSERT(guest::succeeded(completion.packet));
    }));
    completed += polled;
    while (client.in_flight() < kDepth && submitted < count) VMBUSD_CHECK(read(client.in_flight()));
    return client.flush();
  };
  host->run([&] {
    result = drive();
    return result && completed < count;
  });
  return result;
}

struct NetworkRun {
  std::unique_ptr<devices::Device> nic;
  std::unique_ptr<LocalHost> host;
  std::unique_ptr<guest::NetClient> client;

  [[nodiscard]] static Result<NetworkRun> make(std::uint32_t null_receive_bytes) {
    netvsp::NicConfig config;
    config.partition = config.name = "bench";
    config.null_receive_bytes = null_receive_bytes;
    NetworkRun run;
    VMBUSD_TRY(run.nic, netvsp::make_nic(std::move(config)));
    VMBUSD_TRY(run.host, LocalHost::make(*run.nic, kRingPages));
    run.client = std::make_unique<guest::NetClient>(*run.host);
    VMBUSD_CHECK(run.client->initialize());
    return run;
  }
};

// Transmits `count` times by send(), a batch a turn.
template <typename Send>
Result<void> network_transmit(NetworkRun& run, std::uint64_t count, Send send) {
  Result<void> result;
  const auto drive = [&]() -> Result<void> {
    guest::NetClient& client = *run.client;
    VMBUSD_TRY(const std::uint32_t polled, client.poll([](std::span<const std::byte>) {}));
    (void)polled;
    if (client.in_flight() == 0 && client.statistics().sent < count) {
      for (std::uint32_t i = 0; i < kOperationBatch; ++i) {
        VMBUSD_TRY(const bool sent, send(client));
        VMBUSD_ASSERT(sent);
      }
    }
    return client.flush();
  };
  run.host->run([&] {
    result = drive();
    return result && run.client->statistics().completed < count;
  });
  VMBUSD_ASSERT(!result || run.client->statistics().refused == 0);
  return result;
}

template <std::size_t Bytes>
Result<void> network_transmit_frame(std::uint64_t count) {
  VMBUSD_TRY(NetworkRun run, NetworkRun::make(0));
  const std::vector<std::byte> frame = plain_frame(run.client->mac(), Bytes);
  return network_transmit(run, count, [&](guest::NetClient& client) { return client.send(frame); });
}

Result<void> network_transmit_large(std::uint64_t count) {
  constexpr std::uint32_t kMss = 1448;
  constexpr std::uint32_t kSegments = 45;  // the most whole ones of an IP packet
  VMBUSD_TRY(NetworkRun run, NetworkRun::make(0));
  const std::vector<std::byte> frame = tcp_frame(run.client->mac(), kSegments * kMss);
  const std::size_t page_count = (frame.size() + guest::kPageSize - 1) / guest::kPageSize;
  VMBUSD_TRY(const guest::Pages pages, run.host->ram().take(page_count, guest::Layout::kScattered));
  pages.write(0, frame);
  return network_transmit(run, count, [&](guest::NetClient& client) {
    return client.send_large(pages, static_cast<std::uint32_t>(frame.size()), kMss);
  });
}

// The null back end invents 64 B frames as fast as they are taken; the guest completes each transfer packet.
Result<void> network_receive_small(std::uint64_t count) {
  VMBUSD_TRY(NetworkRun run, NetworkRun::make(64));
  Result<void> result;
  run.host->run([&] {
    const Result<std::uint32_t> polled = run.client->poll([](std::span<const std::byte>) {});
    result = polled ? run.client->flush() : tl::unexpected(polled.error());
    return result && run.client->statistics().received < count;
  });
  return result;
}

constexpr Operation kOperations[] = {
    {"ring_cycle", "64 B into a ring and out again, one at a time, both ends", ring_cycle<1>},
    {"ring_cycle_16", "the same, 16 at a time", ring_cycle<16>},
    {"storage_read_4k", "4 KiB read of a cached file at queue depth 32", storage_read},
    {"network_transmit_64", "64 B frame from a send section to the null back end",
     network_transmit_frame<64>},
    {"network_transmit_1514", "1514 B frame, likewise", network_transmit_frame<1514>},
    {"network_receive_64", "64 B frame from the null back end into the receive buffer",
     network_receive_small},
    {"network_transmit_lso", "64 KiB large send from 16 pages to the null back end", network_transmit_large},
};

}  // namespace

std::span<const Operation> operations() {
  return kOperations;
}

}  // namespace vmbusd::bench
