// A ring's memory for tests, in every shape that RingMemory knows, with a view of the raw bytes beside it.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "base/assert.h"
#include "base/fd.h"
#include "ringbuffer/incoming_ring.h"
#include "ringbuffer/outgoing_ring.h"
#include "ringbuffer/ring_memory.h"
#include "tests/catch.h"

namespace vmbusd::ring {

enum class Shape { kPlain, kMirrored, kMirroredScattered, kSegmented };
inline constexpr std::array kAllShapes = {Shape::kPlain, Shape::kMirrored, Shape::kMirroredScattered,
                                          Shape::kSegmented};

inline const char* name_of(Shape shape) {
  constexpr std::array kNames = {"plain", "mirrored", "mirrored from scattered pages", "segmented"};
  return kNames.at(static_cast<std::size_t>(shape));
}

// A control page and `pages` data pages in a memfd, zeroed as a guest leaves them. The scattered shapes put
// the data pages into the memfd in reverse.
class TestRing {
 public:
  explicit TestRing(Shape shape, std::uint32_t pages = 3) : shape_(shape), pages_(pages) {
    fd_.reset(::memfd_create("ring", MFD_CLOEXEC));
    VMBUSD_ASSERT(fd_ && ::ftruncate(fd_.get(), static_cast<off_t>(bytes())) == 0);
    void* const map = ::mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    VMBUSD_ASSERT(map != MAP_FAILED);
    base_ = static_cast<std::byte*>(map);
  }
  ~TestRing() { ::munmap(base_, bytes()); }
  TestRing(const TestRing&) = delete;
  TestRing& operator=(const TestRing&) = delete;

  [[nodiscard]] std::uint32_t size() const { return pages_ * kPageSize; }
  [[nodiscard]] ControlPage& control() const { return *reinterpret_cast<ControlPage*>(base_); }

  // A new view; any number may exist.
  [[nodiscard]] RingMemory memory() const {
    switch (shape_) {
      case Shape::kPlain:
        return RingMemory::plain(&control(), data_page(0), size());
      case Shape::kMirrored:
      case Shape::kMirroredScattered: {
        auto mirrored = RingMemory::make_mirrored(&control(), mapped_pages());
        VMBUSD_ASSERT(mirrored.has_value());
        return std::move(*mirrored);
      }
      case Shape::kSegmented:
        break;
    }
    std::vector<std::byte*> hosts;
    for (std::uint32_t page = 0; page < pages_; ++page) hosts.push_back(data_page(page));
    return RingMemory::segmented(&control(), std::move(hosts));
  }

  [[nodiscard]] std::vector<RingMemory::MappedPage> mapped_pages() const {
    std::vector<RingMemory::MappedPage> mapped;
    for (std::uint32_t page = 0; page < pages_; ++page) {
      mapped.push_back({data_page(page), fd_.get(), data_page(page) - base_});
    }
    return mapped;
  }

  // The byte at a ring offset, which wraps.
  [[nodiscard]] std::byte& at(std::uint32_t offset) const {
    offset %= size();
    return data_page(offset / kPageSize)[offset % kPageSize];
  }
  void poke(std::uint32_t offset, std::span<const std::byte> bytes) const {
    for (const std::byte byte : bytes) at(offset++) = byte;
  }
  [[nodiscard]] std::vector<std::byte> peek(std::uint32_t offset, std::uint32_t count) const {
    std::vector<std::byte> bytes;
    for (std::uint32_t i = 0; i < count; ++i) bytes.push_back(at(offset + i));
    return bytes;
  }
  void set_indices(std::uint32_t read_index, std::uint32_t write_index) const {
    control().read_index = read_index;
    control().write_index = write_index;
  }

 private:
  [[nodiscard]] std::size_t bytes() const { return std::size_t{pages_ + 1} * kPageSize; }
  [[nodiscard]] std::byte* data_page(std::uint32_t page) const {
    const bool reversed = shape_ == Shape::kMirroredScattered || shape_ == Shape::kSegmented;
    return base_ + std::size_t{reversed ? pages_ - page : page + 1} * kPageSize;
  }

  Shape shape_;
  std::uint32_t pages_;
  UniqueFd fd_;
  std::byte* base_;
};

// The next packet, which must be there.
inline Packet take(IncomingRing& ring) {
  const Result<const Packet*> packet = ring.next();
  REQUIRE(packet);
  REQUIRE(*packet != nullptr);
  return **packet;
}

// Whether next() says, without an error, that there is no packet.
inline bool is_empty(IncomingRing& ring) {
  const Result<const Packet*> packet = ring.next();
  return packet && *packet == nullptr;
}

// What went wrong; empty where nothing did.
template <typename T>
std::optional<Errc> error_of(const Result<T>& result) {
  if (result) return std::nullopt;
  return result.error().code;
}

// Bytes 1, 2, 3, ... that differ for each `seed`.
inline std::vector<std::byte> pattern(std::size_t size, std::uint32_t seed = 0) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i + 1 + seed * 7);
  return bytes;
}

inline std::vector<std::byte> bytes_of(std::initializer_list<int> values) {
  std::vector<std::byte> bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

}  // namespace vmbusd::ring
