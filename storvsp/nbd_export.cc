#include "storvsp/nbd_export.h"

#include <libnbd.h>
#include <poll.h>

#include <algorithm>
#include <bit>
#include <cerrno>

namespace vmbusd::storvsp {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint32_t kBlockMin = 512;
constexpr std::uint32_t kBlockMax = 4096;  // that a guest can be told
constexpr std::uint32_t kTransferMax = 32u
                                       << 20;  // [NBD protocol: Block size constraints], where none is told

// One step of the handshake, when the socket allows it. False where the time is over or the peer is gone.
bool step(nbd_handle* handle, Clock::time_point due) {
  const unsigned direction = nbd_aio_get_direction(handle);
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(due - Clock::now()).count();
  pollfd socket{nbd_aio_get_fd(handle), 0, 0};
  if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0) socket.events |= POLLIN;
  if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) socket.events |= POLLOUT;
  if (left <= 0) return false;
  const int ready = ::poll(&socket, 1, static_cast<int>(left));
  if (ready < 0) return errno == EINTR;
  if (ready == 0) return false;
  // What is neither is an end, which a read finds.
  const bool write = (socket.revents & POLLOUT) != 0;
  return (write ? nbd_aio_notify_write(handle) : nbd_aio_notify_read(handle)) == 0;
}

}  // namespace

bool NbdExport::serves(const NbdExport& other) const {
  return size_bytes == other.size_bytes && block_bytes <= other.block_bytes &&
         transfer_bytes_max >= other.transfer_bytes_max && writable >= other.writable &&
         flushes >= other.flushes && fua >= other.fua && trims >= other.trims && zeroes >= other.zeroes &&
         extents >= other.extents;
}

void NbdHandleCloser::operator()(nbd_handle* handle) const {
  nbd_close(handle);
}

NbdHandle make_nbd_handle(const std::string& export_name) {
  NbdHandle handle(nbd_create());
  if (handle == nullptr || nbd_set_export_name(handle.get(), export_name.c_str()) != 0 ||
      nbd_add_meta_context(handle.get(), LIBNBD_CONTEXT_BASE_ALLOCATION) != 0) {
    return nullptr;
  }
  // What a buffer holds before it is read into is its guest's own.
  (void)nbd_set_pread_initialize(handle.get(), false);
  return handle;
}

Result<NbdExport> read_nbd_export(nbd_handle* handle) {
  const auto told = [handle](int kind) {
    const std::int64_t bytes = nbd_get_block_size(handle, kind);
    return static_cast<std::uint64_t>(std::max<std::int64_t>(bytes, 0));  // 0 where nothing is told
  };
  NbdExport found;
  found.size_bytes = static_cast<std::uint64_t>(std::max<std::int64_t>(nbd_get_size(handle), 0));
  const std::uint64_t block = std::max<std::uint64_t>(told(LIBNBD_SIZE_MINIMUM), kBlockMin);
  if (block > kBlockMax || !std::has_single_bit(block)) {
    return fail(Errc::kUnsupported, "the server's smallest block is larger than 4096 bytes");
  }
  found.block_bytes = static_cast<std::uint32_t>(block);
  const std::uint64_t preferred = told(LIBNBD_SIZE_PREFERRED);
  if (preferred != 0 && std::has_single_bit(preferred) && preferred <= kTransferMax) {
    found.preferred_bytes = static_cast<std::uint32_t>(preferred);
  }
  const std::uint64_t transfer = told(LIBNBD_SIZE_MAXIMUM);
  found.transfer_bytes_max =
      transfer == 0 ? kTransferMax
                    : static_cast<std::uint32_t>(std::min<std::uint64_t>(transfer, kTransferMax));
  found.transfer_bytes_max -= found.transfer_bytes_max % kBlockMax;
  if (found.transfer_bytes_max == 0) {
    return fail(Errc::kUnsupported, "the server takes less than 4096 bytes at once");
  }
  found.writable = nbd_is_read_only(handle) == 0;
  found.rotational = nbd_is_rotational(handle) == 1;
  found.flushes = nbd_can_flush(handle) == 1;
  found.fua = nbd_can_fua(handle) == 1;
  found.trims = found.writable && nbd_can_trim(handle) == 1;
  found.zeroes = found.writable && nbd_can_zero(handle) == 1;
  found.extents = nbd_can_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  return found;
}

std::string probe_nbd(UniqueFd socket, const std::string& export_name, std::chrono::milliseconds time_max,
                      NbdExport& found) {
  const NbdHandle handle = make_nbd_handle(export_name);
  if (handle == nullptr) return nbd_get_error();
  if (nbd_aio_connect_socket(handle.get(), socket.release()) != 0) return nbd_get_error();
  const Clock::time_point due = Clock::now() + time_max;
  while (nbd_aio_is_ready(handle.get()) == 0) {
    if (nbd_aio_is_dead(handle.get()) == 1) return nbd_get_error();
    if (nbd_aio_is_closed(handle.get()) == 1) return "the server ended the handshake";
    if (!step(handle.get(), due) && Clock::now() >= due) {
      return "the server does not finish the handshake; it may serve one client at a time";
    }
  }
  const Result<NbdExport> told = read_nbd_export(handle.get());
  if (!told) return told.error().text;
  found = *told;
  (void)nbd_aio_disconnect(handle.get(), 0);
  return {};
}

}  // namespace vmbusd::storvsp
