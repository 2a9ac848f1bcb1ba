// What an NBD server says of an export, in the handshake that each connection begins with.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/result.h"

struct nbd_handle;

namespace vmbusd::storvsp {

struct NbdExport {
  std::uint64_t size_bytes = 0;
  std::uint32_t block_bytes = 512;               // smallest unit that can be read and written, >= 512
  std::uint32_t preferred_bytes = 4096;          // unit without read-modify-write
  std::uint32_t transfer_bytes_max = 32u << 20;  // of one read or write; a multiple of 4096
  bool writable = false;
  bool rotational = false;
  bool flushes = false;  // NBD_CMD_FLUSH makes durable what was written
  bool fua = false;      // a write may be durable when it is answered
  bool trims = false;    // NBD_CMD_TRIM gives space back
  bool zeroes = false;   // NBD_CMD_WRITE_ZEROES
  bool extents = false;  // NBD_CMD_BLOCK_STATUS of base:allocation

  // Whether a disk that was made from `other` can go on with this: nothing that it relies on is missing.
  [[nodiscard]] bool serves(const NbdExport& other) const;
  friend bool operator==(const NbdExport&, const NbdExport&) = default;
};

struct NbdHandleCloser {
  void operator()(nbd_handle* handle) const;
};
using NbdHandle = std::unique_ptr<nbd_handle, NbdHandleCloser>;

// A handle of libnbd's, ready to be given a socket. nullptr: no memory, or a name that no export has. One
// thread.
[[nodiscard]] NbdHandle make_nbd_handle(const std::string& export_name);
// Of a handle whose handshake is over. Errc::kUnsupported: blocks or transfers of a size that no guest's disk
// can have.
[[nodiscard]] Result<NbdExport> read_nbd_export(nbd_handle* handle);
// Does a handshake on a socket that is connected, waiting `time_max` at most, and says goodbye. On failure a
// clause for the operator; empty on success.
[[nodiscard]] std::string probe_nbd(UniqueFd socket, const std::string& export_name,
                                    std::chrono::milliseconds time_max, NbdExport& found);

}  // namespace vmbusd::storvsp
