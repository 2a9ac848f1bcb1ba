// Opens the image behind a disk.
#pragma once

#include <string>

#include "base/log.h"
#include "base/result.h"
#include "daemon/config.h"

namespace vmbusd::daemon {

// Bytes of a regular file or block device now. Where `size_bytes` is more than 0, a regular file is made so
// large first, never smaller. Errc::kConfig or kOs: why it cannot be.
[[nodiscard]] Result<std::uint64_t> grow_image(int image, std::uint64_t size_bytes);

// Opens the image as the configuration has it, and locks it against other programs that lock what they use:
// as QEMU does: readers share it, a writer has it alone. The locks live as long as any duplicate of
// `disk.fd`. Logs where DirectIo::kAuto has to use the page cache. Opens, or makes, the file of its
// reservations too, and has that alone. `restarted`: waits, some seconds at most, for accesses that a vmbusd
// before this one has lent and left behind. On failure a sentence for the operator; empty on success.
[[nodiscard]] std::string open_disk_image(const ImageConfig& image, const LogScope& log,
                                          storvsp::DiskConfig& disk, bool restarted = false);

// What tells the file or device from every other of this host.
[[nodiscard]] std::string image_identity(int image);

// A worker's own access to an image: an open file description that holds a lock of this number until the
// kernel is done with all that the worker asked it for, which a read or write in flight can be long after the
// worker's death. `image` stays the supervisor's. Errc::kOs where the file cannot be opened once more or
// locked.
[[nodiscard]] Result<UniqueFd> lend_image(int image, std::uint32_t number);
// Gives up the locks of open_disk_image(), while others that were lent hold theirs.
void unlock_image(int image);
// Whether no access of this number is left. True where that cannot be known.
[[nodiscard]] bool image_returned(int image, std::uint32_t number);

}  // namespace vmbusd::daemon
