// The RAM of the user-space child partition: a memfd at guest-physical address 0, and its page allocator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "ringbuffer/protocol.h"

namespace vmbusd::guest {

inline constexpr std::uint32_t kPageSize = ring::kPageSize;
using Gpn = std::uint64_t;  // guest page number: GPA / kPageSize

class Ram;

// Guest pages that belong to one holder; zeroed when they were taken. Gives them back when destroyed. The Ram
// must outlive it.
class Pages {
 public:
  Pages() = default;
  Pages(Pages&& other) noexcept;
  Pages& operator=(Pages&& other) noexcept;
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { release(); }

  [[nodiscard]] std::span<const Gpn> gpns() const { return gpns_; }
  [[nodiscard]] std::uint64_t gpa(std::size_t page = 0) const { return gpns_[page] * kPageSize; }
  [[nodiscard]] std::byte* host(std::size_t page = 0) const;
  [[nodiscard]] std::size_t bytes() const { return gpns_.size() * kPageSize; }

  // Copy to and from the pages as if they followed each other. `offset` + size must be inside bytes().
  void write(std::size_t offset, std::span<const std::byte> from) const;
  void read(std::size_t offset, std::span<std::byte> into) const;

  void release();
  // Leaves them taken for good: for memory that the host may still touch.
  void abandon() { gpns_.clear(); }

 private:
  friend class Ram;
  Pages(Ram& ram, std::vector<Gpn> gpns) : ram_(&ram), gpns_(std::move(gpns)) {}

  Ram* ram_ = nullptr;
  std::vector<Gpn> gpns_;
};

enum class Layout : std::uint8_t {
  kContiguous,  // each page follows the one before
  kScattered,   // none does
};

// Any thread.
class Ram {
 public:
  // `bytes` is a multiple of 4096. Page 0 is never given out, so that a zero GPA stands out.
  [[nodiscard]] static Result<std::unique_ptr<Ram>> create(std::uint64_t bytes);
  ~Ram();
  Ram(const Ram&) = delete;
  Ram& operator=(const Ram&) = delete;

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] std::uint64_t size() const { return used_.size() * kPageSize; }
  // `gpa` < size().
  [[nodiscard]] std::byte* host(std::uint64_t gpa) const { return base_ + gpa; }

  // Errc::kMemory where there are not enough free pages left in that layout.
  [[nodiscard]] Result<Pages> take(std::size_t count, Layout layout = Layout::kContiguous);

 private:
  friend class Pages;
  Ram(UniqueFd fd, std::byte* base, std::uint64_t bytes);
  [[nodiscard]] std::vector<Gpn> find_contiguous(std::size_t count) const;
  [[nodiscard]] std::vector<Gpn> find_scattered(std::size_t count) const;
  void give(std::span<const Gpn> gpns);

  UniqueFd fd_;
  std::byte* base_;
  std::mutex mutex_;        // of used_
  std::vector<bool> used_;  // per page
};

}  // namespace vmbusd::guest
