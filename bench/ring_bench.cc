// Time of the ring alone, beside loops that do less or do it plainly.

#include <benchmark/benchmark.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "base/assert.h"
#include "base/fd.h"
#include "bench/plain_ring.h"
#include "ringbuffer/gpa_direct.h"
#include "ringbuffer/incoming_ring.h"
#include "ringbuffer/outgoing_ring.h"

namespace vmbusd::bench {
namespace {

constexpr std::size_t kDataPages = 127;  // netvsc's ring: no power of two
constexpr std::uint32_t kDataBytes = kDataPages * ring::kPageSize;

enum Memory : std::int64_t { kPlain, kMirrored, kSegmented };

// A ring's pages in a memfd, and views of them.
class Pages {
 public:
  Pages() : fd_(::memfd_create("ring-bench", MFD_CLOEXEC)) {
    const std::size_t bytes = (1 + kDataPages) * ring::kPageSize;
    VMBUSD_ASSERT(fd_ && ::ftruncate(fd_.get(), static_cast<off_t>(bytes)) == 0);
    void* const mapped =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_.get(), 0);
    VMBUSD_ASSERT(mapped != MAP_FAILED);
    base_ = static_cast<std::byte*>(mapped);
  }
  ~Pages() { ::munmap(base_, (1 + kDataPages) * ring::kPageSize); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  [[nodiscard]] ring::ControlPage* control() const { return reinterpret_cast<ring::ControlPage*>(base_); }
  [[nodiscard]] std::byte* data() const { return base_ + ring::kPageSize; }
  [[nodiscard]] ring::RingMemory view(std::int64_t kind) const {
    if (kind == kPlain) return ring::RingMemory::plain(control(), data(), kDataBytes);
    std::vector<ring::RingMemory::MappedPage> mapped;
    std::vector<std::byte*> hosts;
    for (std::size_t page = 0; page < kDataPages; ++page) {
      hosts.push_back(data() + page * ring::kPageSize);
      mapped.push_back({hosts.back(), fd_.get(), static_cast<off_t>((1 + page) * ring::kPageSize)});
    }
    if (kind == kSegmented) return ring::RingMemory::segmented(control(), hosts);
    return std::move(*ring::RingMemory::make_mirrored(control(), mapped));
  }

 private:
  UniqueFd fd_;
  std::byte* base_;
};

struct Ring {
  explicit Ring(std::int64_t memory) : out(pages.view(memory)), in(pages.view(memory)) {
    VMBUSD_ASSERT(out.attach() && in.attach());
  }
  Pages pages;
  ring::OutgoingRing out;
  ring::IncomingRing in;
};

// One thread writes and reads `Size` bytes, a batch at a time, with copies in and out.
template <std::size_t Size>
void cycle(benchmark::State& state) {
  Ring ring(state.range(1));
  const std::int64_t batch = state.range(0);
  std::array<std::byte, Size> sent{};
  std::array<std::byte, Size> received{};
  for ([[maybe_unused]] auto iteration : state) {
    for (std::int64_t i = 0; i < batch; ++i) {
      benchmark::DoNotOptimize(sent);
      const Result<bool> written = ring.out.write({.payload = sent});
      VMBUSD_ASSERT(written && *written);
    }
    const Result<bool> committed = ring.out.commit();
    VMBUSD_ASSERT(committed.has_value());
    for (std::int64_t i = 0; i < batch; ++i) {
      const Result<const ring::Packet*> packet = ring.in.next();
      VMBUSD_ASSERT(packet && *packet != nullptr && (*packet)->payload_size >= Size);
      ring.in.read_payload(**packet, 0, received);
      benchmark::DoNotOptimize(received);
    }
    benchmark::DoNotOptimize(ring.in.release());
  }
  state.SetItemsProcessed(state.iterations() * batch);
}
BENCHMARK_TEMPLATE(cycle, 64)
    ->ArgNames({"batch", "memory"})
    ->ArgsProduct({{1, 16}, {kPlain, kMirrored, kSegmented}});
BENCHMARK_TEMPLATE(cycle, 4096)
    ->ArgNames({"batch", "memory"})
    ->ArgsProduct({{1, 16}, {kPlain, kMirrored, kSegmented}});

// What cannot be spared of it: `Size` bytes into the same memory and out again, walking through it.
template <std::size_t Size>
void copies_alone(benchmark::State& state) {
  const Pages pages;
  const std::int64_t batch = state.range(0);
  constexpr std::size_t kStride = ring::OutgoingRing::packet_size(0, Size);
  std::array<std::byte, Size> sent{};
  std::array<std::byte, Size> received{};
  std::size_t at = 0;
  for ([[maybe_unused]] auto iteration : state) {
    if (at + static_cast<std::size_t>(batch) * kStride > kDataBytes) at = 0;
    std::size_t to = at;
    for (std::int64_t i = 0; i < batch; ++i, to += kStride) {
      benchmark::DoNotOptimize(sent);
      std::memcpy(pages.data() + to, sent.data(), Size);
    }
    benchmark::ClobberMemory();
    for (std::int64_t i = 0; i < batch; ++i, at += kStride) {
      ring::copy_from_shared(received.data(), pages.data() + at, Size);
      benchmark::DoNotOptimize(received);
    }
  }
  state.SetItemsProcessed(state.iterations() * batch);
}
BENCHMARK_TEMPLATE(copies_alone, 64)->ArgName("batch")->Arg(1)->Arg(16);
BENCHMARK_TEMPLATE(copies_alone, 4096)->ArgName("batch")->Arg(1)->Arg(16);

// The same and what publishing two indices takes at the least, one at a time: two full barriers, as locked
// exchanges.
void copies_and_exchanges(benchmark::State& state) {
  const Pages pages;
  constexpr std::size_t kStride = ring::OutgoingRing::packet_size(0, 64);
  const std::atomic_ref<std::uint32_t> write_index(pages.control()->write_index);
  const std::atomic_ref<std::uint32_t> read_index(pages.control()->read_index);
  std::array<std::byte, 64> sent{};
  std::array<std::byte, 64> received{};
  std::uint32_t at = 0;
  for ([[maybe_unused]] auto iteration : state) {
    if (at + kStride > kDataBytes) at = 0;
    benchmark::DoNotOptimize(sent);
    std::memcpy(pages.data() + at, sent.data(), sent.size());
    write_index.exchange(at, std::memory_order_seq_cst);
    ring::copy_from_shared(received.data(), pages.data() + at, received.size());
    benchmark::DoNotOptimize(received);
    read_index.exchange(at, std::memory_order_seq_cst);
    at += kStride;
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(copies_and_exchanges);

constexpr std::uint64_t kStream = 1 << 16;  // packets of one iteration between two threads

// A thread writes, another reads what is there until all has come. `Writer` and `Reader` return how many
// packets they moved; 0 where there is no room, or nothing to read.
template <typename Write, typename Read>
void stream(benchmark::State& state, Write write, Read read) {
  for ([[maybe_unused]] auto iteration : state) {
    std::thread reader([&read] {
      for (std::uint64_t left = kStream; left != 0;) {
        const std::uint64_t count = read();
        if (count == 0) std::this_thread::yield();
        left -= count;
      }
    });
    for (std::uint64_t left = kStream; left != 0;) {
      const std::uint64_t count = write(left);
      if (count == 0) std::this_thread::yield();
      left -= count;
    }
    reader.join();
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * kStream));
}

constexpr std::int64_t kDrain = 0;  // no batches: the writer fills the ring, the reader empties it

void two_threads(benchmark::State& state) {
  Ring ring(kMirrored);
  const std::uint64_t batch = state.range(0) == kDrain ? kStream : static_cast<std::uint64_t>(state.range(0));
  const std::array<std::byte, 64> sent{};
  std::array<std::byte, 64> received{};
  stream(
      state,
      [&](std::uint64_t left) {
        std::uint64_t count = 0;
        for (; count < std::min(batch, left); ++count) {
          const Result<bool> written = ring.out.write({.payload = sent});
          VMBUSD_ASSERT(written.has_value());
          if (!*written) break;
        }
        VMBUSD_ASSERT(ring.out.commit().has_value());
        return count;
      },
      [&] {
        std::uint64_t count = 0;
        for (; count < batch; ++count) {
          const Result<const ring::Packet*> packet = ring.in.next();
          VMBUSD_ASSERT(packet.has_value());
          if (*packet == nullptr) break;
          ring.in.read_payload(**packet, 0, received);
          benchmark::DoNotOptimize(received);
        }
        benchmark::DoNotOptimize(ring.in.release());
        return count;
      });
}
BENCHMARK(two_threads)->ArgName("batch")->Arg(1)->Arg(16)->Arg(kDrain)->UseRealTime();

void two_threads_plain_ring(benchmark::State& state) {
  const Pages pages;
  PlainRing ring(pages.control(), pages.data(), kDataBytes);
  const std::array<std::byte, 64> sent{};
  std::array<std::byte, 64> received{};
  stream(
      state, [&](std::uint64_t) { return ring.write(sent) ? 1 : 0; },
      [&] {
        const bool came = ring.read(received);
        benchmark::DoNotOptimize(received);
        return came ? 1 : 0;
      });
}
BENCHMARK(two_threads_plain_ring)->UseRealTime();

// A GPA-direct packet with so many ranges, each a page that does not follow the one before.
std::vector<std::uint64_t> gpa_extension(std::uint32_t ranges) {
  std::vector<std::uint64_t> extension = {std::bit_cast<std::uint64_t>(ring::GpaDirectHeader{0, ranges})};
  for (std::uint32_t i = 0; i < ranges; ++i) {
    extension.push_back(std::bit_cast<std::uint64_t>(ring::GpaRange{4096, 0}));
    extension.push_back(100 + 2 * i);
  }
  return extension;
}
ring::PacketToWrite gpa_packet(std::span<const std::uint64_t> extension, std::span<const std::byte> payload) {
  return {.type = ring::PacketType::kGpaDirect, .extension = std::as_bytes(extension), .payload = payload};
}

// Reading the ranges only.
void gpa_list(benchmark::State& state) {
  Ring ring(state.range(1));
  const auto ranges = static_cast<std::uint32_t>(state.range(0));
  const std::vector<std::uint64_t> extension = gpa_extension(ranges);
  VMBUSD_ASSERT(ring.out.write(gpa_packet(extension, {})) && ring.out.commit());
  const Result<const ring::Packet*> packet = ring.in.next();
  VMBUSD_ASSERT(packet && *packet != nullptr);
  std::array<ring::GpaSegment, 64> segments;
  for ([[maybe_unused]] auto iteration : state) {
    const Result<ring::GpaList> list = ring::read_gpa_list(ring.in, **packet, 64, 1 << 20, segments);
    VMBUSD_ASSERT(list && list->segments == ranges);
    benchmark::DoNotOptimize(segments);
  }
  state.SetItemsProcessed(state.iterations() * ranges);
}
BENCHMARK(gpa_list)
    ->ArgNames({"ranges", "memory"})
    ->ArgsProduct({{1, 16, 64}, {kPlain, kMirrored, kSegmented}});

// One thread writes such a packet with a payload of 64 B, and reads both.
void gpa_cycle(benchmark::State& state) {
  Ring ring(state.range(1));
  const auto ranges = static_cast<std::uint32_t>(state.range(0));
  const std::vector<std::uint64_t> extension = gpa_extension(ranges);
  std::array<std::byte, 64> sent{};
  std::array<std::byte, 64> received{};
  std::array<ring::GpaSegment, 64> segments;
  for ([[maybe_unused]] auto iteration : state) {
    benchmark::DoNotOptimize(sent);
    const Result<bool> written = ring.out.write(gpa_packet(extension, sent));
    VMBUSD_ASSERT(written && *written && ring.out.commit());
    const Result<const ring::Packet*> packet = ring.in.next();
    VMBUSD_ASSERT(packet && *packet != nullptr);
    const Result<ring::GpaList> list = ring::read_gpa_list(ring.in, **packet, 64, 1 << 20, segments);
    VMBUSD_ASSERT(list && list->segments == ranges);
    ring.in.read_payload(**packet, 0, received);
    benchmark::DoNotOptimize(segments);
    benchmark::DoNotOptimize(received);
    benchmark::DoNotOptimize(ring.in.release());
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(gpa_cycle)
    ->ArgNames({"ranges", "memory"})
    ->ArgsProduct({{1, 16, 64}, {kPlain, kMirrored, kSegmented}});

}  // namespace
}  // namespace vmbusd::bench
