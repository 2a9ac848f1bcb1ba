// The guest's RAM: one memfd, mapped once here, handed to the hypervisor by address and to vmbusd by
// descriptor.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/fd.h"
#include "base/result.h"

namespace vmbusd::vmm {

// Set up once and constant from then on; the bytes behind it are guest-controlled while vCPUs run.
class GuestRam {
 public:
  struct Region {
    std::uint64_t gpa;
    std::uint64_t size;
    std::byte* host;       // guest-controlled
    std::uint64_t offset;  // in fd()
  };

  // `size` in bytes, a multiple of 1 MiB (2 MiB with `hugepages`), kMemorySizeMin..kMemorySizeMax. The memory
  // reads as zero. Without `hugepages` its pages are taken from the host as the guest touches them.
  [[nodiscard]] static Result<GuestRam> create(std::uint64_t size, bool hugepages);
  ~GuestRam();
  GuestRam(GuestRam&& other) noexcept;
  GuestRam& operator=(GuestRam&&) = delete;
  GuestRam(const GuestRam&) = delete;
  GuestRam& operator=(const GuestRam&) = delete;

  [[nodiscard]] std::uint64_t size() const { return size_; }
  // Sealed against resizing, so neither side can make the other's mapping fault.
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] std::span<const Region> regions() const { return std::span(regions_).first(region_count_); }

  // The bytes of [gpa, gpa + size); an empty span where that is not wholly inside one region or `size` is 0.
  [[nodiscard]] std::span<std::byte> at(std::uint64_t gpa, std::uint64_t size) const;

 private:
  GuestRam() = default;

  UniqueFd fd_;
  std::byte* host_ = nullptr;
  std::uint64_t size_ = 0;
  std::array<Region, 2> regions_{};
  std::size_t region_count_ = 0;
};

}  // namespace vmbusd::vmm
