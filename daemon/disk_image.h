// Opens the image behind a disk.
#pragma once

#include <string>

#include "base/log.h"
#include "daemon/config.h"

namespace vmbusd::daemon {

// Opens the image as the configuration has it, and locks it against other programs that lock what they use:
// as QEMU does: readers share it, a writer has it alone. The locks live as long as any duplicate of
// `disk.fd`. Logs where DirectIo::kAuto has to use the page cache. On failure a sentence for the operator;
// empty on success.
[[nodiscard]] std::string open_disk_image(const ImageConfig& image, const LogScope& log,
                                          storvsp::DiskConfig& disk);

}  // namespace vmbusd::daemon
