#include "devices/recovery_area.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "vmbus/server.h"

namespace vmbusd::devices {

namespace {

constexpr std::uint64_t kMagic = 0x72766f6365726d76;
// To be raised with every change of what is recorded, here or in a channel's region.
constexpr std::uint32_t kLayout = 3;

constexpr std::size_t kHeaderBytes = 4096;
// All GPADLs that a guest may have at once, and some for the rest.
constexpr std::size_t kSnapshotBytesMax = std::size_t{4} << 20;
constexpr std::size_t kSnapshotEnd = kHeaderBytes + kSnapshotBytesMax;
constexpr std::size_t kFileBytes =
    kSnapshotEnd + (std::size_t{vmbus::kMaxChannels} + 1) * RecoveryRegion::kBytes;

// FNV-1a, by words: against a worker that wrote where it should not have, not against a malicious one.
std::uint64_t checksum(std::span<const std::byte> bytes) {
  constexpr std::uint64_t kPrime = 0x100000001b3;
  std::uint64_t sum = 0xcbf29ce484222325;
  while (!bytes.empty()) {
    std::uint64_t word = 0;
    const std::size_t size = std::min(bytes.size(), sizeof word);
    std::memcpy(&word, bytes.data(), size);
    sum = (sum ^ word) * kPrime;
    bytes = bytes.subspan(size);
  }
  return sum;
}

constexpr mode_t kOwnerOnly = S_IRUSR | S_IWUSR;

// The same file by an open file description of its own.
Result<UniqueFd> open_again(int file, int flags) {
  UniqueFd again(::open(fmt::format("/proc/self/fd/{}", file).c_str(), flags | O_CLOEXEC));
  if (!again) return fail_os(errno, "cannot open a recovery area once more");
  return again;
}

}  // namespace

struct RecoveryArea::Header {
  std::uint64_t magic;
  std::uint32_t layout;
  std::uint32_t transitions;
  std::uint64_t snapshot_bytes;  // 0: none
  std::uint64_t snapshot_checksum;
};

RecoveryRegion::~RecoveryRegion() {
  if (data_ != nullptr) ::munmap(data_, kBytes);
}

RecoveryRegion::RecoveryRegion(RecoveryRegion&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)) {}

RecoveryRegion& RecoveryRegion::operator=(RecoveryRegion&& other) noexcept {
  std::swap(data_, other.data_);
  return *this;
}

Result<RecoveryRegion> RecoveryRegion::make_private() {
  void* const memory =
      ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return fail_os(errno, "cannot reserve memory for a channel");
  return RecoveryRegion(static_cast<std::byte*>(memory));
}

Result<UniqueFd> RecoveryArea::make_file() {
  UniqueFd file(::memfd_create("vmbusd-recovery", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file || ::ftruncate(file.get(), static_cast<off_t>(kFileBytes)) != 0 ||
      ::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0 ||
      ::fchmod(file.get(), kOwnerOnly) != 0) {
    return fail_os(errno, "cannot make a recovery area");
  }
  if (!lock(file.get())) return fail(Errc::kOs, "cannot lock a recovery area");
  return file;
}

Result<UniqueFd> RecoveryArea::open_for_vmm(int file) {
  return open_again(file, O_RDONLY);
}

Result<void> RecoveryArea::examine(int from_vmm) {
  // Files in memory alone have seals. With that of its size, no access to it can be beyond its end.
  const int seals = ::fcntl(from_vmm, F_GET_SEALS);
  struct stat status {};
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || ::fstat(from_vmm, &status) != 0 ||
      !S_ISREG(status.st_mode) || static_cast<std::uint64_t>(status.st_size) != kFileBytes) {
    return fail(Errc::kProtocol, "it is no recovery area of this version");
  }
  return {};
}

Result<UniqueFd> RecoveryArea::adopt(int from_vmm) {
  VMBUSD_CHECK(examine(from_vmm));
  struct stat status {};
  if (::fstat(from_vmm, &status) != 0) return fail_os(errno, "cannot examine it");
  if (status.st_uid != ::geteuid() || (status.st_mode & ALLPERMS) != kOwnerOnly) {
    return fail(Errc::kProtocol, "it was made by another user");
  }
  return open_again(from_vmm, O_RDWR);
}

