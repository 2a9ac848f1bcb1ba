// Helpers for KVM's ioctls.
#pragma once

#include <sys/ioctl.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace vmbusd::vmm::kvm {

// ioctl() that is tried again when a signal interrupts it. Returns what ioctl() does; -1 and errno on
// failure.
template <typename Argument>
[[nodiscard]] int retry_ioctl(int fd, unsigned long request, Argument argument) {
  int result;
  do {
    result = ::ioctl(fd, request, argument);
  } while (result < 0 && errno == EINTR);
  return result;
}

// kvm_cpuid2, kvm_msrs and kvm_irq_routing: u32 count, u32 unused, then the entries. The kernel's own structs
// cannot be used: their flexible arrays sit behind an empty struct, which takes no room in C but 4 to 8 bytes
// in C++
// (__DECLARE_FLEX_ARRAY in linux/stddef.h before 6.7). That spoils the ioctls' numbers too, which hold the
// size.
inline constexpr std::size_t kTableHeaderSize = 8;

// The true number of an ioctl that takes such a table.
[[nodiscard]] constexpr unsigned long table_request(unsigned long request) {
  return (request & ~(std::uint64_t{_IOC_SIZEMASK} << _IOC_SIZESHIFT)) | kTableHeaderSize << _IOC_SIZESHIFT;
}

template <typename Entry>
class Table {
 public:
  explicit Table(std::size_t count) : words_((kTableHeaderSize + count * sizeof(Entry) + 7) / 8) {
    const auto stored = static_cast<std::uint32_t>(count);
    std::memcpy(words_.data(), &stored, sizeof stored);
  }
  explicit Table(std::span<const Entry> entries) : Table(entries.size()) {
    std::memcpy(bytes() + kTableHeaderSize, entries.data(), entries.size_bytes());
  }

  // What the ioctl takes.
  [[nodiscard]] void* data() { return words_.data(); }
  // The entries as the kernel left them; never more than there was room for.
  [[nodiscard]] std::vector<Entry> entries() const {
    std::uint32_t count = 0;
    std::memcpy(&count, words_.data(), sizeof count);
    const std::size_t room = (words_.size() * 8 - kTableHeaderSize) / sizeof(Entry);
    std::vector<Entry> copied(count < room ? count : room);
    std::memcpy(copied.data(), bytes() + kTableHeaderSize, copied.size() * sizeof(Entry));
    return copied;
  }

 private:
  static_assert(alignof(Entry) <= 8);

  [[nodiscard]] char* bytes() { return reinterpret_cast<char*>(words_.data()); }
  [[nodiscard]] const char* bytes() const { return reinterpret_cast<const char*>(words_.data()); }

  std::vector<std::uint64_t> words_;
};

}  // namespace vmbusd::vmm::kvm
