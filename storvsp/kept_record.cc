#include "storvsp/kept_record.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/crc.hpp>
#include <cerrno>
#include <optional>
#include <utility>

#include "base/assert.h"
#include "base/wire.h"

namespace vmbusd::storvsp {
namespace {

constexpr std::uint64_t kMagic = 0x3164'7065'6b62'6d76;  // "vmbkepd1"
constexpr std::size_t kSlots = 2;
constexpr off_t kSlotDistance = 4096;  // so that no write of one touches a block of the other

struct Slot {
  std::uint64_t magic;
  std::uint64_t sequence;
  std::uint32_t length;
  std::uint32_t crc;  // of the slot with 0 here
  std::array<std::byte, KeptRecord::kBytesMax> bytes;
};
static_assert(kIsWire<Slot, 24 + KeptRecord::kBytesMax>);

// The first, number 1, is at the file's beginning.
off_t place_of(std::uint64_t sequence) {
  return static_cast<off_t>((sequence - 1) % kSlots) * kSlotDistance;
}

std::uint32_t crc_of(Slot slot) {
  slot.crc = 0;
  boost::crc_32_type crc;
  crc.process_bytes(&slot, sizeof slot);
  return crc.checksum();
}

std::optional<Slot> read_slot(int fd, off_t place) {
  Slot slot;
  if (::pread(fd, &slot, sizeof slot, place) != static_cast<ssize_t>(sizeof slot)) return std::nullopt;
  const bool whole = slot.magic == kMagic && slot.length <= slot.bytes.size() && slot.crc == crc_of(slot) &&
                     place_of(slot.sequence) == place;
  return whole ? std::optional(slot) : std::nullopt;
}

}  // namespace

bool KeptRecord::fits(int fd) {
  std::uint64_t magic = 0;
  const ssize_t size = ::pread(fd, &magic, sizeof magic, 0);
  // Zeros: the host failed while the first record was on its way.
  return size == 0 || (size == static_cast<ssize_t>(sizeof magic) && (magic == kMagic || magic == 0));
}

KeptRecord::KeptRecord(UniqueFd fd) : fd_(std::move(fd)) {
  if (!fd_) return;
  for (std::uint64_t i = 1; i <= kSlots; ++i) {
    const std::optional<Slot> slot = read_slot(fd_.get(), place_of(i));
    if (!slot || slot->sequence < sequence_) continue;
    sequence_ = slot->sequence;
    bytes_ = slot->bytes;
    size_ = slot->length;
  }
}

int KeptRecord::replace(std::span<const std::byte> bytes) noexcept {
  VMBUSD_ASSERT(bytes.size() <= kBytesMax);
  if (!fd_) return EOPNOTSUPP;
  Slot slot{};
  slot.magic = kMagic;
  slot.sequence = sequence_ + 1;
  slot.length = static_cast<std::uint32_t>(bytes.size());
  std::copy(bytes.begin(), bytes.end(), slot.bytes.begin());
  slot.crc = crc_of(slot);
  const ssize_t written = ::pwrite(fd_.get(), &slot, sizeof slot, place_of(slot.sequence));
  if (written < 0) return errno;
  if (written != static_cast<ssize_t>(sizeof slot)) return ENOSPC;
  if (::fdatasync(fd_.get()) != 0) return errno;
  sequence_ = slot.sequence;
  bytes_ = slot.bytes;
  size_ = bytes.size();
  return 0;
}

}  // namespace vmbusd::storvsp