bool RecoveryArea::lock(int file) {
  struct flock whole {};
  whole.l_type = F_WRLCK;
  whole.l_whence = SEEK_SET;
  return ::fcntl(file, F_OFD_SETLK, &whole) == 0;
}

Result<std::unique_ptr<RecoveryArea>> RecoveryArea::map(UniqueFd file) {
  void* const memory =
      ::mmap(nullptr, kSnapshotEnd, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file.get(), 0);
  if (memory == MAP_FAILED) return fail_os(errno, "cannot map the recovery area");
  return std::unique_ptr<RecoveryArea>(new RecoveryArea(std::move(file), static_cast<std::byte*>(memory)));
}

RecoveryArea::~RecoveryArea() {
  ::munmap(memory_, kSnapshotEnd);
}

RecoveryArea::Header& RecoveryArea::header() const {
  return *reinterpret_cast<Header*>(memory_);
}

Result<std::vector<std::byte>> RecoveryArea::take_snapshot() {
  const Header seen = header();
  header() = {
      .magic = kMagic, .layout = kLayout, .transitions = 1, .snapshot_bytes = 0, .snapshot_checksum = 0};
  if (seen.magic == 0) return fail(Errc::kWrongState, "nothing was recorded");
  if (seen.magic != kMagic || seen.layout != kLayout) {
    return fail(Errc::kProtocol, "what the last worker recorded is of another version");
  }
  if (seen.transitions != 0) {
    return fail(Errc::kWrongState, "the last worker died while the guest or its VMM changed something");
  }
  if (seen.snapshot_bytes == 0) return fail(Errc::kWrongState, "there was no guest");
  if (seen.snapshot_bytes > kSnapshotBytesMax) return fail(Errc::kProtocol, "what was recorded is damaged");
  const std::byte* const begin = memory_ + kHeaderBytes;
  std::vector<std::byte> snapshot(begin, begin + seen.snapshot_bytes);
  if (checksum(snapshot) != seen.snapshot_checksum) {
    return fail(Errc::kProtocol, "what was recorded is damaged");
  }
  return snapshot;
}

bool RecoveryArea::write_snapshot(std::span<const std::byte> snapshot) {
  header().snapshot_bytes = 0;
  if (snapshot.size() > kSnapshotBytesMax) return false;
  std::copy(snapshot.begin(), snapshot.end(), memory_ + kHeaderBytes);
  header().snapshot_checksum = checksum(snapshot);
  header().snapshot_bytes = snapshot.size();
  return true;
}

void RecoveryArea::forget() {
  header().snapshot_bytes = 0;
}

// seq_cst: nothing of what the transition covers is recorded before it begins or after it ends. The reader
// comes when the writer is dead, so the order in the program is all that matters.
void RecoveryArea::enter() {
  std::atomic_ref(header().transitions).fetch_add(1, std::memory_order_seq_cst);
}

void RecoveryArea::leave() {
  const std::uint32_t before = std::atomic_ref(header().transitions).fetch_sub(1, std::memory_order_seq_cst);
  VMBUSD_ASSERT(before != 0);
}

Result<RecoveryRegion> RecoveryArea::region(std::uint32_t relid, bool fresh) {
  VMBUSD_ASSERT(relid != 0 && relid <= vmbus::kMaxChannels);
  const std::size_t offset = kSnapshotEnd + relid * RecoveryRegion::kBytes;
  void* const memory = ::mmap(nullptr, RecoveryRegion::kBytes, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_NORESERVE, file_.get(), static_cast<off_t>(offset));
  if (memory == MAP_FAILED) return fail_os(errno, "cannot map a channel's recovery region");
  RecoveryRegion region(static_cast<std::byte*>(memory));
  if (fresh && ::madvise(memory, RecoveryRegion::kBytes, MADV_REMOVE) != 0) {
    return fail_os(errno, "cannot empty a channel's recovery region");
  }
  return region;
}

}  // namespace vmbusd::devices
