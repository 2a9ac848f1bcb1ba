// What a worker process leaves to the one that takes its place: a file in memory that the supervisor keeps.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace vmbusd::devices {

// A channel's part of a RecoveryArea, mapped; or private memory for a channel that nobody will take up.
// Zeroed where it is new; pages cost memory once they are touched.
class RecoveryRegion {
 public:
  // Enough for the longest page lists of as many requests as a storage channel holds.
  static constexpr std::size_t kBytes = std::size_t{32} << 20;

  RecoveryRegion() = default;
  ~RecoveryRegion();
  RecoveryRegion(RecoveryRegion&& other) noexcept;
  RecoveryRegion& operator=(RecoveryRegion&& other) noexcept;

  [[nodiscard]] static Result<RecoveryRegion> make_private();

  [[nodiscard]] std::span<std::byte> bytes() const { return {data_, kBytes}; }

 private:
  friend class RecoveryArea;
  explicit RecoveryRegion(std::byte* data) : data_(data) {}

  std::byte* data_ = nullptr;
};

//   0          header: magic, version, transitions, snapshot's size and checksum
//   4096       snapshot: the bus's control state, written by the control thread
//   kSnapshotEnd + relid * RecoveryRegion::kBytes    what the channel's handler keeps, written as it goes
//
// The snapshot and the regions are what the guest and the VMM have been told only while no transition is
// under way. A worker that dies inside one cannot be followed: its partition starts anew. That keeps the
// snapshot simple (no two versions of it, no order between an answer and its record), and loses nothing while
// guests do I/O, which is no transition.
class RecoveryArea {
 public:
  // An empty one, for map(). The supervisor's: it never maps it. Locked: the lock goes with the last
  // descriptor of its or of its workers' that stands for this one, thus when all of them are gone.
  [[nodiscard]] static Result<UniqueFd> make_file();
  // The same file for a VMM to keep, which cannot write it unless it is the supervisor's own user. Needs
  // /proc.
  [[nodiscard]] static Result<UniqueFd> open_for_vmm(int file);
  // Whether it can be such a file, by its kind and size. Asks no file system that somebody else serves.
  [[nodiscard]] static Result<void> examine(int from_vmm);
  // What a VMM gave back, for map() once it is locked. Errc::kProtocol where it is no such file or another
  // user's, so that whoever may have written it has been a worker of ours.
  [[nodiscard]] static Result<UniqueFd> adopt(int from_vmm);
  // False while those that had it before are not all gone.
  [[nodiscard]] static bool lock(int file);
  [[nodiscard]] static Result<std::unique_ptr<RecoveryArea>> map(UniqueFd file);
  ~RecoveryArea();
  RecoveryArea(const RecoveryArea&) = delete;
  RecoveryArea& operator=(const RecoveryArea&) = delete;

  // What the last worker left, a private copy. Errc::kWrongState where it died in a transition or had no
  // guest, kProtocol where it is of another version or damaged. A transition begins either way.
  [[nodiscard]] Result<std::vector<std::byte>> take_snapshot();

  // Inside a transition, the control thread. False, and there is none then, where it is too large.
  bool write_snapshot(std::span<const std::byte> snapshot);
  // There is nothing to be taken up any more. Control thread.
  void forget();

  // Any thread: what is recorded is behind what was said from enter() to leave(). Nest.
  void enter();
  void leave();

  // The part of the channel `relid` (1..vmbus::kMaxChannels); `fresh`: emptied before.
  [[nodiscard]] Result<RecoveryRegion> region(std::uint32_t relid, bool fresh);

 private:
  struct Header;
  RecoveryArea(UniqueFd file, std::byte* memory) : file_(std::move(file)), memory_(memory) {}
  [[nodiscard]] Header& header() const;

  UniqueFd file_;
  std::byte* memory_;
};

}  // namespace vmbusd::devices
